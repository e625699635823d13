"""Shares of right answers, what NSA recovers of what a window loses, and how sure both are."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Style = Literal["free", "likeliest"]
STYLES: tuple[Style, ...] = ("free", "likeliest")
KNOWN, HEADROOM = 0.8, 0.1
"""A kind counts where dense attention has so much right, and so much more than the window alone."""
_ROUNDING = 1e-9
"""0.9 - 0.8 is a little less than 0.1."""
REPEATS = 2000
SEEN = 2.8
"""A difference of so many standard errors is found in four of five studies (1.96 + 0.84)."""


class Answered(Protocol):
    """A line of answers about a video: lists have one entry for each question."""

    @property
    def length(self) -> int:
        """Tokens of the video, at most."""

    @property
    def sample(self) -> int:
        """Number of the video among those of its length."""

    @property
    def only(self) -> str:
        """The kind of a video of one kind; empty: it has all."""

    @property
    def kinds(self) -> list[str]:
        """Of the questions."""

    @property
    def answers(self) -> list[str]:
        """The right ones."""

    @property
    def places(self) -> list[int]:
        """Of the right answers among the options."""

    @property
    def free(self) -> list[bool]:
        """Whether greedy decoding writes the right answer, and nothing more."""

    @property
    def likeliest(self) -> list[bool]:
        """Whether the right answer is the likeliest option."""


class Interval(NamedTuple):
    """A number with its 95 % interval and standard error."""

    value: float
    low: float
    high: float
    error: float

    def to_dict(self) -> dict[str, float]:
        """As JSON keeps it."""
        return {name: round(value, 5) for name, value in self._asdict().items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """Answers about the videos of one length, in one style; all arms answered the same videos."""

    arms: tuple[str, ...]
    kinds: tuple[str, ...]
    right: Floats
    """`[seeds, arms, videos, kinds]`: right answers."""
    asked: Floats
    """`[videos, kinds]`: questions."""

    @classmethod
    def of(
        cls, seeds: Sequence[Mapping[str, Sequence[Answered]]], length: int, style: Style
    ) -> "Answers | None":
        """Those about the videos that every arm of every seed answered; None where none did.

        Args:
            seeds: of each, the lines of each arm; arms of which a seed has none are left out.
            length: of the videos.
            style: how answers are scored.
        """
        every = [{arm: _by_sample(lines, length) for arm, lines in seed.items()} for seed in seeds]
        arms = tuple(arm for arm in every[0] if all(seed.get(arm) for seed in every))
        if not arms:
            return None
        found = [[seed[arm] for arm in arms] for seed in every]
        samples = sorted(set.intersection(*(set(one) for of_seed in found for one in of_seed)))
        if not samples:
            return None
        lines = found[0][0]
        kinds = tuple(sorted({kind for sample in samples for kind in lines[sample].kinds}))
        asked = np.array([_per_kind(lines[sample].kinds, kinds) for sample in samples])
        right = np.array(
            [
                [[_right(one[sample], kinds, style) for sample in samples] for one in of_seed]
                for of_seed in found
            ]
        )
        return cls(arms=arms, kinds=kinds, right=right, asked=asked)

    def shares(self) -> Floats:
        """`[arms, kinds]`: of right answers, over all seeds and videos."""
        shares: Floats = _shares(self.right, np.ones((1, *self._clusters)), self.asked)[0]
        return shares

    def resampled(self, *, repeats: int = REPEATS) -> Floats:
        """`[repeats, arms, kinds]`: shares by the cluster bootstrap.

        Seeds are drawn with replacement, and so are videos, the same ones for all seeds: every seed
        answers the same videos. All arms of a seed, and all questions about a video, stay together.
        With one seed only videos are drawn.
        """
        num_seeds, num_videos = self._clusters
        rng = np.random.default_rng(0)
        times = rng.multinomial(num_seeds, [1 / num_seeds] * num_seeds, size=repeats)
        videos = rng.multinomial(num_videos, [1 / num_videos] * num_videos, size=(repeats, 1))
        return _shares(self.right, (times[..., None] * videos).astype(float), self.asked)

    @property
    def _clusters(self) -> tuple[int, int]:
        return self.right.shape[0], self.right.shape[2]


def _by_sample(lines: Sequence[Answered], length: int) -> dict[int, Answered]:
    """Lines about videos of a length, those of a single kind left out."""
    return {line.sample: line for line in lines if line.length == length and not line.only}


def _per_kind(named: Sequence[str], kinds: Sequence[str]) -> list[int]:
    counts = Counter(named)
    return [counts[kind] for kind in kinds]


def _right(line: Answered, kinds: Sequence[str], style: Style) -> list[int]:
    verdicts = line.free if style == "free" else line.likeliest
    named = [kind for kind, right in zip(line.kinds, verdicts, strict=True) if right]
    return _per_kind(named, kinds)


def _shares(right: Floats, weights: Floats, asked: Floats) -> Floats:
    """`[repeats, arms, kinds]` for weights `[repeats, seeds, videos]`; NaN where none is asked."""
    hits = np.einsum("rsv,savk->rak", weights, right, optimize=True)
    total = np.einsum("rsv,vk->rk", weights, asked, optimize=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares: Floats = hits / total[:, None]
    return shares


def interval(value: float, repeats: Floats) -> Interval:
    """A value with the spread of its repeats; those that are not finite are left out."""
    kept = repeats[np.isfinite(repeats)]
    if not len(kept):
        return Interval(value, value, value, 0.0)
    low, high = np.quantile(kept, [0.025, 0.975])
    return Interval(value, float(low), float(high), float(kept.std()))


def known_kinds(answers: Answers) -> list[str]:
    """Kinds in which dense attention is good, and better than the window alone."""
    shares = answers.shares()
    dense, window = (shares[answers.arms.index(arm)] for arm in ("dense", "window"))
    counts = (dense >= KNOWN - _ROUNDING) & (dense - window >= HEADROOM - _ROUNDING)
    return [kind for kind, one in zip(answers.kinds, counts, strict=True) if one]


def compare(answers: Answers) -> dict[str, Any]:
    """What arms recover of the headroom between the window and dense attention, in JSON.

    Beside it how arms differ from dense attention over all kinds. Where no kind counts there is no
    share, only which kinds count: none.
    """
    point, repeats = answers.shares()[None], answers.resampled()
    differences = _differences(answers, point, repeats)
    if not {"dense", "window"} <= set(answers.arms):
        return {"kinds": [], "recovered": {}, "by_kind": {}, "differences": differences}
    kinds = known_kinds(answers)
    others = [arm for arm in answers.arms if arm not in ("dense", "window")]
    places = [answers.kinds.index(kind) for kind in kinds]
    recovered = {arm: _recovered(answers, point, repeats, arm, places) for arm in others if kinds}
    by_kind = {
        kind: {arm: _recovered(answers, point, repeats, arm, [place]) for arm in others}
        for kind, place in zip(kinds, places, strict=True)
    }
    return {
        "kinds": kinds,
        "recovered": recovered,
        "by_kind": by_kind,
        "differences": differences,
    }


def _differences(answers: Answers, point: Floats, repeats: Floats) -> dict[str, Any]:
    """Of each other arm, arm - dense of the means over all kinds, in points."""
    if "dense" not in answers.arms:
        return {}
    dense = answers.arms.index("dense")
    found = {}
    for number, arm in enumerate(answers.arms):
        if arm == "dense":
            continue
        gap, gaps = (100 * np.nanmean(x[:, number] - x[:, dense], axis=1) for x in (point, repeats))
        found[arm] = _points(interval(float(gap[0]), gaps))
    return found


def _points(found: Interval) -> dict[str, Any]:
    return {
        "points": found.to_dict(),
        "points_that_would_be_seen": round(SEEN * found.error, 5),
    }


def _recovered(
    answers: Answers, point: Floats, repeats: Floats, arm: str, places: Sequence[int]
) -> dict[str, Any]:
    """(arm - window) / (dense - window), of means over kinds; and arm - dense, in points.

    There is no share of draws in which dense attention has no headroom: they are counted.
    """

    def of(shares: Floats) -> tuple[Floats, Floats]:
        mine, dense, window = (
            shares[:, answers.arms.index(name)][:, places].mean(1)
            for name in (arm, "dense", "window")
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(dense > window, (mine - window) / (dense - window), np.nan)
        return share, 100 * (mine - dense)

    (share, gap), (shares, gaps) = of(point), of(repeats)
    of_share, of_gap = interval(float(share[0]), shares), interval(float(gap[0]), gaps)
    return {
        "share": of_share.to_dict(),
        "share_that_would_be_seen": round(SEEN * of_share.error, 5),
        "draws_left_out": int((~np.isfinite(shares)).sum()),
        **_points(of_gap),
    }


def accuracies(answers: Answers, style: Style) -> list[dict[str, Any]]:
    """Shares of right answers of each arm and kind, and their mean over kinds, in JSON."""
    point, repeats = answers.shares(), answers.resampled()
    found = []
    for number, arm in enumerate(answers.arms):
        columns = {
            kind: (point[number, i], repeats[:, number, i]) for i, kind in enumerate(answers.kinds)
        }
        columns["mean"] = (np.nanmean(point[number]), np.nanmean(repeats[:, number], axis=1))
        found += [
            {"style": style, "arm": arm, "kind": kind, **interval(float(x), xs).to_dict()}
            for kind, (x, xs) in columns.items()
        ]
    return found


def best_constants(lines: Sequence[Answered]) -> dict[str, float]:
    """Of each kind, the share that one answer, or one place among the options, has right."""
    answers: dict[str, Counter[str]] = {}
    places: dict[str, Counter[int]] = {}
    for line in lines:
        for kind, answer, place in zip(line.kinds, line.answers, line.places, strict=True):
            answers.setdefault(kind, Counter())[answer] += 1
            places.setdefault(kind, Counter())[place] += 1
    return {
        kind: max(*found.values(), *places[kind].values()) / found.total()
        for kind, found in sorted(answers.items())
    }
