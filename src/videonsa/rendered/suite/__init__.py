"""Long rendered videos of any length with questions whose answers are known."""

from videonsa.rendered.suite.oracle import oracle
from videonsa.rendered.suite.script import Script, make_script, questions_of
from videonsa.rendered.suite.suite_drawing import drawing_of
from videonsa.rendered.suite.suite_frames import iter_frames, render_frames, write_suite_video
from videonsa.rendered.suite.suite_questions import SuiteQuestion
from videonsa.rendered.suite.suite_spec import (
    DIFFICULTIES,
    KINDS,
    SuiteSpec,
    frames_for_tokens,
    min_frames,
    position_tolerance,
    suite_seed,
)

__all__ = [
    "DIFFICULTIES",
    "KINDS",
    "Script",
    "SuiteQuestion",
    "SuiteSpec",
    "drawing_of",
    "frames_for_tokens",
    "iter_frames",
    "make_script",
    "min_frames",
    "oracle",
    "position_tolerance",
    "questions_of",
    "render_frames",
    "suite_seed",
    "write_suite_video",
]
