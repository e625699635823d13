import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.video_utils import VideoMetadata

from videonsa.errors import BudgetError, UsageError
from videonsa.models.rope import TokenType, mrope_position_ids
from videonsa.video.sampling import (
    SamplingSpec,
    VideoInfo,
    num_sampled_frames,
    plan_sampling,
    sampling_notes,
    smart_resize,
)


def info_of(*, duration=10.0, fps=30.0, width=1280, height=720, num_frames=None):
    if num_frames is None:
        num_frames = max(1, round(duration * fps))
    return VideoInfo(
        path="clip.mp4",
        duration=duration,
        num_frames=num_frames,
        fps=fps,
        width=width,
        height=height,
    )


def qwen_smart_resize(height, width, factor, min_pixels, max_pixels):
    """The rule as qwen-vl-utils 0.0.14 states it."""
    h_bar = max(factor, round(height / factor) * factor)
    w_bar = max(factor, round(width / factor) * factor)
    if h_bar * w_bar > max_pixels:
        beta = math.sqrt((height * width) / max_pixels)
        h_bar = max(factor, math.floor(height / beta / factor) * factor)
        w_bar = max(factor, math.floor(width / beta / factor) * factor)
    elif h_bar * w_bar < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        h_bar = math.ceil(height * beta / factor) * factor
        w_bar = math.ceil(width * beta / factor) * factor
    return h_bar, w_bar


def qwen_frame_numbers(total, video_fps, fps=2.0, min_frames=4, max_frames=768):
    """Frames that qwen-vl-utils 0.0.14 takes (smart_nframes, then linspace)."""
    min_frames = math.ceil(min_frames / 2) * 2
    max_frames = math.floor(min(max_frames, total) / 2) * 2
    count = min(max(total / video_fps * fps, min_frames), max_frames, total)
    count = math.floor(count / 2) * 2
    return [round(i * (total - 1) / (count - 1)) for i in range(count)]


@pytest.mark.parametrize(
    ("size", "max_pixels", "expected"),
    [
        ((720, 1280), 50_176, (168, 280)),
        ((480, 640), 50_176, (168, 252)),
        ((512, 512), 50_176, (224, 224)),
        ((4320, 7680), 50_176, (168, 280)),
        ((1, 1), 50_176, (56, 56)),
        ((112, 112), 50_176, (112, 112)),
        ((720, 1280), 784, (28, 28)),
        ((10, 2000), 784, (28, 28)),
    ],
)
def test_sizes_at_the_papers_budget(size, max_pixels, expected):
    spec = SamplingSpec(max_pixels=max_pixels)
    least, most = spec.pixel_range
    assert smart_resize(*size, factor=28, min_pixels=least, max_pixels=most) == expected


@given(
    height=st.integers(1, 8192),
    width=st.integers(1, 8192),
    factor=st.sampled_from([14, 28, 32]),
    least=st.integers(1, 400),
    more=st.integers(0, 2000),
)
def test_smart_resize_is_qwens_where_qwen_keeps_its_own_bound(height, width, factor, least, more):
    assume(max(height, width) <= 200 * min(height, width))
    bounds = {"min_pixels": least * factor**2, "max_pixels": (least + more) * factor**2}
    size = smart_resize(height, width, factor=factor, **bounds)
    assert size[0] % factor == size[1] % factor == 0
    assert min(size) >= factor
    assert size[0] * size[1] <= bounds["max_pixels"]
    theirs = qwen_smart_resize(height, width, factor, **bounds)
    if theirs[0] * theirs[1] <= bounds["max_pixels"]:
        assert size == theirs


def test_enlarging_never_passes_the_maximum():
    # Qwen's rule gives 252 x 224 = 56,448 px here.
    size = smart_resize(100, 90, factor=28, min_pixels=50_176, max_pixels=50_176)
    assert size[0] * size[1] <= 50_176


def test_minimum_of_qwen_at_the_papers_budget_is_refused_not_asserted():
    with pytest.raises(UsageError, match="min_pixels=100352 exceeds max_pixels=50176"):
        SamplingSpec(min_pixels=128 * 784, max_pixels=50_176)


def test_aspect_ratio_over_200_is_an_error():
    with pytest.raises(UsageError, match=r"frame of 2010x10: .* 200"):
        plan_sampling(info_of(width=2010, height=10), SamplingSpec())


