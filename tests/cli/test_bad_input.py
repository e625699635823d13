"""Bad input: one line on stderr that says what came, what was wanted and what to do; status 2."""

import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from conftest import write_clip

from videonsa.cli.main import main


@pytest.fixture(scope="session")
def bad_videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is no video\n" * 100)
    write_sound(folder / "sound.mp4")
    whole = write_clip(folder / "whole.mp4", num_frames=8).read_bytes()
    # The index of an mp4 stands at its end: the first half alone cannot be read.
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    write_header_only(folder / "zero.avi")
    (folder / "nothing").mkdir()
    return folder


def write_sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        for index in range(4):
            samples = np.zeros((1, 1024), dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16_000, 1024 * index
            frame.time_base = Fraction(1, 16_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_header_only(path):
    """A video of zero seconds: a track without a single frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width, stream.height, stream.pix_fmt = 112, 84, "yuv420p"
        container.start_encoding()  # otherwise no file is made at all
        container.mux(stream.encode())


CASES = {
    # name: (video, question, options, what came, what was wanted or what to do)
    "missing file": ("none.mp4", "What?", [], "no such file", "want a video"),
    "empty file": ("empty.mp4", "What?", [], "empty file", "want a video"),
    "text named mp4": ("text.mp4", "What?", [], "not a video that can be opened", "want"),
    "audio only": ("sound.mp4", "What?", [], "no video stream (it holds audio)", "want"),
    "truncated mp4": ("truncated.mp4", "What?", [], "without a usable index", "want"),
    "zero duration": ("zero.avi", "What?", [], "no picture of its mpeg4 stream", "want"),
    "empty folder": ("nothing", "What?", [], "folder without images", "want frames"),
    "empty question": ("whole.mp4", "", [], "question came empty", "ask something"),
    "question of 100,000 characters": (
        *("whole.mp4", "why " * 25_000, []),
        *("text tokens", "shorten the question"),
    ),
    "unknown model": ("whole.mp4", "What?", ["--model", "gpt"], "model 'gpt'", "check the path"),
    "empty model": ("whole.mp4", "What?", ["--model", ""], "model ''", "check the path"),
    "negative fps": ("whole.mp4", "What?", ["--fps", "-1"], "fps=-1", "want a number above 0"),
    "fps of zero": ("whole.mp4", "What?", ["--fps", "0"], "fps=0", "want a number above 0"),
    "fps not a number": ("whole.mp4", "What?", ["--fps", "nan"], "fps=nan", "want a number"),
    "no frames": ("whole.mp4", "What?", ["--max-frames", "0"], "max_frames=0", "at least 1"),
    "no pixels": ("whole.mp4", "What?", ["--max-pixels", "1"], "max_pixels=1", "at least 784"),
    "context too small": (
        *("whole.mp4", "What?", ["--max-new-tokens", "2000"]),
        *("exceed the context of 2048", "--max-frames"),
    ),
    "budget below a frame": (
        *("whole.mp4", "What?", ["--max-tokens", "1"]),
        *("max_tokens=1", "want at least"),
    ),
    "no new tokens": (
        *("whole.mp4", "What?", ["--max-new-tokens", "0"]),
        *("max_new_tokens=0", "at least 1"),
    ),
    "negative temperature": (
        *("whole.mp4", "What?", ["--temperature", "-1"]),
        *("temperature=-1", "at least 0"),
    ),
    "temperature not a number": (
        *("whole.mp4", "What?", ["--temperature", "nan"]),
        *("temperature=nan", "at least 0"),
    ),
    "top-p above 1": (
        *("whole.mp4", "What?", ["--temperature", "1", "--top-p", "1.5"]),
        *("top_p=1.5", "at most 1"),
    ),
    "seed too large": (
        *("whole.mp4", "What?", ["--seed", str(2**63)]),
        *(f"seed={2**63}", "below 2**63"),
    ),
    "unknown device": (
        *("whole.mp4", "What?", ["--device", "tpu9"]),
        *("device 'tpu9'", "videonsa doctor"),
    ),
}


def check(status, out, err, came, wanted):
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("videonsa: error: ")
    assert "Traceback" not in err
    assert came in err
    assert wanted in err
    assert len(err) < 500


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_clear_line_and_status_2(case, bad_videos, tiny_folder, capsys):
    video, question, options, came, wanted = CASES[case]
    arguments = ["ask", str(bad_videos / video), question, "--model", str(tiny_folder), *options]
    check(main(arguments), *capsys.readouterr(), came, wanted)


@pytest.mark.parametrize("case", ["text named mp4", "context too small"])
def test_bad_input_looks_the_same_from_the_shell(case, bad_videos, tiny_folder):
    video, question, options, came, wanted = CASES[case]
    arguments = ["ask", str(bad_videos / video), question, "--model", str(tiny_folder), *options]
    done = subprocess.run(
        [sys.executable, "-m", "videonsa", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    check(done.returncode, done.stdout, done.stderr, came, wanted)


@pytest.mark.parametrize("case", ["missing file", "audio only", "negative fps", "unknown model"])
def test_plan_refuses_the_same_input(case, bad_videos, tiny_folder, capsys):
    video, _, options, came, wanted = CASES[case]
    arguments = ["plan", str(bad_videos / video), "--model", str(tiny_folder), *options]
    check(main(arguments), *capsys.readouterr(), came, wanted)


def test_a_hub_that_cannot_be_reached_is_one_line(bad_videos, monkeypatch, capsys):
    def unreachable(*_, **__):
        raise OSError("network is unreachable")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    arguments = ["ask", str(bad_videos / "whole.mp4"), "What?", "--model", "nobody/nothing"]
    check(main(arguments), *capsys.readouterr(), "model 'nobody/nothing'", "check the id")


def test_a_frame_of_8k_is_served(tiny_folder, tmp_path, capsys):
    video = write_clip(tmp_path / "8k.mp4", num_frames=1, width=7680, height=4320)
    options = ["--model", str(tiny_folder), "--max-new-tokens", "1"]
    assert main(["ask", str(video), "What?", *options]) == 0
    assert "frames     1 of 280x168" in capsys.readouterr().err


def test_a_damaged_video_is_served_with_a_warning(tiny_folder, tmp_path, capsys):
    whole = write_clip(tmp_path / "whole.mkv", num_frames=40).read_bytes()
    video = tmp_path / "cut.mkv"
    video.write_bytes(whole[: len(whole) // 2])
    options = ["--model", str(tiny_folder), "--max-new-tokens", "1"]
    assert main(["ask", str(video), "What?", *options]) == 0
    assert "warning" in capsys.readouterr().err
