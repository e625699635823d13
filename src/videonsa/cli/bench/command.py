"""`videonsa bench`: its subcommands; `attention` is here."""

from argparse import Namespace
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videonsa.cli import values
from videonsa.cli.bench import decode as bench_decode
from videonsa.cli.bench import prefill as bench_prefill
from videonsa.cli.bench import session as bench_session
from videonsa.cli.bench import train as bench_train
from videonsa.cli.bench.models import (
    RESULTS,
    add_repeats_option,
    result_path,
    save_result,
)
from videonsa.cli.common import (
    Commands,
    LineParser,
    add_command,
    emit,
    emit_json,
    prepare_folder,
    quiet_libraries,
    report,
)
from videonsa.errors import UsageError
from videonsa.parsing import read_json_object

if TYPE_CHECKING:
    from videonsa.bench.attention import Request
    from videonsa.bench.passes import Pass

NAME = "attention"
_SUMMARY = "Measure attention ops, whole models, sessions or training steps on this machine."
_STATED = {"machine", "shapes"}
"""What a result has, beside its format and pass."""


def add_parser(commands: Commands) -> None:
    """Register the command and what it can measure."""
    parser = commands.add_parser(
        "bench",
        help=_SUMMARY,
        description=_SUMMARY,
    )
    what: Commands = parser.add_subparsers(title="what to measure", metavar="WHAT", required=True)
    attention = add_command(
        what,
        "attention",
        run=run,
        summary="Measure time and memory of sparse and dense attention side by side. Correctness "
        "is verified first; if that fails, nothing is measured and the exit status is 2.",
        examples=(
            "videonsa bench attention --list",
            "videonsa bench attention --shapes 7b-64k,7b-128k --out attention.json",
            "videonsa bench attention --ops videonsa,sdpa-cudnn --regimes coherent --repeats 50",
            "videonsa bench attention --shapes 7b-64k --passes forward,backward,both",
            "videonsa bench attention --device cpu --shapes tiny-256",
        ),
    )
    _add_options(attention)
    bench_prefill.add_parser(what)
    bench_decode.add_parser(what)
    bench_session.add_parser(what)
    bench_train.add_parser(what)


def _add_options(parser: LineParser) -> None:
    parser.add_argument("--shapes", type=_names, metavar="A,B", help="which shapes; see --list")
    parser.add_argument("--ops", type=_names, metavar="A,B", help="which ops (default: all)")
    parser.add_argument(
        "--passes",
        type=_names,
        default=["forward"],
        metavar="A,B",
        help="forward; backward: alone; both: timed together (default: forward)",
    )
    parser.add_argument(
        "--regimes",
        type=_names,
        metavar="A,B",
        help="random: neighbouring tokens have nothing in common; coherent: they select mostly the "
        "same blocks; measured: as much as those of a trained model (default: random,coherent)",
    )
    add_repeats_option(
        parser, default=20, of="runs of each op; slow ops stop after 10 s, but not before 3"
    )
    parser.add_argument(
        "--out",
        type=values.path,
        metavar="FILE",
        help=f"the JSON of the forward pass (default: {RESULTS}/GPU/{NAME}.json where that folder "
        f"exists, else {NAME}.json); the other passes go beside it, into FILE_backward.json and "
        "FILE_both.json; other shapes of the same machine and code in a file are kept",
    )
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="a CPU takes tiny shapes only"
    )
    parser.add_argument(
        "--verify-again",
        action="store_true",
        help="run the kernels' tests even if the files of this or another pass say that they "
        "passed with the same code and machine",
    )
    parser.add_argument(
        "--list", action="store_true", help="list the shapes and ops, and measure nothing"
    )


def _names(text: str) -> list[str]:
    return text.split(",")


def run(args: Namespace) -> int:
    """Run the command."""
    with quiet_libraries(debug=args.debug):
        if args.list:
            _emit_list(as_json=args.json)
            return 0
        from videonsa.bench.attention import bench_attention

        request = _request(args)
        paths = _paths(result_path(args, NAME))
        before = {x: y for x, path in paths.items() if (y := _earlier(path, x, request))}
        prepare_folder(paths["forward"].parent)
        results: dict[Pass, dict[str, Any]] = {}
        for result in bench_attention(request, progress=report, before=before):
            results[result["pass"]] = result
            save_result(paths[result["pass"]], result)
    for which, result in results.items():
        report(f"written to {paths[which]}")
        if args.json:
            emit_json(result)
    if not args.json:
        wanted = {shape.name for shape in request.shapes}
        emit("\n".join(_text(result, wanted) for result in results.values()))
    return 0


