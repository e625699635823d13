"""The `released` preset by kernels against the same preset in PyTorch."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_compiled import SHARED_LIMIT

from videonsa.ops import hybrid_attention, nsa_attention
from videonsa.ops.bitonic import bitonic_top
from videonsa.ops.masks import membership
from videonsa.ops.released import (
    hybrid_released,
    nsa_released,
    select_released,
    why_not_released,
)
from videonsa.ops.spec import NSASpec
from videonsa.ops.triton import released
from videonsa.ops.triton.tuning import Config, interpreter

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
GOLDEN = sorted((ROOT / "tests/fixtures/golden").glob("released_*.npz"))
HEADS, KV_HEADS = 28, 4
MASKS = ("current_and_later", "past_complete", "past_and_current")
# Large tiles: the interpreter pays for each of them.
COARSE = interpreter(64)._replace(
    compressed=Config(128, 64, 4, 1), importance=Config(128, 64, 4, 1), score_bytes=2**16
)


@pytest.fixture(scope="module")
def coarse(device):
    """The tuning of the device, or large tiles in the interpreter."""
    with pytest.MonkeyPatch.context() as patch:
        if device.type == "cpu":
            patch.setattr(released, "tuning_for", lambda size, *, device: COARSE)
        yield


def make_inputs(num_tokens, dim=16, *, dtype, device="cpu", text=((0, 17), (70, 73)), seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(1, num_tokens, *shape, generator=generator).to(device, dtype)

    vision = torch.ones(1, num_tokens, dtype=torch.bool)
    for start, stop in text:
        vision[:, start:stop] = False
    q, k, v = draw(HEADS, dim) * 2, draw(KV_HEADS, dim), draw(KV_HEADS, dim)
    return q, k, v, draw(HEADS, 3).sigmoid(), vision.to(device)


def zero_text(q, k, v, vision):
    return tuple(x * vision[..., None, None] for x in (q, k, v))


def tolerances(dtype):
    """Twice the last bit: the float32 sums below it are taken in another order."""
    wide = {torch.float32: 1e-5}.get(dtype, 2 * torch.finfo(dtype).eps)
    return {"rtol": wide, "atol": wide}


def same_blocks(left, right, num_blocks):
    """Which (row, group) pairs select the same blocks, in any order: bool `[R, 4]`."""
    return (membership(left[0], num_blocks) == membership(right[0], num_blocks)).all(dim=-1)


def assert_close(result, expected):
    """Every field but the selection."""
    for name, part, other in zip(result._fields[:7], result, expected, strict=False):
        tolerance = tolerances(torch.float32 if name.startswith("lse") else part.dtype)
        torch.testing.assert_close(part, other, **tolerance, msg=lambda m, n=name: f"{n}: {m}")


WHOLE = {
    "default mask": (torch.float32, MASKS[0], ((0, 17), (70, 73))),
    "half, complete past blocks": (torch.float16, MASKS[1], ((0, 5), (100, 117))),
    "past and current blocks, all rows vision": (torch.float32, MASKS[2], ()),
}


@pytest.fixture(scope="module", params=WHOLE.values(), ids=WHOLE.keys())
def whole(request, device, coarse):
    """Inputs, spec and the layer's result by kernels: 2 full blocks and one of 14 tokens."""
    dtype, mask, text = request.param
    inputs = make_inputs(142, dtype=dtype, device=device, text=text)
    spec = NSASpec.released(num_selected_blocks=2, window_size=40, compressed_mask=mask)
    result = hybrid_released(*inputs, spec=spec, return_branches=True, use_kernels=True)
    return inputs, spec, result


@pytest.mark.slow
def test_layer_equals_that_of_pytorch_given_the_blocks(whole):
    inputs, spec, result = whole
    blocks = result.selected_blocks
    expected = hybrid_released(*inputs, spec=spec, selected_blocks=blocks, return_branches=True)
    assert_close(result, expected)


@pytest.mark.slow
def test_rows_select_the_blocks_that_pytorch_selects(whole):
    (*raw, _, vision), spec, result = whole
    q, k, _ = zero_text(*raw, vision)
    same = same_blocks(result.selected_blocks, select_released(q, k, spec=spec), 3)
    assert same[~vision[0]].all()
    assert same.float().mean() >= 0.99


def test_public_ops_take_the_kernels(device, coarse):
    *inputs, vision = make_inputs(70, dtype=torch.float16, device=device, text=((0, 20),))
    spec = NSASpec.released(num_selected_blocks=1, window_size=9, branches=("window",))
    for op, arguments in ((nsa_attention, inputs), (hybrid_attention, (*inputs, vision))):
        own, expected = (op(*arguments, spec=spec, backend=b) for b in ("triton", "reference"))
        torch.testing.assert_close(own, expected, **tolerances(torch.float16))


