"""`videonsa chat`: a conversation about a video that is read once."""

from argparse import Namespace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videonsa.cli import values
from videonsa.cli.answering import (
    add_answering_options,
    add_reading_options,
    load_model,
    reading_options,
)
from videonsa.cli.common import (
    DEFAULT_MODEL,
    Commands,
    add_command,
    quiet_libraries,
    report,
    sampling_options,
    video_argument,
)
from videonsa.cli.compiling import compile_line
from videonsa.cli.conversation import Conversation, clips_of, session_lines
from videonsa.cli.generation import add_generation_options, checked_generation_options
from videonsa.cli.lines import Lines
from videonsa.errors import UsageError

if TYPE_CHECKING:
    from videonsa.inference.engine import VideoQA
    from videonsa.inference.session import Session

EXIT_LINE_FAILED = 2
_USUAL = (DEFAULT_MODEL, "full")
"""Values of --model and --weights where they are not given."""
_OF_A_VIDEO = (
    *("sampling", "fps", "num_frames", "start", "end", "frame_rate", "max_frames", "max_pixels"),
    *("max_tokens", "fit", "memory", "system"),
)
"""Options that say how a video is opened; nothing is opened where a session is loaded."""


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "chat",
        run=run,
        summary="Ask question after question about a video that is read once. Answers are streamed "
        "to stdout; /help at the prompt lists commands. Ctrl-C stops an answer.",
        json_lines=True,
        examples=(
            "videonsa chat clip.mp4",
            "videonsa chat film.mkv --model Enxin/VideoNSA --fps 1 --max-new-tokens 256",
            "videonsa chat kept/            # a session that /save wrote",
            "videonsa chat clip.mp4 --json < questions.txt > answers.jsonl",
        ),
    )
    parser.add_argument(
        "video",
        type=values.name,
        metavar="VIDEO",
        help="a video, a folder of images, an image, or the folder of a saved session",
    )
    add_answering_options(parser)
    add_reading_options(parser)
    add_generation_options(parser)


def run(args: Namespace) -> int:
    """Run the command."""
    with quiet_libraries(debug=args.debug):
        options = checked_generation_options(args)
        with compile_line():
            session, model = _saved(args) if _is_saved(args) else _opened(args)
        _report_opened(session, model)
        lines = Lines()
        if lines.are_typed:
            report("ask about the video; /help lists commands, Ctrl-C stops an answer")
        conversation = Conversation(
            session,
            model,
            as_json=args.json,
            is_typed=lines.are_typed,
            options=options,
            sampling=_sampling_of_joined(args),
            model_options=_model_options(args),
        )
        all_done = conversation.run(lines)
    return 0 if all_done or lines.are_typed else EXIT_LINE_FAILED


def _opened(args: Namespace) -> "tuple[Session, VideoQA]":
    """A session that begins with a video."""
    from videonsa.video.source import open_source

    # A video that cannot be read is told before weights are loaded.
    video = video_argument(args)
    open_source(video, decoder=args.decoder)
    options = reading_options(args)
    model = load_model(args)
    return model.open(video, **options), model


def _is_saved(args: Namespace) -> bool:
    from videonsa.models.stored_cache.contents import CONTENTS

    return Path(args.video, CONTENTS).is_file()


def _saved(args: Namespace) -> "tuple[Session, VideoQA]":
    """A session that was saved: its video is read, and its conversation has begun."""
    from videonsa.inference.session import Session

    given = [f"--{name.replace('_', '-')}" for name in _OF_A_VIDEO if getattr(args, name)]
    if args.decoder != "cpu":
        given.append("--decoder")
    if given:
        raise UsageError(
            f"{args.video}: a saved session with {', '.join(given)}: its video is read already; "
            "leave that out, or name a video"
        )
    model = load_model(args)
    return Session.load(args.video, model), model


def _model_options(args: Namespace) -> tuple[str, ...]:
    """The options that another command needs to load the same model, as they are typed."""
    names = ("model", "base", "revision", "method", "dtype", "weights")
    given = [(name, str(getattr(args, name))) for name in names if getattr(args, name) is not None]
    words = [(f"--{name}", value) for name, value in given if value not in _USUAL]
    return (*chain(*words), *(("--fresh-gates",) if args.fresh_gates else ()))


def _sampling_of_joined(args: Namespace) -> dict[str, Any]:
    """As the video was sampled, but for the stretch, which is of that video."""
    stretch = ("start", "end")
    return {name: of for name, of in sampling_options(args).items() if name not in stretch}


def _report_opened(session: "Session", model: "VideoQA") -> None:
    """What the model has seen, and what there is to say of it."""
    for line in session_lines(clips_of(session, model), session.num_tokens, model.shape.context):
        report(line)
    asked = [turn.text for turn in session.turns if turn.role == "user"]
    if asked:
        report(f"asked      {len(asked)} so far, the last: {asked[-1]}")
    for clip in session.clips:
        for warning in clip.warnings:
            report(f"warning    {warning}")
    for note in session.notes:
        report(f"note       {note}")
