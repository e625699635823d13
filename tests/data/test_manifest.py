"""The manifest: what is written is read, in any order, and equal rows give equal bytes."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from videonsa.data.manifest import (
    ROWS_A_GROUP,
    BuildFacts,
    ManifestRow,
    ManifestWriter,
    MediaFacts,
    read_manifest,
)
from videonsa.data.records import Record, Text, Turn, VideoRef
from videonsa.errors import UsageError
from videonsa.video.sampling import SamplingSpec

FACTS = BuildFacts(
    sampling=SamplingSpec(fps=4, max_pixels=50_176),
    max_tokens=36_000,
    system="You are a helpful assistant.",
    model="embedded",
    tokenizer_hash="0" * 64,
    options={"min_frames": 350, "sources": ["/data/a"]},
)
MEDIA = MediaFacts(
    kind="video",
    num_frames=400,
    height=168,
    width=280,
    num_tokens=12_000,
    sampled_fps=4.0,
    duration=100.0,
    source_frames=2500,
    source_height=720,
    source_width=1280,
    file_size=12_345,
    mtime_ns=1_700_000_000_123_456_789,
)


def make_row(index: int) -> ManifestRow:
    record = Record(
        id=f"a.json#{index}",
        source="a",
        turns=(
            Turn(role="user", parts=(VideoRef(path=f"/data/{index}.mp4"), Text("Wer läuft? 跑"))),
            Turn(role="assistant", parts=(Text("Niemand."),)),
        ),
    )
    return ManifestRow(
        record=record,
        media=(MEDIA,),
        num_turns=2,
        num_media=1,
        num_frames=400,
        duration=100.0,
        video_tokens=12_000,
        image_tokens=0,
        text_tokens=20 + index,
        tokens=12_020 + index,
        vision_begin=14,
        label_tokens=3,
    )


def write(path: Path, num_rows: int) -> Path:
    with ManifestWriter(path, facts=FACTS) as writer:
        for index in range(num_rows):
            writer.write(make_row(index))
    return path


NUM_ROWS = ROWS_A_GROUP + 44


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("manifest") / "manifest.parquet", NUM_ROWS)


def test_rows_are_read_as_they_were_written_in_any_order(path: Path) -> None:
    manifest = read_manifest(path.parent)
    assert len(manifest) == NUM_ROWS
    for index in (NUM_ROWS - 1, 0, ROWS_A_GROUP, ROWS_A_GROUP - 1, -1):
        assert manifest[index] == make_row(index % NUM_ROWS)
    assert [row.text_tokens for row in manifest] == [20 + index for index in range(NUM_ROWS)]


def test_only_the_row_that_is_asked_for_is_decoded(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    from_json = Record.from_json
    monkeypatch.setattr(Record, "from_json", lambda text: decoded.append(text) or from_json(text))
    manifest = read_manifest(path)
    assert manifest[ROWS_A_GROUP + 1] == make_row(ROWS_A_GROUP + 1)
    assert len(decoded) == 1


@pytest.mark.parametrize("index", [NUM_ROWS, -NUM_ROWS - 1])
def test_rows_outside_are_an_index_error(path: Path, index: int) -> None:
    with pytest.raises(IndexError):
        read_manifest(path)[index]


def test_numbers_of_all_rows_come_as_an_array(path: Path) -> None:
    assert read_manifest(path).column("tokens").tolist() == [
        12_020 + index for index in range(NUM_ROWS)
    ]
    with pytest.raises(UsageError, match="column 'record'"):
        read_manifest(path).column("record")


def test_facts_of_the_build_survive(path: Path) -> None:
    assert read_manifest(path).facts == FACTS


def test_equal_rows_give_equal_bytes(path: Path, tmp_path: Path) -> None:
    assert write(tmp_path / "again.parquet", NUM_ROWS).read_bytes() == path.read_bytes()


def test_hash_is_that_of_the_rows_but_not_of_their_dates(path: Path, tmp_path: Path) -> None:
    manifest = read_manifest(path)
    assert manifest.data_hash == manifest.hash_rows()
    hashes = []
    for change in ({"mtime_ns": 5}, {"width": 252}):
        with ManifestWriter(tmp_path / "m.parquet", facts=FACTS) as writer:
            for row in manifest:
                writer.write(replace(row, media=(replace(MEDIA, **change),)))
        hashes.append(read_manifest(tmp_path / "m.parquet").data_hash)
    assert hashes[0] == manifest.data_hash != hashes[1]


def test_manifest_goes_to_another_process(path: Path) -> None:
    manifest = read_manifest(path)
    assert pickle.loads(pickle.dumps(manifest))[7] == manifest[7]


def test_manifest_without_rows_is_empty(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path / "empty.parquet", 0))
    assert len(manifest) == 0
    assert list(manifest) == []


def test_error_leaves_no_file(tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        ManifestWriter(tmp_path / "manifest.parquet", facts=FACTS) as writer,
    ):
        writer.write(make_row(0))
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "manifest.parquet").write_bytes(b"no parquet")
    with pytest.raises(UsageError, match="not a manifest"):
        read_manifest(tmp_path)
    with pytest.raises(UsageError, match="not a manifest"):
        read_manifest(tmp_path / "absent")
