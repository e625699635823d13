"""What serving costs beside the engine: `vllm_pieces.py`, `serve_speed.py`."""

from collections.abc import Iterator, Mapping
from typing import Any

from videonsa.evals.markdown import provenance, table


def render_pages(result: Mapping[str, Any]) -> str:
    """One layer over keys and values gathered from vLLM's pages, beside one stretch of memory."""
    shapes = result["shapes"]
    names = list(next(_parts(shapes[0]))[2]["runs"])
    head = ["tokens and heads", "inputs", "rows", *(f"{name}, ms" for name in names), "ratio"]
    rows = [
        [
            one["shape"],
            regime,
            f"{part} ({found['rows']:,})",
            *(_time(found["runs"][name]) for name in names),
            "" if found["ratio"] is None else f"{found['ratio']:.3f}",
        ]
        for one in shapes
        for regime, part, found in _parts(one)
    ]
    guesses = [
        f"- {guess['regime']}, {guess['steps']:g} steps: {guess['vllm_ms']:,.0f} ms, "
        f"the engine {guess['engine_ms']:,.0f} ms ({guess['is']}; without {guess['without']})"
        for one in shapes
        for guess in one["prediction"]
    ]
    return (
        "## VideoNSA over vLLM's pages\n\n"
        f"One layer's attention of vision tokens; pages of {result['page']} tokens lie at random. "
        "Ratio: gathering and attention over attention alone, where keys and values lie in one "
        "stretch. Wanted: at most 1.15.\n\n"
        + table(head, rows)
        + (
            "\nTime to the first token in vLLM, by the steps in which it reads a prompt:\n\n"
            + "\n".join(guesses)
            + "\n"
            if guesses
            else ""
        )
        + f"\nHow: {result['method']}.\n\n{provenance(result['machine'])}\n"
    )


def _parts(shape: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for regime, parts in shape["regimes"].items():
        for part, found in parts.items():
            yield regime, part, found


def _time(run: Mapping[str, Any]) -> str:
    if run["ms"] is None:
        return f"{run['status']}: {run['error']}"
    return f"{run['ms']:.2f} ({run['ms_min']:.2f}-{run['ms_max']:.2f})"


_SPEEDS = (
    ("first_question_first_text_seconds", "a first question to its first text, s"),
    ("second_question_first_text_seconds", "a second question to its first text, s"),
    ("together_tokens_per_second", "all clients at once, tokens/s"),
)


def render_serve_speed(result: Mapping[str, Any]) -> str:
    """The server beside its engine."""
    rows = []
    for key, name in _SPEEDS:
        found = result[key]
        sides = (
            ", ".join(f"{value:.3g}" for value in found[side]) for side in ("engine", "server")
        )
        rows.append([name, *sides, f"{found['server_to_engine']:.3f}"])
    return (
        "## The server beside its engine\n\n"
        f"Random weights of the {result['model']} shape, {result['video_tokens']:,} tokens of a "
        f"video file of {result['minutes']} minutes; {result['clients']} clients ask "
        f"{result['new_tokens']} tokens each, twice. A first question reads the file, a second one "
        "does not. Engine and server in turn, each run in a column; the ratio is of medians.\n\n"
        + table(["", "engine", "server", "server to engine"], rows)
        + f"\n{provenance(result['machine'])}\n"
    )
