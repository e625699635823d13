"""Whether this checkout gives the same bits as an older commit, setting by setting.

    python -m benchmarks.same_outputs --out benchmarks/results/cpu/same_outputs.json
    python -m benchmarks.same_outputs --old HEAD~3 --cases packed,decode/frame
    python -m benchmarks.same_outputs --device cuda --dtype bfloat16 --trees build/old
    TRITON_INTERPRET=1 python -m benchmarks.same_outputs --backend triton --cases packed/frame

The code of the old commit and this checkout's run the same cases (`cases.py`) in processes of
their own: small models whose weights depend on nothing but the names of the parameters. Compared
bit by bit are logits, hidden states, losses, the gradients of all parameters, keys and values of
the cache, generated ids and what a recorder saw. Where something differs, the old code runs once
more: the table says so if it does not even agree with itself.

The case `control` must differ: in the new process one weight is moved to the next number of its
dtype. With --self-test that is done in all cases, and all must differ. The exit status is 0 if
those do and all others are equal or could not run (the table says why: a package that is missing,
fewer than two GPUs).

Old commits come from git. Without a repository put their sources beforehand where --trees says:

    mkdir -p build/old/0648b5d && git archive 0648b5d src | tar -x -C build/old/0648b5d

The old commit is 929e4d1. From there to 0648b5d some outputs were changed on purpose, and what
meets such a change is compared with 0648b5d, unless --old is later:

* Frame times are rounded before they become whole position ids (`plain/frame/times off zero`).
* The kernels of the selected branch read the blocks of a tile in an order that depends on no key
  that a row may not see: rows are rounded otherwise, by 2e-6 in float32. So where the kernels
  compute (--device cuda, --backend triton) 0648b5d is the default for all cases.

Changed on purpose too, but no case meets it: packed samples that end in an arriving frame of more
than 128 tokens on a GPU, one image asked alone, and values that are not finite.
"""

import argparse
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.same_outputs.cases import CASES
from benchmarks.same_outputs.comparing import FAILED, Row, compare, digest, table
from benchmarks.same_outputs.worker import DTYPES, file_name
from videonsa.disk import write_atomic

ROOT = Path(__file__).parents[2]
OLD, OLD_KERNELS = "929e4d1", "0648b5d"
WORKER = "benchmarks.same_outputs.worker"
MINUTES = 10
"""That the processes of one version may take."""
_PACKAGES = ("torch", "transformers", "triton", "liger-kernel", "accelerate", "peft")


def _load(folder: Path, name: str) -> tuple[dict[str, Tensor], str]:
    """What all processes of a case found, and why one found nothing."""
    tensors: dict[str, Tensor] = {}
    for rank in range(CASES[name].processes):
        told = folder / file_name(name, rank, "json")
        if told.exists():
            return {}, json.loads(told.read_text(encoding="utf-8"))["note"]
        found = folder / file_name(name, rank, "safetensors")
        if not found.exists():
            return {}, f"{FAILED}its process ended early"
        prefix = f"process {rank}: " if CASES[name].processes > 1 else ""
        tensors |= {prefix + key: x for key, x in load_file(found).items()}
    return tensors, ""


def row_of(name: str, old: Path, new: Path, *, dtype: str, against: str) -> Row:
    """The line of a case from what two versions left in their folders."""
    row = Row(case=name, dtype=dtype, against=against)
    (theirs, old_note), (ours, new_note) = _load(old, name), _load(new, name)
    if old_note == new_note != "":
        return replace(row, note=f"{old_note} (both)")
    if old_note or new_note:
        told = [note.removeprefix(FAILED) or "it ran" for note in (old_note, new_note)]
        return replace(row, note=f"{FAILED}old code: {told[0]}; new code: {told[1]}")
    worst, where = compare(theirs, ours)
    return replace(
        row,
        tensors=len(ours),
        equal=worst is None,
        max_difference=worst,
        where=where,
        sha256=digest(ours),
        note=CASES[name].reason if CASES[name].since == against else "",
    )


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(("git", "-C", str(ROOT), *arguments), capture_output=True, check=False)


def commit_of(name: str, old: str) -> str:
    """The commit that a case is compared with: `old`, or a later one that changed it on purpose."""
    since = CASES[name].since
    if not since or _git("merge-base", "--is-ancestor", since, old).returncode == 0:
        return old
    return since


def extract(commit: str, trees: Path) -> Path:
    """The `src` of a commit, in a folder of `trees` of that name; one that is there is taken."""
    source = trees / commit / "src"
    if not source.is_dir():
        archive = _git("archive", commit, "src")
        if archive.returncode:
            raise SystemExit(f"{commit}: {archive.stderr.decode().strip()} (see --trees)")
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(trees / commit, filter="data")
    return source


class Setting(NamedTuple):
    """Where and in what cases run."""

    device: str
    dtype: str
    backend: str = "auto"


