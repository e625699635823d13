import json
from collections import Counter

import pytest
import torch
from conftest import TOKENIZER
from PIL import Image
from small_manifest import record, write_manifest

from videonsa.data.clip_source import ClipSource
from videonsa.data.dataset import VideoDataset
from videonsa.data.loader import PackedLoader
from videonsa.data.records import ImageRef, VideoRef
from videonsa.data.shapes import Shapes
from videonsa.errors import UsageError

CONTEXT = 1024
HOLE = 5


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TOKENIZER)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, tokenizer):
    """Rendered clips of two lengths, folders of frames of which one is gone, an image and text."""
    folder = tmp_path_factory.mktemp("mixed")
    clips = [
        entry.found
        for patches in (1, 8)
        for entry in ClipSource(count=5, patches=patches, first=7).entries()
    ]
    Image.new("RGB", (56, 28)).save(folder / "one.png")
    videos = []
    for index in range(7):
        (folder / f"v{index}").mkdir()
        for frame in range(4):
            Image.new("RGB", (56, 56), (30 * index, 0, 0)).save(folder / f"v{index}/{frame}.png")
        videos.append(record(f"v{index}", VideoRef(path=str(folder / f"v{index}")), turns=1))
    others = [record("image", ImageRef(path=str(folder / "one.png"))), record("text", turns=3)]
    manifest = write_manifest(folder / "m.parquet", [*clips, *others, *videos], tokenizer)
    for frame in range(4):
        (folder / f"v{HOLE}/{frame}.png").unlink()
    dataset = VideoDataset(manifest, tokenizer=tokenizer)
    yield dataset
    dataset.close()


@pytest.fixture(scope="module")
def epoch(mixed):
    return list(loader(mixed))


def loader(dataset, **options):
    options = {"max_tokens": CONTEXT, "seed": 5, "shapes": "equal", "max_failed_share": 1} | options
    return PackedLoader(dataset, **options)


def contents(batches):
    return [
        (batch.shape, batch.samples, batch.input_ids.tolist(), batch.labels.tolist())
        for batch in batches
    ]


def test_a_shape_says_what_is_true_of_all_its_packs(epoch, mixed, tokenizer):
    shapes = Counter(batch.shape for batch in epoch)
    assert sorted(shape.frames for shape in shapes if shape is not None) == [2, 4, 16]
    pad = tokenizer.convert_tokens_to_ids("<|video_pad|>")
    for batch in epoch:
        shape = batch.shape
        if shape is None:
            continue
        assert shape.tokens % 64 == 0
        assert len(batch.samples) == shape.samples == CONTEXT // shape.tokens
        assert batch.cu_seqlens.tolist() == [i * shape.tokens for i in range(shape.samples + 1)]
        vision = batch.input_ids.view(shape.samples, shape.tokens) == pad
        assert set(vision.sum(1).tolist()) == {shape.vision_tokens}
        assert set(vision.int().argmax(1).tolist()) == {shape.vision_begin}
        labels = batch.labels.view(shape.samples, shape.tokens) != -100
        assert int(labels.sum(1).max()) <= shape.most_labels
        assert {tuple(video.shape) for video in batch.videos} == {
            (shape.frames, 3, shape.height, shape.width)
        }
    for shape in Shapes(mixed.manifest, max_tokens=CONTEXT).shapes:
        rows = [i for i in range(len(mixed)) if mixed.manifest[i].num_frames == shape.frames]
        assert shape.tokens - 64 < max(mixed.lengths[rows]) <= shape.tokens
        assert shape.most_labels == max(mixed.manifest[i].label_tokens for i in rows)


