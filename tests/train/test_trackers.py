import pytest
from transformers import TrainerCallback

from videonsa.errors import UsageError
from videonsa.train import trackers
from videonsa.train.trackers import tracker_callbacks


class Tracker(TrainerCallback):
    """Begins as transformers' callbacks of trackers do."""

    problem = None

    def setup(self, args, state, model):
        if self.problem is not None:
            raise self.problem


@pytest.fixture
def tracker(monkeypatch):
    kind = type("Tracker", (Tracker,), {})
    monkeypatch.setattr(trackers, "get_reporting_integration_callbacks", lambda names: [kind])
    return kind


def test_a_tracker_that_does_not_begin_is_one_line(tracker):
    tracker.problem = ConnectionError("no\nnetwork")
    (callback,) = tracker_callbacks(["wandb"])
    with pytest.raises(UsageError, match=r"wandb does not begin \(no network\): .*WANDB_MODE=off"):
        callback.setup(None, None, None)
    tracker.__init__ = lambda self: 1 / 0
    with pytest.raises(UsageError, match=r"trackio does not begin \(division by zero\)"):
        tracker_callbacks(["trackio"])


def test_a_tracker_that_begins_is_that_of_transformers(tracker):
    (callback,) = tracker_callbacks(["wandb"])
    callback.setup(None, None, None)
    assert isinstance(callback, tracker)
    assert tracker_callbacks([]) == []
