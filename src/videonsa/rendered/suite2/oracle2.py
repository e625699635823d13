"""Answers questions of the second suite by reading what is seen: never the answers drawn."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from videonsa.errors import UsageError
from videonsa.rendered.clips.scene import PALETTE, SHAPES, Sprite
from videonsa.rendered.suite.evidence import Caption, Evidence
from videonsa.rendered.suite.script import Script
from videonsa.rendered.suite2.acts import WHITE_SQUARE

_NAME = re.compile(rf"({'|'.join(PALETTE)}) ({'|'.join(SHAPES)})(?![a-z])")


def oracle2(script: Script, question_text: str) -> str:
    """The right answer, from the facts of the script and the words of the question alone.

    Raises:
        UsageError: a question that the suite does not ask.
    """
    seen = _Seen.of(script.evidence, script.spec.frame_size)
    for words, read in _READERS:
        if re.search(words, question_text):
            names = [match.group() for match in _NAME.finditer(question_text)]
            return read(seen, names, question_text)
    raise UsageError(f"question={question_text!r}: want one that questions_of() wrote")


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is seen, told apart by what it does."""

    size: int
    """Pixels a side of the frame."""
    coming: list[Sprite]
    """Objects that come by, one at a time, ascending."""
    meetings: list[list[Sprite]]
    pictures: list[list[Sprite]]
    """Objects that stand together."""
    flashes: Sequence[Sprite]
    boxes: Sequence[Sprite]
    signs: list[Caption]
    """In order of time, and from left to right."""

    @classmethod
    def of(cls, evidence: Evidence, size: int) -> "_Seen":
        def start(thing: Sprite | Caption) -> float:
            return thing.start

        objects = sorted(evidence.objects, key=start)
        moving = [sprite for sprite in objects if sprite.vx or sprite.vy]
        standing = [sprite for sprite in objects if not (sprite.vx or sprite.vy)]
        together = [list(group) for _, group in groupby(moving, start)]
        return cls(
            size=size,
            coming=[group[0] for group in together if len(group) == 1],
            meetings=[group for group in together if len(group) == 2],
            pictures=[list(group) for _, group in groupby(standing, start)],
            flashes=evidence.flashes,
            boxes=evidence.boxes,
            signs=sorted(evidence.numbers, key=lambda sign: (sign.start, sign.x)),
        )

    def visits(self, name: str) -> list[Sprite]:
        """When an object comes by."""
        return [sprite for sprite in self.coming if sprite.name == name]

    def picture_of(self, names: Sequence[str]) -> list[Sprite]:
        """The only picture with these objects."""
        (found,) = [p for p in self.pictures if {*names} <= {sprite.name for sprite in p}]
        return found

    def text_at(self, start: float) -> str:
        """The signs that come at a time."""
        return "".join(sign.text for sign in self.signs if sign.start == start)


def _way(sprite: Sprite) -> str:
    if abs(sprite.vx) > abs(sprite.vy):
        return "right" if sprite.vx > 0 else "left"
    return "down" if sprite.vy > 0 else "up"


def _corner(seen: _Seen, names: list[str], text: str) -> str:
    sprite = _in(seen.picture_of(names), names[0])
    vertical = "top" if sprite.y < seen.size / 2 else "bottom"
    return f"{vertical} {'left' if sprite.x < seen.size / 2 else 'right'}"


def _in(picture: Sequence[Sprite], name: str) -> Sprite:
    (found,) = [sprite for sprite in picture if sprite.name == name]
    return found


def _side(seen: _Seen, names: list[str], text: str) -> str:
    picture = seen.picture_of(names)
    other, one = (_in(picture, name) for name in names)
    dx, dy = one.x - other.x, one.y - other.y
    if abs(dx) > abs(dy):
        return "right" if dx > 0 else "left"
    return "down" if dy > 0 else "up"


def _nearer(seen: _Seen, names: list[str], text: str) -> str:
    picture = seen.picture_of(names)
    anchor, *others = (_in(picture, name) for name in names)
    return min(others, key=lambda s: (s.x - anchor.x) ** 2 + (s.y - anchor.y) ** 2).name


