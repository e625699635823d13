"""The tokenizer of the embedded model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

import videonsa
from videonsa.rendered.clips import KINDS, ask_about, make_scene

EMBEDDED = Path(videonsa.__file__).parent / "assets/embedded"
SCRIPT = Path(__file__).parents[2] / "scripts/train_tokenizer.py"
BACKEND = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))


@given(st.text())
@settings(max_examples=80, deadline=None)
def test_any_text_survives_the_round_trip(text: str) -> None:
    BACKEND.encode_special_tokens = True
    ids = BACKEND.encode(text).ids
    assert BACKEND.decode(ids, skip_special_tokens=False) == text


def test_loads_as_a_tokenizer_of_the_qwen_format() -> None:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    assert tokenizer.is_fast
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.padding_side == "left"
    assert len(tokenizer) == 1024
    assert len(set(tokenizer.all_special_ids)) == 8


@pytest.mark.parametrize("kind", KINDS)
def test_words_of_the_scenes_are_single_tokens(kind: str) -> None:
    for seed in range(40):
        question = ask_about(make_scene(seed), kind)
        if question is not None:
            for option in question.options:
                assert len(BACKEND.encode(option).ids) == len(option.split())
            words = question.text.replace("?", " ?").replace(",", " ,").split()
            assert len(BACKEND.encode(question.text).ids) == len(words)


def test_training_gives_the_committed_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, SCRIPT, tmp_path], check=True, capture_output=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        trained, committed = (
            json.loads((folder / name).read_text("utf-8")) for folder in (tmp_path, EMBEDDED)
        )
        assert trained == committed
