"""What the kernels allocate, told from shapes alone and without importing Triton.

The arithmetic follows `forward.py` and `released.py` buffer by buffer; its tests hold it against
both and against what was measured on a GPU.
"""

import math
from dataclasses import dataclass

from videonsa.ops.triton.tuning import Tuning, rows_of_tile

_INT = _FLOAT32 = 4
_ITEM_TILES = 8
_CHUNKS_PER_PASS = 16
_MAX_RANKED = 512
_MAX_GRID = 65535
_PADDED_HEADS, _PADDED_GROUP, _SORTED_SLOTS = 64, 16, 64


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionShape:
    """One call of the kernels: R query rows of one sample over S keys in C blocks."""

    num_rows: int
    num_keys: int
    num_blocks: int
    num_selected: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_bytes: int
    """Of q, k and v: 2 for bfloat16."""

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def query_bytes(self) -> int:
        """A tensor like q."""
        return self.num_rows * self.num_heads * self.head_dim * self.value_bytes

    @property
    def key_bytes(self) -> int:
        """A tensor like k."""
        return self.num_keys * self.num_kv_heads * self.head_dim * self.value_bytes


def kernel_bytes(shape: AttentionShape, tuning: Tuning) -> int:
    """Peak of the `paper` preset beside q, k, v and gates; the output is not alive at the peak.

    What stays (pooled keys, the compressed branch and its LSE, the selection, the index), and the
    larger of scoring and the selected branch.
    """
    rows, kv_heads = shape.num_rows, shape.num_kv_heads
    pooled = 2 * shape.num_blocks * kv_heads * shape.head_dim * shape.value_bytes
    pooled += (shape.num_keys + shape.num_blocks) * kv_heads * _FLOAT32  # which are not finite
    lse = rows * shape.num_heads * _FLOAT32
    selection = rows * kv_heads * shape.num_selected * _INT
    index = 4 * rows * _INT + 2 * shape.num_blocks * _INT
    kept = pooled + shape.query_bytes + lse + selection + index
    selected = shape.query_bytes + lse + _plan_bytes(shape, tuning) + _pair_bytes(shape, tuning)
    return kept + max(_score_bytes(shape, tuning), selected)


def released_bytes(shape: AttentionShape, tuning: Tuning) -> int:
    """Peak of the `released` preset beside q, k and v; the layer's output is not alive at the peak.

    The copies of q, k and v without text rows, the sum of the 64 padded heads with its LSE and
    gates, the selection, queries, keys, values and window of the last group, and while the copies
    of the heads are averaged two tensors like q; or a chunk of importance in place of these.
    """
    rows, value = shape.num_rows, shape.value_bytes
    without_text = shape.query_bytes + 2 * shape.key_bytes
    total = rows * _PADDED_HEADS * (shape.head_dim * value + 3 * _FLOAT32 + 3 * value)
    slots = 1 << (shape.num_selected - 1).bit_length()
    selection = rows * shape.num_kv_heads * slots * _INT
    pooled = 2 * shape.num_blocks * shape.num_kv_heads * shape.head_dim * value
    of_heads = rows * _PADDED_GROUP * (shape.head_dim * value)
    group = 2 * of_heads + 2 * rows * shape.head_dim * value + rows * _PADDED_GROUP * _FLOAT32
    width = _up_to(shape.num_blocks, _SORTED_SLOTS)
    unit = max(tuning.importance.block_m, _SORTED_SLOTS)
    chunk = max(1, tuning.score_bytes // (_FLOAT32 * width * unit)) * unit
    importance = min(chunk, _up_to(rows, unit)) * width * _FLOAT32
    at_work = max(importance, 2 * shape.query_bytes)
    return without_text + total + selection + pooled + group + at_work


def _score_bytes(shape: AttentionShape, tuning: Tuning) -> int:
    """Importance of a chunk of rows, and where blocks are many its groups."""
    block_m, blocks = tuning.importance.block_m, shape.num_blocks
    tile_bytes = block_m * shape.num_kv_heads * blocks * _FLOAT32
    tiles = min(-(-shape.num_rows // block_m), _MAX_GRID, tuning.score_bytes // tile_bytes)
    width = blocks
    if blocks > _MAX_RANKED:
        group = max(math.isqrt(blocks // shape.num_selected), 1)
        group = min(max(1 << (group - 1).bit_length(), 2), 32)
        width += -(-blocks // group) + shape.num_selected
    return max(1, tiles) * block_m * shape.num_kv_heads * width * _FLOAT32


def _plan_bytes(shape: AttentionShape, tuning: Tuning) -> int:
    """Blocks that tiles of rows share, and the pairs that are left."""
    tile = rows_of_tile(shape.group, tuning.selected.block_m)
    units = -(-shape.num_rows // tile) * shape.num_kv_heads
    bound = tile * shape.num_selected // tuning.min_shared + tile
    pairs = shape.num_rows * shape.num_kv_heads * (shape.num_selected + 2)
    return (units * (3 * bound + 3) + pairs) * _INT


def _pair_bytes(shape: AttentionShape, tuning: Tuning) -> int:
    """Partial outputs of a chunk of pairs, and the lists of the chunks of one pass."""
    row = shape.head_dim * shape.value_bytes + _FLOAT32
    tile = rows_of_tile(shape.group, tuning.selected.block_m)
    most = shape.num_rows * shape.num_kv_heads * shape.num_selected
    capacity = max(1, min(most, tuning.partial_bytes // (shape.group * row)))
    region = min(most, capacity + tile * shape.num_selected)
    chunks = min(_CHUNKS_PER_PASS, -(-most // capacity))
    lists = shape.num_kv_heads * shape.num_blocks
    item = tuning.partial.block_m // shape.group * _ITEM_TILES
    items = region // item + min(lists, region)
    ints = chunks * (2 * lists + 2 + 2 * region + 3 * items)
    ints += -(-shape.num_rows // tile) * shape.num_kv_heads
    return region * shape.group * row + ints * _INT


def _up_to(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
