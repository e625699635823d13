import json
import logging

import pytest
import torch
from conftest import TOKENIZER, write_clip
from PIL import Image
from probe_functions import read_or_hang
from small_manifest import record, write_manifest

from videonsa.data import dataset as dataset_module
from videonsa.data.dataset import VideoDataset
from videonsa.data.loader import PackedLoader
from videonsa.data.records import ImageRef, VideoRef
from videonsa.errors import DataError, UsageError

NUM_SAMPLES = 40
MAX_TOKENS = 160
BAD = (3, 11, 26)


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TOKENIZER)


@pytest.fixture(scope="module")
def texts(tmp_path_factory, tokenizer):
    """Text of several lengths, no file needed."""
    records = [record(f"r{i}", turns=1 + i % 3) for i in range(NUM_SAMPLES)]
    manifest = write_manifest(tmp_path_factory.mktemp("m") / "m.parquet", records, tokenizer)
    return VideoDataset(manifest, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def holed(tmp_path_factory, tokenizer):
    """Text, and three samples whose image is gone."""
    folder = tmp_path_factory.mktemp("holed")
    records = []
    for i in range(NUM_SAMPLES):
        path = folder / f"{i}.png"
        Image.new("RGB", (56, 28)).save(path)
        media = (ImageRef(path=str(path)),) if i in BAD else ()
        records.append(record(f"r{i}", *media, turns=1 + i % 3))
    manifest = write_manifest(folder / "m.parquet", records, tokenizer)
    for i in BAD:
        (folder / f"{i}.png").unlink()
    dataset = VideoDataset(manifest, tokenizer=tokenizer)
    yield dataset
    dataset.close()


def loader(dataset, **options):
    return PackedLoader(dataset, **{"max_tokens": MAX_TOKENS, "seed": 5} | options)


def contents(batches):
    return [(batch.samples, batch.input_ids.tolist(), batch.labels.tolist()) for batch in batches]


def all_samples(batches):
    return [sample for batch in batches for sample in batch.samples]


def test_a_batch_is_its_samples_behind_one_another(texts):
    batch = next(iter(loader(texts)))
    assert len(batch.samples) > 1
    spans = batch.cu_seqlens.tolist()
    assert batch.cu_seqlens.dtype == torch.int32
    assert spans[0] == 0
    assert spans[-1] == batch.num_tokens <= MAX_TOKENS
    for index, start, stop in zip(batch.samples, spans, spans[1:], strict=False):
        assert torch.equal(batch.input_ids[0, start:stop], texts[index].input_ids)
        assert torch.equal(batch.labels[0, start:stop], texts[index].labels)
    assert batch.ids == tuple(f"r{index}" for index in batch.samples)


def test_an_epoch_holds_every_sample_once_and_the_next_in_another_order(texts):
    one = loader(texts)
    first, second = list(one), list(one)
    assert sorted(all_samples(first)) == sorted(all_samples(second)) == list(range(NUM_SAMPLES))
    assert all_samples(first) != all_samples(second)
    assert one.sampler.epoch == 2
    assert one.num_reads == 2 * NUM_SAMPLES


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(holed, num_workers):
    alone = loader(holed, max_failed_share=0.5)
    shared = loader(holed, max_failed_share=0.5, num_workers=num_workers)
    assert contents(shared) == contents(alone)
    assert shared.state_dict() == alone.state_dict()


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (2, 1)])
def test_a_run_that_was_cut_goes_on_with_exactly_the_samples_that_are_left(holed, before, after):
    whole = loader(holed, max_failed_share=0.5)
    wanted = contents(whole)
    cut = loader(holed, max_failed_share=0.5, num_workers=before)
    seen = []
    for batch in cut:
        seen.append(batch)
        if len(seen) == 5:
            state = json.dumps(cut.state_dict())
            break
    again = loader(holed, max_failed_share=0.5, num_workers=after)
    again.load_state_dict(json.loads(state))
    assert len(again) == len(wanted) - 5
    assert contents(seen) + contents(again) == wanted
    assert again.state_dict() == whole.state_dict()


