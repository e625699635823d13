"""`videonsa watch`: follow a source that grows, and answer the same questions again and again."""

import math
import re
from argparse import ArgumentTypeError, Namespace
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from videonsa.cli import values
from videonsa.cli.answering import add_answering_options, load_model, system_option
from videonsa.cli.common import (
    Commands,
    LineParser,
    add_command,
    add_frame_rate_option,
    emit,
    emit_json_line,
    quiet_libraries,
    report,
    video_argument,
)
from videonsa.cli.compiling import compile_line, told_to_first
from videonsa.cli.generation import add_generation_options, checked_generation_options
from videonsa.errors import BudgetError, UsageError, VideoError

if TYPE_CHECKING:
    from videonsa.inference.answer import Answer
    from videonsa.inference.engine import VideoQA
    from videonsa.inference.session import Session
    from videonsa.inference.usage import Usage
    from videonsa.video.follow import FollowedVideo
    from videonsa.video.framelist import FrameList
    from videonsa.video.parts import SampledFrame
    from videonsa.video.sampling import SamplingSpec

NEVER = "never"
MOST_WAITING = 32
"""Frames that are encoded together where the source is ahead of the model."""
SAME_SECOND = 1e-6


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "watch",
        run=run,
        summary="Follow a video that is being recorded, or a folder that images are written to, "
        "and answer a question again every so many seconds of it. One line an answer, on stdout.",
        json_lines=True,
        examples=(
            'videonsa watch camera.ts --ask "Is anybody at the door?" --every 30',
            'videonsa watch frames/ --frame-rate 1 --ask "What changed?" --when-full forget',
            'videonsa watch talk.mkv --ask "Sum it up so far." --once --model Enxin/VideoNSA',
            'videonsa watch camera.ts --ask "What happens?" --idle never --json >> log.jsonl',
        ),
    )
    parser.add_argument(
        "video",
        type=values.name,
        metavar="SOURCE",
        help="a file that can be read while it is written (mkv, webm, ts, flv, mp4 in fragments), "
        "or a folder of images, taken in the order of their names",
    )
    _add_questions(parser)
    parser.add_argument(
        "--idle",
        type=_idle,
        default=10.0,
        metavar="SECONDS",
        help="end, after a last answer, when the source has not grown for so long, on the wall's "
        f"clock, or '{NEVER}' (default: %(default)g)",
    )
    parser.add_argument(
        "--when-full",
        choices=("refuse", "forget"),
        default="refuse",
        help="when the context is full: refuse more, and end with an error; or forget the oldest "
        "frames but the first, which is told (default: %(default)s)",
    )
    _add_frame_options(parser)
    add_answering_options(parser)
    add_generation_options(parser)


def _add_questions(parser: LineParser) -> None:
    parser.add_argument(
        "--ask",
        action="append",
        required=True,
        metavar="QUESTION",
        help="what to ask; may be given several times: the questions are then answered side by "
        "side, and no answer knows of another",
    )
    parser.add_argument(
        "--every",
        type=values.positive_number,
        default=10.0,
        metavar="SECONDS",
        help="ask again whenever so many seconds of the video have passed: of its own clock, not "
        "the wall's. A model that is slower than the recording answers late, and leaves out "
        "nothing (default: %(default)g)",
    )
    parser.add_argument(
        "--once", action="store_true", help="ask once, about what is there now, and end"
    )


def _add_frame_options(parser: LineParser) -> None:
    parser.add_argument("--fps", type=float, metavar="N", help="frames to take per second")
    parser.add_argument("--start", type=float, metavar="S", help="begin at this second of it")
    parser.add_argument("--end", type=float, metavar="S", help="end before this second of it")
    parser.add_argument(
        "--max-pixels", type=values.integer, metavar="N", help="at most this many pixels per frame"
    )
    add_frame_rate_option(parser)
    parser.add_argument(
        "--as-written",
        action="store_true",
        help="an image has the second at which it was last written, instead of one by --frame-rate",
    )


def _idle(text: str) -> float | None:
    if text == NEVER:
        return None
    try:
        return values.positive_number(text)
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"{text}: want seconds, or '{NEVER}'") from error


def run(args: Namespace) -> int:
    """Run the command."""
    with quiet_libraries(debug=args.debug):
        from videonsa.video.chat import check_question
        from videonsa.video.follow import follow_video, locate_growing

        # What cannot be asked or followed is told before weights are loaded.
        for question in args.ask:
            check_question(question)
        options = checked_generation_options(args)
        source = _source(args)
        locate_growing(source, as_written=args.as_written)
        with compile_line():
            model = load_model(args)
        sampling = _sampling(args, model)
        followed = follow_video(
            source,
            sampling=sampling,
            as_written=args.as_written,
            idle=0.0 if args.once else args.idle,
        )
        report(
            f"frames     {followed.width}x{followed.height}, {followed.fps:g} a second, from "
            f"{followed.start:.2f} s on"
        )
        session = model.open_live(
            sampling=sampling, when_full=args.when_full, **system_option(args)
        )
        watch = Watch(
            followed,
            session,
            args.ask,
            as_json=args.json,
            options=options,
        )
        watch.report_news((*session.notes, *followed.info.notes))
        watch.run(every=None if args.once else args.every)
    return 0


