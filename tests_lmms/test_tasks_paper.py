"""The benchmarks of the paper in lmms-eval 0.7.3: prompts word by word, scores by hand."""

import random

import pytest

from tests_lmms.asked import prompt, scored
from videonsa.evals.field.tasks import LmmsScoring, load_tasks


def test_longvideobench_prompts_leave_out_options_that_are_not_there(hub):
    videos, text = prompt("longvideobench_val_v", 2)
    assert videos == [str(hub / "datasets/longvideobench/videos/scene1.mp4")]
    assert text == (
        "When was the flash?\nA. early\nB. in the middle\n"
        "Answer with the option's letter from the given choices directly.\n"
    )


def test_longvideobench_takes_the_first_capital_letter_from_a_to_e():
    answers = {
        0: "A",  # right
        1: "The answer is C. A triangle",  # the prefix goes, then C comes first: right
        2: "Best option: B",  # wrong, A is true
        3: "An E",  # the A of "An" comes first: wrong, though E is meant
        4: "(A) left",  # right
    }
    values, totals = scored("longvideobench_val_v", answers)
    assert values == [(1.0, "A"), (1.0, "C"), (0.0, "B"), (0.0, "A"), (1.0, "A")]
    # Each answer counts in its duration group and in its category: 2 * 3 right of 2 * 5.
    assert totals.values == {"lvb_acc": 0.6}


def test_longvideobench_draws_the_same_option_in_any_order():
    (one,) = load_tasks("longvideobench_val_v")
    scoring, doc = LmmsScoring("longvideobench_val_v"), dict(one.docs[1])
    random.seed(5)
    state = random.getstate()
    first = [scoring.score(doc, number, "none of them") for number in range(40)]
    assert random.getstate() == state, "the draw leaves nothing behind"
    backwards = [scoring.score(doc, number, "none of them") for number in reversed(range(40))]
    assert [one.items for one in first] == [one.items for one in reversed(backwards)]
    assert {one.parse for one in first} == {None} and all(one.drawn for one in first)
    drawn = {one.items["lvb_acc"]["parsed_pred"] for one in first}
    assert drawn == set("ABCD"), "among the four options that are there"


def test_mlvu_dev_asks_for_the_best_option_and_mlvu_test_does_not(hub):
    question = "How many objects move?\n(A) 1\n(B) 2\n(C) 3\n(D) 4"
    videos, text = prompt("mlvu_dev", 1)
    assert videos == [str(hub / "mlvu/scene0.mp4")]
    assert text == question + "\nOnly give the best option.\nBest option: ("
    videos, text = prompt("mlvu_test", 1)
    assert videos == [str(hub / "mlvu_test/scene0.mp4")]
    assert text == question


def test_mlvu_dev_is_the_mean_over_seven_kinds():
    answers = {
        0: "A) a flash",  # starts with the letter: right
        1: "(B) 2",  # right
        2: "I think the answer is (A)",  # ends with it behind a bracket: right
        3: "A or C",  # the letter at the start wins over the one at the end: wrong
        4: "white",  # no capital letter: nothing, wrong
        5: "C. shapes",  # right
        6: "The Bell",  # no letter stands alone; B is in the text: right by the last resort
    }
    values, totals = scored("mlvu_dev", answers)
    assert values == [
        (1.0, "A"),
        (1.0, "B"),
        (1.0, "A"),
        (0.0, "A"),
        (0.0, None),
        (1.0, "C"),
        (1.0, "B"),
    ]
    assert totals.values["mlvu_percetion_score"] == pytest.approx(100 * 5 / 7)


def test_mlvu_test_cannot_find_an_option_beyond_d():
    answers = {0: "A", 1: "B", 2: "A", 3: "C", 4: "D", 5: "C", 6: "E", 7: "D", 8: "A"}
    values, totals = scored("mlvu_test", answers)
    assert values[6] == (0.0, None), "E is true and was answered"
    assert totals.values["mlvu_percetion_score"] == pytest.approx(100 * 8 / 9)


