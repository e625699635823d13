"""Asks a model about held-out videos: `python -m benchmarks.study.answering`, resumable.

Each video is drawn, encoded and read once, then all its questions are scored in one forward.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.study.all_questions import Asked, Scored, score_all
from benchmarks.study.asked_videos import asked_video, frames_on
from videonsa.errors import VideoNSAError
from videonsa.evals.journal import SAMPLES, appending, read_lines
from videonsa.inference.context import Context, EncodedVision, split_at_video
from videonsa.models.checkpoints.loading import load_model
from videonsa.models.checkpoints.tokenizer import load_tokenizer
from videonsa.models.recorder.gates import GateMeans
from videonsa.parsing import typed
from videonsa.rendered.suite2 import KINDS, Script2
from videonsa.video.chat import VisionSlot, chat_tokens


class Video(NamedTuple):
    """A held-out video."""

    length: int
    """Tokens, at most."""
    sample: int
    """Number among those of its length, and of its kind."""
    kind: str = ""
    """The one kind of question that it was made for; empty: all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoLine:
    """What a model made of a video: lists have one entry for each question."""

    length: int
    sample: int
    only: str
    """The kind of a video of one kind; its gates are what is wanted of it."""
    kinds: list[str]
    answers: list[str]
    places: list[int]
    """Of the right answer among the options."""
    free: list[bool]
    """Whether greedy decoding writes the right answer, and nothing more."""
    likeliest: list[bool]
    """Whether the right answer is the option of the highest probability."""
    gates: list[list[float]]
    """Of each layer, the mean gate of each branch over all vision tokens; else empty."""
    seconds: float

    @property
    def key(self) -> tuple[int, int, str]:
        """Which video it is about."""
        return self.length, self.sample, self.only


def parse_line(content: Any) -> VideoLine:
    """A line from its JSON value; ValueError or TypeError of a wrong one."""
    line: VideoLine = typed(VideoLine, content)
    return line


class Answerer:
    """A model in evaluation mode, and how it is asked."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._tokens = lru_cache(maxsize=100_000)(self._encoded)
        self._tails = lru_cache(maxsize=100_000)(self._tail)

    def line(self, video: Video, script: Script2) -> VideoLine:
        """Everything about a video.

        Raises:
            ModelError: logits that are not finite.
        """
        begun = time.monotonic()
        gates = GateMeans() if video.kind and self._model.method.uses_gates else None
        asked = script.questions
        with torch.inference_mode():
            context = self._read(script, gates)
        told = [
            Asked(
                self._tails(one.text),
                [self._tokens(option) for option in one.options],
                one.options.index(one.answer),
            )
            for one in asked
        ]
        scored: Sequence[Scored] = score_all(context, told)
        means = {} if gates is None else gates.read()
        return VideoLine(
            length=video.length,
            sample=video.sample,
            only=video.kind,
            kinds=[one.kind for one in asked],
            answers=[one.answer for one in asked],
            places=[one.answer for one in told],
            free=[one.free for one in scored],
            likeliest=[one.likeliest == was.answer for one, was in zip(scored, told, strict=True)],
            gates=[[round(x, 4) for x in of.values()] for of in means.values()],
            seconds=round(time.monotonic() - begun, 4),
        )

    def _read(self, script: Script2, gates: GateMeans | None) -> Context:
        """A context that has read a video."""
        config = self._model.config.vision_config
        side = script.spec.frame_size // config.patch_size
        grid = (script.spec.num_frames // config.temporal_patch_size, side, side)
        kept = self._model.encode_kept(frames_on(script, self._model.device))
        seconds = tuple(map(float, range(grid[0])))  # frames come at 2 a second
        slots = [VisionSlot("video", len(kept.features))]
        ids = chat_tokens("?", tokenizer=self._tokenizer, vision=slots).ids
        head, _ = split_at_video(ids, self._model.config.vision_end_token_id)
        context = Context(self._model)
        if gates is not None:
            vision = torch.tensor(head) == self._model.config.video_token_id
            gates.rows = vision.nonzero()[:, 0]
        video = EncodedVision("video", kept.features, grid, seconds, kept.places)
        passage = context.passage(head, [video])
        context.read(passage, recorder=gates)
        return context

    def _tail(self, text: str) -> tuple[int, ...]:
        """The tokens of a question behind the video."""
        slots = [VisionSlot("video", 1)]
        ids = chat_tokens(text, tokenizer=self._tokenizer, vision=slots).ids
        return tuple(split_at_video(ids, self._model.config.vision_end_token_id)[1])

    def _encoded(self, option: str) -> tuple[int, ...]:
        """The tokens of an answer, with the one that ends it."""
        ids = self._tokenizer.encode(option, add_special_tokens=False)
        return (*ids, self._tokenizer.eos_token_id)


def videos_of(words: Sequence[str], part: str) -> list[Video]:
    """Which videos a process asks about, in this order: the longest last.

    Args:
        words: `LENGTH:COUNT`, and `gates:LENGTH:COUNT` for videos of each single kind.
        part: `PART/PARTS`, of the processes that share them.
    """
    videos: list[Video] = []
    for word in words:
        *gates, length, count = word.split(":")
        kinds = KINDS if gates else ("",)
        videos += [Video(int(length), i, kind) for kind in kinds for i in range(int(count))]
    number, parts = map(int, part.split("/"))
    return sorted(videos, key=lambda video: video.length)[number::parts]


def answered_all(words: Sequence[str], part: str, folder: Path) -> bool:
    """Whether a folder has an answer about every video of a process."""
    if not (folder / SAMPLES).exists():
        return False
    known = {line.key for line in read_lines(folder, parse_line)}
    return known.issuperset(map(tuple, videos_of(words, part)))


def answer_all(answerer: Answerer, videos: Sequence[Video], folder: Path, *, end: float) -> bool:
    """Ask about the videos that `folder` has no line of; False where time ran out."""
    folder.mkdir(parents=True, exist_ok=True)
    with appending(folder, parse_line) as journal:
        left = [video for video in videos if tuple(video) not in journal.lines]
        longest: dict[int, float] = {}
        for video, script in _scripts(left):
            if time.monotonic() + 2 * longest.get(video.length, 0.0) > end:
                return False
            line = answerer.line(video, script)
            journal.append(line)
            longest[video.length] = line.seconds
    return True


def _scripts(videos: Sequence[Video]) -> Iterator[tuple[Video, Script2]]:
    """Videos with their scripts, each written by a thread while the one before is asked about."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = [pool.submit(asked_video, *video) for video in videos[:1]]
        for video, following in pairwise([*videos, None]):
            script = coming.pop().result()
            if following is not None:
                coming.append(pool.submit(asked_video, *following))
            if video is not None:
                yield video, script


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the answers")
    parser.add_argument("--videos", nargs="+", required=True, metavar="[gates:]LENGTH:COUNT")
    parser.add_argument("--part", default="0/1", metavar="PART/PARTS")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    args = parser.parse_args(arguments)
    end = time.monotonic() + args.seconds
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        loaded = load_model(args.model, dtype=getattr(torch, args.dtype), device=device)
        videos = videos_of(args.videos, args.part)
        answerer = Answerer(loaded.model, load_tokenizer(loaded.folder))
        answer_all(answerer, videos, args.out, end=end)
    except VideoNSAError as error:
        sys.stderr.write(f"answering: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
