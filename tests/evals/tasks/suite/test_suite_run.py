"""What a run may ask."""

from dataclasses import replace

import pytest
from suite_runs import small_run

from videonsa.errors import UsageError
from videonsa.evals.journal import digest
from videonsa.rendered.suite import suite_seed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples=0: want at least 1"),
        ({"style": "essay"}, "style='essay': want one of free, choice, likeliest"),
        ({"lengths": ()}, "lengths=()"),
        ({"lengths": (256, 256)}, "each once"),
        ({"conditions": ("whole", "half")}, "conditions half: want some of whole, no-compressed"),
        ({"kinds": ("riddle",)}, "kinds=('riddle',)"),
        ({"positions": (1.5,)}, "position=1.5: want 0 to 1"),
        ({"difficulty": "brutal"}, "difficulty='brutal'"),
        ({"frame_size": 100}, "frame_size=100"),
        ({"lengths": (64,)}, "want an even number from"),
        ({"seed": 65535}, "seed=65535 with 2 samples"),
        ({"time_scale": 0.0}, "time_scale=0.0: want a positive number"),
        ({"time_scale": 1e300}, "time_scale=1e+300: want a positive number"),
        ({"time_scale": float("nan")}, "time_scale=nan: want a positive number"),
        ({"lengths": (2**24,)}, "want videos of less than 16777216 tokens"),
        ({"samples": 10**22}, f"seed=0 with {10**22} samples"),
        ({"frame_size": 28 * 10**20}, "at most 2016"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(options, message) -> None:
    with pytest.raises(UsageError) as caught:
        small_run(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_more_lengths_samples_and_conditions_are_the_same_run_and_all_else_is_not() -> None:
    run = small_run()
    wider = replace(run, lengths=(256, 512), samples=9, conditions=("whole", "grey"))
    assert digest(wider.identity()) == digest(run.identity())
    changes = {"model": "m", "difficulty": "hard", "positions": (0.5,), "frame_size": 140}
    changes |= {"kinds": ("needle",), "style": "choice", "attention": "dense", "seed": 1}
    changes |= {"nsa": (("window_size", 8),), "dtype": "bfloat16", "device": "cuda"}
    changes |= {"split": "train", "time_scale": 0.5}
    for name, value in changes.items():
        options = {name: value} | ({"lengths": (800,)} if name == "frame_size" else {})
        assert digest(replace(run, **options).identity()) != digest(run.identity()), name


def test_videos_take_the_positions_in_turn_and_no_two_share_a_seed() -> None:
    run = small_run(lengths=(512, 256), samples=4, positions=(0.1, 0.5, 0.9))
    videos = run.videos()
    assert [(video.sample, video.length) for video in videos[:3]] == [(0, 256), (0, 512), (1, 256)]
    assert [video.spec.position for video in videos[::2]] == [0.1, 0.5, 0.9, 0.1]
    assert {video.spec.num_frames for video in videos} == {32, 64}
    assert len({video.seed for video in videos}) == 8
    assert min(video.seed for video in videos) >= suite_seed("test", 0)