@given(
    total=st.integers(2, 200_000),
    video_fps=st.sampled_from([0.5, 10.0, 24.0, 25.0, 30000 / 1001, 30.0, 60.0]),
    fps=st.sampled_from([0.1, 0.5, 1.0, 2.0, 4.0, 30.0]),
)
def test_frames_taken_are_those_of_qwen_vl_utils(total, video_fps, fps):
    info = info_of(duration=total / video_fps, fps=video_fps, num_frames=total)
    plan = plan_sampling(info, SamplingSpec(fps=fps))
    numbers = [time * video_fps for time in plan.times]
    assert numbers == pytest.approx(qwen_frame_numbers(total, video_fps, fps), abs=1e-5)


def test_rate_of_ten_seconds():
    plan = plan_sampling(info_of(), SamplingSpec())
    assert plan.num_frames == 20
    assert plan.sampled_fps == pytest.approx(2.0)
    assert plan.times[0] == 0.0
    assert plan.times[-1] == pytest.approx(299 / 30)
    assert plan.grid == (10, 12, 20)
    assert plan.tokens_per_frame == 60
    assert plan.num_tokens == 600


@pytest.mark.parametrize(
    ("duration", "total", "options", "expected"),
    [
        (0.5, 15, {}, 4),
        (3600.0, 108_000, {}, 768),
        (3600.0, 108_000, {"max_frames": 7}, 6),
        (3600.0, 108_000, {"max_frames": 2}, 2),
        (3600.0, 108_000, {"max_frames": 1}, 1),
        (1.0, 1, {}, 1),
        (1.0, 3, {}, 2),
        (0.5, 15, {"min_frames": 5}, 6),
        (10.0, 300, {"num_frames": 5}, 5),
        (10.0, 3, {"num_frames": 5}, 3),
        (3600.0, 108_000, {"num_frames": 2048}, 2048),
    ],
)
def test_number_of_frames(duration, total, options, expected):
    assert num_sampled_frames(duration, total, SamplingSpec(**options)) == expected


def test_single_frame_and_image_are_served_at_time_zero():
    for info in (info_of(num_frames=1, duration=0.04), info_of(duration=0.0, fps=0.0)):
        plan = plan_sampling(info, SamplingSpec())
        assert plan.times == (0.0,)
        assert plan.grid[0] == 1
        assert plan.sampled_fps > 0


def test_odd_number_of_frames_fills_a_temporal_patch():
    assert plan_sampling(info_of(), SamplingSpec(num_frames=5)).grid[0] == 3


def test_given_timestamps_are_taken_as_they_are():
    plan = plan_sampling(info_of(), SamplingSpec(timestamps=[0, 2.5, 2.5, 10.0]))
    assert plan.times == (0.0, 2.5, 2.5, 10.0)
    assert plan.sampled_fps == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("timestamps", "message"),
    [
        ([2.0, 1.0], "timestamps 2, 1: want them ascending"),
        ([-1.0], "timestamp -1.0: want seconds"),
        ([math.nan], "timestamp nan: want seconds"),
        ([math.inf], "timestamp inf: want seconds"),
        ([], "timestamps is empty"),
        ([0.0, 10.5], "timestamp 10.5 s: want at most the duration of clip.mp4, 10 s"),
    ],
)
def test_timestamps_that_cannot_be_used(timestamps, message):
    with pytest.raises(UsageError, match=message):
        plan_sampling(info_of(), SamplingSpec(timestamps=timestamps))


@pytest.mark.parametrize("fps", [0, -1.0, math.nan, math.inf, -math.inf, "2", True])
def test_rate_that_cannot_be_used(fps):
    with pytest.raises(UsageError, match=r"fps=.*want a number above 0"):
        SamplingSpec(fps=fps)


@pytest.mark.parametrize(
    "options",
    [
        {"fps": 1.0, "num_frames": 4},
        {"num_frames": 0},
        {"num_frames": 2.5},
        {"max_pixels": 783},
        {"max_tokens": 0},
        {"patch_size": -1},
    ],
)
def test_options_that_cannot_be_used(options):
    with pytest.raises(UsageError, match=r"^[^\n]*: [^\n]*$"):
        SamplingSpec(**options)


def test_token_budget_shrinks_frames_before_it_drops_any():
    info = info_of(duration=60.0)  # 120 frames of 60 tokens a pair: 3600
    whole = plan_sampling(info, SamplingSpec())
    half = plan_sampling(info, SamplingSpec(max_tokens=1800))
    assert half.times == whole.times
    assert half.num_tokens <= 1800
    assert half.height * half.width < whole.height * whole.width


