"""A tree of 40 real files, some broken: exact counts, and the same result after a kill."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
import video_tree
from PIL import Image
from tree_build import HASH, build_tree, load_tokenizer

from videonsa.data import probe as probe_module
from videonsa.data.build import BuildOptions
from videonsa.data.build_report import Tally, draw_histograms
from videonsa.data.check import check_manifest
from videonsa.data.filter import FilterOptions
from videonsa.data.manifest import read_manifest
from videonsa.data.probe import target_of
from videonsa.data.probe_journal import ProbeJournal
from videonsa.disk import LOCK
from videonsa.errors import UsageError, VideoError

FILES = ("manifest.parquet", "dropped.parquet", "report.json", "report.md", "histograms.png")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree") / "tree"
    folder.mkdir()
    made = video_tree.script().make_tree(folder, num_files=40)
    (folder.parent / "expected.json").write_text(json.dumps(made.expected))
    assert made.num_files == 39
    return folder


@pytest.fixture(scope="module")
def built(tree: Path) -> Path:
    out = tree.parent / "built"
    build_tree(tree, out, workers=2)
    return out


def contents(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in FILES}


def test_every_row_is_kept_or_dropped_as_the_tree_was_made(tree: Path, built: Path) -> None:
    report = json.loads((built / "report.json").read_text())
    expected = json.loads((tree.parent / "expected.json").read_text())
    assert report["by_source"] == expected
    assert {*report["dropped"]} == {
        *("bad_row", "remote", "bad_turns", "empty_text", "placeholders", "duplicate"),
        *("missing", "broken", "few_frames", "many_frames", "too_long"),
    }
    assert report["rows"] == report["kept"] + sum(report["dropped"].values())
    assert report["files"] == {"named": 40, "missing": 1, "broken": 5, "usable": 34}
    assert report["cut"] == report["text_only"] == 3


def test_manifest_and_dropped_hold_every_row_once(built: Path) -> None:
    report = json.loads((built / "report.json").read_text())
    manifest = read_manifest(built)
    dropped = parquet.read_table(built / "dropped.parquet").to_pylist()
    assert (len(manifest), report["data_hash"]) == (report["kept"], manifest.data_hash)
    assert Counter(row["reason"] for row in dropped) == report["dropped"]
    ids = [row.record.id for row in manifest] + [row["id"] for row in dropped]
    assert len(set(ids)) == len(ids) == report["rows"]
    assert {350 <= row.num_frames <= 550 for row in manifest if row.record.media} == {True}
    assert sum(row.tokens for row in manifest) == report["totals"]["tokens"]


def test_report_tells_where_missing_files_may_be(built: Path) -> None:
    (note,) = json.loads((built / "report.json").read_text())["notes"]
    assert "1 files are missing, and 0_30_s_academic_v0_1_videos_1.tar.gz may hold them" in note
    assert note in (built / "report.md").read_text()
    with Image.open(built / "histograms.png") as picture:
        assert picture.size == (1200, 480)


@pytest.mark.parametrize(("where", "after"), [("probing", 20), ("judging", 30)])
def test_build_that_was_killed_comes_to_the_same_bytes(
    tree: Path, built: Path, tmp_path: Path, where: str, after: int
) -> None:
    out = tmp_path / "out"
    script = Path(__file__).with_name("killed_build.py")
    killed = subprocess.run([sys.executable, script, tree, out, where, str(after)])
    assert killed.returncode == -signal.SIGKILL
    assert not any((out / name).exists() for name in FILES)
    known = (out / "probe.jsonl").read_bytes().count(b"\n") - 1
    assert known == (after if where == "probing" else 39)
    build_tree(tree, out)
    assert contents(out) == contents(built)
    assert {path.name for path in out.iterdir()} == {*FILES, "probe.jsonl", LOCK}
    lines = (out / "probe.jsonl").read_text().splitlines()
    assert sorted(lines) == sorted((built / "probe.jsonl").read_text().splitlines())


def test_other_options_need_no_new_probing(
    tree: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(built / "probe.jsonl", tmp_path)
    monkeypatch.setattr(probe_module, "probe_file", None)
    report = build_tree(tree, tmp_path, max_frames=1000)
    assert "many_frames" not in report.dropped
    assert (tmp_path / "probe.jsonl").read_bytes() == (built / "probe.jsonl").read_bytes()


def test_histogram_of_no_video_kept_is_drawn(tree: Path, built: Path, tmp_path: Path) -> None:
    shutil.copy(built / "probe.jsonl", tmp_path)
    report = build_tree(tree, tmp_path, max_frames=350)
    assert report.kept == report.text_only == len(read_manifest(tmp_path)) > 0
    assert draw_histograms(report).startswith(b"\x89PNG")


def test_what_reading_chose_is_in_the_report(tree: Path, tmp_path: Path) -> None:
    def probed(path: Path) -> Any:
        info = probe_module.open_source(path).info
        return replace(info, notes=(f"{len(str(path))}.5 frames are left out", "one of 2 streams"))

    with ProbeJournal(tmp_path / "probe.jsonl") as journal:
        for path in sorted(tree.rglob("*.mp4")):
            target = target_of(str(path))
            with suppress(VideoError):
                journal.add(target.state, probed(path))
    left_out, streams = build_tree(tree, tmp_path).notes[-2:]
    assert re.fullmatch(r"\d+ files, such as /.*mp4: \d+\.5 frames are left out", left_out)
    assert streams.endswith(": one of 2 streams")


def test_a_journal_of_an_older_version_is_said(tree: Path, built: Path, tmp_path: Path) -> None:
    text = (built / "probe.jsonl").read_text()
    (tmp_path / "probe.jsonl").write_text(text.replace('"version":2', '"version":1'))
    told = f"{tmp_path / 'probe.jsonl'} is of another version: all files are probed again"
    assert told in build_tree(tree, tmp_path).notes
    assert told not in build_tree(tree, tmp_path).notes


def problems_of(out: Path, *, all_rows: bool = True, tokenizer_hash: str = HASH) -> list[str]:
    found = check_manifest(
        read_manifest(out),
        tokenizer=load_tokenizer(),
        tokenizer_hash=tokenizer_hash,
        all_rows=all_rows,
    )
    return [str(problem) for problem in found if problem is not None]


def test_sound_manifest_has_no_problem(built: Path) -> None:
    assert problems_of(built) == []
    (problem,) = problems_of(built, all_rows=False, tokenizer_hash="1" * 64)
    assert problem.startswith("manifest: counted with another tokenizer")


def test_changed_files_are_problems(tree: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tree, tmp_path / "tree")
    build_tree(copy, tmp_path / "out")
    rows = read_manifest(tmp_path / "out")
    paths = sorted({video.path for row in rows for video in row.record.videos})
    Path(paths[0]).unlink()
    Path(paths[1]).write_bytes(b"shorter")
    Path(paths[2]).touch()
    problems = problems_of(tmp_path / "out")
    assert len(problems) == 3
    assert {path for path in paths for text in problems if path in text} == set(paths[:3])
    assert sum("not there any more" in text for text in problems) == 1
    assert sum("has changed: 7 bytes" in text for text in problems) == 1
    assert sum("written again" in text for text in problems) == 1


def test_damaged_manifest_is_a_problem(built: Path, tmp_path: Path) -> None:
    table = parquet.read_table(built / "manifest.parquet")
    metadata = parquet.ParquetFile(built / "manifest.parquet").metadata.metadata
    tokens = table.column("tokens").to_pylist()
    changed = table.set_column(
        table.schema.get_field_index("tokens"), "tokens", [[tokens[0] + 1, *tokens[1:]]]
    ).replace_schema_metadata({k: v for k, v in metadata.items() if k.startswith(b"videonsa")})
    parquet.write_table(changed, tmp_path / "manifest.parquet")
    problems = problems_of(tmp_path)
    assert problems == [
        "manifest: its rows are not those that were written: build it again",
        "row 0: its counts of tokens do not add up",
    ]


def test_missing_packages_are_named_with_their_extra(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"matplotlib is not installed.*videonsa\[data\]"):
        build_tree(tree, tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pyarrow is not installed.*videonsa\[data\]"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "options",
    [{"workers": 0}, {"workers": 10**30}, {"timeout": 0.0}, {"timeout": 1e300}],
    ids=str,
)
def test_probing_is_within_bounds(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="want"):
        BuildOptions(filter=FilterOptions(), model="m", tokenizer_hash=HASH, **options)


def test_histogram_of_one_far_number_of_frames_has_few_bars(built: Path) -> None:
    report = json.loads((built / "report.json").read_text())
    far = FilterOptions(min_frames=2**21 - 1, max_frames=2**21 - 1)
    empty = Tally().report(data_hash="", options=far, files=report["files"], notes=())
    assert draw_histograms(empty).startswith(b"\x89PNG")
