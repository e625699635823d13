"""Time of each kernel of one `nsa_attention` call at the shape of a 7B layer, from GPU traces.

cd benchmarks/results/nvidia-h200
python ../../attention_kernels.py --out kernels.json
python ../../attention_kernels.py --pass backward --out kernels_backward.json
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from videonsa.bench.attention_inputs import REGIMES, make_inputs
from videonsa.bench.attention_shapes import SHAPES
from videonsa.bench.measure import Task
from videonsa.bench.op_calls import prepare_videonsa
from videonsa.bench.passes import Pass, make_tasks
from videonsa.disk import write_atomic
from videonsa.machine import measurement_facts

CALLS = 5
SHAPE_NAMES = ("7b-16k", "7b-64k", "7b-128k", "7b-1m")


def kernel_times(shape_name: str, which: Pass, device: torch.device) -> dict[str, dict[str, float]]:
    """Milliseconds a call of each kernel of a pass, for both regimes: the mean of five calls."""
    shape = SHAPES[shape_name]
    found: dict[str, dict[str, float]] = {}
    for regime in REGIMES:
        inputs = make_inputs(shape, [regime], device=device)[regime]
        op = prepare_videonsa(inputs, shape, scope="token")
        with torch.set_grad_enabled(which == "backward"):
            times = _trace(make_tasks({"op": op}, which)["op"])
        own = {name.strip("_"): ms for name, ms in times.items() if name.startswith("_")}
        other = sum(ms for name, ms in times.items() if not name.startswith("_"))
        found[regime] = {name: round(ms, 4) for name, ms in (own | {"torch": other}).items()}
    return found


def _trace(task: Task) -> dict[str, float]:
    """Milliseconds a call by name, longest first; what a task does not time is in no trace."""
    task.whole()
    times: dict[str, float] = defaultdict(float)
    for _ in range(CALLS):
        timed = task.start()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as trace:
            timed()
            torch.cuda.synchronize()
        for event in trace.key_averages():
            times[event.key] += event.device_time_total / CALLS / 1e3
    return dict(sorted(times.items(), key=lambda entry: -entry[1]))


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pass", dest="which", choices=("forward", "backward"), default="forward")
    options = parser.parse_args()
    device = torch.device("cuda")
    kernels = {name: kernel_times(name, options.which, device) for name in SHAPE_NAMES}
    result = {
        "pass": options.which,
        "unit": "ms a call",
        "calls": CALLS,
        "kernels": kernels,
        "machine": measurement_facts(device),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1) + "\n"
    write_atomic(options.out, text)
    print(text, end="")


if __name__ == "__main__":
    main()
