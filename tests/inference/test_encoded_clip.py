"""Frames go to the tower while later ones decode."""

import threading

import pytest
import torch
from conftest import write_clip
from PIL import Image

import videonsa
from videonsa.errors import UsageError, VideoError
from videonsa.inference import encoded_clip
from videonsa.inference.context import Context
from videonsa.inference.encoded_clip import encode_clip
from videonsa.models.methods.compression import Kept
from videonsa.models.shape import VisionShape
from videonsa.video import decode
from videonsa.video.sampling import SamplingSpec

VISION = VisionShape(out_hidden_size=64)
SIZE = 4
"""Frames of a part, in the tests that say so."""


@pytest.fixture(scope="module")
def qa(tiny_folder):
    return videonsa.load(tiny_folder, device="cpu")


@pytest.fixture(scope="module")
def long_path(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("long") / "clip.mp4", num_frames=41)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(encoded_clip, "PATCHES_PER_PART", SIZE // 2 * 6 * 8)


def num_workers():
    return sum(thread.name.startswith("video worker") for thread in threading.enumerate())


def encoded(video, encode, **sampling):
    def kept(parts):
        return Kept(encode(parts))

    return encode_clip(video, SamplingSpec(**sampling), kept, vision=VISION)


def joined(parts):
    return torch.cat(list(parts))


def test_a_file_gives_the_frames_and_facts_of_its_clip(long_path, small_parts):
    for sampling in ({}, {"num_frames": 41}, {"mode": "keyframes"}, {"num_frames": 1}):
        clip = videonsa.read_video(long_path, sampling=SamplingSpec(**sampling))
        stream = decode.stream_video(long_path, sampling=SamplingSpec(**sampling))
        for seen in (encoded(long_path, joined, **sampling), encoded(stream, joined)):
            assert torch.equal(seen.features, clip.frames)
            told = seen.times, seen.warnings, seen.notes
            assert told == (clip.times, clip.warnings, clip.notes)
        assert (seen.height, seen.width) == clip.frames.shape[2:]
        assert seen.seconds > 0
        assert torch.equal(encoded(clip, joined).features, clip.frames)


def test_parts_hold_whole_temporal_patches(long_path, small_parts):
    sizes = []

    def encode(parts):
        sizes.extend(map(len, parts))
        return torch.zeros(1)

    encoded(long_path, encode, num_frames=41)
    assert sizes == [SIZE] * 10 + [1]
    sizes.clear()
    encoded(videonsa.read_video(long_path, sampling=SamplingSpec(num_frames=41)), encode)
    assert sizes == [SIZE] * 10 + [1]


def test_a_file_and_its_clip_give_the_same_features_bit_by_bit(qa, long_path, small_parts):
    clip = videonsa.read_video(long_path)
    with torch.no_grad():
        streamed, whole = (encoded(item, qa.model.encode_frames) for item in (long_path, clip))
    assert torch.equal(streamed.features, whole.features)


def test_later_frames_decode_while_a_part_is_encoded(long_path, small_parts, monkeypatch):
    """With one worker, and no more than a few frames ahead."""
    made = 0
    more = threading.Condition()
    resized = decode._resized

    def counted(*args):
        nonlocal made
        with more:
            made += 1
            more.notify_all()
        return resized(*args)

    def encode(parts):
        taken = 0
        for part in parts:
            taken += len(part)
            if taken == SIZE:
                assert made < 41, "all frames were decoded before the first part was taken"
                with more:  # this thread asks for nothing now
                    assert more.wait_for(lambda: made >= SIZE + 4, timeout=30)
        return torch.zeros(1)

    monkeypatch.setattr(decode, "_resized", counted)
    monkeypatch.setattr(decode, "BYTES_AHEAD", 0)
    encoded(long_path, encode, num_frames=41)
    assert made == 41


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_an_error_while_encoding_stops_the_reading(long_path, small_parts, taken):
    def encode(parts):
        for _ in zip(range(taken), parts, strict=False):
            pass
        raise ArithmeticError("tower")

    with pytest.raises(ArithmeticError, match="tower"):
        encoded(long_path, encode)
    assert num_workers() == 0


def test_an_error_of_the_reader_arrives_as_it_is(qa, long_path, small_parts, monkeypatch):
    def fails(picture, plan):
        raise OSError("disk")

    monkeypatch.setattr(decode, "_resized", fails)
    with pytest.raises(OSError, match="disk"):
        qa.ask(long_path, "What?")
    assert num_workers() == 0


def test_lost_frames_are_in_neither_the_times_nor_the_positions(qa, tmp_path, monkeypatch):
    for index in range(6):
        Image.new("RGB", (112, 84), (40 * index, 90, 200)).save(tmp_path / f"{index}.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:60])
    given = []
    passage = Context.passage

    def spy(self, ids, vision=(), **options):
        given.append(vision)
        return passage(self, ids, vision, **options)

    monkeypatch.setattr(Context, "passage", spy)
    options = {"max_new_tokens": 4, "temperature": 1.0, "seed": 3}
    answer = qa.ask(tmp_path, "What?", **options)
    assert answer.usage.times == (0.0, 0.5, 1.5, 2.0, 2.5)
    assert answer.usage.warnings == (
        "1 of 6 frames lost between 1.00 s and 1.00 s: the file is damaged or ends early",
    )
    ((video,),) = given
    assert video.seconds == (0.0, 1.5, 2.5)
    assert video.grid == (3, 6, 8)
    assert qa.ask(videonsa.read_video(tmp_path), "What?", **options).text == answer.text


def test_a_video_of_which_nothing_decodes_is_an_error(qa, tmp_path):
    image = tmp_path / "one.jpg"
    Image.effect_noise((112, 84), 90).convert("RGB").save(image)
    image.write_bytes(image.read_bytes()[:2000])
    with pytest.raises(VideoError, match="none of the 1 sampled frames decodes"):
        qa.ask(image, "What?")


def test_a_clip_without_one_time_a_frame_or_for_a_decoder_is_refused(qa, long_path):
    clip = videonsa.read_video(long_path)
    with pytest.raises(UsageError, match="read already and decoder='gpu'"):
        qa.ask(clip, "What?", decoder="gpu")
    object.__setattr__(clip, "times", clip.times[:-1])
    with pytest.raises(UsageError, match="wanted one time a frame"):
        qa.ask(clip, "What?")
