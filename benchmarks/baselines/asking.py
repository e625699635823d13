"""Asks a model about held-out videos, method by method: `python -m benchmarks.baselines.asking`.

Each video is drawn and encoded once for all settings that ask the same of the vision tower. A
question is asked in a prompt of its own, read in one go, since most methods look at the last tokens
or read all again for each question; dense attention and NSA, for which it makes no difference, read
the video once. Resumable: a line is a video and a setting.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.baselines.baseline_design import (
    Comparison,
    add_comparison_options,
    read_comparison,
)
from benchmarks.study.all_questions import Asked, Scored, score_all, score_read
from benchmarks.study.asked_videos import asked_video, frames_on
from videonsa.bench.stopwatch import wait_for
from videonsa.errors import UsageError, VideoNSAError
from videonsa.evals.journal import SAMPLES, appending, read_lines
from videonsa.inference.context import Context, EncodedVision, split_at_video
from videonsa.models.checkpoints.loading import load_model
from videonsa.models.checkpoints.tokenizer import load_tokenizer
from videonsa.models.chunks import why_reread
from videonsa.models.methods import AttentionMethod
from videonsa.models.methods.compression import Kept, TokenCompression, compress_clip
from videonsa.models.methods.pairs import causal_pairs
from videonsa.models.tower_probe import EncodedFrames, TowerProbe
from videonsa.parsing import one_line, typed
from videonsa.rendered.suite.suite_questions import SuiteQuestion
from videonsa.rendered.suite2 import Script2
from videonsa.video.chat import VisionSlot, chat_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class SettingLine:
    """What a model made of a video under one setting: lists have one entry for each question."""

    setting: str
    length: int
    sample: int
    kinds: list[str]
    answers: list[str]
    places: list[int]
    """Of the right answer among the options."""
    free: list[bool]
    """Whether greedy decoding writes the right answer, and nothing more."""
    likeliest: list[bool]
    """Whether the right answer is the option of the highest probability."""
    attention: float
    """Share of the query-key pairs of dense attention that were computed, of all questions."""
    kept: float
    """Share of the vision tokens that layers read, as a mean over layers."""
    seconds: float
    """Of reading and scoring; those of drawing and encoding are in `encode_seconds`."""
    encode_seconds: float
    """Little where another setting asked for the same of the tower before."""
    reason: str = ""
    """Why the method did not run; the lists are empty then."""
    note: str = ""
    """What the method says of the model."""

    @property
    def key(self) -> tuple[str, int, int]:
        """Which video and setting it is about."""
        return self.setting, self.length, self.sample

    @property
    def only(self) -> str:
        """A video here is never of one kind alone."""
        return ""


def parse_line(content: Any) -> SettingLine:
    """A line from its JSON value; ValueError or TypeError of a wrong one."""
    line: SettingLine = typed(SettingLine, content)
    return line


def chosen_questions(
    script: Script2, sample: int, *, count: int, kinds: Sequence[str]
) -> list[SuiteQuestion]:
    """Questions about a video: of one kind after the other, so that all come equally often.

    Args:
        script: of the video.
        sample: its number among those of its length.
        count: how many.
        kinds: that may be asked.

    Raises:
        UsageError: the video has none of these kinds.
    """
    by_kind = [[one for one in script.questions if one.kind == kind] for kind in kinds]
    by_kind = [several for several in by_kind if several]
    if not by_kind:
        raise UsageError(
            f"video {sample} has no question of {', '.join(kinds)}: want other --kinds"
        )
    found = []
    for turn in range(sample * count, (sample + 1) * count):
        several = by_kind[turn % len(by_kind)]
        found.append(several[turn // len(by_kind) % len(several)])
    return found


class _Computed(NamedTuple):
    """Of one reading: pairs of a head in all layers, those of dense attention, and tokens left."""

    pairs: float
    dense: float
    kept: float


class Asker:
    """A model in evaluation mode, and how it is asked."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model, self._tokenizer = model, tokenizer

    def lines(
        self,
        length: int,
        sample: int,
        script: Script2,
        asked: Sequence[SuiteQuestion],
        settings: Sequence[str],
    ) -> Iterator[SettingLine]:
        """One line for each setting; a method that refuses the model or the video has its reason.

        Args:
            length: of the video, in tokens.
            sample: its number.
            script: what it shows.
            asked: questions about it.
            settings: methods as text.
        """
        video = _Video(self._model, script)
        for setting in settings:
            begun = time.monotonic()
            entry: dict[str, Any] = {"setting": setting, "length": length, "sample": sample}
            try:
                found = self._answers(video, setting, asked)
            except VideoNSAError as error:
                found = _refused(str(error))
            except torch.OutOfMemoryError as error:
                torch.cuda.empty_cache()
                found = _refused(one_line(error))
            seconds = time.monotonic() - begun - found["encode_seconds"]
            yield SettingLine(**entry, **found, seconds=round(seconds, 4))

    def _answers(
        self, video: "_Video", setting: str, asked: Sequence[SuiteQuestion]
    ) -> dict[str, Any]:
        """The fields of a line, without its key and its seconds."""
        text = self._model.config.text_config
        method = self._model.config.method_of(setting)
        notes = method.notes(text.num_hidden_layers, text.num_attention_heads)
        begun = time.monotonic()
        vision = video.encoded(method)
        encode_seconds = round(time.monotonic() - begun, 4)
        scored, computed = self._scored(video, vision, method, asked)
        places = [one.options.index(one.answer) for one in asked]
        return {
            "kinds": [one.kind for one in asked],
            "answers": [one.answer for one in asked],
            "places": places,
            "free": [one.free for one in scored],
            "likeliest": [
                one.likeliest == place for one, place in zip(scored, places, strict=True)
            ],
            "attention": round(
                sum(one.pairs for one in computed) / sum(one.dense for one in computed), 6
            ),
            "kept": round(sum(one.kept for one in computed) / len(computed) / video.num_tokens, 6),
            "encode_seconds": encode_seconds,
            "note": "; ".join(notes),
        }

    @torch.inference_mode()
    def _scored(
        self,
        video: "_Video",
        vision: EncodedVision,
        method: AttentionMethod,
        asked: Sequence[SuiteQuestion],
    ) -> tuple[list[Scored], list[_Computed]]:
        """Each question, and what was computed for it; once where the video is read once."""
        if why_reread(method) is not None:
            found = [self._read_whole(video, vision, method, one) for one in asked]
            return [one for one, _ in found], [one for _, one in found]
        prompts = [self._prompt(vision, one.text) for one in asked]
        split = [split_at_video(ids, self._model.config.vision_end_token_id) for ids in prompts]
        context = Context(self._model, method=method)
        context.read(context.passage(split[0][0], [vision]))
        computed = self._computed(context, video, vision)
        told = [
            Asked(tail, self._options(one), one.options.index(one.answer))
            for (_, tail), one in zip(split, asked, strict=True)
        ]
        return score_all(context, told), [computed]

    def _read_whole(
        self,
        video: "_Video",
        vision: EncodedVision,
        method: AttentionMethod,
        one: SuiteQuestion,
    ) -> tuple[Scored, _Computed]:
        context = Context(self._model, method=method)
        logits = context.read(context.passage(self._prompt(vision, one.text), [vision]))
        computed = self._computed(context, video, vision)
        answer = one.options.index(one.answer)
        return score_read(context, logits, self._options(one), answer), computed

    def _computed(self, context: Context, video: "_Video", vision: EncodedVision) -> _Computed:
        cache, num_layers = context.cache, len(self._model.decoder_layers)
        whole = context.num_tokens + video.num_tokens - len(vision.features)
        pairs = float("nan") if cache.computed is None else cache.computed.total()
        ends = [*(record.first_layer for record in cache.records[1:]), num_layers]
        kept = sum(
            int(record.vision_mask.sum()) * (end - record.first_layer)
            for record, end in zip(cache.records, ends, strict=True)
        )
        return _Computed(pairs, float(num_layers * causal_pairs(whole)), kept / num_layers)

    def _prompt(self, vision: EncodedVision, question: str) -> list[int]:
        slots = [VisionSlot("video", len(vision.features))]
        ids: list[int] = chat_tokens(question, tokenizer=self._tokenizer, vision=slots).ids
        return ids

    def _options(self, one: SuiteQuestion) -> list[tuple[int, ...]]:
        """The tokens of each option, with the one that ends it."""
        encode, end = self._tokenizer.encode, self._tokenizer.eos_token_id
        return [(*encode(option, add_special_tokens=False), end) for option in one.options]


