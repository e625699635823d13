"""Gate statistics in chunks equal those of all gates at once."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from videonsa.models.methods import Attended
from videonsa.models.recorder.gate_statistics import BINS, GateStatistics


def told(recorder, gates, is_vision):
    recorder.begin_step(SimpleNamespace(vision_mask=is_vision[None], num_tokens=len(gates)))
    recorder.record(0, gates, gates, Attended(gates, gates[None]))


def test_chunks_give_means_quartiles_and_similarity_of_vision_tokens():
    torch.manual_seed(0)
    gates, is_vision = torch.rand(101, 4, 3), torch.rand(101) < 0.7
    gates[:, 1] = gates[:, 0]
    chunked, rest = GateStatistics(), GateStatistics()
    told(chunked, gates[:40], is_vision[:40])
    told(rest, gates[40:], is_vision)  # the mask is of all keys so far
    chunked.add(rest)
    own = gates[is_vision].double()
    torch.testing.assert_close(chunked.means()[0], own.mean(0))
    exact = np.quantile(own.numpy(), [0.25, 0.5, 0.75], axis=0, method="inverted_cdf")
    np.testing.assert_allclose(
        chunked.quartiles()[0].numpy(), np.moveaxis(exact, 0, -1), atol=0.5 / BINS + 1e-9
    )
    cosine, correlation = chunked.similarity()
    pairs = [(a, b) for a in range(4) for b in range(a)]
    wanted = np.mean([np.corrcoef(own[:, a, 2], own[:, b, 2])[0, 1] for a, b in pairs])
    assert float(correlation[0, 2]) == pytest.approx(wanted)
    angles = [torch.cosine_similarity(own[:, a, 2], own[:, b, 2], dim=0) for a, b in pairs]
    assert float(cosine[0, 2]) == pytest.approx(float(sum(angles)) / len(pairs))


def test_gates_that_do_not_vary_have_no_correlation():
    recorder = GateStatistics()
    told(recorder, torch.full((5, 2, 3), 0.5), torch.ones(5, dtype=torch.bool))
    cosine, correlation = recorder.similarity()
    assert cosine.tolist() == [[1.0] * 3]
    assert bool(correlation.isnan().all())