def test_a_kind_that_is_not_there_counts_as_0_in_mlvu():
    _, totals = scored("mlvu_dev", {0: "A", 1: "B"})
    assert totals.values["mlvu_percetion_score"] == pytest.approx(100 * 2 / 7)


@pytest.mark.parametrize("task", ["timescope", "longtimescope"])
def test_timescope_asks_what_the_data_set_says_and_nothing_else(task, hub):
    videos, text = prompt(task, 4)
    length = {"timescope": "10800", "longtimescope": "36000"}[task]
    assert videos == [str(hub / task / length / "scene2.mp4")]
    assert text == (
        "What flashes?\nA. circle\nB. square\nC. triangle\nD. cross\nE. a line\nF. a face\n"
        "Answer with the letter of the option."
    )


@pytest.mark.parametrize("task", ["timescope", "longtimescope"])
def test_timescope_takes_the_first_capital_letter_from_a_to_f_and_is_the_share_of_all(task):
    answers = {
        0: "A",  # right
        1: "b",  # a small letter is not found: wrong
        2: "The answer is A",  # right, the prefix goes
        3: "",  # wrong
        4: "F",  # found, and wrong
    }
    values, totals = scored(task, answers)
    assert values == [(1.0, "A"), (0.0, None), (1.0, "A"), (0.0, None), (0.0, "F")]
    assert totals.values == {"timescope_perception_score": 40.0}


def test_longtimescope_lacks_a_comma_so_that_two_phrases_stay():
    # "Best option:" is no phrase of its own there, and its B is the first capital letter.
    assert scored("timescope", {0: "Best option: A"})[0] == [(1.0, "A")]
    assert scored("longtimescope", {0: "Best option: A"})[0] == [(0.0, "B")]


def test_tomato_prompt(hub):
    videos, text = prompt("tomato", 0)
    assert videos == [str(hub / "TOMATO/videos/simulated/scene0.mp4")]
    assert text == (
        "You will be provided with frames uniformly sampled from a video, the frames are provided "
        "in chronological order of the video. Analyze these frames and provide the answer to the "
        "question about the video content. Answer the multiple-choice question about the video "
        "content.\n\nYou must use these frames to answer the multiple-choice question; do not "
        "rely on any externel knowledge or commonsense. \n\n<question> \nWhere does the square "
        "go? \n</question>\n\n<options> \n{'A': 'left', 'B': 'right', 'C': 'up', 'D': 'down'} \n"
        "</options>\n\nEven if the information in these separate frames is not enough to answer "
        "the question, PLEASE TRY YOUR BEST TO GUESS AN ANSWER WHICH YOU THINK WOULD BE THE MOST "
        "POSSIBLE ONE BASED ON THE QUESTION. \n\nDO NOT GENERATE ANSWER SUCH AS 'NOT POSSIBLE TO "
        "DETERMINE.' \n"
    )


@pytest.mark.parametrize(
    "answer, taken",
    [
        ("D", "D"),
        ("(D) down, not (A)", "A"),  # of several in brackets the last
        ("Answer: (C)", "C"),  # the A of "Answer" is not in brackets
        ("Answer: C", "A"),  # none in brackets: the first of A and C
        ("none", "A"),  # nothing found: A, not a draw
        ("it goes to the right all along", "B"),  # more than five words: by the option's text
        ("to the right", "A"),  # too short for that
    ],
)
def test_tomato_takes_any_capital_letter_as_an_option(answer, taken):
    assert scored("tomato", {0: answer})[0] == [(float(taken == "A"), taken)]


def test_tomato_is_the_share_of_all():
    answers = {0: "A", 1: "B", 2: "B", 3: "C", 4: "no", 5: "C"}  # right but for 2 and 4
    _, totals = scored("tomato", answers)
    assert totals.values == {"tomato_score": pytest.approx(4 / 6)}


