"""`hybrid_attention(backend="triton")`: vision rows by kernels, text rows by fused attention."""

import pytest
import torch
from kernel_cases import KERNEL_DTYPE, Case, make_inputs

from videonsa.ops import NSASpec, hybrid_attention, hybrid_layout, nsa_attention
from videonsa.ops.triton import forward

SPEC = NSASpec(block_size=8, num_selected_blocks=2, window_size=5)


def mask_of(num_samples, num_rows, *runs, device):
    mask = torch.zeros(num_samples, num_rows, dtype=torch.bool, device=device)
    for start, stop in runs:
        mask[:, start:stop] = True
    return mask


def hybrid(inputs, vision, **options):
    with torch.no_grad():
        return hybrid_attention(*inputs, vision, **({"spec": SPEC} | options))


@pytest.mark.parametrize("frames", [None, (9, 6, 10)], ids=["blocks", "frames"])
def test_vision_rows_are_those_of_the_stream_and_all_are_close_to_the_reference(frames, device):
    spec = SPEC.with_options(block_size="frame") if frames else SPEC
    options = {"spec": spec, "frame_sizes": frames and [*frames, *frames]}
    inputs = make_inputs(Case(rows=33, batch=2, group=1), device)
    vision = mask_of(2, 33, (3, 12), (14, 20), (22, 32), device=device)
    found = hybrid(inputs, vision, backend="triton", **options)
    reference = hybrid(inputs, vision, backend="reference", **options)
    stream = [x[vision].view(2, 25, *x.shape[2:]) for x in inputs]
    with torch.no_grad():
        wanted = nsa_attention(*stream, backend="triton", **options)
    assert torch.equal(found[vision].view_as(wanted), wanted)
    noise = 8 * torch.finfo(KERNEL_DTYPE).eps
    torch.testing.assert_close(found, reference, rtol=noise, atol=noise)


def test_samples_of_unequal_counts_and_padding_keep_to_themselves(device):
    inputs = make_inputs(Case(rows=24, batch=2), device)
    vision = mask_of(2, 24, (2, 20), device=device)
    vision[1, 15:] = False
    valid = torch.ones_like(vision)
    valid[1, 18:] = False
    found = hybrid(inputs, vision, attention_mask=valid, backend="triton", return_branches=True)
    reference = hybrid(inputs, vision, attention_mask=valid, backend="reference")
    noise = 8 * torch.finfo(KERNEL_DTYPE).eps
    torch.testing.assert_close(found.output, reference, rtol=noise, atol=noise)
    assert (found.output[~valid] == 0).all()
    assert found.lse_slc[~vision].isneginf().all()
    assert (found.selected_blocks[~vision] == -1).all()


def test_a_shared_layout_gives_the_same_bits(device):
    inputs = make_inputs(Case(rows=20), device)
    vision = mask_of(1, 20, (2, 18), device=device)
    layout = hybrid_layout(vision, spec=SPEC, num_rows=20)
    found = hybrid(inputs, vision, layout=layout, backend="triton")
    assert torch.equal(found, hybrid(inputs, vision, backend="triton"))


def test_a_sequence_without_vision_needs_no_kernel(device):
    inputs = make_inputs(Case(rows=9), device)
    vision = mask_of(1, 9, device=device)
    found = hybrid(inputs, vision, backend="triton")
    reference = hybrid(inputs, vision, backend="reference")
    noise = 8 * torch.finfo(KERNEL_DTYPE).eps
    torch.testing.assert_close(found, reference, rtol=noise, atol=noise)


@pytest.mark.parametrize("alike", [True, False], ids=["samples alike", "padded"])
def test_gradients_are_close_to_those_of_the_reference(alike, device):
    inputs = [x.requires_grad_() for x in make_inputs(Case(rows=24, batch=2), device)]
    vision = mask_of(2, 24, (2, 20), device=device)
    valid = torch.ones_like(vision)
    if not alike:
        vision[1, 15:] = False
        valid[1, 18:] = False
    options = {"spec": SPEC, "attention_mask": valid}
    found, wanted = (
        torch.autograd.grad(
            hybrid_attention(*inputs, vision, backend=backend, **options).sum(), inputs
        )
        for backend in ("triton", "reference")
    )
    noise = 16 * torch.finfo(KERNEL_DTYPE).eps
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=noise, atol=noise * theirs.abs().max().item())


def test_a_random_selection_and_its_gradients_are_those_of_the_reference(device):
    inputs = [x.requires_grad_() for x in make_inputs(Case(rows=19, batch=2), device)]
    vision = mask_of(2, 19, (1, 18), device=device)
    options = {"spec": SPEC.with_options(block_size=4, selection="random"), "layer": 3}
    outputs = [
        hybrid_attention(*inputs, vision, backend=backend, **options)
        for backend in ("triton", "reference")
    ]
    noise = 16 * torch.finfo(KERNEL_DTYPE).eps
    torch.testing.assert_close(*outputs, rtol=noise, atol=noise)
    grads = [torch.autograd.grad(x.sum(), inputs) for x in outputs]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=noise, atol=noise * theirs.abs().max().item())


def test_branches_that_take_no_part_are_not_computed_in_training(device, monkeypatch):
    for name in ("compressed", "_select", "_selected"):
        monkeypatch.setattr(forward, name, None)
    inputs = [x.requires_grad_() for x in make_inputs(Case(rows=24), device)]
    spec = SPEC.with_options(branches=("window",))
    found, wanted = (
        torch.autograd.grad(nsa_attention(*inputs, spec=spec, backend=x).sum(), inputs)
        for x in ("triton", "reference")
    )
    assert not found[3][..., :2].any(), "the gates of absent branches"
    noise = 16 * torch.finfo(KERNEL_DTYPE).eps
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=noise, atol=noise * theirs.abs().max().item())
