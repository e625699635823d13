"""Types of arguments: what they take, and one line for the rest."""

from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from videonsa.cli import values
from videonsa.cli.main import main


def test_numbers_and_names_are_taken():
    assert values.whole_number(1, 3)("3") == 3
    assert values.integer("-7") == -7
    assert values.positive_number("0.5") == 0.5
    assert values.seed("4294967295") == 2**32 - 1
    assert values.path("a/b") == Path("a/b")


@pytest.mark.parametrize(
    ("kind", "text", "line"),
    [
        (values.whole_number(1, 3), "0", "0: want at least 1"),
        (values.whole_number(1, 3), "4", "4: want at most 3"),
        (values.whole_number(1, 3), "2.5", "2.5: want a whole number"),
        (values.integer, "1" + 30 * "0", "want at most 9223372036854775807"),
        (values.integer, "9" * 5000, "want a whole number"),
        (values.integer, "", "want a whole number"),
        (values.positive_number, "0", "0: want more than 0"),
        (values.positive_number, "inf", "inf: want more than 0, from 1e-09 to 1e"),
        (values.positive_number, "1e-320", "1e-320: want more than 0, from 1e-09"),
        (values.positive_number, "nan", "nan: want more than 0"),
        (values.positive_number, "x", "x: want a number"),
        (values.seed, "-1", "-1: want at least 0"),
        (values.seed, "4294967296", "want at most 4294967295"),
        (values.size, "0GB", "is no size"),
        (values.size, "9" * 400 + "GB", "is no size"),
        (values.path, "", "this names nothing"),
        (values.path, "a\0b", "this names nothing"),
    ],
)
def test_what_is_outside_the_bounds_is_refused(kind, text, line):
    with pytest.raises(ArgumentTypeError, match=line):
        kind(text)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["demo", "--seed", "-1"], "--seed -1: want at least 0: see 'videonsa demo --help'"),
        (["demo", "--seed", f"1{20 * '0'}"], "want at most 4294967295"),
        (["demo", "--out", ""], "--out '': want the name of something"),
        (["convert", "embedded", ""], "TARGET '': want the name of something"),
        (["convert", "embedded", "x", "--seed", "-1"], "--seed -1: want at least 0"),
        (["ask", "", "What?"], "VIDEO '': want the name of something"),
        (["bench", "prefill", "--rows-per-chunk", "-1"], "--rows-per-chunk -1: want at least 0"),
        (["bench", "prefill", "--repeats", "inf"], "--repeats inf: want a whole number"),
        (["bench", "attention", "--repeats", "100000000"], "want at most 10000"),
        (["bench", "train", "--peak-tflops", "nan"], "--peak-tflops nan: want more than 0"),
        (["bench", "train", "--model", "tiny", "--device", "cpu", "--tokens", "9" * 5000], "16m"),
        (["data", "build", "x", "--model", "embedded", "--out", "y", "--timeout", "inf"], "inf:"),
        (["data", "build", "x", "--model", "embedded", "--out", "y", "--workers", "9999"], "1024"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_commands_refuse_them_in_one_line(arguments, line, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert line in err
