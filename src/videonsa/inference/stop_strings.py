"""`StopStrings`: cut an answer before the first stop string, while its text comes in pieces."""

from collections import deque
from collections.abc import Callable, Sequence


class StopStrings:
    """Lets text through that is not part of a stop string, and says when one is complete.

    The first stop string is the one that is complete first (of several that end together, the one
    that begins first), so the result does not depend on where the text is cut into pieces. Text
    that may be the beginning of a stop string is held back until it is known.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self.found: str | None = None
        """The stop string that ended the answer."""
        self.tokens_before = 0
        """Tokens whose text was let through whole: all of it lies before the stop string."""
        self.rest = ""
        """Text let through after theirs: the beginning of a token that the stop string cuts."""
        self._stop = tuple(stop)
        self._held = ""
        self._let_through = 0  # characters
        self._tokens = 0
        self._ends: deque[tuple[int, int]] = deque()
        # Of tokens that end in the text held: where in the whole text, and how many there are.

    def push(self, piece: str, *, tokens: int = 1) -> str:
        """The text that may be shown now.

        Args:
            piece: what follows; empty where the tokens leave a character open.
            tokens: how many came with it; 0 for what is left when no more come.
        """
        if self.found is not None:
            return ""
        self._tokens += tokens
        text = self._held + piece
        if piece:
            self._ends.append((self._let_through + len(text), self._tokens))
        matches = ((start + len(s), start, s) for s in self._stop if (start := text.find(s)) >= 0)
        first = min(matches, default=None)
        if first is None:
            return self._let(text, len(text) - self._may_begin(text))
        _, start, self.found = first
        return self._let(text, start)

    def flush(self) -> str:
        """What is held back, when no more comes: it was not the beginning of a stop string."""
        if self.found is not None:
            return ""
        shown = self._let(self._held, len(self._held))
        self.tokens_before = self._tokens
        return shown

    def text_of(self, ids: list[int], decode: Callable[[list[int]], str]) -> str:
        """The text of an answer up to where it was ended or stopped, from all of its ids."""
        if self.found is None:
            return decode(ids)
        return decode(ids[: self.tokens_before]) + self.rest

    def _let(self, text: str, end: int) -> str:
        self._held, self.rest = text[end:], self.rest + text[:end]
        self._let_through += end
        while self._ends and self._ends[0][0] <= self._let_through:
            whole, self.tokens_before = self._ends.popleft()
            self.rest = text[end - (self._let_through - whole) : end]
        return text[:end]

    def _may_begin(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string begins."""
        longest = max(map(len, self._stop), default=0)
        lengths = range(min(len(text), longest - 1), 0, -1)
        return next((n for n in lengths if any(s.startswith(text[-n:]) for s in self._stop)), 0)
