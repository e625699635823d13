"""`videonsa demo`, with the embedded model."""

import json
import os

import av
from PIL import Image

from videonsa.cli.main import main
from videonsa.video.synthetic import KINDS


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
