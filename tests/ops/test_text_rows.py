"""Text rows by fused attention against the reference."""

import pytest
import torch

from videonsa.ops import text_rows
from videonsa.ops.reference import dense_reference
from videonsa.ops.text_rows import dense_rows


def make(group, *, rows=6, keys=20):
    generator = torch.Generator().manual_seed(0)

    def normal(length, heads):
        return torch.randn(2, length, heads, 8, generator=generator)

    q, k, v = normal(rows, 2 * group), normal(keys, 2), normal(keys, 2)
    positions = torch.tensor([[0, 3, 7, 8, 18, 19], [-1, 1, 2, -1, 5, 19]])
    key_mask = torch.rand(2, keys, generator=generator) > 0.3
    key_mask[0, 0] = False
    return q, k, v, positions, key_mask


@pytest.mark.parametrize("elements", [1, 200, 2**27], ids=["one row", "few rows", "all rows"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("group", [1, 7])
def test_rows_and_gradients_equal_the_reference(group, masked, elements, monkeypatch):
    monkeypatch.setattr(text_rows, "MASK_ELEMENTS", elements)
    q, k, v, positions, key_mask = make(group)
    options = {"positions": positions, "key_mask": key_mask if masked else None}
    own = [x.requires_grad_() for x in (q, k, v)]
    found, wanted = (attend(*own, **options) for attend in (dense_rows, dense_reference))
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    assert (found[1, [0, 3]] == 0).all()
    grad = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(
        torch.autograd.grad(found, own, grad), torch.autograd.grad(wanted, own, grad), strict=True
    ):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


RUNS = [(0, 2, 2), (2, 3, 9), (5, 1, 20)]
POSITIONS = torch.tensor([[0, 1, 6, 7, 8, 19]] * 2)


@pytest.mark.parametrize("group", [1, 7])
def test_runs_and_their_gradients_equal_the_reference(group):
    q, k, v, _, _ = make(group)
    own = [x.double().requires_grad_() for x in (q, k, v)]
    found = dense_rows(*own, positions=POSITIONS, runs=RUNS)
    wanted = dense_reference(*own, positions=POSITIONS)
    torch.testing.assert_close(found, wanted)
    grad = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).double()
    grads = (torch.autograd.grad(out, own, grad) for out in (found, wanted))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_runs_are_nan_where_they_see_a_value_that_is_not_finite(name):
    """In the heads that see it; no other row and no gradient is touched."""
    q, k, v, _, _ = make(2)
    inputs = {"q": q, "k": k, "v": v}
    clean = dense_rows(q, k, v, positions=POSITIONS)
    inputs[name][1, 3 if name == "q" else 7, 1, 3] = torch.nan  # of position 7
    own = [x.requires_grad_() for x in inputs.values()]
    out = dense_rows(*own, positions=POSITIONS, runs=RUNS)
    poisoned = torch.zeros(out.shape[:3], dtype=torch.bool)
    if name == "q":
        poisoned[1, 3, 1] = True
    else:
        poisoned[1, 3:, 2:] = True  # the query heads of the second KV head
    assert torch.equal(out.isnan().all(-1), poisoned)
    torch.testing.assert_close(out[~poisoned], clean[~poisoned], atol=1e-6, rtol=1e-5)
    assert all(x.isfinite().all() for x in torch.autograd.grad(out, own, torch.ones_like(out)))


def test_masked_keys_reach_no_row():
    q, k, v, positions, key_mask = make(2)
    wanted = dense_rows(q, k, v, positions=positions, key_mask=key_mask)
    for value in (100.0, torch.nan, torch.inf):
        k[~key_mask] = value
        v[~key_mask] = -value
        assert torch.equal(dense_rows(q, k, v, positions=positions, key_mask=key_mask), wanted)


@pytest.mark.parametrize("attend", [dense_rows, dense_reference])
@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_rows_and_gradients_keep_their_bits_whatever_a_later_token_holds(attend, name, value):
    q, k, v, _, _ = make(7)
    positions = torch.tensor([[0, 3, 7, 8, 18, 19]] * 2)

    def results(q, k, v):
        own = [x.clone().requires_grad_() for x in (q, k, v)]
        out = attend(*own, positions=positions)
        return out, *torch.autograd.grad(out, own, torch.ones_like(out))

    inputs = {"q": q, "k": k, "v": v}
    clean = results(**inputs)
    row, token = 3, 18  # of position 8, and seen by the last two rows alone
    inputs[name] = inputs[name].clone()
    inputs[name][:, row if name == "q" else token, 0, 3] = value
    out, *grads = results(**inputs)
    rows = [0, 1, 2, 4, 5] if name == "q" else [0, 1, 2, 3]
    assert torch.equal(out[:, rows], clean[0][:, rows])
    assert torch.equal(grads[0][:, rows], clean[1][:, rows])
    if name == "q":
        assert torch.equal(grads[1][:, 9:], clean[2][:, 9:])
        assert torch.equal(grads[2][:, 9:], clean[3][:, 9:])
    assert value == torch.inf or out[:, row if name == "q" else 4].isnan().any()


def test_dtype_is_that_of_the_queries():
    q, k, v, positions, _ = make(2)
    half = [x.bfloat16() for x in (q, k, v)]
    assert dense_rows(*half, positions=positions).dtype == torch.bfloat16
