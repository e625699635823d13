"""Peak memory of a question, stage by stage, as a sum of named terms: arithmetic, no allocation.

Every term follows what the code allocates; the tests hold the sums against the code itself, run
with tensors that have no values. Letters: T prompt tokens, R rows of a chunk, S keys, P patches of
a chunk, h hidden size, v bytes of a value.
"""

from dataclasses import dataclass
from typing import Any, Literal

from videonsa.models.cache import ROOM
from videonsa.models.choice import even_chunk
from videonsa.models.features import PATCHES_PER_PART
from videonsa.models.fused import ROWS_PER_CHUNK
from videonsa.models.shape import ModelShape, up_to
from videonsa.models.vision import ALIGNED
from videonsa.ops.reference import SCORES_PER_CHUNK
from videonsa.ops.spec import MAX_BLOCK_SIZE, NSASpec
from videonsa.ops.triton.memory import AttentionShape, kernel_bytes, released_bytes
from videonsa.ops.triton.tuning import Tuning, hopper

_FLOAT32 = 4
_COPIES_PER_CHUNK = 3  # scores, the masked ones or probabilities, and the masks of a chunk

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
    max_new_tokens: int
    attention: Literal["nsa", "dense"]
    kernels: bool
    """Vision rows attend by the GPU's kernels; else by the reference."""
    rows_per_chunk: int = ROWS_PER_CHUNK
    patches_per_chunk: int = PATCHES_PER_PART

    @property
    def spec(self) -> NSASpec:
        """Of the attention."""
        return self.shape.spec

    @property
    def video_tokens(self) -> int:
        """Merged tokens of the video."""
        return self.num_patches // self.shape.vision.merge_size**2

    @property
    def num_patches(self) -> int:
        """Patches of the video."""
        frames, rows, columns = self.grid
        return frames * rows * columns

    @property
    def chunk_rows(self) -> int:
        """R: rows that go through the layers at a time; the rule of `models.choice`."""
        whole = (
            self.attention == "dense"
            or self.spec.stream == "sequence"
            or self.spec.selection_scope == "block"
        )
        return self.prompt_tokens if whole else even_chunk(self.prompt_tokens, self.rows_per_chunk)

    @property
    def chunk_patches(self) -> int:
        """P: whole frames that go through the tower at a time."""
        _, rows, columns = self.grid
        frames = max(self.patches_per_chunk // (rows * columns), 1)
        return min(frames, self.grid[0]) * rows * columns

    @property
    def num_blocks(self) -> int:
        """Blocks of the stream that vision rows attend to."""
        size = self.spec.block_size
        if size == "frame":
            tokens = self.video_tokens // self.grid[0]
            return self.grid[0] * -(-tokens // MAX_BLOCK_SIZE)
        released = self.spec.stream == "sequence"
        return -(-(self.prompt_tokens if released else self.video_tokens) // size)


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

    Features of the chunks before are kept; at the end all are put together, in a copy.
    """
    whole, rest = divmod(work.num_patches, work.chunk_patches)
    moments = [((whole - 1) * work.chunk_patches, work.chunk_patches)]
    moments += [(whole * work.chunk_patches, rest)] if rest else []
    candidates = [
        {
            "features": _features(work, before),
            "pixels": _pixels(work, patches),
            "activations": _tower_activations(work, patches),
        }
        for before, patches in moments
    ]
    if len(moments) + whole > 2:
        candidates.append({"features": 2 * _features(work, work.num_patches)})
    largest = max(candidates, key=lambda terms: sum(terms.values()))
    return {
        "weights": work.shape.weight_bytes,
        "features": largest["features"],
        "pixels": largest.get("pixels", 0),
        "activations": largest.get("activations", 0),
    }


def joining_terms(work: Workload) -> dict[str, int]:
    """The features take their places among the embedded ids, in a copy of them."""
    return {
        "weights": work.shape.weight_bytes,
        "embeddings": 2 * _embeddings(work),
        "features": _features(work, work.num_patches),
    }


def prefill_terms(work: Workload) -> dict[str, int]:
    """The last layer on the last chunk of rows: all of the cache is there."""
    chunked = work.chunk_rows < work.prompt_tokens
    previous = 1 if chunked else 0  # the last hidden states of the chunk before
    mlp, attention = _mlp(work), _attention(work)
    return {
        "weights": work.shape.weight_bytes,
        "embeddings": _embeddings(work),
        "cache": (work.prompt_tokens + ROOM) * work.shape.cache_bytes_per_token,
        "rows": (2 + previous) * _hidden(work) + 2 * work.chunk_rows * _head(work),
        "MLP" if mlp >= attention else "attention": max(mlp, attention),
    }


def decoding_terms(work: Workload) -> dict[str, int]:
    """The last token: the cache, and once the room behind it is full, a layer's keys once more."""
    shape, tokens = work.shape, work.prompt_tokens + work.max_new_tokens
    terms = {
        "weights": shape.weight_bytes,
        "cache": (tokens + ROOM) * shape.cache_bytes_per_token,
        "logits": shape.vocab_size * (shape.value_bytes + _FLOAT32),
    }
    if work.max_new_tokens > ROOM:
        terms["growing"] = tokens * shape.cache_bytes_per_token // (2 * shape.num_layers)
    return terms


def _embeddings(work: Workload) -> int:
    """T rows of the hidden size."""
    return work.prompt_tokens * work.shape.hidden_size * work.shape.value_bytes


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
    return patches * (rows + (vision.hidden_size + 3 * width) * value)


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
    width = 3 * rows * shape.intermediate_size * shape.value_bytes
    parts = 2 if rows < work.chunk_rows else 1
    return parts * _hidden(work) + width + shape.restored_bytes


def _attention(work: Workload) -> int:
    """Queries, and what it takes to attend: by kernels, by the reference, or fused."""
    queries = work.chunk_rows * work.shape.num_heads * _head(work)
    if work.attention == "dense":
        return 2 * queries
    gates = work.chunk_rows * work.shape.num_heads * 3 * work.shape.value_bytes
    return queries + gates + (_by_kernels(work) if work.kernels else _by_reference(work))


def attention_shape(work: Workload) -> AttentionShape:
    """The call of the last chunk; all of its rows are counted as vision rows."""
    shape, released = work.shape, work.spec.stream == "sequence"
    return AttentionShape(
        num_rows=work.chunk_rows,
        num_keys=work.prompt_tokens if released else work.video_tokens,
        num_blocks=work.num_blocks,
        num_selected=work.spec.num_selected_blocks,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        value_bytes=shape.value_bytes,
    )


def _by_kernels(work: Workload) -> int:
    """The kernels' buffers: vision rows and keys that follow one another are not copied."""
    call, tuning = attention_shape(work), _tuning(work)
    bytes_of = released_bytes if work.spec.stream == "sequence" else kernel_bytes
    return bytes_of(call, tuning)


def _tuning(work: Workload) -> Tuning:
    """That of the newest GPUs, whose buffers are the largest."""
    size = work.spec.block_size
    if size == "frame":
        tokens = work.video_tokens // work.grid[0]
        size = -(-tokens // -(-tokens // MAX_BLOCK_SIZE))
    return hopper(size)


def _by_reference(work: Workload) -> int:
    """Vision rows, keys and values, these in float32 too, and a chunk of scores."""
    call = attention_shape(work)
    in_float32 = 2 * call.key_bytes * _FLOAT32 // call.value_bytes
    scores = min(SCORES_PER_CHUNK, call.num_heads * call.num_rows * call.num_keys)
    outputs = 2 * call.query_bytes
    vision = call.query_bytes + 2 * call.key_bytes
    return vision + in_float32 + outputs + _COPIES_PER_CHUNK * scores * _FLOAT32


def size_text(count: int) -> str:
    """Bytes in GB or MB, of 10^9 and 10^6."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
