"""Clips of moving shapes as a source: the same each time, several questions in any order."""

import pytest
import torch
from conftest import TOKENIZER
from small_manifest import write_manifest
from transformers import AutoTokenizer

from videonsa.data.build import open_sources
from videonsa.data.dataset import VideoDataset
from videonsa.data.scripts import info_of_script, script_info, script_of
from videonsa.errors import UsageError
from videonsa.rendered.clips import Clip


def records(text):
    (source,), _ = open_sources([text])
    return [entry.found for entry in source.entries()]


def clip_of(record):
    return script_of(record.videos[0].script)


def questions(record):
    return [turn.parts[-1].text for turn in record.turns if turn.role == "user"]


def test_clips_follow_from_their_number_alone():
    three, one = records("clips:count=3,patches=8"), records("clips:count=1,patches=8,first=2")
    assert three[2].turns == one[0].turns
    assert len({clip_of(record).seed for record in three}) == 3
    assert all(0 <= clip_of(record).phase < 0.5 for record in three)


def test_moving_clips_are_asked_all_kinds_and_places_stills_what_one_frame_shows():
    for record in records("clips:count=5,patches=8"):
        asked = questions(record)
        assert sum("direction" in text or "Which way" in text for text in asked) == 2
        assert sum(text.startswith("Where was") for text in asked) == 2
        for kind in ("colour", "shape", "How many", " flashed?"):
            assert sum(kind in text for text in asked) == 1
        assert sum("quarter" in text or text.startswith("When") for text in asked) == 1
    for record in records("clips:count=5,patches=1"):
        asked = questions(record)
        assert not any("move" in text for text in asked)
        for kind in ("colour", "shape", "Where"):
            assert sum(kind in text for text in asked) == 2


def test_every_question_also_stands_first():
    first = {questions(record)[0].split()[0] for record in records("clips:count=60,patches=8")}
    assert {"Which", "Where", "How", "What"} <= first


def test_a_sample_has_the_frames_of_its_clip(tmp_path):
    found = records("clips:count=2,patches=8") + records("clips:count=1,patches=1")
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    dataset = VideoDataset(
        write_manifest(tmp_path / "manifest.parquet", found, tokenizer), tokenizer=tokenizer
    )
    for index, record in enumerate(found):
        sample, clip = dataset[index], clip_of(record)
        assert torch.equal(sample.videos[0], clip.render())
        assert sample.videos[0].shape == (2 * clip.patches, 3, 112, 112)
        assert sample.video_times[0] == tuple(float(second) for second in range(clip.patches))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("clips:count=2", "no patches"),
        ("clips:count=2,patches=4", "patches=4: want 1, a still, or 8 and more"),
        ("clips:count=0,patches=8", "want at least 1 clip"),
        (f"clips:count={10**14},patches=8", "at most 10000000"),
        (f"clips:count=1,patches=8,first={10**14}", "from 0 on, of the 1099511627776"),
        (f"clips:count=1,patches=8,first={10**20}", "cannot be read"),
        (f"clips:count=1,patches={'9' * 5000}", "cannot be read"),
        (f"clips:count=1,patches={10**9}", "at most 65536"),
        ("clips:count=2,patches=8,size=9", "'size=9' cannot be read"),
    ],
)
def test_clips_that_cannot_be_made_are_refused(text, problem):
    with pytest.raises(UsageError, match=problem):
        open_sources([text])


def test_what_is_no_script_is_refused():
    with pytest.raises(UsageError, match="not a script of the suite nor a clip"):
        script_of('{"clip": 3}')
    assert script_of('{"clip":{"seed":3,"patches":1,"phase":0.25}}') == Clip(
        seed=3, patches=1, phase=0.25
    )


@pytest.mark.parametrize(
    "name",
    [
        "clips:count=2,patches=8",
        "synthetic:count=2,frames=128",
        "synthetic:suite=2,count=2,frames=64,kinds=any",
    ],
)
def test_what_probing_says_is_known_without_the_video(name):
    for entry in open_sources([name]).sources[0].entries():
        (video,) = entry.found.videos
        assert info_of_script(video.script) == script_info(script_of(video.script))
