"""The rules of the paper's time, by hand, with the traps that they have."""

import random

import pytest

from videonsa.evals.field.scoring import paper_rules as paper

LVB = {"correct_choice": 1, "option0": "a", "option1": "b", "option2": "c", "option3": "N/A"}


@pytest.mark.parametrize(
    ("answer", "parse", "value"),
    [
        ("B", "B", 1),
        ("The answer is B.", "B", 1),
        ("D. A book", "D", 0),  # the first letter, not the A
        ("(B) or (C)", "B", 1),
        ("Because it is b", "B", 1),  # the B of a word
    ],
)
def test_longvideobench_takes_the_first_letter(answer, parse, value):
    assert paper.longvideobench(LVB, answer, seed="s") == (value, parse, False)


def test_longvideobench_draws_one_of_the_options_by_the_seed_where_there_is_no_letter():
    drawn = {seed: paper.longvideobench(LVB, "none", seed=seed) for seed in map(str, range(40))}
    for seed, found in drawn.items():
        assert found == (random.Random(seed).choice("ABC") == "B", None, True)
    assert {found.value for found in drawn.values()} == {0.0, 1.0}


@pytest.mark.parametrize(
    ("answer", "parse", "value"),
    [
        ("A", "A", 1),
        ("A) the cat", "A", 1),
        ("(A) the cat", "A", 1),
        ("B) or (A)", "B", 0),  # before the first bracket
        ("A.", "A.", 0),  # no bracket: the whole answer, which is not A
        ("the cat", "the cat", 0),
        (") A", None, 0),  # nothing stands before it
        ("", None, 0),
    ],
)
def test_mlvu_takes_the_character_before_a_bracket_else_the_whole_answer(answer, parse, value):
    assert paper.mlvu({"answer": "A"}, answer) == (value, parse, False)


def test_timescope_and_longtimescope_differ_by_two_joined_prefixes():
    doc = {"answer": "C"}
    for rule in (paper.timescope, paper.longtimescope):
        assert rule(doc, "The best answer is C") == (1, "C", False)
        assert rule(doc, "F") == (0, "F", False)
        assert rule(doc, "none of these") == (0, None, False)
    assert paper.timescope(doc, "Best option: C") == (1, "C", False)
    assert paper.longtimescope(doc, "Best option: C") == (0, "B", False)  # of "Best"


def test_video_mme_and_lvbench_take_the_first_of_four_letters():
    doc = {"answer": "D"}
    assert paper.first_of_four(doc, "D") == (1, "D", False)
    assert paper.first_of_four(doc, "E or D") == (1, "D", False)
    assert paper.first_of_four(doc, "A dog: (D)") == (0, "A", False)


TOMATO = {"options": ["up", "down", "to the left"], "answer": 1}


@pytest.mark.parametrize(
    ("answer", "parse", "value"),
    [
        ("B", "B", 1),
        ("B: down.", "B", 1),
        ("Based on the frames, up", "B", 1),  # any capital letter counts
        ("(A) no, (B)", "B", 1),  # the last in brackets
        ("(B) no, (A)", "A", 0),
        ("B and A and C", "A", 0),  # without brackets the first of the alphabet
        ("(B), or is it C?", "B", 1),
        ("it moves right then down quickly", "B", 1),  # more than five words: an option's text
        ("it goes up and then goes down", "B", 1),  # the option that comes last
        ("it goes down", None, 0),  # five words or fewer: A is taken
        ("", None, 0),
    ],
)
def test_tomato_takes_any_letter_of_an_option(answer, parse, value):
    assert paper.tomato(TOMATO, answer) == (value, parse, False)


def test_tomato_takes_a_where_it_finds_nothing():
    assert paper.tomato(TOMATO | {"answer": 0}, "no idea") == (1, None, False)


@pytest.mark.parametrize(
    ("answer", "parse", "value"),
    [
        ("B", "B", 1),
        ("b. the chair", "b", 1),
        ("(B)", "(B)", 0),
        ("The B", "The", 0),
        ("", None, 0),
    ],
)
def test_vsibench_compares_the_first_word_with_the_letter(answer, parse, value):
    doc = {"question_type": "route_planning", "ground_truth": "B", "options": ["A. x", "B. y"]}
    assert paper.vsibench(doc, answer) == (value, parse, False)


@pytest.mark.parametrize(
    ("answer", "parse", "value"),
    [
        ("4", "4", 1.0),
        ("4.0 chairs", "4.0", 1.0),
        ("3", "3", 0.6),  # wrong by 0.25: thresholds 0.5 to 0.75
        ("2", "2", 0.1),  # wrong by 0.5: the threshold 0.5 alone
        ("8.", "8", 0.0),  # wrong by 1
        ("four", None, 0.0),  # numbers in words are none
        ("about 4", None, 0.0),
        ("nan", "nan", 0.0),
    ],
)
def test_vsibench_weighs_the_error_of_a_number(answer, parse, value):
    doc = {"question_type": "object_counting", "ground_truth": "4", "options": None}
    found = paper.vsibench(doc, answer)
    assert (found.parse, found.value) == (parse, pytest.approx(value))


def test_the_mean_relative_accuracy_has_ten_thresholds_and_not_eleven():
    # 0.96 of the truth passes all of 0.50 to 0.95; an eleventh at 1.00 would fail it.
    assert paper.mean_relative_accuracy(96, 100) == 1.0
    assert paper.mean_relative_accuracy(94, 100) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("answer", "parse", "value"),
    [
        ("A then (C)", "C", 1),  # the last
        ("C, a Dog", "C", 1),  # letters of words do not count
        ("CD", None, 0),
        ("E", None, 0),
    ],
)
def test_lsdbench_takes_the_last_letter_that_stands_alone(answer, parse, value):
    assert paper.lsdbench({"correct_answer": "C"}, answer) == (value, parse, False)
