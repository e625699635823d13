"""The kernels where models are trained: autocast, checkpoints, accumulation, shards, a toy."""

import copy

import pytest
import torch
import torch.distributed as dist
from kernel_cases import KERNEL_DTYPE
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from videonsa.ops import NSASpec, nsa_attention

HALF = torch.float16
HEADS, DIM, WIDTH, NUM_ROWS = 2, 16, 16, 13
SPEC = NSASpec(block_size=4, num_selected_blocks=2, window_size=3)


class Layer(nn.Module):
    """Projections, attention and a residual; attention in `dtype`, None for that of its input."""

    def __init__(self, *, backend="triton", dtype=KERNEL_DTYPE):
        super().__init__()
        self.sizes = [x * DIM for x in (HEADS, 1, 1)] + [3 * HEADS]
        self.project = nn.Linear(WIDTH, sum(self.sizes), bias=False)
        self.out = nn.Linear(HEADS * DIM, WIDTH, bias=False)
        self.backend, self.dtype = backend, dtype

    def forward(self, x):
        *qkv, gates = self.project(x).split(self.sizes, dim=2)
        q, k, v = (y.unflatten(2, (-1, DIM)).to(self.dtype or y.dtype) for y in qkv)
        gates = gates.unflatten(2, (-1, 3)).sigmoid()
        attended = nsa_attention(q, k, v, gates, spec=SPEC, backend=self.backend)
        return x + self.out(attended.flatten(2).to(gates.dtype)).to(x.dtype)


def make_layer(device, **options):
    torch.manual_seed(0)
    return Layer(**options).to(device)


def make_rows(device, *, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, NUM_ROWS, WIDTH, generator=generator).to(device)


def gradients_of(layer, loss):
    return torch.autograd.grad(loss, list(layer.parameters()))


def squares(y):
    return y.float().square().sum()


def assert_same_bits(found, wanted):
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs)


def test_autocast_gives_float32_masters_the_gradients_of_half_precision_kernels(device):
    generator = torch.Generator().manual_seed(0)
    shapes = ((HEADS, DIM), (1, DIM), (1, DIM), (HEADS, 3))
    masters = [
        torch.randn(1, NUM_ROWS, *shape, generator=generator).to(device).requires_grad_()
        for shape in shapes
    ]
    grad = torch.randn(masters[0].shape, generator=generator).to(device, HALF)
    with torch.autocast(device.type, dtype=HALF):
        output = nsa_attention(*masters, spec=SPEC, backend="triton")
    assert output.dtype == torch.float32
    found = torch.autograd.grad(output, masters, grad.float())
    halves = [x.detach().to(HALF).requires_grad_() for x in masters[:3]]
    wanted_output = nsa_attention(*halves, masters[3], spec=SPEC, backend="triton")
    wanted = torch.autograd.grad(wanted_output, [*halves, masters[3]], grad)
    assert all(x.dtype == torch.float32 for x in found)
    assert_same_bits(found, [x.float() for x in wanted])


@pytest.mark.parametrize("use_reentrant", [False, True], ids=("saved tensors", "reentrant"))
def test_a_checkpointed_layer_has_the_same_gradients(use_reentrant, device):
    layer, x = make_layer(device), make_rows(device).requires_grad_()
    inputs = [x, *layer.parameters()]
    wanted = torch.autograd.grad(squares(layer(x)), inputs)
    squares(checkpoint(layer, x, use_reentrant=use_reentrant)).backward()
    assert_same_bits([y.grad for y in inputs], wanted)


def test_gradients_of_two_calls_add_up(device):
    layer = make_layer(device)
    first, second = (make_rows(device, seed=seed) for seed in (1, 2))
    wanted = [
        x + y
        for x, y in zip(
            gradients_of(layer, squares(layer(first))),
            gradients_of(layer, squares(layer(second))),
            strict=True,
        )
    ]
    for x in (first, second):
        squares(layer(x)).backward()
    assert_same_bits([x.grad for x in layer.parameters()], wanted)


@pytest.fixture
def mesh(device, tmp_path):
    """Of one process that is alone."""
    name, own = ("nccl", torch.device("cuda", 0)) if device.type == "cuda" else ("gloo", None)
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group(name, store=store, rank=0, world_size=1, device_id=own)
    yield init_device_mesh(device.type, (1,))
    dist.destroy_process_group()


def test_a_sharded_model_has_the_same_gradients(device, mesh):
    plain = nn.Sequential(make_layer(device), make_layer(device))
    sharded = copy.deepcopy(plain)
    for layer in sharded:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    x = make_rows(device)
    squares(sharded(x)).backward()
    found = [y.grad.full_tensor() for y in sharded.parameters()]
    assert_same_bits(found, gradients_of(plain, squares(plain(x))))


def test_shards_of_mixed_precision_keep_float32_masters(device, mesh):
    x = make_rows(device)
    plain, sharded = (make_layer(device, dtype=None) for _ in range(2))
    policy = MixedPrecisionPolicy(param_dtype=HALF, reduce_dtype=torch.float32)
    fully_shard(sharded, mesh=mesh, mp_policy=policy)
    squares(sharded(x)).backward()
    found = [y.grad.full_tensor() for y in sharded.parameters()]
    plain = plain.to(HALF)
    wanted = gradients_of(plain, squares(plain(x.to(HALF))))
    assert all(y.dtype == torch.float32 for y in found)
    assert_same_bits(found, [y.float() for y in wanted])


def losses_of(device, *, steps, **options):
    """Two layers learn to repeat the first row."""
    torch.manual_seed(0)
    model = nn.Sequential(Layer(**options), Layer(**options)).to(device)
    if options["dtype"] == torch.float64:
        model.double()
    x = make_rows(device).to(next(model.parameters()).dtype)
    target = x[:, :1].expand_as(x)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)
    losses = []
    for _ in range(steps):
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.slow
def test_a_toy_of_two_layers_learns_as_with_the_reference(device):
    """Within the noise of the dtype: three times what it does to the reference, and 1e-5."""
    ours = losses_of(device, steps=4, dtype=KERNEL_DTYPE)
    same, exact = (
        losses_of(device, steps=4, dtype=dtype, backend="reference")
        for dtype in (KERNEL_DTYPE, torch.float64)
    )
    assert ours[-1] < 0.6 * ours[0], "the toy learns nothing"
    noise = ((same - exact) / exact).abs().max()
    difference = ((ours - exact) / exact).abs().max()
    assert difference <= 3 * noise + 1e-5, f"losses differ by {difference:.2g}, noise {noise:.2g}"
