"""The videos of the suite's test split that the study asks about."""

from collections.abc import Iterator, Sequence

import torch

from benchmarks.study.study_design import FRAME_SIZE
from videonsa.rendered.suite import (
    KINDS,
    Script,
    SuiteQuestion,
    SuiteSpec,
    frames_for_tokens,
    iter_frames,
    make_script,
    questions_of,
    suite_seed,
)

_SAMPLE_BITS, _KIND_BITS = 16, 6
"""Of the number of a video in the test split: no two of the study share one."""


def held_out_video(length: int, sample: int, kind: str = "") -> Script:
    """Video number `sample` of a length in tokens; of one kind of question alone, if it is told."""
    kinds = (kind,) if kind else KINDS
    number = 1 + KINDS.index(kind) if kind else 0
    index = (((length << _KIND_BITS) + number) << _SAMPLE_BITS) + sample
    frames = frames_for_tokens(length, frame_size=FRAME_SIZE)
    spec = SuiteSpec(num_frames=frames, frame_size=FRAME_SIZE, kinds=kinds)
    return make_script(suite_seed("test", index), spec=spec)


def questions(script: Script) -> Sequence[SuiteQuestion]:
    """All questions about a video."""
    return questions_of(script)


def frames_on(script: Script, device: torch.device) -> Iterator[torch.Tensor]:
    """Its frames, uint8 `[n, 3, S, S]` a part, on a device."""
    for frames in iter_frames(script, chunk=512):
        yield frames.to(device, non_blocking=True)
