"""Cases of `nsa_attention`, their float64 reference, and how far a result may be from it."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from plain import plain_nsa
from torch import Tensor

from videonsa.ops import NSAResult, NSASpec, masks, nsa_attention
from videonsa.ops.reference import pool_blocks
from videonsa.ops.varlen import Sample, block_borders, block_table

OUTPUTS = ("output", "o_cmp", "o_slc", "o_win")
LSES = ("lse_cmp", "lse_slc", "lse_win")
KERNEL_DTYPE = torch.bfloat16 if torch.cuda.is_available() else torch.float32
"""The interpreter cannot multiply bfloat16; the kernels take no float32 on a GPU."""
NEAR_TIE = 1e-5
"""Relative gap of two importances under which either block may be selected."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """T rows of random q and S keys; `q_lengths` and `k_lengths` pack samples."""

    rows: int = 0
    keys: int | None = None
    batch: int = 1
    group: int = 2
    kv_heads: int = 1
    dim: int = 16
    dtype: torch.dtype = KERNEL_DTYPE
    gate_dtype: torch.dtype = torch.float32
    q_offset: int | None = None
    q_lengths: tuple[int, ...] = ()
    k_lengths: tuple[int, ...] = ()
    frames: tuple[int, ...] | None = None
    s: int | str = 16
    n: int = 3
    w: int = 20
    options: dict[str, object] = field(default_factory=dict)
    coherence: float = 0.0
    """Share of q that neighbouring rows have in common: what lets them select the same blocks."""

    @property
    def spec(self) -> NSASpec:
        """What the case computes."""
        return NSASpec(
            block_size=self.s, num_selected_blocks=self.n, window_size=self.w, **self.options
        )

    @property
    def num_rows(self) -> int:
        """T of the tensors."""
        return sum(self.q_lengths or self.k_lengths) or self.rows

    @property
    def num_keys(self) -> int:
        """S of the tensors."""
        return sum(self.k_lengths) or self.keys or self.rows

    def samples(self) -> list[Sample]:
        """Rows and keys of every sample, flat over the batch."""
        if self.k_lengths:
            lengths = zip(self.q_lengths or self.k_lengths, self.k_lengths, strict=True)
            samples, row, key = [], 0, 0
            for num_rows, num_keys in lengths:
                samples.append(Sample(row, num_rows, key, num_keys))
                row, key = row + num_rows, key + num_keys
            return samples
        seen = self.num_keys if self.q_offset is None else self.q_offset + self.rows
        return [
            Sample(i * self.rows, self.rows, i * self.num_keys, seen) for i in range(self.batch)
        ]

    def arguments(self, device: torch.device) -> dict[str, object]:
        """The keyword arguments of `nsa_attention`."""
        arguments: dict[str, object] = {"spec": self.spec, "frame_sizes": self.frames}
        if self.q_offset is not None:
            arguments["q_offset"] = self.q_offset
        if self.k_lengths:
            arguments["cu_seqlens_k"] = cumulative(self.k_lengths, device)
        if self.q_lengths:
            arguments["cu_seqlens_q"] = cumulative(self.q_lengths, device)
        return arguments


def cumulative(lengths: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def make_inputs(case: Case, device: torch.device, *, seed: int = 0) -> tuple[Tensor, ...]:
    """q, k, v in the dtype of the case, and gates."""
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int, heads: int) -> Tensor:
        return torch.randn(case.batch, rows, heads, case.dim, generator=generator)

    num_heads = case.group * case.kv_heads
    q, k, v = (
        normal(case.num_rows, num_heads),
        *(normal(case.num_keys, case.kv_heads) for _ in "kv"),
    )
    common = normal(-(-case.num_rows // 64), num_heads).repeat_interleave(64, 1)[:, : q.shape[1]]
    q = q * (1 - case.coherence) + 2 * common * case.coherence
    gates = torch.rand(case.batch, case.num_rows, num_heads, 3, generator=generator)
    q, k, v = (x.to(device, case.dtype) for x in (q, k, v))
    return q, k, v, gates.to(device, case.gate_dtype)


def run_kernels(case: Case, inputs: Sequence[Tensor], **arguments: object) -> NSAResult:
    common = {"return_branches": True, "backend": "triton"}
    with torch.no_grad():
        return nsa_attention(*inputs, **case.arguments(inputs[0].device) | common | arguments)


def reference_of(case: Case, inputs: Sequence[Tensor], selected: Tensor) -> NSAResult:
    """The float64 reference for a given selection."""
    doubles = [x.double() for x in inputs]
    arguments = case.arguments(inputs[0].device) | {"selected_blocks": selected}
    with torch.no_grad():
        return nsa_attention(*doubles, backend="reference", return_branches=True, **arguments)


def plain_of(case: Case, inputs: Sequence[Tensor], selected: Tensor) -> NSAResult:
    """Plain PyTorch in the dtype of the inputs for a given selection."""
    q, k, v, gates, selected = (x.flatten(0, 1) for x in (*inputs, selected))
    parts = []
    for sample, borders in zip(case.samples(), borders_of(case), strict=True):
        rows = slice(sample.first_row, sample.first_row + sample.num_rows)
        keys = slice(sample.first_key, sample.first_key + sample.num_keys)
        parts.append(
            plain_nsa(
                q[rows],
                k[keys],
                v[keys],
                gates[rows],
                selected[rows],
                borders=borders,
                first_row=sample.offset,
                spec=case.spec,
            )
        )
    fields = [
        torch.cat(field).unflatten(0, inputs[0].shape[:2]) for field in zip(*parts, strict=True)
    ]
    return NSAResult(*fields)


def borders_of(case: Case) -> list[list[int]]:
    return block_borders(case.s, case.frames, [sample.num_keys for sample in case.samples()])


def assert_close_to_reference(case: Case, inputs: Sequence[Tensor], found: NSAResult) -> None:
    """At most twice the error of plain PyTorch, plus rounding noise; empty rows exactly empty.

    Noise of an output: o_slc is rounded where it is stored for the merge and after it, o_cmp once,
    the sum once: four half units in the last place of the largest value. Noise of an LSE: the
    score, its product with log2(e), the sum and the logarithm are rounded once each in float32.
    """
    exact = reference_of(case, inputs, found.selected_blocks)
    plain = plain_of(case, inputs, found.selected_blocks)
    noise = 2 * torch.finfo(case.dtype).eps * max(_largest(getattr(exact, x)) for x in OUTPUTS)
    for name in OUTPUTS:
        assert getattr(found, name).dtype == case.dtype, name
        _assert_within(name, found, exact, plain, noise)
    for name in LSES:
        wanted, ours = getattr(exact, name), getattr(found, name)
        assert ours.dtype == torch.float32, name
        assert torch.equal(ours.isneginf(), wanted.isneginf()), f"{name}: other rows are empty"
        finite = wanted[wanted.isfinite()]
        noise = 4 * torch.finfo(torch.float32).eps * max(_largest(finite), 1.0)
        _assert_within(name, found, exact, plain, noise)
    for name, lse in zip(OUTPUTS[1:], LSES, strict=True):
        empty = getattr(exact, lse).isneginf()
        assert (getattr(found, name)[empty] == 0).all(), f"{name}: a row without keys is not 0"


def _assert_within(
    name: str, found: NSAResult, exact: NSAResult, plain: NSAResult, noise: float
) -> None:
    wanted, ours, theirs = (getattr(x, name).double() for x in (exact, found, plain))
    there = ~wanted.isneginf()  # an LSE without keys
    error, of_plain = (_largest(x[there] - wanted[there]) for x in (ours, theirs))
    allowed = 2 * of_plain + noise
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def _largest(x: Tensor) -> float:
    return x.abs().max().item() if x.numel() else 0.0


def differing_rows(case: Case, inputs: Sequence[Tensor], selected: Tensor) -> int:
    """Rows that select other blocks than float64 does; asserts that each is a near-tie.

    Importance is computed in float64 from the pooled keys in the dtype of the inputs.
    """
    q, k, found = inputs[0].flatten(0, 1), inputs[1].flatten(0, 1), selected.flatten(0, 1)
    count = 0
    for sample, borders in zip(case.samples(), borders_of(case), strict=True):
        rows = slice(sample.first_row, sample.first_row + sample.num_rows)
        keys = slice(sample.first_key, sample.first_key + sample.num_keys)
        count += _differing(q[rows], k[keys], found[rows], borders, sample.offset, case.spec)
    return count


def _differing(
    q: Tensor, k: Tensor, found: Tensor, borders: Sequence[int], first_row: int, spec: NSASpec
) -> int:
    importance, candidates, current = importance_of(q, k, borders, first_row, spec)
    num_blocks = len(borders) - 1
    taken = masks.forced(
        current[None], num_blocks, num_init=spec.num_init_blocks, num_local=spec.num_local_blocks
    )[0, :, None]
    wanted = masks.top_blocks(importance, candidates, taken, spec.num_selected_blocks)
    ours, theirs = (masks.membership(x, num_blocks) for x in (found, wanted))  # [T, H, C]
    assert torch.equal(found, masks.ascending(found)), "not ascending, or not each block once"
    assert torch.equal(ours.sum(-1), theirs.sum(-1)), "another number of blocks"
    assert not (ours & ~(candidates | taken)).any(), "a block that is no candidate"
    differs = (ours != theirs).any(-1)
    if differs.any():
        least_ours = importance.masked_fill(~(ours & ~theirs), torch.inf).amin(-1)[differs]
        most_theirs = importance.masked_fill(~(theirs & ~ours), 0).amax(-1)[differs]
        gap = (most_theirs - least_ours) / most_theirs.clamp(min=torch.finfo(torch.float32).tiny)
        assert gap.max() < NEAR_TIE, f"{int(differs.sum())} rows differ, gap up to {gap.max():.3g}"
    return int(differs.sum())


def importance_of(
    q: Tensor, k: Tensor, borders: Sequence[int], first_row: int, spec: NSASpec
) -> tuple[Tensor, Tensor, Tensor]:
    """Importance `[T, H, C]` float64 of a stream, candidates `[T, 1, C]`, current blocks `[T]`."""
    blocks = block_table([borders], len(k), device=q.device)
    row = torch.arange(first_row, first_row + len(q), device=q.device)
    current = masks.block_of(blocks.offsets, row)[0]
    candidates = masks.visible(blocks.offsets, row)[0]  # [T, C]
    means = pool_blocks(k[None], blocks)[0].double()  # [C', H, D]
    grouped = q.double().unflatten(1, (k.shape[1], -1))
    scores = torch.einsum("thgd,chd->htgc", grouped, means) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~candidates[:, None, : means.shape[0]], -torch.inf)
    importance = scores.softmax(-1).nan_to_num(0).sum(2).transpose(0, 1)  # [T, H, C']
    importance = torch.nn.functional.pad(importance, (0, len(borders) - 1 - means.shape[0]))
    if spec.selection_scope == "block":
        for start, stop in pairwise(borders):
            inside = (row >= start) & (row < stop)
            importance[inside] = importance[inside].sum(0)
        candidates = torch.arange(len(borders) - 1, device=q.device) < current[:, None]
    return importance, candidates[:, None], current


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever makes the host wait for the GPU raises."""
    torch.cuda.synchronize()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
