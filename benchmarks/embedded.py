"""Score a model on rendered clips it was never trained on, as it is and with branches ablated.

`python -m benchmarks.embedded --out FILE.json` answers questions of each kind under each
condition; `python -m benchmarks.report` turns the JSON into docs/results.md.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from tqdm import tqdm

from videonsa.disk import write_atomic
from videonsa.evals.conditions import GREY, Condition, ablated, under
from videonsa.evals.scoring import Accuracy, best_constant, exact_match
from videonsa.inference.context import Context, EncodedVision, split_at_video, until_stop
from videonsa.inference.sampling import GenerationSettings
from videonsa.machine import evaluation_facts
from videonsa.models.checkpoints.loading import load_model
from videonsa.models.checkpoints.tokenizer import load_tokenizer
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.models.locate import locate_model
from videonsa.ops.spec import BRANCHES
from videonsa.rendered.clips import (
    KINDS,
    TOKENS_PER_PATCH,
    ClipQuestion,
    Scene,
    SceneBatch,
    ask_about,
    make_scene,
    scene_seed,
    video_inputs,
)
from videonsa.rendered.clips.scene import SAMPLE_PERIOD
from videonsa.video.chat import VisionSlot, chat_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_ANSWER_TOKENS = 8

CONDITIONS = {
    "whole": Condition(),
    "frames replaced by grey": Condition(video="grey"),
    **{f"without the {branch} branch": ablated(branch) for branch in BRANCHES},
    "without all attention of vision rows": Condition(branches=()),
}


class Quiz(NamedTuple):
    """Test scenes, and for each kind the questions about them: (number of the scene, question)."""

    scenes: list[Scene]
    questions: dict[str, list[tuple[int, ClipQuestion]]]


def draw_quiz(clips: int, *, duration: float, first: int = 0) -> Quiz:
    """The first test scenes, from number `first` on, that give `clips` questions of each kind."""
    scenes: list[Scene] = []
    questions: dict[str, list[tuple[int, ClipQuestion]]] = {kind: [] for kind in KINDS}
    while min(map(len, questions.values())) < clips:
        scene = make_scene(scene_seed("test", first + len(scenes)), duration=duration)
        for kind, asked in questions.items():
            question = ask_about(scene, kind)
            if question is not None and len(asked) < clips:
                asked.append((len(scenes), question))
        scenes.append(scene)
    return Quiz(scenes, questions)


class ClipAnswerer:
    """A model under a condition: sees a batch of clips once, then answers questions about them."""

    def __init__(
        self,
        model: VideoNSAForConditionalGeneration,
        tokenizer: "PreTrainedTokenizerBase",
        condition: Condition,
    ) -> None:
        self.model, self.tokenizer, self.condition = model, tokenizer, condition
        self.method = under(model.method, condition)

    @torch.inference_mode()
    def watch(self, scenes: Sequence[Scene], *, frames: int) -> Context:
        """Prefill the clips, `frames` frames each at 2 fps, up to where the question begins."""
        device = self.model.device
        times = SAMPLE_PERIOD * torch.arange(frames, device=device)
        noise = torch.Generator(device).manual_seed(scenes[0].seed)
        clips = SceneBatch.of(scenes).to(device).render(times, generator=noise)
        if self.condition.video == "grey":
            clips.fill_(GREY)
        slot = VisionSlot("video", frames // 2 * TOKENS_PER_PATCH)
        ids, _ = self._split(chat_tokens("?", vision=[slot], tokenizer=self.tokenizer).ids)
        context = Context(self.model, method=self.method)
        videos = self._encoded(video_inputs(clips))
        context.read(context.passage(torch.tensor([ids] * len(scenes)), videos))
        return context

    @torch.inference_mode()
    def answer(self, watched: Context, questions: Sequence[tuple[int, ClipQuestion]]) -> list[str]:
        """Answer questions greedily, each about one of the clips watched, which stay as they are.

        Args:
            watched: the clips.
            questions: the number of a clip, and what is asked about it.
        """
        cache = watched.cache.fork()
        cache.batch_select_indices(torch.tensor([number for number, _ in questions]))
        context = Context(self.model, method=self.method, cache=cache)
        slot = VisionSlot("video", 1)
        prompts = [
            self._split(chat_tokens(q.text, vision=[slot], tokenizer=self.tokenizer).ids)[1]
            for _, q in questions
        ]
        length = max(map(len, prompts))
        pad = [self.tokenizer.pad_token_id]
        ids = torch.tensor([pad * (length - len(p)) + p for p in prompts])
        mask = torch.tensor([[False] * (length - len(p)) + [True] * len(p) for p in prompts])
        stop_ids = {self.tokenizer.eos_token_id}
        steps = context.answer(
            context.passage(ids, mask=mask),
            settings=GenerationSettings(max_new_tokens=MAX_ANSWER_TOKENS),
            stop_ids=stop_ids,
        )
        rows = [until_stop(row, stop_ids) for row in zip(*steps, strict=True)]
        return [str(self.tokenizer.decode(row)) for row in rows]

    def _encoded(self, inputs: dict[str, Any]) -> list[EncodedVision]:
        """The clips, one of each sample."""
        grids = [(int(t), int(h), int(w)) for t, h, w in inputs["video_grid_thw"].tolist()]
        features = self.model.encode_vision(inputs["pixel_values_videos"], grids)
        parts = zip(features.chunk(len(grids)), grids, inputs["video_times"], strict=True)
        return [EncodedVision("video", part, grid, times) for part, grid, times in parts]

    def _split(self, ids: list[int]) -> tuple[list[int], list[int]]:
        """What stands up to the end of the video, and what after it."""
        return split_at_video(ids, self.model.config.vision_end_token_id)


def score(
    answerer: ClipAnswerer, quiz: Quiz, *, frames: int, batch_size: int
) -> Iterator[tuple[str, Scene, ClipQuestion, str]]:
    """Answer a quiz batch of clips by batch: (kind, scene, question, reply)."""
    for start in range(0, len(quiz.scenes), batch_size):
        scenes = quiz.scenes[start : start + batch_size]
        watched = answerer.watch(scenes, frames=frames)
        for kind, asked in quiz.questions.items():
            here = [(i - start, q) for i, q in asked if start <= i < start + len(scenes)]
            if not here:
                continue
            replies = answerer.answer(watched, here)
            for (i, question), reply in zip(here, replies, strict=True):
                yield kind, scenes[i], question, reply


def evaluate(
    model: VideoNSAForConditionalGeneration,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    clips: int,
    frames: int,
    batch_size: int,
    log: Path | None,
) -> dict[str, Any]:
    """Score every kind under every condition; each answer goes to `log` as a JSON line."""
    quiz = draw_quiz(clips, duration=frames * SAMPLE_PERIOD)
    right = {name: dict.fromkeys(KINDS, 0) for name in CONDITIONS}
    lines: list[str] = []
    for name, condition in CONDITIONS.items():
        answerer = ClipAnswerer(model, tokenizer, condition)
        scored = score(answerer, quiz, frames=frames, batch_size=batch_size)
        for kind, scene, question, reply in tqdm(
            scored, desc=name, unit="answer", total=clips * len(KINDS), mininterval=1
        ):
            right[name][kind] += exact_match(reply, question.answer)
            entry = {"condition": name, "kind": kind, "seed": scene.seed}
            entry |= {"question": question.text, "answer": question.answer, "reply": reply}
            lines.append(json.dumps(entry))
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(log, "\n".join(lines) + "\n")
    constant = {kind: best_constant([q for _, q in quiz.questions[kind]]) for kind in KINDS}
    return {
        "kinds": list(KINDS),
        "clips_per_kind": clips,
        "frames": frames,
        "conditions": {
            name: _with_total({kind: Accuracy(n, clips) for kind, n in by_kind.items()})
            for name, by_kind in right.items()
        },
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
    size = TOKENS_PER_PATCH if spec.block_size == "frame" else spec.block_size
    return {
        "video_tokens": frames // 2 * TOKENS_PER_PATCH,
        "num_selected_blocks": spec.num_selected_blocks,
        "block_size": size,
        "window_size": spec.window_size,
        "attention_keys": spec.attention_keys(TOKENS_PER_PATCH),
        "machine": evaluation_facts(model.device),
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
    tokenizer = load_tokenizer(folder)
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
    write_atomic(args.out, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
