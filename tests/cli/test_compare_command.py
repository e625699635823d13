import json

import pytest
from PIL import Image

from videonsa.cli.compare import split_methods
from videonsa.cli.main import main


@pytest.mark.parametrize(
    ("text", "methods"),
    [
        ("dense,nsa", ["dense", "nsa"]),
        ("nsa:window_size=8,num_selected_blocks=1,dense", None),
        ("a:x=1,b:y=2,z=3+nsa:w=4,v=5,c", ["a:x=1", "b:y=2,z=3+nsa:w=4,v=5", "c"]),
    ],
)
def test_commas_part_methods_and_options(text, methods):
    expected = methods or ["nsa:window_size=8,num_selected_blocks=1", "dense"]
    assert split_methods(text) == expected


def test_a_table_a_file_and_a_picture(tiny_folder, clip_path, tmp_path, capsys):
    out, picture = tmp_path / "new/compared.json", tmp_path / "patterns.png"
    methods = "dense,nsa:window_size=4,num_selected_blocks=1"
    words = ["compare", str(clip_path), "What flashed?", "--model", str(tiny_folder)]
    words += ["--methods", methods, "--repeats", "1", "--device", "cpu", "--max-new-tokens", "2"]
    assert main([*words, "--out", str(out), "--picture", str(picture)]) == 0
    head, dense, nsa = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "method" and "48 of 48" in dense and "100 %" in dense
    assert nsa.startswith("nsa:window_size=4,num_selected_blocks=1  ")
    result = json.loads(out.read_text())
    assert result["layer"] == 1 and result["methods"][1]["options"]["window_size"] == 4
    with Image.open(picture) as image:
        assert image.format == "PNG"


def test_what_cannot_be_compared_is_told_before_anything_is_loaded(clip_path, tmp_path, capsys):
    wrong = [
        (["--methods", "dense,none"], "method='none'"),
        (["--out", str(tmp_path)], "ends with .json"),
        (["--picture", str(tmp_path / "x.jpg")], "ends with .png"),
    ]
    for options, message in wrong:
        words = ["compare", str(clip_path), "What flashed?", "--model", "nowhere", *options]
        assert main(words) == 2
        assert message in capsys.readouterr().err


def test_a_layer_that_is_not_there_is_refused(tiny_folder, clip_path, tmp_path, capsys):
    words = ["compare", str(clip_path), "What?", "--model", str(tiny_folder), "--device", "cpu"]
    picture = ["--picture", str(tmp_path / "x.png")]
    assert main([*words, "--layer", "2", *picture]) == 2
    assert main([*words, "--layer", "0"]) == 2
    assert capsys.readouterr().err.count("a layer from 0 to 1") == 2
