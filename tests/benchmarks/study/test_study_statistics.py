import numpy as np
import pytest

from benchmarks.study.answering import VideoLine
from benchmarks.study.study_statistics import (
    Answers,
    accuracies,
    best_constants,
    compare,
    interval,
    known_kinds,
)

KINDS = ["count", "count", "order", "state"]
RATES = {
    # count is read off single frames; order and state need vision tokens to work
    "dense": {"count": 0.95, "order": 0.9, "state": 0.9},
    "nsa": {"count": 0.95, "order": 0.7, "state": 0.8},
    "window": {"count": 0.95, "order": 0.4, "state": 0.4},
    "random": {"count": 0.95, "order": 0.5, "state": 0.4},
}


def line(sample, right, *, length=4096, only=""):
    return VideoLine(
        length=length,
        sample=sample,
        only=only,
        kinds=KINDS,
        answers=["1", "2", "left", str(sample % 4)],
        places=[0, 1, 0, sample % 4],
        free=right,
        likeliest=[True] * len(KINDS),
        gates=[],
        seconds=0.1,
    )


def seed(number, videos=200, rates=RATES):
    rng = np.random.default_rng(number)
    draws = [rng.random(len(KINDS)) for _ in range(videos)]
    return {
        arm: [
            line(i, [bool(x < rate[kind]) for x, kind in zip(draw, KINDS, strict=True)])
            for i, draw in enumerate(draws)
        ]
        for arm, rate in rates.items()
    }


def test_what_is_recovered_counts_only_kinds_with_headroom_that_dense_attention_knows():
    answers = Answers.of([seed(0), seed(1)], 4096, "free")
    assert known_kinds(answers) == ["order", "state"]
    found = compare(answers)
    share = found["recovered"]["nsa"]["share"]
    assert share["low"] < (0.35 / 0.5) < share["high"] and share["high"] - share["low"] < 0.2
    assert found["recovered"]["random"]["share"]["high"] < share["low"]
    assert found["by_kind"]["order"]["nsa"]["share"]["value"] == pytest.approx(0.6, abs=0.1)
    assert found["recovered"]["nsa"]["points"]["value"] == pytest.approx(-15, abs=4)
    assert found["recovered"]["nsa"]["points_that_would_be_seen"] == pytest.approx(
        2.8 * found["recovered"]["nsa"]["points"]["error"], abs=1e-3
    )


def test_without_a_kind_that_counts_there_is_no_share():
    poor = {arm: dict.fromkeys(rate, 0.5) for arm, rate in RATES.items()}
    answers = Answers.of([seed(0, rates=poor)], 4096, "free")
    found = compare(answers)
    assert {name: x for name, x in found.items() if name != "differences"} == {
        "kinds": [],
        "recovered": {},
        "by_kind": {},
    }
    assert found["differences"]["nsa"]["points"]["value"] == 0


def test_ten_points_are_headroom_however_they_are_rounded():
    right = np.array([0.9, 0.8]).reshape(1, 2, 1, 1) * 300
    answers = Answers(
        arms=("dense", "window"), kinds=("k",), right=right, asked=np.full((1, 1), 300)
    )
    assert known_kinds(answers) == ["k"]


def test_arms_differ_from_dense_attention_by_points_over_all_kinds():
    found = compare(Answers.of([seed(0)], 4096, "free"))["differences"]
    assert list(found) == ["nsa", "window", "random"]
    assert found["nsa"]["points"]["value"] == pytest.approx(-10, abs=3)  # (0 + 20 + 10) / 3
    assert found["nsa"]["points"]["high"] < 0
    without = {arm: lines for arm, lines in seed(0).items() if arm != "window"}
    assert compare(Answers.of([without], 4096, "free"))["differences"]["nsa"] == found["nsa"]


def test_draws_without_headroom_are_counted():
    right = np.array([[1.0, 1, 1], [0, 1, 1], [1, 1, 1]]).reshape(1, 3, 3, 1)
    answers = Answers(
        arms=("dense", "window", "nsa"), kinds=("k",), right=right, asked=np.ones((3, 1))
    )
    (found,) = compare(answers)["recovered"].values()
    # The one video in which the window loses is missing in (2 / 3)^3 of the draws.
    assert found["draws_left_out"] / 2000 == pytest.approx(8 / 27, abs=0.04)
    assert found["share"]["value"] == found["share"]["low"] == 1


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    truth, hits = 0.9, 0
    for number in range(60):
        answers = Answers.of([seed(100 + number, videos=60)], 4096, "free")
        (found,) = (
            x for x in accuracies(answers, "free") if (x["arm"], x["kind"]) == ("dense", "order")
        )
        hits += found["low"] <= truth <= found["high"]
    assert 52 <= hits <= 60


def test_questions_about_one_video_stay_together():
    """Ten questions a video that are right or wrong together tell as much as one."""
    rng = np.random.default_rng(0)
    right = (rng.random((1, 1, 100, 1)) < 0.5).astype(float)
    one = Answers(arms=("a",), kinds=("k",), right=right, asked=np.ones((100, 1)))
    ten = Answers(arms=("a",), kinds=("k",), right=10 * right, asked=np.full((100, 1), 10))
    errors = [interval(0, x.resampled()[:, 0, 0]).error for x in (one, ten)]
    assert errors[0] == pytest.approx(errors[1]) and errors[0] == pytest.approx(0.05, rel=0.1)


def test_seeds_that_differ_widen_the_interval():
    better = {arm: dict.fromkeys(rate, 0.99) for arm, rate in RATES.items()}
    alike, apart = ([seed(0), seed(1)], [seed(0), seed(1, rates=better)])
    errors = [
        interval(0, Answers.of(seeds, 4096, "free").resampled()[:, 1, 1]).error
        for seeds in (alike, apart)
    ]
    assert errors[1] > 2 * errors[0]


def test_seeds_answer_the_same_videos_so_that_hard_ones_are_hard_for_all():
    """Three seeds that are right about the same videos tell as much as one."""
    rng = np.random.default_rng(0)
    right = (rng.random((1, 1, 100, 1)) < 0.5).astype(float)
    errors = [
        interval(
            0,
            Answers(
                arms=("a",),
                kinds=("k",),
                right=np.tile(right, (n, 1, 1, 1)),
                asked=np.ones((100, 1)),
            ).resampled()[:, 0, 0],
        ).error
        for n in (1, 3)
    ]
    assert errors[1] == pytest.approx(errors[0], rel=0.1)


def test_only_videos_that_every_arm_of_every_seed_answered_are_compared():
    first, second = seed(0, videos=20), seed(1, videos=12)
    del second["random"]
    first["nsa"] = first["nsa"][5:]
    first["dense"].append(line(3, [False] * 4, only="count"))
    answers = Answers.of([first, second], 4096, "free")
    assert answers.arms == ("dense", "nsa", "window") and answers.right.shape == (2, 3, 7, 3)
    assert Answers.of([first, second], 8192, "free") is None
    first["dense"].append(line(0, [True] * 4, length=8192))
    second["dense"].append(line(0, [True] * 4, length=8192))
    assert Answers.of([first, second], 8192, "free").arms == ("dense",)


def test_the_best_constant_answer_is_one_answer_or_one_place():
    lines = [line(i, [True] * 4) for i in range(8)]
    assert best_constants(lines) == {"count": 0.5, "order": 1.0, "state": 0.25}
