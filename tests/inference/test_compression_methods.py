"""VisionZip, EVS and FlashVID through `load`: images, videos, conversations, NSA behind them."""

import numpy as np
import pytest
import torch
from PIL import Image

import videonsa
from videonsa.cli.common import attention_text
from videonsa.errors import UsageError
from videonsa.inference.session import Session
from videonsa.models.methods.registry import parse_method
from videonsa.models.tower_probe import EncodedFrames

DRAWN = {"max_new_tokens": 4, "temperature": 1.0, "seed": 3}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (84, 112, 3), dtype=np.uint8))
METHODS = {
    "visionzip": ("visionzip:ratio=0.34", 16, 4),
    "evs": ("evs:pruning_rate=0.5", 24, 12),
    "flashvid": ("flashvid:ratio=0.3,layer_ratio=1", 20, 5),
}
"""As text; tokens kept of the 48 of the clip, and of the 12 of the picture."""
LIMITS = {
    "visionzip": "visionzip:ratio=1",
    "evs": "evs:pruning_rate=0",
    "flashvid": "flashvid:ratio=1,layer_ratio=1",
}


def moved(frames, device):
    """The same frames on a device."""
    received, keys = (one.to(device) for one in (frames.received[0], frames.keys))
    return frames._replace(features=frames.features.to(device), received=(received,), keys=keys)


@pytest.fixture
def qa(tiny_folder, request):
    text, *counts = METHODS[request.param]
    return videonsa.load(tiny_folder, method=f"{text}+nsa", device="cpu"), *counts


@pytest.mark.parametrize("qa", METHODS, indirect=True)
def test_a_conversation_about_a_video_and_an_image_with_nsa_behind(qa, clip_path):
    qa, of_clip, of_picture = qa
    plan = videonsa.plan_video(clip_path, qa.name, method=qa.model.method)
    session = qa.open(clip_path)
    first = session.ask("What?", **DRAWN).usage
    assert first.video_tokens == of_clip <= plan.video_tokens
    assert first.encoded_tokens == 48
    assert first.cached_tokens > 0
    options = METHODS[first.attention.partition("+")[0]][0].partition(":")[2].split(",")
    assert all(option.replace("=", " ") in attention_text(first) for option in options)
    session.join(PICTURE, fresh=True)
    both = session.ask("What?", **DRAWN)
    assert both.usage.video_tokens == of_clip + of_picture
    at_once = Session(qa)
    for clip in (clip_path, PICTURE):
        at_once.show(qa.encode(clip, qa.wanted_sampling(clip, None, {})))
    again = at_once.ask("What?", **DRAWN)
    assert (again.text, again.usage.prompt_tokens) == (both.text, both.usage.prompt_tokens)
    assert again.usage.computed.left[0].tokens == of_clip + of_picture


@pytest.mark.parametrize("name", METHODS)
def test_at_the_limit_it_is_dense_bit_by_bit(tiny_folder, clip_path, name):
    answers = [
        videonsa.load(tiny_folder, method=method, device="cpu").ask(clip_path, "What?", **DRAWN)
        for method in (LIMITS[name], "dense")
    ]
    assert answers[0].text == answers[1].text
    assert answers[0].usage.prompt_tokens == answers[1].usage.prompt_tokens
    qa = videonsa.load(tiny_folder, method=LIMITS[name], device="cpu")
    frames = videonsa.read_video(clip_path).frames
    with torch.inference_mode():
        kept, whole = qa.model.encode_kept([frames]), qa.model.encode_frames([frames])
    assert torch.equal(kept.features, whole)
    assert torch.equal(kept.places, torch.arange(48))


@pytest.mark.parametrize("name", METHODS)
def test_published_defaults_answer_about_an_image_and_a_video(tiny_folder, clip_path, name):
    qa = videonsa.load(tiny_folder, method=name, device="cpu")
    for shown in (clip_path, PICTURE):
        usage = qa.ask(shown, "What?", max_new_tokens=2).usage
        assert 0 < usage.video_tokens <= usage.encoded_tokens
        assert usage.attention == name


def test_one_compression_and_one_leaving_at_a_time():
    for text in ("visionzip+evs", "visionzip+fastv", "flashvid+visionzip+nsa"):
        with pytest.raises(UsageError, match="one method lets tokens leave"):
            parse_method(text)


def test_frames_follow_only_where_each_is_chosen_alone(tiny_folder):
    videonsa.load(tiny_folder, method="visionzip", device="cpu").open_live()
    for name in ("evs", "flashvid:layer_ratio=1"):
        with pytest.raises(UsageError, match="compares all frames of a video"):
            videonsa.load(tiny_folder, method=name, device="cpu").open_live()


@pytest.mark.gpu
@pytest.mark.parametrize("name", METHODS)
def test_a_gpu_keeps_the_same_tokens_of_the_same_features(name):
    method = parse_method(METHODS[name][0])
    generator = torch.Generator().manual_seed(5)
    still, *moving = torch.randn(5, 12, 64, generator=generator)
    features = torch.cat([still + 0.3 * frame for frame in moving])
    keys = torch.randn(48, 64, generator=generator)
    received = torch.rand(48, generator=generator)
    frames = EncodedFrames(features, (4, 3, 4), (received,), keys)
    wanted, found = method.compress(frames), method.compress(moved(frames, "cuda"))
    assert torch.equal(found.places.cpu(), wanted.places)
    torch.testing.assert_close(found.features.cpu(), wanted.features, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", METHODS)
def test_a_gpu_answers_in_bfloat16_by_captured_steps(tiny_folder, clip_path, name):
    text, of_clip, _ = METHODS[name]
    qa = videonsa.load(tiny_folder, method=text, device="cuda", dtype="bfloat16")
    answer = qa.ask(clip_path, "What?", **DRAWN)
    assert answer.usage.video_tokens == of_clip
    assert "captured" in answer.decoding
