"""Scoring the embedded model, and writing the results."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.embedded import (
    CONDITIONS,
    ClipAnswerer,
    draw_quiz,
    evaluate,
    result_facts,
    score,
)
from benchmarks.report.__main__ import ABLATIONS, render
from videonsa.evals.scoring import exact_match
from videonsa.models.checkpoints.loading import load_model
from videonsa.models.locate import locate_model
from videonsa.rendered.clips import KINDS, SceneBatch, scene_seed, video_inputs
from videonsa.video.chat import VisionSlot, chat_tokens

FRAMES = 48


@pytest.fixture(scope="module")
def embedded():
    folder = locate_model("embedded")
    model = load_model(folder, dtype=torch.float32).model
    return model, AutoTokenizer.from_pretrained(folder)


def count_right(embedded, condition: str, clips: int = 12) -> dict[str, int]:
    quiz = draw_quiz(clips, duration=FRAMES / 2)
    right = dict.fromkeys(KINDS, 0)
    for kind, _, question, reply in score(
        ClipAnswerer(*embedded, CONDITIONS[condition]), quiz, frames=FRAMES, batch_size=8
    ):
        right[kind] += exact_match(reply, question.answer)
    return right


def test_the_embedded_model_answers_unseen_clips_and_not_without_frames(embedded) -> None:
    assert min(count_right(embedded, "whole").values()) >= 9
    grey = count_right(embedded, "frames replaced by grey", clips=6)
    assert sum(grey.values()) < 0.5 * 6 * len(KINDS)


def test_asking_after_watching_equals_asking_in_one_prompt(embedded) -> None:
    model, tokenizer = embedded
    quiz = draw_quiz(2, duration=8.0)
    answerer = ClipAnswerer(model, tokenizer, CONDITIONS["whole"])
    watched = answerer.watch(quiz.scenes[:1], frames=16)
    question = quiz.questions["when"][0][1]
    frames = SceneBatch.of(quiz.scenes[:1]).render(
        0.5 * torch.arange(16), generator=torch.Generator().manual_seed(quiz.scenes[0].seed)
    )
    prompt = chat_tokens(question.text, vision=[VisionSlot("video", 128)], tokenizer=tokenizer)
    output = model.generate(
        input_ids=torch.tensor([prompt.ids]), **video_inputs(frames), max_new_tokens=8
    )
    text = tokenizer.decode(output[0, len(prompt.ids) :], skip_special_tokens=True)
    assert answerer.answer(watched, [(0, question)]) == [text]


def test_a_quiz_has_test_seeds_only_and_as_many_questions_as_asked_for() -> None:
    quiz = draw_quiz(20, duration=FRAMES / 2)
    assert all(scene.seed >= scene_seed("test", 0) for scene in quiz.scenes)
    assert {len(asked) for asked in quiz.questions.values()} == {20}


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
        assert f"| {ABLATIONS.get(name, name)} |" in page
    assert set(ABLATIONS) < set(CONDITIONS)