def test_token_budget_drops_frames_at_a_quarter_of_the_pixels():
    info = info_of(duration=60.0)
    plan = plan_sampling(info, SamplingSpec(max_tokens=300))
    assert (plan.height, plan.width) == (84, 140)  # 15 tokens: under 50,176 / 4 px
    assert plan.num_frames == 40
    assert plan.num_tokens == 300
    assert plan.times[0] == 0.0
    assert plan.times[-1] == pytest.approx(1799 / 30)


def test_token_budget_keeps_the_ends_of_given_timestamps():
    times = [float(i) for i in range(11)]
    plan = plan_sampling(info_of(), SamplingSpec(timestamps=times, max_tokens=45))
    assert plan.times == (0.0, 2.0, 4.0, 6.0, 8.0, 10.0)


def test_token_budget_below_one_temporal_patch_is_an_error():
    with pytest.raises(BudgetError, match=r"max_tokens=14: want at least 15, .* 140x84"):
        plan_sampling(info_of(), SamplingSpec(max_tokens=14))


def test_qwens_defaults_share_the_budget_over_the_frames():
    plan = plan_sampling(info_of(duration=3600.0), SamplingSpec.qwen())
    assert plan.num_frames == 768
    assert (plan.height, plan.width) == (336, 644)  # 300 tokens a temporal patch, at most
    assert plan.num_tokens <= 115_200


@st.composite
def specs(draw):
    least = draw(st.integers(1, 64))
    options = {
        "min_pixels": draw(st.sampled_from([None, least * 784])),
        "max_pixels": (least + draw(st.integers(0, 512))) * 784 + draw(st.integers(0, 783)),
        "max_tokens": draw(st.none() | st.integers(1, 200_000)),
    }
    rule = draw(st.sampled_from(["fps", "num_frames", "timestamps"]))
    if rule == "fps":
        options["fps"] = draw(st.floats(1e-6, 1e6))
        options["min_frames"] = draw(st.integers(1, 8))
        options["max_frames"] = draw(st.integers(8, 1024))
    elif rule == "num_frames":
        options["num_frames"] = draw(st.integers(1, 1024))
    else:
        times = st.lists(st.floats(0, 1e5), min_size=1, max_size=50)
        options["timestamps"] = sorted(draw(times))
    return SamplingSpec(**options)


@st.composite
def infos(draw):
    return VideoInfo(
        path="clip.mp4",
        duration=draw(st.just(0.0) | st.floats(1e-3, 1e6)),
        num_frames=draw(st.none() | st.integers(1, 10**7)),
        fps=draw(st.just(0.0) | st.floats(1e-3, 1e4)),
        width=draw(st.integers(1, 8192)),
        height=draw(st.integers(1, 8192)),
    )


@settings(derandomize=True, max_examples=400, deadline=None)
@given(info=infos(), spec=specs())
def test_a_plan_keeps_every_bound_or_says_why_not(info, spec):
    try:
        plan = plan_sampling(info, spec)
    except (UsageError, BudgetError) as error:
        assert "\n" not in str(error)
        return
    assert plan.num_frames >= 1
    assert all(before <= after for before, after in pairwise(plan.times))
    assert plan.times[0] >= 0
    assert plan.times[-1] <= info.duration
    assert plan.height % 28 == plan.width % 28 == 0
    assert plan.height * plan.width <= spec.max_pixels
    assert plan.num_tokens == plan.grid[0] * plan.tokens_per_frame
    assert math.isfinite(plan.sampled_fps)
    assert plan.sampled_fps > 0
    if spec.max_tokens is not None:
        assert plan.num_tokens <= spec.max_tokens
    if spec.fps is not None:
        assert plan.num_frames <= max(spec.max_frames, 1)
    if spec.num_frames is not None:
        assert plan.num_frames <= spec.num_frames


def ids_of(plan):
    """The temporal ids of a plan's frames, at 2 a second."""
    grid = (plan.grid[0], 2, 2)
    times = (plan.even_times or plan.times)[:: plan.temporal_patch_size]
    ids, _ = mrope_position_ids(
        torch.full((grid[0],), TokenType.VIDEO), [grid], [times], tokens_per_second=2, merge_size=2
    )
    return ids[0].tolist()


