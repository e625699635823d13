"""Stop strings: the same cut wherever the pieces end, and how many tokens lie before it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videonsa.inference.stop_strings import StopStrings

LETTERS = st.sampled_from("ab\u00e9")


def literally(text, stop):
    """The text before the first stop string, and which: by trying all ends, shortest first."""
    for end in range(len(text) + 1):
        met = [s for s in stop if s and text[:end].endswith(s)]
        if met:
            found = max(met, key=len)
            return text[: end - len(found)], found
    return text, None


def run(pieces, stop):
    """All that is shown, the `StopStrings`, and what was shown after each piece."""
    strings = StopStrings(stop)
    shown = [strings.push(piece) for piece in pieces]
    return "".join(shown) + strings.flush(), strings, shown


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.text(LETTERS, max_size=4), max_size=12),
    st.lists(st.text(LETTERS, min_size=1, max_size=5), max_size=3),
)
def test_the_cut_is_that_of_the_whole_text(pieces, stop):
    expected, found = literally("".join(pieces), stop)
    text, strings, shown = run(pieces, stop)
    assert text == expected
    assert strings.found == found
    # At no time was anything shown that is not part of the result.
    for count in range(len(shown)):
        assert expected.startswith("".join(shown[: count + 1]))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.text(LETTERS, max_size=3), max_size=12),
    st.lists(st.text(LETTERS, min_size=1, max_size=4), min_size=1, max_size=2),
)
def test_the_tokens_before_are_the_longest_run_whose_text_is_let_through(pieces, stop):
    text, strings, _ = run(pieces, stop)
    if strings.found is None:
        assert strings.tokens_before == len(pieces)
        return
    # A token without text belongs to the next one that has some: a character was open.
    ends = [n + 1 for n, piece in enumerate(pieces) if piece]
    wholly = [n for n in ends if len("".join(pieces[:n])) <= len(text)]
    assert strings.tokens_before == max(wholly, default=0)
    assert "".join(pieces[: strings.tokens_before]) + strings.rest == text


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.text(LETTERS, min_size=1, max_size=4), max_size=12), st.text(LETTERS, min_size=1)
)
def test_no_more_is_held_back_than_what_a_stop_string_begins_with(pieces, stop):
    strings = StopStrings((stop,))
    shown = ""
    for count, piece in enumerate(pieces):
        shown += strings.push(piece)
        if strings.found is None:
            held = "".join(pieces[: count + 1])[len(shown) :]
            assert stop.startswith(held) and held != stop


def test_a_stop_string_that_spans_tokens_is_found():
    text, strings, shown = run(["The", " ans", "wer", "\n", "\nQ", ": more"], ("\n\nQ:", "never"))
    assert (text, strings.found) == ("The answer", "\n\nQ:")
    assert shown == ["The", " ans", "wer", "", "", ""]
    assert strings.tokens_before == 3


def test_a_stop_string_that_begins_inside_a_token_leaves_the_token_out():
    text, strings, _ = run(["red", ". Bl", "ue"], (".",))
    assert (text, strings.found, strings.tokens_before) == ("red", ".", 1)
    assert strings.rest == ""
    text, strings, _ = run(["a", "red.", " Blue"], (".",))
    assert (text, strings.found, strings.tokens_before) == ("ared", ".", 1)
    assert strings.rest == "red"


def test_what_was_held_back_is_let_through_when_no_stop_string_follows():
    strings = StopStrings(("###",))
    assert [strings.push(piece) for piece in ("a#", "#", "b", "##")] == ["a", "", "##b", ""]
    assert strings.tokens_before == 3
    assert strings.flush() == "##"
    assert (strings.found, strings.tokens_before) == (None, 4)


def test_an_open_character_belongs_to_the_piece_that_completes_it():
    text, strings, _ = run(["a", "", "", "\u00e9b"], ("b",))
    assert (text, strings.tokens_before) == ("a\u00e9", 1)


def test_of_two_that_end_together_the_longer_is_found():
    assert run(["xab"], ("b", "ab"))[:1] == ("x",)
    assert run(["xab"], ("b", "ab"))[1].found == "ab"


def test_what_is_left_at_the_end_brings_no_token():
    strings = StopStrings(("b",))
    assert strings.push("a") == "a"
    assert strings.push("", tokens=1) == ""
    assert strings.push("\ufffd", tokens=0) == "\ufffd"
    assert strings.tokens_before == 2


@pytest.mark.parametrize("pieces", [[], [""], ["a", "b"]])
def test_without_stop_strings_all_is_shown_at_once(pieces):
    text, strings, shown = run(pieces, ())
    assert shown == pieces
    assert (text, strings.found, strings.tokens_before) == ("".join(pieces), None, len(pieces))


def test_nothing_comes_after_a_stop_string():
    strings = StopStrings(("b",))
    assert [strings.push(piece) for piece in ("ab", "c", "d")] == ["a", "", ""]
    assert strings.flush() == ""
    assert strings.tokens_before == 0