class _Video:
    """A video, encoded when it is asked for, and again only if more is asked of the tower."""

    def __init__(self, model: Any, script: Script2) -> None:
        config = model.config.vision_config
        side = script.spec.frame_size // config.patch_size
        self._model, self._script = model, script
        self._grid = (script.spec.num_frames // config.temporal_patch_size, side, side)
        self._encoded: dict[TowerProbe | None, list[EncodedFrames]] = {}
        self.num_tokens = self._grid[0] * side**2 // config.spatial_merge_size**2

    @torch.inference_mode()
    def encoded(self, method: AttentionMethod) -> EncodedVision:
        """What a method reads of it."""
        if isinstance(method, TokenCompression):
            kept = compress_clip(method, self._probed(method.tower_probe))
        else:
            kept = Kept(torch.cat([part.features for part in self._probed(None)]))
        times = tuple(map(float, range(self._grid[0])))  # frames come at 2 a second
        vision = EncodedVision("video", kept.features, self._grid, times, kept.places)
        wait_for(self._model.device)
        return vision

    def _probed(self, probe: TowerProbe | None) -> list[EncodedFrames]:
        if probe not in self._encoded:
            frames = frames_on(self._script, self._model.device)
            self._encoded[probe] = list(self._model.probe_frames(frames, probe))
        return self._encoded[probe]


def _refused(reason: str) -> dict[str, Any]:
    """The fields of a line of a method that did not run, without its key and its seconds."""
    lists: dict[str, Any] = {
        name: [] for name in ("kinds", "answers", "places", "free", "likeliest")
    }
    return lists | {"attention": 0.0, "kept": 0.0, "encode_seconds": 0.0, "reason": reason}


def videos_of(comparison: Comparison, part: str) -> list[tuple[int, int]]:
    """Lengths and numbers of the videos of one of the processes that share them, `PART/PARTS`.

    The shortest come first. A video stays with its process where others are added.
    """
    number, parts = map(int, part.split("/"))
    return [
        (length, sample)
        for length, count in sorted(comparison.videos)
        for sample in range(number, count, parts)
    ]


def asked_all(comparison: Comparison, arm: str, part: str, folder: Path) -> bool:
    """Whether a folder has a line of every setting about every video of a process."""
    if not (folder / SAMPLES).exists():
        return False
    known = {line.key for line in read_lines(folder, parse_line)}
    settings = comparison.arms().get(arm, [])
    videos = videos_of(comparison, part)
    return known.issuperset((one.name, *video) for video in videos for one in settings)


def ask_all(
    asker: Asker, comparison: Comparison, arm: str, part: str, folder: Path, *, end: float
) -> bool:
    """Ask what `folder` has no line of; False where time ran out."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = [one.name for one in comparison.arms()[arm]]
    longest: dict[tuple[str, int], float] = {}
    with appending(folder, parse_line) as journal:
        for length, sample in videos_of(comparison, part):
            left = [name for name in settings if (name, length, sample) not in journal.lines]
            if not left:
                continue
            script = asked_video(length, sample)
            asked = chosen_questions(
                script, sample, count=comparison.questions, kinds=comparison.kinds
            )
            for line in asker.lines(length, sample, script, asked, left):
                journal.append(line)
                took = line.seconds + line.encode_seconds
                longest[line.setting, length] = max(longest.get((line.setting, length), 0), took)
                if time.monotonic() + 2 * max(longest.values()) > end:
                    return False
    return True


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--arm", required=True, help="of the study, whose model it is")
    parser.add_argument("--out", type=Path, required=True, help="folder of the answers")
    parser.add_argument("--part", default="0/1", metavar="PART/PARTS")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    add_comparison_options(parser)
    args = parser.parse_args(arguments)
    end = time.monotonic() + args.seconds
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        comparison = read_comparison(args)
        loaded = load_model(args.model, dtype=getattr(torch, comparison.dtype), device=device)
        asker = Asker(loaded.model, load_tokenizer(loaded.folder))
        ask_all(asker, comparison, args.arm, args.part, args.out, end=end)
    except VideoNSAError as error:
        sys.stderr.write(f"asking: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
