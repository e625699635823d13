"""Can a small decoder tell where things stand? By which pairs of a head turn with rows and columns.

`python -m benchmarks.study.position_probe --out position_probe.json`, on a CPU, about 10 minutes.
A frame is 4 x 4 tokens, three of them objects whose embeddings say which, not where; a question
names one or two. The answer needs positions, and these come from mRoPE and causality alone. Both
ways share weights, batches and steps; guessing is 25 %, and a difference of 5 points would be seen.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from benchmarks.study.base_model import INTERLEAVED
from videonsa.disk import write_atomic
from videonsa.machine import measurement_facts

SECTIONS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {"contiguous": (16, 8, 8), "interleaved": INTERLEAVED}
)
TASKS = ("place", "relation")
STEPS, BATCH, RATE, WARM_UP = 2000, 64, 5e-4, 100
LAST = 200
"""Steps over whose batches, each seen once, the accuracy is taken."""
SIDE, NAMES, OBJECTS = 4, 36, 3
EMPTY, TEXT, BEHIND, WORDS = 40, 41, 43, 64
BEFORE = 15
"""Tokens of text before the frame."""
TAIL = 8
"""And behind it, before the names that are asked about."""
HIDDEN = 128


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write")
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args(arguments)
    ways = [(task, name, args.steps) for task in TASKS for name in SECTIONS]
    with ProcessPoolExecutor(max_workers=2) as pool:
        runs = list(pool.map(run, *zip(*ways, strict=True)))
    result = {
        "what": "accuracy over the last batches before each step, of a decoder of 4 layers of 128",
        "steps": args.steps,
        "batch": BATCH,
        "learning_rate": RATE,
        "guessing": 0.25,
        "runs": runs,
        "machine": measurement_facts(torch.device("cpu")),
    }
    write_atomic(args.out, (json.dumps(result, indent=1) + "\n").encode())
    for one in runs:
        sys.stdout.write(f"{one['task']} {one['sections']}: {100 * one['accuracy'][-1]:.1f} %\n")
    return 0


def run(task: str, sections: str, steps: int) -> dict[str, Any]:
    """Train one decoder on a task."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = _decoder(SECTIONS[sections])
    words, head = nn.Embedding(WORDS, HIDDEN), nn.Linear(HIDDEN, 4)
    nn.init.normal_(words.weight, std=0.02)
    weights = [*model.parameters(), *words.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=RATE, betas=(0.9, 0.98), weight_decay=0.05)
    right: list[float] = []
    accuracy: list[float] = []
    for step in range(1, steps + 1):
        ids, positions, answers = _batch(task)
        out = model(inputs_embeds=words(ids), position_ids=positions, use_cache=False)
        logits = head(out.last_hidden_state[:, -1])
        optimizer.zero_grad()
        F.cross_entropy(logits, answers).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, step / WARM_UP)
        optimizer.step()
        right.append(float((logits.argmax(-1) == answers).float().mean()))
        if step % LAST == 0 or step == steps:
            accuracy.append(round(sum(right[-LAST:]) / len(right[-LAST:]), 4))
    return {"task": task, "sections": sections, "every": LAST, "accuracy": accuracy}


def _decoder(sections: tuple[int, ...]) -> nn.Module:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": list(sections)}
    config = Qwen2_5_VLTextConfig(
        vocab_size=WORDS,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        rope_parameters=rope,
    )
    model: nn.Module = Qwen2_5_VLTextModel(config)
    return model


def _batch(task: str) -> tuple[Tensor, Tensor, Tensor]:
    """Ids `[B, T]`, position ids `[3, B, T]` and answers `[B]`: a corner, or a side."""
    names = torch.rand(BATCH, NAMES).argsort(1)[:, :OBJECTS]
    corners = torch.rand(BATCH, 4).argsort(1)[:, :OBJECTS]
    within = torch.randint(2, (BATCH, OBJECTS, 2))
    rows, columns = 2 * (corners // 2) + within[..., 0], 2 * (corners % 2) + within[..., 1]
    frame = torch.full((BATCH, SIDE**2), EMPTY).scatter_(1, SIDE * rows + columns, names)
    if task == "place":
        asked, answers = names[:, :1], corners[:, 0]
    else:
        down, right = rows[:, 0] - rows[:, 1], columns[:, 0] - columns[:, 1]
        vertical = down.abs() >= right.abs()
        asked = names[:, :2]
        answers = torch.where(vertical, (down < 0).long(), 2 + (right < 0).long())
    text = torch.full((BATCH, BEFORE), TEXT)
    ids = torch.cat([text, frame, torch.full((BATCH, TAIL), BEHIND), asked], dim=1)
    place = torch.arange(SIDE**2)
    before, after = torch.arange(BEFORE), BEFORE + SIDE + torch.arange(TAIL + asked.shape[1])
    axes = (torch.zeros_like(place), place // SIDE, place % SIDE)
    positions = torch.stack([torch.cat([before, BEFORE + axis, after]) for axis in axes])
    return ids, positions[:, None].expand(3, BATCH, -1), answers


if __name__ == "__main__":
    sys.exit(main())
