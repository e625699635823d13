"""The frame of all commands: help, errors, interruption, pipes, speed."""

import errno
import io
import os
import subprocess
import sys

import pytest

import videonsa
from videonsa.cli import main as main_module
from videonsa.cli.common import emit
from videonsa.cli.main import EXIT_DEFECT, EXIT_INTERRUPTED, EXIT_NO_OUTPUT, EXIT_USER, main
from videonsa.errors import VideoError

COMMANDS = ("ask", "convert", "demo", "doctor", "plan")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples_json_and_debug(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert f"videonsa {command}" in text.split("examples:")[1]
    assert "--json" in text
    assert "--debug" in text


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"videonsa {videonsa.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [[], ["sing"], ["ask"], ["ask", "a.mp4", "b", "--fps", "x"], ["ask", "a.mp4", "b", "--nope"]],
    ids=["none", "unknown command", "no video", "fps is text", "unknown option"],
)
def test_usage_errors_are_one_line_that_points_to_help(arguments, capsys):
    assert main(arguments) == EXIT_USER
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "--help'" in err


def test_abbreviated_options_are_refused(capsys):
    assert main(["ask", "a.mp4", "b", "--max-f", "3"]) == EXIT_USER
    assert "--max-f" in capsys.readouterr().err


def run_raising(monkeypatch, error, *options):
    def broken(_):
        raise error

    monkeypatch.setattr(main_module.doctor, "run", broken)
    return main(["doctor", *options])


def test_an_error_of_the_user_is_one_line_even_if_its_text_has_several(monkeypatch, capsys):
    assert run_raising(monkeypatch, VideoError("first\n  second")) == EXIT_USER
    assert capsys.readouterr() == ("", "videonsa: error: first second\n")


def test_debug_shows_the_traceback_and_keeps_the_status(monkeypatch, capsys):
    assert run_raising(monkeypatch, VideoError("first"), "--debug") == EXIT_USER
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith("videonsa: error: first\n")


def test_what_the_system_refuses_is_an_error_of_the_user(monkeypatch, capsys):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.bin")
    assert run_raising(monkeypatch, full) == EXIT_USER
    told = "a.bin: no space left on device: free some, or write to another disk"
    assert capsys.readouterr() == ("", f"videonsa: error: {told}\n")
    assert run_raising(monkeypatch, PermissionError(errno.EACCES, "Permission denied")) == 2
    assert "permission denied: name a file or a folder" in capsys.readouterr().err
    assert run_raising(monkeypatch, OSError("of a library")) == EXIT_DEFECT


def test_a_defect_is_told_apart_from_an_error_of_the_user(monkeypatch, capsys):
    assert run_raising(monkeypatch, KeyError("lost")) == EXIT_DEFECT
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "unexpected KeyError: 'lost'" in err
    assert "--debug" in err


def test_an_interruption_is_quiet(monkeypatch, capsys):
    assert run_raising(monkeypatch, KeyboardInterrupt()) == EXIT_INTERRUPTED
    assert capsys.readouterr() == ("", "")


def test_a_closed_pipe_is_quiet():
    script = (
        "import sys; from videonsa.cli import main as m; from videonsa.cli.common import emit\n"
        "m.doctor.run = lambda _: [emit('x' * 65536) for _ in range(64)] and 0\n"
        "sys.exit(m.main(['doctor']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == EXIT_NO_OUTPUT


STREAMS = {
    # what the shell does: (status, lines of the result)
    ">&-": (EXIT_NO_OUTPUT, 0),
    ">/dev/full": (EXIT_NO_OUTPUT, 0),
    "2>&-": (0, 1),
    "2>/dev/full": (0, 1),
    "<&- 2>&-": (0, 1),
    ">&- 2>&- <&-": (EXIT_NO_OUTPUT, 0),
}


@pytest.mark.parametrize("streams", STREAMS)
def test_a_stream_that_is_closed_or_full_ends_quietly(streams):
    command = f"exec '{sys.executable}' -m videonsa --version {streams}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("\n")) == STREAMS[streams]
    assert done.stderr == ""


def test_an_error_that_nobody_can_read_keeps_its_status():
    command = f"exec '{sys.executable}' -m videonsa sing 2>&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (EXIT_USER, b"")


def test_a_file_does_not_get_the_number_of_a_closed_stream(tmp_path):
    script = (
        "import os, sys; from videonsa.cli.common import open_closed_streams\n"
        "open_closed_streams(); print(os.open(sys.argv[1], os.O_RDONLY), file=sys.stderr)"
    )
    command = f"exec '{sys.executable}' -c '{script}' {tmp_path} <&- >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert int(done.stderr) > 2


def test_a_result_that_the_encoding_of_stdout_lacks_is_escaped(monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    emit("\u00fc \udcff\n")
    assert stdout.buffer.getvalue() == b"\\xfc \\udcff\n"


def test_running_out_of_memory_is_an_error_of_the_user(monkeypatch, capsys):
    of_torch = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes")
    for error in (MemoryError(), of_torch):
        assert run_raising(monkeypatch, error) == EXIT_USER
        assert "error: out of memory (" in capsys.readouterr().err


def test_an_error_of_any_length_is_a_short_line_that_keeps_its_end(monkeypatch, capsys):
    assert run_raising(monkeypatch, VideoError(f"{'a' * 9999}: do this")) == EXIT_USER
    err = capsys.readouterr().err
    assert len(err) < 1100
    assert err.endswith("a: do this\n")


def test_python_m_videonsa_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "videonsa", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"videonsa {videonsa.__version__}\n"
