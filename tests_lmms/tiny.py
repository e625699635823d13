"""Tasks about two small videos, as files that lmms-eval takes by `--include_path`."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from videonsa.evals.field.sample_line import SampleLine
from videonsa.evals.field.sample_log import read_samples

FUNCTIONS = """
from PIL import Image


def visual(doc):
    if doc["video"] == "the task ends the process":
        raise SystemExit("video is missing")
    return [doc["video"]]


def text(doc, lmms_eval_specific_kwargs=None, round_idx=None, previous_output=None, **more):
    if round_idx is None:
        return doc["question"]
    ends = round_idx == 2
    return [doc["video"]], f"You said {previous_output[-1]!r}. Sure?", ends, previous_output, None


def choices(doc):
    return ["red", "a square that moves"]


def right(doc):
    return 1


def messages(doc, lmms_eval_specific_kwargs=None):
    picture = Image.new("RGB", (84, 56), (doc["number"], 0, 0))
    return [
        {"role": "system", "content": [{"type": "text", "text": "Look well."}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "First: "},
                {"type": "video", "url": doc["video"], "start_time": 0.5, "end_time": 1.5},
                {"type": "image", "url": picture},
                {"type": "text", "text": " and then "},
                {"type": "video", "url": doc["other"]},
                {"type": "text", "text": doc["question"]},
            ],
        },
    ]


def results(doc, answers):
    return {"tiny_acc": float(doc["answer"] in str(answers[0]))}
"""
_SHARED = """
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
task: {task}
test_split: test
output_type: {output_type}
doc_to_text: !function functions.text
doc_to_target: "{target}"
metadata:
  version: 0.0
"""
_GENERATED = """
process_results: !function functions.results
metric_list:
  - metric: tiny_acc
    aggregation: mean
    higher_is_better: true
generation_kwargs:
  max_new_tokens: 6
  temperature: 0
"""
_SHOWN = "doc_to_visual: !function functions.visual\n"
_WEIGHED = """
doc_to_choice: !function functions.choices
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
TASKS = {
    "tiny": ("generate_until", "answer", _SHOWN + _GENERATED),
    "tiny_mixed": (
        "generate_until",
        "answer",
        "doc_to_messages: !function functions.messages\n" + _SHOWN + _GENERATED,
    ),
    "tiny_rounds": ("generate_until_multi_round", "answer", _SHOWN + _GENERATED),
    "tiny_weighed": ("multiple_choice", "right", _SHOWN + _WEIGHED),
}
"""By name: what is asked for, the field that holds the truth, and what else its file says."""


def write_video(path: Path, *, num_frames: int, bright: int, kind: str = "mp4") -> Path:
    """Frames at 2 a second, 112 x 112: a square of one brightness moves over black."""
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width = stream.height = 112
        stream.pix_fmt = "yuv420p"
        for index in range(num_frames):
            picture = np.zeros((112, 112, 3), np.uint8)
            picture[30:60, 8 * index : 8 * index + 30] = bright
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_tasks(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """The tasks in a folder, about these rows."""
    folder.mkdir()
    (folder / "functions.py").write_text(FUNCTIONS)
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, (output_type, target, more) in TASKS.items():
        shared = _SHARED.format(rows=data, task=name, output_type=output_type, target=target)
        (folder / f"{name}.yaml").write_text(shared + more)
    return folder


def command(
    tasks: Path, model_args: str, *, task: str = "tiny", launcher: Sequence[str] = ()
) -> list[str]:
    """lmms-eval on the command line."""
    return [
        *(sys.executable, *launcher, "-m", "lmms_eval"),
        *("--model", "videonsa", "--model_args", model_args),
        *("--tasks", task, "--include_path", str(tasks), "--batch_size", "1"),
    ]


def run(*given: Any, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        command(*given, **more), capture_output=True, text=True, timeout=300, check=False
    )


def samples(folder: Path) -> list[SampleLine]:
    """The log of a run but for what hangs on order and time."""
    return [line.without_costs() for line in read_samples(folder)]
