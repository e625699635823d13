"""Memory and time of the reference at 16K tokens and the head counts of the 7B model.

    python benchmarks/reference_memory.py --device cpu

Runs `nsa_attention` forward and backward in float32 and writes what it needed beyond its inputs to
benchmarks/results/<device>/reference_memory.json. On a CPU that is the peak resident size minus the
size before the call, inputs and imports included before; on a GPU the peak allocation minus the
allocation before the call.
"""

import argparse
import json
import platform
import resource
import time
from pathlib import Path

import torch

from videonsa.disk import write_atomic
from videonsa.machine import gpu_name
from videonsa.ops import NSASpec, nsa_attention

NUM_QUERY_HEADS, NUM_KV_HEADS, HEAD_DIM = 28, 4, 128
LIMIT_GB = 4.0


def current_bytes(device: torch.device) -> int:
    """Bytes in use now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak_bytes(device: torch.device) -> int:
    """The most bytes in use since the start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(num_tokens: int, device: torch.device) -> dict[str, object]:
    """Forward and backward once; bytes are counted beyond the inputs."""
    torch.manual_seed(0)

    def normal(heads: int) -> torch.Tensor:
        shape = (1, num_tokens, heads, HEAD_DIM)
        return torch.randn(shape, device=device).requires_grad_()

    q, k, v = normal(NUM_QUERY_HEADS), normal(NUM_KV_HEADS), normal(NUM_KV_HEADS)
    gates = torch.rand(1, num_tokens, NUM_QUERY_HEADS, 3, device=device, requires_grad=True)
    before, start = current_bytes(device), time.perf_counter()
    output = nsa_attention(q, k, v, gates, spec=NSASpec())
    after_forward, forward_seconds = peak_bytes(device), time.perf_counter() - start
    output.sum().backward()
    extra = (peak_bytes(device) - before) / 2**30
    return {
        "tokens": num_tokens,
        "query_heads": NUM_QUERY_HEADS,
        "kv_heads": NUM_KV_HEADS,
        "head_dim": HEAD_DIM,
        "dtype": "float32",
        "forward_extra_gb": round((after_forward - before) / 2**30, 3),
        "forward_backward_extra_gb": round(extra, 3),
        "limit_gb": LIMIT_GB,
        "within_limit": extra < LIMIT_GB,
        "forward_seconds": round(forward_seconds, 1),
        "forward_backward_seconds": round(time.perf_counter() - start, 1),
        "threads": torch.get_num_threads(),
        "device": gpu_name(device) or "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<device>/")
    options = parser.parse_args()
    result = measure(options.tokens, torch.device(options.device))
    folder = options.out or Path(__file__).parent / "results" / options.device.split(":")[0]
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=2) + "\n"
    write_atomic(folder / "reference_memory.json", text)
    print(text, end="")


if __name__ == "__main__":
    main()
