import pytest
import torch
from tiny_models import START, VIDEO, tiny

from videonsa.errors import UsageError
from videonsa.models import features
from videonsa.video.processing import patchify


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def frames():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (9, 3, 56, 84), generator=generator, dtype=torch.uint8)


def encoded(model, frames):
    patches = patchify(frames)
    return model.encode_vision(patches.pixels, [patches.grid])


def test_frames_in_one_part_give_the_features_of_their_patches(model, frames):
    assert torch.equal(model.encode_frames([frames]), encoded(model, frames))


@pytest.mark.parametrize("sizes", [[2, 2, 2, 2, 1], [4, 5], [8, 1], [6, 2, 1]])
def test_features_do_not_depend_on_where_parts_end(model, frames, sizes):
    features = model.encode_frames(frames.split(sizes))
    torch.testing.assert_close(features, encoded(model, frames), atol=1e-6, rtol=1e-6)


def test_a_large_part_goes_through_the_tower_in_chunks(model, frames, monkeypatch):
    monkeypatch.setattr(features, "PATCHES_PER_CHUNK", 50)  # two temporal patches
    chunks = []
    handle = model.model.visual.register_forward_pre_hook(
        lambda _, args: chunks.append(len(args[0]))
    )
    try:
        model.encode_frames([frames])
    finally:
        handle.remove()
    assert chunks == [48, 48, 24]


def test_a_part_is_encoded_before_the_next_is_asked_for(model, frames):
    order = []
    handle = model.model.visual.register_forward_pre_hook(lambda *_: order.append("encoded"))

    def parts():
        for part in frames.split(4):
            order.append("read")
            yield part

    try:
        model.encode_frames(parts())
    finally:
        handle.remove()
    assert order == ["read", "encoded"] * 3


def test_parts_that_do_not_fit_together_are_refused(model, frames):
    with pytest.raises(UsageError, match="more frames after a part of 3: want whole temporal"):
        model.encode_frames(frames.split(3))
    with pytest.raises(UsageError, match=r"frames of \[3, 28, 84\] after \[3, 56, 84\]"):
        model.encode_frames([frames[:2], frames[:2, :, :28]])
    with pytest.raises(UsageError, match="no frames came"):
        model.encode_frames([])
    with pytest.raises(UsageError, match=r"wanted torch.uint8 \[N, 3, H, W\]"):
        model.encode_frames([frames.float()])


def test_a_prompt_of_features_gives_the_logits_of_its_pixels(model, frames):
    patches = patchify(frames)
    ids = torch.tensor([[20, START, *[VIDEO] * patches.num_tokens, 21, 22]])
    common = {
        "input_ids": ids,
        "video_grid_thw": torch.tensor([patches.grid]),
        "video_times": [(0.0, 1.5, 2.0, 4.0, 4.5)],
    }
    with torch.no_grad():
        wanted = model(**common, pixel_values_videos=patches.pixels).logits
        embeds = model.embed_prompt(ids, video_features=model.encode_frames([frames]))
        assert torch.equal(model(**common, inputs_embeds=embeds).logits, wanted)


def test_images_and_videos_of_a_batch_each_take_their_features(model):
    image = model.config.image_token_id
    ids = torch.tensor([[20, image, VIDEO, VIDEO], [VIDEO, 21, image, image]])
    rows = torch.arange(6.0)[:, None].expand(6, 64)
    with torch.no_grad():
        embeds = model.embed_prompt(ids, image_features=rows[:3], video_features=rows[3:])
        text = model.get_input_embeddings()(ids)[..., 0].tolist()
    assert embeds[..., 0].tolist() == [[text[0][0], 0, 3, 4], [5, text[1][1], 1, 2]]


def test_features_that_do_not_fit_the_tokens_are_refused(model):
    ids = torch.tensor([[20, VIDEO, VIDEO]])
    with pytest.raises(UsageError, match="1 video features but 2 video tokens"):
        model.embed_prompt(ids, video_features=torch.zeros(1, 64))
    with pytest.raises(UsageError, match="0 video features but 2 video tokens"):
        model.embed_prompt(ids)
    with pytest.raises(UsageError, match="1 image features but 0 image tokens"):
        model.embed_prompt(
            ids, image_features=torch.zeros(1, 64), video_features=torch.zeros(2, 64)
        )
