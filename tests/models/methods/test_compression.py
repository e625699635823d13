"""Tokens that leave before the language model, against stock layers that read those left."""

import pytest
import torch
from compressing import EverySecond, SomeFrames
from leaving_by_hand import LAYERS, embedded, stock_twin
from tiny_models import IMAGE, VIDEO, prompt, tiny

from videonsa.errors import UsageError
from videonsa.inference.context import Context, EncodedVision
from videonsa.models.methods.compression import Kept, compress_clip
from videonsa.models.methods.dense import Dense
from videonsa.models.methods.nsa import NSA
from videonsa.models.rows import VisionInputs, compress_rows, whole_prompt
from videonsa.models.tower_probe import EncodedFrames

CLOSE = {"atol": 2e-6, "rtol": 1e-4}


@pytest.fixture(scope="module")
def model():
    return tiny(attention="dense", **LAYERS)


def clip(frames, rows, columns, seed=0):
    features = torch.randn(frames * rows * columns, 64, generator=torch.manual_seed(seed))
    return EncodedFrames(features, (frames, rows, columns))


def vision_of(method, encoded, kind="video"):
    """An image or video as a context takes it, a second for each frame."""
    kept = compress_clip(method, [encoded])
    time, rows, columns = encoded.grid
    seconds = tuple(map(float, range(time))) if kind == "video" else ()
    return EncodedVision(kind, kept.features, (time, 2 * rows, 2 * columns), seconds, kept.places)


@pytest.mark.parametrize("method", [EverySecond(), SomeFrames()], ids=lambda one: one.name)
def test_logits_are_those_of_stock_layers_that_read_the_tokens_left(model, method):
    """Also of text that follows: it stands behind all tokens, those that left included."""
    inputs, more = prompt(5), [40, 41]
    embeds, positions, is_video = embedded(model, inputs)
    grid = (5, 2, 2)
    video = vision_of(method, EncodedFrames(embeds[0, is_video], grid))
    ids = [20, 12, *[VIDEO] * len(video.features), 13, 30, 31, 32]
    context = Context(model, method=method)
    logits = [context.read(context.passage(ids, [video]))]
    logits += [context.read(context.passage([token])) for token in more]

    embeds = embeds.clone()
    embeds[0, is_video.nonzero()[video.kept, 0]] = video.features
    stays = ~is_video
    stays[is_video.nonzero()[video.kept, 0]] = True
    stock = stock_twin(model).model.language_model
    after = positions.max() + 1 + torch.arange(2).expand(3, 1, -1)
    shown = torch.cat([embeds[:, stays], stock.embed_tokens(torch.tensor([more]))], 1)
    with torch.no_grad():
        last = stock(
            inputs_embeds=shown, position_ids=torch.cat([positions[:, :, stays], after], 2)
        ).last_hidden_state
        wanted = model.lm_head(last)[0, -3:]
    torch.testing.assert_close(torch.cat(logits), wanted, **CLOSE)
    assert len(video.features) < 20


def test_keeping_all_is_the_method_behind_bit_by_bit(model):
    class All(EverySecond):
        def compress(self, frames):
            return Kept(frames.features)

    encoded, ids = clip(3, 2, 3), [20, 12, *[VIDEO] * 18, 13, 30]
    logits = []
    for method in (All(), Dense()):
        video = (
            vision_of(method, encoded)
            if method.name != "dense"
            else EncodedVision("video", encoded.features, (3, 4, 6), (0.0, 1.0, 2.0))
        )
        context = Context(model, method=method)
        logits.append(context.read(context.passage(ids, [video])))
    assert torch.equal(*logits)


def test_frames_and_next_positions_are_known_where_tokens_left(model):
    """Two videos and an image; frames without tokens stay frames."""
    method = SomeFrames()
    videos = [vision_of(method, clip(frames, 2, 4, seed=frames)) for frames in (7, 1)]
    picture = vision_of(method, clip(1, 3, 2), "image")
    ids = [20]
    for one, pad in zip([*videos, picture], (VIDEO, VIDEO, IMAGE), strict=True):
        ids += [12, *[pad] * len(one.features), 13]
    context = Context(model, method=method)
    context.read(context.passage(ids, [*videos, picture]))
    sizes = [1, 5, 0, 0, 6, 0, 0, 1, 1]
    assert context.cache.tokens.frame_sizes == [sizes]
    dense = Context(model, method=Dense())
    whole = [
        EncodedVision(one.kind, torch.zeros(n, 64), one.grid, one.seconds)
        for one, n in ((videos[0], 56), (videos[1], 8), (picture, 6))
    ]
    full = [20]
    for one, pad in zip(whole, (VIDEO, VIDEO, IMAGE), strict=True):
        full += [12, *[pad] * len(one.features), 13]
    dense.read(dense.passage(full, whole))
    assert context.cache.next_position == dense.cache.next_position


