"""What a training step costs, NSA beside dense attention, alone or with a shared sequence.

Two parts. `layers`: forward and backward of decoder layers of a published shape. `step`: the whole
step, from the frames as bytes to AdamW. Both are steps of the trainer by the paper's recipe:
float32 weights under bf16 autocast, activation checkpointing, the loss of the text behind the
video. Several processes (torchrun) share the one sequence, or each has one of its own.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from videonsa.bench.clip_rows import TEXT_ROWS, clip_of_tokens
from videonsa.bench.comparable import check_one
from videonsa.bench.random_model import IDS, MODELS
from videonsa.bench.training_steps import (
    NUM_LABELS,
    Part,
    Plan,
    Setting,
    Times,
    peak_of,
    run_steps,
)
from videonsa.errors import UsageError
from videonsa.machine import measurement_facts
from videonsa.models.config import VideoNSAConfig
from videonsa.models.methods import DENSE, SPARSE, named_method
from videonsa.models.shape import ModelShape
from videonsa.ops.spec import NSASpec
from videonsa.train.checks import check_processes
from videonsa.train.flops import step_flops
from videonsa.train.reading import read_recipe
from videonsa.train.run import context_parallel_group, join_processes
from videonsa.train.settings import Recipe

FORMAT = "videonsa training benchmark 1"
PARTS: tuple[Part, ...] = ("layers", "step")
RECIPE = "videonsa-7b"
STEP_TOKENS = 36 * 1024
"""The whole step is measured up to the context of the recipe."""
USED_SHARE = 0.92
"""Of the free memory: the rest is lost between allocations."""
BYTES_PER_WEIGHT = 4 + 4 + 8 + 2
"""Weight, gradient, the two averages of AdamW, the copy that autocast makes."""
_NUMBERS = (
    *("ms", "forward_backward_ms", "tokens_per_second", "mfu"),
    *("efficiency", "peak_share"),
)
_LISTS = ("times_ms", "peak_gb", "losses", "grad_norms")
"""One a process, or one a step."""
METHOD = (
    "steps of the trainer on one video between text rows: float32 weights, bf16 autocast, "
    "activation checkpointing, loss of the text behind the video; inputs of the decoder are "
    "coherent (one normal row a frame, 0.1 normal noise), those of the whole step random pixels; "
    "wall time between device synchronisations, the slowest process of each step, the attentions "
    "in turn, after one untimed step of each; `layers` is forward and backward, `step` everything "
    "from the frames to the optimizer; optimizer states are in memory in both; memory is the peak "
    "of PyTorch's allocator of each process; loss (mean of the processes) and gradient norm are of "
    "every step, the untimed one too; mfu counts what is computed twice once; efficiency is the "
    "time of one process for its share of the sequences over that of n; dense attention "
    "is PyTorch's, by cuDNN, and by its flash kernels where processes share the sequence"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRequest:
    """What to measure."""

    model: str
    tokens: tuple[int, ...]
    """Of the video."""
    parts: tuple[Part, ...] = PARTS
    layers: int | None = None
    """Decoder layers; None: as many as fit, tried with one."""
    frame: tuple[int, int] = (224, 224)
    """Height and width in pixels."""
    dense: bool = True
    """Also dense attention, beside NSA."""
    sequence: int | None = None
    """Degree of context parallelism; None: all processes share one sequence."""
    fsdp: bool = False
    """Processes shard weights, gradients and optimizer states too."""
    repeats: int = 2
    peak_tflops: float | None = None
    """Of one device in bf16; None: no MFU."""
    one: Mapping[str, Any] | None = None
    """The result of one process, which those of several are compared with."""
    on_gpu: bool = True


class _Measuring:
    """A request on its way to a result."""

    def __init__(self, request: TrainRequest, progress: Callable[[str], None]) -> None:
        processes = join_processes(on_gpu=request.on_gpu)
        self.num_processes: int = processes.num_processes
        self.is_first: bool = processes.is_main_process
        self.request = request
        self.device: torch.device = processes.device
        self.recipe = recipe_of(request, self.num_processes)
        self.sequences: int = self.recipe.optimizer.batch_size
        """Of a step, over all processes."""
        check_processes(self.recipe, world_size=self.num_processes, on_gpu=request.on_gpu)
        self.cp_group = context_parallel_group(self.recipe, processes)
        self.progress = progress if self.is_first else lambda _: None
        self.spec = VideoNSAConfig().nsa_spec
        self.runs: list[dict[str, Any]] = []

    def plan(self, part: Part, layers: int, lengths: tuple[int, ...], repeats: int) -> Plan:
        """The steps of a model with so many layers."""
        return Plan(
            part=part,
            shape=replace(MODELS[self.request.model], num_layers=layers),
            frame=self.request.frame,
            lengths=lengths,
            attentions=(SPARSE, DENSE) if self.request.dense else (SPARSE,),
            repeats=repeats,
            recipe=self.recipe,
            device=self.device,
            num_processes=self.num_processes,
            cp_group=self.cp_group,
        )

    def layers_that_fit(self, part: Part, lengths: tuple[int, ...]) -> int:
        """As many as leave room for the longest sequence, as one layer shows."""
        shape = MODELS[self.request.model]
        if self.request.layers is not None:
            return self.request.layers
        if self.request.one is not None:
            return _layers_of(self.request.one, part)
        if self.device.type != "cuda":
            return shape.num_layers
        found: list[Times] = []
        longest = max(lengths)
        plan = self.plan(part, 1, (longest,), 1)
        weights = run_steps(plan, measured=lambda _, times: found.append(times))
        if not peak_of(found):
            return 1  # the measurement will say why
        # DistributedDataParallel keeps gradients once more.
        bytes_per_weight = BYTES_PER_WEIGHT + 4 * (self.num_processes > 1)
        kept = 4 * shape.hidden_size * (longest + sum(TEXT_ROWS)) // self.num_processes
        room = USED_SHARE * torch.cuda.mem_get_info(self.device)[0] - peak_of(found)
        more = int(room // (bytes_per_weight * weights + kept))
        layers: list[int] = self._gathered(max(1 + more, 1))
        return min(*layers, shape.num_layers)

    def _gathered(self, own: Any) -> list[Any]:
        """What all processes have."""
        if self.num_processes == 1:
            return [own]
        found: list[Any] = [None] * self.num_processes
        dist.all_gather_object(found, own)
        return found

    def run_of(self, part: Part, layers: int, setting: Setting, times: Times) -> dict[str, Any]:
        """A setting as it stands in the result."""
        shape = replace(MODELS[self.request.model], num_layers=layers)
        rows, flops = _work(self.request, part, shape, setting, self.spec)
        run: dict[str, Any] = {
            "part": part,
            "layers": layers,
            "tokens": setting.tokens,
            "rows": rows,
            "attention": setting.attention,
            "flops": flops,
            "error": times.error,
        }
        everyone: list[Times] = self._gathered(times)
        if times.error is not None:
            return run | dict.fromkeys(_NUMBERS) | {name: [] for name in _LISTS}
        halves = _slowest([one.forward_backward_ms for one in everyone])
        whole = halves if part == "layers" else _slowest([one.step_ms for one in everyone])
        ms = statistics.median(whole)
        run |= {
            "ms": ms,
            "times_ms": whole,
            "forward_backward_ms": statistics.median(halves),
            "peak_gb": [one.peak_bytes / 1e9 for one in everyone if one.peak_bytes],
            "losses": [statistics.mean(step) for step in _steps([one.losses for one in everyone])],
            "grad_norms": times.grad_norms,
            "tokens_per_second": 1e3 * self.sequences * rows / ms,
            "mfu": self._mfu(flops, ms),
        }
        return run | self._against_one(run)

    def _against_one(self, run: dict[str, Any]) -> dict[str, float | None]:
        """Time and memory beside those of one process; None where there is none."""
        one = self.request.one
        alone = None if one is None else _run_in(one, run)
        if alone is None:
            return {"efficiency": None, "peak_share": None}
        return {
            "efficiency": self.sequences * alone["ms"] / (self.num_processes * run["ms"]),
            "peak_share": max(run["peak_gb"]) / max(alone["peak_gb"]) if run["peak_gb"] else None,
        }

    def _mfu(self, flops: int, ms: float) -> float | None:
        peak = self.request.peak_tflops
        if peak is None:
            return None
        return self.sequences * flops / (1e9 * ms * peak * self.num_processes)

    def result(self) -> dict[str, Any]:
        """All that was measured so far."""
        return {
            "format": FORMAT,
            "model": self.request.model,
            "frame": self.request.frame,
            "dtype": _dtype(self.request),
            "recipe": self.recipe.name,
            "processes": self.num_processes,
            "fsdp": self.request.fsdp,
            "sequences": self.sequences,
            "peak_tflops": self.request.peak_tflops,
            "machine": measurement_facts(self.device),
            "method": METHOD,
            "runs": list(self.runs),
            "ratios": _ratios(self.runs),
        }


def bench_train(
    request: TrainRequest,
    *,
    progress: Callable[[str], None],
    save: Callable[[dict[str, Any]], None],
) -> bool:
    """Measure, as one of the processes of torchrun or alone.

    Args:
        request: what to measure.
        progress: told a line a measurement, in the first process.
        save: given the result so far after every measurement, in the first process.

    Returns:
        Whether this is the first process.

    Raises:
        UsageError: a result to compare with that is of something else, or weights sharded over
            one process.
    """
    measuring = _Measuring(request, progress)
    if request.one is not None:
        _check_one(request.one, request, measuring.device)
    for part in request.parts:
        lengths = tuple(n for n in request.tokens if part == "layers" or n <= STEP_TOKENS)
        if lengths:
            _measure_part(measuring, part, lengths, save)
    return measuring.is_first


def _measure_part(
    measuring: _Measuring,
    part: Part,
    lengths: tuple[int, ...],
    save: Callable[[dict[str, Any]], None],
) -> None:
    layers = measuring.layers_that_fit(part, lengths)
    name = measuring.request.model
    measuring.progress(f"{part}: random weights of {layers} layers of the {name} model")

    def measured(setting: Setting, times: Times) -> None:
        run = measuring.run_of(part, layers, setting, times)
        measuring.runs.append(run)
        measuring.progress(run_line(run))
        if measuring.is_first:
            save(measuring.result())

    run_steps(measuring.plan(part, layers, lengths, measuring.request.repeats), measured=measured)


def run_line(run: Mapping[str, Any]) -> str:
    """A measurement in words."""
    title = f"{run['part']}, {run['tokens']} tokens, {run['attention']}"
    if run["error"] is not None:
        return f"{title}: {run['error']}"
    parts = [f"{run['ms']:.1f} ms", f"{run['tokens_per_second']:.0f} tokens/s"]
    if run["part"] == "step":
        parts.append(f"forward + backward {run['forward_backward_ms']:.1f} ms")
    if run["mfu"] is not None:
        parts.append(f"MFU {100 * run['mfu']:.1f} %")
    if run["peak_gb"]:
        parts.append("peak " + " and ".join(f"{peak:.1f}" for peak in run["peak_gb"]) + " GB")
    if run["efficiency"] is not None:
        parts.append(f"efficiency {100 * run['efficiency']:.0f} %")
    return f"{title}: {', '.join(parts)}"


def recipe_of(request: TrainRequest, num_processes: int) -> Recipe:
    """The paper's, with a step of one sequence for each context-parallel group."""
    sequence = request.sequence or num_processes
    settings = {
        "parallel.fsdp": str(request.fsdp).lower(),
        "parallel.sequence": sequence,
        "optimizer.batch_of": "sequences",
        "optimizer.batch_size": max(num_processes // sequence, 1),
        "run.precision": "bf16" if request.on_gpu else "fp32",
    }
    return read_recipe(RECIPE, settings=[f"{key}={value}" for key, value in settings.items()])


def _work(
    request: TrainRequest, part: Part, shape: ModelShape, setting: Setting, spec: NSASpec
) -> tuple[int, int]:
    """Rows of the sequence, and the operations of its step."""
    clip = clip_of_tokens(setting.tokens, request.frame, torch.device("cpu"))
    is_video = np.asarray(clip.inputs["input_ids"][0] == IDS["video_token_id"])
    frames, height, width = clip.grid
    flops = step_flops(
        shape,
        spec if named_method(setting.attention, spec).uses_gates else None,
        vision_masks=[is_video],
        frame_patches=[height * width] * frames if part == "step" else [],
        num_labels=NUM_LABELS,
    )
    return len(is_video), flops


def _dtype(request: TrainRequest) -> str:
    """Of the computation."""
    if not request.on_gpu:
        return "float32"
    return "bfloat16 by FSDP2's policy" if request.fsdp else "bfloat16 autocast"


def _steps(found: list[list[float]]) -> list[tuple[float, ...]]:
    """Values of all processes, for each step."""
    return list(zip(*found, strict=True))


def _slowest(times: list[list[float]]) -> list[float]:
    """Of the processes, for each step."""
    return [max(step) for step in _steps(times)]


def _ratios(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Time of dense attention over that of NSA, where both have one."""
    found = []
    for run in runs:
        dense = _run_in({"runs": runs}, run | {"attention": DENSE})
        if run["attention"] == SPARSE and run["error"] is None and dense is not None:
            keys = ("part", "layers", "tokens")
            found.append({k: run[k] for k in keys} | {"dense_over_nsa": dense["ms"] / run["ms"]})
    return found


def _run_in(result: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any] | None:
    """The run of a result that measures the same; None where it has no time."""
    keys = ("part", "layers", "tokens", "attention")
    for run in result["runs"]:
        if run["error"] is None and all(run[key] == like[key] for key in keys):
            return dict(run)
    return None


def _layers_of(one: Mapping[str, Any], part: Part) -> int:
    for run in one["runs"]:
        if run["part"] == part:
            return int(run["layers"])
    raise UsageError(f"--one: it has no part {part}: want a result with the parts measured here")


def _check_one(one: Mapping[str, Any], request: TrainRequest, device: torch.device) -> None:
    check_one(one, device=device, format=FORMAT, processes=1, model=request.model)
    if list(one["frame"]) != list(request.frame):
        raise UsageError(f"--one: frames of {one['frame']}, not {list(request.frame)}")
