"""From tokens to text, and what can go wrong on the way."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from videonsa.errors import BudgetError, ModelError
from videonsa.machine import ran_out_of_memory

_REPLACEMENT = "\ufffd"


def not_finite(what: str) -> ModelError:
    """What to raise where logits are not finite; `what` says which."""
    return ModelError(
        f"the logits of {what} are not finite: the weights hold NaN or infinity, or exceed the "
        "dtype; try another dtype (--dtype float32 or bfloat16), else download the weights again"
    )


@contextmanager
def out_of_memory(
    prompt_tokens: int, device: torch.device, advice: Callable[[], str] | None = None
) -> Iterator[None]:
    """Turn running out of memory inside into a BudgetError that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        what = advice() if advice else "lower --max-frames or --max-pixels"
        raise BudgetError(
            f"out of memory on {device} with a prompt of {prompt_tokens} tokens: {what}"
        ) from error


class TextPieces:
    """Turns ids that come one by one into text pieces; a character is never cut in two."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0  # ids before it only give the context that decoding needs
        self._shown = 0  # ids before it are shown

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is still open."""
        self._ids.append(token)
        piece = self._unseen()
        if not piece or piece.endswith(_REPLACEMENT):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return piece

    def flush(self) -> str:
        """What is left at the end, an unfinished character included."""
        piece = self._unseen()
        self._start = self._shown = len(self._ids)
        return piece

    def _unseen(self) -> str:
        seen = self._decode(self._ids[self._start : self._shown])
        return self._decode(self._ids[self._start :])[len(seen) :]
