"""What a session costs: open, ask, ask again, extend, save and load, beside the speed of the disk.

Weights are random and of a published shape; the tokenizer is the embedded model's.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from videonsa.bench.disk_speed import disk_speed, forget_pages
from videonsa.bench.measure import one_line
from videonsa.bench.random_model import MODELS, random_model
from videonsa.bench.stopwatch import wait_for
from videonsa.inference.answer import Answer
from videonsa.inference.encoded_clip import Video
from videonsa.inference.engine import VideoQA
from videonsa.inference.session import Session
from videonsa.machine import measurement_facts
from videonsa.models.checkpoints.tokenizer import SPECIAL_TOKENS, load_tokenizer
from videonsa.models.locate import EMBEDDED, locate_model
from videonsa.models.stored_cache.contents import PRECISIONS, Precision
from videonsa.video.decode import VideoClip, read_video
from videonsa.video.framelist import FrameList
from videonsa.video.sampling import SamplingSpec

FORMAT = "videonsa session benchmark 1"
QUESTION = (
    "What happens in this video, who or what takes part in it, and does anything change from its "
    "first to its last frame?"
)
FOLLOW_UP = "And what was there before that?"
DIFFERENT_FRAMES = 256
"""Of made-up videos, which repeat them: more would take long to draw."""
CAPTURED = 2
"""Answers after which their steps are captured."""
CONTEXT = 2**22
"""More than any video here takes."""
METHOD = (
    "weights are random; first_ms is the first run of a stage in the process, with kernels "
    "compiled for it; ms is the median of later ones (of answers from the third on, since the "
    "first two may capture steps), or the only run; times are wall times up to the last token or "
    "byte, first_token_ms those up to the first token; a file is read, encoded and prefilled, "
    "made-up frames lie in memory; a session is saved up to the disk (fsync) and loaded onto the "
    "device, after the system was asked to forget its pages; gb_per_s is the bytes in the folder "
    "over seconds, and disk the same of a plain file of random bytes, at most 4 GB, written and "
    "read in the same run"
)

Stage = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionRequest:
    """What to measure."""

    model: str
    video: Path | None = None
    """A file; None: no file."""
    fps: float = 2.0
    """Of the file."""
    tokens: tuple[int, ...] = ()
    """Of made-up videos."""
    frame: tuple[int, int] = (224, 224)
    """Height and width in pixels, of made-up videos; a frame of the file has no more pixels."""
    new_tokens: int = 64
    repeats: int = 3
    folder: Path
    """On the disk that is measured."""
    device: torch.device


def bench_session(
    request: SessionRequest, *, progress: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Measure; gives the result so far after every stage.

    Args:
        request: what to measure.
        progress: told a line for each stage.
    """
    progress(f"random weights of the {request.model} model")
    qa = random_qa(request.model, request.device)
    result: dict[str, Any] = {
        "format": FORMAT,
        "model": request.model,
        "dtype": str(qa.model.dtype),
        "weights_gb": sum(x.nbytes for x in qa.model.parameters()) / 1e9,
        "question": QUESTION,
        "new_tokens": request.new_tokens,
        "machine": measurement_facts(request.device),
        "method": METHOD,
        "videos": [],
    }
    for name, video in _videos(request, qa):
        entry: dict[str, Any] = {"video": name, "tokens": None, "stages": []}
        result["videos"].append(entry)
        for stage in _stages(qa, video, request, entry):
            progress(f"{name}: {describe(stage)}")
            entry["stages"].append(stage)
            yield result


def describe(stage: Stage) -> str:
    """A stage in one line."""
    if stage["error"] is not None:
        return f"{stage['name']}: {stage['error']}"
    parts = [] if stage["ms"] is None else [f"{stage['ms']:.1f} ms"]
    parts += [] if stage["first_ms"] is None else [f"at first {stage['first_ms']:.1f} ms"]
    if stage["first_token_ms"] is not None:
        parts.append(f"first token {stage['first_token_ms']:.1f} ms")
    if stage["gb"] is not None:
        parts.append(f"{stage['gb']:.2f} GB, {stage['gb_per_s']:.2f} GB/s")
    return f"{stage['name']}: {', '.join(parts)}"


def random_qa(name: str, device: torch.device) -> VideoQA:
    """A model of random weights that reads the ids of the embedded model's tokenizer.

    Args:
        name: of a shape in `MODELS`.
        device: where it runs, in bfloat16 on a GPU, else in float32.
    """
    tokenizer = load_tokenizer(locate_model(EMBEDDED))
    vocabulary = tokenizer.get_vocab()
    ids = {field: vocabulary[token] for token, field in SPECIAL_TOKENS.items() if field}
    shape = MODELS[name]
    vocab_size = max(shape.vocab_size, 1 + max(vocabulary.values()))
    shape = replace(shape, context=CONTEXT, vocab_size=vocab_size)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = random_model(shape, device=device, dtype=dtype, ids=ids)
    return VideoQA(model, tokenizer, name=name)


def _sampling(qa: VideoQA, request: SessionRequest) -> SamplingSpec:
    height, width = request.frame
    return replace(qa.sampling, max_pixels=height * width, max_frames=2**20, fps=request.fps)


def _videos(request: SessionRequest, qa: VideoQA) -> Iterator[tuple[str, Video]]:
    """The file, and videos of random frames."""
    if request.video is not None:
        yield request.video.name, request.video
    for tokens in request.tokens:
        yield f"{tokens:,} tokens of made-up frames", made_up_clip(tokens, _sampling(qa, request))


