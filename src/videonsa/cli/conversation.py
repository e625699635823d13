"""The questions and commands of `videonsa chat`, one line after the other."""

import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videonsa.cli.answering import report_computed, report_end, speed_text
from videonsa.cli.common import emit, emit_json_line, kept_text, report
from videonsa.cli.compiling import compile_line, told_to_first
from videonsa.cli.lines import noted_interrupt
from videonsa.errors import UsageError, VideoNSAError

if TYPE_CHECKING:
    from videonsa.inference.answer import AnswerStream
    from videonsa.inference.engine import VideoQA
    from videonsa.inference.session import Session
    from videonsa.inference.usage import ClipUsage

HELP = (
    ("/fresh QUESTION", "ask about the video alone: what was said so far is forgotten"),
    ("/frames", "what was taken of the video: frames, seconds, size, tokens"),
    ("/join VIDEO", "show one more video or image, for the questions that follow"),
    ("/save FOLDER", "keep the session: 'videonsa chat FOLDER' goes on with it"),
    ("/help", "this list"),
    ("/quit", "leave, as Ctrl-D does; Ctrl-C stops an answer"),
)
_QUIT = "/quit"
_ALONE = ("/frames", "/help", _QUIT)
_STOPPED = "stopped: what was said so far stays in the conversation"


class Conversation:
    """A session, and the questions that are asked in it.

    Args:
        session: what is asked.
        model: of that session.
        as_json: everything is told as JSON objects on stdout, one a line.
        is_typed: a person asks: Ctrl-C stops an answer, not the program.
        options: of every answer, by the keywords of `Session.ask`.
        sampling: of what is joined, by the names of `SamplingSpec`.
        model_options: words of a command that load the same model.

    """

    def __init__(
        self,
        session: "Session",
        model: "VideoQA",
        *,
        as_json: bool,
        is_typed: bool,
        options: dict[str, Any],
        sampling: dict[str, Any] | None = None,
        model_options: Sequence[str] = (),
    ) -> None:
        self._session = session
        self._model = model
        self._as_json = as_json
        self._is_typed = is_typed
        self._options = options
        self._sampling = sampling or {}
        self._model_options = model_options
        self._commands: dict[str, Callable[[str], None]] = {
            "/fresh": lambda question: self._ask(question, fresh=True),
            "/frames": lambda _: self._tell_frames(),
            "/join": self._join,
            "/save": self._save,
            "/help": lambda _: _tell_help(),
        }

    def run(self, lines: Iterable[str]) -> bool:
        """Do what each line asks for, up to /quit. What cannot be done is told, and goes on.

        Returns:
            Whether all could be done.

        """
        all_done = True
        for line in map(str.strip, lines):
            try:
                if line and not self._do(line):
                    break
            except (VideoNSAError, OSError) as error:
                all_done = False
                self._tell_error(line, " ".join(str(error).split()))
            except KeyboardInterrupt:
                if not self._is_typed:
                    raise
                self._emit("\n")
                report("note       stopped")
        return all_done

    def _do(self, line: str) -> bool:
        """Do what a line asks for; gives whether the conversation goes on."""
        name, *rest = line.split(maxsplit=1)
        if not line.startswith("/"):
            self._ask(line)
        elif name in _ALONE and rest:
            raise UsageError(f"{name} came with {rest[0]!r}: want it alone on its line")
        elif name in self._commands:
            self._commands[name]("".join(rest))
        elif name != _QUIT:
            known = ", ".join([*self._commands, _QUIT])
            raise UsageError(f"{name}: no command: want a question, or one of {known}")
        return name != _QUIT

    def _ask(self, question: str, *, fresh: bool = False) -> None:
        stream = self._session.ask(question, fresh=fresh, stream=True, **self._options)
        pieces, is_stopped = self._read(stream)
        told = {"question": question}
        if is_stopped:
            if self._as_json:
                emit_json_line(told | {"text": "".join(pieces), "finish": "stopped"})
            report(f"note       {_STOPPED}")
            return
        answer = stream.answer
        if self._as_json:
            emit_json_line(told | answer.to_dict())
        report(f"time       {speed_text(answer)}")
        report_computed(answer)
        report_end(answer)

    def _read(self, stream: "AnswerStream") -> tuple[list[str], bool]:
        """The pieces of an answer as they come, and whether it was stopped before its end."""
        pieces: list[str] = []
        is_stopped = False
        with noted_interrupt(self._is_typed) as is_noted:
            for piece in told_to_first(stream):
                pieces.append(piece)
                self._emit(piece)
                if is_noted():
                    is_stopped = True
                    stream.close()
                    break
        self._emit("\n")
        return pieces, is_stopped

    def _join(self, argument: str) -> None:
        path = _path_of(argument, "/join VIDEO")
        with compile_line():
            self._session.join(path, **self._sampling)
        self._tell({"joined": path}, [clip_text(clips_of(self._session, self._model)[-1])])

    def _save(self, argument: str) -> None:
        folder = Path(_path_of(argument, "/save FOLDER"))
        saved = self._session.save(folder)
        again = shlex.join(["videonsa", "chat", str(folder), *self._model_options])
        line = (
            f"saved      {saved.num_bytes / 1e6:.1f} MB in {saved.seconds:.1f} s; it goes on with: "
            f"{again}"
        )
        self._tell({"saved": str(folder)}, [line])

    def _tell_frames(self) -> None:
        clips, num_tokens = clips_of(self._session, self._model), self._session.num_tokens
        context = self._model.shape.context
        told = {"clips": [asdict(clip) for clip in clips], "num_tokens": num_tokens}
        self._tell(told | {"context": context}, session_lines(clips, num_tokens, context))

    def _tell_error(self, line: str, message: str) -> None:
        told = message.replace("fresh=True", "/fresh")  # what to do, in the words of this prompt
        self._tell({"line": line, "error": told}, [f"error      {told}"])

    def _tell(self, value: dict[str, Any], lines: Iterable[str]) -> None:
        """As JSON on stdout, or in lines on stderr."""
        if self._as_json:
            emit_json_line(value)
        else:
            for line in lines:
                report(line)

    def _emit(self, piece: str) -> None:
        if not self._as_json:
            emit(piece)