def _larger(seen: _Seen, names: list[str], text: str) -> str:
    picture = seen.picture_of(names)
    return max((_in(picture, name) for name in names), key=lambda sprite: sprite.radius).name


def _how_many(seen: _Seen, names: list[str], text: str) -> str:
    (word,) = re.findall(r"How many (\w+)", text)
    shape = word.removesuffix("es") if word == "crosses" else word.removesuffix("s")
    value = word if word in PALETTE else shape
    return str(sum(value in sprite.name.split() for sprite in seen.picture_of(names)))


def _number(seen: _Seen, names: list[str], text: str) -> str:
    return seen.text_at(seen.picture_of(names)[0].start)


def _flashed(seen: _Seen, names: list[str], text: str) -> str:
    (colour,) = [flash.colour for flash in seen.flashes if f"the {flash.shape} that" in text]
    return colour


def _earlier(seen: _Seen, names: list[str], text: str) -> str:
    return min(names, key=lambda name: seen.visits(name)[0].start)


def _way_of(seen: _Seen, names: list[str], text: str) -> str:
    (sprite,) = seen.visits(names[0])
    return _way(sprite)


def _how_often(seen: _Seen, names: list[str], text: str) -> str:
    return str(len(seen.visits(names[0])))


def _when_larger(seen: _Seen, names: list[str], text: str) -> str:
    first, last = seen.visits(names[0])
    return "first" if first.radius > last.radius else "last"


def _digit_before(seen: _Seen, names: list[str], text: str) -> str:
    (box,) = [box for box in seen.boxes if f"went {_way(box)} in" in text]
    visit = _in(seen.picture_of([box.name]), box.name)
    assert visit.start < box.start, "it returned"
    return seen.text_at(visit.start)


def _until(seen: _Seen, names: list[str]) -> float:
    """When the moment is that a question names."""
    return seen.visits(names[-1])[0].start if names else math.inf


def _counter(seen: _Seen, names: list[str], text: str) -> str:
    (mark,) = [sign for sign in seen.signs if sign.text == "#"]
    value = int(seen.text_at(mark.start).removeprefix("#"))
    for sign in seen.signs:
        if sign.start < _until(seen, names):
            value += (sign.text == "+") - (sign.text == "-")
    return str(value)


def _carrier(seen: _Seen, names: list[str], text: str) -> str:
    (pair,) = [p for p in seen.pictures if any(sprite.name == WHITE_SQUARE for sprite in p)]
    (carrier,) = [sprite.name for sprite in pair if sprite.name != WHITE_SQUARE]
    for meeting in seen.meetings:
        one, other = (sprite.name for sprite in meeting)
        if meeting[0].start < _until(seen, names[1:]) and carrier in (one, other):
            carrier = other if carrier == one else one
    return carrier


def _tally(seen: _Seen, names: list[str], text: str) -> str:
    return str(sum(f"many {sprite.colour} objects" in text for sprite in seen.coming))


def _difference(seen: _Seen, names: list[str], text: str) -> str:
    scenes = []
    for letter in re.findall(r"scene ([A-Z])", text):
        (sign,) = [sign for sign in seen.signs if sign.text == letter]
        (picture,) = [p for p in seen.pictures if p[0].start == sign.start]
        scenes.append({sprite.name for sprite in picture})
    (found,) = scenes[0] - scenes[1]
    return found


_READERS: tuple[tuple[str, Callable[[_Seen, list[str], str], str]], ...] = (
    ("In which corner", _corner),
    ("Which way from", _side),
    ("nearer", _nearer),
    ("Which was larger", _larger),
    ("How many .* were with", _how_many),
    ("Which number", _number),
    ("flashed", _flashed),
    ("came by first", _earlier),
    ("Which way did", _way_of),
    ("How many times", _how_often),
    ("first or the last time", _when_larger),
    ("in a white box", _digit_before),
    ("counter", _counter),
    ("Who had", _carrier),
    ("objects came by", _tally),
    ("in scene", _difference),
)
