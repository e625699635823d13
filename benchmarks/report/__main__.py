"""Writes docs/results.md from committed JSON: `python -m benchmarks.report DIR --out FILE`.

DIR holds one folder for each machine; the name of a file says what it measured (`embedded.json`,
...). Plots are written beside FILE.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.report.attention_section import FILES, attention_figure, render_attention
from benchmarks.report.baselines_section import BASELINES, draw_baselines, render_baselines
from benchmarks.report.baselines_section import FIGURE as BASELINES_FIGURE
from benchmarks.report.decode_section import DECODE_FILES, render_decode_steps, render_session
from benchmarks.report.prefill_section import FILES as PREFILL_FILES
from benchmarks.report.prefill_section import render_prefill
from benchmarks.report.serving_section import render_pages, render_serve_speed
from benchmarks.report.session_section import render_session_memory
from benchmarks.report.sparse_prefill_section import render_block_sparse, render_estimators
from benchmarks.report.speed_section import render_speed
from benchmarks.report.study_section import FIGURE as STUDY_FIGURE
from benchmarks.report.study_section import STUDY, draw_study, render_study
from benchmarks.report.weights_section import render_products, render_weights
from videonsa.disk import write_atomic
from videonsa.errors import UsageError, VideoNSAError
from videonsa.evals.markdown import provenance, table
from videonsa.evals.scoring import Accuracy
from videonsa.ops.spec import BRANCHES
from videonsa.parsing import one_line, read_json_object

Made = TypeVar("Made")

HEADER = """# Results

All numbers of this project, in this order: accuracy of the embedded model on its own clips; of the
study's models on the suite of long rendered videos, and under every other method; speed of training
them; time of a whole model
to its first token; time of a decoded token, of what a session does, and its memory; what a server
and vLLM's pages add to the engine; errors of quantised weights; time of products in fp8; time to
read a video; memory of the reference attention; time of block-sparse attention and its estimators;
time and memory of attention alone.

Written by `make results` from the JSON under `benchmarks/results/`; do not edit by hand. Each
section ends with the machine and versions that it holds for.

- n is the number of selected blocks, s the tokens of a block, w those of the window
  ([semantics.md](semantics.md)).
- An ablated branch adds nothing to the output, as if its gate were 0. With all branches ablated,
  vision tokens attend to nothing. Text tokens attend densely in every condition.
- Brackets behind a share of right answers are its 95 % interval: Wilson's, unless a section says
  otherwise.
