"""Each refusal is one line that says the reason and what to do, and nothing is changed by it."""

import errno
import json
import os
import random
import shutil
import threading
from pathlib import Path

import pytest
import torch
from damage import DAMAGES, damage, wrong_values
from stored_caches import Filled, assert_equal, filled
from tiny_models import SPEC, tiny

from videonsa.disk import sole_writer
from videonsa.errors import BudgetError, UsageError
from videonsa.models.methods import NSA, Dense
from videonsa.models.stored_cache import contents as contents_module
from videonsa.models.stored_cache import load as load_module
from videonsa.models.stored_cache.contents import CONTENTS, NUMBER
from videonsa.models.stored_cache.load import load_cache
from videonsa.models.stored_cache.save import save_cache
from videonsa.models.stored_cache.tensor_files import TensorWriter


@pytest.fixture(scope="module")
def one() -> Filled:
    return filled("tokens left")


@pytest.fixture
def folder(one: Filled, tmp_path: Path) -> Path:
    save_cache(tmp_path / "saved", one.cache, one.model, method=one.method, state={"a": 1})
    return tmp_path / "saved"


def refused(one: Filled, folder: Path, wanted: str, *, model=None, method=None, **more) -> None:
    with pytest.raises(UsageError, match=wanted) as caught:
        load_cache(folder, model or one.model, method=method or one.method, **more)
    assert "\n" not in str(caught.value)


def rewrite(folder: Path, **changes) -> None:
    path = folder / CONTENTS
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_that_is_not_there(one, tmp_path):
    refused(one, tmp_path / "a", f"a has no {CONTENTS}: want the folder of a stored cache; name")


def test_a_folder_whose_replacing_was_killed_in_between_is_told_of(one, folder):
    folder.rename(folder.with_name(".saved.replaced"))
    refused(one, folder, r"it may be \.saved\.replaced beside it: rename that")


def test_a_foreign_folder(one, folder):
    rewrite(folder, format="something")
    refused(one, folder, "is not of a stored cache .format 'something'.: .* name another folder")


def test_a_newer_format(one, folder):
    rewrite(folder, number=NUMBER + 1)
    refused(one, folder, f"is of format {NUMBER + 1}, which a newer videonsa wrote: .* update")


@pytest.mark.parametrize(
    "name", [CONTENTS, "layer-000.safetensors", "tokens.safetensors", "session.safetensors"]
)
def test_a_missing_file(one, folder, name):
    (folder / name).unlink()
    refused(one, folder, f"(lacks|has no) {name}: ")


def test_a_truncated_file(one, folder):
    path = folder / "layer-001.safetensors"
    size = path.stat().st_size
    os.truncate(path, size - 1)
    refused(one, folder, rf"layer-001\S+ has {size - 1} bytes, and {size} were written: save it")


@pytest.mark.parametrize("name", ["layer-001.safetensors", "tokens.safetensors"])
@pytest.mark.parametrize("place", [3, 40, -5])
def test_one_wrong_bit_anywhere(one, folder, name, place):
    content = bytearray((folder / name).read_bytes())
    content[place] ^= 1
    (folder / name).write_bytes(content)
    refused(one, folder, rf"{name} is damaged \((its checksum differs|it holds other tensors)\): ")


def test_one_wrong_digit_of_the_state(one, folder):
    text = (folder / CONTENTS).read_text()
    (folder / CONTENTS).write_text(text.replace('"state": {"a": 1}', '"state": {"a": 2}'))
    refused(one, folder, "is damaged .its checksum differs.: save it again, or take a copy")


def test_two_files_that_changed_places(one, folder):
    other = folder.with_name("other")
    save_cache(other, filled("tokens left").cache, one.model, method=one.method, state={"a": 1})
    first, second = (folder / f"layer-00{i}.safetensors" for i in range(2))
    shutil.copy(other / second.name, first)
    refused(one, folder, "were written")


def test_other_weights(one, folder):
    refused(one, folder, "was saved with other weights: load it with the model", model=tiny(seed=2))


def test_another_spec_and_another_method(one, folder):
    other = type(one.method)(SPEC.with_options(window_size=9))
    refused(one, folder, "was saved with spec.window_size 6, now 9: load it", method=other)
    refused(one, folder, 'was saved with method "nsa", now "dense"; spec', method=Dense())


def test_another_dtype(one, folder):
    refused(one, folder, 'dtype "float32", now "bfloat16"; other weights', model=tiny().bfloat16())


def test_what_else_must_be_equal(one, folder):
    save_cache(folder, one.cache, one.model, method=one.method, also={"tokenizer": "a"})
    load_cache(folder, one.model, method=one.method, also={"tokenizer": "a"})
    refused(one, folder, 'with tokenizer "a", now "b"', also={"tokenizer": "b"})