def clips_of(session: "Session", model: "VideoQA") -> "list[ClipUsage]":
    """What was taken of each video and image of a session."""
    from videonsa.inference.usage import ClipUsage

    return [ClipUsage.of(clip, model.shape.vision) for clip in session.clips]


def session_lines(clips: "Sequence[ClipUsage]", num_tokens: int, context: int) -> Iterator[str]:
    """What a session holds."""
    yield from map(clip_text, clips)
    in_videos = sum(clip.video_tokens for clip in clips)
    yield (
        f"tokens     {in_videos} video + {num_tokens - in_videos} text = {num_tokens} of {context}"
    )


def clip_text(clip: "ClipUsage") -> str:
    """What was taken of one video or image."""
    size = f"{clip.width}x{clip.height}"
    tokens = f"{kept_text(clip.video_tokens, clip.encoded_tokens)} tokens"
    if len(clip.times) == 1:
        return f"image      {size}, {tokens}"
    return (
        f"frames     {len(clip.times)} of {size}, {clip.times[0]:.2f} s to {clip.times[-1]:.2f} s, "
        f"{tokens}"
    )


def _tell_help() -> None:
    for command, what in HELP:
        report(f"{command:<15} {what}")


def _path_of(text: str, usage: str) -> str:
    """The path that a command names: quotes and escapes are undone as a shell does, and ~."""
    try:
        words = shlex.split(text)
    except ValueError:  # a quote that is not closed: part of the name
        words = [text]
    if not words:
        raise UsageError(f"{usage}: want the name of one, this names nothing")
    return os.path.expanduser(words[0] if len(words) == 1 else text)
