"""Whether this checkout gives the same bits as an older commit, setting by setting.

    python benchmarks/same_outputs.py --out benchmarks/results/cpu/same_outputs.json
    python benchmarks/same_outputs.py --old HEAD~3 --cases packed,decode/frame
    python benchmarks/same_outputs.py --device cuda --dtype bfloat16 --trees build/old

The code of the old commit and this checkout's run the same cases (`same_outputs_cases.py`) in
processes of their own: small models whose weights depend on nothing but the names of the
parameters. Compared bit by bit are logits, hidden states, losses, the gradients of all parameters,
keys and values of the cache, generated ids and what a recorder saw. Where something differs, the
old code runs once more: the table says so if it does not even agree with itself.

The case `control` must differ: in the new process one weight is moved to the next number of its
dtype. With --self-test that is done in all cases, and all must differ. The exit status is 0 if
those do and all others are equal or could not run (the table says why: a package that is missing,
fewer than two GPUs).

Old commits come from git. Without a repository put their sources beforehand where --trees says:

    mkdir -p build/old/929e4d1 && git archive 929e4d1 src | tar -x -C build/old/929e4d1

Between 929e4d1 and 0648b5d some outputs were changed on purpose. Cases that meet such a change say
so (`since`, `reason`) and are compared with 0648b5d, unless --old is later:

* Frame times are rounded before they become whole position ids (`plain/frame/times off zero`).

Changed on purpose too, but no case meets it: packed samples that end in an arriving frame of more
than 128 tokens on a GPU, one image asked alone, and values that are not finite.
"""

import argparse
import hashlib
import io
import json
import math
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors.torch import load_file
from same_outputs_cases import CASES, DTYPES, file_name
from torch import Tensor

from videonsa.disk import write_whole

ROOT = Path(__file__).parents[1]
WORKER = ROOT / "benchmarks/same_outputs_cases.py"
OLD = "929e4d1"
MINUTES = 10
"""That the processes of one version may take."""
_PACKAGES = ("torch", "transformers", "triton", "liger-kernel", "accelerate", "peft")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table."""

    case: str
    dtype: str
    against: str
    """The old commit."""
    tensors: int = 0
    equal: bool | None = None
    """None where the case did not run."""
    max_difference: float | None = None
    where: str = ""
    """The tensor that differs most."""
    sha256: str = ""
    """Of all tensors of the new code."""
    must_differ: bool = False
    note: str = ""

    @property
    def as_expected(self) -> bool:
        """Equal, or not where it must differ; a case that failed never is."""
        if self.equal is None:
            return not self.note.startswith("failed")
        return self.equal != self.must_differ

    def as_json(self) -> dict[str, object]:
        """As JSON knows it, which has no NaN and no infinity."""
        difference, found = self.max_difference, asdict(self)
        if difference is not None and not math.isfinite(difference):
            found["max_difference"] = str(difference)
        return found


# --- Comparing ---------------------------------------------------------------------------------


def _bytes(x: Tensor) -> bytes:
    return x.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and values."""
    found = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        found.update(f"{name} {x.dtype} {list(x.shape)}\n".encode())
        found.update(_bytes(x))
    return found.hexdigest()


def difference(old: Tensor, new: Tensor) -> float | None:
    """None for the same bits, else the largest absolute difference; inf for shapes and dtypes."""
    if old.shape != new.shape or old.dtype != new.dtype:
        return float("inf")
    if _bytes(old) == _bytes(new):
        return None
    return float((old.double() - new.double()).abs().max())


def compare(old: dict[str, Tensor], new: dict[str, Tensor]) -> tuple[float | None, str]:
    """The largest difference of all tensors, as `difference` gives it, and where it is."""
    if old.keys() != new.keys():
        return float("inf"), f"only one has {', '.join(sorted(old.keys() ^ new.keys())[:3])}"
    found = {name: difference(old[name], new[name]) for name in old}
    differing = {name: value for name, value in found.items() if value is not None}
    if not differing:
        return None, ""
    # A NaN beside a number is the largest of all.
    worst = max(differing, key=lambda name: (differing[name] != differing[name], differing[name]))
    return differing[worst], worst


def _load(folder: Path, name: str) -> tuple[dict[str, Tensor], str]:
    """What all processes of a case found, and why one found nothing."""
    tensors: dict[str, Tensor] = {}
    for rank in range(CASES[name].processes):
        told = folder / file_name(name, rank, "json")
        if told.exists():
            return {}, json.loads(told.read_text(encoding="utf-8"))["note"]
        found = folder / file_name(name, rank, "safetensors")
        if not found.exists():
            return {}, "failed: its process ended early"
        prefix = f"process {rank}: " if CASES[name].processes > 1 else ""
        tensors |= {prefix + key: x for key, x in load_file(found).items()}
    return tensors, ""


