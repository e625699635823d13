"""The sampling that fits: as wished where it does, else with the fewest changes. Pure rules."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from videonsa.errors import BudgetError
from videonsa.models.shape import up_to
from videonsa.video.sampling import (
    SamplingPlan,
    SamplingSpec,
    VideoInfo,
    pixel_limit,
    plan_sampling,
    smart_resize,
    spread,
)

LEAST_FRAMES = 32
"""Frames go first, down to so many; then the frames get smaller, then more frames go. Below it a
frame stands for so much time that detail is worth less than another frame."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """A sampling that fits."""

    sampling: SamplingSpec
    plan: SamplingPlan
    wished: SamplingPlan
    """The plan that was asked for."""

    @property
    def changed(self) -> bool:
        """Whether anything had to give way."""
        return self.plan != self.wished

    def describe(self) -> str:
        """What was chosen, and instead of what, in words."""
        now, before = self.plan, self.wished
        if not self.changed:
            return f"{_frames(now)}, as asked"
        return f"{_frames(now)}, {now.num_tokens:,} video tokens, instead of {_frames(before)}"


def _frames(plan: SamplingPlan) -> str:
    return f"{plan.num_frames} frames of {plan.width}x{plan.height}"


def fit_sampling(
    info: VideoInfo, wished: SamplingSpec, fits: Callable[[SamplingPlan], bool]
) -> Fitted:
    """The sampling with the fewest changes that fits.

    As wished; else with fewer frames of the same size, whole temporal patches and at least
    `LEAST_FRAMES`; else with so many, smaller; else with fewer of the smallest size.

    Args:
        info: the video.
        wished: what was asked for.
        fits: whether a plan does; what has no more frames and no larger ones than a plan that fits
            must fit too.

    Raises:
        BudgetError: not even one temporal patch of the smallest size fits.

    """
    wished = wished.of(info)
    plan = plan_sampling(info, wished)
    if fits(plan):
        return Fitted(sampling=wished, plan=plan, wished=plan)
    fixed = replace(
        wished, max_pixels=pixel_limit(wished, num_frames=plan.num_frames), max_tokens=None
    )
    step = wished.temporal_patch_size
    least = min(plan.num_frames, up_to(LEAST_FRAMES, step))

    def of(sampling: SamplingSpec, frames: int) -> SamplingSpec | None:
        fewer = _with_frames(sampling, plan, frames)
        return fewer if fits(plan_sampling(info, fewer)) else None

    found = _most_frames(lambda frames: of(fixed, frames), least, plan.num_frames, step)
    smallest = fixed
    for smaller in () if found else _smaller(info, fixed):
        smallest = smaller
        found = of(smaller, least)
        if found:
            break
    found = found or _most_frames(lambda frames: of(smallest, frames), step, least, step)
    if found is None:
        raise BudgetError("no sampling fits, not even one temporal patch of the smallest frames")
    return Fitted(sampling=found, plan=plan_sampling(info, found), wished=plan)


def _most_frames(
    of: Callable[[int], SamplingSpec | None], least: int, most: int, step: int
) -> SamplingSpec | None:
    """By bisection over whole temporal patches, from `least` on and up to `most` frames."""
    low, high = -(-least // step), -(-most // step)
    best = of(low * step)
    while best is not None and low < high:
        middle = (low + high + 1) // 2
        found = of(middle * step)
        if found is None:
            high = middle - 1
        else:
            low, best = middle, found
    return best


def _smaller(info: VideoInfo, sampling: SamplingSpec) -> Iterator[SamplingSpec]:
    """The same with smaller and smaller frames, one for each number of tokens a frame."""
    area = sampling.factor**2

    def tokens_of(spec: SamplingSpec) -> int:
        least, most = spec.pixel_range
        height, width = smart_resize(
            info.height, info.width, factor=spec.factor, min_pixels=least, max_pixels=most
        )
        return height * width // area

    least, most = (pixels // area for pixels in sampling.pixel_range)
    found: dict[int, SamplingSpec] = {}
    for tokens in range(max(least, 1), most + 1):
        spec = replace(sampling, min_pixels=None, max_pixels=tokens * area)
        found.setdefault(tokens_of(spec), spec)
    current = tokens_of(sampling)
    for tokens in sorted(found, reverse=True):
        if tokens < current:
            yield found[tokens]


def _with_frames(sampling: SamplingSpec, plan: SamplingPlan, frames: int) -> SamplingSpec:
    """At most so many frames, by the rule that the sampling has."""
    if sampling.timestamps is not None:
        count = min(frames, plan.num_frames)
        return replace(
            sampling, timestamps=tuple(plan.times[i] for i in spread(plan.num_frames, count))
        )
    if sampling.num_frames is not None:
        return replace(sampling, num_frames=min(frames, sampling.num_frames))
    return replace(sampling, max_frames=frames, min_frames=min(sampling.min_frames, frames))