def test_other_versions_are_told_of_and_loaded(one, folder, monkeypatch):
    monkeypatch.setattr(contents_module, "versions", lambda: {"torch": "99.0"})
    loaded = load_cache(folder, one.model, method=one.method)
    (note,) = loaded.notes
    assert f"was saved with torch {torch.__version__} (now 99.0)" in note
    assert_equal(loaded.cache, one.cache)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 10 bytes")],
)
def test_what_does_not_fit_the_memory(one, folder, monkeypatch, error):
    def no_room(*_, **__):
        raise error

    monkeypatch.setattr(load_module, "_memory", no_room)
    with pytest.raises(BudgetError, match=r"GB on the disk and does not fit the memory"):
        load_cache(folder, one.model, method=one.method)


@pytest.mark.parametrize("name", [CONTENTS, "layer-001.safetensors", "tokens.safetensors"])
def test_whatever_befalls_a_file_it_is_refused_in_one_line(one, folder, name):
    kept = folder.with_name("kept")
    folder.rename(kept)
    for kind in random.Random(0).sample(sorted(DAMAGES), 25):
        shutil.copytree(kept, folder)
        damage(folder / name, kind)
        if not (folder / name).is_fifo() and (folder / name).is_file():
            assert (folder / name).read_bytes() != (kept / name).read_bytes()
        refused(one, folder, ": ")
        shutil.rmtree(folder)


def test_wrong_contents_with_the_right_checksum_are_refused_too(one, folder):
    stated = json.loads((folder / CONTENTS).read_text())
    rng, found = random.Random(0), list(wrong_values(stated["contents"]))
    for wrong in rng.sample(found, 150):
        crc = contents_module._crc_of(wrong)
        rewrite(folder, contents=wrong, crc32=crc)
        try:
            load_cache(folder, one.model, method=one.method)
        except (UsageError, BudgetError) as error:
            assert "\n" not in str(error)


def test_a_folder_of_something_else_is_not_replaced(one, folder, tmp_path):
    (folder / "notes.txt").write_text("mine")
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(UsageError, match=r"is a folder with notes\.txt, and would be replaced: na"):
        save_cache(folder, one.cache, one.model)
    assert sorted(path.name for path in folder.iterdir()) == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="file is a file, and would be replaced"):
        save_cache(tmp_path / "file", one.cache, one.model)
    (folder / "notes.txt").unlink()
    rewrite(folder, format="else")
    with pytest.raises(UsageError, match=rf"no {CONTENTS} of a stored cache"):
        save_cache(folder, one.cache, one.model)


def test_an_empty_folder_is_filled_and_a_link_stays_one(one, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    save_cache(tmp_path / "link", one.cache, one.model, method=one.method)
    assert (tmp_path / "link").is_symlink()
    assert_equal(load_cache(tmp_path / "real", one.model, method=one.method).cache, one.cache)


def test_too_little_room_is_told_before_anything_is_written(one, folder, monkeypatch):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    usage = shutil.disk_usage(folder)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(TensorWriter, "write", lambda *_: pytest.fail("written"))
    wanted = r"saving to .*saved needs 0\.00 GB but 0\.00 GB are free: .* or save in 8 bits"
    with pytest.raises(UsageError, match=wanted):
        save_cache(folder, one.cache, one.model)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["saved"]


def test_a_disk_that_fills_up_leaves_what_was_there(one, folder, monkeypatch):
    put, calls = TensorWriter.write, []

    def fill(writer, piece):
        calls.append(1)
        if len(calls) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(writer, piece)

    monkeypatch.setattr(TensorWriter, "write", fill)
    with pytest.raises(UsageError, match=r"cannot write .*saved \(No space left on device\): name"):
        save_cache(folder, one.cache, one.model)
    assert [path.name for path in folder.parent.iterdir()] == ["saved"]
    assert_equal(load_cache(folder, one.model, method=one.method).cache, one.cache)


def test_a_save_that_is_interrupted_leaves_what_was_there_and_no_thread(one, folder, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    threads = threading.enumerate()
    monkeypatch.setattr(TensorWriter, "finish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_cache(folder, one.cache, one.model)
    assert threading.enumerate() == threads
    assert [path.name for path in folder.parent.iterdir()] == ["saved"]
    assert_equal(load_cache(folder, one.model, method=one.method).cache, one.cache)


def test_a_second_writer_of_the_same_folder(one, folder):
    partial = folder.with_name(".saved.partial")
    partial.mkdir()
    with sole_writer(partial, work="a save"):
        with pytest.raises(UsageError, match=r"is being written by a save \(process"):
            save_cache(folder, one.cache, one.model)
        assert partial.exists()


def test_another_precision(one, tmp_path):
    with pytest.raises(UsageError, match="precision='int4': want one of exact, int8"):
        save_cache(tmp_path / "a", one.cache, one.model, precision="int4")


def test_a_state_that_is_no_json(one, tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save_cache(tmp_path / "a", one.cache, one.model, state={"a": float("nan")})
    assert not list(tmp_path.iterdir())


def test_the_models_own_method_is_the_one_that_counts_where_none_is_named(tmp_path):
    plain = filled("in chunks that cut frames")
    save_cache(tmp_path / "a", plain.cache, plain.model)
    load_cache(tmp_path / "a", plain.model, method=NSA(SPEC))
