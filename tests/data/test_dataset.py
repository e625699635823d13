import os
import pickle
import time
from dataclasses import replace

import pytest
import torch
from conftest import TOKENIZER, write_clip
from PIL import Image
from small_manifest import SAMPLING, record, write_manifest

from videonsa.data import dataset as dataset_module
from videonsa.data.dataset import Failure, Sample, VideoDataset
from videonsa.data.isolated import IsolatedCaller
from videonsa.data.records import ImageRef, VideoRef
from videonsa.data.scripts import script_text
from videonsa.errors import ModelError
from videonsa.ops.drawing import draw_frames
from videonsa.rendered.suite import SuiteSpec, make_script, render_frames
from videonsa.video.decode import read_video
from videonsa.video.processing import build_prompt


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TOKENIZER)


@pytest.fixture(scope="module")
def reader():
    caller = IsolatedCaller(deadline=60.0)
    yield caller
    caller.close()


@pytest.fixture
def make(tmp_path, tokenizer, reader):
    """A dataset of records; all share one reader, which takes seconds to start."""

    def dataset(*records, max_tokens=None, **options):
        path = tmp_path / "m.parquet"
        manifest = write_manifest(path, records, tokenizer, max_tokens=max_tokens)
        made = VideoDataset(manifest, tokenizer=tokenizer, **options)
        made._call = reader
        reader.deadline = 60.0
        return made

    return dataset


def write_image(path, size=(60, 90), level=40):
    Image.new("RGB", size, (level, 90, 200)).save(path)
    return str(path)


def test_a_video_is_what_the_model_is_asked_about(make, clip_path, tokenizer):
    dataset = make(record("clip", VideoRef(path=str(clip_path))))
    sample = dataset[0]
    clip = read_video(clip_path, sampling=SAMPLING)
    prompt = build_prompt([clip], "What of clip, 0?", tokenizer=tokenizer, answer="Yes.")
    assert isinstance(sample, Sample)
    assert torch.equal(sample.input_ids, prompt.input_ids[0])
    assert torch.equal(sample.labels, prompt.labels[0])
    assert torch.equal(sample.videos[0], clip.frames)
    assert sample.video_times == prompt.video_times
    assert sample.images == ()
    assert (sample.index, sample.id) == (0, "clip")
    assert len(dataset) == 1
    assert len(sample.input_ids) == dataset.lengths[0]


def test_seconds_are_stretched_by_a_factor_of_the_samples_own(make, clip_path):
    records = [record(f"clip{i}", VideoRef(path=str(clip_path))) for i in range(6)]
    (plain,) = make(*records)[0].video_times
    dataset = make(*records, most_time_scale=4.0)
    stretched = [dataset[i].video_times[0] for i in range(6)]
    factors = [times[-1] / plain[-1] for times in stretched]
    assert len(set(factors)) == 6 and 1 < min(factors) < 2 < max(factors) < 4
    assert all(
        times == pytest.approx([factor * time for time in plain])
        for times, factor in zip(stretched, factors, strict=True)
    )
    assert dataset[3].video_times[0] == stretched[3]


def test_videos_images_and_lists_of_frames_keep_their_order(make, clip_path, tmp_path):
    pictures = [write_image(tmp_path / f"{i}.png", level=20 * i) for i in range(6)]
    listed = VideoRef(frames=tuple(pictures), frame_rate=1.0, fps=1.0)
    both = record("both", listed, ImageRef(path=pictures[3]), VideoRef(path=str(clip_path)))
    sample = make(both, record("text"))[0]
    assert [len(frames) for frames in sample.videos] == [6, 8]
    assert sample.video_times[0] == (0.0, 2.0, 4.0)
    assert [frames[0, 0, 0, 0].item() for frames in (sample.videos[0], *sample.images)] == [0, 60]


def test_a_video_of_the_suite_is_what_it_is_drawn_from(make):
    script = make_script(7, spec=SuiteSpec(num_frames=120, kinds=("needle",)))
    sample = make(record("suite", VideoRef(script=script_text(script))))[0]
    assert sample.videos[0].shape == (120, 3, 112, 112)
    assert torch.equal(draw_frames(sample.videos[0]), render_frames(script, 0, 120))
    assert sample.video_times[0] == tuple(float(second) for second in range(60))


def test_text_alone_has_no_vision(make):
    dataset = make(record("text", turns=2))
    sample = dataset[0]
    assert sample.videos == sample.images == sample.video_times == ()
    assert int((sample.labels != -100).sum()) > 4
    last = make(record("text", turns=2), loss="last")[0]
    assert torch.equal(last.input_ids, sample.input_ids)
    assert 2 * int((last.labels != -100).sum()) == int((sample.labels != -100).sum())


def test_turns_that_the_manifest_cut_are_not_there(make, tmp_path):
    picture = write_image(tmp_path / "one.png")
    long = record("long", ImageRef(path=picture), turns=9)
    whole = int(make(long).lengths[0])
    dataset = make(long, max_tokens=whole - 1)
    assert len(dataset[0].input_ids) == dataset.lengths[0] < whole


