"""The two regimes."""

from dataclasses import replace

import pytest
import torch

from videonsa.bench.attention_inputs import (
    MEASURED_DISORDER,
    REGIMES,
    disorder,
    make_inputs,
)
from videonsa.bench.attention_shapes import SHAPES

CPU = torch.device("cpu")
SHAPE = replace(SHAPES["tiny-1k"], dtype="float32")


def test_the_same_seed_gives_the_same_tensors_and_another_seed_others():
    first, again, other = (make_inputs(SHAPE, REGIMES, device=CPU, seed=seed) for seed in (3, 3, 4))
    for regime in REGIMES:
        for x, y, z in zip(first[regime], again[regime], other[regime], strict=True):
            assert torch.equal(x, y)
            assert not torch.equal(x, z)


def test_the_regimes_differ_in_the_queries_alone():
    made = make_inputs(SHAPE, REGIMES, device=CPU)
    for one, other in zip(made["random"][1:], made["coherent"][1:], strict=True):
        assert one is other
    assert not torch.equal(made["random"].q, made["coherent"].q)


def test_a_regime_does_not_depend_on_which_others_are_made():
    alone = make_inputs(SHAPE, ["coherent"], device=CPU)["coherent"].q
    assert torch.equal(alone, make_inputs(SHAPE, REGIMES, device=CPU)["coherent"].q)


@pytest.mark.parametrize("name", ["tiny-256", "tiny-frame20"])
def test_tensors_have_the_sizes_and_dtype_of_the_shape(name):
    shape = SHAPES[name]
    q, k, v, gates = make_inputs(shape, ["coherent"], device=CPU)["coherent"]
    assert q.shape == (1, shape.tokens, 6, 16)
    assert k.shape == v.shape == (1, shape.tokens, 2, 16)
    assert gates.shape == (1, shape.tokens, 6, 3)
    assert {x.dtype for x in (q, k, v, gates)} == {torch.bfloat16}


def test_coherent_queries_of_a_frame_are_one_query_and_a_tenth_of_noise():
    shape = replace(SHAPES["tiny-frame20"], tokens=2000, dtype="float32")
    q = make_inputs(shape, ["coherent"], device=CPU)["coherent"].q
    frames = q.unflatten(1, (100, 20))
    assert frames.std(dim=2).mean().item() == pytest.approx(0.1, rel=0.05)
    assert frames.mean(dim=2).std().item() == pytest.approx(1.0, rel=0.05)
    heads_differ = (frames[:, :, :, 0] - frames[:, :, :, 1]).abs().mean()
    assert heads_differ.item() > 0.5


def test_coherent_queries_exist_for_a_frame_that_is_still_arriving():
    shape = replace(SHAPES["tiny-frame20"], tokens=30)
    assert make_inputs(shape, ["coherent"], device=CPU)["coherent"].q.shape[1] == 30


def test_measured_queries_disagree_as_much_as_was_measured():
    shape = replace(SHAPES["tiny-1k"], dtype="float32", tokens=320)
    made = make_inputs(shape, ["measured", "random", "coherent"], device=CPU)
    found = {name: disorder(inputs, shape) for name, inputs in made.items()}
    assert found["measured"] == pytest.approx(MEASURED_DISORDER, abs=0.02)
    assert found["coherent"] < found["measured"] < found["random"]
    assert made["measured"].q.std() == pytest.approx(1.0, abs=0.05)
