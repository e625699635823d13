"""The shapes that are measured, by name."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

TINY = "tiny-"
"""Shapes whose name begins so are small enough for a CPU."""

_LENGTHS = MappingProxyType(
    {f"{kilo}k": kilo * 1024 for kilo in (16, 32, 64, 128, 256)} | {"1m": 2**20}
)
_FRAME = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """One attention layer over one vision stream; query rows and keys are the same tokens.

    `selection_scope` is no part of it: the op that is measured decides that.
    """

    name: str
    tokens: int
    query_heads: int
    kv_heads: int
    head_dim: int
    block_size: int | Literal["frame"]
    frame_size: int | None = None
    """Tokens a frame; only with `block_size="frame"`."""
    num_selected: int
    window: int
    dtype: str = "bfloat16"

    @property
    def block_tokens(self) -> int:
        """Tokens of a block, and of what one normal query stands for in the coherent regime."""
        if self.block_size != "frame":
            return self.block_size
        assert self.frame_size is not None, "a frame shape names its frame size"
        return self.frame_size

    @property
    def frame_sizes(self) -> list[int] | None:
        """Tokens of each frame, the last perhaps still arriving; None with fixed blocks."""
        if self.block_size != "frame":
            return None
        return [self.block_tokens] * -(-self.tokens // self.block_tokens)

    @property
    def text(self) -> str:
        """All of it in one line."""
        block = f"frames of {self.frame_size}" if self.block_size == "frame" else self.block_size
        return (
            f"{self.tokens:,} tokens, {self.query_heads} query and {self.kv_heads} KV heads of "
            f"{self.head_dim}, s = {block}, n = {self.num_selected}, w = {self.window}, "
            f"{self.dtype}"
        )


def _real() -> Iterator[Shape]:
    """The layers of the 7B and 3B models, and the 7B one with frame-aligned blocks."""
    for length, tokens in _LENGTHS.items():
        for model, query_heads, kv_heads in (("7b", 28, 4), ("3b", 16, 2)):
            yield Shape(
                name=f"{model}-{length}",
                tokens=tokens,
                query_heads=query_heads,
                kv_heads=kv_heads,
                head_dim=128,
                block_size=64,
                num_selected=32,
                window=256,
            )
        yield Shape(
            name=f"frame{_FRAME}-{length}",
            tokens=tokens // _FRAME * _FRAME,  # a video ends with a whole frame
            query_heads=28,
            kv_heads=4,
            head_dim=128,
            block_size="frame",
            frame_size=_FRAME,
            num_selected=32,
            window=256,
        )


def _tiny() -> Iterator[Shape]:
    """A moment on a CPU: to try the command."""
    for name, tokens, frame in (("256", 256, None), ("1k", 1024, None), ("frame20", 240, 20)):
        yield Shape(
            name=f"{TINY}{name}",
            tokens=tokens,
            query_heads=6,
            kv_heads=2,
            head_dim=16,
            block_size="frame" if frame else 16,
            frame_size=frame,
            num_selected=4,
            window=32,
        )


SHAPES = MappingProxyType(
    {
        shape.name: shape
        for shape in sorted(_real(), key=lambda shape: shape.name.split("-")[0], reverse=True)
    }
    | {shape.name: shape for shape in _tiny()}
)
"""Every shape by name."""

DEFAULT_SHAPES = ("7b-16k", "7b-32k", "7b-64k", "7b-128k", "7b-256k")
"""On a GPU."""
DEFAULT_TINY_SHAPES = ("tiny-256", "tiny-1k")
"""On a CPU."""