def test_given_blocks_replace_the_selection_and_repeats_and_strangers_do_not_count(device, coarse):
    *inputs, _ = make_inputs(75, dtype=torch.float32, device=device)
    spec = NSASpec.released(num_selected_blocks=4, branches=("selected",))
    messy = torch.tensor([1, -1, 1, 99], device=device).expand(1, 75, 4, 4)
    own, expected = (
        nsa_released(*inputs, spec=spec, selected_blocks=messy, use_kernels=kernels)
        for kernels in (True, False)
    )
    torch.testing.assert_close(own, expected, **tolerances(torch.float32))


def test_without_a_branch_the_sum_is_zero(device):
    *inputs, _ = make_inputs(66, dtype=torch.float16, device=device)
    assert not nsa_released(*inputs, spec=NSASpec.released(branches=()), use_kernels=True).any()


@pytest.mark.parametrize("num_rows", [1, 20, 90])
def test_step_without_vision_tokens_is_dense_causal(num_rows, device, coarse):
    q, k, v, gates, vision = make_inputs(90, dtype=torch.float16, device=device, text=((0, 90),))
    arguments = q[:, -num_rows:], k, v, gates[:, -num_rows:], vision
    own, expected = (
        hybrid_released(*arguments, spec=NSASpec.released(), use_kernels=kernels)
        for kernels in (True, False)
    )
    torch.testing.assert_close(own, expected, **tolerances(torch.float16))


def test_single_rows_are_those_of_pytorch(device):
    *inputs, _ = make_inputs(80, dtype=torch.float32, device=device)
    spec, rows = NSASpec.released(window_size=9), torch.tensor([3, 70], device=device)
    own, expected = (
        nsa_released(*inputs, spec=spec, rows=rows, use_kernels=kernels)
        for kernels in (True, False)
    )
    assert torch.equal(own, expected)


@pytest.mark.parametrize("levels", [1, 2, 1000], ids=["all_tied", "many_ties", "few_ties"])
@pytest.mark.parametrize(("first_block", "num_blocks"), [(0, 3), (62, 66), (127, 130)])
def test_order_is_that_of_the_network(first_block, num_blocks, levels, device):
    generator = torch.Generator().manual_seed(num_blocks + levels)
    first, num_rows = 64 * first_block, 64 * num_blocks - 5
    width = 64 * -(-num_blocks // 64)
    # Level 0 is importance 0: a real block that ties with the empty slots.
    importance = torch.randint(0, levels, (num_rows - first, width), generator=generator) / 7
    current = torch.arange(first, num_rows) // 64
    own_block = importance.clone()
    own_block[torch.arange(len(current)), current] = 16.0
    expected = bitonic_top(own_block[:, None, :num_blocks], current)[:, 0]
    for num_selected in (4, 32):
        shape = (num_rows, num_selected)
        selected = torch.full(shape, -7, dtype=torch.int32, device=device)
        released.order_blocks(importance.to(device), selected, first_row=first, full=16.0)
        assert torch.equal(selected[first:].long().cpu(), expected[:, :num_selected])
        assert (selected[:first] == -7).all()


def test_chunks_of_rows_change_no_selection(device):
    generator = torch.Generator().manual_seed(0)
    q, k_cmp, lse = (
        torch.randn(*shape, generator=generator).to(device)
        for shape in ((330, 16, 16), (6, 16), (330, 20))
    )
    lse[::7] = -torch.inf
    few, many = (torch.empty(330, 4, dtype=torch.int32, device=device) for _ in range(2))
    released.select_group(q / 4, k_cmp, lse, few, tuning=COARSE._replace(score_bytes=2**24))
    released.select_group(q / 4, k_cmp, lse, many, tuning=COARSE._replace(score_bytes=1))
    assert torch.equal(few, many)
    lse = lse.masked_fill(lse == -torch.inf, 0)[:, :16]
    each = torch.einsum("tgd,cd->tgc", q / 4, k_cmp) - lse[..., None]
    importance, current = each.exp().sum(dim=1), torch.arange(330, device=device) // 64
    importance.scatter_(1, current[:, None], 16.0)
    expected = bitonic_top(importance[:, None], current)[..., :4]
    assert same_blocks(few[None, :, None], expected[None], 6).float().mean() >= 0.99


def test_bounds_of_the_compressed_branch_are_those_of_its_mask():
    row, block = torch.arange(200)[:, None], torch.arange(4)
    sees = {
        "current_and_later": row <= 64 * (block + 1) - 1,
        "past_complete": 64 * (block + 1) - 1 <= row,
        "past_and_current": block <= row // 64,
    }
    for mask, expected in sees.items():
        spec = NSASpec.released(compressed_mask=mask)
        bounds = released.compressed_bounds(200, 4, spec=spec, device=torch.device("cpu"))
        begin, end = (x[:, None] for x in bounds)
        assert torch.equal((begin <= block) & (block < end), expected)


def test_support_is_that_of_the_heads_and_not_of_the_preset(device):
    for dim, reason in ((16, None), (24, "the head dim is 24")):
        q, k, *_ = make_inputs(5, dim, dtype=torch.float16, device=device, text=())
        found = why_not_released(q, k, NSASpec.released())
        assert found is reason or found.startswith(reason)


@pytest.mark.slow
def test_every_launch_compiles_and_fits_every_architecture():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, str(HERE / "compiling_released.py")]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    launches = json.loads(run.stdout)
    own = {"_importance_kernel", "_order_kernel", "_selected_kernel"}
    for capability, limit in SHARED_LIMIT.items():
        found = [x for x in launches if x["capability"] == capability]
        assert {x["kernel"] for x in found} == {*own, "_compressed_kernel"}
        assert all(x["shared_bytes"] <= limit for x in found)
        assert not any(x["spilled_bytes"] for x in found if x["kernel"] in own)


