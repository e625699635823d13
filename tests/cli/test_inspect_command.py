"""`videonsa inspect`, with the embedded model."""

import json

import pytest
from PIL import Image

import videonsa
from videonsa.cli.main import main
from videonsa.rendered.clips import make_scene, scene_seed, write_video


def test_inspect_answers_as_ask_does_and_writes_page_and_data(tmp_path, capsys):
    clip = tmp_path / "clip.mp4"
    write_video(make_scene(scene_seed("test", 3), duration=8.0, num_objects=2), clip)
    plain = videonsa.load("embedded").ask(str(clip), "What flashed?").text
    page, data = tmp_path / "page.html", tmp_path / "page.json"
    command = ["inspect", str(clip), "What flashed?", "--evidence", "2-2.5"]
    assert main([*command, "--out", str(page), "--data", str(data)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{plain}\n"
    assert "looked     The evidence (2.0 s to 2.5 s) got" in err
    content = json.loads(data.read_text())
    assert content["answer"] == plain and content["format"] == "videonsa.inspection"
    assert len(content["frames"]) == len(content["thumbnails"]) == 8
    assert len(content["attention"]) == len(content["gates"]) == 5
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "page.png"], "want the name of a file that ends with .html"),
        (["--evidence", "5-2"], "want seconds as START-END"),
    ],
)
def test_what_cannot_be_is_one_line(options, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (56, 56)).save("clip.png")
    assert main(["inspect", "clip.png", "What?", *options]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and said in err
