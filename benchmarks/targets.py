"""What the project wants of its numbers on one H200, beside what the committed JSON says.

python benchmarks/targets.py benchmarks/results/nvidia-h200

Prints a table in Markdown; the exit status is 1 where a number misses what is wanted of it. What
was not measured is said so and misses nothing.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

Result = dict[str, Any]
Finder = Callable[[Result], float | None]
LENGTHS = ("16k", "32k", "64k", "128k", "256k")
FLA_FACTOR, FLA_AIM = 3.0, 5.0
MOST_TOKENS_OF_A_FRAME = 1000
"""Lengths are rounded up to whole frames."""
ALIKE = 1.15
"""Other head layouts and frame-aligned blocks: at most so much more time for the same work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One number, and what is wanted of it."""

    what: str
    file: str
    find: Finder
    want: float
    aim: float | None = None
    at_least: bool = True
    unit: str = "x"

    def meets(self, value: float, bound: float | None) -> bool:
        """Whether a value is as good as a bound, or there is none."""
        return bound is None or (value >= bound if self.at_least else value <= bound)


def run_of(result: Result, shape: str, op: str, regime: str) -> dict[str, Any] | None:
    """The measurement of an op at a shape; None where it has no time."""
    for entry in result["shapes"]:
        if entry["shape"]["name"] == shape:
            for run in entry["runs"]:
                if (run["op"], run["regime"]) == (op, regime) and run["ms"] is not None:
                    return dict(run) | {"heads": entry["shape"]["query_heads"]}
    return None


def faster(
    result: Result, *, shape: str, regime: str, op: str = "videonsa", competitor: str = "sdpa-cudnn"
) -> float | None:
    """Time of the competitor over time of the op."""
    ours = run_of(result, shape, op, regime)
    theirs = run_of(result, shape, competitor, "any" if competitor.startswith("sdpa") else regime)
    return theirs["ms"] / ours["ms"] if ours and theirs else None


def slower(result: Result, *, shape: str, regime: str) -> float | None:
    """Time over that of dense attention."""
    ratio = faster(result, shape=shape, regime=regime)
    return 1 / ratio if ratio else None


def against_7b(result: Result, *, shape: str, length: str, regime: str) -> float | None:
    """Time a query head, over that of the 7B layer with blocks of 64."""
    ours = run_of(result, shape, "videonsa", regime)
    base = run_of(result, f"7b-{length}", "videonsa", regime)
    return ours["ms"] / ours["heads"] / (base["ms"] / base["heads"]) if ours and base else None


def extra_gb(result: Result, *, shape: str, regime: str) -> float | None:
    """Peak memory less inputs and what is returned."""
    run = run_of(result, shape, "videonsa", regime)
    return run["extra_gb"] if run else None


def over_share(result: Result, *, name: str) -> float | None:
    """Time of block lists over what their share of dense attention takes."""
    factors = [run.get("factor") for run in result["runs"] if run["name"] == name]
    return factors[0] if factors else None


def kernel_seconds(result: Result, *, shape: str, regime: str) -> float | None:
    """All kernels of one call."""
    kernels = result["kernels"].get(shape, {}).get(regime)
    return sum(kernels.values()) / 1e3 if kernels else None


def stage(
    result: Result, tokens: int, name: str, frame: tuple[int, int] = (224, 224)
) -> dict[str, Any] | None:
    """A stage of the prefill benchmark; None where it has no time."""
    for entry in result["lengths"]:
        whole_frames = 0 <= entry["tokens"] - tokens < MOST_TOKENS_OF_A_FRAME
        if whole_frames and tuple(entry["frame"]) == frame:
            for found in entry["stages"]:
                if found["name"] == name and found["ms"] is not None:
                    return dict(found)
    return None


def prefill_faster(result: Result, *, regime: str) -> float | None:
    """Dense prefill over sparse, 128K tokens."""
    ours = stage(result, 2**17, f"prefill, nsa, {regime}")
    dense = stage(result, 2**17, "prefill, dense")
    return dense["ms"] / ours["ms"] if ours and dense else None


def tower_seconds(result: Result, *, frame: tuple[int, int]) -> float | None:
    """The vision tower at 128K tokens."""
    found = stage(result, 2**17, "vision tower", frame)
    return found["ms"] / 1e3 if found else None


def prefill_seconds(result: Result) -> float | None:
    """Coherent prefill of 128K tokens."""
    found = stage(result, 2**17, "prefill, nsa, coherent")
    return found["ms"] / 1e3 if found else None


def whole_faster(result: Result) -> float | None:
    """Tower and prefill against those of transformers, 128K tokens."""
    names = ("vision tower", "prefill, nsa, random")
    ours = [stage(result, 2**17, name) for name in names]
    theirs = [stage(result, 2**17, f"transformers: {name}") for name in ("vision tower", "prefill")]
    if None in (*ours, *theirs):
        return None
    return sum(x["ms"] for x in theirs if x) / sum(x["ms"] for x in ours if x)


def peak_gb(result: Result) -> float | None:
    """The largest stage at 128K tokens, from the tower to the next token."""
    prefill = "prefill, nsa, random"
    names = ("vision tower", prefill, f"next token after {prefill}")
    found = [stage(result, 2**17, name) for name in names]
    peaks = [x["peak_gb"] for x in found if x and x["peak_gb"] is not None]
    return max(peaks) if len(peaks) == len(names) else None


def attention_share(result: Result, *, regime: str, parts: tuple[str, ...]) -> float | None:
    """Percent of the time of prefill at 128K tokens."""
    found = stage(result, 2**17, f"prefill, nsa, {regime}")
    if not found or found["attention_ms"] is None:
        return None
    return 100 * sum(found[part] for part in parts) / found["times_ms"][-1]


def reading_faster(result: Result) -> float | None:
    """One worker over eight, on the file that was read."""
    video = result.get("video")
    return video["workers_speedup"]["median"] if video and video["workers"] == 8 else None


def ran_seconds(result: Result, *, tokens: int) -> float | None:
    """That a length runs at all."""
    found = stage(result, tokens, "prefill, nsa, random")
    return found["ms"] / 1e3 if found else None


def training_faster(result: Result, *, part: str, tokens: int) -> float | None:
    """Training steps: dense over sparse."""
    for ratio in result["ratios"]:
        if (ratio["part"], ratio["tokens"]) == (part, tokens):
            return float(ratio["dense_over_nsa"])
    return None


def training_number(
    result: Result, *, tokens: int, name: str, attention: str = "nsa", scale: float = 1
) -> float | None:
    """A number of forward and backward of decoder layers."""
    for run in result["runs"]:
        if (run["part"], run["tokens"], run["attention"]) == ("layers", tokens, attention):
            return None if run[name] is None else scale * run[name]
    return None


def decode_number(
    result: Result, *, tokens: int, name: str, batch: int = 1, what: str = "videonsa"
) -> float | None:
    """A number of decoding after a cache of so many tokens."""
    for run in result["runs"]:
        if (run["what"], run["tokens"], run["batch"]) == (what, tokens, batch):
            return None if run[name] is None else float(run[name])
    return None


def first_token_steps(result: Result, *, tokens: int) -> float | None:
    """The first token of a second question, in decode steps."""
    first = decode_number(result, tokens=tokens, name="first_ms")
    step = decode_number(result, tokens=tokens, name="ms")
    return first / step if first and step else None


def together_faster(result: Result, *, tokens: int, batch: int) -> float | None:
    """Tokens a second of several questions over one cache, over those of one question."""
    many = decode_number(result, tokens=tokens, name="tokens_per_s", batch=batch)
    one = decode_number(result, tokens=tokens, name="tokens_per_s")
    return many / one if many and one else None


def _pairs(
    file: str, rows: dict[str, tuple[float, float, float, float]], pass_name: str
) -> Iterator[Target]:
    """Ratios to dense attention, for both regimes."""
    for length, bounds in rows.items():
        for regime, want, aim in zip(("random", "coherent"), bounds[:2], bounds[2:], strict=True):
            yield Target(
                what=f"{length} {pass_name}, {regime}: faster than dense",
                file=file,
                find=partial(faster, shape=f"7b-{length}", regime=regime),
                want=want,
                aim=aim,
            )


def _at_16k(file: str, pass_name: str) -> Iterator[Target]:
    for regime, want, aim in (("random", 1.3, 1.0), ("coherent", 1.0, 1 / 1.5)):
        yield Target(
            what=f"16k {pass_name}, {regime}: time over dense",
            file=file,
            find=partial(slower, shape="7b-16k", regime=regime),
            want=want,
            aim=aim,
            at_least=False,
        )


def _against_fla(file: str, pass_name: str, lengths: tuple[str, ...]) -> Iterator[Target]:
    for length in lengths:
        for regime in ("random", "coherent"):
            yield Target(
                what=f"{length} {pass_name}, {regime}: faster than fla's NSA",
                file=file,
                find=partial(faster, shape=f"7b-{length}", regime=regime, competitor="fla-nsa"),
                want=FLA_FACTOR,
                aim=FLA_AIM,
            )


def _forward() -> Iterator[Target]:
    file = "attention.json"
    rows = {"128k": (5.0, 9, 7, 12), "64k": (2.3, 4, 3.5, 6), "256k": (6.0, 9, 8, 14)}
    yield from _pairs(file, rows, "forward")
    yield from _at_16k(file, "forward")
    for regime in ("random", "coherent"):
        find = partial(faster, shape="7b-128k", regime=regime, op="videonsa-block")
        yield Target(
            what=f"128k block scope, {regime}: faster than dense",
            file=file,
            find=find,
            want=10,
            aim=14,
        )
        for shape, length in (
            ("3b-128k", "128k"),
            ("frame60-32k", "32k"),
            ("frame60-128k", "128k"),
        ):
            yield Target(
                what=f"{shape}, {regime}: time a head over that of 7b-{length}",
                file=file,
                find=partial(against_7b, shape=shape, length=length, regime=regime),
                want=ALIKE,
                at_least=False,
            )
        yield _memory(file, "forward", regime, 4)
        yield Target(
            what=f"1m tokens forward, {regime}: all kernels",
            file="kernels.json",
            find=partial(kernel_seconds, shape="7b-1m", regime=regime),
            want=float("inf"),
            at_least=False,
            unit=" s",
        )
    yield from _against_fla(file, "forward", LENGTHS[1:])


def _memory(file: str, pass_name: str, regime: str, want: float) -> Target:
    return Target(
        what=f"128k {pass_name}, {regime}: extra memory",
        file=file,
        find=partial(extra_gb, shape="7b-128k", regime=regime),
        want=want,
        at_least=False,
        unit=" GB",
    )


def _backward() -> Iterator[Target]:
    file = "attention_backward.json"
    yield from _pairs(file, {"128k": (5.0, 7, 8, 10), "64k": (2.8, 4, 4, 6)}, "backward")
    yield from _against_fla(file, "backward", LENGTHS[1:4])
    yield from _at_16k("attention_both.json", "forward + backward")
    for regime in ("random", "coherent"):
        yield _memory("attention_both.json", "forward + backward", regime, 8)


def _prefill() -> Iterator[Target]:
    file, with_peers = "prefill.json", "prefill_peers.json"
    for regime, want, aim in (("random", 2.1, 2.4), ("coherent", 2.3, 2.5)):
        find = partial(prefill_faster, regime=regime)
        what = f"128k prefill, {regime}: faster than dense"
        yield Target(what=what, file=file, find=find, want=want, aim=aim)
    for weights, where, want, aim in (
        ("bf16", file, 3.95, 3.8),
        ("fp8", "prefill_fp8.json", 3.1, 2.8),
    ):
        yield Target(
            what=f"128k prefill, coherent, {weights}",
            file=where,
            find=prefill_seconds,
            want=want,
            aim=aim,
            at_least=False,
            unit=" s",
        )
    for (height, width), where in (((224, 224), file), ((168, 280), with_peers)):
        what = f"128k vision tower, {height}x{width}"
        find = partial(tower_seconds, frame=(height, width))
        yield Target(what=what, file=where, find=find, want=2, aim=1.35, at_least=False, unit=" s")
    what = "128k tower + prefill, random: faster than transformers"
    yield Target(what=what, file=with_peers, find=whole_faster, want=3.2, aim=4)
    what = "a 10-minute 720p file at 1 fps, 8 cores: faster than one"
    yield Target(what=what, file="prefill_reading.json", find=reading_faster, want=6, aim=7)
    what = "128k peak memory"
    yield Target(what=what, file=file, find=peak_gb, want=36, aim=30, at_least=False, unit=" GB")
    for regime in ("random", "coherent"):
        for beside, parts in (
            ("", ("attention_ms",)),
            (", gates and all", ("attention_ms", "gates_ms")),
        ):
            what = f"128k attention's share of prefill, {regime}{beside}"
            find = partial(attention_share, regime=regime, parts=parts)
            yield Target(
                what=what, file=file, find=find, want=30, aim=20, at_least=False, unit=" %"
            )
    for length, tokens in (("512k", 2**19), ("1m", 2**20)):
        yield Target(
            what=f"{length} prefill",
            file="prefill_long.json",
            find=partial(ran_seconds, tokens=tokens),
            want=float("inf"),
            at_least=False,
            unit=" s",
        )


def _training() -> Iterator[Target]:
    file, k = "train.json", 2**10
    for length, want, aim in (("36k", 1.1, 1.3), ("128k", 2.2, 2.5)):
        find = partial(training_faster, part="layers", tokens=int(length[:-1]) * k)
        what = f"{length} training, forward + backward of layers: faster than dense"
        yield Target(what=what, file=file, find=find, want=want, aim=aim)
    reported: list[tuple[str, str, Finder, str]] = [
        (
            "16k training, forward + backward of layers: faster than dense",
            file,
            partial(training_faster, part="layers", tokens=16 * k),
            "x",
        )
    ]
    for length in ("16k", "36k"):
        find = partial(training_faster, part="step", tokens=int(length[:-1]) * k)
        reported.append((f"{length} training, whole step: faster than dense", file, find, "x"))
    for attention in ("nsa", "dense"):
        find = partial(training_number, tokens=128 * k, name="mfu", attention=attention, scale=100)
        reported.append((f"128k training, {attention}: MFU", file, find, " %"))
    for processes, want in ((2, 80), (4, 70)):
        name = f"train_{processes}_fsdp.json"
        find = partial(training_number, tokens=128 * k, name="efficiency", scale=100)
        what = f"128k training on {processes} GPUs: efficiency"
        yield Target(what=what, file=name, find=find, want=want, unit=" %")
        find = partial(training_number, tokens=128 * k, name="peak_share", scale=100)
        what = f"128k training on {processes} GPUs: peak memory a GPU, of that of one"
        reported.append((what, name, find, " %"))
    for what, name, find, unit in reported:
        yield Target(what=what, file=name, find=find, want=float("inf"), at_least=False, unit=unit)


def _decode() -> Iterator[Target]:
    file = "decode_steps.json"
    for length, tokens, want, aim in (
        ("8k", 2**13, 6.0, 4.5),
        ("128k", 2**17, 8.5, 6.8),
        ("1m", 2**20, 24, 20),
    ):
        find = partial(decode_number, tokens=tokens, name="ms")
        what = f"{length} decode, one question: a token"
        yield Target(
            what=what, file=file, find=find, want=want, aim=aim, at_least=False, unit=" ms"
        )
    yield Target(
        what="128k decode: first token of a second question of 30 tokens",
        file=file,
        find=partial(first_token_steps, tokens=2**17),
        want=3,
        aim=2,
        at_least=False,
        unit=" steps",
    )
    yield Target(
        what="128k decode: 16 questions over one cache, tokens a second over one question's",
        file=file,
        find=partial(together_faster, tokens=2**17, batch=16),
        want=8,
        aim=12,
    )
    yield Target(
        what="1m decode: the host's part of a step",
        file=file,
        find=partial(decode_number, tokens=2**20, name="host_ms"),
        want=0.1,
        at_least=False,
        unit=" ms",
    )


def _block_sparse() -> Iterator[Target]:
    cases = [(f"blocks of 128, {density}", 1.5) for density in ("10%", "30%", "60%")]
    cases.append(("vertical-slash, as published", 2.5))
    for name, want in cases:
        yield Target(
            what=f"128k block-sparse, {name}: over its share of dense",
            file="block_sparse.json",
            find=partial(over_share, name=name),
            want=want,
            at_least=False,
        )


def rows(folder: Path) -> Iterator[tuple[list[str], bool]]:
    """A row a target, and whether it misses what is wanted."""
    parts = (_forward, _backward, _block_sparse, _prefill, _decode, _training)
    for target in (target for part in parts for target in part()):
        path = folder / target.file
        value = target.find(json.loads(path.read_text())) if path.exists() else None
        sign = ">=" if target.at_least else "<="
        runs = target.want == float("inf")
        want = "runs" if runs else f"{sign} {target.want:g}{target.unit}"
        aim = "" if target.aim is None else f"{target.aim:.3g}{target.unit}"
        if value is None:
            yield [target.what, want, aim, "not measured", ""], False
            continue
        missed = not target.meets(value, target.want)
        verdict = "MISSED" if missed else "aim" if target.meets(value, target.aim) else "ok"
        yield [target.what, want, aim, f"{value:.3g}{target.unit}", verdict], missed


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    found = list(rows(parser.parse_args().folder))
    print("| what | wanted | aim | measured | |\n| --- | --- | --- | --- | --- |")
    for cells, _ in found:
        print("| " + " | ".join(cells) + " |")
    sys.exit(any(missed for _, missed in found))


if __name__ == "__main__":
    main()
