"""What the public ops refuse, and that they say what came."""

import logging

import numpy as np
import pytest
import torch
from nsa_cases import make_inputs, make_spec

from videonsa.errors import UsageError
from videonsa.ops import NSASpec, hybrid_attention, hybrid_layout, nsa, nsa_attention

SPEC = make_spec()


def inputs(**changed):
    tensors = dict(zip("qkvg", make_inputs(8, heads=4, kv_heads=2), strict=True), **changed)
    return [tensors[name] for name in "qkvg"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"q": torch.zeros(8, 4, 4).double()}, "q is .8, 4, 4."),
        ({"q": torch.zeros(2, 8, 4, 4).double()}, "same batch"),
        ({"q": torch.zeros(1, 8, 4, 6).double()}, "head dim"),
        ({"q": torch.zeros(1, 8, 3, 4).double()}, "multiple of"),
        ({"v": torch.zeros(1, 7, 2, 4).double()}, "v is .1, 7, 2, 4."),
        ({"v": torch.zeros(1, 8, 2, 4)}, "torch.float32"),
        ({"q": torch.zeros(1, 8, 4, 4, dtype=torch.int64)}, "torch.int64"),
        ({"g": torch.zeros(1, 8, 4)}, "gates is .1, 8, 4."),
        ({"g": torch.zeros(1, 8, 4, 3, device="meta")}, "meta"),
        ({"k": torch.zeros(1, 3, 2, 4).double(), "v": torch.zeros(1, 3, 2, 4).double()}, "3 keys"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(changed, message):
    with pytest.raises(ValueError, match=message) as caught:
        nsa_attention(*inputs(**changed), spec=SPEC)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["q", "k", "v", "gates"])
@pytest.mark.parametrize(
    "value", [None, [[1.0]], 3, np.zeros((1, 8, 4, 4)), torch.zeros(1, 8, 4, 4).to_sparse()]
)
def test_what_is_no_dense_tensor_is_refused(name, value):
    tensors = dict(zip(("q", "k", "v", "gates"), inputs(), strict=True)) | {name: value}
    with pytest.raises(UsageError, match=rf"^{name} is .*want a "):
        nsa_attention(*tensors.values(), spec=SPEC)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64, torch.bool, torch.int8])
def test_dtypes_that_nothing_computes_in_are_refused(dtype):
    q, k, v, gates = inputs()
    with pytest.raises(UsageError, match="want float16, bfloat16, float32 or float64"):
        nsa_attention(*(x.to(dtype) for x in (q, k, v)), gates, spec=SPEC)
    with pytest.raises(UsageError, match="want float16, bfloat16, float32 or float64"):
        nsa_attention(q, k, v, gates.to(dtype), spec=SPEC)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("spec", None),
        ("spec", {"block_size": 4}),
        ("cu_seqlens_k", [0, 8]),
        ("cu_seqlens_q", (0, 8)),
        ("q_offset", 0.0),
        ("q_offset", "0"),
        ("q_offset", True),
        ("q_offset", torch.tensor(0)),
        ("return_branches", 1),
        ("return_branches", None),
        ("selected_blocks", [[0]]),
        ("backend", None),
        ("backend", ["auto"]),
        ("backend", torch.zeros(2, 2)),
        ("q_offset", torch.zeros(2, 2)),
        ("cu_seqlens_k", torch.tensor([0, 8], dtype=torch.int32, device="meta")),
    ],
)
def test_options_of_another_type_are_refused(name, value):
    with pytest.raises(UsageError, match=f"^{name}") as caught:
        nsa_attention(*inputs(), **({"spec": SPEC} | {name: value}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vision_mask", None),
        ("vision_mask", [[True] * 8]),
        ("attention_mask", "yes"),
        ("layout", 1),
        ("spec", 64),
        ("cu_seqlens_k", [0, 8]),
        ("q_offset", 0.5),
    ],
)
def test_options_of_the_hybrid_of_another_type_are_refused(name, value):
    options = {"spec": SPEC, "vision_mask": torch.ones(1, 8, dtype=torch.bool)} | {name: value}
    with pytest.raises(UsageError, match=f"^{name}"):
        hybrid_attention(*inputs(), **options)
    if name != "layout":
        with pytest.raises(UsageError, match=f"^{name}"):
            hybrid_layout(options.pop("vision_mask"), num_rows=8, **options)