def test_what_follows_the_last_kept_token_stands_behind_all_of_them(model):
    """A frame whose last rows left: its extent is still that of the frame."""
    encoded = EncodedVision("image", torch.zeros(1, 64), (1, 12, 4), (), torch.tensor([1]))
    context = Context(model, method=EverySecond())
    context.read(context.passage([20, 12, IMAGE], [encoded]))
    assert context.cache.next_position == [2 + 6]
    rows = model.describe(
        torch.tensor([[20, IMAGE, IMAGE, IMAGE, IMAGE, 30]]),
        VisionInputs([(1, 8, 2)], [], []),
    )
    left = compress_rows(rows, torch.tensor([0, 1, 3, 5]))
    assert left.next_positions.tolist() == [[1, 3, 5, 6]]
    assert left.position_ids[1].tolist() == [[0, 1, 3, 5]]


def test_a_video_begins_where_it_does_also_where_its_first_tokens_left(model):
    """Frames that follow are placed from there on."""
    kept = torch.tensor([5])
    encoded = EncodedVision("video", torch.zeros(1, 64), (1, 6, 4), (0.0,), kept)
    context = Context(model, method=EverySecond())
    context.read(context.passage([20, 12, VIDEO], [encoded]))
    assert context.start_of_video(1) == 2
    assert context.cache.next_position == [2 + 3]


def test_parts_are_compressed_as_they_come_and_all_at_once_where_frames_are_compared():
    order, parts = [], [clip(2, 2, 2), clip(1, 2, 2, seed=1)]

    def coming():
        for part in parts:
            order.append("encoded")
            yield part

    class Told(EverySecond):
        def compress(self, frames):
            order.append(f"compressed {frames.grid[0]}")
            return super().compress(frames)

    class ToldAll(Told):
        compares_frames = True

    each = compress_clip(Told(), coming())
    assert order == ["encoded", "compressed 2", "encoded", "compressed 1"]
    order.clear()
    whole = compress_clip(ToldAll(), coming())
    assert order == ["encoded", "encoded", "compressed 3"]
    assert each.places.tolist() == whole.places.tolist() == [0, 2, 4, 6, 8, 10]
    assert torch.equal(each.features, whole.features)


def test_what_a_call_cannot_have_is_refused(model):
    method, sample = EverySecond(), prompt(2)
    with pytest.raises(UsageError, match=r"^whole images or videos with method 'every second'"):
        model(**sample, method=method)
    embedded_whole = {name: sample[name] for name in ("input_ids", "video_grid_thw", "video_times")}
    with pytest.raises(UsageError, match=r"^whole images or videos with method 'every second'"):
        model(**embedded_whole, inputs_embeds=torch.zeros(1, 14, 64), method=method)
    with pytest.raises(UsageError, match=r"^labels with method 'every second'"):
        model(torch.tensor([[20, 21]]), labels=torch.tensor([[20, 21]]), method=method)
    with pytest.raises(UsageError, match="which takes no packed samples"):
        packed = {
            "input_ids": torch.tensor([[20, 21]]),
            "cu_seqlens": torch.tensor([0, 1, 2]).int(),
        }
        model(**packed, method=method)
    with pytest.raises(UsageError, match=r"one behind the \+ that says how they attend"):
        EverySecond(attention=SomeFrames())


def test_images_and_videos_that_are_not_compressed_are_refused(model):
    """Or the method would be another in silence."""
    context = Context(model, method=EverySecond())
    video = EncodedVision("video", torch.zeros(4, 64), (1, 4, 4), (0.0,))
    with pytest.raises(UsageError, match=r"encode them with model\.encode_kept"):
        context.passage([12, *[VIDEO] * 4], [video])
    with pytest.raises(UsageError, match=r"encode them with model\.encode_kept"):
        context.frames(torch.zeros(4, 64), (4, 4), (1.0,), start=0)


def test_a_prompt_with_other_runs_of_tokens_than_are_kept_is_refused():
    kept, pads = torch.tensor([0, 2]), (IMAGE, VIDEO)
    vision = [(2, 4, kept), (2, 4, kept)]
    ids = torch.tensor([[20, VIDEO, VIDEO, 13, VIDEO, VIDEO]])
    found = whole_prompt(ids, vision, pads=pads)
    assert found.ids.tolist() == [[20, *[VIDEO] * 4, 13, *[VIDEO] * 4]]
    assert found.kept.tolist() == [0, 1, 3, 5, 6, 8]
    for wrong in ([20, VIDEO, 13, VIDEO, VIDEO, VIDEO], [20, VIDEO, VIDEO], [VIDEO] * 5):
        with pytest.raises(UsageError, match=r"^\[2, 2\] tokens are kept of the images and videos"):
            whole_prompt(torch.tensor([wrong]), vision, pads=pads)
    with pytest.raises(UsageError, match="in a batch of 2, or with a mask: want one sample"):
        whole_prompt(ids.expand(2, -1), vision, pads=pads)


def test_what_attends_behind_it_is_what_plans_and_records_see():
    method = EverySecond(attention=NSA())
    assert method.full_name == "every second+nsa"
    assert method.uses_gates
    assert method.parameters()["attention"]["name"] == "nsa"
    assert method.with_options(branches=("window",)).attention.spec.branches == ("window",)
