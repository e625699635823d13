"""Questions about a scene, with the answers that follow from it."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from videonsa.rendered.clips.scene import (
    COLOURS,
    DIRECTIONS,
    MAX_OBJECTS,
    SAMPLE_PERIOD,
    SHAPES,
    SIZE,
    Scene,
    Sprite,
)

COUNTS = tuple(str(count) for count in range(1, MAX_OBJECTS + 1))
NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
CORNERS = ("top left", "top right", "bottom left", "bottom right")
QUARTERS = tuple(f"in the {order} quarter" for order in ("first", "second", "third", "last"))


@dataclass(frozen=True, slots=True)
class ClipQuestion:
    """A question of one kind, its one right answer, and what a guesser chooses from."""

    kind: str
    text: str
    answer: str
    options: tuple[str, ...]
    """In a fixed order; for `order`, the two objects as the question names them."""
    evidence: tuple[tuple[float, float], ...] = ()
    """Seconds [start, end) in which the answer is seen; of `order`, up to the second object's
    appearance."""


def _seen(*sprites: Sprite) -> tuple[tuple[float, float], ...]:
    return tuple((sprite.start, sprite.end) for sprite in sprites)


def _colour(scene: Scene, rng: random.Random) -> ClipQuestion:
    sprite = rng.choice(scene.objects)
    text = rng.choice(("What colour is the {}?", "Which colour does the {} have?"))
    text = text.format(sprite.shape)
    return ClipQuestion("colour", text, sprite.colour, tuple(COLOURS), _seen(sprite))


def _shape(scene: Scene, rng: random.Random) -> ClipQuestion:
    sprite = rng.choice(scene.objects)
    text = rng.choice(("What shape is the {} object?", "Which shape does the {} object have?"))
    return ClipQuestion("shape", text.format(sprite.colour), sprite.shape, SHAPES, _seen(sprite))


def _count(scene: Scene, rng: random.Random) -> ClipQuestion:
    text = rng.choice(("How many objects move?", "How many moving objects are there?"))
    return ClipQuestion("count", text, str(len(scene.objects)), COUNTS, _seen(*scene.objects))


def _direction(scene: Scene, rng: random.Random) -> ClipQuestion:
    sprite = rng.choice(scene.objects)
    text = rng.choice(("Which way does the {} move?", "In which direction does the {} move?"))
    text = text.format(sprite.name)
    return ClipQuestion("direction", text, sprite.direction, tuple(DIRECTIONS), _seen(sprite))


def _order(scene: Scene, rng: random.Random) -> ClipQuestion | None:
    if len(scene.objects) < 2:
        return None
    pair = rng.sample(scene.objects, 2)
    first = min(pair, key=lambda sprite: sprite.start)
    text = rng.choice(
        ("Which came first, the {} or the {}?", "Which appeared first, the {} or {}?")
    )
    names = tuple(sprite.name for sprite in pair)
    shown = ((first.start, max(sprite.start for sprite in pair) + SAMPLE_PERIOD),)
    return ClipQuestion("order", text.format(*names), first.name, names, shown)


def _flash(scene: Scene, rng: random.Random) -> ClipQuestion:
    text = rng.choice(("What flashed?", "Which object flashed?"))
    return ClipQuestion("flash", text, scene.flash.name, NAMES, _seen(scene.flash))


def _when(scene: Scene, rng: random.Random) -> ClipQuestion:
    text = rng.choice(("When did something flash?", "In which quarter was the flash?"))
    quarter = QUARTERS[int(4 * scene.flash.start / scene.duration)]
    return ClipQuestion("when", text, quarter, QUARTERS, _seen(scene.flash))


def _corner(sprite: Sprite, time: float) -> str:
    x, y = sprite.position(time)
    return f"{'top' if y < SIZE / 2 else 'bottom'} {'left' if x < SIZE / 2 else 'right'}"


def _where(scene: Scene, rng: random.Random) -> ClipQuestion:
    sprite = rng.choice(scene.objects)
    text = f"Where is the {rng.choice((sprite.name, sprite.colour + ' object'))}?"
    return ClipQuestion("where", text, _corner(sprite, sprite.start), CORNERS)


def _first_place(scene: Scene, rng: random.Random) -> ClipQuestion:
    sprite = rng.choice(scene.objects)
    text = f"Where was the {sprite.name} first?"
    return ClipQuestion("first place", text, _corner(sprite, sprite.start), CORNERS)


def _last_place(scene: Scene, rng: random.Random) -> ClipQuestion:
    sprite = rng.choice(scene.objects)
    text = f"Where was the {sprite.name} last?"
    return ClipQuestion("last place", text, _corner(sprite, sprite.end), CORNERS)


_MAKERS: dict[str, Callable[[Scene, random.Random], ClipQuestion | None]] = {
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "direction": _direction,
    "order": _order,
    "flash": _flash,
    "when": _when,
    "where": _where,
    "first place": _first_place,
    "last place": _last_place,
}
KINDS = ("colour", "shape", "count", "direction", "order", "flash", "when")
"""Kinds of question about moving scenes."""
STILL_KINDS = ("colour", "shape", "where")
"""Kinds of question about stills."""
PLACE_KINDS = ("first place", "last place")
"""Asked in training only, because they help to learn `direction`."""


def ask_about(scene: Scene, kind: str, *, seed: int = 0) -> ClipQuestion | None:
    """Draw a question of a kind about a scene, or None where the scene has no such question."""
    return _MAKERS[kind](scene, random.Random(f"{scene.seed}/{kind}/{seed}"))