@pytest.mark.parametrize("num_rows", [None, 8.0, True, "8", 0, -1])
def test_layout_of_no_number_of_rows_is_refused(num_rows):
    with pytest.raises(UsageError, match="num_rows"):
        hybrid_layout(torch.ones(1, 8, dtype=torch.bool), spec=SPEC, num_rows=num_rows)


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "triton"}, "backend='triton': the "),
        ({"backend": "cuda"}, "'auto', 'reference' or 'triton'"),
        ({"q_offset": 1}, "q_offset=1"),
        ({"q_offset": -1}, "q_offset=-1"),
        ({"q_offset": 0, "cu_seqlens_k": int32(0, 8)}, "leave q_offset out"),
        ({"cu_seqlens_q": int32(0, 8)}, "without cu_seqlens_k"),
        ({"cu_seqlens_k": torch.tensor([0, 8])}, "torch.int64"),
        ({"cu_seqlens_k": int32(0, 5)}, "0 to 5"),
        ({"cu_seqlens_k": int32(0, 5, 3, 8)}, "decreases"),
        ({"cu_seqlens_k": int32(0, 3, 8), "cu_seqlens_q": int32(0, 8)}, "1 samples"),
        ({"cu_seqlens_k": int32(0, 3, 8), "cu_seqlens_q": int32(0, 5, 8)}, "sample 0 has 5"),
        ({"selected_blocks": torch.zeros(1, 8, 2, 3, dtype=torch.int32)}, "want int32"),
        ({"selected_blocks": torch.zeros(1, 8, 2, 2)}, "torch.float32"),
        ({"selected_blocks": torch.full((1, 8, 2, 2), 2)}, "block 2 of 2"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        nsa_attention(*inputs(), spec=SPEC, **options)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (None, "without frame_sizes"),
        ([4, 3], "end at token 7"),
        ([4, 0, 4], "at least 1 token"),
        (torch.ones(4), "1-D ints"),
        ([6.5, 1.5], "holds 6.5: want 1-D ints"),
        (["3", "5"], "holds '3': want 1-D ints"),
        ("35", "frame_sizes is '35': want 1-D ints"),
        (b"\x08", "of type bytes: want 1-D ints"),
        (torch.ones(1, dtype=torch.int64, device="meta"), "holds no values"),
        ([True] * 8, "holds True: want 1-D ints"),
        ([None], "holds None: want 1-D ints"),
        (torch.tensor([True] * 8), "holds True: want 1-D ints"),
        (torch.tensor([8 + 0j]), "1-D ints"),
        (np.array([4.0, 4.0]), "1-D ints"),
        (8, "frame_sizes is 8: want 1-D ints"),
        ([-4, 12], "at least 1 token"),
        (torch.ones(2, 4, dtype=torch.int64), "1-D ints"),
    ],
)
def test_frames_that_do_not_cover_the_keys_are_refused(frames, message):
    with pytest.raises(ValueError, match=message):
        nsa_attention(*inputs(), spec=make_spec(s="frame"), frame_sizes=frames)


@pytest.mark.parametrize("frames", [[10**12], [10**30], np.array([5, 4]), (3, np.int64(5)), [8]])
def test_frames_of_any_kind_of_int_and_size_are_read(frames):
    found = nsa_attention(*inputs(), spec=make_spec(s="frame"), frame_sizes=frames)
    assert found.isfinite().all()