def row_of(name: str, old: Path, new: Path, *, dtype: str, against: str, must_differ: bool) -> Row:
    """The line of a case from what both versions left in their folders."""
    row = {"case": name, "dtype": dtype, "against": against, "must_differ": must_differ}
    (theirs, old_note), (ours, new_note) = _load(old, name), _load(new, name)
    if old_note or new_note:
        both = f"{old_note} (both)" if old_note == new_note else f"old {old_note}, new {new_note}"
        failed = [note for note in (old_note, new_note) if note.startswith("failed")]
        return Row(**row, note=f"failed: {both}" if failed else old_note or new_note)
    worst, where = compare(theirs, ours)
    return Row(
        **row,
        tensors=len(ours),
        equal=worst is None,
        max_difference=worst,
        where=where,
        sha256=digest(ours),
        note=CASES[name].reason if CASES[name].since == against else "",
    )


# --- Running -----------------------------------------------------------------------------------


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


def run_version(
    source: Path,
    names: Sequence[str],
    out: Path,
    *,
    device: str,
    dtype: str,
    nudged: Sequence[str] = (),
) -> None:
    """Run cases with the code of `source`; what they find goes to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ, PYTHONPATH=str(source), CUBLAS_WORKSPACE_CONFIG=":4096:8")
    for processes in sorted({CASES[name].processes for name in names}):
        chosen = [name for name in names if CASES[name].processes == processes]
        command = [sys.executable, "-W", "ignore::FutureWarning", WORKER]
        command += ["--source", source, "--out", out, "--device", device, "--dtype", dtype]
        command += ["--cases", json.dumps(chosen), "--nudged", json.dumps(nudged)]
        command += ["--processes", processes]
        running = [
            subprocess.Popen([*map(str, command), "--rank", str(rank)], env=environment)
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
    names: Sequence[str], *, old: str, trees: Path, device: str, dtype: str, self_test: bool
) -> list[Row]:
    """The lines of a dtype."""
    options = {"device": device, "dtype": dtype}
    differ = [name for name in names if self_test or CASES[name].must_differ]
    by_commit: dict[str, list[str]] = {}
    for name in names:
        by_commit.setdefault(commit_of(name, old), []).append(name)
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as folder, _pool(device) as pool:
        new, running = Path(folder, "new"), []
        for commit, chosen in by_commit.items():
            source = extract(commit, trees)
            found = Path(folder, commit)
            running.append(pool.submit(run_version, source, chosen, found, **options))
        running.append(pool.submit(run_version, ROOT / "src", names, new, **options, nudged=differ))
        for one in running:
            one.result()
        for commit, chosen in by_commit.items():
            found, again = Path(folder, commit), Path(folder, f"{commit} again")
            told = {"dtype": dtype, "against": commit}
            for name in chosen:
                rows[name] = row_of(name, found, new, **told, must_differ=name in differ)
            unlike = [
                name for name in chosen if rows[name].equal is rows[name].must_differ is False
            ]
            if unlike:
                run_version(extract(commit, trees), unlike, again, **options)
            for name in unlike:
                if compare(_load(found, name)[0], _load(again, name)[0])[0] is not None:
                    rows[name] = replace(rows[name], note="the old code does not repeat itself")
    return [rows[name] for name in names]


def _pool(device: str) -> ThreadPoolExecutor:
    """A GPU has room for all versions at once; a CPU takes one after the other."""
    return ThreadPoolExecutor(1 if device == "cpu" else 4)


# --- Telling -----------------------------------------------------------------------------------


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


def _told(row: Row) -> str:
    if row.equal is None:
        return row.note if row.note.startswith("failed") else f"not run: {row.note}"
    if row.equal:
        return "EQUAL, must differ" if row.must_differ else "equal"
    wanted = " (must)" if row.must_differ else ""
    return f"{'differs' if wanted else 'DIFFERS'}{wanted}: {row.max_difference:.3g} in {row.where}"


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| case | dtype | against | tensors | result | note |", "|---|---|---|---|---|---|"]
    for row in rows:
        note = "" if row.equal is None else row.note
        cells = (row.case, row.dtype, row.against, str(row.tensors), _told(row), note)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


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
    parser.add_argument("--old", default=OLD, help=f"a commit; {OLD}")
    parser.add_argument("--cases", default="*", help="names, their beginnings or patterns")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or both, by comma")
    parser.add_argument("--self-test", action="store_true", help="all cases must differ")
    parser.add_argument("--trees", type=Path, help="where the sources of old commits are or go")
    parser.add_argument("--out", type=Path, help="JSON")
    options = parser.parse_args(arguments)
    dtypes = options.dtype.split(",")
    if not set(dtypes) <= set(DTYPES):
        raise SystemExit(f"--dtype {options.dtype}: want some of {', '.join(DTYPES)}")
    names = chosen_cases(options.cases)
    with _trees(options.trees) as trees:
        settings = {"old": options.old, "trees": trees, "device": options.device}
        settings["self_test"] = options.self_test
        rows = [row for dtype in dtypes for row in rows_of(names, **settings, dtype=dtype)]
        about = facts(rows, trees=trees, device=options.device)
    as_expected = all(row.as_expected for row in rows)
    print(table(rows))
    print("as expected" if as_expected else "NOT AS EXPECTED")
    if options.out is not None:
        result = {"as_expected": as_expected, **about, "cases": [row.as_json() for row in rows]}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(options.out, json.dumps(result, indent=1) + "\n")
    return 0 if as_expected else 1


if __name__ == "__main__":
    sys.exit(main())
