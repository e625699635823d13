"""What looks on changes nothing, and costs nothing where nothing looks on."""

from dataclasses import dataclass

import torch
from tiny_models import SPEC, prompt, tiny

from videonsa.models.cache import VideoNSACache
from videonsa.models.methods.nsa import NSA
from videonsa.models.recorder.frames import AttentionRecorder
from videonsa.models.recorder.gate_statistics import GateStatistics
from videonsa.models.recorder.gates import FrameGates, GateMeans
from videonsa.models.recorder.protocol import Recorders
from videonsa.models.recorder.selection import EvidenceRecall, SelectedFrames
from videonsa.models.recorder.sinks import SinkRecorder
from videonsa.models.recorder.unions import SelectionUnions


@dataclass(frozen=True)
class Watched(NSA):
    """Tells which steps keep what recorders look at."""

    def attend(self, layer, hidden, q, k, v, step):
        attended = super().attend(layer, hidden, q, k, v, step)
        WANTED.append((step.wants_branches, getattr(attended, "result", None) is not None))
        return attended


WANTED = []


def run(recorder, **options):
    WANTED.clear()
    model, inputs = tiny(), prompt(7)
    with torch.no_grad():
        cache = VideoNSACache()
        method = Watched(SPEC)
        found = model(
            **inputs, past_key_values=cache, method=method, recorder=recorder, **options
        ).logits
    return found, set(WANTED)


def test_outputs_are_the_same_to_the_bit_under_every_recorder():
    recorders = (
        GateStatistics(),
        GateMeans(),
        FrameGates(),
        AttentionRecorder(),
        SelectedFrames(SPEC),
        EvidenceRecall({"a": [1]}, spec=SPEC),
        SelectionUnions(),
        SinkRecorder(),
    )
    for recorder, options in (
        *((one, {}) for one in recorders),
        (Recorders(*recorders), {"rows_per_chunk": 9}),
    ):
        plain, wanted = run(None, **options)
        assert wanted == {(False, False)}  # no branch is kept for nobody
        seen, wanted = run(recorder, **options)
        assert torch.equal(seen, plain), type(recorder).__name__
        assert wanted == {(recorder.wants_branches, recorder.wants_branches)}