def made_up_clip(tokens: int, sampling: SamplingSpec) -> VideoClip:
    """Noise of at least so many tokens, of square frames of the most pixels that they may have."""
    side = int(sampling.max_pixels**0.5) // sampling.factor * sampling.factor
    pairs = -(-tokens // (side // sampling.factor) ** 2)
    count = pairs * sampling.temporal_patch_size
    generator = torch.Generator().manual_seed(0)
    shape = min(count, DIFFERENT_FRAMES), 3, side, side
    noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    frames = noise.repeat(-(-count // len(noise)), 1, 1, 1)[:count]
    listed = FrameList(frames, fps=sampling.fps or 1.0)
    return read_video(listed, sampling=sampling, progress=False)


def _stages(
    qa: VideoQA, video: Video, request: SessionRequest, entry: dict[str, Any]
) -> Iterator[Stage]:
    """All that a session does, in the order in which people do it."""
    timer = _Timer(request)
    opened: list[Session] = []

    def open_session() -> None:
        opened.clear()
        if isinstance(video, VideoClip):
            opened.append(qa.open(video, progress=False))
        else:
            sampling = _sampling(qa, request)
            opened.append(qa.open(video, sampling=sampling, progress=False))

    yield timer.stage("open", open_session, repeats=1)
    if not opened:
        return
    session = opened[0]
    entry["tokens"] = session.num_tokens

    def ask(question: str = QUESTION, *, fresh: bool = True) -> Answer:
        return session.ask(question, fresh=fresh, max_new_tokens=request.new_tokens)

    yield timer.stage("a question about the video", ask)
    yield timer.stage("a follow-up question", lambda: ask(FOLLOW_UP, fresh=False))
    yield timer.stage("extend by a pair of frames", _extending(session, qa))
    yield timer.stage("a question after that", ask)
    yield from _stored(session, qa, request, timer)


def _extending(session: Session, qa: VideoQA) -> Callable[[], None]:
    """Gives the session two frames more, a second after its last."""
    clip, count = session.clips[-1], qa.shape.vision.temporal_patch_size
    frames = torch.zeros(count, 3, clip.height, clip.width, dtype=torch.uint8)

    def extend() -> None:
        last = session.clips[-1].times[-1]
        session.extend(frames, [last + (i + 1) / count for i in range(count)])

    return extend


def _stored(
    session: Session, qa: VideoQA, request: SessionRequest, timer: "_Timer"
) -> Iterator[Stage]:
    """Saved and loaded in each precision, and a plain file of as many bytes."""
    with tempfile.TemporaryDirectory(dir=request.folder) as made:
        folder, largest = Path(made, "session"), 0

        def load() -> None:
            Session.load(folder, qa, progress=False)

        for precision in PRECISIONS:
            saved = _saver(session, folder, precision)
            stage = timer.stage(f"save, {precision}", saved, repeats=0)
            num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            largest = max(largest, num_bytes)
            yield _with_bytes(stage, num_bytes)
            loaded = timer.stage(
                f"load, {precision}", load, repeats=0, before=lambda: forget_pages(folder)
            )
            yield _with_bytes(loaded, num_bytes)
    for name, speed in disk_speed(request.folder, largest).items():
        stage = _new_stage(f"disk, {name} a plain file")
        stage |= {"ms": 1e3 * speed.seconds, "times_ms": [1e3 * speed.seconds]}
        yield _with_bytes(stage, speed.num_bytes)


def _saver(session: Session, folder: Path, precision: Precision) -> Callable[[], None]:
    def save() -> None:
        session.save(folder, precision=precision, progress=False)

    return save


def _new_stage(name: str) -> Stage:
    """A stage without numbers."""
    keys = ("error", "ms", "first_ms", "first_token_ms", "ms_a_token", "gb", "gb_per_s", "peak_gb")
    return {"name": name, "times_ms": [], "decoding": None} | dict.fromkeys(keys)


def _with_bytes(stage: Stage, num_bytes: int) -> Stage:
    if stage["ms"] is None:
        return stage
    return stage | {"gb": num_bytes / 1e9, "gb_per_s": num_bytes / 1e6 / stage["ms"]}


class _Timer:
    """Runs the stages of one video."""

    def __init__(self, request: SessionRequest) -> None:
        self._request = request

    def stage(
        self,
        name: str,
        call: Callable[[], Answer | None],
        *,
        repeats: int | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> Stage:
        """Run until it is warm, then `repeats` times; of none, the first run counts.

        Args:
            name: of the stage.
            call: what is timed; an answer tells when its first token was there.
            repeats: None is as many as asked for, after `CAPTURED` runs.
            before: run before each, untimed.
        """
        stage, device = _new_stage(name), self._request.device
        untimed, timed = (CAPTURED, self._request.repeats) if repeats is None else (1, repeats)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        times, answers = [], []
        try:
            for _ in range(untimed + timed):
                before()
                wait_for(device)
                begin = time.perf_counter()
                found = call()
                wait_for(device)
                times.append(1e3 * (time.perf_counter() - begin))
                answers += [] if found is None else [found]
        except Exception as error:  # whatever a stage raises, others follow
            with suppress(RuntimeError):
                torch.cuda.empty_cache()
            return stage | {"error": one_line(error)}
        if device.type == "cuda":
            stage["peak_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        kept = slice(untimed if timed else 0, None)
        stage |= {"times_ms": times[kept], "ms": statistics.median(times[kept])}
        stage["first_ms"] = times[0] if timed else None
        if later := answers[kept]:
            stage["first_token_ms"] = 1e3 * statistics.median(
                answer.first_token_seconds for answer in later
            )
            rates = [x.tokens_per_second for x in later if x.tokens_per_second]
            stage["ms_a_token"] = 1e3 / statistics.median(rates) if rates else None
            stage["decoding"] = later[-1].decoding
        return stage
