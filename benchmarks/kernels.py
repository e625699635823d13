"""Time of each kernel of one `nsa_attention` call at the shape of a 7B layer, from a GPU trace.

python benchmarks/kernels.py --out benchmarks/results/nvidia-h200/kernels.json
"""

import argparse
import json
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from videonsa.bench.inputs import REGIMES, make_inputs
from videonsa.bench.machine import machine
from videonsa.bench.shapes import SHAPES
from videonsa.ops import NSASpec, nsa_attention

CALLS = 5
SHAPE_NAMES = ("7b-16k", "7b-64k", "7b-128k", "7b-1m")


def kernel_times(shape_name: str, device: torch.device) -> dict[str, dict[str, float]]:
    """Milliseconds a call of each kernel, for both regimes: the mean of five calls."""
    inputs = make_inputs(SHAPES[shape_name], REGIMES, device=device)
    found = {}
    for regime, tensors in inputs.items():
        for _ in range(2):
            nsa_attention(*tensors, spec=NSASpec(), backend="triton")
        with profile(activities=[ProfilerActivity.CUDA]) as trace:
            for _ in range(CALLS):
                nsa_attention(*tensors, spec=NSASpec(), backend="triton")
            torch.cuda.synchronize()
        events = sorted(trace.key_averages(), key=lambda event: -event.device_time_total)
        times = {event.key: event.device_time_total / CALLS / 1e3 for event in events}
        own = {name.strip("_"): ms for name, ms in times.items() if name.startswith("_")}
        other = sum(ms for name, ms in times.items() if not name.startswith("_"))
        found[regime] = {name: round(ms, 4) for name, ms in (own | {"torch": other}).items()}
    return found


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    device = torch.device("cuda")
    with torch.no_grad():
        kernels = {name: kernel_times(name, device) for name in SHAPE_NAMES}
    result = {"unit": "ms a call", "calls": CALLS, "kernels": kernels, "machine": machine(device)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1) + "\n"
    options.out.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
