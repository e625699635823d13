"""Compiles every launch of both passes for a GPU that is not there, and prints what it needs.

Run as a script, in a process whose kernels are not interpreted: one JSON list on stdout, an object
for each different launch. The tensors are on the meta device: nothing is computed.

With a path, `compiling.py resources.json`, it writes what `test_compiled` holds equal: after a
change that is meant to change what kernels need, or for another Triton.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from videonsa.ops import NSASpec
from videonsa.ops.spec import BRANCHES
from videonsa.ops.triton.backward import nsa_backward
from videonsa.ops.triton.forward import Options, nsa_forward
from videonsa.ops.triton.index import StreamIndex, kernel_index, packed_index
from videonsa.ops.triton.tuning import Tuning, hopper, portable

POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.uint8: "*u8",
}
OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")
META = torch.device("meta")


class Launch(NamedTuple):
    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]


@dataclass(frozen=True)
class Resources:
    """What one kernel needs of capability 9.0 and the like, written as 90."""

    capability: int
    shape: str
    kernel: str
    registers: int
    spilled_bytes: int
    shared_bytes: int


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A layer and its stream of T rows; two packed samples where `packed`."""

    rows: int = 4096
    num_heads: int = 28
    num_kv_heads: int = 4
    dim: int = 128
    block_size: int = 64
    frame: int | None = None
    n: int = 32
    dtype: torch.dtype = torch.bfloat16
    per_block: bool = False
    packed: bool = False
    return_branches: bool = False
    backward: bool = True


