"""`videonsa bench session` on a CPU: every stage is measured, bad options refused in one line."""

import json

import pytest

from videonsa.cli.main import main

TINY = ["bench", "session", "--model", "tiny", "--device", "cpu", "--frame", "56x56"]
SMALL = [*TINY, "--tokens", "16", "--new-tokens", "3", "--repeats", "1"]


def test_all_stages_of_a_file_and_of_made_up_frames_are_written(tmp_path, clip_path, capsys):
    path = tmp_path / "session.json"
    where = ["--folder", str(tmp_path), "--out", str(path)]
    assert main([*SMALL, "--video", str(clip_path), *where]) == 0
    videos = json.loads(path.read_text())["videos"]
    assert [video["video"] for video in videos] == ["clip.mp4", "16 tokens of made-up frames"]
    for video in videos:
        assert all(stage["error"] is None for stage in video["stages"])
    text = capsys.readouterr().out
    assert all(stage["name"] in text for stage in videos[0]["stages"])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--video", "no.mp4", "no.mp4: no such file"),
        ("--frame", "56x84", "--frame 56x84: want a square"),
        ("--folder", "/no/such/folder", "--folder /no/such/folder: no such folder"),
        ("--tokens", "none", "nothing is left to measure"),
        ("--new-tokens", "1", "--new-tokens 1: want at least 2"),
    ],
)
def test_bad_options_are_one_line(option, value, message, capsys):
    assert main([*SMALL, "--video", "none", option, value]) == 2
    assert message in capsys.readouterr().err
