"""What vLLM's pages cost one layer: gathering and attention of vision tokens beside one stretch.

    python benchmarks/vllm_pieces.py --out benchmarks/results/nvidia-h200/vllm_pieces.json
    python benchmarks/vllm_pieces.py --device cpu --shapes tiny-1k --out vllm_pieces.json

vLLM itself is not run, and need not be installed: the cache here has the order of memory of its
FlashAttention backend, and a request's pages lie in it at random. NSA over keys and values that lie
in one stretch, and the same after they were gathered from pages, are timed in the same rounds: of a
whole prompt that is read in one step, and of the last step where it is read in steps. The engine
copies its own cache into one stretch too; that is in no time here, so the ratios are upper bounds.

The prediction of vLLM's time to first token is the engine's measured prefill of that length with
what gathering adds in every layer; it was not seen in vLLM.
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
STEP = 8192
"""Tokens that `vllm serve` reads in a step on an H200 unless told otherwise."""
FEWEST_STEPS = 4
"""Of the shapes for a CPU, which are shorter."""
REPEATS = 9
LAYERS = 28
WANTED = 1.15
WHOLE, LAST = "whole prompt", "last step"
STRETCH, GATHER, BOTH = "one stretch", "gathering", "gathering and attention"


def step_of(shape: Shape) -> int:
    """New tokens in a step."""
    return min(STEP, shape.tokens // FEWEST_STEPS)


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
    """One shape, random and coherent, a whole prompt and the last step of one."""
    found: dict[str, Any] = {}
    for regime, inputs in make_inputs(shape, ["random", "coherent"], device=device).items():
        last = slice(shape.tokens - step_of(shape), None)
        rows = inputs._replace(q=inputs.q[:, last], gates=inputs.gates[:, last])
        found[regime] = {
            WHOLE: compare(inputs, shape, device),
            LAST: compare(rows, shape, device),
        }
    return found


def compare(inputs: Inputs, shape: Shape, device: torch.device) -> dict[str, Any]:
    """The two ways for some rows, the last of the keys."""
    timed = measure_in_turn(
        tasks_of(inputs, shape), watch=watch_of(device), repeats=REPEATS, progress=print
    )
    runs = {name: one.to_dict() for name, one in timed.items()}
    times = [runs[name]["ms"] for name in (STRETCH, BOTH)]
    ratio = None if None in times else times[1] / times[0]
    return {"rows": inputs.q.shape[1], "runs": runs, "ratio": ratio, "wanted": WANTED}


def guesses_of(
    found: Mapping[str, Any], lengths: Sequence[Mapping[str, Any]], shape: Shape
) -> list[dict[str, Any]]:
    """Of vLLM's time to first token, from the engine's measured prefill of the same length."""
    steps = shape.tokens / step_of(shape)
    # A step gathers what was read so far: on average half of what the last one does.
    times_in_a_layer = {WHOLE: 1.0, LAST: (steps + 1) / 2}
    guesses = []
    for length in lengths:
        for stage in length["stages"] if length["tokens"] == shape.tokens else []:
            regime = stage["name"].removeprefix("prefill, nsa, ")
            if regime not in found or not stage["ms"]:
                continue
            for rows, times in times_in_a_layer.items():
                if found[regime][rows]["ratio"] is None:
                    continue
                runs = found[regime][rows]["runs"]
                added = LAYERS * times * (runs[BOTH]["ms"] - runs[STRETCH]["ms"])
                guesses.append(
                    {
                        "regime": regime,
                        "steps": 1 if rows == WHOLE else steps,
                        "engine_ms": stage["ms"],
                        "vllm_ms": stage["ms"] + added,
                        "is": "a prediction: vLLM was not run on a GPU",
                        "without": "the vision tower, vLLM's scheduler and its own kernels",
                    }
                )
    return guesses


def lines_of(shapes: Sequence[Mapping[str, Any]]) -> list[str]:
    """For a reader."""
    lines = []
    for one in shapes:
        for regime, parts in one["regimes"].items():
            lines += [f"{one['shape']}, {regime}, {_line(*part)}" for part in parts.items()]
        lines += [
            f"  {guess['regime']}, {guess['steps']:g} steps: {guess['vllm_ms']:.0f} ms to the "
            f"first token, {guess['is']}"
            for guess in one["prediction"]
        ]
    return lines


def _line(part: str, found: Mapping[str, Any]) -> str:
    times = ", ".join(
        f"{name} {run['ms']:.2f} ms ({run['ms_min']:.2f} to {run['ms_max']:.2f})"
        if run["ms"]
        else f"{name}: {run['error']}"
        for name, run in found["runs"].items()
    )
    ratio = "not measured" if found["ratio"] is None else f"{found['ratio']:.3f}"
    return f"{part} ({found['rows']} rows): {times}; ratio {ratio}, want {WANTED} at most"


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["7b-32k", "7b-128k"])
    parser.add_argument("--prefill", type=Path, help="the engine's, of `videonsa bench prefill`")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    lengths = json.loads(options.prefill.read_text())["lengths"] if options.prefill else []
    device, shapes = torch.device(options.device), []
    for name in options.shapes:
        shape = SHAPES[name]
        with torch.inference_mode():
            found = measure(shape, device)
        guesses = guesses_of(found, lengths, shape)
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