LONG = Shape(rows=2**16)
"""More blocks than are ranked at once."""
SHAPES = {
    "7B": Shape(),
    "7B, long": LONG,
    "7B, float16, n of 64, with branches": Shape(
        dtype=torch.float16, n=64, return_branches=True, backward=False
    ),
    "7B, a million rows": Shape(rows=2**20),
    "7B, block scope": Shape(per_block=True, backward=False),
    "7B, frames of 60": Shape(frame=60),
    "7B, blocks of 128": Shape(block_size=128),
    "3B": Shape(num_heads=16, num_kv_heads=2),
    "dim 64": Shape(dim=64),
    "dim 80, sixteen heads a group, packed": Shape(
        dim=80, num_heads=16, num_kv_heads=1, packed=True
    ),
}
PORTABLE_SHAPES = {"7B, long": LONG, "7B, blocks of 128": SHAPES["7B, blocks of 128"]}
TARGETS: dict[int, tuple[Callable[[int], Tuning], dict[str, Shape]]] = {
    90: (hopper, SHAPES),
    80: (portable, PORTABLE_SHAPES),
    100: (portable, PORTABLE_SHAPES),
}


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Kernels are written down instead of run."""
    launches: list[Launch] = []
    original = JITFunction.run

    def record(self, *args, grid, warmup, **kwargs):
        options = {name: kwargs[name] for name in OPTIONS if kwargs.get(name) is not None}
        kwargs = {name: value for name, value in kwargs.items() if name not in OPTIONS}
        names = [p.name for p in self.params]
        launches.append(Launch(self, dict(zip(names, args, strict=False)) | kwargs, options))

    JITFunction.run = record
    try:
        yield launches
    finally:
        JITFunction.run = original


def launches_of(shape: Shape, tuning: Callable[[int], Tuning]) -> list[Launch]:
    """All launches of one forward pass, and of the backward pass of its result."""

    def empty(*size: int) -> torch.Tensor:
        return torch.empty(size, dtype=shape.dtype, device=META)

    q = empty(shape.rows, shape.num_heads, shape.dim)
    k = empty(shape.rows, shape.num_kv_heads, shape.dim)
    gates = empty(shape.rows, shape.num_heads, 3)
    index = _index(shape, q, k)
    options = Options(
        num_selected=shape.n,
        window_size=256,
        num_init=0,
        num_local=0,
        per_block=shape.per_block,
        branches=BRANCHES,
    )
    how = {"options": options, "tuning": tuning(index.max_size)}
    inputs = (q, k, k, gates)
    with recorded_launches() as launches:
        result = nsa_forward(
            *inputs, index, None, **how, keep=BRANCHES if shape.return_branches else ()
        )
        if shape.backward:
            if not shape.return_branches:
                result = nsa_forward(*inputs, index, None, **how, keep=BRANCHES)
            nsa_backward(q, *inputs, result, index, **how)
    return launches


def _index(shape: Shape, q: torch.Tensor, k: torch.Tensor) -> StreamIndex:
    if shape.packed:
        lengths = torch.empty(3, dtype=torch.int32, device=META)
        size = {"num_rows": shape.rows, "num_keys": shape.rows, "block_size": shape.block_size}
        return packed_index(lengths, lengths, **size)
    frames = [shape.frame] * -(-shape.rows // shape.frame) if shape.frame else None
    spec = NSASpec(block_size="frame" if frames else shape.block_size, num_selected_blocks=shape.n)
    return kernel_index(q[None], k[None], spec=spec, q_offset=None, frame_sizes=frames)[0]


def source_of(launch: Launch) -> ASTSource:
    """What the launcher would compile: types, constants and what it knows of the values."""
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}

    def type_of(value: Any, path: tuple[int, ...], *, is_constant: bool, specialized: bool) -> Any:
        one = specialized and type(value) is int and value == 1
        if is_constant or value is None or one:
            constants[path] = value
            return "constexpr"
        if isinstance(value, tuple):
            how = {"is_constant": False, "specialized": specialized}
            parts = [type_of(part, (*path, i), **how) for i, part in enumerate(value)]
            return value._make(parts) if hasattr(value, "_make") else tuple(parts)
        if isinstance(value, torch.Tensor):
            attributes[path] = [["tt.divisibility", 16]]
            return POINTERS[value.dtype]
        if isinstance(value, TensorDescriptor):
            assert len(path) == 1, "the launcher expands descriptors outside tuples only"
            return f"tensordesc<{POINTERS[value.base.dtype][1:]}{list(value.block_shape)}>"
        if isinstance(value, float):
            return "fp32"
        if specialized and value % 16 == 0:
            attributes[path] = [["tt.divisibility", 16]]
        return "i32" if abs(value) < 2**31 else "i64"

    signature = {
        parameter.name: type_of(
            launch.arguments[parameter.name],
            (i,),
            is_constant=parameter.is_constexpr,
            specialized=not parameter.do_not_specialize,
        )
        for i, parameter in enumerate(launch.kernel.params)
    }
    return ASTSource(launch.kernel, signature, constants, attributes)


def resources_of(
    source: ASTSource, options: dict[str, int], capability: int, shape: str
) -> Resources:
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options=options)
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(cuobjdump), "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(n) for name, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return Resources(
        capability=capability,
        shape=shape,
        kernel=source.fn.fn.__name__,
        registers=found["REG"],
        spilled_bytes=found["STACK"] + found["LOCAL"],
        shared_bytes=compiled.metadata.shared,
    )


def table(launches: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Registers, spilled bytes and shared bytes of each kernel of a shape, launch by launch."""
    found: dict[str, list[str]] = {}
    for x in launches:
        needs = "{registers} registers, {spilled_bytes} spilled, {shared_bytes} shared".format(**x)
        found.setdefault("sm_{capability}, {shape}: {kernel}".format(**x), []).append(needs)
    return found


def main() -> None:
    """Every different launch of all targets and shapes."""
    found = {}
    for capability, (tuning, shapes) in TARGETS.items():
        for name, shape in shapes.items():
            for launch in launches_of(shape, tuning):
                source = source_of(launch)
                key = (capability, source.hash(), *launch.options.items())
                if key not in found:
                    found[key] = resources_of(source, launch.options, capability, name)
    launches = [asdict(resources) for resources in found.values()]
    if len(sys.argv) > 1:
        held = {"triton": triton.__version__, "launches": table(launches)}
        Path(sys.argv[1]).write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
    else:
        print(json.dumps(launches, indent=1))


if __name__ == "__main__":
    main()
