"""The shapes that are measured."""

import pytest

from videonsa.bench.attention_shapes import DEFAULT_SHAPES, DEFAULT_TINY_SHAPES, SHAPES, TINY, Shape
from videonsa.bench.op_calls import spec_of

LENGTHS = ("16k", "32k", "64k", "128k", "256k", "1m")


def test_every_model_and_block_kind_has_every_length():
    names = {f"{family}-{length}" for family in ("7b", "3b", "frame60") for length in LENGTHS}
    assert names == {name for name in SHAPES if not name.startswith(TINY)}
    assert all(name == shape.name for name, shape in SHAPES.items())


def test_the_default_shapes_exist():
    assert {*DEFAULT_SHAPES, *DEFAULT_TINY_SHAPES} <= set(SHAPES)


def test_the_7b_shape_is_the_published_layer():
    assert SHAPES["7b-128k"] == Shape(
        name="7b-128k",
        tokens=131072,
        query_heads=28,
        kv_heads=4,
        head_dim=128,
        block_size=64,
        num_selected=32,
        window=256,
    )


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_shape_has_a_valid_spec_and_whole_groups_of_heads(shape):
    assert spec_of(shape, "block").num_selected_blocks == shape.num_selected
    assert shape.query_heads % shape.kv_heads == 0


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_shape_ends_with_a_whole_block(shape):
    assert shape.tokens % shape.block_tokens == 0
    if shape.block_size == "frame":
        assert sum(shape.frame_sizes) == shape.tokens
    else:
        assert shape.frame_sizes is None