@pytest.mark.parametrize(
    ("video", "sampling", "expected"),
    [
        ({"duration": 18.0, "fps": 25.0}, {"fps": 1.0}, [0, 4, 8, 12, 16, 20, 24, 28, 32]),
        ({"duration": 10.0, "fps": 30.0}, {}, list(range(0, 20, 2))),
        ({"duration": 4.0, "fps": 24.0}, {"fps": 4.0}, list(range(8))),
        ({"duration": 4.0, "fps": 24.0}, {"fps": 3.0}, [0, 1, 2, 4, 5, 6]),
        ({"duration": 3600.0, "fps": 25.0}, {"num_frames": 6}, [0, 2400, 4800]),
        ({"duration": 10.0, "fps": 30.0}, {"max_frames": 8}, [0, 5, 10, 15]),
    ],
)
def test_evenly_spread_frames_have_the_position_ids_of_the_published_processor(
    video, sampling, expected
):
    plan = plan_sampling(info_of(**video), SamplingSpec(**sampling))
    total = round(video["duration"] * video["fps"])
    # transformers: seconds_per_grid = temporal_patch_size / sampled_fps.
    theirs = VideoMetadata(
        total_num_frames=total, fps=video["fps"], frames_indices=list(range(plan.num_frames))
    )
    assert plan.sampled_fps == pytest.approx(theirs.sampled_fps)
    period = 2 / theirs.sampled_fps
    assert [math.floor(round(i * period * 2, 6)) for i in range(plan.grid[0])] == expected
    assert ids_of(plan) == expected


def test_a_stretch_counts_as_a_video_of_its_length():
    info = info_of(duration=60.0, fps=25.0)
    whole = plan_sampling(info_of(duration=18.0, fps=25.0), SamplingSpec(fps=1.0))
    stretch = plan_sampling(info, SamplingSpec(fps=1.0, start=5.5, end=23.5))
    assert stretch.times[0] == pytest.approx(5.52)
    assert ids_of(stretch) == ids_of(whole) == [0, 4, 8, 12, 16, 20, 24, 28, 32]


def test_frames_with_times_of_their_own_have_the_position_ids_of_these():
    times = (0.0, 0.4, 1.1, 1.5, 4.0, 4.4, 9.6, 9.9)
    info = replace(info_of(duration=10.0, fps=0.8, num_frames=8), times=times)
    plan = plan_sampling(info, SamplingSpec(num_frames=8))
    assert plan.times == times
    assert ids_of(plan) == [0, 2, 8, 19]


def test_the_real_times_of_evenly_spread_frames_would_have_other_ids():
    """Frames reach from the first to the last, so they are further apart than 1 / sampled_fps."""
    plan = plan_sampling(info_of(duration=18.0, fps=25.0), SamplingSpec(fps=1.0))
    assert ids_of(replace(plan, even_times=None))[-2:] == [29, 33]


def test_given_times_and_keyframes_have_the_position_ids_of_their_own_times():
    info = info_of(duration=20.0, fps=25.0)
    given = plan_sampling(info, SamplingSpec(timestamps=(1.0, 1.5, 2.2, 3.0, 9.9, 10.0)))
    assert given.even_times is None
    assert ids_of(given) == [0, 2, 17]
    keyframes = plan_sampling(info, SamplingSpec()).with_keyframes(
        (0.0, 4.0, 9.3, 12.0), duration=20.0
    )
    assert ids_of(keyframes) == [0, 18]


def test_frames_that_are_lost_leave_the_position_ids_of_the_others():
    plan = plan_sampling(info_of(duration=18.0, fps=25.0), SamplingSpec(fps=1.0))
    kept = plan.with_frames([i for i in range(18) if i not in (5, 6)])
    assert ids_of(kept) == [0, 4, 8, 16, 20, 24, 28, 32]


def test_an_image_has_one_position_in_time():
    assert ids_of(plan_sampling(info_of(duration=0.0, fps=0.0), SamplingSpec())) == [0]


def test_a_stretch_is_sampled_by_the_rules_of_a_whole_video():
    plan = plan_sampling(info_of(), SamplingSpec(start=2.0, end=6.0))
    assert plan.num_frames == 8
    assert plan.times[0] == 2.0
    assert plan.times[-1] == pytest.approx(6.0 - 1 / 30)
    assert plan.sampled_fps == 2.0
    assert plan_sampling(info_of(), SamplingSpec(start=0.0, end=10.0)) == plan_sampling(
        info_of(), SamplingSpec()
    )


