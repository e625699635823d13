"""What is selected of frames and evidence, against plain loops."""

import pytest
import torch
from tiny_models import SPEC, prompt, tiny

from videonsa.errors import UsageError
from videonsa.models.cache import VideoNSACache
from videonsa.models.recorder import selection as selection_module
from videonsa.models.recorder.protocol import Recorder, Recorders
from videonsa.models.recorder.selection import EvidenceRecall, SelectedFrames
from videonsa.ops.spec import NSASpec

FIXED = NSASpec(block_size=5, num_selected_blocks=3, window_size=6)
FRAME = 4
"""Tokens."""


class Kept(Recorder):
    wants_branches = True

    def __init__(self):
        self.layers = []

    def begin_step(self, tokens):
        self.vision = tokens.vision_mask[0]

    def record(self, layer, q, k, attended):
        self.layers.append((q[0], k[0], attended))


def read(model, inputs, *recorders, **options):
    with torch.no_grad():
        cache = VideoNSACache()
        return model(**inputs, past_key_values=cache, recorder=Recorders(*recorders), **options)


def free_blocks(row, spec):
    """Those before the row's own, in a video of frames of four tokens."""
    size = FRAME if spec.block_size == "frame" else spec.block_size
    return range(row // size), size


@pytest.mark.parametrize("spec", [SPEC, FIXED])
def test_frames_of_each_head_are_counted_and_expected_as_loops_do(spec):
    kept, whole, parts = Kept(), SelectedFrames(spec), SelectedFrames(spec)
    read(tiny(spec=spec), prompt(7), kept, whole)
    read(tiny(spec=spec), prompt(7), parts, rows_per_chunk=9)
    _, _, attended = kept.layers[1]
    selected = attended.result.selected_blocks[0, kept.vision].tolist()
    for frame in range(6):
        tokens = range(frame * FRAME, (frame + 1) * FRAME)
        rows = range((frame + 1) * FRAME, 28)
        for head in (0, 1):
            held = [
                sum(token // free_blocks(row, spec)[1] in selected[row][head] for token in tokens)
                for row in rows
            ]
            found = whole.frequency()[1, head, frame]
            assert found == pytest.approx(sum(held) / FRAME / len(rows))
            assert parts.frequency()[1, head, frame] == pytest.approx(float(found))
        odds = []
        for row in rows:
            before, size = free_blocks(row, spec)
            free = min(1, (spec.num_selected_blocks - 1) / max(len(before), 1))
            odds += [free if token // size in before else 1 for token in tokens]
        assert whole.by_chance()[frame] == pytest.approx(sum(odds) / len(odds))
    assert whole.frequency()[..., 6].isnan().all()


def ranked(q, k, kept, spec, row, place, head, held):
    """The four shares of a vision row (or the three of a text row) of one KV head."""
    before, size = free_blocks(row, spec)
    stream = k[kept.vision][:, head]
    picks, group = spec.num_selected_blocks - 1, q.shape[1] // k.shape[1]
    means = stream[: len(before) * size].unflatten(0, (-1, size)).mean(1)
    alone, mass = [], 0
    for g in range(group):
        query = q[place, head * group + g] / q.shape[-1] ** 0.5
        alone.append(held((means @ query).topk(picks).indices.tolist()))
        given = (stream[: row + 1] @ query).softmax(-1)
        mass = mass + given[: len(before) * size].unflatten(0, (-1, size)).sum(1)
    best = held(mass.topk(picks).indices.tolist())
    return {
        "chance": picks / len(before),
        "compressed": sum(alone) / group,
        "attention": best,
    }


@pytest.mark.parametrize("spec", [SPEC, FIXED])
@pytest.mark.parametrize("rows_per_chunk", [0, 11])
def test_recall_is_what_loops_find(monkeypatch, spec, rows_per_chunk):
    monkeypatch.setattr(selection_module, "SCORES_PER_CHUNK", 800)
    frames = (1, 2)
    recorder, kept = EvidenceRecall({"late": [6], "seen": frames}, spec=spec), Kept()
    read(tiny(spec=spec), prompt(7), kept)
    read(tiny(spec=spec), prompt(7), recorder, rows_per_chunk=rows_per_chunk)
    q, k, attended = kept.layers[0]
    evidence = range(frames[0] * FRAME, (frames[1] + 1) * FRAME)
    size = free_blocks(0, spec)[1]

    def held(blocks):
        return sum(token // size in blocks for token in evidence) / len(evidence)

    places, rows = kept.vision.nonzero()[:, 0].tolist(), []
    for row, place in enumerate(places):
        before, _ = free_blocks(row, spec)
        if evidence[-1] // size not in before or len(before) < spec.num_selected_blocks:
            continue
        for head in (0, 1):
            selected = attended.result.selected_blocks[0, place, head].tolist()
            found = ranked(q, k, kept, spec, row, place, head, held)
            rows.append(found | {"selected": held(selected)})
    assert len(rows) > 10
    recall = recorder.recall("seen")[0]
    for name, share in recall.video.items():
        assert share == pytest.approx(sum(one[name] for one in rows) / len(rows), abs=1e-6)
    assert recorder.recall("late")[0].video is None
    last = places[-1]  # text rows see all blocks that are complete
    text = [
        ranked(q, k, kept, spec, len(places) - 1 + (spec is SPEC) * 1, place, head, held)
        for place in range(last + 1, len(q))
        for head in (0, 1)
    ]
    if spec is SPEC:  # all its blocks are complete; ranked() takes the row after the last
        for name, share in recall.text.items():
            assert share == pytest.approx(sum(one[name] for one in text) / len(text), abs=1e-6)


def test_all_evidence_is_recalled_where_attention_itself_ranks_it_first():
    """Keys of the evidence alike, and every query like them."""
    recorder = EvidenceRecall({"seen": [1]}, spec=SPEC)

    class Tokens:
        has_vision, num_tokens, is_last = True, 24, True
        vision_mask = torch.ones(1, 24, dtype=torch.bool)

        @staticmethod
        def frame_sizes():
            return [4] * 6

    recorder.begin_step(Tokens())
    k = torch.randn(1, 24, 2, 8, generator=torch.Generator().manual_seed(0))
    k[:, 4:8] = 3.0
    selected = torch.tensor([0, 4, 5]).expand(1, 24, 2, 3).int()
    recorder.record(0, torch.ones(1, 24, 4, 8), k, result_of(selected))
    recall = recorder.recall("seen")[0].video
    assert recall["attention"] == recall["compressed"] == 1
    assert recall["selected"] == 0
    assert 0 < recall["chance"] < 1


def result_of(selected):
    from videonsa.models.methods import Attended
    from videonsa.ops.spec import NSAResult

    return Attended(selected, result=NSAResult(*[selected] * 8), spec=SPEC)


def test_blocks_over_the_whole_sequence_are_refused():
    with pytest.raises(UsageError, match="paper NSA"):
        SelectedFrames(NSASpec.released())
