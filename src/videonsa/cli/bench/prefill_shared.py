"""`videonsa bench prefill` under torchrun: the processes share every sequence."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videonsa.cli.bench.models import read_one, save_result, show_result
from videonsa.cli.common import prepare_folder, report
from videonsa.env import num_processes
from videonsa.errors import UsageError

if TYPE_CHECKING:
    from videonsa.bench.prefill import PrefillRequest


def check_options(args: Namespace) -> None:
    """Refuse what several processes do not measure.

    Raises:
        UsageError: naming the option.
    """
    given = {
        f"--video {args.video}": args.video not in (None, "none"),
        "--peers": args.peers,
        "--method": bool(args.method),
        f"--weights {args.weights}": args.weights != "full",
        f"--rows-per-chunk {args.rows_per_chunk}": args.rows_per_chunk is not None,
        f"--frame {args.frame}": "," in args.frame,
    }
    found = [option for option, is_given in given.items() if is_given]
    if found:
        raise UsageError(
            f"{' and '.join(found)} with {num_processes()} processes: they share the prefill of "
            "given lengths, of one frame size; measure the others with one process"
        )


def run_shared(request: "PrefillRequest", args: Namespace, path: Path) -> int:
    """Measure what `request` asks for, in all processes; the first writes and prints."""
    from videonsa.bench.prefill_shared import bench_shared_prefill

    one = read_one(args.one, key="lengths")
    prepare_folder(path.parent)
    result: dict[str, Any] | None = None
    for result in bench_shared_prefill(request, one=one, progress=report):
        save_result(path, result)
    if result is None:  # not the first process
        return 0
    show_result(args, path, result, _text)
    return 0


def _text(result: dict[str, Any]) -> str:
    from videonsa.bench.prefill_shared import stage_line

    lines = []
    for length in result["lengths"]:
        lines.append(
            f"{result['model']}, {length['tokens']:,} video tokens, {result['processes']} "
            f"processes, {result['machine']['device']}\n"
        )
        lines += [f"  {stage_line(stage)}\n" for stage in length["stages"]]
    return "".join(lines)
