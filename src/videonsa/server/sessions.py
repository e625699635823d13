"""Sessions that are kept between requests, found again by what was shown and said in them."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple

from videonsa.inference.engine import VideoQA
from videonsa.inference.session import Session
from videonsa.server.asked import Said
from videonsa.video.parts import VideoStream
from videonsa.video.sampling import SamplingSpec
from videonsa.video.source import VideoLike


class Shown(NamedTuple):
    """An image or a video at its place in a conversation."""

    digest: str
    """Of its content."""
    sampling: SamplingSpec


Part = Said | Shown
Media = dict[Shown, VideoLike]
"""Where the content of what is shown can be read."""


@dataclass(slots=True, eq=False)
class Kept:
    """A session, and what stands in it."""

    session: Session
    system: str
    base: tuple[Part, ...]
    """What all questions see: all goes back to it."""
    said: tuple[Part, ...] = field(default=())
    """What followed."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """All that stands in it, after the system message."""
        return (*self.base, *self.said)

    def note_turns(self) -> None:
        """Take note of what was asked and answered since."""
        known = sum(isinstance(part, Said) for part in self.parts)
        self.said = (*self.said, *(Said(*turn) for turn in self.session.turns[known:]))


class Sessions:
    """The sessions of one model. Not for several threads."""

    def __init__(
        self, qa: VideoQA, *, read: Callable[[VideoLike, SamplingSpec], VideoStream]
    ) -> None:
        """Begin with none.

        Args:
            qa: the model.
            read: opens media.
        """
        self._qa, self._read = qa, read
        self._kept: list[Kept] = []  # the one used last stands last

    def with_parts(self, system: str, parts: Sequence[Part], media: Media) -> tuple[Kept, int]:
        """A session in which these parts stand, and how many tokens of them were read before.

        Raises:
            VideoError: media that cannot be read.
            BudgetError: what does not fit.
        """
        wanted = tuple(parts)
        found = self._find(system, wanted)
        num_cached = 0
        if found is None:
            found = self._open(system, wanted, media)
        else:
            self._kept.remove(found)
            num_cached = found.session.num_tokens
        # A session that fails on the way is not kept: what stands in it is not known.
        self._read_on(found, wanted, media)
        self._kept.append(found)
        return found, num_cached

    def forget(self, kept: Kept) -> None:
        """Keep it no longer."""
        if kept in self._kept:
            self._kept.remove(kept)

    def _find(self, system: str, wanted: tuple[Part, ...]) -> Kept | None:
        """The session of which most can be used, gone back to where it agrees."""
        usable = [one for one in self._kept if one.system == system and _begins(wanted, one.base)]
        if not usable:
            return None
        whole = [one for one in usable if _begins(wanted, one.parts)]
        if whole:
            return max(whole, key=lambda one: len(one.parts))
        found = max(usable, key=lambda one: len(one.base))
        found.session.forget_conversation()
        found.said = ()
        return found

    def _open(self, system: str, wanted: tuple[Part, ...], media: Media) -> Kept:
        first = wanted[0]
        if isinstance(first, Said):
            return Kept(Session(self._qa, system=system, notes=self._qa.notes), system, ())
        stream = self._read(media[first], first.sampling)
        with closing(stream.frames):
            session = self._qa.open(stream, system=system)
        return Kept(session, system, (first,))

    def _read_on(self, kept: Kept, wanted: tuple[Part, ...], media: Media) -> None:
        for part in wanted[len(kept.parts) :]:
            if isinstance(part, Said):
                kept.session.say(part.role, part.text)
                kept.said = (*kept.said, part)
                continue
            stream = self._read(media[part], part.sampling)
            with closing(stream.frames):
                kept.session.join(stream)
            if kept.said:
                kept.said = (*kept.said, part)
            else:
                kept.base = (*kept.base, part)


def _begins(wanted: tuple[Part, ...], with_parts: tuple[Part, ...]) -> bool:
    return wanted[: len(with_parts)] == with_parts