def broken(path, clip_path):
    """Each a file that was sound when the manifest was built."""
    data = clip_path.read_bytes()
    kind = path.stem
    if kind == "missing":
        path.unlink()
    elif kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        contents = {"empty": b"", "text": b"no video " * 99, "short": data[: len(data) // 3]}
        path.write_bytes(contents[kind])


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "short", "pipe"])
def test_a_broken_file_is_a_failure_and_the_next_sample_is_read(make, clip_path, tmp_path, kind):
    path = tmp_path / f"{kind}.mp4"
    path.write_bytes(clip_path.read_bytes())
    dataset = make(
        record("bad", VideoRef(path=str(path))), record("good", VideoRef(path=str(clip_path)))
    )
    broken(path, clip_path)
    failure = dataset[0]
    assert isinstance(failure, Failure)
    assert (failure.index, failure.id, failure.file) == (0, "bad", str(path))
    assert failure.kind == "broken"
    assert failure.reason
    assert "\n" not in failure.reason
    assert isinstance(dataset[1], Sample)


def never_end(media, sampling):
    time.sleep(600)


def test_a_file_that_hangs_is_a_failure_at_its_deadline(make, clip_path, monkeypatch):
    dataset = make(record("clip", VideoRef(path=str(clip_path))))
    dataset._call.deadline = 1.0
    begun = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(dataset_module, "_read_alone", never_end)
        failure = dataset[0]
    assert 1 <= time.monotonic() - begun < 10
    assert (failure.kind, failure.reason) == ("hangs", "not read in 1 s")
    dataset._call.deadline = 60.0
    assert isinstance(dataset[0], Sample)


def end_the_process(media, sampling):
    os.abort()


def test_a_file_that_ends_the_decoder_is_a_failure(make, clip_path, monkeypatch):
    dataset = make(record("clip", VideoRef(path=str(clip_path))))
    with monkeypatch.context() as patch:
        patch.setattr(dataset_module, "_read_alone", end_the_process)
        failure = dataset[0]
    assert failure.kind == "dies"
    assert "signal 6" in failure.reason
    assert isinstance(dataset[0], Sample)


def test_a_file_that_changed_since_the_build_is_a_failure(make, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", num_frames=8)
    dataset = make(record("clip", VideoRef(path=str(path))))
    write_clip(path, num_frames=12)
    assert "12 frames of 56x56, the manifest says 8 of 56x56" in dataset[0].reason
    write_clip(path, num_frames=8, width=224, height=56)
    assert "it has changed since" in dataset[0].reason


@pytest.mark.parametrize(("lost", "fails"), [(1, False), (3, True)])
def test_a_video_may_lack_few_frames(make, tmp_path, lost, fails):
    pictures = [write_image(tmp_path / f"{i:02}.png") for i in range(20)]
    dataset = make(record("list", VideoRef(frames=tuple(pictures))))
    for path in pictures[-lost:]:
        os.truncate(path, 60)
    result = dataset[0]
    if fails:
        assert result.reason == "only 17 of 20 frames can be decoded"
    else:
        assert len(result.videos[0]) == 19
        assert len(result.input_ids) == dataset.lengths[0]


def test_another_tokenizer_is_an_error(make, tokenizer):
    class ByCharacter:
        def encode(self, text, **options):
            return [5] * len(text)

        def convert_tokens_to_ids(self, token):
            return tokenizer.convert_tokens_to_ids(token)

    dataset = make(record("text"))
    with pytest.raises(ModelError, match="want the tokenizer that it was built with"):
        VideoDataset(dataset.manifest, tokenizer=ByCharacter())[0]


def test_a_copy_reads_by_itself(make, clip_path):
    dataset = make(record("clip", VideoRef(path=str(clip_path))))
    twin = pickle.loads(pickle.dumps(dataset)).reopened()
    assert twin.manifest is not dataset.manifest
    assert torch.equal(twin[0].videos[0], dataset[0].videos[0])
    assert twin._call._running is not dataset._call._running
    twin.close()


def test_there_is_no_row_beyond_the_last(make):
    with pytest.raises(IndexError):
        make(record("text"))[1]


@pytest.mark.parametrize("rate", [1.0, 2.0])
def test_training_counts_positions_as_asking_does(make, tmp_path, tokenizer, rate):
    path = write_clip(tmp_path / "clip.mp4", num_frames=48, fps=8)
    dataset = make(record("clip", VideoRef(path=str(path), fps=rate)))
    clip = read_video(path, sampling=replace(SAMPLING, fps=rate))
    prompt = build_prompt([clip], "What of clip, 0?", tokenizer=tokenizer, answer="Yes.")
    assert dataset[0].video_times == prompt.video_times
    assert prompt.video_times[0] == tuple(2 / rate * i for i in range(int(3 * rate)))