def _request(args: Namespace) -> "Request":
    """The options as a request. `UsageError` where they name what is not there."""
    import torch

    from videonsa.bench.attention import Request
    from videonsa.bench.attention_inputs import MEASURED, REGIMES
    from videonsa.bench.attention_shapes import DEFAULT_SHAPES, DEFAULT_TINY_SHAPES, SHAPES, TINY
    from videonsa.bench.op_registry import OPS, pick
    from videonsa.bench.passes import PASSES

    on_cpu = args.device == "cpu"
    shapes = pick(
        args.shapes or (DEFAULT_TINY_SHAPES if on_cpu else DEFAULT_SHAPES), SHAPES, "shapes"
    )
    ops = pick(args.ops or OPS, OPS, "ops")
    regimes = pick(
        args.regimes or REGIMES, {name: name for name in (*REGIMES, MEASURED)}, "regimes"
    )
    passes = pick(args.passes, {name: name for name in PASSES}, "passes")
    large = [shape.name for shape in shapes if not shape.name.startswith(TINY)]
    if on_cpu and large:
        raise UsageError(
            f"--shapes {','.join(large)} with --device cpu: want shapes named {TINY}*, the others "
            "need a GPU"
        )
    if not on_cpu and not torch.cuda.is_available():
        raise UsageError(
            "no CUDA GPU here: run this where there is one, or try --device cpu with shapes named "
            f"{TINY}*"
        )
    return Request(
        shapes=shapes,
        ops=ops,
        passes=passes,
        regimes=regimes,
        repeats=args.repeats,
        tests_again=args.verify_again,
        device=torch.device(args.device),
    )


def _paths(path: Path) -> dict["Pass", Path]:
    """A file for each pass: `path` for forward, with `_PASS` behind its stem for others."""
    from videonsa.bench.passes import PASSES

    return {
        which: path if which == "forward" else path.with_name(f"{path.stem}_{which}{path.suffix}")
        for which in PASSES
    }


def _earlier(path: Path, which: "Pass", request: "Request") -> dict[str, Any] | None:
    """The result of a pass that stands in its file, if there is one.

    `UsageError` if something else stands where a pass of the request will be written.
    """
    from videonsa.bench.attention import FORMAT

    if not path.exists():
        return None
    with suppress(UsageError):
        result = read_json_object(path)
        stated = (result.get("format"), result.get("pass"))
        if stated == (FORMAT, which) and result.keys() >= _STATED:
            return result
    if which not in request.passes:
        return None
    raise UsageError(
        f"--out {path}: it holds something else than a {which} result of this command: name "
        "another file"
    )


def _emit_list(*, as_json: bool) -> None:
    from videonsa.bench.attention_shapes import SHAPES
    from videonsa.bench.op_registry import OPS

    texts = {
        "shapes": {shape.name: shape.text for shape in SHAPES.values()},
        "ops": {op.name: op.what for op in OPS.values()},
    }
    if as_json:
        emit_json(texts)
        return
    for title, entries in texts.items():
        emit(f"{title}\n")
        for name, text in entries.items():
            emit(f"  {name:<14} {text}\n")


def _text(result: dict[str, Any], wanted: Container[str]) -> str:
    """A short table for each of these shapes."""
    parts = []
    for entry in result["shapes"]:
        name = entry["shape"]["name"]
        if name not in wanted:
            continue
        head = (
            f"{name} {result['pass']}",
            "regime",
            "ms",
            "min-max",
            "/ dense",
            "extra GB",
            "union",
        )
        rows = [head, *(_row(run) for run in entry["runs"])]
        parts.append("".join(_aligned(row) for row in rows))
    return "\n".join(parts)


def _row(run: dict[str, Any]) -> tuple[str, ...]:
    if run["error"] is not None:
        return run["op"], run["regime"], f"{run['status']}: {run['error']}"
    return (
        run["op"],
        run["regime"],
        f"{run['ms']:.3f}",
        f"{run['ms_min']:.3f}-{run['ms_max']:.3f}",
        _number(run["ratio"], 3),
        _number(run["extra_gb"], 2),
        _number(run["mean_union"], 1),
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _aligned(row: tuple[str, ...]) -> str:
    widths = (22, 10, 10, 18, 9, 9, 7)
    return " ".join(f"{x:<{width}}" for x, width in zip(row, widths, strict=False)).rstrip() + "\n"
