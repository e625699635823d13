"""The line that is shown while kernels compile."""

import io

from videonsa.cli.compiling import CompileLine, compile_line, told_to_first
from videonsa.ops.compilation import Compiled


class Terminal(io.StringIO):
    def isatty(self):
        return True


def compiled(count, seconds):
    return Compiled(count=count, seconds=seconds)


def test_elsewhere_than_on_a_terminal_it_is_said_once(capsys):
    line = CompileLine(io.StringIO())
    for count in range(1, 9):
        line(compiled(count, count * 0.7))
    line.close()
    assert capsys.readouterr().err == (
        "compiling  GPU kernels for this machine, once: 1 so far, 1 s\n"
    )


def test_on_a_terminal_one_line_changes_and_is_left_at_the_end():
    terminal = Terminal()
    line = CompileLine(terminal)
    line(compiled(1, 0.4))
    line(compiled(12, 8.1))
    assert "\n" not in terminal.getvalue()
    line.close()
    shown = terminal.getvalue().split("\r")
    assert "compiling  GPU kernels for this machine, once: 1 so far, 0 s" in shown
    assert shown[-1].startswith("compiling  GPU kernels for this machine, once: 12 so far, 8 s")
    assert terminal.getvalue().count("\n") == 1


def test_nothing_is_said_where_nothing_compiles(capsys):
    with compile_line():
        pass
    assert list(told_to_first(iter(["a", "b"]))) == ["a", "b"]
    assert list(told_to_first(iter([]))) == []
    assert capsys.readouterr() == ("", "")
