import threading

import pytest

from videonsa.models.stored_cache.transfers import Transfers


def test_results_come_in_the_order_of_the_start(capsys):
    with Transfers[int]("copying", 10, progress=None) as transfers:
        for number in range(20):
            transfers.start(lambda done, number=number: done(1) or number)
        assert transfers.finish() == list(range(20))
    assert capsys.readouterr().err == "", "a bar on a terminal only"


def test_one_that_fails_stops_the_others_at_their_next_step():
    begun, steps, threads = threading.Event(), [], threading.enumerate()

    def endless(done):
        while True:
            steps.append(1)
            begun.set()
            done(1)

    def fail(done):
        begun.wait()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Transfers[None]("", 1, progress=False) as transfers:
        transfers.start(fail)
        transfers.start(endless)
        transfers.finish()
    assert steps
    assert threading.enumerate() == threads


def test_the_bar_counts_bytes_of_all(capsys, monkeypatch):
    monkeypatch.setattr("videonsa.models.stored_cache.transfers._PROGRESS_DELAY", 0)
    with Transfers[None]("saving", 3000, progress=True) as transfers:
        transfers.start(lambda done: done(1000))
        transfers.start(lambda done: done(2000))
        transfers.finish()
        shown = transfers._bar.n
    assert shown == 3000
    assert "saving" in capsys.readouterr().err
