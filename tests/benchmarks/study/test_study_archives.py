import pytest

from benchmarks.study import archives
from benchmarks.study.archives import PART_BYTES, pack, parts_of, unpack
from videonsa.errors import UsageError


def test_an_archive_is_cut_and_put_together_again(tmp_path):
    base = tmp_path / "base"
    (base / "runs/a").mkdir(parents=True)
    content = bytes(range(256)) * (PART_BYTES // 256 + 1)
    (base / "runs/a/big").write_bytes(content)
    (base / "runs/small").write_text("x")
    parts = pack([base / "runs"], base=base, out=tmp_path / "out", name="all")
    assert [part.name for part in parts] == ["all.tar.00", "all.tar.01"]
    assert max(part.stat().st_size for part in parts) <= PART_BYTES
    assert unpack(tmp_path / "out", base=tmp_path / "there") == ["all"]
    assert (tmp_path / "there/runs/a/big").read_bytes() == content
    assert (tmp_path / "there/runs/small").read_text() == "x"


def test_a_smaller_archive_leaves_no_part_of_the_larger_one(tmp_path):
    out = tmp_path / "out"
    (tmp_path / "x").write_bytes(bytes(PART_BYTES))
    assert len(pack([tmp_path / "x"], base=tmp_path, out=out, name="p")) == 2
    (tmp_path / "x").write_bytes(b"")
    assert pack([tmp_path / "x"], base=tmp_path, out=out, name="p") == parts_of(out, "p")
    assert len(parts_of(out, "p")) == 1


def test_an_archive_that_lacks_a_part_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(bytes(PART_BYTES))
    pack([tmp_path / "x"], base=tmp_path, out=tmp_path / "out", name="p")
    (tmp_path / "out/p.tar.01").unlink()
    with pytest.raises(UsageError, match="p lacks a part"):
        unpack(tmp_path / "out", base=tmp_path / "there")


def test_a_folder_without_archives_is_refused(tmp_path):
    with pytest.raises(UsageError, match="has no parts"):
        unpack(tmp_path, base=tmp_path)
    assert archives.STATE_BYTES == 48 * 1024 * 1024
