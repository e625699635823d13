import pytest
import torch
from tiny_models import VIDEO, left_padded, prompt, tiny

from videonsa.errors import UsageError
from videonsa.models.methods import Attended
from videonsa.models.recorder.gates import GateMeans
from videonsa.models.recorder.protocol import Recorder, Recorders
from videonsa.models.recorder.unions import SelectionUnions


def test_gates_are_means_over_chosen_tokens_and_heads():
    recorder, gates = GateMeans(), torch.rand(1, 6, 4, 3)
    q = k = torch.zeros(1, 6, 4, 8)
    recorder.record(0, q, k, Attended(q, gates))  # nobody said which tokens count
    recorder.rows = torch.tensor([1, 4])
    for part in (gates, gates / 2):
        recorder.record(0, q, k, Attended(q, part))
    recorder.record(1, q, k, Attended(q, torch.full_like(gates, 0.5)))
    recorder.record(2, q, k, Attended(q))  # dense: it has no gates
    found = recorder.read()
    expected = (torch.stack([gates, gates / 2])[:, 0, [1, 4]]).mean((0, 1, 2))
    torch.testing.assert_close(torch.tensor(list(found[0].values())), expected)
    assert list(found[0]) == ["compressed", "selected", "window"]
    assert found[1]["window"] == 0.5
    assert list(found) == [0, 1]
    assert recorder.read() == {}


def test_several_recorders_take_packed_samples_if_each_does():
    class Packed(GateMeans):
        wants_branches = True

    both = Recorders(GateMeans(), Packed())
    assert (both.takes_packed, both.wants_branches) == (True, True)
    assert not Recorders(GateMeans(), Recorder()).takes_packed


@pytest.mark.parametrize("recorder", [GateMeans, SelectionUnions])
def test_a_batch_is_refused(recorder):
    with pytest.raises(UsageError, match="a recorder with a batch of 2"):
        tiny()(**left_padded([prompt(2), prompt(3)]), recorder=recorder())


def test_gates_that_the_backward_pass_repeats_leave_the_means_as_they_are():
    inputs, found = prompt(4), []
    for checkpointing in (False, True):
        model, recorder, recorded = tiny().train(), GateMeans(), []
        recorder.rows = (inputs["input_ids"][0] == VIDEO).nonzero()[:, 0]
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        watching = Recorders(recorder, Counted(recorded))
        model(**inputs, labels=inputs["input_ids"], recorder=watching).loss.backward()
        assert recorded == ([0, 1, 1, 0] if checkpointing else [0, 1])
        found.append(recorder.read())
    assert found[0].keys() == found[1].keys() == {0, 1}
    for layer in (0, 1):
        assert found[1][layer] == pytest.approx(found[0][layer], rel=1e-6)


class Counted(Recorder):
    def __init__(self, layers):
        self.layers = layers

    def record(self, layer, q, k, attended):
        self.layers.append(layer)