def run_version(
    source: Path, names: Sequence[str], out: Path, setting: Setting, *, nudged: Sequence[str] = ()
) -> None:
    """Run cases with the code of `source`; what they find goes to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ, PYTHONPATH=str(source), CUBLAS_WORKSPACE_CONFIG=":4096:8")
    for processes in sorted({CASES[name].processes for name in names}):
        chosen = [name for name in names if CASES[name].processes == processes]
        command = [sys.executable, "-W", "ignore::FutureWarning", "-m", WORKER]
        command += ["--source", str(source), "--out", str(out)]
        for option, value in setting._asdict().items():
            command += [f"--{option}", value]
        command += ["--processes", str(processes)]
        command += ["--cases", json.dumps(chosen), "--nudged", json.dumps(nudged)]
        running = [
            subprocess.Popen([*command, "--rank", str(rank)], env=environment, cwd=ROOT)
            for rank in range(processes)
        ]
        try:
            for process in running:
                process.wait(timeout=MINUTES * 60)
        except subprocess.TimeoutExpired:
            print(f"{source}: {MINUTES} minutes are over", file=sys.stderr)
        finally:
            for process in running:
                process.kill()


def rows_of(
    names: Sequence[str], setting: Setting, *, old: str, trees: Path, self_test: bool
) -> list[Row]:
    """The lines of a setting."""
    differ = [name for name in names if self_test or CASES[name].must_differ]
    by_commit: dict[str, list[str]] = {}
    for name in names:
        by_commit.setdefault(commit_of(name, old), []).append(name)
    sources = {commit: extract(commit, trees) for commit in by_commit}
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        new = Path(folder, "new")
        with _pool(setting.device) as pool:
            running = [pool.submit(run_version, ROOT / "src", names, new, setting, nudged=differ)]
            for commit, chosen in by_commit.items():
                found = Path(folder, commit)
                running.append(pool.submit(run_version, sources[commit], chosen, found, setting))
        for one in running:
            one.result()
        for commit, chosen in by_commit.items():
            found, again = Path(folder, commit), Path(folder, f"{commit} again")
            for name in chosen:
                row = row_of(name, found, new, dtype=setting.dtype, against=commit)
                rows[name] = replace(row, must_differ=name in differ)
            unlike = [name for name in chosen if rows[name].equal is False and name not in differ]
            if unlike:
                run_version(sources[commit], unlike, again, setting)
            for name in unlike:
                if not row_of(name, found, again, dtype=setting.dtype, against=commit).equal:
                    rows[name] = replace(rows[name], note="the old code does not repeat itself")
    return [rows[name] for name in names]


def _pool(device: str) -> ThreadPoolExecutor:
    """A GPU has room for all versions at once; a CPU takes one after the other."""
    return ThreadPoolExecutor(1 if device == "cpu" else 4)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _sources(folder: Path) -> str:
    """Digest of all Python files below a folder: what a commit's name stands for."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def facts(rows: Sequence[Row], *, trees: Path, device: str) -> dict[str, object]:
    """What the table holds for."""
    on_gpu = torch.device(device).type == "cuda"
    head, dirty = _git("rev-parse", "--short", "HEAD"), _git("status", "--porcelain", "--", "src")
    return {
        "old": {
            commit: {"sources_sha256": _sources(extract(commit, trees))}
            for commit in sorted({row.against for row in rows})
        },
        "new": {
            "commit": head.stdout.decode().strip() or None,
            "dirty": None if dirty.returncode else bool(dirty.stdout),
            "sources_sha256": _sources(ROOT / "src"),
        },
        "device": torch.cuda.get_device_name() if on_gpu else f"cpu {platform.machine()}, 1 thread",
        "gpus": torch.cuda.device_count() if on_gpu else 0,
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
        "date": datetime.now(UTC).date().isoformat(),
    }


def chosen_cases(patterns: str) -> list[str]:
    """Names that are, or begin with, or match one of the patterns; a pattern must find some."""
    found: dict[str, None] = {}
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        matching = [
            name
            for name in CASES
            if name == pattern or name.startswith(f"{pattern}/") or fnmatch(name, pattern)
        ]
        if not matching:
            raise SystemExit(f"--cases {pattern}: want some of {', '.join(CASES)}")
        found |= dict.fromkeys(matching)
    return [name for name in CASES if name in found]


@contextmanager
def _trees(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print and write the table; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", help=f"a commit; {OLD}, or {OLD_KERNELS} where kernels compute")
    parser.add_argument("--cases", default="*", help="names, their beginnings or patterns")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or both, by comma")
    parser.add_argument("--backend", default="auto", help="of NSA; auto, reference or triton")
    parser.add_argument("--self-test", action="store_true", help="all cases must differ")
    parser.add_argument("--trees", type=Path, help="where the sources of old commits are or go")
    parser.add_argument("--out", type=Path, help="JSON")
    options = parser.parse_args(arguments)
    dtypes = options.dtype.split(",")
    if not set(dtypes) <= set(DTYPES):
        raise SystemExit(f"--dtype {options.dtype}: want some of {', '.join(DTYPES)}")
    names = chosen_cases(options.cases)
    kernels = options.device != "cpu" or options.backend == "triton"
    old = options.old or (OLD_KERNELS if kernels else OLD)
    with _trees(options.trees) as trees:
        rows = []
        for dtype in dtypes:
            setting = Setting(options.device, dtype, options.backend)
            rows += rows_of(names, setting, old=old, trees=trees, self_test=options.self_test)
        about = facts(rows, trees=trees, device=options.device)
    as_expected = all(row.as_expected for row in rows)
    print(table(rows))
    print("as expected" if as_expected else "NOT AS EXPECTED")
    if options.out is not None:
        result = {"as_expected": as_expected, "self_test": options.self_test}
        result |= {"backend": options.backend, **about}
        result["cases"] = [row.as_json() for row in rows]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(options.out, json.dumps(result, indent=1) + "\n")
    return 0 if as_expected else 1


if __name__ == "__main__":
    sys.exit(main())
