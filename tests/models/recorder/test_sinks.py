"""What each key received, against plain loops, and which keys are sinks."""

import pytest
import torch
from tiny_models import SPEC, prompt, tiny

from videonsa.errors import UsageError
from videonsa.models.cache import VideoNSACache
from videonsa.models.recorder import sinks as sinks_module
from videonsa.models.recorder.protocol import Recorder, Recorders
from videonsa.models.recorder.sinks import Received, SinkRecorder
from videonsa.ops.spec import NSASpec

FIXED = NSASpec(block_size=5, num_selected_blocks=2, window_size=6)


class Kept(Recorder):
    """All tensors of a step of one chunk."""

    wants_branches = True

    def __init__(self):
        self.layers = []

    def begin_step(self, tokens):
        self.vision = tokens.vision_mask[0]

    def record(self, layer, q, k, attended):
        self.layers.append((q[0], k[0], attended))


def read(model, inputs, *recorders, **options):
    with torch.no_grad():
        return model(
            **inputs, past_key_values=VideoNSACache(), recorder=Recorders(*recorders), **options
        )


def softmax_over(scores):
    most = max(scores.values(), default=0)
    parts = {key: torch.exp(score - most) for key, score in scores.items()}
    return {key: part / sum(parts.values()) for key, part in parts.items()}


def by_loops(layer, vision, spec, head, frame):
    """For each branch and key: what each query gave it, head by head, as {key: {row: [G]}}."""
    q, k, attended = layer
    stream = vision.nonzero()[:, 0].tolist()
    size = frame if spec.block_size == "frame" else spec.block_size
    group = q.shape[1] // k.shape[1]
    given = {name: {} for name in ("compressed", "selected", "window", "combined")}
    for row, place in enumerate(stream):
        selected = attended.result.selected_blocks[0, place, head].tolist()
        for g in range(group):
            query = q[place, head * group + g] * q.shape[-1] ** -0.5
            keys = k[stream, head]
            complete = range((row + 1) // size)
            cmp = softmax_over({c: query @ keys[c * size :][:size].mean(0) for c in complete})
            slc = softmax_over(
                {j: query @ keys[j] for j in range(row + 1) if j // size in selected}
            )
            near = range(max(0, row + 1 - spec.window_size), row + 1)
            win = softmax_over({j: query @ keys[j] for j in near})
            gates = attended.gates[0, place, head * group + g]
            both = {
                j: gates[0] * cmp.get(j // size, 0) / size
                + gates[1] * slc.get(j, 0)
                + gates[2] * win.get(j, 0)
                for j in range(row + 1)
            }
            for name, found in zip(given, (cmp, slc, win, both), strict=True):
                for j, weight in found.items():
                    given[name].setdefault(j, {}).setdefault(row, []).append(weight)
    return given


@pytest.mark.parametrize("spec", [SPEC, FIXED])
def test_what_keys_receive_is_what_loops_sum_up(monkeypatch, spec):
    monkeypatch.setattr(sinks_module, "SCORES_PER_CHUNK", 700)  # a few rows at a time
    model, inputs, kept, recorder = tiny(spec=spec), prompt(6), Kept(), SinkRecorder()
    read(model, inputs, kept, recorder)
    for layer, branches in zip(kept.layers, recorder.received(), strict=True):
        given = by_loops(layer, kept.vision, spec, 1, 4)
        for name, received in branches.items():
            for key, rows in given[name].items():
                total = sum(torch.stack(heads).mean() for heads in rows.values())
                assert received.total[1, key] == pytest.approx(float(total), abs=1e-5)
                assert received.queries[1, key] == len(rows)
                others = [sum(x) for row, x in rows.items() if row != key or name == "compressed"]
                assert received.largest[1, key] == pytest.approx(
                    float(max(others, default=0)), abs=1e-5
                )


def test_chunks_of_a_prompt_add_up_to_one_go():
    found = []
    for rows in (0, 10):
        recorder = SinkRecorder()
        read(tiny(spec=FIXED), prompt(6), recorder, rows_per_chunk=rows)
        found.append(recorder.received()[1])
    for name, whole in found[0].items():
        torch.testing.assert_close(found[1][name].total, whole.total, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found[1][name].norms, whole.norms)
        assert torch.equal(found[1][name].queries, whole.queries)


def test_weights_of_dense_attention_are_softmax_and_those_of_nsa_sum_up_to_the_gates():
    model, inputs, kept, recorder = tiny(), prompt(6), Kept(), SinkRecorder()
    read(model, inputs, kept, recorder)
    gates = kept.layers[0][2].gates[0, kept.vision]  # rows of the first frame see no block
    combined = recorder.received()[0]["combined"].total.sum()
    expected = gates.sum() - gates[:3, :, 0].sum()
    assert combined * 2 == pytest.approx(float(expected), rel=1e-5)  # G = 2: means
    dense, kept = SinkRecorder(), Kept()
    read(model, inputs, kept, dense, method="dense")
    received = dense.received()[0]["dense"]
    q, k, _ = kept.layers[0]
    scores = torch.einsum("thd,shd->hts", q, k.repeat_interleave(2, 1)) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(torch.ones(scores.shape[1:]).triu(1).bool(), -torch.inf)
    given = scores.softmax(-1)[:, kept.vision].unflatten(0, (2, 2)).mean(1).sum(1)
    torch.testing.assert_close(received.total.float(), given)
    assert torch.equal(received.is_vision, kept.vision)


def test_one_of_so_many_queries_is_looked_at_and_all_keys():
    recorder = SinkRecorder(stride=4)
    read(tiny(), prompt(6), recorder, rows_per_chunk=7)
    window = recorder.received()[0]["window"]
    assert window.norms.shape == (2, 24)
    assert window.queries.sum() == 2 * sum(min(row + 1, 6) for row in range(0, 24, 4))


def test_outputs_are_the_same_to_the_bit():
    model, inputs = tiny(), prompt(3)
    plain, seen = (read(model, inputs, *some).logits for some in ((), (SinkRecorder(),)))
    assert torch.equal(plain, seen)


def test_a_sink_receives_much_and_has_a_short_value():
    size = (1, 40)
    norms = torch.linspace(9, 11, 40)[None].clone()
    norms[0, [3, 5]] = 0.5
    one = Received(is_vision=torch.ones(40, dtype=torch.bool), norms=norms)
    one.total = torch.full(size, 0.05 * 10, dtype=torch.float64)
    one.queries = torch.full(size, 10)
    one.total[0, [3, 7]] = 2.0  # key 7 has a long value, key 5 receives little
    one.largest = torch.zeros(size)
    assert one.sinks("mean")[0].nonzero()[:, 0].tolist() == [3]
    assert not one.sinks("largest").any()
    one.queries[0, 3] = 7
    assert not one.sinks("mean").any()


def test_values_of_every_length_leave_no_room_for_sinks():
    one = Received(is_vision=torch.ones(9, dtype=torch.bool), norms=torch.arange(9.0)[None])
    assert one.norm_limit() <= 0


def test_attention_over_the_whole_sequence_is_refused():
    with pytest.raises(UsageError, match="dense attention and paper NSA"):
        read(tiny(), prompt(6), SinkRecorder(), method="tri_shape:n_init=1,n_local=4,n_last=1")
