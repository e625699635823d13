"""`videonsa demo`, with the embedded model."""

import json
import os

import av
from PIL import Image

from videonsa.cli.main import main
from videonsa.rendered.clips import KINDS


def test_demo_answers_a_question_of_each_kind_and_leaves_clip_and_picture(tmp_path, capsys) -> None:
    folder = tmp_path / "new" / "folder"
    assert main(["demo", "--out", str(folder), "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert [question["kind"] for question in result["questions"]] == list(KINDS)
    assert result["right"] >= 5
    assert "48 frames of 112x112, 384 video tokens" in err
    with Image.open(result["picture"]) as picture:
        assert picture.width > 1000
    with av.open(result["clip"]) as clip:
        assert sum(1 for _ in clip.decode(video=0)) == 24 * 8
    assert sorted(os.listdir(folder)) == ["clip.mp4", "demo.png"]


def test_a_folder_that_cannot_be_made_is_one_line_and_status_2(tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(["demo", "--out", str(tmp_path / "file" / "folder")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "cannot write" in err and "name a folder that you may write to" in err


def test_a_folder_whose_name_looks_like_a_protocol_is_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--out", "pipe:0", "--model", "absent"]) == 2
    assert "model 'absent'" in capsys.readouterr().err
    assert os.listdir("pipe:0") == ["clip.mp4"]


def test_a_folder_in_the_place_of_the_clip_is_one_line(tmp_path, capsys):
    (tmp_path / "clip.mp4").mkdir()
    assert main(["demo", "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "clip.mp4: not a regular file" in err
    assert os.listdir(tmp_path) == ["clip.mp4"]