def test_what_is_done_is_known_to_the_sample(texts):
    one = loader(texts)
    seen = [next(iter(one)) for _ in range(3)]  # left and entered again
    assert one.sampler.samples_done() == all_samples(seen)


def test_samples_that_fail_are_logged_counted_and_replaced(holed, caplog):
    one = loader(holed, max_failed_share=0.5)
    plan = list(one.sampler)
    with caplog.at_level(logging.WARNING, logger="videonsa.data.loader"):
        batches = list(one)
    assert sorted({failure.index for failure in one.failures}) == list(BAD)
    assert one.num_reads == NUM_SAMPLES + len(one.failures)
    lines = [entry.getMessage() for entry in caplog.records]
    assert len(lines) == len(one.failures) >= 3
    assert all("broken: " in line and "no such file" in line for line in lines)
    assert {line.split()[1] for line in lines} == {"r3", "r11", "r26"}
    for pack, batch in zip(plan, batches, strict=True):
        assert batch.num_tokens <= MAX_TOKENS
        assert len(batch.samples) == len(pack.samples)
        assert len(set(batch.samples)) == len(batch.samples)
        for planned, came in zip(pack.samples, batch.samples, strict=True):
            assert (came == planned) == (planned not in BAD)
            assert came not in BAD


def test_a_slot_that_nothing_fits_stays_empty(tmp_path, tokenizer):
    picture = tmp_path / "a.png"
    Image.new("RGB", (56, 28)).save(picture)
    records = [record("bad", ImageRef(path=str(picture))), record("good", turns=4)]
    manifest = write_manifest(tmp_path / "m.parquet", records, tokenizer)
    picture.unlink()
    dataset = VideoDataset(manifest, tokenizer=tokenizer)
    total = int(dataset.lengths.sum())
    (batch,) = loader(dataset, max_tokens=total, max_failed_share=0.5)
    assert batch.ids == ("good",)
    dataset.close()


def test_a_pack_of_which_nothing_is_left_stops_the_run(tmp_path, tokenizer):
    pictures = [tmp_path / f"{i}.png" for i in range(3)]
    for picture in pictures:
        Image.new("RGB", (56, 28)).save(picture)
    records = [record("r", ImageRef(path=str(picture))) for picture in pictures]
    manifest = write_manifest(tmp_path / "m.parquet", records, tokenizer)
    for picture in pictures:
        picture.unlink()
    dataset = VideoDataset(manifest, tokenizer=tokenizer)
    one = loader(dataset, max_tokens=int(dataset.lengths[0]), max_failed_share=1)
    with pytest.raises(DataError, match=r"nothing of a pack could be read.*0\.png \(1 times"):
        list(one)
    assert one.num_reads == 3
    dataset.close()


def test_more_failures_than_the_share_stop_the_run_and_name_the_files(holed):
    one = loader(holed, max_failed_share=0.06)
    with pytest.raises(DataError) as error:
        list(one)
    message = str(error.value)
    assert "\n" not in message
    assert f"3 of {one.num_reads} samples could not be read" in message
    assert "max_failed_share=0.06" in message
    assert all(f"{i}.png (1 times, broken: " in message for i in BAD)
    list(loader(holed, max_failed_share=0.08))


def test_failures_before_the_cut_count_after_it(holed):
    one = loader(holed, max_failed_share=0.06)
    for _ in one:
        if len(one.failures) == 2:
            break
    state = one.state_dict()
    again = loader(holed, max_failed_share=0.06, num_workers=1)
    again.load_state_dict(state)
    with pytest.raises(DataError, match=r"3 of \d+ samples"):
        list(again)