"""

_NOT_OF_THE_SUITE = (
    "This model was trained on clips of other scenes than those of the suites of long rendered "
    "videos, of up to 24 seconds. Models that were trained on the suite are in "
    "[the study](study.md).\n\n"
)
ABLATIONS = {
    **{f"without the {branch} branch": f"{branch} branch ablated" for branch in BRANCHES},
    "without all attention of vision rows": "all branches ablated",
}
"""What the report calls the conditions in `embedded.json`."""


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _cell(score: dict[str, int]) -> str:
    accuracy = Accuracy(score["right"], score["total"])
    low, high = accuracy.interval
    return f"{_percent(accuracy.share)} ({_percent(low)}-{_percent(high)})"


def render_embedded(result: dict[str, Any]) -> str:
    """Accuracy of the embedded model by kind of question, whole and ablated."""
    kinds = result["kinds"]
    rows = [
        [ABLATIONS.get(condition, condition), *(_cell(scores[kind]) for kind in [*kinds, "all"])]
        for condition, scores in result["conditions"].items()
    ]
    rows.append(["best constant answer", *(_cell(result["constant"][k]) for k in [*kinds, "all"])])
    return (
        "## The embedded model\n\n"
        f"{result['clips_per_kind']} clips for each kind of question, of seeds that were never "
        f"trained on; {result['frames']} frames, {result['video_tokens']} video tokens a clip; "
        f"n = {result['num_selected_blocks']}, s = {result['block_size']}, "
        f"w = {result['window_size']}. A vision token attends to {result['attention_keys']} keys "
        "and the compressed ones, "
        f"{result['video_tokens'] / result['attention_keys']:.1f} times fewer than the clip has. "
        "Right answers in percent.\n\n"
        + table(["condition", *kinds, "all"], rows)
        + "\n"
        + _NOT_OF_THE_SUITE
        + f"{provenance(result['machine'])}\n"
    )


def render_decode(result: dict[str, Any]) -> str:
    """Time to read a video, against a bare decoding loop."""
    names = {"ours": "`read_video`", "bare": "bare PyAV loop, decode and downscale"}
    rows = []
    for key, name in names.items():
        run = result[key]
        spread = f"({run['seconds_min']:.1f}-{run['seconds_max']:.1f})"
        seconds = f"{run['seconds_median']:.1f} {spread}"
        rows.append([name, seconds, f"{run['cpu_seconds_median']:.1f}", _mb(run)])
    ratio = result["time_ratio"]
    return (
        f"## Reading a video\n\n{result['what']}; {result['ours']['frames']} frames taken; "
        f"{len(result['ours']['seconds'])} runs of each, in turn.\n\n"
        + table(["", "seconds: median (range)", "CPU seconds", "peak resident, MB"], rows)
        + "\nTime of `read_video` over that of the bare loop, each pair of runs compared: median "
        f"{ratio['median']:.3f} ({ratio['min']:.3f}-{ratio['max']:.3f}); the target is at most "
        f"{result['limits']['time_ratio']}.\n\n{provenance(result['machine'])}\n"
    )


def _mb(run: dict[str, Any]) -> str:
    return f"{run['resident_mb_max']:.0f}"


def render_reference_memory(result: dict[str, Any]) -> str:
    """Memory of the reference attention."""
    rows = [
        ["forward", f"{result['forward_extra_gb']:.2f}", f"{result['forward_seconds']:.0f}"],
        [
            "forward and backward",
            f"{result['forward_backward_extra_gb']:.2f}",
            f"{result['forward_backward_seconds']:.0f}",
        ],
    ]
    shape = (
        f"{result['tokens']} tokens, {result['query_heads']} query heads, {result['kv_heads']} KV "
        f"heads of {result['head_dim']}, {result['dtype']}"
    )
    machine = {name: result[name] for name in ("device", "threads", "python", "torch")}
    return (
        f"## Memory of the reference attention\n\n{shape}. The target is at most "
        f"{result['limit_gb']:.0f} GB beyond the inputs.\n\n"
        + table(["", "GB beyond the inputs", "seconds"], rows)
        + f"\n{provenance(machine)}\n"
    )


SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "embedded": render_embedded,
    STUDY: render_study,
    BASELINES: render_baselines,
    "study_speed": render_speed,
    **{stem: partial(render_prefill, what=what) for stem, what in PREFILL_FILES.items()},
    **{stem: partial(render_decode_steps, what=what) for stem, what in DECODE_FILES.items()},
    "session": render_session,
    "session_memory": render_session_memory,
    "serve_speed": render_serve_speed,
    "vllm_pieces": render_pages,
    "weights_error": render_weights,
    "fp8_products": render_products,
    "decode": render_decode,
    "reference_memory": render_reference_memory,
    "block_sparse": render_block_sparse,
    "estimators": render_estimators,
}


def render(folder: Path) -> str:
    """The whole of docs/results.md, from the JSON files one folder down.

    Raises:
        UsageError: a file is no result, is of another version, or was measured with uncommitted
            changes.
    """
    parts = [HEADER]
    for name, section in SECTIONS.items():
        paths = sorted(folder.glob(f"*/{name}.json"))
        parts += [_made(path, section) for path in paths]
    for name, path in _attention_results(folder).items():
        figure = name if _made(path, attention_figure) is not None else None
        parts.append(_made(path, partial(render_attention, figure=figure)))
    return "\n".join(parts)


def _made(path: Path, make: Callable[[dict[str, Any]], Made]) -> Made:
    """What `make` returns for the result in a file.

    Raises:
        UsageError: as for `render`.
    """
    result = read_json_object(path, remedy="measure it again")
    try:
        if result.get("machine", {}).get("dirty"):
            raise _unclean(path)
        return make(result)
    except UsageError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UsageError(
            f"{path} is no result of this version ({type(error).__name__}: {one_line(error)}): "
            "measure it again"
        ) from error


def _unclean(path: Path) -> UsageError:
    return UsageError(
        f"{path} was measured with uncommitted changes (machine.dirty), which nobody can run "
        "again: commit, then measure it again"
    )


def figures(folder: Path) -> dict[str, str]:
    """The plots of the attention benchmarks: file name and SVG text."""
    found = _attention_results(folder)
    drawn = {name: _made(path, attention_figure) for name, path in found.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def pictures(folder: Path) -> dict[str, bytes]:
    """The plots of the study and of the baselines: file name and PNG.

    Raises:
        UsageError: matplotlib is not installed.
    """
    drawn = {}
    for stem, name, draw in (
        (STUDY, STUDY_FIGURE, draw_study),
        (BASELINES, BASELINES_FIGURE, draw_baselines),
    ):
        for path in sorted(folder.glob(f"*/{stem}.json"))[:1]:
            drawn[name] = _made(path, draw)
    return drawn


def _attention_results(folder: Path) -> dict[str, Path]:
    """Attention benchmarks by the name of their plot; only the first machine has the plain name."""
    found = {}
    for stem in FILES:
        for index, path in enumerate(sorted(folder.glob(f"*/{stem}.json"))):
            name = f"{stem}-{path.parent.name}" if index else stem
            found[f"{name}.svg"] = path
    return found


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    try:
        drawn = {name: figure.encode() for name, figure in figures(args.folder).items()}
        for name, content in (drawn | pictures(args.folder)).items():
            write_atomic(args.out.with_name(name), content)
        write_atomic(args.out, render(args.folder))
    except VideoNSAError as error:
        sys.stderr.write(f"report: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
