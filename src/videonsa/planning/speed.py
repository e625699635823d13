"""Time of a question, estimated: operations over measured rates.

Operations are counted from shapes, a multiplication and an addition as two. Letters as in
`memory.py`.
"""

from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from videonsa.models.shape import up_to
from videonsa.models.vision import ALIGNED
from videonsa.planning.memory import Workload

WINDOW_PATCHES = 64
"""Of the tower's windows: 8 x 8 patches."""
FULL_BLOCKS = 4
"""Blocks of the tower that attend to whole frames."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What a GPU reaches in this code, by `benchmarks/results` where nothing else is said."""

    gpu: str
    linear: float
    """Operations a second of the layers' products, norms and launches included: what prefill of
    128K tokens takes beside attention."""
    linear_fp8: float
    """The same with weights in fp8."""
    tower: float
    """The same of the vision tower, attention included, with square frames; wide ones take 14 %
    more."""
    tower_fp8: float
    """The same with weights in fp8."""
    nsa: float
    """Operations a second of the kernels alone where neighbouring rows do not agree; where they do
    it is 1.8 times as much. Inside a model, rotation and cache included, it is a fifth less."""
    dense: float
    """The same of PyTorch's flash attention at 128K tokens."""
    released_rows: float
    """Rows a second of one layer of the released preset (docs/kernels.md)."""
    bytes: float
    """Memory traffic a second."""
    layer_seconds: float
    """Of one layer for one token: 0.8 to 2.7 ms from 1K to 128K tokens, so it is not the memory."""


MEASURED = MappingProxyType(
    {
        "NVIDIA H200": Rates(
            gpu="NVIDIA H200",
            linear=640e12,
            linear_fp8=1115e12,
            tower=460e12,
            tower_fp8=615e12,
            nsa=170e12,
            dense=335e12,
            released_rows=131_072 / 0.137,
            bytes=4.26e12,
            layer_seconds=0.002,
        )
    }
)
DEFAULT = "NVIDIA H200"
"""Whose rates stand for a GPU that was not measured: the estimate says so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeEstimate:
    """Seconds, without reading the video, which goes on beside the tower."""

    rates_of: str
    """The GPU whose measured rates were used."""
    vision_tower: float
    prefill: float
    next_token: float
    """Each token of the answer after the first."""
    total: float
    """To the end of the longest answer."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self)


def is_measured(gpu: str) -> bool:
    """Whether rates were measured on a GPU of this name."""
    return gpu in MEASURED


def rates_for(gpu: str) -> Rates:
    """The rates measured on a GPU of this name, or those of `DEFAULT`."""
    return MEASURED.get(gpu, MEASURED[DEFAULT])


def estimate_time(work: Workload, rates: Rates) -> TimeEstimate:
    """Seconds of tower, prefill and the tokens after the first."""
    in_fp8 = work.shape.weights == "fp8"
    tower = tower_operations(work) / (rates.tower_fp8 if in_fp8 else rates.tower)
    linear = linear_operations(work) / (rates.linear_fp8 if in_fp8 else rates.linear)
    prefill = linear + attention_seconds(work, rates)
    token = _token_seconds(work, rates)
    return TimeEstimate(
        rates_of=rates.gpu,
        vision_tower=tower,
        prefill=prefill,
        next_token=token,
        total=tower + prefill + (work.max_new_tokens - 1) * token,
    )


def tower_operations(work: Workload) -> float:
    """Products of the blocks, attention in windows and frames, and the merger."""
    vision, patches = work.shape.vision, work.num_patches
    size, frame = vision.hidden_size, work.grid[1] * work.grid[2]
    width = up_to(vision.intermediate_size, ALIGNED)
    products = 2 * (4 * size * size + 3 * size * width) * vision.depth
    full = min(FULL_BLOCKS, vision.depth)
    windows = (vision.depth - full) * min(WINDOW_PATCHES, frame)
    attention = 4 * size * (windows + full * frame)
    merged = size * vision.merge_size**2
    merger = 2 * merged * (merged + vision.out_hidden_size) / vision.merge_size**2
    return patches * (products + attention + merger + 2 * vision.patch_values * size)


def linear_operations(work: Workload) -> float:
    """Projections, gates and MLP of all layers for all tokens of the prompt."""
    return 2.0 * work.read_tokens * work.shape.num_layers * work.shape.layer_weights


def attention_seconds(work: Workload, rates: Rates) -> float:
    """Of the prefill in all layers, by what the method counts and at its rate."""
    rate: float = getattr(rates, work.method.rate)
    return work.method.operations(work.attention) / rate


def _token_seconds(work: Workload, rates: Rates) -> float:
    """Weights of the layers and the cache are read; launches take their time."""
    shape = work.shape
    read = shape.num_layers * shape.layer_bytes
    read += work.read_tokens * shape.cache_bytes_per_token
    return max(read / rates.bytes, shape.num_layers * rates.layer_seconds)
