"""The options of how tokens are chosen, and how it is told."""

import json

import pytest

import videonsa
from videonsa.cli.common import LineParser
from videonsa.cli.generation import add_generation_options, generation_options, generation_text
from videonsa.cli.main import main
from videonsa.inference.sampling import GenerationSettings

ALL = [
    *("--max-new-tokens", "7", "--temperature", "2", "--top-p", "0.5", "--top-k", "9"),
    *("--repetition-penalty", "1.5", "--stop", "never", "--stop", "in it", "--seed", "1"),
]


@pytest.fixture
def ask(tiny_folder, clip_path, capsys):
    def run(*options):
        model = ["--model", str(tiny_folder), "--device", "cpu"]
        status = main(["ask", str(clip_path), "What moves?", *model, *options])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def parsed(arguments):
    parser = LineParser()
    add_generation_options(parser)
    return generation_options(parser.parse_args(arguments))


def test_what_is_not_given_is_left_to_the_checkpoint():
    assert parsed([]) == {}


def test_every_option_has_the_name_of_its_keyword():
    assert parsed(ALL) == {
        "max_new_tokens": 7,
        "temperature": 2.0,
        "top_p": 0.5,
        "top_k": 9,
        "repetition_penalty": 1.5,
        "stop": ["never", "in it"],
        "seed": 1,
    }


def test_the_options_reach_the_model_and_are_told(ask, tiny_folder, clip_path):
    qa = videonsa.load(tiny_folder, device="cpu")
    expected = qa.ask(clip_path, "What moves?", **parsed(ALL))
    status, out, err = ask(*ALL, "--json")
    answer = json.loads(out)
    assert status == 0
    assert answer["text"] == expected.text
    assert answer["usage"]["generation"] == {
        "max_new_tokens": 7,
        "temperature": 2.0,
        "top_p": 0.5,
        "top_k": 9,
        "repetition_penalty": 1.5,
        "stop": ["never", "in it"],
        "seed": 1,
    }
    told = "drawn at temperature 2, top_p 0.5, top_k 9, seed 1, repetition_penalty 1.5, "
    assert f"generation {told}at most 7 tokens, up to 'never' or 'in it'\n" in err


def test_an_answer_that_met_a_stop_string_says_which(ask):
    options = ["--max-new-tokens", "12", "--temperature", "1", "--seed", "3"]
    _, whole, _ = ask(*options)
    stop = whole[6:8]
    status, out, err = ask(*options, "--stop", stop)
    assert status == 0
    assert out == whole[: whole.index(stop)] + "\n"
    assert f"note       ended before {stop!r}\n" in err
    assert "cut at" not in err
    _, out, _ = ask(*options, "--stop", stop, "--json")
    assert (json.loads(out)["finish"], json.loads(out)["stop"]) == ("stop", stop)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--top-k", "-1"), "top_k=-1: want an int of at least 0"),
        (("--top-k", "2.5"), "--top-k 2.5: want a whole number"),
        (("--repetition-penalty", "0"), "repetition_penalty=0.0: want a number above 0"),
        (("--repetition-penalty", "nan"), "repetition_penalty=nan: want a number above 0"),
        (("--stop", ""), "stop=('',): want a tuple of texts, none of them empty"),
        (("--seed", "-1"), "seed=-1: want an int of at least 0"),
        (("--temperature", "hot"), "--temperature invalid float value: 'hot'"),
    ],
)
def test_a_value_outside_its_domain_is_one_line(ask, options, what):
    status, _, err = ask(*options)
    assert status == 2
    assert what in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "the likeliest token, at most 64 tokens"),
        (
            {"repetition_penalty": 1.05, "temperature": 1e-6, "seed": 5},
            "drawn at temperature 1e-06, seed 5, repetition_penalty 1.05, at most 64 tokens",
        ),
        ({"stop": ("\n",)}, r"the likeliest token, at most 64 tokens, up to '\n'"),
    ],
)
def test_what_changes_nothing_is_not_told(settings, text):
    assert generation_text(GenerationSettings(**settings)) == text
