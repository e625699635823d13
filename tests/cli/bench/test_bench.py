"""`videonsa bench attention`."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks.report.attention_section import render_attention
from videonsa.bench import verify as verify_module
from videonsa.bench.attention_shapes import SHAPES
from videonsa.bench.op_registry import OPS
from videonsa.cli.main import main

TINY = ["bench", "attention", "--device", "cpu", "--repeats", "2", "--shapes", "tiny-256"]


@pytest.fixture(autouse=True)
def _short_verification(monkeypatch):
    monkeypatch.setattr(verify_module, "LENGTHS", (40,))


def test_a_tiny_run_prints_a_table_and_writes_the_json(tmp_path, capsys):
    path = tmp_path / "new" / "result.json"
    assert main([*TINY, "--out", str(path)]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split() == ["tiny-256", "forward", "regime", "ms", "min-max", "/", "dense",
                                "extra", "GB", "union"]  # fmt: skip
    assert [line.split()[0] for line in lines[1:]] == [
        "videonsa", "videonsa", "videonsa-block", "videonsa-block", "sdpa-cudnn", "sdpa-flash",
        "fla-nsa", "fla-nsa",
    ]  # fmt: skip
    assert err.splitlines()[-1] == f"written to {path}"
    result = json.loads(path.read_text())
    assert result["shapes"][0]["shape"]["name"] == "tiny-256"
    assert len(result["shapes"][0]["runs"]) == 8
    assert list(path.parent.iterdir()) == [path], "no partial file is left"


PEER = [*TINY, "--ops", "sdpa-flash"]


def test_every_pass_has_its_own_file_and_table(tmp_path, capsys):
    path = tmp_path / "result.json"
    assert main([*PEER, "--passes", "forward,backward,both", "--out", str(path)]) == 0
    out, err = capsys.readouterr()
    names = {"forward": "result.json", "backward": "result_backward.json",
             "both": "result_both.json"}  # fmt: skip
    assert {x.name for x in tmp_path.iterdir()} == set(names.values())
    for which, name in names.items():
        assert json.loads((tmp_path / name).read_text())["pass"] == which
        assert f"written to {tmp_path / name}" in err
    heads = [line.split()[:3] for line in out.splitlines() if line.startswith("tiny-256")]
    assert heads == [["tiny-256", which, "regime"] for which in names]


def test_a_pass_leaves_the_files_of_the_others_alone(tmp_path, capsys):
    path = tmp_path / "result.json"
    assert main([*PEER, "--out", str(path)]) == 0
    before = path.read_bytes()
    capsys.readouterr()
    assert main([*PEER, "--passes", "backward", "--json", "--out", str(path)]) == 0
    assert path.read_bytes() == before
    backward = json.loads((tmp_path / "result_backward.json").read_text())
    assert json.loads(capsys.readouterr().out) == backward


def test_a_file_of_another_pass_is_not_overwritten(tmp_path, capsys):
    path = tmp_path / "result.json"
    assert main([*PEER, "--passes", "backward", "--out", str(path)]) == 0
    other = tmp_path / "result_backward.json"
    before = other.read_bytes()
    assert main([*PEER, "--out", str(other)]) == 2
    assert "something else than a forward result of this command" in capsys.readouterr().err
    assert other.read_bytes() == before


def test_the_report_can_show_what_the_command_writes(tmp_path, capsys):
    path = tmp_path / "result.json"
    main([*TINY, "--ops", "videonsa,fla-nsa", "--out", str(path)])
    page = render_attention(json.loads(path.read_text()), figure=None)
    assert "### tiny-256: 256 tokens" in page
    assert "| `fla-nsa` | random | needs a GPU |" in page


def test_json_goes_to_stdout_and_is_the_file(tmp_path, capsys):
    path = tmp_path / "result.json"
    main([*TINY, "--ops", "sdpa-flash", "--json", "--out", str(path)])
    assert json.loads(capsys.readouterr().out) == json.loads(path.read_text())


def test_the_result_goes_beside_the_others_where_their_folder_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = [*TINY, "--ops", "sdpa-flash"]
    assert main(arguments) == 0
    assert (tmp_path / "attention.json").is_file()
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    assert main(arguments) == 0
    (folder,) = (tmp_path / "benchmarks/results").iterdir()
    assert folder.name.startswith("cpu-")
    assert (folder / "attention.json").is_file()


def test_a_second_run_keeps_the_other_shapes_in_the_file_and_shows_its_own(tmp_path, capsys):
    path = tmp_path / "result.json"
    common = ["--device", "cpu", "--repeats", "1", "--ops", "sdpa-flash", "--out", str(path)]
    for shape in ("tiny-256", "tiny-frame20"):
        assert main(["bench", "attention", *common, "--shapes", shape]) == 0
    names = [entry["shape"]["name"] for entry in json.loads(path.read_text())["shapes"]]
    assert names == ["tiny-256", "tiny-frame20"]
    assert capsys.readouterr().out.splitlines()[-2].startswith("tiny-frame20")


def test_when_verification_fails_the_status_is_2_and_nothing_is_written(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(verify_module, "attend", lambda inputs, *_, **__: inputs.q)
    path = tmp_path / "result.json"
    assert main([*TINY, "--out", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("videonsa: error: verify videonsa, tiny-256 at 40 tokens, random: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--shapes", "tiny-256,7c"], "--shapes 7c: want some of "),
        (["--shapes", ""], "--shapes nothing: want some of "),
        (["--ops", "flash"], "--ops flash: want some of videonsa,"),
        (["--regimes", "calm"], "--regimes calm: want some of random,coherent"),
        (["--passes", "forward,back"], "--passes back: want some of forward,backward,both"),
        (["--passes", ""], "--passes nothing: want some of forward,backward,both"),
        (["--repeats", "0"], "--repeats 0: want at least 1"),
        (["--shapes", "7b-16k,tiny-256"], "--shapes 7b-16k with --device cpu: want shapes named"),
        (["--no-verify"], "unrecognized arguments: --no-verify"),
    ],
)
def test_bad_options_are_one_line(options, line, tmp_path, capsys):
    arguments = ["bench", "attention", "--device", "cpu", "--out", str(tmp_path / "x.json")]
    assert main([*arguments, *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert line in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"format": "other"}'])
def test_a_file_of_something_else_is_not_overwritten(content, tmp_path, capsys):
    path = tmp_path / "mine.json"
    path.write_text(content)
    assert main([*TINY, "--out", str(path)]) == 2
    assert "something else than a forward result of this command" in capsys.readouterr().err
    assert path.read_text() == content


@pytest.mark.parametrize("which", ["forward", "backward"])
def test_a_folder_as_the_file_is_refused_before_anything_runs(which, tmp_path, capsys):
    assert main([*TINY, "--passes", which, "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err == f"videonsa: error: --out {tmp_path}: it is a folder: name a file\n"


def test_without_a_gpu_the_command_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "attention", "--out", str(tmp_path / "x.json")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("videonsa: error: no CUDA GPU here")
    assert "--device cpu" in err
    assert err.count("\n") == 1


def test_list_shows_every_shape_and_op(capsys):
    assert main(["bench", "attention", "--list"]) == 0
    names = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert {*SHAPES, *OPS} <= names
    assert main(["bench", "attention", "--list", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["ops"]) == set(OPS)


@pytest.mark.parametrize("arguments", [["bench"], ["bench", "kernels"]])
def test_what_to_measure_must_be_named(arguments, capsys):
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "videonsa bench --help" in err


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "attention", "--help"])
    text = capsys.readouterr().out
    assert "videonsa bench attention" in text.split("examples:")[1]
    assert "--json" in text


def test_help_needs_no_torch():
    code = (
        "import sys; from videonsa.cli.main import build_parser; p = build_parser(); "
        "p.parse_args(['bench', 'attention']); p.format_help(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_kernels_tests_of_another_pass_are_kept_unless_they_are_wanted_again(tmp_path):
    path = tmp_path / "result.json"
    assert main([*PEER, "--out", str(path)]) == 0
    forward = json.loads(path.read_text())
    said = "tests/ops/triton: 89 passed in 104 s"
    forward["shapes"][0]["verification"]["tests"] = said
    path.write_text(json.dumps(forward))
    found = []
    for options in ([], ["--verify-again"]):
        (tmp_path / "result_backward.json").unlink(missing_ok=True)
        assert main([*PEER, "--passes", "backward", *options, "--out", str(path)]) == 0
        backward = json.loads((tmp_path / "result_backward.json").read_text())
        found.append(backward["shapes"][0]["verification"]["tests"])
    assert found == [said, None]


def test_another_file_in_the_place_of_a_pass_that_is_not_measured_does_not_matter(tmp_path):
    (tmp_path / "result_both.json").write_text("notes")
    assert main([*PEER, "--out", str(tmp_path / "result.json")]) == 0
    assert (tmp_path / "result_both.json").read_text() == "notes"