def test_frames_of_more_samples_than_there_are_are_refused():
    two = make_inputs(8, batch=2)
    with pytest.raises(ValueError, match="5 frames but the samples need 4"):
        nsa_attention(*two, spec=make_spec(s="frame"), frame_sizes=[4] * 5)


def test_packed_batch_of_more_than_one_is_refused():
    two = make_inputs(8, batch=2)
    with pytest.raises(ValueError, match="batch of 2"):
        nsa_attention(*two, spec=SPEC, cu_seqlens_k=int32(0, 8))
    with pytest.raises(ValueError, match="batch of 2"):
        hybrid_layout(
            torch.ones(2, 8, dtype=torch.bool), spec=SPEC, num_rows=8, cu_seqlens_k=int32(0, 8)
        )


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"vision_mask": torch.ones(1, 8)}, "vision_mask is torch.float32"),
        ({"vision_mask": torch.ones(1, 7, dtype=torch.bool)}, "one entry for each key"),
        ({"attention_mask": torch.ones(1, 8, dtype=torch.int64)}, "attention_mask is torch.int64"),
        ({"attention_mask": torch.ones(8, dtype=torch.bool)}, "attention_mask is"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks, message):
    masks = {"vision_mask": torch.ones(1, 8, dtype=torch.bool)} | masks
    with pytest.raises(ValueError, match=message):
        hybrid_attention(*inputs(), spec=SPEC, **masks)


@pytest.mark.parametrize(
    ("length", "spec", "message"),
    [
        (7, SPEC, "the tensors are"),
        (8, make_spec(s=8), "same spec"),
        (8, make_spec(selection_scope="block"), "same spec"),
    ],
)
def test_layout_of_another_pass_or_spec_is_refused(length, spec, message):
    vision = torch.ones(1, 8, dtype=torch.bool)
    layout = hybrid_layout(vision[:, :length], spec=spec, num_rows=length)
    with pytest.raises(ValueError, match=message):
        hybrid_attention(*inputs(), vision, spec=SPEC, layout=layout)


def test_shared_selection_of_vision_rows_off_the_borders_is_refused():
    vision = torch.ones(1, 8, dtype=torch.bool)
    vision[0, 0] = False
    with pytest.raises(ValueError, match="block borders"):
        hybrid_attention(*inputs(), vision, spec=make_spec(selection_scope="block"))


def test_hybrid_attention_of_no_rows_is_refused():
    q, k, v, gates = inputs()
    vision = torch.ones(1, 8, dtype=torch.bool)
    with pytest.raises(ValueError, match="at least one query row"):
        hybrid_attention(q[:, :0], k, v, gates[:, :0], vision, spec=SPEC)


def test_released_preset_outside_its_domain_says_so():
    spec = NSASpec.released()
    heads = {"heads": 28, "kv_heads": 4, "dim": 2}
    vision = torch.ones(1, 8, dtype=torch.bool)
    with pytest.raises(ValueError, match="4 query and 2 KV heads with the released preset"):
        nsa_attention(*inputs(), spec=spec)
    right = make_inputs(8, **heads)
    with pytest.raises(ValueError, match="packed samples"):
        nsa_attention(*right, spec=spec, cu_seqlens_k=int32(0, 8))
    with pytest.raises(ValueError, match="batch of 2"):
        nsa_attention(*make_inputs(8, batch=2, **heads), spec=spec)
    with pytest.raises(ValueError, match="no query row"):
        nsa_attention(*(x[:, :0] for x in right), spec=spec)
    with pytest.raises(ValueError, match="padding"):
        hybrid_attention(*right, vision, spec=spec, attention_mask=~vision)


def test_automatic_choice_of_backend_is_logged_once(caplog):
    nsa._say_choice.cache_clear()
    with caplog.at_level(logging.DEBUG, logger="videonsa.ops"):
        nsa_attention(*inputs(), spec=SPEC)
        nsa_attention(*inputs(), spec=SPEC)
    assert caplog.text.count("'auto' takes 'reference'") == 1
