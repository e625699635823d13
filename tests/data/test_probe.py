"""Probing many files: what hangs or crashes is a result like any other, and all are remembered."""

import json
import os
from pathlib import Path

import pytest
import video_tree
from probe_functions import hang_or_die

from videonsa.data.probe import probe_all, probe_file, target_of
from videonsa.data.probe_journal import FileState, ProbeFailure, ProbeJournal
from videonsa.data.reasons import DropError, Reason
from videonsa.errors import UsageError
from videonsa.video.framelist import FrameList
from videonsa.video.sampling import VideoInfo

INFO = VideoInfo(path="/v.mp4", duration=1 / 3, num_frames=10, fps=29.97, width=64, height=48)
STATE = FileState("/v.mp4", 123, 1_700_000_000_123_456_789)
FAILURE = ProbeFailure(Reason.BROKEN, "größe")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video_tree.small_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


def test_journal_gives_back_what_was_added(tmp_path: Path) -> None:
    other = STATE._replace(mtime_ns=1)
    with ProbeJournal(tmp_path / "probe.jsonl") as journal:
        journal.add(STATE, INFO)
        journal.add(other, FAILURE)
    again = ProbeJournal(tmp_path / "probe.jsonl")
    assert (again[STATE], again[other]) == (INFO, FAILURE)
    assert STATE._replace(size=1) not in again


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_line_that_was_cut_off_is_as_if_never_written(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "probe.jsonl"
    with ProbeJournal(path) as journal:
        journal.add(STATE, INFO)
        before = path.read_bytes()
        journal.add(STATE._replace(mtime_ns=1), FAILURE)
    path.write_bytes(path.read_bytes()[:-cut])
    with ProbeJournal(path) as journal:
        assert STATE in journal
        assert STATE._replace(mtime_ns=1) not in journal
        assert path.read_bytes() == before
        journal.add(STATE._replace(mtime_ns=1), FAILURE)
    assert ProbeJournal(path)[STATE._replace(mtime_ns=1)] == FAILURE


@pytest.mark.parametrize("content", ["other\n", '{"a": 1}\n', None])
def test_file_of_another_kind_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "probe.jsonl"
    if content is None:
        with ProbeJournal(path):
            pass
        content = path.read_text() + '{"file": [1]}\n'
    path.write_text(content)
    with pytest.raises(UsageError, match="delete the file"):
        ProbeJournal(path)


def test_file_is_known_until_it_changes(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip.read_bytes())
    first = target_of(str(path))
    assert first.state == FileState(str(path), path.stat().st_size, path.stat().st_mtime_ns)
    os.utime(path, ns=(5, 5))
    assert target_of(str(path)).state == first.state._replace(mtime_ns=5)
    path.unlink()
    with pytest.raises(DropError) as caught:
        target_of(str(path))
    assert caught.value.reason == Reason.MISSING


def test_list_of_frames_is_known_by_all_of_them(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]
    for size, path in enumerate(paths):
        path.write_bytes(bytes(size))
        os.utime(path, ns=(size, size))
    states = {
        target_of(FrameList(tuple(chosen), fps=fps)).state
        for chosen in (paths, paths[:2], [paths[1], paths[0], paths[2]])
        for fps in (1.0, 2.0)
    }
    assert len(states) == 6
    state = target_of(FrameList(tuple(paths))).state
    assert (state.size, state.mtime_ns) == (3, 2)
    paths[2].unlink()
    with pytest.raises(DropError, match="missing"):
        target_of(FrameList(tuple(paths)))


def test_header_says_what_a_file_holds_or_why_not(clip: Path, tmp_path: Path) -> None:
    assert probe_file(str(clip)).num_frames == 8
    (tmp_path / "empty.mp4").touch()
    failure = probe_file(str(tmp_path / "empty.mp4"))
    assert failure.reason == Reason.BROKEN
    assert "an empty file" in failure.detail


def test_files_that_hang_or_crash_are_results_and_the_others_go_on(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = []
    for name in ("a", "hang", "b", "die", "c", "d"):
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(clip.read_bytes())
        targets.append(target_of(str(path)))
    with ProbeJournal(tmp_path / "probe.jsonl") as journal:
        done = list(probe_all(targets, journal=journal, workers=2, timeout=2.0, probe=hang_or_die))
        again = list(probe_all(targets, journal=journal, workers=2, timeout=2.0, probe=hang_or_die))
    assert sorted(done) == sorted(targets)
    assert again == []
    found = {Path(target.state.key).stem: journal[target.state] for target in targets}
    assert found["hang"].reason == Reason.TIMEOUT
    assert found["die"].reason == Reason.BROKEN
    assert "ended" in found["die"].detail
    assert [found[name].num_frames for name in "abcd"] == [8] * 4


def test_journal_has_each_file_once(clip: Path, tmp_path: Path) -> None:
    with ProbeJournal(tmp_path / "probe.jsonl") as journal:
        for _ in range(2):
            list(probe_all([target_of(str(clip))], journal=journal, workers=3))
    lines = (tmp_path / "probe.jsonl").read_text().splitlines()
    assert [json.loads(line)["file"][0] for line in lines[1:]] == [str(clip)]
