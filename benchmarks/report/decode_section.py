"""Decoding and sessions in docs/results.md: from `videonsa bench decode` and `bench session`."""

from collections.abc import Mapping, Sequence
from typing import Any

from videonsa.evals.markdown import provenance, table

DECODE_FILES = {
    "decode_steps": "",
    "decode_steps_fp8": ", weights in fp8",
    "decode_steps_peers": ", beside transformers",
}
"""Names of the files of results, without suffix, and what distinguishes them."""
OURS = "videonsa"
_DECODE_HEAD = (
    *("", "questions", "ms a step: median (range)", "of the bound", "tokens/s in all"),
    *("first token, ms (steps)", "host, ms", "kernels", "busy + gaps, ms", "peak GB"),
)
_SESSION_HEAD = (
    *("", "ms: median (range)", "first run, ms", "first token, ms", "ms a token"),
    *("GB", "GB/s", "peak GB"),
)


def render_decode_steps(result: Mapping[str, Any], *, what: str = "") -> str:
    """All lengths of one run; `what` ends the heading."""
    parts = [
        f"## Decoding: {result['model']} on {result['machine']['device']}{what}\n\n"
        "A step decodes one token of each question. Bound: the bytes of weights, keys and values "
        f"that a step reads, at the {result['copy_tb_per_s']:.2f} TB/s at which this machine "
        "copied memory in the same run; memory that is only read can be a little faster. Several "
        "questions to videonsa share one cache; in transformers each has its own. First token: of "
        f"a second question of {result['question_tokens']} tokens, in ms and in decode steps. "
        "Host: its time for a step when nothing waits (of that for sampling). Kernels are those "
        "of one step; busy is when at least one runs, gaps when none does.\n"
    ]
    for tokens in sorted({run["tokens"] for run in result["runs"]}):
        runs = [run for run in result["runs"] if run["tokens"] == tokens]
        rows = [_decode_row(run) for run in runs]
        bound = next((run["bound_ms"] for run in runs if _is_first(run)), None)
        known = "" if bound is None else f" (bound of one question: {bound:.2f} ms)"
        parts.append(f"### {tokens:,} tokens in the cache{known}\n\n{table(_DECODE_HEAD, rows)}")
        parts += _remarks(runs)
    parts.append(f"How: {result['method']}.\n\n{provenance(result['machine'])}\n")
    return "\n".join(parts)


def _is_first(run: Mapping[str, Any]) -> bool:
    return bool(run["what"] == OURS and run["batch"] == 1)


def _decode_row(run: Mapping[str, Any]) -> list[str]:
    if run["error"] is not None:
        return [run["what"], str(run["batch"]), "no number", *[""] * 7]
    times = run["times_ms"]
    first = run["first_ms"]
    return [
        run["what"],
        str(run["batch"]),
        f"{run['ms']:.2f} ({min(times):.2f}-{max(times):.2f})",
        f"{100 * run['bound_ms'] / run['ms']:.0f} %",
        f"{run['tokens_per_s']:,.0f}",
        "" if first is None else f"{first:.1f} ({first / run['ms']:.1f})",
        _host(run),
        _number(run["kernels"], 0),
        _busy(run),
        _number(run["peak_gb"], 1),
    ]


def _host(run: Mapping[str, Any]) -> str:
    sampling = run.get("sampling_ms")  # results from before it was told apart lack it
    return _number(run["host_ms"], 3) + ("" if sampling is None else f" ({sampling:.3f})")


def _busy(run: Mapping[str, Any]) -> str:
    if run["busy_ms"] is None:
        return ""
    return f"{run['busy_ms']:.2f} + {run['span_ms'] - run['busy_ms']:.2f}"


def _remarks(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why runs have no number, or were not decoded by captured steps, a line each."""
    lines = []
    for run in runs:
        why = run["error"]
        if why is None and run["what"] == OURS and run["how"] != "captured steps":
            why = run["how"]
        if why is not None:
            lines.append(f"- {run['what']}, questions: {run['batch']}: {why}\n")
    return ["".join(lines)] if lines else []


def render_session(result: Mapping[str, Any]) -> str:
    """All videos of one run."""
    parts = [
        f"## A session: {result['model']} on {result['machine']['device']}\n\n"
        f"Random weights of the published shape, {result['weights_gb']:.1f} GB. Answers have at "
        f"most {result['new_tokens']} tokens.\n"
    ]
    for video in result["videos"]:
        tokens = "" if video["tokens"] is None else f": {video['tokens']:,} tokens with its text"
        rows = [_session_row(stage) for stage in video["stages"]]
        parts.append(f"### {video['video']}{tokens}\n\n{table(_SESSION_HEAD, rows)}")
        ways = dict.fromkeys(stage["decoding"] for stage in video["stages"] if stage["decoding"])
        parts.append(f"Answers were decoded by {'; '.join(ways) or 'nothing'}.\n")
    parts.append(f"How: {result['method']}.\n\n{provenance(result['machine'])}\n")
    return "\n".join(parts)


def _session_row(stage: Mapping[str, Any]) -> list[str]:
    if stage["error"] is not None:
        return [stage["name"], stage["error"], *[""] * 6]
    times = stage["times_ms"]
    spread = f" ({min(times):.1f}-{max(times):.1f})" if len(times) > 1 else ""
    return [
        stage["name"],
        f"{stage['ms']:.1f}{spread}",
        _number(stage["first_ms"], 0),
        _number(stage["first_token_ms"], 1),
        _number(stage["ms_a_token"], 2),
        _number(stage["gb"], 2),
        _number(stage["gb_per_s"], 2),
        _number(stage["peak_gb"], 1),
    ]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
