"""Samples that are found, printed and put on a page, from ones made by hand."""

from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from videonsa.evals.field.frame_pictures import Pictures, spread
from videonsa.evals.field.sample_line import LineMessage, LinePart, LineVision, SampleLine
from videonsa.evals.field.sample_log import sample_log
from videonsa.evals.field.samples_page import samples_page
from videonsa.evals.field.scoring.line_scores import LineScore
from videonsa.evals.field.shown import (
    ShownFrames,
    ShownMessage,
    ShownPart,
    ShownSample,
    Wanted,
    sample_text,
    seconds_text,
)
from videonsa.evals.field.shown_run import read_shown_run

RIGHT = ShownSample(
    key="tomato/3",
    task="tomato",
    messages=(
        ShownMessage(role="system", parts=(ShownPart(text="Be brief."),)),
        ShownMessage(
            role="user",
            parts=(ShownPart(kind="video", text="a.mp4"), ShownPart(text="Which?\nA. Red Car")),
        ),
    ),
    frames=(ShownFrames(source="a.mp4", seconds=(0.0, 0.5)),),
    truth="A",
    answer="(A)",
    scores=(
        LineScore(scoring="paper", value=1.0, parse="A"),
        LineScore(scoring="lmms-0.7.3", value=1.0, parse="A"),
    ),
    facts={"tokens": "12"},
)
PAPER, NOW = RIGHT.scores
WRONG = replace(RIGHT, key="tomato/4", scores=(replace(PAPER, value=0.0), replace(NOW, value=0.0)))
PART = replace(RIGHT, key="vsibench/3", task="vsibench", scores=(replace(PAPER, value=0.4),))
DIFFERS = replace(RIGHT, key="tomato/5", scores=(PAPER, replace(NOW, value=0.0, parse=None)))
FAILED = replace(RIGHT, key="tomato/6", answer=None, failure="b.mp4: no frames", scores=())
ALL = (RIGHT, WRONG, PART, DIFFERS, FAILED)


def found(**wanted):
    return [sample for sample in ALL if Wanted(**wanted).takes(sample)]


@pytest.mark.parametrize(
    ("wanted", "samples"),
    [
        ({}, list(ALL)),
        ({"key": "3"}, [RIGHT, PART]),
        ({"key": "tomato/3"}, [RIGHT]),
        ({"task": "vsibench"}, [PART]),
        ({"failed": True}, [FAILED]),
        ({"wrong": True}, [WRONG, PART, DIFFERS]),
        ({"disagree": True}, [DIFFERS]),
        ({"failed": True, "disagree": True}, [DIFFERS, FAILED]),
        ({"text": "red car"}, list(ALL)),
        ({"text": "NO FRAMES"}, [FAILED]),
        ({"text": "red car", "wrong": True, "task": "tomato"}, [WRONG, DIFFERS]),
    ],
)
def test_samples_are_found_by_what_is_stated(wanted, samples):
    assert found(**wanted) == samples


def test_a_failed_sample_is_not_a_wrong_one():
    verdicts = [sample.verdict for sample in ALL]
    assert verdicts == ["right", "wrong", "in part", "scorings differ", "failed"]
    assert replace(RIGHT, scores=()).verdict == "not scored"


def test_all_of_a_sample_is_printed():
    assert sample_text(DIFFERS).splitlines() == [
        "== tomato/5: scorings differ",
        "system     Be brief.",
        "user       <video a.mp4>",
        "           Which?",
        "           A. Red Car",
        "frames     a.mp4: 2 frames at 0, 0.5 s",
        "answer     (A)",
        "truth      A",
        "score      1 by paper, parsed 'A'",
        "score      0 by lmms-0.7.3, nothing was parsed",
        "tokens     12",
    ]
    assert "failed     b.mp4: no frames" in sample_text(FAILED)
    assert "answer     (empty)" in sample_text(replace(RIGHT, answer=""))


def test_many_frames_are_told_by_the_first_and_the_last():
    assert seconds_text([i / 2 for i in range(256)]) == (
        "256 frames at 0, 0.5, 1, 1.5, ..., 127, 127.5 s"
    )
    assert spread(range(101), 3) == [0, 50, 100] and spread([1, 2], 6) == [1, 2]


