"""When a reply is right."""

import pytest

from videonsa.errors import UsageError
from videonsa.evals.tasks.suite.answer_styles import judge, prompt_text
from videonsa.rendered.suite import SuiteQuestion

OPTIONS = ("red circle", "blue square", "a red cross")


def question(answer: str = "blue square", options: tuple[str, ...] = OPTIONS) -> SuiteQuestion:
    return SuiteQuestion("needle", "What flashed?", answer, options, 0.5, ((1.0, 2.0),))


def test_a_free_question_is_asked_as_it_stands() -> None:
    assert prompt_text(question(), "free") == prompt_text(question(), "likeliest")
    assert prompt_text(question(), "free") == "What flashed?"


def test_a_choice_shows_every_option_with_its_letter() -> None:
    assert prompt_text(question(), "choice") == (
        "What flashed?\nA. red circle\nB. blue square\nC. a red cross\n"
        "Answer with the letter of one option only."
    )
    with pytest.raises(UsageError, match="27 options"):
        prompt_text(question("0", tuple(map(str, range(27)))), "choice")


@pytest.mark.parametrize("reply", ["blue square", "The Blue  square.", " a blue square "])
@pytest.mark.parametrize("style", ["free", "choice"])
def test_the_answer_in_its_words_is_right(reply, style) -> None:
    assert judge(reply, question(), style) == ("blue square", True)


@pytest.mark.parametrize(
    "reply", ["B", "b", "B.", "(B)", "B)", " B: ", "B. blue square", "(B) the blue square."]
)
def test_a_letter_is_right_where_letters_were_shown(reply) -> None:
    assert judge(reply, question(), "choice") == ("blue square", True)
    assert judge(reply, question(), "free") == (None, False)


def test_another_option_is_wrong_but_names_one() -> None:
    assert judge("red circle", question(), "free") == ("red circle", False)
    assert judge("C", question(), "choice") == ("a red cross", False)
    assert judge("red cross", question(), "free") == ("a red cross", False)


@pytest.mark.parametrize(
    "reply",
    ["", "D", "Z.", "B. red circle", "A or B", "It is B.", "blue", "blue square blue square", "BB"],
)
def test_anything_else_names_no_option(reply) -> None:
    assert judge(reply, question(), "choice") == (None, False)
