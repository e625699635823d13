"""How the ops are called: each computes what its name says."""

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from videonsa.bench import op_calls
from videonsa.bench.attention_inputs import make_inputs
from videonsa.bench.attention_shapes import SHAPES
from videonsa.bench.op_calls import (
    attend,
    attend_with_branches,
    pad_groups,
    prepare_dense,
    prepare_fla,
    prepare_videonsa,
    spec_of,
)
from videonsa.ops import nsa_attention
from videonsa.ops.reference import dense_reference

CPU = torch.device("cpu")


def made(name, **changes):
    shape = replace(SHAPES[name], **changes)
    return make_inputs(shape, ["random"], device=CPU)["random"], shape


@pytest.mark.parametrize("scope", ["token", "block"])
@pytest.mark.parametrize("name", ["tiny-256", "tiny-frame20"])
def test_the_op_is_nsa_attention_with_the_shapes_options(name, scope):
    inputs, shape = made(name)
    spec = spec_of(shape, scope)
    wanted = nsa_attention(*inputs, spec=spec, frame_sizes=shape.frame_sizes, backend="reference")
    prepared = prepare_videonsa(inputs, shape, scope=scope)
    assert prepared.inputs == inputs
    assert torch.equal(prepared.forward(), wanted)
    assert prepared.notes == ()
    result = attend_with_branches(inputs, shape, scope=scope, backend="reference")
    assert torch.equal(result.output, wanted)


def test_every_call_selects_anew(monkeypatch):
    inputs, shape = made("tiny-256")
    asked = []

    def watched(*args, **options):
        asked.append(options.get("selected_blocks"))
        return nsa_attention(*args, **options)

    monkeypatch.setattr(op_calls, "nsa_attention", watched)
    attend(inputs, shape, scope="token", backend="reference")
    assert asked == [None]


def wanted_dense(inputs, shape):
    positions = torch.arange(shape.tokens)[None]
    return dense_reference(inputs.q, inputs.k, inputs.v, positions=positions).transpose(1, 2)


def test_dense_is_causal_attention_of_grouped_heads():
    inputs, shape = made("tiny-256", dtype="float32")
    output = prepare_dense(inputs, shape, backend="flash").forward()
    torch.testing.assert_close(output, wanted_dense(inputs, shape), rtol=1e-5, atol=1e-5)


def test_where_groups_are_refused_keys_are_expanded_and_it_is_said(monkeypatch):
    inputs, shape = made("tiny-256", dtype="float32")
    plain = torch.nn.functional.scaled_dot_product_attention

    def refusing(q, k, v, *, is_causal, enable_gqa):
        if enable_gqa:
            raise RuntimeError("No available kernel")
        return plain(q, k, v, is_causal=is_causal)

    monkeypatch.setattr(op_calls.F, "scaled_dot_product_attention", refusing)
    prepared = prepare_dense(inputs, shape, backend="flash")
    torch.testing.assert_close(
        prepared.forward(), wanted_dense(inputs, shape), rtol=1e-5, atol=1e-5
    )
    assert "expanded 3 times outside the timed region" in prepared.notes[0]
    assert [x.shape[1] for x in prepared.inputs] == [6, 6, 6]


def test_an_output_has_shape_and_strides_of_the_first_input():
    inputs, shape = made("tiny-256")
    for prepared in (
        prepare_videonsa(inputs, shape, scope="token"),
        prepare_dense(inputs, shape, backend="flash"),
    ):
        q = prepared.inputs[0]
        output = prepared.forward()
        assert (output.shape, output.stride()) == (q.shape, q.stride())


def test_padded_heads_are_zeros_behind_those_of_each_kv_head():
    x = torch.arange(1, 13.0).view(1, 2, 6)
    padded = pad_groups(x, num_kv_heads=2, group=4)
    assert padded.tolist() == [[[1, 2, 3, 0, 4, 5, 6, 0], [7, 8, 9, 0, 10, 11, 12, 0]]]


@pytest.fixture
def fla(monkeypatch):
    """A stand-in that adds to each query head the first key of its KV head; keeps its arguments."""
    module = ModuleType("fla.ops.nsa")
    module.asked = {}

    def parallel_nsa(**options):
        module.asked.update(options)
        q, k = options["q"], options["k"]
        return q + k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)

    module.parallel_nsa = parallel_nsa
    for name in ("fla", "fla.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "fla.ops.nsa", module)
    return module


def test_the_peer_gets_padded_groups_its_two_gates_and_selects_itself(fla):
    inputs, shape = made("tiny-256")
    prepared = prepare_fla(inputs, shape)
    output = prepared.forward().unflatten(2, (2, 16))
    wanted = inputs.q + inputs.k.repeat_interleave(3, dim=2)
    assert torch.equal(output[:, :, :, :3].flatten(2, 3), wanted)
    assert fla.asked["g_cmp"].shape == fla.asked["g_slc"].shape == (1, 256, 32)
    assert torch.equal(
        fla.asked["g_slc"].unflatten(2, (2, 16))[..., :3].flatten(2), inputs.gates[..., 1]
    )
    assert (fla.asked["block_counts"], fla.asked["block_size"]) == (4, 16)
    assert fla.asked["window_size"] == 0
    assert "block_indices" not in fla.asked
    assert any("padded with zeros from 3 to 16" in note for note in prepared.notes)
    assert "without a window branch" in prepared.notes
    given = [fla.asked[name] for name in ("q", "k", "v", "g_cmp", "g_slc")]
    assert all(x is y for x, y in zip(prepared.inputs, given, strict=True))


def test_groups_that_need_no_padding_get_none(fla):
    inputs, shape = made("tiny-256", query_heads=32)
    prepared = prepare_fla(inputs, shape)
    assert prepared.forward().shape[2] == 32
    assert not any("padded" in note for note in prepared.notes)


@pytest.mark.parametrize(
    ("name", "changes", "line"),
    [
        ("tiny-frame20", {}, "blocks of 20 tokens: parallel_nsa wants a power of 2"),
        ("tiny-256", {"block_size": 48}, "blocks of 48 tokens"),
        ("tiny-256", {"num_selected": 3}, "n = 3, s = 16"),
        ("tiny-256", {"num_selected": 16}, "at most s / 2"),
    ],
)
def test_shapes_that_the_peer_does_not_take_are_refused_in_one_line(name, changes, line):
    inputs, shape = made(name, **changes)
    with pytest.raises(ValueError, match=line):
        prepare_fla(inputs, shape)
