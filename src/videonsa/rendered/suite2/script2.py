"""A video of the second suite as facts, drawn by the same renderer as those of the first."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from videonsa.ops.drawing import NOISE_SHIFTS, SHARED_FIELDS, Noise
from videonsa.rendered.clips.scene import DIRECTIONS, Sprite
from videonsa.rendered.suite.evidence import Caption, Evidence
from videonsa.rendered.suite.font import LETTERS
from videonsa.rendered.suite.schedule import settle
from videonsa.rendered.suite.script import Script
from videonsa.rendered.suite.suite_answers import rng_of
from videonsa.rendered.suite.suite_questions import SuiteQuestion
from videonsa.rendered.suite.suite_spec import WINDOW
from videonsa.rendered.suite2 import events, pictures
from videonsa.rendered.suite2.acts import CELLS, Act, Stage2
from videonsa.rendered.suite2.cast import Cast
from videonsa.rendered.suite2.plan2 import GAP, plan
from videonsa.rendered.suite2.shown import Draft, Make, Shown
from videonsa.rendered.suite2.spec2 import Suite2Spec, draw_kinds

_MAKERS: dict[str, Callable[[Make, int], Shown]] = {
    "flashes": events.flashes,
    "groups": pictures.groups,
    "corners": pictures.corners,
    "sides": pictures.sides,
    "distances": pictures.distances,
    "plaques": pictures.plaques,
    "crossers": events.crossers,
    "counts": events.counts,
    "sizes": events.sizes,
    "returns": events.returns,
    "counter": events.counter,
    "carriers": events.carriers,
    "tallies": events.tallies,
    "sets": pictures.sets,
}
_LEAST_SEEN = 2.0
"""Seconds that a distractor is seen."""
_LINE = 3
"""Seconds that a letter stands."""
_SHIFTED = 64
"""Frames whose cuts of the noise are drawn together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Script2(Script):
    """All facts of one video. Sizes in pixels, times in seconds.

    Distractors, as in the first suite drawn over time, come by while nothing that is asked about is
    seen, and where videos are crowded also while an object comes by. So a picture, a meeting and a
    flash have the frame for themselves.
    """

    spec: Suite2Spec
    busy: tuple[tuple[float, float], ...]
    """Seconds [start, end) in which no distractor is seen, ascending."""

    def distractors(self, first: float, last: float) -> tuple[Sprite, ...]:
        """Objects that come by at some time in [first, last] seconds."""
        length = self.spec.level2.stay[1]
        blocks = range(int(first // length) - 1, int(last // length) + 1)
        sprites = [sprite for block in blocks for sprite in self._passing(block)]
        return tuple(s for s in sprites if s.start <= last and s.end > first)

    def lines(self, first: float, last: float) -> tuple[Caption, ...]:
        """Letters that no question is about, at some time in [first, last] seconds."""
        blocks = range(int(first // _LINE), int(last // _LINE) + 1)
        return tuple(letter for block in blocks for letter in self._letter(block))

    @property
    def noise(self) -> Noise:
        """One of few fields that all videos share: it does not travel with a drawing."""
        seed = rng_of(self.seed, "field").randrange(SHARED_FIELDS)
        return Noise(seed=seed, size=self.spec.frame_size)

    def noise_shifts(self, frames: range) -> NDArray[np.int32]:
        """Top and left of the cut of each frame: [N, 2]."""
        first, last = frames[0] // _SHIFTED, frames[-1] // _SHIFTED
        blocks = range(first, last + 1)
        drawn = b"".join(
            rng_of(self.seed, "shifts", block).randbytes(2 * _SHIFTED) for block in blocks
        )
        cuts = np.frombuffer(drawn, np.uint8).reshape(-1, 2)[np.array(frames) - first * _SHIFTED]
        shifts: NDArray[np.int32] = (cuts % NOISE_SHIFTS).astype(np.int32)
        return shifts

    def _is_free(self, start: float, end: float) -> bool:
        """Whether what comes at these times is seen for a while, and never in a busy frame."""
        start, end = max(start, 0.0), min(end, self.duration)
        after = bisect_left(self.busy, (end, end))
        return end - start >= _LEAST_SEEN and (after == 0 or self.busy[after - 1][1] <= start)

    def _passing(self, block: int) -> list[Sprite]:
        rng, level = rng_of(self.seed, "passing", block), self.spec.level2
        stage, sprites = Stage2(rng, self.spec), []
        for _ in range(level.distractors):
            start, stay = (block + rng.random()) * level.stay[1], rng.uniform(*level.stay)
            if not self._is_free(start, start + stay):
                continue
            sprite = stage.crossing(
                rng.choice(self.names), rng.choice(list(DIRECTIONS)), stage.middle
            )
            pace = level.crossing / stay
            sprites.append(
                replace(
                    sprite, vx=sprite.vx * pace, vy=sprite.vy * pace, start=start, end=start + stay
                )
            )
        return sprites

    def _letter(self, block: int) -> list[Caption]:
        start, captions = float(block * _LINE), self.spec.level2.captions
        if not captions or not self._is_free(start, start + _LINE):
            return []
        rng = rng_of(self.seed, "letter", block)
        if rng.random() >= captions:
            return []
        letter = rng.choice([one for one in LETTERS if one not in pictures.LETTERED])
        stage = Stage2(rng, self.spec)
        (caption,) = stage.signs(letter, stage.cell_for(1, range(CELLS)), _LINE)
        return [replace(caption, start=start, end=start + _LINE)]


def make_script2(seed: int, *, spec: Suite2Spec) -> Script2:
    """Draw the video that follows from a seed and a spec."""
    spec = replace(spec, kinds=draw_kinds(rng_of(seed, "kinds"), spec))
    units = plan(spec.kinds, level=spec.level2, seconds=spec.seconds)
    cast = Cast(rng_of(seed, "cast"), tallies=units.get("tallies", 0))
    shown = []
    for name, number in units.items():
        stage = Stage2(rng_of(seed, name, "shown"), spec)
        shown.append(_MAKERS[name](Make(stage, cast, frozenset(spec.kinds)), number))
    acts = [act.placed() for act in _schedule(seed, shown, spec)]
    return Script2(
        seed=seed,
        spec=spec,
        evidence=Evidence(
            objects=tuple(thing for act in acts for thing in act.objects),
            flashes=tuple(thing for act in acts for thing in act.flashes),
            boxes=tuple(thing for act in acts for thing in act.boxes),
            numbers=tuple(thing for act in acts for thing in act.signs),
        ),
        names=cast.others,
        decoys=(),
        questions=_questions([draft for one in shown for draft in one.drafts], spec),
        busy=tuple(
            (float(act.start), float(act.start + act.seconds))
            for act in acts
            if not (act.coming_by and spec.level2.crowded)
        ),
    )


def _schedule(seed: int, shown: list[Shown], spec: Suite2Spec) -> list[Act]:
    """Give every act its place; no two share time. All acts, ascending."""
    rng = rng_of(seed, "places")
    wishes: list[tuple[float, Act]] = []
    for one in shown:
        for series in one.series:
            wishes += zip(sorted(rng.random() for _ in series), series, strict=True)
        for early, late in one.apart:
            wishes += [(rng.random() / 3, early), (1 - rng.random() / 3, late)]
    wishes.sort(key=lambda wish: wish[0])
    places = [place for place, _ in wishes]
    if spec.position is not None:
        places = [spec.position + (place - 0.5) * WINDOW for place in places]
    lengths = [min(act.seconds + GAP, spec.seconds) for _, act in wishes]
    middles = zip(places, lengths, strict=True)
    starts = [place * spec.seconds - length / 2 for place, length in middles]
    for (_, act), start in zip(wishes, settle(starts, lengths, spec.seconds), strict=True):
        act.start = start
    return [act for _, act in wishes]


def _questions(drafts: list[Draft], spec: Suite2Spec) -> tuple[SuiteQuestion, ...]:
    """In the order of the kinds."""
    questions = []
    for draft in drafts:
        evidence = tuple(sorted(act.span for act in draft.acts))
        position = (evidence[0][0] + evidence[-1][1]) / 2 / spec.seconds
        questions.append(
            SuiteQuestion(draft.kind, draft.text, draft.answer, draft.options, position, evidence)
        )
    return tuple(sorted(questions, key=lambda question: spec.kinds.index(question.kind)))
