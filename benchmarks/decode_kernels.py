"""Time of the kernels of one decode step at the shapes of the 7B model, beside PyTorch's.

cd benchmarks/results/nvidia-h200
python ../../decode_kernels.py --out decode_kernels.json
python ../../decode_kernels.py --out tried.json --try attention products

Calls are captured in a CUDA graph, so launches do not count, and go round copies of their keys or
weights that together exceed the L2 cache. Before it is timed, every result is checked against
float32.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from videonsa.disk import write_atomic
from videonsa.machine import measurement_facts
from videonsa.ops.cached_attention import SharedKeys, _reference
from videonsa.ops.triton.cached import cached_attention_triton
from videonsa.ops.triton.decode_tuning import (
    CachedTuning,
    ProductConfig,
    cached_tuning,
    product_tuning,
)
from videonsa.ops.triton.few_rows import gated_triton, products_triton
from videonsa.ops.triton.tuning import Config

Call = Callable[[int], object]
"""Takes the number of the copy that it reads."""

COLD_BYTES = 2**28
"""That copies hold together: four times the L2 cache of an H200."""
GRAPH_SECONDS = 3e-3
"""About as long a graph runs."""
REPLAYS = 7
MOST_ERROR = 5e-3
"""Of a result in bfloat16, relative to float32 in the norm."""
HQ, H, D = 28, 4, 128
HIDDEN, MLP, VOCABULARY = 3584, 18944, 152064
LENGTHS = {"8K": 2**13, "128K": 2**17, "1M": 2**20}
DEVICE = torch.device("cuda")


@dataclass(kw_only=True)
class Measured:
    """One kernel or group of kernels; times in microseconds."""

    name: str
    config: str
    us: float | None = None
    tb_per_s: float | None = None
    pytorch_us: float | None = None
    error: float | None = None
    failed: str | None = None


def normal(*shape: int) -> Tensor:
    """Random values of mean 0 and variance 1."""
    return torch.randn(shape, device=DEVICE, dtype=torch.bfloat16)


def microseconds(call: Call, copies: int) -> float:
    """Of one call: the median over replays of a graph that holds many."""
    for copy in range(copies):
        call(copy)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for copy in range(copies):
        call(copy)
    torch.cuda.synchronize()
    once = max((time.perf_counter() - begin) / copies, 5e-6)
    rounds = max(1, min(200, int(GRAPH_SECONDS / once)) // copies)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for copy in range(copies):
                call(copy)
    times = []
    for _ in range(REPLAYS + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / (rounds * copies))
    return statistics.median(times[1:])


def copies_of(num_bytes: int) -> int:
    """That a call goes round, of so many bytes each."""
    return max(1, min(24, -(-COLD_BYTES // num_bytes)))


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """In the norm of all values."""
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


def measure(
    name: str, config: Any, call: Call, wanted: Sequence[Tensor], *, num_bytes: int, copies: int
) -> Measured:
    """Check the first copy's result, then take the time."""
    found = Measured(name=name, config=" ".join(map(str, config)))
    try:
        out = call(0)
        outs = out if isinstance(out, list) else [out]
        found.error = max(relative_error(*pair) for pair in zip(outs, wanted, strict=True))
        if not found.error < MOST_ERROR:
            found.failed = "wrong"
        found.us = microseconds(call, copies)
        found.tb_per_s = num_bytes / found.us / 1e6
    except Exception as error:  # a configuration may not fit the GPU
        found.failed = f"{type(error).__name__}: {error}".splitlines()[0][:120]
    print(line_of(found), flush=True)
    return found


def line_of(found: Measured) -> str:
    """For a reader."""
    numbers = [f"{found.us:9.1f} us {found.tb_per_s:5.2f} TB/s" if found.us else 25 * "-"]
    numbers.append(f"pytorch {found.pytorch_us:9.1f} us" if found.pytorch_us else 20 * " ")
    numbers.append(f"error {found.error:.1e}" if found.error is not None else "")
    return f"{found.name:32} {' '.join(numbers)}  [{found.config}] {found.failed or ''}"


# Attention.


