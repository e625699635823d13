"""The process that runs cases with the code of one version, which PYTHONPATH names.

    python -m benchmarks.same_outputs.worker --source SRC --out FOLDER --cases '["packed/frame"]'

It is started by `python -m benchmarks.same_outputs`. What a case gives is written to
FOLDER/NAME.RANK.safetensors; why it was not run, or what it raised, to FOLDER/NAME.RANK.json.
"""

import argparse
import importlib.util
import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from benchmarks.same_outputs.cases import CASES, Case, Place
from benchmarks.same_outputs.comparing import FAILED

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TIMEOUT = timedelta(minutes=2)


def file_name(case: str, rank: int, suffix: str) -> str:
    """Of what a process found."""
    return f"{case.replace('/', '.').replace(' ', '_')}.{rank}.{suffix}"


def _why_not(case: Case, device: torch.device) -> str | None:
    """Why a case cannot run here."""
    for package in case.packages:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    if device.type == "cuda" and torch.cuda.device_count() < case.processes:
        return f"needs {case.processes} GPUs"
    return None


def run_case(name: str, place: Place, out: Path) -> None:
    """Run a case, and write what it gives or why it gives nothing to a folder."""
    case = CASES[name]
    note, found = _why_not(case, place.device), {}
    if note is None:
        try:
            found = case.run(place)
        except Exception as error:  # told in the table; other cases follow
            traceback.print_exc()
            note = f"{FAILED}{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if note is None:
        tensors = {key: x.detach().cpu().contiguous().clone() for key, x in found.items()}
        save_file(tensors, out / file_name(name, place.rank, "safetensors"))
    else:
        told = json.dumps({"note": note})
        (out / file_name(name, place.rank, "json")).write_text(told, encoding="utf-8")


@contextmanager
def _group(device: torch.device, rank: int, processes: int, out: Path) -> Iterator[None]:
    """One of the processes of a group."""
    if processes == 1 or (device.type == "cuda" and torch.cuda.device_count() < processes):
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, init_method=f"file://{out}/store", rank=rank, world_size=processes, timeout=TIMEOUT
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def main() -> None:
    """Run the cases that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", type=json.loads, required=True, help="names, a JSON list")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--nudged", type=json.loads, default=[], help="of the names, a JSON list")
    options = parser.parse_args()
    package = importlib.util.find_spec("videonsa")
    if package is None or not Path(package.origin or "").is_relative_to(options.source):
        raise SystemExit(f"videonsa is not that of {options.source}")
    torch.set_num_threads(1)
    device = torch.device(options.device)
    if device.type == "cuda":
        device = torch.device("cuda", min(options.rank, torch.cuda.device_count() - 1))
        torch.cuda.set_device(device)
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
    place = Place(
        device=device,
        dtype=DTYPES[options.dtype],
        rank=options.rank,
        backend=options.backend,
    )
    with _group(device, options.rank, options.processes, options.out):
        for name in options.cases:
            run_case(name, replace(place, nudged=name in options.nudged), options.out)


if __name__ == "__main__":
    main()
