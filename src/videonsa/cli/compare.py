"""`videonsa compare`: every attention method on one clip and one question."""

import json
import re
from argparse import Namespace
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videonsa.cli import values
from videonsa.cli.answering import add_answering_options, load_model, system_option
from videonsa.cli.bench.models import add_repeats_option
from videonsa.cli.common import (
    Commands,
    add_command,
    add_sampling_options,
    emit,
    emit_json,
    prepare_folder,
    quiet_libraries,
    report,
    sampling_options,
    video_argument,
    write_output,
)
from videonsa.cli.compiling import compile_line
from videonsa.errors import UsageError

if TYPE_CHECKING:
    from videonsa.bench.comparison import Candidate, ComparisonRequest
    from videonsa.inference.engine import VideoQA

_HEAD = (
    "method",
    "video tokens",
    "attention",
    "encoding",
    "prefill",
    "first run",
    "peak",
    "answer",
)


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "compare",
        run=run,
        summary="Ask one question about one clip by every attention method: answers, tokens kept, "
        "attention computed, time of the prefill and memory, side by side. The frames are read "
        "once.",
        examples=(
            'videonsa compare clip.mp4 "What flashed?"',
            'videonsa compare talk.mkv "Who speaks first?" --model Qwen/Qwen2.5-VL-7B-Instruct',
            'videonsa compare clip.mp4 "What flashed?" --methods dense,nsa --picture patterns.png',
            'videonsa compare clip.mp4 "What flashed?" --repeats 5 --out compared.json',
        ),
    )
    parser.add_argument(
        "video", type=values.name, metavar="VIDEO", help="a video, a folder of images or an image"
    )
    parser.add_argument("question", metavar="QUESTION", help="what to ask")
    parser.add_argument(
        "--methods",
        metavar="A,B:KEY=VALUE",
        help="which, as --method of the other commands takes them, with commas between (default: "
        "all that 'videonsa methods' lists)",
    )
    add_repeats_option(parser, default=3, of="timed prefills of each method")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="also write all as JSON")
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE.png",
        help="draw which tokens attend to which under each method, side by side",
    )
    parser.add_argument(
        "--layer",
        type=values.whole_number(0),
        metavar="N",
        help="the layer of the picture (default: the middle one)",
    )
    parser.add_argument(
        "--max-new-tokens", type=values.integer, metavar="N", help="most tokens of an answer"
    )
    add_answering_options(parser, method=False)
    add_sampling_options(parser)


def run(args: Namespace) -> int:
    """Run the command."""
    with quiet_libraries(debug=args.debug):
        from videonsa.models.methods.registry import read_method
        from videonsa.video.chat import check_question
        from videonsa.video.source import open_source

        # What cannot be asked or read is told before weights are loaded.
        check_question(args.question)
        for text in wanted_methods(args):
            read_method(text)
        video = video_argument(args)
        open_source(video)
        check_files(args)

        from videonsa.bench.comparison import compare_methods
        from videonsa.planning.defaults import change_sampling
        from videonsa.video.decode import read_video

        with compile_line():
            model = load_model(args)
        sampling = change_sampling(model.sampling, **sampling_options(args))
        clip = read_video(video, sampling=sampling)
        result: dict[str, Any] = {}
        for result in compare_methods(
            model, clip, _candidates(args, model), _request(args, model), progress=report
        ):
            if args.out is not None:
                write_output(args.out, (json.dumps(result, allow_nan=False) + "\n").encode())
        if args.picture is not None:
            _draw(args.picture, result)
    of_methods = (note for line in result["methods"] for note in line["notes"] or ())
    for note in (*result["notes"], *of_methods):
        report(f"note       {note}")
    for warning in result["warnings"]:
        report(f"warning    {warning}")
    if args.json:
        emit_json(result)
    else:
        emit(table_text(result))
    return 0


def wanted_methods(args: Namespace) -> list[str]:
    """The methods of --methods, or all there are."""
    from videonsa.models.methods.registry import METHODS

    return list(METHODS) if args.methods is None else split_methods(args.methods)


