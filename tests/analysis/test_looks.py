"""`selection` and `sinks` of the embedded model: what they hold, read again, and drawn."""

import pytest

from videonsa.analysis.asked import AskedQuestion, AskedSuite
from videonsa.analysis.look import LIGHT, picture
from videonsa.analysis.registry import finding_from
from videonsa.analysis.selection import Selection, SelectionOptions, frames_of
from videonsa.analysis.sinks import SinkOptions, Sinks
from videonsa.errors import UsageError
from videonsa.inference.engine import load

CLIPS = AskedSuite(suite="clips", videos_per_task=2, tokens=192)


@pytest.fixture(scope="module")
def qa():
    return load("embedded", device="cpu")


def test_selection_lies_between_agreement_and_chance_and_has_recall_of_the_flash(qa):
    found = Selection.measure(qa, CLIPS, SelectionOptions(), progress=lambda _: None)
    assert len(found.layers) == 5
    assert found.least < found.layers[0].union.value < found.chance
    flash = next(one for one in found.recall if one.kind == "flash")
    assert flash.above_chance.value == pytest.approx(
        flash.video["selected"].value - flash.video["chance"].value
    )
    assert finding_from(found.to_json()) == found
    assert picture(found, LIGHT).startswith(b"\x89PNG")


def test_sinks_have_all_branches_beside_dense_attention_and_a_twin(qa):
    options = SinkOptions(queries=64, twin="embedded")
    found = Sinks.measure(qa, CLIPS, options, progress=lambda _: None)
    by = {(one.arm, one.branch): one for one in found.branches if one.reading == "mean"}
    names = ("compressed", "selected", "window", "combined")
    assert [*by] == [*(("nsa", name) for name in names), ("dense", "dense"), ("twin", "dense")]
    assert by["dense", "dense"].layers == by["twin", "dense"].layers  # the same weights
    assert by["nsa", "window"].text_share is None
    assert any("one of 3 vision tokens" in note for note in found.facts.notes)
    assert finding_from(found.to_json()) == found
    assert picture(found, LIGHT).startswith(b"\x89PNG")


def test_evidence_is_in_every_frame_that_it_touches():
    question = AskedQuestion("needle", "?", evidence=((1.5, 2.0), (5.0, 6.5)))
    assert frames_of(question, 9, seconds=1.0) == [1, 5, 6]


def test_a_model_without_selection_is_refused():
    dense = load("embedded", device="cpu", method="dense")
    with pytest.raises(UsageError, match="want nsa"):
        Selection.measure(dense, CLIPS, SelectionOptions(), progress=lambda _: None)
