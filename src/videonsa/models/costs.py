"""What NSA's attention costs in memory and operations, from shapes alone; nothing is allocated."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from videonsa.ops.reference import SCORES_PER_CHUNK
from videonsa.ops.spec import MAX_BLOCK_SIZE, NSASpec
from videonsa.ops.triton.memory import AttentionShape, kernel_bytes, released_bytes
from videonsa.ops.triton.tuning import Tuning, hopper

_FLOAT32 = 4
_COPIES_PER_CHUNK = 3  # scores, the masked ones or probabilities, and the masks of a chunk


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionCall:
    """The attention of one layer on the last chunk of a prompt about one video."""

    prompt_tokens: int
    chunk_tokens: int
    """T: tokens that go through the layer together."""
    video_tokens: int
    num_frames: int
    """Temporal patches."""
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_bytes: int
    """Of q, k and v: 2 for bfloat16."""
    kernels: bool = True
    """Vision tokens attend by the GPU's kernels; else by the reference."""

    @property
    def tokens_per_frame(self) -> int:
        """Merged tokens of a temporal patch, on average where some have left."""
        return max(self.video_tokens // self.num_frames, 1)

    @property
    def width(self) -> int:
        """Values of all query heads of a token."""
        return self.num_heads * self.head_dim

    @property
    def query_bytes(self) -> int:
        """A tensor like q."""
        return self.chunk_tokens * self.width * self.value_bytes


def calls_left(
    call: AttentionCall, vision_tokens: Sequence[tuple[int, int]]
) -> Iterator[AttentionCall]:
    """The call where tokens leave: one for each run of layers that hold the same tokens.

    Args:
        call: of the whole prompt in all layers.
        vision_tokens: first layer and vision tokens of each run, the layers ascending from 0.
    """
    ends = [first for first, _ in vision_tokens[1:]] + [call.num_layers]
    for (first, count), end in zip(vision_tokens, ends, strict=True):
        gone = call.video_tokens - count
        yield replace(
            call,
            num_layers=end - first,
            video_tokens=count,
            prompt_tokens=call.prompt_tokens - gone,
            chunk_tokens=min(call.chunk_tokens, call.prompt_tokens - gone),
        )


def attention_shape(call: AttentionCall, spec: NSASpec) -> AttentionShape:
    """The ops' call; all tokens of the chunk are counted as vision tokens."""
    released = spec.stream == "sequence"
    return AttentionShape(
        num_rows=call.chunk_tokens,
        num_keys=call.prompt_tokens if released else call.video_tokens,
        num_blocks=num_blocks(call, spec),
        num_selected=spec.num_selected_blocks,
        num_heads=call.num_heads,
        num_kv_heads=call.num_kv_heads,
        head_dim=call.head_dim,
        value_bytes=call.value_bytes,
    )


def num_blocks(call: AttentionCall, spec: NSASpec) -> int:
    """Blocks of the stream that vision tokens attend to."""
    size = spec.block_size
    if size == "frame":
        return call.num_frames * -(-call.tokens_per_frame // MAX_BLOCK_SIZE)
    released = spec.stream == "sequence"
    return -(-(call.prompt_tokens if released else call.video_tokens) // size)


def nsa_bytes(call: AttentionCall, spec: NSASpec) -> int:
    """Queries, gates, and what it takes to attend: by kernels or by the reference."""
    gates = call.chunk_tokens * call.num_heads * 3 * call.value_bytes
    work = _kernel_bytes(call, spec) if call.kernels else _reference_bytes(call, spec)
    return call.query_bytes + gates + work


def nsa_operations(call: AttentionCall, spec: NSASpec) -> float:
    """Selected blocks, window, compressed keys and the scoring of blocks, of all layers."""
    tokens = call.video_tokens
    keys = min(attended_keys(spec, call.tokens_per_frame), tokens / 2)
    is_scored = "selected" in spec.branches and spec.selection == "scores"
    compressed = 1.5 if is_scored else float("compressed" in spec.branches)
    compressed *= num_blocks(call, spec) / 2
    return 4.0 * tokens * (keys + compressed) * call.width * call.num_layers


def attended_keys(spec: NSASpec, tokens_per_frame: int) -> int:
    """K = n * s + w of the branches that take part; compressed keys are not counted."""
    window = spec.window_size
    selected = spec.attention_keys(tokens_per_frame) - window
    return selected * ("selected" in spec.branches) + window * ("window" in spec.branches)


def _kernel_bytes(call: AttentionCall, spec: NSASpec) -> int:
    """The kernels' buffers: vision tokens and keys that follow one another are not copied."""
    bytes_of = released_bytes if spec.stream == "sequence" else kernel_bytes
    return bytes_of(attention_shape(call, spec), _tuning(call, spec))


def _tuning(call: AttentionCall, spec: NSASpec) -> Tuning:
    """That of the newest GPUs, whose buffers are the largest."""
    size = spec.block_size
    if size == "frame":
        tokens = call.tokens_per_frame
        size = -(-tokens // -(-tokens // MAX_BLOCK_SIZE))
    return hopper(size)


def _reference_bytes(call: AttentionCall, spec: NSASpec) -> int:
    """Vision tokens, keys and values, these in float32 too, and a chunk of scores."""
    shape = attention_shape(call, spec)
    in_float32 = 2 * shape.key_bytes * _FLOAT32 // shape.value_bytes
    scores = min(SCORES_PER_CHUNK, shape.num_heads * shape.num_rows * shape.num_keys)
    outputs = 2 * shape.query_bytes
    vision = shape.query_bytes + 2 * shape.key_bytes
    return vision + in_float32 + outputs + _COPIES_PER_CHUNK * scores * _FLOAT32
