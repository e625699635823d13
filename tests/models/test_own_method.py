"""A method written here runs through `load`, `ask`, the suite and `plan`: no file knows of it."""

import json
from dataclasses import dataclass

import pytest
import torch

import videonsa
from videonsa.errors import UsageError
from videonsa.evals.runner import run_task
from videonsa.evals.tasks.suite.report_markdown import render_suite
from videonsa.evals.tasks.suite.suite_run import SuiteRun
from videonsa.evals.tasks.suite.suite_summary import summarise
from videonsa.evals.tasks.suite.suite_task import SuiteTask
from videonsa.evals.tasks.suite.video_answerer import ModelAnswerer
from videonsa.models.dense import dense_attention
from videonsa.models.methods import NSA, AttentionMethod, ReleasedNSA, nsa_method
from videonsa.ops.spec import NSASpec


@dataclass(frozen=True)
class SlidingWindow(AttentionMethod):
    """Every token attends to the last `size` tokens."""

    name = "sliding_window"
    is_chunked = True
    size: int = 8

    def attend(self, layer, hidden, q, k, v, step):
        first = k.shape[1] - q.shape[1]
        outputs = []
        for row in range(q.shape[1]):
            keys = slice(max(first + row + 1 - self.size, 0), first + row + 1)
            outputs.append(dense_attention(q[:, row : row + 1], k[:, keys], v[:, keys]))
        return torch.cat(outputs, dim=1)

    def parameters(self):
        return {"size": self.size}

    def attended_keys(self, tokens_per_frame):
        return self.size


METHOD = SlidingWindow(size=12)


def test_it_answers_through_load_and_ask(tiny_folder, clip_path):
    qa = videonsa.load(tiny_folder, method=METHOD, device="cpu")
    answer = qa.ask(clip_path, "What moves?", max_new_tokens=4)
    assert answer.usage.attention == "sliding_window"
    assert answer.usage.spec == {"size": 12}
    assert answer.usage.budget.keys == 12
    assert not qa.model.config.gates, "it uses none, so none are loaded"


def test_a_window_of_all_tokens_is_dense_attention(tiny_folder, clip_path):
    texts = [
        videonsa.load(tiny_folder, method=method, device="cpu").ask(clip_path, "What?").text
        for method in (SlidingWindow(size=10_000), "dense")
    ]
    assert texts[0] == texts[1]


def test_another_window_gives_other_logits_and_chunks_the_same(tiny_folder):
    model = videonsa.load(tiny_folder, method=METHOD, device="cpu").model
    ids = torch.arange(40, 80)[None]
    with torch.inference_mode():
        whole = model(ids, rows_per_chunk=0).logits
        chunks = model(ids, rows_per_chunk=16).logits
        wide = model(ids, method=SlidingWindow(size=40)).logits
    torch.testing.assert_close(chunks, whole)
    assert (wide - whole).abs().max() > 1e-6


def test_it_is_planned_as_it_is_asked(tiny_folder, clip_path):
    plan = videonsa.plan_video(clip_path, tiny_folder, method=METHOD)
    usage = videonsa.load(tiny_folder, method=METHOD, device="cpu").ask(clip_path, "What?").usage
    assert plan.attention == usage.attention
    assert plan.spec == usage.spec
    assert plan.budget.keys == usage.budget.keys
    assert plan.memory.total > 0
    json.dumps(plan.to_dict())


def test_the_suite_asks_it(tiny_folder, tmp_path):
    qa = videonsa.load(tiny_folder, method=METHOD, device="cpu")
    run = SuiteRun(
        model="tiny",
        lengths=(256,),
        samples=1,
        kinds=("needle",),
        conditions=("whole",),
        attention=METHOD.name,
    )
    task = SuiteTask(run, ModelAnswerer(qa, run))
    lines = run_task(task, tmp_path, machine={}, progress=False)
    assert {(line.attention, line.attended_keys) for line in lines} == {("sliding_window", 12)}
    assert all(line.spec == {"size": 12} for line in lines)
    assert "sliding_window attention (size = 12)" in render_suite(
        summarise(lines) | {"run": {"machine": {}, "seconds": 1.0}}, title="# A", figures=()
    )


def test_notes_name_it_where_the_gates_are_left_out_or_never_were(tiny_folder, tmp_path):
    left_out = videonsa.load(tiny_folder, method=METHOD, device="cpu")
    note = "sliding_window attention was asked for: the gates of these weights are left out"
    assert note in left_out.notes
    left_out.model.save_pretrained(tmp_path)
    left_out.tokenizer.save_pretrained(tmp_path)
    again = videonsa.load(tmp_path, method=METHOD, device="cpu")
    assert "these weights have no gates: attention is sliding_window" in again.notes


@pytest.mark.parametrize("method", ["sliding", 3])
def test_what_is_no_method_is_refused_by_that_word(tiny_folder, method):
    with pytest.raises(UsageError, match=f"method={method!r}: want one of 'dense'"):
        videonsa.load(tiny_folder, method=method, device="cpu")


class OneRow(AttentionMethod):
    name = "one row"

    def attend(self, layer, hidden, q, k, v, step):
        return q[:, :1]  # would broadcast


class Nameless(AttentionMethod):
    def attend(self, layer, hidden, q, k, v, step):
        return q


def test_an_output_of_another_shape_is_refused(tiny_folder, clip_path):
    qa = videonsa.load(tiny_folder, method=OneRow(), device="cpu")
    with pytest.raises(UsageError, match=r"'one row' gave an output \[1, 1, 4, 16\]: want \[1, "):
        qa.ask(clip_path, "What?")


def test_a_method_without_a_name_is_refused(tiny_folder):
    with pytest.raises(UsageError, match="class Nameless has no name"):
        videonsa.load(tiny_folder, method=Nameless(), device="cpu")


@pytest.mark.parametrize("pair", [(NSA, NSASpec.released()), (ReleasedNSA, NSASpec())])
def test_a_spec_of_the_other_class_is_refused(pair):
    kind, spec = pair
    with pytest.raises(UsageError, match=f"^{kind.__name__} with a spec of stream"):
        kind(spec)
    assert type(nsa_method(spec)) is not kind


def test_packed_samples_that_it_would_not_keep_apart_are_refused(tiny_folder):
    model = videonsa.load(tiny_folder, method=METHOD, device="cpu").model
    packed = {"input_ids": torch.arange(40, 50)[None], "cu_seqlens": torch.tensor([0, 4, 10]).int()}
    with pytest.raises(
        UsageError, match="cu_seqlens with method 'sliding_window', which takes no packed"
    ):
        model(**packed)
    model(**packed, method="dense")
