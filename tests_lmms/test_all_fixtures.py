"""The embedded model answers the fixtures of every listed task through lmms-eval."""

import pytest
from lmms_eval.evaluator import simple_evaluate

from videonsa.evals.field.lmms_model import VideoNSAChat
from videonsa.evals.field.sample_log import read_samples
from videonsa.evals.field.tasks import JUDGED, LmmsScoring, task_files

TASKS = (
    *("longvideobench_val_v", "mlvu_dev", "mlvu_test", "timescope", "longtimescope", "tomato"),
    *("vsibench", "lsdbench", "videoevalpro", "videomme", "videomme_v2", "lvbench", "mvbench"),
)
ASKED = tuple(JUDGED.get(task, task) for task in TASKS)
"""In place of what a judge weighs, the task that asks for letters about the same rows."""
NUM_SAMPLES = 5 + 7 + 9 + 5 + 5 + 6 + 10 + 4 + 4 + 4 + 16 + 4 + 20 * 2
METHODS = ("nsa:block_size=32,window_size=64", "dense", "fastv+nsa", "minference")
DRAWS = "longvideobench_val_v"
"""lmms-eval itself draws from the state that the run before left behind."""


@pytest.mark.parametrize("method", METHODS)
def test_every_task_is_asked_and_scored_as_from_the_log(method, tmp_path):
    model = VideoNSAChat(
        pretrained="embedded",
        device="cpu",
        method=method,
        max_num_frames=4,
        batch_size=4,
        log=str(tmp_path / "log"),
    )
    found = simple_evaluate(
        model=model,
        tasks=list(ASKED),
        task_manager=task_files(ASKED),
        batch_size=4,
        gen_kwargs="max_new_tokens=6",
        log_samples=False,
        bootstrap_iters=0,
        process_docs_parallel=1,
    )
    lines = read_samples(tmp_path / "log")
    assert [line.failure for line in lines if line.failure is not None] == []
    assert len(lines) == NUM_SAMPLES
    assert {len(line.vision[0].seconds) for line in lines} == {4}
    assert {line.method for line in lines} == {model.qa.model.method.full_name}
    tasks = sorted({line.task for line in lines})
    assert len(tasks) == len(ASKED) - 1 + 20
    for task in tasks:
        scoring = LmmsScoring(task)
        scores = [
            scoring.score(line.doc, line.doc_id, line.answer) for line in lines if line.task == task
        ]
        if task != DRAWS:
            reported = found["results"][task]
            for metric, value in scoring.totals(scores).values.items():
                assert reported[f"{metric},none"] == pytest.approx(value), (task, metric)
