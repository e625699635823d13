"""Videos that are in no file: what they are drawn from, as text, and their frames."""

import json
import re
from dataclasses import MISSING, asdict, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.ops.drawing import Drawing, draw_frames
from videonsa.rendered.clips import Clip
from videonsa.rendered.clips.scene import SPLIT_SIZE
from videonsa.rendered.suite import Script, SuiteSpec, drawing_of
from videonsa.rendered.suite.suite_spec import FPS
from videonsa.rendered.suites import SPECS, script_from, suite_of
from videonsa.video.sampling import VideoInfo

Drawn = Script | Clip
"""A video of a suite, or a clip of moving shapes."""
_CLIP = "clip"
_SUITE = "suite"
"""Its number, where it is not the first."""
_NUMBER = re.compile("[0-9]{1,15}")
MOST_VIDEOS = 10_000_000
"""Of one source."""


def script_text(drawn: Drawn) -> str:
    """What a video is rendered from, as JSON text for `VideoRef.script`."""
    if isinstance(drawn, Clip):
        facts: dict[str, Any] = {_CLIP: asdict(drawn)}
    else:
        number = suite_of(drawn.spec)
        stated = {} if number == 1 else {_SUITE: number}
        facts = stated | {"seed": drawn.seed} | asdict(drawn.spec)
    return json.dumps(facts, separators=(",", ":"))


def script_of(text: str) -> Drawn:
    """Read what `script_text` wrote.

    Raises:
        UsageError: it did not write this.

    """
    stated = _stated(text)
    return stated if isinstance(stated, Clip) else script_from(stated[0], spec=stated[1])


def _stated(text: str) -> Clip | tuple[int, SuiteSpec]:
    """A clip, or seed and spec of a video of a suite."""
    try:
        facts = json.loads(text)
        if _CLIP in facts:
            return Clip(**facts[_CLIP])
        seed: int = facts.pop("seed")
        return seed, SPECS[facts.pop(_SUITE, 1)](**facts | {"kinds": tuple(facts["kinds"])})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"not a script of the suite nor a clip ({error}): want what it was built with"
        ) from error


def script_info(drawn: Drawn) -> VideoInfo:
    """What probing says of a drawn video."""
    size = drawn.frame_size if isinstance(drawn, Clip) else drawn.spec.frame_size
    return _info(drawn.seed, drawn.duration, drawn.num_frames, drawn.fps, size)


def info_of_script(text: str) -> VideoInfo:
    """The same of what `script_text` wrote, without the video: that takes longer.

    Raises:
        UsageError: it did not write this.

    """
    stated = _stated(text)
    if isinstance(stated, Clip):
        return script_info(stated)
    seed, spec = stated
    return _info(seed, float(spec.seconds), spec.num_frames, FPS, spec.frame_size)


def _info(seed: int, duration: float, num_frames: int, fps: float, size: int) -> VideoInfo:
    return VideoInfo(
        path=f"script {seed}",
        duration=duration,
        num_frames=num_frames,
        fps=fps,
        width=size,
        height=size,
        container="script",
    )


def drawing_or_frames(drawn: Drawn) -> Tensor | Drawing:
    """What all frames of a video of the suite are drawn from; of a clip, the frames themselves."""
    return drawn.render() if isinstance(drawn, Clip) else drawing_of(drawn, 0, drawn.num_frames)


def draw(drawn: Drawn) -> NDArray[np.uint8]:
    """All frames of a video: `[N, 3, S, S]`."""
    frames = drawing_or_frames(drawn)
    return (draw_frames(frames) if isinstance(frames, Drawing) else frames).numpy()


def check_range(what: str, *, count: int, first: int) -> None:
    """Refuse videos that are not in a split, or too many for a build.

    Raises:
        UsageError: as said.

    """
    if not (1 <= count <= MOST_VIDEOS and 0 <= first <= SPLIT_SIZE - count):
        raise UsageError(
            f"count={count}, first={first}: want at least 1 {what} and at most {MOST_VIDEOS}, "
            f"from 0 on, of the {SPLIT_SIZE} of the split"
        )


def parse_options(text: str, kind: type[Any], *, example: str) -> dict[str, Any]:
    """Read `PREFIX:field=value,...` for a dataclass of whole numbers and words.

    Args:
        text: what is read.
        kind: the dataclass; fields without a default have to be there.
        example: that an error shows.

    Raises:
        UsageError: it is not that.
    """
    names = {field.name: field.type for field in fields(kind)}
    given: dict[str, int | str] = {}
    for item in text.partition(":")[2].split(","):
        name, _, value = item.partition("=")
        number = names.get(name) is int
        if name not in names or name in given or (number and not _NUMBER.fullmatch(value)):
            raise UsageError(
                f"{text!r}: {item!r} cannot be read: want each of {', '.join(names)} once at "
                f"most, as in {example}"
            )
        given[name] = int(value) if number else value
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    if missing := needed - given.keys():
        raise UsageError(
            f"{text!r}: no {' and no '.join(sorted(missing))}: want it, as in {example}"
        )
    return given
