"""What is told of one answer, and the page of it, from numbers made by hand."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from videonsa.analysis.inspect_bars import Bars
from videonsa.analysis.inspect_page import page, page_data
from videonsa.analysis.inspect_words import sentences
from videonsa.analysis.inspection import Inspection, Selection, ShownFrame, groups
from videonsa.errors import UsageError

EVEN = (0.2, 0.2, 0.2, 0.2)
MADE = Inspection(
    video="clip.mp4",
    question="What?",
    answer="this",
    model="m",
    method="nsa",
    parameters={"window_size": 16},
    size=(112, 112),
    num_sampled=8,
    prompt_tokens=20,
    answer_tokens=2,
    frames=tuple(ShownFrame(start=1.0 * i, end=i + 0.5, tokens=4) for i in range(4)),
    attention=((0.1, 0.1, 0.2, 0.0), (0.1, 0.1, 0.6, 0.0)),
    even=(EVEN, EVEN),
    selection=Selection(
        frequency=((0.5, 0.25, 0.0, 0.0), (0.0, 1.0, 1.0, 0.0)),
        uniform=((0.5, 0.5, 0.5, 0.0), (0.5, 0.5, 0.5, 0.0)),
        later_tokens=(12, 8, 4, 0),
    ),
    gates=(((0.5, 0.25, 1.0),) * 4, ((0.0, 0.0, 0.0),) * 4),
    thumbnails=("AAAA",) * 4,
    evidence=((2.2, 2.4),),
    notes=(),
    machine={"device": "cpu"},
    seconds=1.0,
)


class Elements(HTMLParser):
    """Collects elements, and what refers to other files."""

    VOID = frozenset({"meta", "link", "input", "br", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.references: list[str | None] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def data_of(text: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_attention_is_compared_within_the_video_and_selection_with_chance():
    bars = Bars.of(MADE)
    expected = [[1, 1, 2, 0], [0.5, 0.5, 3, 0]]
    np.testing.assert_allclose(bars.attention.times, expected)
    np.testing.assert_allclose(bars.attention.mean, [0.75, 0.75, 2.5, 0])
    # The last layer's selection is no part of the mean, and nobody can select the last frame.
    np.testing.assert_allclose(bars.selection.mean, [1, 0.5, 0, np.nan])


def test_a_bar_of_several_frames_weighs_them_by_their_later_tokens():
    bars = Bars.of(MADE, most=2)
    assert [list(part) for part in bars.frames] == [[0, 1], [2, 3]]
    np.testing.assert_allclose(bars.attention.times[0], [1, 1])
    seen = (0.5 * 12 + 0.25 * 8) / 20
    np.testing.assert_allclose(bars.selection.seen[0], [seen, 0])
    np.testing.assert_allclose(bars.gates[0], [[0.5, 0.25, 1.0]] * 2)


def test_sentences_name_what_stands_out_and_where_the_evidence_is():
    evidence, attention, share, selection, gates = sentences(MADE)
    assert "got 2.5 times its even share" in evidence
    assert "more than even in 2 of 2 layers: rank 1 of 4 frames" in evidence
    assert "what stands out in where the answer's tokens looked: 2.0 s (2.5 times)." in attention
    assert "3.0 times, in layer 1 at 2.0 s" in attention
    assert share.startswith("60% of the attention") and "80% would" in share
    assert "nothing stands out in what later vision tokens selected" in selection
    assert gates.startswith("Mean gates: compressed 0.50, selected 0.25, window 1.00")


def test_flat_attention_and_a_dense_model_say_so():
    flat = replace(MADE, attention=(EVEN, EVEN), selection=None, gates=None, evidence=())
    attention, _, none = sentences(flat)
    assert "nothing stands out in where the answer's tokens looked" in attention
    assert none == "The method nsa has no selection and no gates to show."
    assert page_data(flat)["gates"] is None and "selection" not in page_data(flat)["series"]


def test_a_selection_of_everything_has_no_choice():
    every = Selection(
        frequency=((1.0, 1.0, 1.0, 0.0),) * 2,
        uniform=((1.0, 1.0, 1.0, 0.0),) * 2,
        later_tokens=(12, 8, 4, 0),
    )
    told = " ".join(sentences(replace(MADE, selection=every)))
    assert "The selection had no choice" in told


def test_json_comes_back_and_another_version_is_refused(tmp_path):
    MADE.write(tmp_path / "made.json")
    assert Inspection.read(tmp_path / "made.json") == MADE
    with pytest.raises(UsageError, match=r"version 2: want 'videonsa\.inspection', version 1"):
        Inspection.from_json(MADE.to_json() | {"version": 2})
    with pytest.raises(UsageError, match="cannot be read"):
        Inspection.from_json(MADE.to_json() | {"frames": 3})


def test_text_of_users_and_models_stays_text():
    nasty = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{data}}"
    text = page(replace(MADE, question=nasty, answer=nasty, video=nasty, notes=(nasty,)))
    elements = Elements(text)
    assert elements.open == [] and elements.seen.count("script") == 2
    assert "img" not in elements.seen
    assert text.count('"bars":') == 1


def test_thumbnails_cannot_end_the_data():
    text = page(replace(MADE, thumbnails=("</script><!--&",) * 4))
    assert data_of(text)["bars"][0]["image"] == "</script><!--&"


def test_the_page_is_whole_and_needs_no_other_file():
    text = page(MADE)
    elements = Elements(text)
    assert elements.open == []
    assert elements.references == ["data:,"]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", text)
    assert "default-src 'none'" in text


def test_a_long_video_has_grouped_bars_that_keep_their_highest_frame():
    count = 1000
    attention = [0.9 / count] * count
    attention[617] *= 20
    long = replace(
        MADE,
        frames=tuple(ShownFrame(start=2.0 * i, end=2.0 * i + 1, tokens=64) for i in range(count)),
        attention=(tuple(attention),),
        even=((0.95 / count,) * count,),
        selection=None,
        gates=None,
        thumbnails=("AAAA",) * 96,
        evidence=(),
    )
    data = page_data(long)
    assert len(data["bars"]) == 96 and sum(bar["frames"] for bar in data["bars"]) == count
    place = next(i for i, part in enumerate(groups(count)) if 617 in part)
    peaks = data["series"]["attention"]["peaks"][0]
    assert peaks.index(max(peaks)) == place and max(peaks) > 15
    assert "1234.0 s (19.6 times)" in sentences(long)[0]
