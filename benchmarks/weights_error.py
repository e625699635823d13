"""Errors of bf16, int8 and fp8 against float32: logits and greedy answers after a long video.

    python benchmarks/weights_error.py --device cuda

The embedded model and the study's twins watch videos of the suite and are asked its questions. The
answers of float32 are read by all, so that logits of the same tokens are compared; then each writes
its own. Written to benchmarks/results/<device>/weights_error.json.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from videonsa.disk import write_atomic
from videonsa.evals.scoring import exact_match
from videonsa.machine import measurement_facts, slug
from videonsa.models.cache import VideoNSACache
from videonsa.models.checkpoints.loading import load_model
from videonsa.models.checkpoints.quantised import WEIGHTS, quantise
from videonsa.models.checkpoints.tokenizer import load_tokenizer
from videonsa.models.locate import locate_model
from videonsa.rendered.suite import (
    Script,
    SuiteSpec,
    frames_for_tokens,
    iter_frames,
    make_script,
    suite_seed,
)
from videonsa.video.chat import VisionSlot, chat_tokens

FORMAT = "videonsa weights error 1"
METHOD = (
    "relative error: norm of the difference to float32 over the norm of float32's logits, of the "
    "text after the video (question and answer) and of the rows that give the answer's tokens, "
    "median and largest of all questions; agreement: share of the answer's tokens that are the "
    "likeliest where float32's answer is read, and share of the questions whose own greedy answer "
    "is float32's; int8 and fp8 have bfloat16 outside of their products; fp8 on a CPU multiplies "
    "the same numbers, summed in float32"
)
MODELS = ("embedded", "checkpoints/study-nsa", "checkpoints/study-dense")
KINDS = ("bfloat16", "int8", "fp8")
FRAME_SIZE = 112
MOST_TOKENS = 12
"""Of an answer."""


class Asked(NamedTuple):
    """A question as tokens, and what float32 says to it."""

    ids: list[int]
    answer: list[int]
    logits: Tensor  # [T, V] of ids and answer


class Watcher:
    """A model of some weights that has watched a video."""

    def __init__(self, name: str, kind: str, script: Script, device: torch.device) -> None:
        dtype = torch.float32 if kind == "float32" else torch.bfloat16
        loaded = load_model(locate_model(name), dtype=dtype, device=device)
        self.model, self.tokenizer = loaded.model, load_tokenizer(loaded.folder)
        # Not by `load_model`, which refuses fp8 on a CPU: there it is no faster.
        if kind in WEIGHTS:
            quantise(self.model, kind, device)
        self.cache = VideoNSACache()
        self.length = self._watch(script)

    def _watch(self, script: Script) -> int:
        features = self.model.encode_frames(iter_frames(script))
        head, _ = self._parts("?", len(features))
        ids = self._tensor(head)
        patches, side = script.num_frames // 2, script.spec.frame_size // 14
        self.model(
            input_ids=ids,
            inputs_embeds=self.model.embed_prompt(ids, video_features=features),
            video_grid_thw=torch.tensor([[patches, side, side]]),
            video_times=[[float(second) for second in range(patches)]],
            past_key_values=self.cache,
            logits_to_keep=1,
        )
        return len(head)

    def question(self, text: str) -> list[int]:
        """Tokens of a question after the video."""
        return self._parts(text, 1)[1]

    def logits(self, ids: list[int]) -> Tensor:
        """Of tokens after the video, float32 `[T, V]` on the CPU; forgotten again."""
        rows = self.model(input_ids=self._tensor(ids), past_key_values=self.cache).logits[0]
        self.cache.crop(self.length - self.cache.get_seq_length())
        return rows.float().cpu()

    def write(self, ids: list[int]) -> list[int]:
        """The greedy answer, with the token that ends it."""
        answer: list[int] = []
        new = ids
        while len(answer) < MOST_TOKENS and self.tokenizer.eos_token_id not in answer:
            rows = self.model(
                input_ids=self._tensor(new), past_key_values=self.cache, logits_to_keep=1
            )
            new = [int(rows.logits[0, -1].argmax())]
            answer += new
        self.cache.crop(self.length - self.cache.get_seq_length())
        return answer

    def text(self, answer: list[int]) -> str:
        """An answer in words."""
        return str(self.tokenizer.decode(answer, skip_special_tokens=True))

    def _parts(self, text: str, video_tokens: int) -> tuple[list[int], list[int]]:
        slot = VisionSlot("video", video_tokens)
        ids = chat_tokens(text, vision=[slot], tokenizer=self.tokenizer).ids
        end = ids.index(self.model.config.vision_end_token_id) + 1
        return ids[:end], ids[end:]

    def _tensor(self, ids: list[int]) -> Tensor:
        return torch.tensor([ids], device=self.model.device)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over that of what was wanted."""
    return float((found - wanted).norm() / wanted.norm())


