"""What the kernels refuse, and how `nsa_attention` says so."""

import logging

import pytest
import torch
from kernel_cases import Case, make_inputs

from videonsa.ops import NSASpec, nsa, nsa_attention
from videonsa.ops.triton import support
from videonsa.ops.triton.support import why_not

SPEC = NSASpec(block_size=16, num_selected_blocks=2, window_size=4)


class FakeTensor:
    """What `why_not` asks of a tensor on a GPU that is not here."""

    is_cuda = True
    device = torch.device("cuda", 0)

    def __init__(self, *shape, dtype=torch.bfloat16):
        self._meta = torch.empty(shape, dtype=dtype, device="meta")
        self.shape, self.dtype = self._meta.shape, dtype

    def __getitem__(self, key):
        return self._meta[key]


@pytest.fixture
def gpu(monkeypatch):
    """A Hopper from NVIDIA, as far as `why_not` can see."""
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def on_gpu(num_rows=8, heads=14, kv_heads=2, dim=128, dtype=torch.bfloat16, keys=8):
    q = FakeTensor(1, num_rows, heads, dim, dtype=dtype)
    return q, FakeTensor(1, keys, kv_heads, dim, dtype=dtype)


@pytest.mark.parametrize("heads", [2, 14, 32])
@pytest.mark.parametrize("dim", [16, 80, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_supported_inputs_have_no_reason(gpu, heads, dim, dtype):
    assert why_not(*on_gpu(heads=heads, dim=dim, dtype=dtype), SPEC) is None


@pytest.mark.parametrize(
    ("tensors", "fields", "reason"),
    [
        ({"dim": 72}, {}, "the head dim is 72"),
        ({"dim": 144}, {}, "the head dim is 144"),
        ({"heads": 34}, {}, "17 query heads"),
        ({"dtype": torch.float32}, {}, "the dtype is torch.float32"),
        ({"num_rows": 0}, {}, "no query row"),
        ({}, {"block_size": 129}, "blocks have 129 tokens"),
        ({}, {"num_selected_blocks": 65}, "n is 65"),
        ({"num_rows": 2**25}, {"num_selected_blocks": 64}, "2^31"),
    ],
)
def test_first_reason_is_told(gpu, tensors, fields, reason):
    assert reason in why_not(*on_gpu(**tensors), SPEC.with_options(**fields))


def test_released_preset_is_no_work_for_these_kernels(gpu):
    assert "released preset" in why_not(*on_gpu(heads=28, kv_heads=4), NSASpec.released())


def test_old_gpu_is_refused_with_its_capability(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "compute capability 7.5, at least 8.0" in why_not(*on_gpu(), SPEC)


def test_gpu_of_another_maker_is_refused(gpu, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert "not from NVIDIA" in why_not(*on_gpu(), SPEC)


def test_missing_triton_is_named_with_the_way_to_get_it(gpu, monkeypatch):
    monkeypatch.setattr(support, "INSTALLED", False)
    assert "pip install triton" in why_not(*on_gpu(), SPEC)


@pytest.fixture
def no_interpreter(monkeypatch):
    import triton

    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)


def cpu_inputs():
    return make_inputs(Case(rows=4), torch.device("cpu"))


def test_kernels_that_cannot_run_are_one_clear_line(no_interpreter):
    with pytest.raises(ValueError, match="the tensors are on cpu, the kernels need a GPU") as error:
        nsa_attention(*cpu_inputs(), spec=SPEC, backend="triton")
    assert "\n" not in str(error.value)
    assert "use 'auto' or 'reference'" in str(error.value)


def test_kernels_refuse_gradients_through_the_branches(device):
    q, *rest = make_inputs(Case(rows=4, dtype=torch.float16), device)
    with pytest.raises(ValueError, match="gradients are wanted with return_branches"):
        nsa_attention(q.requires_grad_(), *rest, spec=SPEC, backend="triton", return_branches=True)


def test_kernels_refuse_gradients_of_the_released_preset(device):
    q, *rest = make_inputs(Case(rows=4, group=4, kv_heads=4, dim=32, dtype=torch.float16), device)
    with pytest.raises(ValueError, match="the released preset has no backward kernels"):
        nsa_attention(q.requires_grad_(), *rest, spec=NSASpec.released(), backend="triton")


def test_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend='cuda': want 'auto', 'reference' or 'triton'"):
        nsa_attention(*cpu_inputs(), spec=SPEC, backend="cuda")


def test_auto_says_once_why_it_takes_the_reference(no_interpreter, caplog):
    nsa._say_choice.cache_clear()
    with caplog.at_level(logging.INFO, logger=nsa.__name__):
        for _ in range(3):
            nsa_attention(*cpu_inputs(), spec=SPEC)
    assert [record.getMessage() for record in caplog.records] == [
        "backend 'auto' takes 'reference': the tensors are on cpu, the kernels need a GPU"
    ]


@pytest.mark.parametrize(
    ("spec", "options", "reason"),
    [
        (SPEC, {"return_branches": True}, "gradients are wanted with return_branches"),
        (
            NSASpec.released(),
            {},
            "gradients are wanted, the released preset has no backward kernels",
        ),
    ],
    ids=["return_branches", "released"],
)
def test_auto_takes_the_reference_for_gradients_that_kernels_lack(
    spec, options, reason, device, caplog
):
    inputs = make_inputs(Case(rows=4, group=7, kv_heads=4, dim=32, dtype=torch.float16), device)
    leaves = [x.requires_grad_() for x in inputs]
    nsa._say_choice.cache_clear()
    with caplog.at_level(logging.INFO, logger=nsa.__name__):
        result = nsa_attention(*leaves, spec=spec, **options)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"backend 'auto' takes 'reference': {reason}")
    output = result.output if options else result
    found = torch.autograd.grad(output.sum(), leaves, allow_unused=True)
    wanted = nsa_attention(*leaves, spec=spec, backend="reference")
    theirs = torch.autograd.grad(wanted.sum(), leaves, allow_unused=True)
    for x, y in zip(found, theirs, strict=True):
        assert (x is None and y is None) or torch.equal(x, y)