def test_a_line_of_the_log_is_shown_whole(tmp_path):
    seen = LineVision(
        **{"source": "a.mp4", "kind": "video", "seconds": (8.0, 8.5), "timestamps": (0.0, 0.5)},
        **{"grid": (1, 6, 8), "height": 84, "width": 112, "tokens": 12, "read_tokens": 6},
    )
    parts = (LinePart(kind="video", text="a.mp4", start=8.0), LinePart(kind="text", text="Which?"))
    made = SampleLine(
        **{"task": "tomato", "split": "test", "doc_id": 3, "method": "nsa", "answer": "A"},
        **{"messages": (LineMessage(role="user", parts=parts),), "vision": (seen,)},
        **{"generation": {"max_new_tokens": 16}, "doc": {"answer": 0, "kind": "count"}},
        **{"method_parameters": {"block_size": 64}, "density": 0.25, "prompt_sha256": "3fa9"},
        **{"prompt_tokens": 2034, "video_tokens": 6, "cached_tokens": 1000, "notes": ("a note",)},
        **{"finish": "stop", "new_tokens": 2, "seconds": 1.5},
    )
    with sample_log(tmp_path) as journal:
        journal.append(made)
    (sample,) = read_shown_run(tmp_path).samples
    assert Wanted(key="tomato/3").takes(sample)
    assert sample_text(sample).splitlines() == [
        "== tomato/test/3: not scored",
        "user       <video a.mp4 from 8 s to its end>",
        "           Which?",
        "frames     a.mp4: 2 frames at 8, 8.5 s",
        "answer     A",
        "truth      A (option 0)",
        "vision     a.mp4: 112x84, grid 1 x 6 x 8, 12 tokens, of which 6 are read, told to the "
        "model as 0 to 0.5 s",
        "tokens     6 of images and videos in a prompt of 2,034, 1,000 of them read for an earlier "
        "question",
        "prompt ids 3fa9",
        "method     nsa, block_size 64, 0.25 of dense attention",
        "generation max_new_tokens 16",
        "finish     stop after 2 tokens",
        "document   answer 0, kind count",
        "notes      a note",
        "seconds    1.50",
    ]


class Elements(HTMLParser):
    """Collects elements, and what refers to other files."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.references: list[str | None] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "action")]


def test_text_of_tasks_and_models_stays_text_on_the_page():
    nasty = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{samples}}\" x='"
    part = ShownPart(text=nasty)
    sample = replace(
        RIGHT,
        key=nasty,
        task=nasty,
        messages=(ShownMessage(role=nasty, parts=(part, replace(part, kind=nasty))),),
        frames=(ShownFrames(source=nasty, seconds=(1.0,)),),
        answer=nasty,
        scores=(replace(PAPER, parse=nasty, scoring=nasty),),
        facts={nasty: nasty},
    )
    elements = Elements(samples_page([sample], title=nasty, notes=[nasty]))
    assert elements.seen.count("script") == 1 and elements.seen.count("article") == 1
    assert "img" not in elements.seen and elements.references == ["data:,"]


def test_pictures_are_of_the_videos_that_are_there_each_once_and_bounded(tmp_path):
    Image.fromarray(np.full((60, 80, 3), 200, np.uint8)).save(tmp_path / "a.png")
    there = ShownFrames(source="/elsewhere/a.png", seconds=(0.0,))
    gone = ShownFrames(source="/elsewhere/gone.mp4", seconds=(0.0, 1.0))
    samples = [replace(RIGHT, frames=(there, gone)), replace(WRONG, frames=(there,))]
    pictures = Pictures(folder=tmp_path)
    pictures.add(samples)
    assert pictures.sentence() == (
        "1 of 3 frames are shown as pictures; of a video there is none (/elsewhere/gone.mp4: it is "
        "not there)."
    )
    text = samples_page(samples, title="t", pictures=pictures)
    assert text.count("data:image/jpeg") == 1 and text.count('role="img"') == 2
    none = Pictures(folder=tmp_path, most=0)
    none.add(samples)
    assert none.count == 0 and "the most that a page holds (0)" in none.sentence()
