"""`HeadPatterns`: how many columns and offsets each head of a model keeps, in a file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from videonsa.errors import UsageError
from videonsa.parsing import one_line, read_json_object, typed

FORMAT = "videonsa vertical-slash patterns 1"
LETTERS = "abcdefghijklmnopqrstuvwxyz"

Sizes = tuple[int, int]
"""Columns (vertical) and offsets (slash)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadPatterns:
    """Sizes of vertical-slash heads, and what they were searched on.

    In a file every pair of sizes has a letter, and every layer is a word of them, a letter a head.
    """

    model: str
    searched_on: str
    """`text`, or the video."""
    source: str
    """Where they were published, or how they were searched."""
    sizes: tuple[tuple[Sizes, ...], ...]
    """Of each layer and query head."""

    @property
    def shape(self) -> tuple[int, int]:
        """Layers, and query heads of a layer."""
        return len(self.sizes), len(self.sizes[0])

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a file.

        Raises:
            UsageError: a file that cannot be read or holds something else.
        """
        remedy = "want a file of `videonsa methods search minference`"
        stated = read_json_object(path, remedy=remedy)
        try:
            found: _Stated = typed(_Stated, stated)
            sizes = tuple(tuple(found.sizes[head] for head in layer) for layer in found.layers)
            shapes = {len(layer) for layer in sizes}
            if len(shapes) != 1 or 0 in shapes or min(map(min, found.sizes.values())) < 1:
                raise ValueError("want as many heads in each layer, and sizes of at least 1")
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{path} holds no head patterns ({one_line(error)}): {remedy}"
            ) from error
        return cls(
            model=found.model, searched_on=found.searched_on, source=found.source, sizes=sizes
        )

    def to_json(self) -> str:
        """What `read` reads."""
        known = dict.fromkeys(pair for layer in self.sizes for pair in layer)
        letters = dict(zip(known, LETTERS, strict=False))
        stated = {
            "format": FORMAT,
            "model": self.model,
            "searched_on": self.searched_on,
            "source": self.source,
            "sizes": {letter: list(pair) for pair, letter in letters.items()},
            "layers": ["".join(letters[pair] for pair in layer) for layer in self.sizes],
        }
        return json.dumps(stated, indent=2) + "\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stated:
    """What is in a file."""

    format: Literal["videonsa vertical-slash patterns 1"]
    model: str
    searched_on: str
    source: str
    sizes: dict[str, Sizes]
    layers: tuple[str, ...]
