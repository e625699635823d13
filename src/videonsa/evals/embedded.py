"""Score a model on rendered clips it was never trained on, whole and with parts taken away.

`python -m videonsa.evals.embedded --out FILE.json` answers questions of each kind under each
condition; `python -m videonsa.evals.report` turns the JSON into docs/results.md.
"""

import argparse
import json
import platform
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from videonsa.evals.statistics import Accuracy, best_constant, is_right
from videonsa.inference.locate import locate_model
from videonsa.models.loading import load_model
from videonsa.models.modeling import VideoNSAForConditionalGeneration
from videonsa.ops.spec import BRANCHES
from videonsa.video.chat import VisionSlot, chat_tokens
from videonsa.video.synthetic import (
    KINDS,
    TOKENS_PER_PATCH,
    Question,
    Scene,
    SceneBatch,
    ask_about,
    make_scene,
    scene_seed,
    video_inputs,
)
from videonsa.video.synthetic.scene import SAMPLE_PERIOD

GREY = 128
MAX_ANSWER_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Condition:
    """What a run leaves of the model and of the video."""

    branches: tuple[str, ...] = BRANCHES
    grey: bool = False


CONDITIONS = {
    "whole": Condition(),
    "frames replaced by grey": Condition(grey=True),
    **{
        f"without the {off} branch": Condition(tuple(b for b in BRANCHES if b != off))
        for off in BRANCHES
    },
    "without all attention of vision rows": Condition(branches=()),
}


def draw_questions(
    kind: str, *, clips: int, duration: float, first: int = 0
) -> Iterator[tuple[Scene, Question]]:
    """The first `clips` test scenes, from number `first` on, that have a question of this kind."""
    scenes = (make_scene(scene_seed("test", i), duration=duration) for i in count(first))
    asked = ((scene, ask_about(scene, kind)) for scene in scenes)
    return islice(((scene, q) for scene, q in asked if q is not None), clips)


@torch.inference_mode()
def answer_batch(
    model: VideoNSAForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[tuple[Scene, Question]],
    *,
    frames: int,
    condition: Condition,
) -> list[str]:
    """Answer one question about each clip of a batch, greedily, from `frames` frames at 2 fps."""
    device = model.device
    times = SAMPLE_PERIOD * torch.arange(frames, device=device)
    noise = torch.Generator(device).manual_seed(asked[0][0].seed)
    scenes = SceneBatch.of([scene for scene, _ in asked]).to(device)
    clips = scenes.render(times, generator=noise)
    if condition.grey:
        clips.fill_(GREY)
    slot = VisionSlot("video", frames // 2 * TOKENS_PER_PATCH)
    prompts = [
        chat_tokens(question.text, vision=[slot], tokenizer=tokenizer).ids for _, question in asked
    ]
    length = max(len(ids) for ids in prompts)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (length - len(ids)) + ids for ids in prompts], device=device)
    mask = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in prompts])
    spec = model.config.nsa_spec.with_options(branches=condition.branches)
    output = model.generate(
        input_ids=ids,
        attention_mask=mask.to(device),
        **video_inputs(clips),
        nsa_spec=spec,
        max_new_tokens=MAX_ANSWER_TOKENS,
        do_sample=False,
    )
    return list(tokenizer.batch_decode(output[:, length:], skip_special_tokens=True))


def evaluate(
    model: VideoNSAForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    *,
    clips: int,
    frames: int,
    batch_size: int,
    log: Path | None,
) -> dict[str, Any]:
    """Score every kind under every condition; each answer goes to `log` as a JSON line."""
    duration = frames * SAMPLE_PERIOD
    asked = {kind: list(draw_questions(kind, clips=clips, duration=duration)) for kind in KINDS}
    scores: dict[str, dict[str, Accuracy]] = defaultdict(dict)
    lines: list[str] = []
    work = [(name, kind) for name in CONDITIONS for kind in KINDS]
    for name, kind in tqdm(work, desc="scoring", unit="table cell"):
        right = 0
        for start in range(0, clips, batch_size):
            batch = asked[kind][start : start + batch_size]
            replies = answer_batch(
                model, tokenizer, batch, frames=frames, condition=CONDITIONS[name]
            )
            for (scene, question), reply in zip(batch, replies, strict=True):
                right += is_right(reply, question)
                entry = {"condition": name, "kind": kind, "seed": scene.seed}
                entry |= {"question": question.text, "answer": question.answer, "reply": reply}
                lines.append(json.dumps(entry))
        scores[name][kind] = Accuracy(right, clips)
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("\n".join(lines) + "\n")
    constant = {kind: best_constant([question for _, question in asked[kind]]) for kind in KINDS}
    return {
        "kinds": list(KINDS),
        "clips_per_kind": clips,
        "frames": frames,
        "conditions": {name: _with_total(by_kind) for name, by_kind in scores.items()},
        "constant": _with_total(constant),
    }


def _with_total(by_kind: dict[str, Accuracy]) -> dict[str, dict[str, int]]:
    right = sum(accuracy.right for accuracy in by_kind.values())
    total = sum(accuracy.total for accuracy in by_kind.values())
    rows = by_kind | {"all": Accuracy(right, total)}
    return {kind: {"right": row.right, "total": row.total} for kind, row in rows.items()}


def result_facts(model: VideoNSAForConditionalGeneration, frames: int) -> dict[str, Any]:
    """What was scored, where and with what, for the JSON."""
    spec = model.config.nsa_spec
    device = model.device
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    size = TOKENS_PER_PATCH if spec.block_size == "frame" else spec.block_size
    return {
        "video_tokens": frames // 2 * TOKENS_PER_PATCH,
        "num_selected_blocks": spec.num_selected_blocks,
        "block_size": size,
        "window_size": spec.window_size,
        "attention_keys": spec.attention_keys(TOKENS_PER_PATCH),
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "commit": commit or "unknown",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded", metavar="ID_OR_PATH")
    parser.add_argument("--clips", type=int, default=200, help="clips of each kind of question")
    parser.add_argument("--frames", type=int, default=48, help="frames of a clip, at 2 fps")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--log", type=Path, help="every question with its reply, as JSON lines")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = locate_model(args.model)
    model = load_model(folder, device=device, dtype=torch.float32).model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    start = time.monotonic()
    result = evaluate(
        model,
        tokenizer,
        clips=args.clips,
        frames=args.frames,
        batch_size=args.batch_size,
        log=args.log,
    )
    result |= result_facts(model, args.frames) | {"seconds": round(time.monotonic() - start, 1)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
