"""Types of arguments for argparse: numbers within bounds, sizes, and names that name something."""

import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

MOST = 2**63 - 1
"""Of a whole number without a bound of its own: what the libraries below can hold."""
MOST_REPEATS, MOST_WORKERS = 10_000, 1024
_LEAST = 1e-9
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def whole_number(least: int = -MOST, most: int = MOST) -> Callable[[str], int]:
    """The type of whole numbers from `least` to `most`."""

    def parse(text: str) -> int:
        try:
            number = int(text)  # also refuses what has thousands of digits
        except ValueError as error:
            raise ArgumentTypeError(f"{text}: want a whole number") from error
        if number < least:
            raise ArgumentTypeError(f"{number}: want at least {least}")
        if number > most:
            raise ArgumentTypeError(f"{number}: want at most {most}")
        return number

    return parse


integer = whole_number()
"""The type of whole numbers whose bounds are looked at later."""


def positive_number(text: str) -> float:
    """The type of numbers above 0 that may be multiplied and divided by: no tiny or huge ones."""
    try:
        number = float(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text}: want a number") from error
    if not _LEAST <= number <= 1 / _LEAST:
        raise ArgumentTypeError(f"{text}: want more than 0, from {_LEAST:g} to {1 / _LEAST:g}")
    return number


def seed(text: str) -> int:
    """The type of what random numbers start from: 32 bits, which every library takes."""
    return whole_number(0, 2**32 - 1)(text)


def size(text: str) -> int:
    """The type of bytes with a unit, powers of 1000 as the hub counts them."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)\s*([KMGT]?)B?", text.strip().upper(), re.ASCII)
    number = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if number < 1:
        raise ArgumentTypeError(f"{text!r} is no size: want one such as 500MB or 5GB")
    return number


def name(text: str) -> str:
    """The type of what names something: it is not empty, which would be the current folder."""
    if not text or "\0" in text:
        raise ArgumentTypeError(f"{text!r}: want the name of something, this names nothing")
    return text


def path(text: str) -> Path:
    """The type of files and folders."""
    return Path(name(text))