def test_text_is_padded_at_its_end(epoch, mixed):
    batch = next(batch for batch in epoch if batch.shape is not None)
    ids = batch.input_ids.view(-1, batch.shape.tokens)
    labels = batch.labels.view(-1, batch.shape.tokens)
    for index, own_ids, own_labels in zip(batch.samples, ids, labels, strict=True):
        sample = mixed[index]
        length = len(sample.input_ids)
        assert torch.equal(own_ids[:length], sample.input_ids)
        assert torch.equal(own_labels[:length], sample.labels)
        assert set(own_ids[length:].tolist()) <= {mixed.pad_id}
        assert set(own_labels[length:].tolist()) <= {-100}


def test_an_epoch_holds_every_sample_and_says_how_many_it_repeats(mixed):
    one = loader(mixed)
    planned = [sample for pack in one.sampler.packing.packs for sample in pack]
    assert set(planned) == set(range(len(mixed)))
    repeated = len(planned) - len(mixed)
    assert repeated > 0
    assert f"3 equal shapes, filled with {repeated} samples a second time" in one.sampler.note
    assert "2 samples without one video alone" in one.sampler.note
    assert loader(mixed, shapes="any").sampler.note == ""


def test_a_sample_that_cannot_be_read_is_replaced_by_one_of_its_shape(mixed):
    hole = next(i for i in range(len(mixed)) if mixed.manifest[i].record.id == f"v{HOLE}")
    one = loader(mixed)
    batches = list(one)
    assert {failure.index for failure in one.failures} == {hole}
    assert all(hole not in batch.samples for batch in batches)
    kinds = Shapes(mixed.manifest, max_tokens=CONTEXT)
    for batch in batches:
        assert {kinds.of(sample) for sample in batch.samples} == {batch.shape}


def test_a_pack_is_as_large_where_nothing_is_left_to_replace_a_sample(tmp_path, tokenizer):
    records = []
    for name in ("gone", "there"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (56, 56)).save(tmp_path / name / "0.png")
        records.append(record(name, VideoRef(path=str(tmp_path / name))))
    manifest = write_manifest(tmp_path / "m.parquet", records, tokenizer)
    (tmp_path / "gone/0.png").unlink()
    dataset = VideoDataset(manifest, tokenizer=tokenizer)
    (batch,) = loader(dataset, max_tokens=192)
    dataset.close()
    assert batch.shape is not None
    assert batch.ids == ("there",) * batch.shape.samples
    assert batch.shape.samples > 1


def test_a_run_that_was_cut_resumes_with_the_packs_that_are_left(mixed, epoch):
    cut = loader(mixed, num_workers=1)  # which changes nothing
    seen = []
    for batch in cut:
        seen.append(batch)
        if len(seen) == 2:
            state = json.dumps(cut.state_dict())
            break
    again = loader(mixed)
    again.load_state_dict(json.loads(state))
    assert contents(seen) + contents(again) == contents(epoch)
    with pytest.raises(UsageError, match="has shapes='equal', this run 'any'"):
        loader(mixed, shapes="any").load_state_dict(json.loads(state))


def test_padding_leaves_the_loss_as_it_was(tmp_path, tiny_folder, tokenizer):
    from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration

    (tmp_path / "v").mkdir()
    for frame in range(4):
        Image.new("RGB", (56, 56), (0, 60 * frame, 0)).save(tmp_path / f"v/{frame}.png")
    video = VideoRef(path=str(tmp_path / "v"))
    records = [record("a", video), record("b", video, turns=2)]
    manifest = write_manifest(tmp_path / "m.parquet", records, tokenizer)
    dataset = VideoDataset(manifest, tokenizer=tokenizer)
    model = VideoNSAForConditionalGeneration.from_pretrained(tiny_folder)
    (padded,) = loader(dataset, max_tokens=256)
    (packed,) = loader(dataset, max_tokens=256, shapes="any")
    dataset.close()
    assert padded.num_tokens > packed.num_tokens
    with torch.no_grad():
        losses = [model(**batch.model_inputs()).loss for batch in (padded, packed)]
    torch.testing.assert_close(*losses, atol=1e-6, rtol=1e-6)
