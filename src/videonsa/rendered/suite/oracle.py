"""Answers questions by reading what is seen: never the answers that were drawn."""

import re
from collections.abc import Callable

from videonsa.errors import UsageError
from videonsa.rendered.clips.scene import COLOURS, SHAPES, Sprite
from videonsa.rendered.suite.evidence import MARK, Evidence
from videonsa.rendered.suite.script import Script
from videonsa.rendered.suite.suite_answers import ORDINALS

_NAME = re.compile(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")


def oracle(script: Script, question_text: str) -> str:
    """The right answer, from the facts of the script and the words of the question alone."""
    names = [match.group() for match in _NAME.finditer(question_text)]
    for words, read in _READERS:
        if re.search(words, question_text):
            return read(script.evidence, question_text, names)
    raise UsageError(f"question={question_text!r}: want one that questions_of() wrote")


def _seen(evidence: Evidence, name: str) -> list[Sprite]:
    sprites = [sprite for sprite in evidence.objects if sprite.name == name]
    return sorted(sprites, key=lambda sprite: sprite.start)


def _flashed(evidence: Evidence, text: str, names: list[str]) -> str:
    (flash,) = evidence.flashes
    return flash.name


def _boxed(evidence: Evidence, text: str, names: list[str]) -> str:
    rank = next(i for i, ordinal in enumerate(ORDINALS) if ordinal in text)
    return sorted(evidence.boxes, key=lambda flash: flash.start)[rank].name


def _marked(evidence: Evidence, text: str, names: list[str]) -> str:
    (number,) = (caption.text for caption in evidence.numbers if caption.text[0] == MARK)
    return number[1:]


def _how_often(evidence: Evidence, text: str, names: list[str]) -> str:
    return str(len(_seen(evidence, names[0])))


def _earlier(evidence: Evidence, text: str, names: list[str]) -> str:
    return min(names, key=lambda name: _seen(evidence, name)[0].start)


def _way(evidence: Evidence, text: str, names: list[str]) -> str:
    (sprite,) = _seen(evidence, names[0])
    (x0, y0), (x1, y1) = (sprite.position(time) for time in (sprite.start, sprite.end))
    if abs(x1 - x0) > abs(y1 - y0):
        return "right" if x1 > x0 else "left"
    return "down" if y1 > y0 else "up"


def _side(evidence: Evidence, text: str, names: list[str]) -> str:
    one, other = (_seen(evidence, name)[0] for name in names)
    dx, dy = one.x - other.x, one.y - other.y
    if abs(dx) > abs(dy):
        return "right" if dx > 0 else "left"
    return "below" if dy > 0 else "above"


def _nearer(evidence: Evidence, text: str, names: list[str]) -> str:
    anchor, *others = (_seen(evidence, name)[0] for name in names)
    return min(others, key=lambda s: (s.x - anchor.x) ** 2 + (s.y - anchor.y) ** 2).name


def _larger(evidence: Evidence, text: str, names: list[str]) -> str:
    early, late = _seen(evidence, names[0])
    unit = "minute" if "minute" in text else "quarter"
    return f"{'first' if early.radius > late.radius else 'last'} {unit}"


_READERS: tuple[tuple[str, Callable[[Evidence, str, list[str]], str]], ...] = (
    ("flashed", _flashed),
    ("white box", _boxed),
    ("#", _marked),
    ("How many", _how_often),
    ("first, the", _earlier),
    (" move", _way),
    ("above or below", _side),
    ("nearer|closer", _nearer),
    ("larger", _larger),
)