def _source(args: Namespace) -> "str | FrameList":
    """SOURCE, with --frame-rate where it was given."""
    if args.as_written and args.frame_rate is not None:
        raise UsageError("--as-written and --frame-rate: want one of them")
    return video_argument(args)


def _sampling(args: Namespace, model: "VideoQA") -> "SamplingSpec":
    from videonsa.planning.defaults import change_sampling

    return change_sampling(
        model.sampling, fps=args.fps, start=args.start, end=args.end, max_pixels=args.max_pixels
    )


class _FullError(BudgetError):
    """The session takes no more frames."""


class Watch:
    """Frames go into a live session as they come; questions are asked when they are due.

    Args:
        followed: the source.
        session: has no frames as yet.
        questions: each about the video alone; several are answered side by side.
        as_json: answers are JSON objects, one a line.
        options: of every answer, by the keywords of `Session.ask`.

    """

    def __init__(
        self,
        followed: "FollowedVideo",
        session: "Session",
        questions: Sequence[str],
        *,
        as_json: bool,
        options: dict[str, Any],
    ) -> None:
        self._followed = followed
        self._session = session
        self._questions = questions
        self._as_json = as_json
        self._options = options
        self._waiting: list[SampledFrame] = []
        """Frames that the session was not shown yet."""
        self._shown: float | None = None
        """The second of the last frame that it was shown."""
        self._is_answered = True
        """It was shown none since the last answer."""
        self._told: set[str] = set()

    def run(self, *, every: float | None) -> None:
        """Follow the source to its end; a last answer is about all frames that were taken.

        Args:
            every: seconds of the video from one answer to the next; None asks at the end alone.

        Raises:
            VideoError: there was no frame.
            BudgetError: the context or the memory is full.

        """
        try:
            self._follow(math.inf if every is None else every)
        except _FullError:
            self._waiting.clear()
            if self._shown is not None:
                self._answer(self._shown)
            raise
        if self._shown is None:
            raise VideoError(
                f"{self._followed.info.path}: it ended before second {self._followed.start:g}: "
                "want --start within it, or wait longer for it (--idle)"
            )

    def _follow(self, every: float) -> None:
        due = self._followed.start + every
        with closing(self._followed.frames) as frames:
            for frame in frames:
                second = self._followed.second_of(frame)
                if second > due + SAME_SECOND:
                    self._answer(due)
                    due += every * math.ceil((second - due - SAME_SECOND) / every)
                self._take(frame)
                if second > due - SAME_SECOND:
                    self._answer(second)
                    due += every
        self._extend()
        if self._shown is not None:
            self._answer(self._shown)

    def _take(self, frame: "SampledFrame") -> None:
        self._waiting.append(frame)
        if not self._followed.is_behind or len(self._waiting) == MOST_WAITING:
            self._extend()

    def _extend(self) -> None:
        """Show the model the frames that wait."""
        import numpy as np

        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        pixels = np.stack([frame.pixels for frame in waiting])
        try:
            with compile_line():
                self._session.extend(pixels, [frame.time for frame in waiting])
        except BudgetError as error:
            raise _FullError(
                f"no room for the frames up to second {self._followed.second_of(waiting[-1]):.2f} "
                f"({error}): want --when-full forget, lower --max-pixels or --fps, or an --end"
            ) from error
        self._shown = self._followed.second_of(waiting[-1])
        self._is_answered = False

    def _answer(self, second: float) -> None:
        """Answer all questions, unless no frame came since."""
        self._extend()
        if self._is_answered:
            return
        self._is_answered = True
        if len(self._questions) == 1:
            stream = self._session.ask(self._questions[0], fresh=True, stream=True, **self._options)
            self._report_usage(stream.usage)
            if self._as_json:
                _emit_json(second, self._questions[0], stream.finish())
            else:
                _emit_line(second, told_to_first(stream))
            return
        with compile_line():
            answers = self._session.ask_each(self._questions, fresh=True, **self._options)
        self._report_usage(answers[0].usage)
        for question, answer in zip(self._questions, answers, strict=True):
            if self._as_json:
                _emit_json(second, question, answer)
            else:
                _emit_line(second, [f"{question}  ", answer.text])

    def _report_usage(self, usage: "Usage") -> None:
        self.report_news(usage.notes, (*usage.warnings, *self._followed.warnings))

    def report_news(self, notes: Iterable[str], warnings: Iterable[str] = ()) -> None:
        """What was not told before."""
        lines = [f"note       {note}" for note in notes]
        lines += [f"warning    {warning}" for warning in warnings]
        for line in lines:
            if line not in self._told:
                self._told.add(line)
                report(line)


def _emit_line(second: float, pieces: Iterable[str]) -> None:
    """An answer on one line, while it is written."""
    emit(f"{second:8.2f} s  ")
    for piece in pieces:
        emit(re.sub(r"\s+", " ", piece))
    emit("\n")


def _emit_json(second: float, question: str, answer: "Answer") -> None:
    """An answer as `ask` gives it, less the seconds of every frame: they grow with the video."""
    told = answer.to_dict()
    usage = told["usage"]
    times = usage.pop("times")
    usage |= {"num_frames": len(times), "first_second": times[0], "last_second": times[-1]}
    emit_json_line({"second": round(second, 6), "question": question} | told)
