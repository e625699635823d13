"""README's table of speeds, written from the committed JSON: `python benchmarks/headline.py`.

Each ratio is of two numbers of one file, hence of one run. `--check` changes nothing; the exit
status is 1 where README says something else.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from videonsa.disk import write_atomic

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/nvidia-h200"
BEGIN, END = "<!-- written by benchmarks/headline.py -->\n", "<!-- end -->\n"
TOKENS = 131_072
OURS, DYNAMIC = "videonsa", "transformers, dynamic cache"


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return content


def _attention(name: str) -> list[str]:
    """Coherent and random times of a layer's attention, dense attention, and the ratios."""
    (shape,) = (x for x in _read(name)["shapes"] if x["shape"]["name"] == "7b-128k")
    times = {(run["op"], run["regime"]): run["ms"] for run in shape["runs"]}
    ours = [times["videonsa", regime] for regime in ("coherent", "random")]
    dense = times["sdpa-cudnn", "any"]
    return [
        " / ".join(f"{ms:.0f}" for ms in ours) + " ms",
        f"{dense:.0f} ms (cuDNN)",
        " / ".join(f"{dense / ms:.1f}" for ms in ours) + " times as fast",
    ]


def _stages(name: str) -> dict[str, dict[str, Any]]:
    length = next(x for x in _read(name)["lengths"] if x["tokens"] == TOKENS)
    return {stage["name"]: stage for stage in length["stages"]}


def _prefill() -> Iterator[list[str]]:
    """Compared with dense attention, and with transformers, each in one run."""
    regimes = ("coherent", "random")
    seconds = {name: stage["ms"] / 1000 for name, stage in _stages("prefill").items()}
    ours, dense = [seconds[f"prefill, nsa, {x}"] for x in regimes], seconds["prefill, dense"]
    yield [
        "prefill of the model",
        " / ".join(f"{s:.1f}" for s in ours) + " s",
        f"{dense:.1f} s",
        " / ".join(f"{dense / s:.1f}" for s in ours) + " times",
    ]
    stages = _stages("prefill_peers")
    seconds = {name: stage["ms"] / 1000 for name, stage in stages.items()}
    tower, their_tower = seconds["vision tower"], seconds["transformers: vision tower"]
    both = [tower + seconds[f"prefill, nsa, {x}"] for x in regimes]
    theirs = their_tower + seconds["transformers: prefill"]
    yield [
        "vision tower and prefill, compared with transformers",
        " / ".join(f"{s:.1f}" for s in both) + " s",
        f"{theirs:.1f} s in transformers",
        " / ".join(f"{theirs / s:.1f}" for s in both)
        + f" times; the tower alone {their_tower / tower:.1f}",
    ]
    peak = max(stage["peak_gb"] for name, stage in stages.items() if "nsa" in name)
    yield [
        "peak memory to the first token",
        f"{peak:.1f} GB",
        f"{stages['transformers: prefill']['peak_gb']:.1f} GB in transformers",
        f"weights are {_read('prefill')['weights_gb']:.1f} GB; {_million()}",
    ]


def _million() -> str:
    long = _read("prefill_long")
    stages = next(x for x in long["lengths"] if x["tokens"] == 2**20)["stages"]
    timed = [stage for stage in stages if not stage["name"].startswith("next token")]
    seconds = sum(stage["ms"] for stage in timed) / 1000
    peak = max(stage["peak_gb"] for stage in stages)
    # Eight processes decoded a video on the same CPUs.
    most = f"{peak:.0f} GB and at most {seconds:.0f} s"
    return f"1M tokens take {most} (with other work on the machine)"