def test_a_worker_survives_a_file_that_hangs(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(dataset_module, "_read_alone", read_or_hang)
    videos = []
    for name in ("sound", "hangs", "fine"):
        folder = tmp_path / name
        folder.mkdir()
        for i in range(4):
            Image.new("RGB", (56, 56), (50 * i, 0, 0)).save(folder / f"{i}.png")
        videos.append(VideoRef(path=str(folder)))
    records = [record(video.path, video) for video in videos]
    manifest = write_manifest(tmp_path / "m.parquet", records, tokenizer)
    dataset = VideoDataset(manifest, tokenizer=tokenizer, deadline=5.0)
    longest = int(dataset.lengths.max())
    one = loader(dataset, max_tokens=longest, num_workers=1, max_failed_share=0.5)
    batches = list(one)
    assert [failure.kind for failure in one.failures] == ["hangs"]
    assert one.failures[0].file == str(tmp_path / "hangs")
    assert len(batches) == 3
    assert {0, 2} == set(all_samples(batches))


def test_random_numbers_of_the_model_are_left_alone(texts):
    torch.manual_seed(3)
    list(loader(texts))
    list(loader(texts, num_workers=1))
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))


def test_ranks_have_parts_of_the_same_epoch(texts):
    whole = list(loader(texts))
    ranks = [list(loader(texts, rank=rank, world_size=2)) for rank in range(2)]
    dealt = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    assert contents(dealt)[: len(whole)] == contents(whole)


def test_a_share_that_is_none_is_refused(texts):
    with pytest.raises(UsageError, match="want 0 to 1"):
        loader(texts, max_failed_share=2)


def test_a_packed_batch_of_videos_has_the_loss_of_its_samples(tmp_path, tiny_folder, tokenizer):
    from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration

    clips = [
        VideoRef(path=str(write_clip(tmp_path / f"{i}.mp4", num_frames=n, width=w, height=h)))
        for i, (n, w, h) in enumerate([(8, 112, 84), (12, 84, 84), (5, 56, 112)])
    ]
    Image.new("RGB", (84, 56), (9, 200, 30)).save(tmp_path / "one.png")
    image = ImageRef(path=str(tmp_path / "one.png"))
    records = [
        record("a", clips[0], turns=2),
        record("b", image, clips[1], answer="Red, then blue."),
        record("c"),
        record("d", clips[2], clips[0]),
    ]
    manifest = write_manifest(tmp_path / "m.parquet", records, tokenizer)
    dataset = VideoDataset(manifest, tokenizer=tokenizer)
    model = VideoNSAForConditionalGeneration.from_pretrained(tiny_folder)
    one = loader(dataset, max_tokens=int(dataset.lengths.sum()), num_workers=1)
    (batch,) = one
    assert sorted(batch.samples) == [0, 1, 2, 3]
    assert len(batch.videos) == 4
    together = model(**batch.model_inputs()).loss

    total, count = 0.0, 0
    for packed in loader(dataset, max_tokens=int(dataset.lengths.max())):
        inputs = packed.model_inputs()
        if len(packed.samples) == 1:  # as any caller would, nothing packed
            inputs.pop("cu_seqlens")
        labels = inputs["labels"][0].clone()
        labels[packed.cu_seqlens[:-1].long()] = -100
        learned = int((labels != -100).sum())
        total, count = total + model(**inputs).loss * learned, count + learned
    torch.testing.assert_close(together, total / count, atol=1e-5, rtol=1e-5)
    dataset.close()


def test_packs_of_text_alone_get_a_black_image_that_changes_no_loss(texts, tiny_folder):
    from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration

    model = VideoNSAForConditionalGeneration.from_pretrained(tiny_folder)
    plain, shown = (next(iter(loader(texts, always_vision=value))) for value in (False, True))
    assert plain.samples == shown.samples
    assert not plain.images and len(shown.images) == 1
    losses = [model(**batch.model_inputs(), loss_only=True).loss for batch in (plain, shown)]
    torch.testing.assert_close(*losses, atol=1e-6, rtol=1e-6)
    losses[1].backward()
    assert all(weight.grad is not None for weight in model.model.visual.parameters())
    assert not any(weight.grad.any() for weight in model.model.visual.parameters())