def compare(watcher: Watcher, asked: list[Asked]) -> list[dict[str, Any]]:
    """Each question: both errors, tokens that agree, and the own answer."""
    found = []
    for ids, answer, wanted in asked:
        logits = watcher.logits(ids + answer)
        rows = slice(len(ids) - 1, len(ids) + len(answer) - 1)
        own = watcher.write(ids)
        found.append(
            {
                "text_error": relative_error(logits, wanted),
                "answer_error": relative_error(logits[rows], wanted[rows]),
                "agreeing": int((logits[rows].argmax(-1) == torch.tensor(answer)).sum()),
                "answer_tokens": len(answer),
                "same_answer": own == answer,
                "reply": watcher.text(own),
            }
        )
    return found


def summary(rows: list[dict[str, Any]], answers: list[str]) -> dict[str, Any]:
    """Of all questions to one kind of weights."""
    errors = {
        f"{what}_{name}": function(row[what] for row in rows)
        for what in ("text_error", "answer_error")
        for name, function in (("median", statistics.median), ("largest", max))
    }
    return {
        **errors,
        "answer_tokens": sum(row["answer_tokens"] for row in rows),
        "agreeing_tokens": sum(row["agreeing"] for row in rows),
        "questions": len(rows),
        "same_answers": sum(row["same_answer"] for row in rows),
        "right": sum(exact_match(row["reply"], a) for row, a in zip(rows, answers, strict=True)),
    }


@torch.inference_mode()
def measure(name: str, scripts: list[Script], device: torch.device) -> dict[str, Any]:
    """All kinds of weights of one model."""
    found: dict[str, list[dict[str, Any]]] = {"float32": [], **{kind: [] for kind in KINDS}}
    answers = [question.answer for script in scripts for question in script.questions]
    for script in scripts:
        exact = Watcher(name, "float32", script, device)
        asked = []
        for question in script.questions:
            ids = exact.question(question.text)
            answer = exact.write(ids)
            asked.append(Asked(ids, answer, exact.logits(ids + answer)))
        found["float32"] += compare(exact, asked)
        for kind in KINDS:
            found[kind] += compare(Watcher(name, kind, script, device), asked)
    return {kind: summary(rows, answers) for kind, rows in found.items()}


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME")
    parser.add_argument("--tokens", type=int, default=16_384, help="of a video")
    parser.add_argument("--videos", type=int, default=3)
    parser.add_argument("--out", type=Path, help="the JSON; by default that of the device")
    options = parser.parse_args()
    device = torch.device(options.device)
    frames = frames_for_tokens(options.tokens, frame_size=FRAME_SIZE)
    spec = SuiteSpec(num_frames=frames, frame_size=FRAME_SIZE)
    scripts = [make_script(suite_seed("test", i), spec=spec) for i in range(options.videos)]
    machine = measurement_facts(device)
    result: dict[str, Any] = {
        "format": FORMAT,
        "method": METHOD,
        "machine": machine,
        "tokens": options.tokens,
        "videos": options.videos,
        "models": {},
    }
    folder = "cpu" if options.device == "cpu" else slug(machine["device"])
    path = options.out or Path(f"benchmarks/results/{folder}/weights_error.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in options.models:
        start = time.perf_counter()
        result["models"][name] = measure(name, scripts, device)
        seconds = time.perf_counter() - start
        print(f"{name}, {seconds:.0f} s")
        for kind, row in result["models"][name].items():
            print(f"  {kind:<9}", *(f"{k} {v:.3g}" for k, v in row.items()))
        write_atomic(path, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
