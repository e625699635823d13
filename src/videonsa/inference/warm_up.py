"""What a GPU does once a machine or once a process, done before a question needs it.

Kernels are compiled when they are first used on a machine, and which ones a prompt uses depends on
its lengths. So a copy of the model that has one layer and no values reads the prompt: every kernel
of its attention is then compiled, several at a time, and nothing is computed. Libraries of matrix
products choose and load their kernels in the first step of a process: the model itself reads a few
tokens for that, and compiles what does not depend on lengths.
"""

import copy
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch

from videonsa.machine import usable_cores
from videonsa.models.cache import VideoNSACache
from videonsa.models.decoding.reasons import why_not_static
from videonsa.models.decoding.steps import SIZES, StaticSteps
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.models.methods import NSA, Dense, ReleasedNSA
from videonsa.models.rope import Grid
from videonsa.ops.compilation import compile_together, watch_compilation
from videonsa.ops.triton.support import why_not
from videonsa.parsing import one_line

TEXT_BEFORE, TEXT_AFTER = 15, 20
"""Tokens around the video of a usual question."""
FRAMES = ((16, 16), (26, 46))
"""Rows and columns of patches of frames to prepare for: tokens that are a multiple of 16, and
not. Kernels are compiled once more for numbers that are none."""
ROWS = (32, 17)
"""Tokens that the model itself reads, step by step: a multiple of 16, and none."""
SMALL_FRAMES = ((2, 2), (2, 3))
"""Rows and columns of merged tokens of frames for the vision tower: of 16 patches and of 24."""


WORKERS_BESIDE, MOST_WORKERS = 3, 8
"""Threads that compile: few while the threads of a video want the interpreter for every frame and
operation, and a processor as soon as they have it."""
LONGEST_WAIT = 60.0
"""Seconds behind the reading after which the question goes on, and compiles what is left."""


class Prompt(NamedTuple):
    """A prompt about one video or image, as far as kernels depend on it."""

    before: int
    """Tokens before those of the video."""
    grid: Grid
    """Of the video: (t, h, w) in patches."""
    after: int
    """Tokens behind it."""
    kind: Literal["image", "video"] = "video"


OF_RELEASED = (
    Prompt(TEXT_BEFORE, (4, 16, 16), 20),
    Prompt(TEXT_BEFORE, (4, 16, 16), 49),
    Prompt(TEXT_BEFORE, (15, 16, 16), 34),
    Prompt(TEXT_BEFORE, (15, 16, 16), 49),
)
"""For the released preset: tokens and blocks whose numbers are multiples of 16, or not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmedUp:
    """What `warm_up` did."""

    kernels: int
    """That had to be compiled; 0 where all of them were."""
    seconds: float


def warm_up(
    model: VideoNSAForConditionalGeneration, *, prompts: Sequence[Prompt] | None = None
) -> WarmedUp:
    """Compile the kernels of a model for the GPU that it is on, and let it take a few steps.

    Args:
        model: on one GPU.
        prompts: to compile for; by default `usual_prompts` up to the model's context.

    Raises:
        UsageError: a GPU that cannot run the kernels.
        RuntimeError: an error of the GPU; of a kernel that does not compile, Triton's error.
    """
    if prompts is None:
        prompts = usual_prompts(
            model.config.text_config.max_position_embeddings,
            merge_size=model.config.vision_config.spatial_merge_size,
        )
    begin = time.perf_counter()
    with watch_compilation() as found, _on_gpu(model):
        workers = min(MOST_WORKERS, usable_cores())
        _prepare(model, prompts, sizes=SIZES, shadow=_shadow(model), workers=workers)
        torch.cuda.synchronize()
    return WarmedUp(kernels=found.compiled.count, seconds=time.perf_counter() - begin)


def usual_prompts(context: int, *, merge_size: int = 2) -> list[Prompt]:
    """Prompts of 256 tokens, 362, 512 and so on up to a context, of each of `FRAMES`.

    Other prompts may still need a kernel that none of these does.
    """
    prompts = []
    text = TEXT_BEFORE + TEXT_AFTER
    for rows, columns in FRAMES:
        per_frame = rows * columns // merge_size**2
        for halves in range(16, int(2 * math.log2(context)) + 1):
            frames = (int(2 ** (halves / 2)) - text) // per_frame
            prompts.append(Prompt(TEXT_BEFORE, (max(1, frames), rows, columns), TEXT_AFTER))
    return list(dict.fromkeys(prompts))


def can_warm_up(model: VideoNSAForConditionalGeneration) -> bool:
    """Whether a model is on one GPU."""
    shared = len(set(getattr(model, "hf_device_map", {}).values())) > 1
    return model.device.type == "cuda" and not shared


class WarmUp:
    """Prepares the GPU of one model beside the reading of a video, once for each prompt."""

    def __init__(self, model: VideoNSAForConditionalGeneration) -> None:
        self._model = model
        self._known: set[Prompt] = set()
        self._shadow: VideoNSAForConditionalGeneration | None = None
        self.notes: tuple[str, ...] = ()
        """What went wrong the last time, which does not concern the question."""

    @contextmanager
    def beside(self, prompt: Prompt) -> Iterator[None]:
        """Prepare for a prompt in a thread while what is inside runs; both are done at the end."""
        self.notes = ()
        if prompt in self._known or not can_warm_up(self._model):
            yield
            return
        stopped = threading.Event()
        thread = threading.Thread(
            target=self._try, args=(prompt, stopped), name="warm-up", daemon=True
        )
        thread.start()
        try:
            yield
        except BaseException:
            stopped.set()  # nobody waits for it
            raise
        thread.join(LONGEST_WAIT)
        if thread.is_alive():
            stopped.set()
            self.notes = (
                f"the GPU was not prepared {LONGEST_WAIT:.0f} s after the video was read",
            )

    def _try(self, prompt: Prompt, stopped: threading.Event) -> None:
        try:
            sizes = () if self._known else SIZES[:1]
            with _on_gpu(self._model):
                if sizes:
                    self._shadow = _shadow(self._model)
                _prepare(
                    self._model,
                    [prompt],
                    sizes=sizes,
                    shadow=self._shadow,
                    workers=min(WORKERS_BESIDE, max(1, usable_cores() // 4)),
                    stopped=stopped,
                )
        except Exception as error:  # the question itself will do, or tell, the same
            self.notes = (f"the GPU could not be prepared beforehand: {one_line(error)}",)
        else:
            if not stopped.is_set():
                self._known.add(prompt)


def _prepare(
    model: VideoNSAForConditionalGeneration,
    prompts: Sequence[Prompt],
    *,
    sizes: Sequence[int],
    shadow: VideoNSAForConditionalGeneration | None,
    workers: int,
    stopped: threading.Event | None = None,
) -> None:
    """Compile for prompts and, where there are sizes of steps to take, take small steps meanwhile.

    Nothing is captured: what other threads ask of the GPU could not be done meanwhile.
    """

    def call() -> None:
        """Take the steps in turn, until it is stopped."""
        steps: list[Callable[[], None]] = []
        if shadow is not None:  # first: its kernels then compile while the next steps are taken
            steps += [partial(_read_shape, shadow, prompt) for prompt in prompts]
        if stopped is None:  # else the tower is at work, on the video
            steps.append(partial(_encode_little, model))
        if sizes:
            steps.append(partial(_read_little, model, sizes))
        if sizes and isinstance(model.method, ReleasedNSA):
            steps += [partial(_read_shape, model, prompt) for prompt in OF_RELEASED]
        for step in steps:
            if stopped is None or not stopped.is_set():
                step()

    if shadow is None:
        call()
    else:
        compile_together(call, workers=workers)


@contextmanager
def _on_gpu(model: VideoNSAForConditionalGeneration) -> Iterator[None]:
    """The current GPU and the mode are each thread's own."""
    gpu = torch.cuda.device(model.device) if model.device.type == "cuda" else nullcontext()
    with torch.inference_mode(), gpu:
        yield