@dataclass(frozen=True)
class Attention:
    """N samples of T new rows; shared: the keys are a prefix that all samples read."""

    length: str
    num: int = 1
    rows: int = 1
    shared: bool = False

    @property
    def name(self) -> str:
        """In results."""
        prefix = ", shared" if self.shared else ""
        return f"attention {self.length} N={self.num} T={self.rows}{prefix}"

    @property
    def lines(self) -> int:
        """Rows of a tile over the long keys."""
        return (self.num if self.shared else 1) * self.rows * (HQ // H)


ATTENTION = (
    *(Attention(length) for length in LENGTHS),
    *(Attention("128K", rows=rows) for rows in (4, 16, 32)),
    *(Attention("128K", num=num, shared=True) for num in (4, 16)),
    Attention("8K", num=4),
    Attention("8K", num=16, shared=True),
    Attention("1M", num=16, shared=True),
)


def tensors_of(case: Attention) -> tuple[list[Any], int]:
    """Arguments of each copy, and the bytes of keys that one reads."""
    size = LENGTHS[case.length]
    many = 1 if case.shared else case.num
    num_bytes = 2 * many * size * H * D * 2
    q = normal(case.num, case.rows, HQ, D)
    arguments = []
    for _ in range(copies_of(num_bytes)):
        k, v = (normal(many, size + 256, H, D) for _ in range(2))
        length = torch.full((many,), size - 3, dtype=torch.int32, device=DEVICE)
        if case.shared:
            own = normal(case.num, 256, H, D), normal(case.num, 256, H, D)
            starts = torch.arange(case.num, dtype=torch.int32, device=DEVICE) * 5
            arguments.append((q, *own, starts, (k, v, length)))
        else:
            arguments.append((q, k, v, length, None))
    return arguments, num_bytes


def measure_attention(case: Attention, tunings: Sequence[CachedTuning]) -> list[Measured]:
    """Each tuning of the long keys; PyTorch's time stands beside the first."""
    arguments, num_bytes = tensors_of(case)
    q, k, v, starts, shared = arguments[0]
    wanted = _reference(q, k, v, starts, None if shared is None else SharedKeys(*shared))
    usual = cached_tuning(case.rows * (HQ // H), 2 * D, capability=capability())

    def call_with(tuning: CachedTuning) -> Call:
        pair = (usual, tuning) if case.shared else (tuning, tuning)
        return lambda copy: cached_attention_triton(*arguments[copy], tunings=pair)

    def pytorch(copy: int) -> object:
        q, k, v, _, shared = arguments[copy]
        if shared is not None:  # all rows over the prefix alone: what it could not do otherwise
            q, (k, v, _) = q.flatten(0, 1)[None], shared
        turned = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(*turned, enable_gqa=True)

    sizes = {"num_bytes": num_bytes, "copies": len(arguments)}
    found = [
        measure(case.name, (*t.splits, "|", *t[1:]), call_with(t), [wanted], **sizes)
        for t in tunings
    ]
    found[0].pytorch_us = microseconds(pytorch, len(arguments))
    return found


def check_replay() -> None:
    """One graph serves every length, with what lies behind it in memory."""
    k, v = (normal(1, 4096, H, D) for _ in range(2))
    q = normal(1, 2, HQ, D)
    starts = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    cached_attention_triton(q, k, v, starts, None)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = cached_attention_triton(q, k, v, starts, None)
    for start in (0, 1, 62, 63, 64, 1000, 4094):
        starts.fill_(start)
        graph.replay()
        error = relative_error(out, _reference(q, k, v, starts, None))
        assert error < MOST_ERROR, f"a graph replayed at {start}: error {error}"


# Products.

PRODUCTS: dict[str, tuple[int, tuple[int, ...]]] = {
    "q, k, v": (HIDDEN, (HQ * D, H * D, H * D)),
    "output": (HQ * D, (HIDDEN,)),
    "gate and up": (HIDDEN, (MLP,)),
    "down": (MLP, (HIDDEN,)),
    "head": (HIDDEN, (VOCABULARY,)),
}


def measure_product(name: str, num_rows: int, configs: Sequence[ProductConfig]) -> list[Measured]:
    """Each configuration; PyTorch's time stands beside the first."""
    size, outs = PRODUCTS[name]
    gated = name == "gate and up"
    num_bytes = 2 * size * sum(outs) * (2 if gated else 1)
    copies = copies_of(num_bytes)
    x = normal(num_rows, size)
    bias = name == "q, k, v"
    weights = [
        [(normal(n, size) * 0.02, normal(n) if bias else None) for n in outs * (2 if gated else 1)]
        for _ in range(copies)
    ]
    plain = [F.linear(x.float(), w.float(), b.float() if bias else None) for w, b in weights[0]]
    if gated:
        gate, up = (y.to(x.dtype) for y in plain)
        plain = [F.silu(gate) * up]

    def call_with(config: ProductConfig) -> Call:
        if gated:
            return lambda copy: gated_triton(x, *(w for w, _ in weights[copy]), config=config)
        return lambda copy: products_triton(x, weights[copy], config=config)

    def pytorch(copy: int) -> object:
        outs = [F.linear(x, *weight) for weight in weights[copy]]
        return F.silu(outs[0]) * outs[1] if gated else outs

    sizes = {"num_bytes": num_bytes, "copies": copies}
    title = f"{name}, M={num_rows}"
    found = [measure(title, c, call_with(c), plain, **sizes) for c in configs]
    found[0].pytorch_us = microseconds(pytorch, copies)
    return found


# What is tried beside the settings that are committed.


def tried_tunings(lines: int) -> Iterator[CachedTuning]:
    """For tiles of so many rows."""
    if lines <= 16:
        usual = Config(16, 64, 4, 3, programs=2)
        for config in (
            Config(16, 64, 4, 3, tma=True, programs=2),
            Config(16, 64, 4, 2, tma=True, programs=3),
            Config(16, 64, 4, 4, programs=2),
            Config(16, 64, 4, 5, tma=True, programs=1),
        ):
            yield CachedTuning(config, 128, 32, 4)
        for sums in ((128, 16, 4), (64, 32, 4)):
            yield CachedTuning(usual, *sums)
        return
    for config in (
        Config(128, 64, 8, 3, tma=True, programs=1),
        Config(64, 64, 4, 3, maxnreg=168, tma=True, programs=2),
    ):
        yield CachedTuning(config, 64, 32, 2)
    for sums in ((64, 64, 4), (128, 32, 4)):
        yield CachedTuning(Config(128, 64, 8, 4, tma=True, programs=1), *sums)


def tried_products(num_rows: int) -> Iterator[ProductConfig]:
    """For so many rows of input."""
    if num_rows == 1:
        for block_n, block_k, warps, stages, tma in (
            (4, 512, 4, 3, False),
            (4, 512, 4, 4, False),
            (4, 512, 4, 6, False),
            (8, 512, 4, 1, False),
            (8, 512, 4, 3, False),
            (8, 512, 4, 4, False),
            (4, 512, 2, 1, False),
            (4, 512, 2, 4, False),
            (2, 1024, 4, 1, False),
            (2, 512, 2, 1, False),
            (16, 256, 4, 5, True),
        ):
            yield ProductConfig(1, block_n, block_k, warps, stages, tma)
        return
    for block_n, block_k, warps, stages, tma in (
        (64, 128, 4, 5, True),
        (64, 128, 4, 7, True),
        (64, 256, 4, 3, True),
        (64, 128, 4, 3, True),
        (32, 128, 4, 6, False),
        (32, 128, 4, 10, False),
        (32, 256, 4, 6, True),
        (32, 256, 4, 8, True),
        (32, 512, 4, 4, True),
        (32, 256, 8, 6, True),
        (16, 256, 2, 4, False),
    ):
        yield ProductConfig(16, block_n, block_k, warps, stages, tma)


def capability() -> int:
    """Major compute capability."""
    return torch.cuda.get_device_capability(DEVICE)[0]


def attention_results(*, alternatives: bool) -> Iterator[Measured]:
    """All cases, some with what is tried."""
    tried = {Attention("8K"), Attention("128K"), Attention("128K", num=16, shared=True)}
    if alternatives:
        tried |= {Attention("128K", rows=32)}
    for case in ATTENTION:
        usual = cached_tuning(case.lines, 2 * D, capability=capability())
        others = tried_tunings(case.lines) if alternatives and case in tried else ()
        yield from measure_attention(case, [usual, *(x for x in others if x != usual)])


def product_results(*, alternatives: bool) -> Iterator[Measured]:
    """All products of one row and of sixteen."""
    for num_rows in (1, 16):
        for name, (size, outs) in PRODUCTS.items():
            num_out = sum(outs) * (2 if name == "gate and up" else 1)
            usual = product_tuning(num_rows, num_out, size, capability=capability())
            others = tried_products(num_rows) if alternatives else ()
            yield from measure_product(name, num_rows, [usual, *(x for x in others if x != usual)])


def table(found: Sequence[Measured]) -> str:
    """The settings that are committed, and under them the best of what was tried."""
    lines = []
    for name in dict.fromkeys(x.name for x in found):
        usual, *others = (x for x in found if x.name == name)
        lines.append(line_of(usual))
        best = min((x for x in others if x.us and not x.failed), key=lambda x: x.us, default=None)
        if best is not None and (usual.us is None or best.us < usual.us):
            lines.append(f"    better: {line_of(best)}")
    return "\n".join(lines)


def main() -> None:
    """Check, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=("attention", "products"))
    parser.add_argument("--try", dest="tried", nargs="+", choices=("attention", "products"))
    options = parser.parse_args()
    parts = {"attention": attention_results, "products": product_results}
    torch.manual_seed(0)
    check_replay()
    found: list[Measured] = []
    with torch.no_grad():
        for name in options.only or parts:
            alternatives = name in (options.tried or ())
            found.extend(parts[name](alternatives=alternatives))
    result = {
        "unit": "us a call",
        "shape": {"query_heads": HQ, "kv_heads": H, "head_dim": D, "hidden": HIDDEN, "mlp": MLP},
        "measured": [asdict(x) for x in found],
        "machine": measurement_facts(DEVICE),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out, json.dumps(result, indent=1) + "\n")
    print(f"\n{table(found)}")


if __name__ == "__main__":
    main()
