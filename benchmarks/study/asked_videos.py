"""The videos of the suite's test split that the study asks about."""

from collections.abc import Iterator

import torch

from benchmarks.study.study_design import FRAME_SIZE
from videonsa.ops.drawing import draw_frames
from videonsa.rendered.suite import drawing_of, frames_for_tokens, suite_seed
from videonsa.rendered.suite2 import ANY, KINDS, Script2, Suite2Spec, make_script2

_SAMPLE_BITS, _KIND_BITS = 16, 6
"""Of the number of a video in the test split: no two of the study share one."""
_ALL_KINDS_FROM = 4096
"""Tokens of the shortest videos that are asked about every kind; shorter ones have some kinds."""
_FRAMES_A_PART = 2048


def asked_video(length: int, sample: int, kind: str = "") -> Script2:
    """Video number `sample` of a length in tokens; of one kind of question alone, if it is told."""
    whole = KINDS if length >= _ALL_KINDS_FROM else ANY
    number = 1 + KINDS.index(kind) if kind else 0
    index = (((length << _KIND_BITS) + number) << _SAMPLE_BITS) + sample
    spec = Suite2Spec(
        num_frames=frames_for_tokens(length, frame_size=FRAME_SIZE),
        frame_size=FRAME_SIZE,
        kinds=(kind,) if kind else whole,
    )
    return make_script2(suite_seed("test", index), spec=spec)


def frames_on(script: Script2, device: torch.device) -> Iterator[torch.Tensor]:
    """Its frames, uint8 `[n, 3, S, S]` a part, drawn on a device."""
    for first in range(0, script.num_frames, _FRAMES_A_PART):
        last = min(first + _FRAMES_A_PART, script.num_frames)
        yield draw_frames(drawing_of(script, first, last), device=device)
