"""What befalls files: cut, emptied, overwritten, replaced by what is no file, values of all kinds.

Every function changes a file in place. Which bytes are hit follows from a seed.
"""

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

WRONG: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**70, 10**4000, 1.5, 1e308, float("nan"), float("-inf")),
    *("", "x" * 5_000, "\ud83d", [], [None], {}, {"a": {}}, [[[]]] * 3),
)


def _cut(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def _overwrite(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 3, 50))):
        content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(content)


def _insert(path: Path, rng: random.Random) -> None:
    content, place = path.read_bytes(), rng.randrange(path.stat().st_size)
    what = rng.choice((b"9" * 10_000, b"[" * 100_000, b"\n\n", b"\0", b"\xff\xfe"))
    path.write_bytes(content[:place] + what + content[place:])


def _replaced(content: bytes) -> Callable[[Path, random.Random], None]:
    return lambda path, _: path.write_bytes(content) and None


def _folder(path: Path, _: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path, _: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _loop(path: Path, _: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    **{f"cut {i}": _cut for i in range(6)},
    **{f"overwritten {i}": _overwrite for i in range(30)},
    **{f"inserted {i}": _insert for i in range(15)},
    **{
        repr(content[:12]): _replaced(content)
        for content in (
            *(b"", b"\n", b"null\n", b"[]\n", b"{}\n", b"1\n", b'"a"\n', b"PAR1PAR1", b"\0" * 99),
            *(b"[" * 100_000 + b"\n", b'{"a":' * 9_000 + b"\n", b"9" * 10_000 + b"\n", b"NaN\n"),
        )
    },
    "a folder": _folder,
    "a pipe": _pipe,
    "a loop": _loop,
}


def damage(path: Path, name: str) -> None:
    """Do to a file what a name of `DAMAGES` says."""
    DAMAGES[name](path, random.Random(f"{path.name}/{name}"))


def wrong_values(content: Any) -> Iterator[Any]:
    """A JSON value with one part of it, however deep, replaced by or without it."""
    yield from WRONG
    if isinstance(content, dict):
        for key, value in content.items():
            yield {k: v for k, v in content.items() if k != key}
            for wrong in wrong_values(value):
                yield content | {key: wrong}
        yield content | {"added": 1}
    elif isinstance(content, list):
        for index, value in enumerate(content[:2]):
            for wrong in wrong_values(value):
                yield [*content[:index], wrong, *content[index + 1 :]]


def to_line(content: Any) -> str:
    """As Python writes JSON, which knows NaN."""
    return json.dumps(content, ensure_ascii=True) + "\n"
