"""Ten conversations with two videos and an image, as the published template and tokenizer write."""

import json
from pathlib import Path
from typing import Any

import pytest

from videonsa.data.records import Record
from videonsa.data.tokens import conversation_tokens
from videonsa.video.chat import IGNORED_LABEL

VECTORS = json.loads(
    (Path(__file__).parents[1] / "fixtures/processing/conversations.json").read_text("utf-8")
)
CASES = pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["record"]["id"])


class RecordedTokenizer:
    """The Qwen2.5 tokenizer on the recorded pieces; any other text is a KeyError."""

    def encode(self, text: str, **options: bool) -> list[int]:
        assert options["split_special_tokens"]
        assert not options["add_special_tokens"]
        return VECTORS["pieces"][text]

    def convert_tokens_to_ids(self, tokens: str) -> int:
        return VECTORS["pieces"][tokens][0]


def record_of(case: dict[str, Any]) -> Record:
    return Record.from_json(json.dumps(case["record"]))


def test_there_are_ten_and_each_shows_two_videos_and_an_image() -> None:
    assert len(VECTORS["cases"]) == 10
    for case in VECTORS["cases"]:
        record = record_of(case)
        assert len(record.videos) >= 2
        assert len(record.images) >= 1


@CASES
def test_ids_and_labels_equal_those_of_the_whole_text(case: dict[str, Any]) -> None:
    tokens = conversation_tokens(
        record_of(case), tokenizer=RecordedTokenizer(), vision_token_counts=case["counts"]
    )
    assert tokens.ids == case["ids"]
    assert tokens.labels == case["labels"]


@CASES
def test_loss_of_the_last_turn_is_the_end_of_the_recorded_labels(case: dict[str, Any]) -> None:
    tokens = conversation_tokens(
        record_of(case),
        tokenizer=RecordedTokenizer(),
        vision_token_counts=case["counts"],
        loss="last",
    )
    learned = [label for label in tokens.labels if label != IGNORED_LABEL]
    recorded = [label for label in case["labels"] if label != IGNORED_LABEL]
    closings = [
        i for i, label in enumerate(recorded) if label == VECTORS["pieces"]["<|im_end|>"][0]
    ]
    begin = closings[-2] + 1 if len(closings) > 1 else 0
    assert learned == recorded[begin:]