def _shadow(model: VideoNSAForConditionalGeneration) -> VideoNSAForConditionalGeneration | None:
    """The model with one layer and no values; None where none of its kernels depends on lengths.

    Those of the released preset hardly do, and it looks at the values of its masks.
    """
    method = model.method.behind or model.method  # tokens that leave change lengths alone
    if not isinstance(method, NSA) or isinstance(method, ReleasedNSA):
        return None
    config = copy.deepcopy(model.config)
    text = config.text_config
    q, k = (
        torch.empty(1, 1, heads, text.hidden_size // text.num_attention_heads, device="meta")
        for heads in (text.num_attention_heads, text.num_key_value_heads)
    )
    reason = why_not(q.to(model.dtype), k.to(model.dtype), method.spec)
    if reason is not None or method.backend == "reference":
        return None
    text.num_hidden_layers, text.layer_types = 1, text.layer_types[:1]
    config.vision_config.depth = 1
    with torch.device("meta"):
        shadow: VideoNSAForConditionalGeneration = type(model)(config).to(model.dtype).eval()
    shadow.method = replace(method, backend="triton")
    return shadow


def _read_shape(model: Any, prompt: Prompt) -> None:
    """Let a model read a prompt of zeros; one without values, a prompt without values."""
    config = model.config
    frames, rows, columns = prompt.grid
    kind = prompt.kind
    num_vision = frames * rows * columns // config.vision_config.spatial_merge_size**2
    vision, text = getattr(config, f"{kind}_token_id"), _text_id(config)
    ids = [text] * prompt.before + [vision] * num_vision + [text] * prompt.after
    model(
        input_ids=torch.tensor([ids]),
        inputs_embeds=torch.zeros(
            1, len(ids), config.text_config.hidden_size, dtype=model.dtype, device=model.device
        ),
        # What they are decides no kernel, and to compute them takes longest.
        position_ids=torch.zeros(3, 1, len(ids), dtype=torch.int64),
        past_key_values=VideoNSACache(),
        logits_to_keep=1,
        **{f"{kind}_grid_thw": torch.tensor([prompt.grid])},
        **({} if kind == "image" else {"second_per_grid_ts": [1.0]}),
    )


def _text_id(config: Any) -> int:
    """A token that is neither of an image nor of a video."""
    return next(i for i in range(3) if i not in (config.image_token_id, config.video_token_id))


def _encode_little(model: VideoNSAForConditionalGeneration) -> None:
    """Let the vision tower encode a temporal patch, twice."""
    vision = model.config.vision_config
    side = vision.patch_size * vision.spatial_merge_size
    for rows, columns in SMALL_FRAMES:
        size = (vision.temporal_patch_size, 3, rows * side, columns * side)
        model.encode_frames([torch.zeros(size, dtype=torch.uint8)])


def _read_little(model: VideoNSAForConditionalGeneration, sizes: Sequence[int]) -> None:
    """Let the model read a few tokens as it does a prompt, then some as it writes an answer."""
    cache, text = VideoNSACache(), _text_id(model.config)
    for num_tokens in ROWS:
        ids = torch.full((1, num_tokens), text, device=model.device)
        model(input_ids=ids, past_key_values=cache, method=Dense(), logits_to_keep=1)
    if why_not_static(model, cache, None) is None:
        steps = StaticSteps(model, cache, batch=1, captures=False)
        steps.begin(sum(sizes))
        for size in sizes:
            steps.read([[text] * size])
