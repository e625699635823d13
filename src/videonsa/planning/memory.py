"""Peak memory of a question, stage by stage, as a sum of named terms: arithmetic, no allocation.

Every term follows what the code allocates; the tests hold the sums against the code itself, run
with tensors that have no values. Letters: T prompt tokens, R rows of a chunk, S keys, P patches of
a chunk, h hidden size, v bytes of a value.
"""

from dataclasses import dataclass
from typing import Any, Literal

from videonsa.models.chunks import even_chunk, why_at_once
from videonsa.models.costs import AttentionCall
from videonsa.models.decoding.steps import SPARE
from videonsa.models.features import PATCHES_PER_PART
from videonsa.models.fused import ROWS_PER_CHUNK
from videonsa.models.growing import ROOM
from videonsa.models.methods.compression import TokenCompression, kept_tokens
from videonsa.models.methods.protocol import AttentionMethod
from videonsa.models.shape import ModelShape, up_to
from videonsa.models.tower_probe import probe_bytes
from videonsa.models.vision import ALIGNED

_FLOAT32 = 4

HEADROOM = 0.1
"""Share of the estimate that has to be free beside it: the prediction's own error, and memory that
the allocator cannot use."""
StageName = Literal["vision tower", "joining", "prefill", "next token"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """One question about one video, as far as memory and time depend on it."""

    shape: ModelShape
    grid: tuple[int, int, int]
    """Temporal patches, rows and columns of patches."""
    prompt_tokens: int
    """Of the whole prompt; `read_tokens` are those that a method keeps of it."""
    max_new_tokens: int
    kernels: bool
    """Vision rows attend by the GPU's kernels; else by the reference."""
    rows_per_chunk: int = ROWS_PER_CHUNK
    patches_per_chunk: int = PATCHES_PER_PART

    @property
    def method(self) -> AttentionMethod:
        """How the model attends."""
        return self.shape.method

    @property
    def video_tokens(self) -> int:
        """Merged tokens of the video."""
        return self.num_patches // self.shape.vision.merge_size**2

    @property
    def kept_tokens(self) -> int:
        """Of these, those that the layers read; of some methods, at most."""
        return kept_tokens(self.method, self.grid, self.shape.vision.merge_size)

    @property
    def read_tokens(self) -> int:
        """T: tokens of the prompt that the first layer reads."""
        return self.prompt_tokens - self.video_tokens + self.kept_tokens

    @property
    def num_patches(self) -> int:
        """Patches of the video."""
        frames, rows, columns = self.grid
        return frames * rows * columns

    @property
    def chunk_rows(self) -> int:
        """R: rows that go through the layers at a time; the rule of `models.chunks`."""
        whole = not self.method.is_chunked or why_at_once(self.method) is not None
        return self.read_tokens if whole else even_chunk(self.read_tokens, self.rows_per_chunk)

    @property
    def chunk_patches(self) -> int:
        """P: whole frames that go through the tower at a time."""
        _, rows, columns = self.grid
        frames = max(self.patches_per_chunk // (rows * columns), 1)
        return min(frames, self.grid[0]) * rows * columns

    @property
    def attention(self) -> AttentionCall:
        """The attention of the last chunk, as a method is asked about it."""
        shape = self.shape
        return AttentionCall(
            prompt_tokens=self.prompt_tokens,
            chunk_tokens=self.chunk_rows,
            video_tokens=self.video_tokens,
            num_frames=self.grid[0],
            num_layers=shape.num_layers,
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            value_bytes=shape.value_bytes,
            kernels=self.kernels,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class StageMemory:
    """The peak of one stage: bytes by the names of its terms."""

    name: StageName
    terms: dict[str, int]

    @property
    def total(self) -> int:
        """All terms."""
        return sum(self.terms.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Bytes of every stage. The allocator's own loss and the GPU's context come on top."""

    stages: tuple[StageMemory, ...]

    @property
    def peak(self) -> StageMemory:
        """The stage that takes most."""
        return max(self.stages, key=lambda stage: stage.total)

    @property
    def total(self) -> int:
        """Peak of all stages."""
        return self.peak.total

    def fits(self, memory: int | None) -> bool:
        """Whether it fits so many bytes, with `HEADROOM`; None is without bound."""
        return memory is None or self.total * (1 + HEADROOM) <= memory

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        stages = {stage.name: stage.terms | {"total": stage.total} for stage in self.stages}
        return {"total": self.total, "peak_stage": self.peak.name, "stages": stages}


def estimate_memory(work: Workload) -> MemoryEstimate:
    """Peak bytes of the tower, of joining its features with the text, of prefill and decoding."""
    return MemoryEstimate(
        stages=(
            StageMemory(name="vision tower", terms=tower_terms(work)),
            StageMemory(name="joining", terms=joining_terms(work)),
            StageMemory(name="prefill", terms=prefill_terms(work)),
            StageMemory(name="next token", terms=decoding_terms(work)),
        )
    )


def tower_terms(work: Workload) -> dict[str, int]:
    """The vision tower at its last whole chunk, at a rest behind it, or where features are joined.

    Features of the chunks before are kept, or those of the tokens that a method chooses by each
    frame alone; at the end all are put together, in a copy, where a method may compare them.
    """
    whole, rest = divmod(work.num_patches, work.chunk_patches)
    moments = [((whole - 1) * work.chunk_patches, work.chunk_patches)]
    moments += [(whole * work.chunk_patches, rest)] if rest else []
    candidates = [
        {
            "features": _held_features(work, before),
            "pixels": _pixels(work, patches),
            "activations": max(_tower_activations(work, patches), _probing(work, patches)),
        }
        for before, patches in moments
    ]
    if len(moments) + whole > 2:
        candidates.append({"features": 2 * _held_features(work, work.num_patches)})
    if isinstance(work.method, TokenCompression) and work.method.compares_frames:
        candidates.append(_comparing(work, work.method))
    largest = max(candidates, key=lambda terms: sum(terms.values()))
    terms = ("features", "pixels", "activations", "compression")
    found = {name: largest.get(name, 0) for name in terms}
    if not found["compression"]:
        del found["compression"]
    return {"weights": work.shape.weight_bytes} | found


def _held_features(work: Workload, patches: int) -> int:
    """Features of the patches that were encoded, as far as they are held."""
    method, (_, rows, columns) = work.method, work.grid
    if not isinstance(method, TokenCompression) or method.compares_frames:
        return _features(work, patches)
    size = work.shape.vision.merge_size
    kept = kept_tokens(method, (patches // (rows * columns), rows, columns), size)
    return _features(work, kept * size**2)


def _probing(work: Workload, patches: int) -> int:
    """A block on P patches where a method asks for the attention they receive.

    Beside scores: residual, normed rows, angles, q, k and v, q and k turned, and in another order.
    """
    method, (_, rows, columns) = work.method, work.grid
    if not isinstance(method, TokenCompression):
        return 0
    if method.tower_probe is None or not method.tower_probe.received:
        return 0
    vision, value, frame = work.shape.vision, work.shape.value_bytes, rows * columns
    held = patches * (9 * vision.hidden_size * value + 2 * vision.head_dim * _FLOAT32)
    return held + probe_bytes(patches // frame, frame, heads=vision.num_heads, value_bytes=value)


def _comparing(work: Workload, method: TokenCompression) -> dict[str, int]:
    """All features, those that are kept of them, and what it takes to compare them."""
    frames, vision = work.grid[0], work.shape.vision
    kept = _features(work, work.kept_tokens * vision.merge_size**2)
    comparing = method.compression_bytes(
        frames, work.video_tokens // frames, vision.out_hidden_size
    )
    return {"features": _features(work, work.num_patches) + kept, "compression": comparing}


def joining_terms(work: Workload) -> dict[str, int]:
    """The features take their places among the embedded ids, in a copy of them."""
    return {
        "weights": work.shape.weight_bytes,
        "embeddings": 2 * _embeddings(work),
        "features": _features(work, work.kept_tokens * work.shape.vision.merge_size**2),
    }


def prefill_terms(work: Workload) -> dict[str, int]:
    """The last layer on the last chunk of rows: all of the cache is there."""
    chunked = work.chunk_rows < work.read_tokens
    previous = 1 if chunked else 0  # the last hidden states of the chunk before
    mlp, attention = _mlp(work), work.method.workspace_bytes(work.attention)
    return {
        "weights": work.shape.weight_bytes,
        "embeddings": _embeddings(work),
        "cache": (work.read_tokens + ROOM) * work.shape.cache_bytes_per_token,
        "rows": (2 + previous) * _hidden(work) + 2 * work.chunk_rows * _head(work),
        "MLP" if mlp >= attention else "attention": max(mlp, attention),
    }


def decoding_terms(work: Workload) -> dict[str, int]:
    """The last token: the cache, and once the room behind it is full, a layer's keys once more.

    Captured steps take memory for the whole answer at once, and `SPARE` behind it.
    """
    shape, tokens = work.shape, work.read_tokens + work.max_new_tokens
    outgrown = work.max_new_tokens >= ROOM
    spare = SPARE + 1 if outgrown and work.kernels else ROOM
    terms = {
        "weights": shape.weight_bytes,
        "cache": (tokens + spare) * shape.cache_bytes_per_token,
        "logits": shape.vocab_size * (shape.value_bytes + _FLOAT32),
    }
    if outgrown:
        terms["growing"] = tokens * shape.cache_bytes_per_token // (2 * shape.num_layers)
    return terms


def _embeddings(work: Workload) -> int:
    """T rows of the hidden size."""
    return work.read_tokens * work.shape.hidden_size * work.shape.value_bytes


def _features(work: Workload, patches: int) -> int:
    """What the tower gives: a row for each merged token."""
    vision = work.shape.vision
    tokens = patches // vision.merge_size**2
    return tokens * vision.out_hidden_size * work.shape.value_bytes


def _pixels(work: Workload, patches: int) -> int:
    """Of the frames of a chunk: their bytes, float32 and the tower's dtype. No other is there."""
    copies = 1 + _FLOAT32 + (work.shape.value_bytes if work.shape.value_bytes < _FLOAT32 else 0)
    return patches * work.shape.vision.patch_values * copies


def _tower_activations(work: Workload, patches: int) -> int:
    """A block on P patches: residual, normed rows and angles, and what its MLP takes.

    The MLP has the rows after attention, gate, up and their product; attention takes less.
    """
    vision, value = work.shape.vision, work.shape.value_bytes
    width = up_to(vision.intermediate_size, ALIGNED)
    rows = 2 * vision.hidden_size * value + 2 * vision.head_dim * _FLOAT32
    return patches * (rows + vision.hidden_size * value + width * _gated_bytes(work))


def _hidden(work: Workload) -> int:
    """R rows of the hidden size."""
    return work.chunk_rows * work.shape.hidden_size * work.shape.value_bytes


def _head(work: Workload) -> int:
    """A row of the rotary angles."""
    return work.shape.head_dim * work.shape.value_bytes


def _mlp(work: Workload) -> int:
    """The rows after attention, and gate, up and their product; a weight of 8 bits restored.

    More rows than the MLP takes at a time leave it part by part.
    """
    shape, rows = work.shape, min(work.chunk_rows, ROWS_PER_CHUNK)
    width = rows * shape.intermediate_size * _gated_bytes(work)
    parts = 2 if rows < work.chunk_rows else 1
    return parts * _hidden(work) + width + shape.restored_bytes


def _gated_bytes(work: Workload) -> int:
    """Of gate, up and their product, a value of each; in fp8 the product has one byte."""
    value = work.shape.value_bytes
    return 2 * value + (1 if work.shape.weights == "fp8" else value)


def size_text(count: int) -> str:
    """Bytes in GB or MB, of 10^9 and 10^6."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
