"""Random inputs and comparison with the brute-force loops."""

import brute
import torch

from videonsa.ops import NSAResult, NSASpec

FIELDS = {
    "o_cmp": ("branch", "compressed"),
    "o_slc": ("branch", "selected"),
    "o_win": ("branch", "window"),
    "lse_cmp": ("lse", "compressed"),
    "lse_slc": ("lse", "selected"),
    "lse_win": ("lse", "window"),
}


def make_inputs(rows, keys=None, *, batch=1, heads=2, kv_heads=1, dim=4, seed=0, grad=False):
    """q, k, v and gates in float64."""
    keys = rows if keys is None else keys
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return x.requires_grad_(grad)

    gates = torch.rand(batch, rows, heads, 3, generator=generator, dtype=torch.float64)
    return (
        normal(batch, rows, heads, dim),
        normal(batch, keys, kv_heads, dim),
        normal(batch, keys, kv_heads, dim),
        gates.requires_grad_(grad),
    )


def make_spec(s=4, n=2, w=3, **overrides):
    return NSASpec(block_size=s, num_selected_blocks=n, window_size=w, **overrides)


def options_of(spec, frames=()):
    return brute.Options(
        s=spec.block_size,
        n=spec.num_selected_blocks,
        w=spec.window_size,
        init=spec.num_init_blocks,
        local=spec.num_local_blocks,
        scope=spec.selection_scope,
        branches=spec.branches,
        frames=tuple(frames),
    )


def brute_nsa(q, k, v, gates, spec, *, frames=(), first_row=None, selected=None):
    """The loops on sample 0."""
    lists = [x[0].tolist() for x in (q, k, v, gates)]
    options = options_of(spec, frames)
    return brute.nsa(*lists, options, first_row=first_row, selected=selected)


def assert_result_equals(result: NSAResult, expected: brute.Result, sample=0, rows=slice(None)):
    """Every field of one sample of an `NSAResult` against the loops."""
    expected_output = torch.tensor(expected.output, dtype=torch.float64)
    torch.testing.assert_close(result.output[sample, rows], expected_output, rtol=0, atol=1e-12)
    for name, (kind, branch) in FIELDS.items():
        found = getattr(result, name)[sample, rows]
        wanted = torch.tensor(getattr(expected, kind)[branch], dtype=found.dtype)
        atol = 1e-12 if found.dtype == torch.float64 else 1e-6
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=atol, msg=lambda m: name + m)  # noqa: B023
    assert result.selected_blocks[sample, rows].tolist() == expected.selected
