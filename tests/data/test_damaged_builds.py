"""Damaged journals and manifests: one line that names the file and says what to do."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from damage import DAMAGES, damage, to_line, wrong_values
from test_manifest import FACTS, write

from videonsa.data.manifest import BuildFacts, Manifest
from videonsa.data.probe_journal import FileState, ProbeFailure, ProbeJournal
from videonsa.data.reasons import Reason
from videonsa.data.records import Record
from videonsa.errors import UsageError
from videonsa.video.sampling import VideoInfo

INFO = VideoInfo(
    path="/v.mp4", duration=1.5, num_frames=10, fps=29.97, width=64, height=48, notes=("half",)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    write(folder / "manifest.parquet", 3)
    with ProbeJournal(folder / "probe.jsonl") as journal:
        journal.add(FileState("/v.mp4", 123, 5), INFO)
        journal.add(FileState("/w.mp4", 123, 5), ProbeFailure(Reason.BROKEN, "why"))
    return folder


def read_all(path: Path) -> None:
    """All that is ever read of it."""
    if path.suffix == ".jsonl":
        with ProbeJournal(path) as journal:
            journal.add(FileState("/x.mp4", 1, 1), INFO)
        return
    manifest = Manifest(path)
    manifest.hash_rows()
    manifest.column("tokens")
    _ = [*manifest], [manifest[index] for index in range(len(manifest))]


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("file", ["manifest.parquet", "probe.jsonl"])
def test_a_damaged_file_is_one_line_that_names_it(
    folder: Path, tmp_path: Path, file: str, name: str
) -> None:
    path = Path(shutil.copy(folder / file, tmp_path))
    damage(path, name)
    try:
        read_all(path)
    except UsageError as error:
        told = str(error)
        assert told.startswith(str(path))
        assert len(told.splitlines()) == 1
        assert told.endswith(("build it again", "delete the file to probe all videos again"))
    else:
        kept = file == "probe.jsonl" and not name.startswith("a ")  # a line that was cut off
        assert kept or name.startswith(("overwritten", "inserted"))


def test_journals_with_wrong_values_are_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "probe.jsonl"
    header, *lines = (folder / "probe.jsonl").read_text().splitlines(keepends=True)
    refused = 0
    for line in lines:
        for wrong in wrong_values(json.loads(line)):
            path.write_text(header + to_line(wrong))
            try:
                ProbeJournal(path)
            except UsageError as error:
                refused += 1
                assert str(error).startswith(f"{path}, line 2: ")
    assert refused > 200


def test_records_and_facts_with_wrong_values_are_refused() -> None:
    video = {"video": "a.mp4", "fps": 2.0, "max_pixels": 784}
    parts = [{"text": "A?"}, video, {"frames": ["a.png"], "frame_rate": 2.0}, {"image": "i.png"}]
    turns = [{"role": "user", "parts": parts}, {"role": "assistant", "parts": [{"text": "B."}]}]
    record = {"id": "r", "source": "s", "turns": turns}
    assert Record.from_json(json.dumps(record)).media
    for wrong in wrong_values(record):
        try:
            Record.from_json(json.dumps(wrong))
        except UsageError as error:
            assert str(error).startswith("not a record")
    for wrong in wrong_values(json.loads(FACTS.to_json())):
        with suppress(ValueError, TypeError):
            BuildFacts.from_json(json.dumps(wrong))


def test_a_journal_of_another_version_is_probed_again_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "probe.jsonl"
    state = FileState("/v.mp4", 123, 5)
    with ProbeJournal(path) as journal:
        journal.add(state, INFO)
    header, line = path.read_text().splitlines(keepends=True)
    path.write_text(header.replace('"version":2', '"version":1') + line)
    with ProbeJournal(path) as journal:
        assert state not in journal
        assert journal.notes == (f"{path} is of another version: all files are probed again",)
        journal.add(state, INFO)
    assert path.read_text() == header + line
    again = ProbeJournal(path)
    assert again[state] == INFO
    assert again.notes == ()