def _decoding() -> Iterator[list[str]]:
    """Tokens after a cache, compared with what memory allows and with transformers."""
    runs, theirs = _runs("decode_steps"), _runs("decode_steps_peers")
    if not runs:
        return
    lengths = {"8K": 2**13, "128K": TOKENS, "1M": 2**20}
    ours = [runs[OURS, tokens, 1] for tokens in lengths.values()]
    plain = [runs.get((f"{OURS}, plain forward", tokens, 1)) for tokens in lengths.values()]
    bounds = " / ".join(f"{100 * run['bound_ms'] / run['ms']:.0f}" for run in ours)
    yield [
        f"a decoded token, {' / '.join(lengths)} tokens in the cache",
        _milliseconds(ours),
        _theirs([theirs.get((DYNAMIC, tokens, 1)) for tokens in lengths.values()])
        or f"{_milliseconds(plain)} by the plain forward",
        f"{bounds} % of the speed at which memory is copied",
    ]
    one, many = runs[OURS, TOKENS, 1], runs[OURS, TOKENS, 16]
    yield [
        "first token of a second question, 128K tokens in the cache",
        f"{one['first_ms']:.0f} ms",
        "",
        f"{one['first_ms'] / one['ms']:.1f} decode steps",
    ]
    yield [
        "a token of 16 questions over one cache of 128K",
        _milliseconds([many]),
        _theirs([theirs.get((DYNAMIC, TOKENS, 16))], what="with 16 caches"),
        f"{many['tokens_per_s'] / one['tokens_per_s']:.1f} times as many tokens a second as one",
    ]


def _runs(name: str) -> dict[tuple[str, int, int], Mapping[str, Any]]:
    """Of a file, by what decoded, tokens and questions; none where there is no file."""
    runs = _read(name)["runs"] if (RESULTS / f"{name}.json").exists() else []
    return {(run["what"], run["tokens"], run["batch"]): run for run in runs}


def _milliseconds(runs: Sequence[Mapping[str, Any] | None]) -> str:
    """Of each run; a dash where it has no number."""
    times = [None if run is None else run["ms"] for run in runs]
    return " / ".join("-" if ms is None else f"{ms:.1f}" for ms in times) + " ms"


def _theirs(runs: Sequence[Mapping[str, Any] | None], *, what: str = "dynamic cache") -> str:
    """Of transformers; nothing where it was not measured."""
    measured = [run for run in runs if run is not None]
    if not measured:
        return ""
    if all(run["ms"] is None for run in measured):
        return f"does not run in transformers, {what}"
    return f"{_milliseconds(runs)} in transformers, {what}"


def _training() -> Iterator[list[str]]:
    times = {
        (run["part"], run["tokens"], run["attention"]): run["ms"] / 1000
        for run in _read("train")["runs"]
        if run["error"] is None
    }

    def ratio(part: str, tokens: int) -> float:
        return times[part, tokens, "dense"] / times[part, tokens, "nsa"]

    short, middle = 16_384, 36_864
    nsa, dense = (times["layers", TOKENS, attention] for attention in ("nsa", "dense"))
    yield [
        "training, forward and backward of 13 layers",
        f"{nsa:.1f} s",
        f"{dense:.1f} s",
        f"{ratio('layers', TOKENS):.1f} times; {ratio('layers', middle):.2f} at 36K tokens, "
        f"{ratio('layers', short):.2f} at 16K",
    ]
    yield [
        "training, a whole step of 36K tokens",
        *(f"{times['step', middle, attention]:.1f} s" for attention in ("nsa", "dense")),
        f"{ratio('step', middle):.2f} times; {ratio('step', short):.2f} at 16K",
    ]
    shared = {run["attention"]: run for run in _read("train_4_fsdp")["runs"]}
    yield [
        "the 13 layers, one sequence over 4 GPUs (FSDP2)",
        *(f"{shared[attention]['ms'] / 1000:.1f} s" for attention in ("nsa", "dense")),
        f"{100 * shared['nsa']['efficiency']:.0f} % of four times one GPU",
    ]


def table() -> str:
    """The table in Markdown."""
    rows = [
        ["", "videonsa", "dense", ""],
        ["---"] * 4,
        ["attention of a layer, forward", *_attention("attention")],
        ["its backward pass", *_attention("attention_backward")],
        *_prefill(),
        *_decoding(),
        *_training(),
    ]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args().check
    page = (ROOT / "README.md").read_text("utf-8")
    before, rest = page.split(BEGIN)
    now = before + BEGIN + table() + END + rest.split(END, 1)[1]
    if not check:
        write_atomic(ROOT / "README.md", now)
    elif now != page:
        sys.exit("README.md has other speeds than the JSON: run 'make results'")


if __name__ == "__main__":
    main()
