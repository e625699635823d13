"""What the kernels can do, told without importing Triton."""

import importlib.util

import torch

from videonsa.ops.spec import MAX_BLOCK_SIZE, NSASpec

MAX_GROUP = 16
MAX_HEAD_DIM = 128
MAX_SELECTED = 64
MAX_WIDE_DIM = 256
LEAST_CAPABILITY = (8, 0)
LEAST_SHARED = 98_308
"""Bytes of shared memory that the forward pass takes at most with the portable settings."""
INSTALLED = importlib.util.find_spec("triton") is not None
"""Looked up once: torch.compile cannot trace the look."""
DTYPES = (torch.bfloat16, torch.float16)


def why_not(q: torch.Tensor, k: torch.Tensor, spec: NSASpec) -> str | None:
    """The first reason why the kernels cannot take these inputs, or None.

    q `[..., HQ, D]` and k `[..., H, D]` of one dtype and device.
    """
    if not INSTALLED:
        return "Triton is not installed (pip install triton)"
    return _why_not_here(q) or _why_not_shape(q, k) or _why_not_spec(q, k, spec)


def why_not_rows(q: torch.Tensor, k: torch.Tensor) -> str | None:
    """As `why_not` for dense attention of single rows, without a spec."""
    if not INSTALLED:
        return "Triton is not installed (pip install triton)"
    dtype = _why_not_dtype(q) if q.is_cuda else None  # the interpreter takes float32
    return _why_not_here(q) or dtype or _why_not_shape(q, k)


def why_not_cached(q: torch.Tensor) -> str | None:
    """As `why_not` for new rows q `[..., D]` over a cache: on a GPU, not in the interpreter."""
    if not INSTALLED:
        return "Triton is not installed (pip install triton)"
    if not q.is_cuda:
        return f"the tensors are on {q.device.type}, the kernels need a GPU"
    if q.dtype not in (*DTYPES, torch.float32):
        return f"the dtype is {q.dtype}, the kernels take bfloat16, float16 and float32"
    return _why_not_wide(q) or _why_not_gpu(q.device)


def why_not_block_sparse(q: torch.Tensor) -> str | None:
    """As `why_not` for attention over block lists, q `[T, HQ, D]`."""
    if not INSTALLED:
        return "Triton is not installed (pip install triton)"
    return _why_not_here(q) or _why_not_wide(q)


def why_not_block_sparse_inputs(q: torch.Tensor) -> str | None:
    """As `why_not_block_sparse`, on a GPU elsewhere that has the kernels; q may hold no values."""
    return _why_not_dtype(q) or _why_not_wide(q)


def why_not_few_rows(x: torch.Tensor) -> str | None:
    """As `why_not` for products of a few rows x `[..., K]`: on a GPU, not in the interpreter."""
    if not INSTALLED:
        return "Triton is not installed (pip install triton)"
    if not x.is_cuda:
        return f"the tensors are on {x.device.type}, the kernels need a GPU"
    if torch.is_autocast_enabled("cuda"):
        return "autocast chooses the dtype"
    if not x.numel():
        return "there is no row"
    return _why_not_gpu(x.device) or _why_not_dtype(x)


def why_not_drawing(device: torch.device) -> str | None:
    """As `why_not` for frames that are drawn on a GPU."""
    if not INSTALLED:
        return "Triton is not installed (pip install triton)"
    return _why_not_gpu(device)


def why_not_inputs(q: torch.Tensor, k: torch.Tensor, spec: NSASpec) -> str | None:
    """As `why_not`, on a GPU elsewhere that has the kernels; q and k may hold no values."""
    return _why_not_dtype(q) or _why_not_shape(q, k) or _why_not_spec(q, k, spec)


def why_not_elsewhere(capability: tuple[int, int], shared_bytes: int) -> str | None:
    """Why an NVIDIA GPU that is not in this machine could not run the kernels, or None.

    Args:
        capability: its compute capability.
        shared_bytes: the most shared memory that one program may have on it.
    """
    if capability >= LEAST_CAPABILITY and shared_bytes < LEAST_SHARED:
        return f"a program has {shared_bytes} bytes of shared memory, {LEAST_SHARED} are needed"
    return _why_not_capability(capability)


def _why_not_capability(capability: tuple[int, int]) -> str | None:
    if capability >= LEAST_CAPABILITY:
        return None
    found, wanted = (".".join(map(str, c)) for c in (capability, LEAST_CAPABILITY))
    return f"the GPU has compute capability {found}, at least {wanted} is needed"


def _why_not_dtype(q: torch.Tensor) -> str | None:
    if q.dtype not in DTYPES:
        return f"the dtype is {q.dtype}, the kernels take bfloat16 and float16"
    return None


def compute_device(device: torch.device) -> torch.device:
    """The device whose kernels tensors take: without values, the current GPU where there is one."""
    if device.type == "meta" and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _why_not_here(q: torch.Tensor) -> str | None:
    device = compute_device(q.device)
    if device.type == "cuda":
        dtype = None if torch.is_autocast_enabled("cuda") else _why_not_dtype(q)
        return _why_not_gpu(device) or dtype
    import triton

    if triton.knobs.runtime.interpret and not q.is_meta:
        return None
    return f"the tensors are on {q.device.type}, the kernels need a GPU"


def _why_not_gpu(device: torch.device) -> str | None:
    if torch.version.hip is not None:
        return "the GPU is not from NVIDIA"
    return _why_not_capability(torch.cuda.get_device_capability(device))


def _why_not_wide(q: torch.Tensor) -> str | None:
    dim = q.shape[-1]
    if dim % 16 or dim > MAX_WIDE_DIM:
        return f"the head dim is {dim}, the kernels take multiples of 16 up to {MAX_WIDE_DIM}"
    return None


def _why_not_shape(q: torch.Tensor, k: torch.Tensor) -> str | None:
    dim, group = q.shape[-1], q.shape[-2] // k.shape[-2]
    if dim % 16 or dim > MAX_HEAD_DIM:
        return f"the head dim is {dim}, the kernels take multiples of 16 up to {MAX_HEAD_DIM}"
    if group > MAX_GROUP:
        return f"a KV head has {group} query heads, the kernels take up to {MAX_GROUP}"
    if 0 in q.shape or 0 in k.shape:
        return "there is no query row"
    return None


def _why_not_spec(q: torch.Tensor, k: torch.Tensor, spec: NSASpec) -> str | None:
    if spec.head_map != "group":
        return "the spec is of the released preset"
    if spec.block_size != "frame" and spec.block_size > MAX_BLOCK_SIZE:
        return f"blocks have {spec.block_size} tokens, the kernels take up to {MAX_BLOCK_SIZE}"
    if spec.num_selected_blocks > MAX_SELECTED:
        return f"n is {spec.num_selected_blocks}, the kernels take up to {MAX_SELECTED}"
    pairs = q[..., 0, 0].numel() * k.shape[-2] * spec.num_selected_blocks
    if max(pairs, k[..., 0, 0].numel()) >= 2**31:
        return f"there are {pairs} pairs of rows and blocks, the kernels count up to 2^31"
    return None