def test_vsibench_prompts_for_a_number_and_for_a_letter(hub):
    videos, text = prompt("vsibench", 1)
    assert videos == [str(hub / "vsibench/scannet/scene0.mp4")]
    assert text == (
        "These are frames of a video.\nHow far are they apart (in meters)?\n"
        "Please answer the question using a single word or phrase."
    )
    _, text = prompt("vsibench", 5)
    assert text == (
        "These are frames of a video.\nWhere is it?\nOptions:\nA. left\nB. right\n"
        "Answer with the option's letter from the given choices directly."
    )


VSI_ANSWERS = {
    0: "four",  # 4 of 4: all ten thresholds
    1: "2.5 meters",  # off by 0.25 of 2.0: thresholds .50 to .75, 6 of 10
    2: "about 90 cm",  # off by 0.5 of 60: .50 alone, 1 of 10
    3: "large",  # no number: 0
    4: "D.",  # right
    5: "A. left",  # right
    6: "(B)",  # the first word is "(B)", not "B": wrong
    7: "c",  # small letters are taken: right
    8: "B",  # wrong
    9: "B",  # right
}


def test_vsibench_scores_numbers_by_ten_thresholds_and_letters_by_the_first_word():
    values, _ = scored("vsibench", VSI_ANSWERS)
    numbers, letters = values[:4], values[4:]
    assert [value for value, _ in numbers] == pytest.approx([1.0, 0.6, 0.1, 0.0])
    assert [parse for _, parse in numbers] == ["4.0", "2.5", "90.0", None]
    assert letters == [
        (1.0, "D"),
        (1.0, "A"),
        (0.0, "(B)"),
        (1.0, "c"),
        (0.0, "B"),
        (1.0, "B"),
    ]


@pytest.mark.parametrize("task", ["vsibench", "vsibench_debiased", "vsibench_pruned"])
def test_vsibench_is_the_mean_of_eight_of_which_direction_is_three(task):
    _, totals = scored(task, VSI_ANSWERS)
    direction = (1 + 0 + 1) / 3
    assert totals.values == pytest.approx(
        {
            "vsibench_overall": round((1.0 + 0.6 + 0.1 + 0.0 + 1.0 + direction + 0.0 + 1.0) / 8, 6),
            "obj_appearance_order_accuracy": 1.0,
            "object_abs_distance_mra": 0.6,
            "object_counting_mra": 1.0,
            "object_rel_distance_accuracy": 1.0,
            "object_size_estimation_mra": 0.1,
            "room_size_estimation_mra": 0.0,
            "route_planning_accuracy": 0.0,
            "object_rel_direction_accuracy": round(direction, 6),
        }
    )
    assert totals.notes == ()


def test_vsibench_has_no_total_without_all_levels_of_direction():
    values, totals = scored("vsibench", {0: "four", 5: "A"})
    assert [value for value, _ in values] == [1.0, 1.0] and totals.values == {}
    assert totals.notes[0] == (
        "vsibench_overall has no value: lmms-eval cannot aggregate these 2 answers, for want of a "
        "kind of question that it counts on: 'object_rel_direction_medium_accuracy'"
    )


def test_lsdbench_prompt_and_score_take_the_last_letter_that_stands_alone(hub):
    videos, text = prompt("lsdbench", 3)
    assert videos == [str(hub / "lsdbench/scene2.mp4")]
    assert text == "What colour is the circle?\nA. red\nB. green\nC. blue\nD. white\n"
    answers = {
        0: "B? No, A.",  # the last: right
        1: "Answer left",  # the A of "Answer" does not stand alone: nothing
        2: "C",  # right
        3: "D, as A is red",  # the last is A: wrong
    }
    values, totals = scored("lsdbench", answers)
    assert values == [(1.0, "A"), (0.0, None), (1.0, "C"), (0.0, "A")]
    assert totals.values == {"accuracy": 50.0}
