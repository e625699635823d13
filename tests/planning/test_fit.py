"""Properties of the sampling that fits."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videonsa.errors import BudgetError
from videonsa.planning.fit import LEAST_FRAMES, fit_sampling
from videonsa.video.sampling import SamplingSpec, VideoInfo, plan_sampling

settings.register_profile("fit", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("fit")

infos = st.builds(
    lambda seconds, fps, width, height: VideoInfo(
        path="x",
        duration=seconds,
        num_frames=max(1, round(seconds * fps)),
        fps=fps,
        width=width,
        height=height,
    ),
    st.floats(0.5, 4000),
    st.sampled_from([2.0, 23.976, 30.0]),
    st.integers(100, 2000),
    st.integers(100, 2000),
)
specs = st.one_of(
    st.builds(SamplingSpec, fps=st.sampled_from([0.5, 2.0, 8.0]), max_frames=st.integers(4, 2000)),
    st.builds(SamplingSpec, num_frames=st.integers(1, 300)),
    st.builds(SamplingSpec, max_tokens=st.integers(200, 30_000)),
    st.builds(
        SamplingSpec,
        max_pixels=st.integers(10_000, 400_000),
        max_tokens=st.none() | st.integers(3000, 30_000),
    ),
)


def within(limit):
    return lambda plan: plan.num_tokens <= limit


@given(infos, specs, st.integers(4, 40_000))
def test_what_is_found_fits_and_takes_no_more_than_was_asked_for(info, spec, limit):
    wished = plan_sampling(info, spec)
    try:
        fitted = fit_sampling(info, spec, within(limit))
    except BudgetError:
        smallest = plan_sampling(info, SamplingSpec(num_frames=1, max_pixels=4 * 28**2))
        assert smallest.num_tokens > limit or wished.num_tokens > limit >= 1
        assert limit < 8
        return
    assert fitted.plan == plan_sampling(info, fitted.sampling)
    assert fitted.plan.num_tokens <= limit
    assert fitted.plan.num_frames <= wished.num_frames
    assert fitted.plan.tokens_per_frame <= wished.tokens_per_frame


@given(infos, specs)
def test_what_fits_already_stays_as_it_is(info, spec):
    fitted = fit_sampling(info, spec, lambda plan: True)
    assert fitted.sampling is spec
    assert not fitted.changed


@given(infos, specs, st.integers(8, 20_000), st.integers(0, 20_000))
def test_more_room_never_gives_fewer_tokens(info, spec, limit, more):
    narrow = fit_sampling(info, spec, within(limit)).plan
    wide = fit_sampling(info, spec, within(limit + more)).plan
    assert wide.num_tokens >= narrow.num_tokens


@given(infos, specs, st.integers(8, 20_000))
def test_frames_keep_their_size_until_few_are_left(info, spec, limit):
    fitted = fit_sampling(info, spec, within(limit))
    if fitted.plan.num_frames > LEAST_FRAMES:
        size = (fitted.wished.height, fitted.wished.width)
        assert (fitted.plan.height, fitted.plan.width) == size


def test_as_many_frames_as_fit_are_kept():
    info = VideoInfo(path="x", duration=600, num_frames=18_000, fps=30, width=1280, height=720)
    spec = SamplingSpec()
    per_frame = plan_sampling(info, spec).tokens_per_frame
    fitted = fit_sampling(info, spec, within(100 * per_frame + 5)).plan
    assert fitted.num_frames == 200
    assert fitted.times[-1] == pytest.approx(600, abs=0.1)


def test_given_times_are_thinned_out():
    info = VideoInfo(path="x", duration=600, num_frames=18_000, fps=30, width=224, height=224)
    spec = SamplingSpec(timestamps=[float(i) for i in range(100)])
    fitted = fit_sampling(info, spec, within(20 * 64))
    assert fitted.plan.num_frames == 40
    assert fitted.plan.times[0] == 0.0
    assert fitted.plan.times[-1] == 99.0
    assert set(fitted.plan.times) <= set(spec.timestamps)


def test_when_nothing_fits_it_is_said():
    info = VideoInfo(path="x", duration=600, num_frames=18_000, fps=30, width=224, height=224)
    with pytest.raises(BudgetError, match="no sampling fits"):
        fit_sampling(info, SamplingSpec(), lambda plan: False)