@pytest.mark.parametrize("fps", [24.0, 25.0, 30.0, 30_000 / 1001, 60.0])
def test_a_stretch_takes_the_frames_that_begin_in_it(fps):
    info = info_of(fps=fps)
    for start, end in ((0.0, 1.0), (1.0, 2.0), (3.04, 3.9), (9.5, 10.0)):
        whole = [index / fps for index in range(info.num_frames)]
        wanted = [time for time in whole if start - 1e-9 <= time < end - 1e-9]
        plan = plan_sampling(info, SamplingSpec(start=start, end=end, num_frames=1000))
        assert plan.times == pytest.approx(wanted)


def test_a_stretch_between_two_frames_takes_the_one_on_screen():
    plan = plan_sampling(info_of(fps=1.0), SamplingSpec(start=2.2, end=2.4))
    assert plan.times == (2.2,)


def test_stated_times_are_taken_as_they_are():
    times = (0.5, 1.0, 3.0, 7.0, 7.5)
    info = replace(info_of(duration=8.0, fps=0.75, num_frames=5), times=times)
    plan = plan_sampling(info, SamplingSpec(num_frames=5))
    assert (plan.times, plan.even_times) == (times, None)
    assert plan_sampling(info, SamplingSpec(num_frames=3)).times == (0.5, 3.0, 7.5)
    assert plan_sampling(info, SamplingSpec(num_frames=9, start=1.0, end=7.5)).times == times[1:4]


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"start": -1.0}, "start=-1.0: want seconds"),
        ({"end": float("nan")}, "end=nan: want seconds"),
        ({"end": "5"}, "end='5': want seconds"),
        ({"start": 5.0, "end": 5.0}, "start=5 and end=5: want an end after the start"),
        ({"end": 0.0}, "start=0 and end=0: want an end after"),
        ({"start": 1.0, "timestamps": (2.0,)}, "timestamps with start or end"),
    ],
)
def test_a_stretch_that_is_none_is_refused(given, what):
    with pytest.raises(UsageError, match=what):
        SamplingSpec(**given)


def test_a_stretch_after_the_end_is_refused_and_one_beyond_it_is_told():
    with pytest.raises(UsageError, match="start=10: want less than the duration of"):
        plan_sampling(info_of(), SamplingSpec(start=10.0))
    spec = SamplingSpec(start=8.0, end=60.0)
    assert plan_sampling(info_of(), spec).times[-1] == pytest.approx(10.0 - 1 / 30)
    assert list(sampling_notes(info_of(), spec)) == [
        "end=60 s is after the end, 10.00 s: taken up to there"
    ]


def test_more_frames_than_there_are_is_told():
    spec = SamplingSpec(num_frames=400)
    assert list(sampling_notes(info_of(), spec)) == [
        "400 frames were asked for, and there are 300: all are taken"
    ]
    assert list(sampling_notes(info_of(), SamplingSpec(num_frames=300))) == []


PHOTO = VideoInfo(
    path="photo.jpg",
    duration=0.0,
    num_frames=1,
    fps=0.0,
    width=4000,
    height=3000,
    container="image",
)


def test_an_image_alone_has_pixels_of_its_own():
    spec = SamplingSpec(image_pixels=(3136, 12_845_056))
    plan = plan_sampling(PHOTO, spec)
    assert plan.num_tokens > 15_000
    assert (plan.height, plan.width) == smart_resize(
        3000, 4000, factor=28, min_pixels=3136, max_pixels=12_845_056
    )
    video = replace(PHOTO, container="folder", duration=0.5, fps=2.0)
    assert plan_sampling(video, spec).num_tokens <= 64
    assert plan_sampling(PHOTO, SamplingSpec()).num_tokens <= 64


@pytest.mark.parametrize("max_tokens", [1, 4, 100, 1000])
def test_max_tokens_shrink_an_image_as_far_as_it_takes(max_tokens):
    spec = SamplingSpec(image_pixels=(3136, 12_845_056), max_tokens=max_tokens)
    tokens = plan_sampling(PHOTO, spec).num_tokens
    assert max_tokens * 0.5 <= tokens <= max_tokens


def test_pixels_of_an_image_that_are_none_are_refused():
    for pixels in ((0, 10_000), (10_000, 5_000), ("a", "b"), (1, 783)):
        with pytest.raises(UsageError, match="image_pixels="):
            SamplingSpec(image_pixels=pixels)