@pytest.mark.gpu
@pytest.mark.parametrize("mask", MASKS)
def test_bfloat16_at_4096_tokens_equals_pytorch(mask, device):
    text = ((0, 30), (1500, 1600), (4000, 4096))
    inputs = make_inputs(4096, 128, dtype=torch.bfloat16, device=device, text=text)
    spec = NSASpec.released(compressed_mask=mask)
    result = hybrid_released(*inputs, spec=spec, return_branches=True, use_kernels=True)
    blocks, vision = result.selected_blocks, inputs[4][0]
    q, k, _ = zero_text(*inputs[:3], inputs[4])
    same = same_blocks(blocks, select_released(q, k, spec=spec), 64)
    assert same[~vision].all()
    assert same.float().mean() >= 0.985
    expected = hybrid_released(*inputs, spec=spec, selected_blocks=blocks, return_branches=True)
    assert_close(result, expected)
    again = hybrid_released(*inputs, spec=spec, return_branches=True, use_kernels=True)
    assert all(torch.equal(x, y) for x, y in zip(result, again, strict=True))


def load_golden_script():
    spec = importlib.util.spec_from_file_location("check_golden", ROOT / "scripts/check_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.gpu
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_published_outputs_and_blocks_are_reproduced(path, device):
    script = load_golden_script()
    golden = script.load_golden(path)
    arguments = [x.to(device) for x in (*golden.nsa_inputs(), *golden[:5])]
    nsa_inputs, layer_inputs = arguments[:4], arguments[4:]
    stored = torch.from_numpy(golden.stored["block_indices"])
    blocks = torch.full((1, golden.q.shape[1], *stored.shape[1:]), -1, dtype=torch.int64)
    blocks[0, golden.rows] = stored.long()
    options = {"spec": golden.spec, "selected_blocks": blocks.to(device), "use_kernels": True}
    result = nsa_released(*nsa_inputs, return_branches=True, **options)
    output = hybrid_released(*layer_inputs, **options)
    computed = (result.o_cmp, result.o_slc, result.o_win, result.output, output)
    for name, value in zip(script.OUTPUTS, computed, strict=True):
        wanted = torch.from_numpy(golden.stored[name]).float()
        own = value[0].cpu().float()[golden.output_rows]
        assert ((own - wanted).abs() <= 4e-3 + script.RELATIVE * wanted.abs()).all(), name
    own = nsa_released(*nsa_inputs, spec=golden.spec, return_branches=True, use_kernels=True)
    pairs = script.block_agreement(golden, own.selected_blocks[0].cpu()[golden.rows])
    assert pairs.vision >= script.VISION_AGREEMENT * pairs.num_vision
    assert pairs.text == pairs.num_text


@pytest.mark.gpu
def test_64k_tokens_run_within_4_gb_beside_inputs_and_output(device):
    num_tokens = 2**16
    inputs = make_inputs(num_tokens, 128, dtype=torch.bfloat16, device=device, text=((0, 100),))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.no_grad():
        output = hybrid_attention(*inputs, spec=NSASpec.released(), backend="triton")
    torch.cuda.synchronize()
    assert output.isfinite().all()
    held = before + output.numel() * output.element_size()
    assert torch.cuda.max_memory_allocated() - held <= 4 * 10**9