def split_methods(text: str) -> list[str]:
    """Methods with commas between, where the options of a method have commas too.

    What has its first "=" before any ":" is one more option of the method before.
    """
    found: list[str] = []
    for piece in text.split(","):
        if found and re.match("[^:]*=", piece):
            found[-1] += f",{piece}"
        else:
            found.append(piece)
    return found


def check_files(args: Namespace) -> None:
    """Refuse files that cannot be written, before anything is loaded: UsageError."""
    for option, path, suffix in (("--out", args.out, ".json"), ("--picture", args.picture, ".png")):
        if path is None:
            continue
        if path.is_dir() or path.suffix.lower() != suffix:
            raise UsageError(f"{option} {path}: want the name of a file that ends with {suffix}")
        prepare_folder(path.parent)


def _candidates(args: Namespace, model: "VideoQA") -> "list[Candidate]":
    from videonsa.bench.comparison import Candidate

    found = []
    for text in wanted_methods(args):
        try:
            found.append(Candidate(text, model.model.config.method_of(text)))
        except UsageError as error:
            if args.methods is not None:
                raise
            found.append(Candidate(text, None, str(error)))
    return found


def _request(args: Namespace, model: "VideoQA") -> "ComparisonRequest":
    from videonsa.bench.comparison import ComparisonRequest

    num_layers = len(model.model.decoder_layers)
    if args.layer is not None and (args.picture is None or args.layer >= num_layers):
        raise UsageError(
            f"--layer {args.layer}: want --picture FILE.png, and a layer from 0 to {num_layers - 1}"
        )
    layer = num_layers // 2 if args.layer is None else args.layer
    return ComparisonRequest(
        question=args.question,
        settings=model.generation_settings(temperature=0, max_new_tokens=args.max_new_tokens),
        repeats=args.repeats,
        layer=None if args.picture is None else layer,
        **system_option(args),
    )


def _draw(path: Path, result: dict[str, Any]) -> None:
    from videonsa.bench.pattern_picture import draw_patterns

    content = BytesIO()
    draw_patterns(result).save(content, format="PNG")
    write_output(path, content.getvalue())
    report(f"written to {path}")


def table_text(result: dict[str, Any]) -> str:
    """The table of a comparison: one method a line; of one that cannot run, its reason."""
    rows = [_HEAD, *(_row(line, result) for line in result["methods"] if line["reason"] is None)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD) - 1)]
    names = [line["name"] for line in result["methods"]]
    widths[0] = max(map(len, (_HEAD[0], *names)))
    lines = iter(rows)
    told = [_joined(next(lines), widths)]
    for line in result["methods"]:
        if line["reason"] is None:
            told.append(_joined(next(lines), widths))
        else:
            told.append(f"{line['name']:<{widths[0]}}  cannot run: {line['reason']}")
    return "".join(f"{one}\n" for one in told)


def _row(line: dict[str, Any], result: dict[str, Any]) -> tuple[str, ...]:
    from videonsa.bench.comparison import shortened

    share, peak = line["attention"], line["peak_gb"]
    return (
        line["name"],
        _tokens(line, result),
        "-" if share is None else f"{100 * share:.3g} %",
        f"{line['encode_ms']:.0f} ms",
        f"{line['prefill_ms']:.1f} ms",
        f"{line['first_ms']:.0f} ms",
        "-" if peak is None else f"{peak:.2f} GB",
        shortened(line["answer"]),
    )


def _tokens(line: dict[str, Any], result: dict[str, Any]) -> str:
    """Video tokens that the first layer has, and those after each leaving, of all."""
    counts = [line["kept_tokens"], *(one["tokens"] for one in line["leaves"])]
    return f"{', '.join(f'{count:,}' for count in counts)} of {result['video_tokens']:,}"


def _joined(row: Sequence[str], widths: Sequence[int]) -> str:
    *cells, last = row
    first, *others = (f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
    padded = [f"{cell.strip():>{len(cell)}}" for cell in others]
    return "  ".join([first, *padded, last]).rstrip()
