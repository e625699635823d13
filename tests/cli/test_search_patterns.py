import json

from videonsa.cli.main import main
from videonsa.models.methods.head_patterns import HeadPatterns


def test_patterns_of_a_video_are_written_and_read_by_the_method(
    tiny_folder, clip_path, tmp_path, capsys
):
    path = tmp_path / "new" / "heads.json"
    model = ["--model", str(tiny_folder), "--device", "cpu"]
    searched = ["methods", "search", "minference", str(clip_path), *model, "--out", str(path)]
    assert main([*searched, "--first-row", "50", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = HeadPatterns.read(path)
    assert found.shape == (2, 4)
    assert sum(count for _, _, count in told["heads"]) == 8
    assert "clip.mp4 (8 frames, " in found.searched_on
    method = f"minference:patterns={path}"
    assert main(["ask", str(clip_path), "What?", *model, "--method", method]) == 0
    told = capsys.readouterr().err
    assert f"head patterns of {found.model}, searched on {found.searched_on}" in told


def test_what_cannot_be_searched_is_refused_in_one_line(tiny_folder, clip_path, tmp_path, capsys):
    searched = ["methods", "search", "minference", str(clip_path), "--model", str(tiny_folder)]
    searched += ["--device", "cpu", "--out", str(tmp_path / "heads.json")]
    assert main(searched) == 2
    assert "rows are scored from 2500 on" in capsys.readouterr().err
    assert main([*searched, "--method", "nsa"]) == 2
    assert "--method nsa: patterns are searched under dense attention" in capsys.readouterr().err
    assert not (tmp_path / "heads.json").exists()
