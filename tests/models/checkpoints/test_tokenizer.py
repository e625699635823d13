"""A tokenizer is whole, belongs to its config and runs no code, or is refused in one line."""

import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from videonsa.errors import ModelError
from videonsa.models.checkpoints.tokenizer import SPECIAL_TOKENS, load_tokenizer

EMBEDDED = Path(__file__).parents[3] / "src/videonsa/assets/embedded"
NAMES = ("tokenizer.json", "tokenizer_config.json", "config.json")


@pytest.fixture
def folder(tmp_path):
    for name in NAMES:
        shutil.copy(EMBEDDED / name, tmp_path)
    return tmp_path


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def refused(folder, match):
    with pytest.raises(ModelError, match=match) as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


def test_the_special_tokens_are_those_of_the_config(folder):
    tokenizer = load_tokenizer(folder)
    config = json.loads((folder / "config.json").read_text())
    for token, field in SPECIAL_TOKENS.items():
        if field is not None:
            assert tokenizer.convert_tokens_to_ids(token) == config[field]


def test_a_folder_needs_no_config_beside_its_tokenizer(folder):
    (folder / "config.json").unlink()
    assert load_tokenizer(folder).encode("a") == load_tokenizer(EMBEDDED).encode("a")


def test_a_folder_without_tokenizer_files_has_no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    refused(folder, "has no tokenizer")


def marking_code(folder):
    """A module that leaves a file behind where it is imported."""
    ran = folder / "ran"
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\n")
    return ran


@pytest.mark.parametrize("reference", [["code.Own", None], {"AutoTokenizer": ["code.Own", None]}])
@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "Own"])
def test_code_beside_a_tokenizer_never_runs_and_nobody_is_asked(
    folder, monkeypatch, reference, kind
):
    ran = marking_code(folder)
    change(
        folder / "tokenizer_config.json",
        lambda content: content.update(auto_map=reference, tokenizer_class=kind),
    )
    answers = io.StringIO("y\ny\n")
    monkeypatch.setattr(sys, "stdin", answers)
    refused(folder, "auto_map")
    assert answers.tell() == 0
    assert not ran.exists()


def test_code_that_a_config_names_never_runs(folder, monkeypatch):
    ran = marking_code(folder)
    reference = {"AutoConfig": "code.Own", "AutoTokenizer": ["code.Own", None]}
    change(
        folder / "config.json",
        lambda content: content.update(auto_map=reference, model_type="own"),
    )
    answers = io.StringIO("y\n")
    monkeypatch.setattr(sys, "stdin", answers)
    load_tokenizer(folder)
    assert answers.tell() == 0
    assert not ran.exists()


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_each_special_token_must_be_there(folder, token):
    def rename(content):
        for added in content["added_tokens"]:
            if added["content"] == token:
                added["content"] = "<|other|>"
        vocabulary = content["model"]["vocab"]
        if token in vocabulary:
            vocabulary["<|other|>"] = vocabulary.pop(token)

    change(folder / "tokenizer.json", rename)
    (folder / "tokenizer_config.json").write_text("{}")
    refused(folder, f"has no .*{token.strip('<|>')}")


@pytest.mark.parametrize("field", [field for field in SPECIAL_TOKENS.values() if field])
@pytest.mark.parametrize("value", [5, "6", None, [], 10**12])
def test_the_config_must_state_the_ids_of_the_tokenizer(folder, field, value):
    change(folder / "config.json", lambda content: content.update({field: value}))
    refused(folder, field)


def test_ids_beyond_the_vocabulary_of_the_model_are_refused(folder):
    change(folder / "config.json", lambda content: content["text_config"].update(vocab_size=1000))
    refused(folder, "up to 1023, but config.json states vocab_size 1000")


@pytest.mark.parametrize("longest", ["32768", "", None, True, [], {}, 0, -1, float("nan")])
def test_a_longest_text_that_is_no_positive_number_is_refused(folder, longest):
    change(
        folder / "tokenizer_config.json", lambda content: content.update(model_max_length=longest)
    )
    refused(folder, "model_max_length")


BOMBS = ["(a+)+$", "(x+x+)+y", r"(?:\p{L}|\w)*1", "(a*)*", "(?:a{1,9}){1,99}b", "a*a*a*a*a*b"]


@pytest.mark.parametrize("pattern", BOMBS)
@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer", "decoder"])
def test_a_pattern_that_may_take_forever_is_refused(folder, part, pattern):
    kinds = {
        "pre_tokenizer": {"type": "Split", "behavior": "Isolated", "invert": False},
        "normalizer": {"type": "Replace", "content": "b"},
        "decoder": {"type": "Replace", "content": "b"},
    }
    step = kinds[part] | {"pattern": {"Regex": pattern}}
    change(folder / "tokenizer.json", lambda content: content.update({part: step}))
    refused(folder, "may take forever")


# As Qwen2.5, GPT-4 and GPT-4o split text.
KNOWN = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{M}]*[\p{Ll}\p{Lm}\p{M}]+(?i:'s|'t|'re)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|[()]+|\)+|\s+",
]


@pytest.mark.parametrize("pattern", KNOWN)
def test_patterns_in_use_are_taken(folder, pattern):
    def use(content):
        content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern

    change(folder / "tokenizer.json", use)
    load_tokenizer(folder)


def test_a_file_that_is_a_pipe_is_not_waited_for(folder):
    (folder / "tokenizer_config.json").unlink()
    os.mkfifo(folder / "tokenizer_config.json")
    refused(folder, "not a regular file")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "text", ["[]", "null", "", "{", "[" * 100_000, '{"version": ' + "9" * 5000]
)
def test_files_that_hold_no_object_are_one_line(folder, name, text):
    (folder / name).write_text(text)
    refused(folder, name)


def test_a_broken_model_in_the_file_is_one_line(folder):
    change(folder / "tokenizer.json", lambda content: content.update(model={"type": "none"}))
    refused(folder, "cannot be read")


def test_a_prefix_that_the_merges_lack_is_one_line(folder, capfd):
    def change_prefix(content):
        content["model"]["continuing_subword_prefix"] = "a long prefix"

    change(folder / "tokenizer.json", change_prefix)
    refused(folder, "continuing_subword_prefix")
    assert "panicked" not in capfd.readouterr().err


def test_a_tokenizer_that_loses_text_is_refused(folder):
    def empty(content):
        content["model"]["vocab"] = {
            added["content"]: added["id"] for added in content["added_tokens"]
        }
        content["model"]["merges"] = []

    change(folder / "tokenizer.json", empty)
    refused(folder, "makes ''")


@pytest.mark.parametrize("number", [-1, 2**22, 2**31, 10**30])
@pytest.mark.parametrize("place", ["vocabulary", "added token", "decoder"])
def test_ids_without_bound_are_refused_before_room_is_made_for_them(folder, place, number):
    def edit(content):
        if place == "vocabulary":
            content["model"]["vocab"]["a"] = number
        elif place == "added token":
            content["added_tokens"][0]["id"] = number
        else:
            content["added_tokens_decoder"] = {str(abs(number) + 2**22): {"content": "<x>"}}

    name = "tokenizer_config.json" if place == "decoder" else "tokenizer.json"
    change(folder / name, edit)
    refused(folder, "states the id .*, want 0 to 4194303")
