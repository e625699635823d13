"""The commands of training data, on rendered videos and a real one."""

import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from PIL import Image

import videonsa
from videonsa.cli.main import main

EMBEDDED = Path(videonsa.__file__).parent / "assets/embedded"
RENDERED = "synthetic:count=2,frames=128"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, clip_path: Path) -> Path:
    work = tmp_path_factory.mktemp("data")
    turns = [
        {"role": "user", "content": "<video>What is it?"},
        {"role": "assistant", "content": "A ramp."},
    ]
    row = {"messages": turns, "videos": [str(clip_path)], "split": "train"}
    (work / "rows.jsonl").write_text(json.dumps(row) + "\n")
    out = work / "out"
    command = ["data", "build", str(work / "rows.jsonl"), RENDERED, "--out", str(out)]
    assert main([*command, "--model", "embedded", "--min-frames", "0", "--workers", "1"]) == 0
    return out


def run(capsys: pytest.CaptureFixture[str], *command: str) -> tuple[int, str, str]:
    status = main(["data", *command])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_build_reports_and_writes_what_it_names(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {path.name for path in folder.iterdir()} >= {
        *("manifest.parquet", "dropped.parquet", "report.json", "report.md", "histograms.png"),
    }
    command = (
        "build",
        RENDERED,
        "--out",
        str(tmp_path),
        "--model",
        "embedded",
        "--max-frames",
        "9",
    )
    status, out, _ = run(capsys, *command, "--min-frames", "0", "--max-tokens", "none")
    assert status == 0
    assert out.startswith("kept       0 of 2 rows\ndropped    2 many_frames\n")
    status, out, _ = run(capsys, *command, "--min-frames", "0", "--json")
    report = json.loads(out)
    assert (report["rows"], report["dropped"]) == (2, {"many_frames": 2})


def test_fields_that_are_not_read_are_in_the_report(folder: Path) -> None:
    assert json.loads((folder / "report.json").read_text())["unread"] == {"split": 1}
    assert "| split | 1 |" in (folder / "report.md").read_text()


def test_check_finds_nothing_then_what_was_broken(
    folder: Path, clip_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "check", str(folder))[:2] == (0, "3 rows, 0 problems\n")
    before = clip_path.stat()
    os.utime(clip_path, ns=(1, 1))
    status, out, _ = run(capsys, "check", str(folder), "--all")
    os.utime(clip_path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert status == 2
    assert out == (
        f"row 0: {clip_path} was written again since it was probed\n3 rows, 1 problems\n"
    )


def test_check_compares_the_model_and_what_the_build_says_of_itself(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(EMBEDDED, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    config["vision_config"] |= {"patch_size": 16}
    (model / "config.json").write_text(json.dumps(config))
    (model / "model.safetensors").unlink()
    status, out, _ = run(capsys, "check", str(folder), "--model", str(model))
    assert status == 2
    assert f"manifest: built for another vision tower than that of {model}" in out
    table = parquet.read_table(folder / "manifest.parquet")
    metadata = parquet.read_metadata(folder / "manifest.parquet").metadata
    metadata = {name: value for name, value in metadata.items() if name.startswith(b"videonsa")}
    facts = json.loads(metadata[b"videonsa.facts"])
    for wrong, told in (
        ({"options": facts["options"] | {"max_frames": 96}}, "sampled otherwise than its options"),
        ({"options": facts["options"] | {"min_frames": 999}}, "options that mean nothing"),
        ({"tokenizer_hash": "0"}, "counted with another tokenizer than that of embedded"),
        ({"schema_version": 7}, "not a manifest that can be read (written with schema 7"),
    ):
        changed = metadata | {b"videonsa.facts": json.dumps(facts | wrong).encode()}
        path = tmp_path / "manifest.parquet"
        parquet.write_table(table.replace_schema_metadata(changed), path)
        status, out, err = run(capsys, "check", str(path))
        assert status == 2
        assert told in out + err


def test_a_build_of_images_alone_has_no_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "i.png")
    turns = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "A."}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns, "images": ["i.png"]}))
    out = str(tmp_path / "out")
    command = ("build", str(tmp_path / "rows.jsonl"), "--model", "embedded", "--min-frames", "0")
    assert run(capsys, *command, "--out", out)[0] == 0
    assert run(capsys, "check", out)[:2] == (0, "1 rows, 0 problems\n")


def test_a_model_without_a_tokenizer_builds_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    shutil.copy(EMBEDDED / "config.json", model)
    out = tmp_path / "out"
    command = ("build", RENDERED, "--min-frames", "0", "--out", str(out), "--model", str(model))
    status, stdout, err = run(capsys, *command)
    assert (status, stdout, err.count("\n")) == (2, "", 1)
    assert f"{model} has no tokenizer" in err
    assert not (out / "manifest.parquet").exists()


def test_paths_that_are_not_unicode_are_written_to_and_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    row = '{"messages": [], "videos": []}\n'
    for name in ("a.jsonl", "\udcff.jsonl"):
        (rows / name).write_text(row if name[0] != "a" else (folder / "../rows.jsonl").read_text())
    command = ("build", str(rows), "--min-frames", "0", "--model", "embedded", "--out")
    out = tmp_path / "\udcfe"
    assert run(capsys, *command, str(out))[0] == 0
    (note,) = json.loads((out / "report.json").read_text())["notes"]
    assert note.endswith("\udcff.jsonl: passed over: its path is not valid Unicode: rename it")


def test_show_writes_the_sheet_and_prints_the_tokens(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(capsys, "show", str(folder), "0")
    assert status == 0
    assert "8 frames of 84x112" not in out
    assert "8 frames of 112x84 over 4.0 s, 48 tokens" in out
    assert "<|vision_start|><|video_pad|> x 48<|vision_end|>What is it?<|im_end|>" in out
    assert out.endswith("<|im_start|>assistant\n[[A ramp.<|im_end|>]]\n")
    with Image.open(folder / "show/0.png") as sheet:
        assert sheet.width == 1400
    status, out, _ = run(
        capsys,
        "show",
        str(folder),
        "2",
        "--out",
        str(tmp_path / "a.png"),
        "--loss",
        "last",
        "--json",
    )
    shown = json.loads(out)
    assert (tmp_path / "a.png").is_file()
    assert [span["learned"] for span in shown["spans"]].count(True) == 1
    assert shown["tokens"] == sum(span["num_tokens"] for span in shown["spans"])


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (("build", "absent.json", "--out", "o", "--model", "embedded"), "absent.json"),
        (("build", RENDERED, "--out", "o"), "--model"),
        (("build", RENDERED, "--out", "o", "--model", "embedded", "--max-tokens", "0"), "none"),
        (("build", RENDERED, "--out", "o", "--model", "embedded", "--workers", "0"), "--workers 0"),
        (("build", RENDERED, "--out", "o", "--model", "embedded", "--timeout", "0"), "--timeout"),
        (("build", RENDERED, "--out", "o", "--model", "embedded", "--fps", "-1"), "fps=-1"),
        (("check", "absent"), "not a manifest"),
        (("show", "absent", "0"), "not a manifest"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    command: tuple[str, ...],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *command)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert problem in err


def test_row_that_is_not_there_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (("3",), ("-1",), ("0", "--frames", "0")):
        status, _, err = run(capsys, "show", str(folder), *command)
        assert (status, err.count("\n")) == (2, 1)
