import torch

from videonsa.models.methods import Attended
from videonsa.models.recorder.gates import GateMeans


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
