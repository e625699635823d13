"""How each op is called: what is made ready outside the timed region, and the call itself."""

import importlib
import warnings
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from videonsa.bench.attention_inputs import Inputs
from videonsa.bench.attention_shapes import Shape
from videonsa.ops import NSAResult, NSASpec, nsa_attention
from videonsa.ops.nsa import Backend

Scope: TypeAlias = Literal["token", "block"]

FLA_GROUP = 16
"""Fewest query heads a KV head that flash-linear-attention takes."""
_PROBE_TOKENS = 256


class Prepared(NamedTuple):
    """An op with its inputs bound, and what a reader of its numbers must know."""

    forward: Callable[[], Tensor]
    inputs: tuple[Tensor, ...]
    """What gradients are taken of; q first, in the shape and strides of the output."""
    notes: tuple[str, ...] = ()


def backend_of(device: torch.device) -> Backend:
    """What is measured on a device: the kernels, or on a CPU the reference."""
    return "triton" if device.type == "cuda" else "reference"


def spec_of(shape: Shape, scope: Scope) -> NSASpec:
    """The `paper` spec of a shape."""
    return NSASpec(
        block_size=shape.block_size,
        num_selected_blocks=shape.num_selected,
        window_size=shape.window,
        selection_scope=scope,
    )


def attend(inputs: Inputs, shape: Shape, *, scope: Scope, backend: Backend) -> Tensor:
    """The whole op, from pooling to the gated sum, selection included: `[1, T, HQ, D]`."""
    output = nsa_attention(
        *inputs, spec=spec_of(shape, scope), frame_sizes=shape.frame_sizes, backend=backend
    )
    assert isinstance(output, Tensor), "no branches were asked for"
    return output


def attend_with_branches(
    inputs: Inputs,
    shape: Shape,
    *,
    scope: Scope,
    backend: Backend,
    selected_blocks: Tensor | None = None,
) -> NSAResult:
    """The same op with all it was made of, and on request with a given selection."""
    result = nsa_attention(
        *inputs,
        spec=spec_of(shape, scope),
        frame_sizes=shape.frame_sizes,
        selected_blocks=selected_blocks,
        return_branches=True,
        backend=backend,
    )
    assert isinstance(result, NSAResult), "branches were asked for"
    return result


def prepare_videonsa(inputs: Inputs, shape: Shape, *, scope: Scope) -> Prepared:
    """`nsa_attention`; nothing is made ready outside the call."""
    backend = backend_of(inputs.q.device)
    return Prepared(lambda: attend(inputs, shape, scope=scope, backend=backend), inputs)


def prepare_dense(inputs: Inputs, shape: Shape, *, backend: Literal["cudnn", "flash"]) -> Prepared:
    """Dense causal attention by one backend of PyTorch, on `[B, heads, T, D]` views."""
    chosen = SDPBackend.CUDNN_ATTENTION if backend == "cudnn" else SDPBackend.FLASH_ATTENTION
    q, k, v = (x.transpose(1, 2) for x in inputs[:3])
    grouped = shape.query_heads == shape.kv_heads or _takes_groups(q, k, v, chosen)
    notes: tuple[str, ...] = ()
    if not grouped:
        group = shape.query_heads // shape.kv_heads
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
        notes = (
            f"enable_gqa is refused: K and V are expanded {group} times outside the timed region, "
            "and their gradients stay so",
        )

    def forward() -> Tensor:
        with sdpa_kernel(chosen):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)

    return Prepared(forward, (q, k, v), notes)


def _takes_groups(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend) -> bool:
    """The backend runs with fewer KV heads than query heads; tried on a few tokens."""
    q, k, v = (x[:, :, :_PROBE_TOKENS] for x in (q, k, v))
    with warnings.catch_warnings(), sdpa_kernel(backend):
        warnings.simplefilter("ignore")  # PyTorch warns why a backend refuses
        try:
            F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        except RuntimeError:
            return False
    return True


def prepare_fla(inputs: Inputs, shape: Shape) -> Prepared:
    """`fla.ops.nsa.parallel_nsa`, which selects its blocks itself.

    Raises:
        ValueError: a shape that its kernels do not take.
    """
    size, num_selected = shape.block_size, shape.num_selected
    if size == "frame" or not _power_of_2(size):
        raise ValueError(
            f"blocks of {shape.block_tokens} tokens: parallel_nsa wants a power of 2 tokens a block"
        )
    if not _power_of_2(num_selected) or 2 * num_selected > size:
        raise ValueError(
            f"n = {num_selected}, s = {size}: parallel_nsa wants n a power of 2 and at most s / 2"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # it names packages it does without
        parallel_nsa = importlib.import_module("fla.ops.nsa").parallel_nsa
    group = shape.query_heads // shape.kv_heads
    padded = max(FLA_GROUP, 1 << (group - 1).bit_length())
    q = pad_groups(inputs.q, num_kv_heads=shape.kv_heads, group=padded)
    gates = pad_groups(inputs.gates, num_kv_heads=shape.kv_heads, group=padded)
    g_cmp, g_slc = (gates[..., branch].contiguous() for branch in (0, 1))

    def forward() -> Tensor:
        output: Tensor = parallel_nsa(
            q=q,
            k=inputs.k,
            v=inputs.v,
            g_cmp=g_cmp,
            g_slc=g_slc,
            block_counts=num_selected,
            block_size=size,
            window_size=0,
        )
        return output

    notes = ["without a window branch", "always selects the first and the last two blocks"]
    if padded != group:
        notes.append(
            f"query heads padded with zeros from {group} to {padded} a KV head, outside the timed "
            "region; the output keeps the padding"
        )
    return Prepared(forward, (q, inputs.k, inputs.v, g_cmp, g_slc), tuple(notes))


def pad_groups(x: Tensor, *, num_kv_heads: int, group: int) -> Tensor:
    """Zero heads behind the query heads of each KV head: HQ becomes H * group.

    Args:
        x: `[B, T, HQ, ...]`.
        num_kv_heads: H.
        group: query heads a KV head that are wanted.
    """
    heads = x.unflatten(2, (num_kv_heads, -1))
    padded = x.new_zeros(*heads.shape[:3], group, *x.shape[3:])
    padded[:, :, :, : heads.shape[3]] = heads
    return padded.flatten(2, 3)


def _power_of_2(value: int) -> bool:
    return value & (value - 1) == 0
