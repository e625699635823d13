"""What vLLM's pages cost one layer: gathering and attention of vision tokens beside one stretch.

    python benchmarks/vllm_pieces.py --out benchmarks/results/nvidia-h200/vllm_pieces.json
    python benchmarks/vllm_pieces.py --device cpu --shapes tiny-1k --out vllm_pieces.json

vLLM itself is not run, and need not be installed: the cache here has the order of memory of its
FlashAttention backend, and a request's pages lie in it at random. Two ways are timed in the same
rounds: NSA over keys and values that lie in one stretch, as in the engine, and the same after they
were gathered from pages. The prediction of vLLM's time to first token is the engine's measured
prefill of that length with what gathering adds in every layer; it was not seen in vLLM.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from videonsa.bench.attention_inputs import Inputs, make_inputs
from videonsa.bench.attention_shapes import SHAPES, Shape
from videonsa.bench.measure import METHOD, Task, measure_in_turn, watch_of
from videonsa.bench.op_calls import attend, backend_of
from videonsa.disk import write_atomic
from videonsa.machine import measurement_facts
from videonsa.serving.vllm.pages import gather_plain

PAGE = 16
"""Tokens in a page, vLLM's usual number on a GPU."""
SPARE = 1.25
"""Pages in the cache for each that the request has."""
REPEATS = 7
LAYERS = 28
WANTED = 1.15
STRETCH, GATHER, BOTH = "one stretch", "gathering", "gathering and attention"


def paged(k: Tensor, v: Tensor, *, seed: int = 3) -> tuple[Tensor, Tensor]:
    """A layer's cache `[pages, H, page, 2 * D]` with the k and v of a request, and its pages."""
    (num_tokens, heads, width), device = k.shape[1:], k.device
    needed = -(-num_tokens // PAGE)
    generator = torch.Generator().manual_seed(seed)
    pages = torch.randperm(int(needed * SPARE), generator=generator)[:needed].to(device)
    memory = torch.zeros(int(needed * SPARE), PAGE, heads, 2 * width, dtype=k.dtype, device=device)
    rows = torch.cat([k[0], v[0]], dim=-1)
    slots = pages.repeat_interleave(PAGE)[:num_tokens] * PAGE
    slots += torch.arange(num_tokens, device=device) % PAGE
    memory.flatten(0, 1)[slots] = rows
    return memory.transpose(1, 2), pages.int()


def tasks_of(inputs: Inputs, shape: Shape) -> dict[str, Task]:
    """The two ways and gathering alone, whose results are the same."""
    cache, pages = paged(inputs.k, inputs.v)
    gather = partial(gather_plain, cache, pages, shape.tokens)
    nsa = partial(attend, shape=shape, scope="token", backend=backend_of(inputs.q.device))

    def both() -> tuple[Tensor, ...]:
        k, v = gather()
        return (nsa(inputs._replace(k=k, v=v)),)

    k, v = gather()
    if not (torch.equal(k, inputs.k) and torch.equal(v, inputs.v)):
        raise SystemExit("the gathered keys and values are not those that were written")
    return {
        STRETCH: Task.of(lambda: (nsa(inputs),)),
        GATHER: Task.of(gather),
        BOTH: Task.of(both),
    }


def measure(shape: Shape, device: torch.device) -> dict[str, Any]:
    """One shape, random and coherent."""
    found: dict[str, Any] = {}
    for regime, inputs in make_inputs(shape, ["random", "coherent"], device=device).items():
        timed = measure_in_turn(
            tasks_of(inputs, shape), watch=watch_of(device), repeats=REPEATS, progress=print
        )
        runs = {name: one.to_dict() for name, one in timed.items()}
        times = [runs[name]["ms"] for name in (STRETCH, BOTH)]
        ratio = None if None in times else times[1] / times[0]
        found[regime] = {"runs": runs, "ratio": ratio, "wanted": WANTED}
    return found


def prediction(
    found: Mapping[str, Any], prefill: Path | None, num_tokens: int
) -> list[dict[str, Any]]:
    """Of vLLM's time to first token, from the engine's measured prefill of the same length."""
    if prefill is None or not prefill.exists():
        return []
    lines = []
    for length in json.loads(prefill.read_text())["lengths"]:
        for stage in length["stages"] if length["tokens"] == num_tokens else []:
            regime = stage["name"].removeprefix("prefill, nsa, ")
            if regime not in found or not stage["ms"] or found[regime]["ratio"] is None:
                continue
            runs = found[regime]["runs"]
            added = LAYERS * (runs[BOTH]["ms"] - runs[STRETCH]["ms"])
            lines.append(
                {
                    "regime": regime,
                    "engine_ms": stage["ms"],
                    "vllm_ms": stage["ms"] + added,
                    "is": "a prediction: vLLM was not run on a GPU",
                    "without": "the vision tower, vLLM's scheduler and its own kernels; one chunk",
                }
            )
    return lines


def lines_of(shapes: Sequence[Mapping[str, Any]]) -> list[str]:
    """For a reader."""
    lines = []
    for one in shapes:
        for regime, found in one["regimes"].items():
            times = ", ".join(
                f"{name} {run['ms']:.2f} ms" for name, run in found["runs"].items() if run["ms"]
            )
            ratio = "not measured" if found["ratio"] is None else f"{found['ratio']:.3f}"
            lines.append(f"{one['shape']} {regime}: {times}; ratio {ratio}, want {WANTED} at most")
        lines += [
            f"  {guess['regime']}: {guess['vllm_ms']:.0f} ms to the first token, {guess['is']}"
            for guess in one["prediction"]
        ]
    return lines


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["7b-32k", "7b-128k"])
    parser.add_argument("--prefill", type=Path, help="the engine's, of `videonsa bench prefill`")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    device, shapes = torch.device(options.device), []
    for name in options.shapes:
        shape = SHAPES[name]
        with torch.inference_mode():
            found = measure(shape, device)
        guesses = prediction(found, options.prefill, shape.tokens)
        shapes.append({"shape": shape.text, "regimes": found, "prediction": guesses})
    result = {
        "page": PAGE,
        "shapes": shapes,
        "method": METHOD,
        "machine": measurement_facts(device),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out, json.dumps(result, indent=1) + "\n")
    print("\n".join(lines_of(shapes)))


if __name__ == "__main__":
    main()
