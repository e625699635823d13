"""`videonsa demo`: render a clip, ask a question of each kind, show where the model looked."""

import io
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videonsa.cli import values
from videonsa.cli.common import (
    Commands,
    add_command,
    add_model_options,
    attention_text,
    emit,
    emit_json,
    prepare_folder,
    quiet_libraries,
    report,
    write_output,
)
from videonsa.cli.compiling import compile_line

if TYPE_CHECKING:
    from videonsa.analysis.inspection import Inspection
    from videonsa.inference.usage import Usage
    from videonsa.rendered.clips import ClipQuestion

CLIP_SECONDS = 24.0


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "demo",
        run=run,
        summary="Render a clip of moving shapes, ask a question of each kind about it, and save "
        "a picture of the frames that the model attended to.",
        examples=(
            "videonsa demo",
            "videonsa demo --seed 7 --out /path/to/folder",
            "videonsa demo --method dense --json",
        ),
    )
    parser.add_argument(
        "--out",
        type=values.path,
        default=Path("videonsa-demo"),
        metavar="FOLDER",
        help="where clip.mp4 and demo.png go (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=values.seed,
        default=3,
        metavar="N",
        help="seed of the clip (default: %(default)s)",
    )
    add_model_options(parser)


def run(args: Namespace) -> int:
    """Run the command."""
    prepare_folder(args.out)
    with quiet_libraries(debug=args.debug):
        from videonsa.analysis.inspect_picture import draw_timeline
        from videonsa.analysis.inspection import ask_and_inspect
        from videonsa.inference.engine import load
        from videonsa.rendered.clips import KINDS, ask_about, make_scene, scene_seed, write_video
        from videonsa.video.decode import read_video

        scene = make_scene(scene_seed("test", args.seed), duration=CLIP_SECONDS, num_objects=3)
        clip_path = args.out / "clip.mp4"
        write_video(scene, clip_path)
        model = load(
            args.model,
            base=args.base,
            revision=args.revision,
            method=args.method,
            dtype=args.dtype,
        )
        clip = read_video(clip_path, sampling=model.sampling)
        asked = [question for kind in KINDS if (question := ask_about(scene, kind))]
        results: list[dict[str, Any]] = []
        looks: list[Inspection] = []
        for question in asked:
            with compile_line():
                answer, look = ask_and_inspect(
                    model, clip, question.text, video=clip_path.name, evidence=question.evidence
                )
            looks.append(look)
            results.append(_result(question, look))
            if not args.json:
                emit(_line(results[-1]) + "\n")
        _report_usage(answer.usage)
        picture, content = args.out / "demo.png", io.BytesIO()
        truths = [f"{one['answer']} (truth: {one['truth']})" for one in results]
        draw_timeline(looks, truths).save(content, format="PNG")
        write_output(picture, content.getvalue())
    right = sum(result["right"] for result in results)
    if args.json:
        files = {"clip": str(clip_path), "picture": str(picture)}
        emit_json(files | {"questions": results, "right": right})
    report(f"{right} of {len(results)} right; clip {clip_path}, picture {picture}")
    return 0


def _result(question: "ClipQuestion", answer: "Inspection") -> dict[str, Any]:
    from videonsa.evals.scoring import exact_match

    words = {"kind": question.kind, "question": question.text, "answer": answer.answer}
    return words | {"truth": question.answer, "right": exact_match(answer.answer, question.answer)}


def _line(result: dict[str, Any]) -> str:
    mark = "right" if result["right"] else "wrong"
    said = f"{result['answer']} (truth: {result['truth']})"
    return f"{mark}  {result['question']:<58} {said}"


def _report_usage(usage: "Usage") -> None:
    report(
        f"{usage.num_frames} frames of {usage.width}x{usage.height}, {usage.video_tokens} video "
        f"tokens; {attention_text(usage)}"
    )
