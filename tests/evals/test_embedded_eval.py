"""Scoring the embedded model, and writing the results."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from videonsa.evals.embedded import (
    CONDITIONS,
    answer_batch,
    draw_questions,
    evaluate,
    result_facts,
)
from videonsa.evals.report import render
from videonsa.evals.statistics import is_right
from videonsa.inference.locate import locate_model
from videonsa.models.loading import load_model
from videonsa.video.synthetic import KINDS, scene_seed

FRAMES = 48


@pytest.fixture(scope="module")
def embedded():
    folder = locate_model("embedded")
    model = load_model(folder, dtype=torch.float32).model
    return model, AutoTokenizer.from_pretrained(folder)


def score(embedded, kind: str, condition: str, clips: int = 12) -> int:
    asked = list(draw_questions(kind, clips=clips, duration=FRAMES / 2))
    replies = answer_batch(*embedded, asked, frames=FRAMES, condition=CONDITIONS[condition])
    return sum(is_right(reply, q) for reply, (_, q) in zip(replies, asked, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_embedded_model_answers_unseen_clips(embedded, kind) -> None:
    assert score(embedded, kind, "whole") >= 9


def test_it_cannot_answer_without_frames(embedded) -> None:
    assert score(embedded, "flash", "frames replaced by grey") <= 3


def test_questions_come_from_test_seeds_only() -> None:
    asked = draw_questions("order", clips=20, duration=FRAMES / 2)
    assert all(scene.seed >= scene_seed("test", 0) for scene, _ in asked)


def test_clips_are_at_least_eight_times_what_a_row_attends_to(embedded) -> None:
    facts = result_facts(embedded[0], FRAMES)
    assert facts["video_tokens"] >= 8 * facts["attention_keys"]


def test_results_become_a_page_with_every_condition_and_the_guesser(embedded, tmp_path) -> None:
    model, tokenizer = embedded
    log = tmp_path / "log.jsonl"
    result = evaluate(model, tokenizer, clips=1, frames=16, batch_size=1, log=log)
    assert len(log.read_text().splitlines()) == len(CONDITIONS) * len(KINDS)
    result |= result_facts(model, 16) | {"seconds": 1.0}
    folder = tmp_path / "results" / "cpu"
    folder.mkdir(parents=True)
    (folder / "embedded.json").write_text(json.dumps(result))
    page = render(tmp_path / "results")
    for name in (*CONDITIONS, "best constant answer"):
        assert f"| {name} |" in page
