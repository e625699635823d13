"""A video as facts. What the questions are about is listed; distractors are drawn over time.

No question is ambiguous: the flash is the only object seen for less than two seconds
and the only one that stands still, only the asked number follows a #, only three objects are seen
in a box, and no distractor has a name that a question or an answer has.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from videonsa.ops.drawing import NOISE_SHIFTS, Noise
from videonsa.rendered.clips.scene import DIRECTIONS, Sprite, draw_crossing
from videonsa.rendered.suite.evidence import Caption, Evidence, show
from videonsa.rendered.suite.font import LETTERS
from videonsa.rendered.suite.schedule import schedule
from videonsa.rendered.suite.suite_answers import draw_answers, rng_of
from videonsa.rendered.suite.suite_questions import SuiteQuestion, write_questions
from videonsa.rendered.suite.suite_spec import FPS, SuiteSpec

_STAY = 2.0  # seconds of it that are seen at the ends of the video, or none
_LINE = 4  # seconds a line of text stands
SHOT = 32
"""Seconds of one background."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Script:
    """All facts of one video. Sizes in pixels, times in seconds."""

    seed: int
    spec: SuiteSpec
    evidence: Evidence
    names: tuple[str, ...]
    """Of the distractors: no question is about them."""
    decoys: tuple[str, ...]
    """Numbers in the lines of text: never the asked one."""
    questions: tuple[SuiteQuestion, ...]

    @property
    def num_frames(self) -> int:
        """Sampled frames."""
        return self.spec.num_frames

    @property
    def fps(self) -> float:
        """Sampled frames a second."""
        return FPS

    @property
    def duration(self) -> float:
        """Seconds."""
        return float(self.spec.seconds)

    def distractors(self, first: float, last: float) -> tuple[Sprite, ...]:
        """Moving objects seen at some time in [first, last] seconds."""
        length = self.spec.level.stay[1]
        blocks = range(int(first // length) - 1, int(last // length) + 1)
        sprites = [sprite for block in blocks for sprite in self._crowd(block)]
        return tuple(s for s in sprites if s.start <= last and s.end > first and self._stays(s))

    def lines(self, first: float, last: float) -> tuple[Caption, ...]:
        """Lines of text at the foot of the picture at some time in [first, last] seconds."""
        blocks = range(int(first // _LINE), int(last // _LINE) + 1)
        lines = (self._line(block) for block in blocks)
        return tuple(line for line in lines if line)

    def background(self, time: float) -> tuple[int, int, int]:
        """Levels of red, green and blue of the shot at a time."""
        rng = rng_of(self.seed, "background", int(time // SHOT))
        shade = rng.randint(10, 70)
        red, green, blue = (shade + rng.randint(-8, 8) for _ in range(3))
        return red, green, blue

    @property
    def noise(self) -> Noise:
        """The pixel noise that its frames are cut from."""
        seed = rng_of(self.seed, "noise").getrandbits(32)
        return Noise.of_one_video(seed, size=self.spec.frame_size)

    def noise_shifts(self, frames: range) -> NDArray[np.int32]:
        """Top and left of the cut of each frame: [N, 2]."""
        rngs = (rng_of(self.seed, "noise", frame) for frame in frames)
        shifts = [(rng.randrange(NOISE_SHIFTS), rng.randrange(NOISE_SHIFTS)) for rng in rngs]
        return np.array(shifts, np.int32)

    def _stays(self, sprite: Sprite) -> bool:
        """Whether so much of it lies inside the video that it cannot pass for a flash."""
        return min(sprite.end, self.duration) - max(sprite.start, 0.0) >= _STAY

    def _crowd(self, block: int) -> list[Sprite]:
        rng, stay = rng_of(self.seed, "crowd", block), self.spec.level.stay
        sprites = []
        for _ in range(self.spec.level.distractors):
            start = (block + rng.random()) * stay[1]
            sprites.append(
                draw_crossing(
                    rng,
                    rng.choice(self.names),
                    radius=rng.uniform(*self.spec.level.radius) * self.spec.frame_size,
                    direction=rng.choice(list(DIRECTIONS)),
                    start=start,
                    end=start + rng.uniform(*stay),
                    size=self.spec.frame_size,
                )
            )
        return sprites

    def _line(self, block: int) -> Caption | None:
        rng = rng_of(self.seed, "line", block)
        shown, word = rng.random(), "".join(rng.choices(LETTERS, k=3))
        text = " ".join(rng.sample([word, rng.choice(self.decoys)], 2))
        if shown >= self.spec.level.captions:
            return None
        size = self.spec.frame_size
        return Caption(
            text=text,
            x=size / 2,
            y=0.93 * size,
            height=1.0,
            start=float(block * _LINE),
            end=float((block + 1) * _LINE),
        )


def make_script(seed: int, *, spec: SuiteSpec) -> Script:
    """Draw the video that follows from a seed and a spec."""
    answers = draw_answers(seed)
    times = schedule(seed, spec=spec, answers=answers)
    return Script(
        seed=seed,
        spec=spec,
        evidence=show(seed, spec=spec, answers=answers, times=times),
        names=answers.others,
        decoys=tuple(number for number in answers.numbers if number != answers.number),
        questions=write_questions(seed, spec=spec, answers=answers, times=times),
    )


def questions_of(script: Script) -> tuple[SuiteQuestion, ...]:
    """One question per kind, in the order of `script.spec.kinds`."""
    return script.questions
