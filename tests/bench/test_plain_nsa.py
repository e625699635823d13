"""NSA in plain PyTorch: right where rounding does not matter."""

from dataclasses import replace

import pytest
import torch

from videonsa.bench.attention_inputs import Inputs, make_inputs
from videonsa.bench.attention_shapes import SHAPES
from videonsa.bench.op_calls import attend_with_branches
from videonsa.bench.plain_nsa import importances, plain_nsa
from videonsa.ops import masks

CPU = torch.device("cpu")
CASES = [("tiny-256", 100, "token"), ("tiny-256", 96, "block"), ("tiny-frame20", 70, "token")]


def made(name, tokens):
    shape = replace(SHAPES[name], tokens=tokens)
    inputs = make_inputs(shape, ["random"], device=CPU)["random"]
    return shape, Inputs(*(x.double() for x in inputs))


@pytest.mark.parametrize(("name", "tokens", "scope"), CASES)
def test_in_float64_every_branch_is_the_references(name, tokens, scope):
    shape, inputs = made(name, tokens)
    wanted = attend_with_branches(inputs, shape, scope=scope, backend="reference")
    found = plain_nsa(inputs, shape, wanted.selected_blocks)
    for field, value in found._asdict().items():
        torch.testing.assert_close(value, getattr(wanted, field), rtol=0, atol=1e-12, msg=field)


@pytest.mark.parametrize(("name", "tokens", "scope"), CASES)
def test_the_importances_select_what_the_reference_selects(name, tokens, scope):
    shape, inputs = made(name, tokens)
    wanted = attend_with_branches(inputs, shape, scope=scope, backend="reference").selected_blocks
    score = importances(inputs, shape, scope=scope, dtype=torch.float64)
    found = masks.top_blocks(score, score > -torch.inf, score == torch.inf, shape.num_selected)
    assert torch.equal(masks.ascending(found), wanted)


def test_results_are_rounded_to_the_dtype_of_the_inputs():
    shape = replace(SHAPES["tiny-256"], tokens=40)
    inputs = make_inputs(shape, ["random"], device=CPU)["random"]
    none = torch.full((1, 40, 2, 4), -1, dtype=torch.int32)
    found = plain_nsa(inputs, shape, none)
    assert {x.dtype for x in found} == {torch.bfloat16}
    assert not found.o_slc.any()
    assert not found.o_cmp[:, :15].any()
