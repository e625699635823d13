"""What a method asks of the vision tower, against plain attention of the original tower."""

import pytest
import torch
from tiny_models import config_fields, qwen, tiny
from torch.utils._python_dispatch import TorchDispatchMode

from videonsa.errors import ModelError
from videonsa.models import tower_probe
from videonsa.models.features import encode_frames
from videonsa.models.tower_probe import EncodedFrames, TowerProbe, received_attention
from videonsa.video.processing import patchify

PROBE = TowerProbe(received=(0, -1), keys=-1)
FULL = (1, 3)
"""Blocks that attend to whole frames; the others attend in windows of 2 x 2 merged tokens."""
VISION = config_fields()["vision_config"] | {"depth": 4, "fullatt_block_indexes": list(FULL)}


class LargestTensor(TorchDispatchMode):
    """Values of the largest tensor that is made inside."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.values = max(self.values, made.numel())
        return made


@pytest.fixture(scope="module")
def towers():
    reference, model = qwen(vision_config=VISION), tiny(attention="dense", vision_config=VISION)
    with torch.no_grad():  # attention that prefers some patches
        for block in FULL:
            reference.model.visual.blocks[block].attn.qkv.weight[:64] *= 20
    model.load_state_dict(reference.state_dict())
    return reference.model.visual, model


@pytest.fixture(scope="module")
def frames():
    """Four temporal patches of 3 x 5 merged tokens: windows are cut off on two sides."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (8, 3, 84, 140), generator=generator, dtype=torch.uint8)


def probed(model, parts, probe=PROBE):
    with torch.no_grad():
        tower, config = model.model.visual, model.config.vision_config
        return EncodedFrames.joined(list(encode_frames(tower, config, parts, probe=probe)))


def windows(rows, columns, side=2):
    """Merged tokens of a frame, window by window."""
    return [
        row * columns + column
        for top in range(0, rows, side)
        for left in range(0, columns, side)
        for row in range(top, min(top + side, rows))
        for column in range(left, min(left + side, columns))
    ]


def rotated(x, cos, sin):
    """Rows [P, H, D], the first half of D paired with the second."""
    half = x.shape[-1] // 2
    return x * cos[:, None] + torch.cat((-x[..., half:], x[..., :half]), -1) * sin[:, None]


@torch.no_grad()
def inputs_of_blocks(tower, pair):
    """What attention of each block of `FULL` is given of one temporal patch: rows and angles."""
    seen = []
    hooks = [
        tower.blocks[block].attn.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append((args[0], kwargs["position_embeddings"])),
            with_kwargs=True,
        )
        for block in FULL
    ]
    patches = patchify(pair)
    tower(patches.pixels, grid_thw=torch.tensor([patches.grid]))
    for hook in hooks:
        hook.remove()
    return zip(FULL, seen, strict=True)


@torch.no_grad()
def naive(tower, frames):
    """Of one temporal patch after the other: received attention of both blocks, and the keys."""
    received, keys = {block: [] for block in FULL}, []
    order = windows(3, 5)
    for pair in frames.split(2):
        for block, (hidden, angles) in inputs_of_blocks(tower, pair):
            attention = tower.blocks[block].attn
            q, k, _ = attention.qkv(hidden).unflatten(-1, (3, attention.num_heads, -1)).unbind(1)
            q, k = (rotated(x, *angles) for x in (q, k))
            total = torch.zeros(len(q))
            for head in range(attention.num_heads):
                scores = q[:, head] @ k[:, head].T / q.shape[-1] ** 0.5
                total += scores.softmax(1).sum(0) / attention.num_heads
            place = [order.index(token) for token in range(len(order))]
            received[block] += [total[4 * i : 4 * i + 4].mean() for i in place]
            if block == FULL[-1]:
                keys += [k[4 * i : 4 * i + 4].mean((0, 1)) for i in place]
    return [torch.stack(received[block]) for block in FULL], torch.stack(keys)


@pytest.mark.parametrize(("sizes", "at_once"), [([8], 2**25), ([2, 4, 2], 2**25), ([8], 500)])
def test_they_are_those_of_plain_attention_in_the_order_of_the_frame(
    towers, frames, sizes, at_once, monkeypatch
):
    """Whatever comes together: parts of a clip, and rows of scores."""
    tower, model = towers
    monkeypatch.setattr(tower_probe, "SCORES_AT_ONCE", at_once)
    found = probed(model, frames.split(sizes))
    received, keys = naive(tower, frames)
    for ours, theirs in zip(found.received, received, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        assert (theirs.unflatten(0, (4, 15)).mean(1) - 1).abs().max() < 1e-5
    torch.testing.assert_close(found.keys, keys, atol=1e-5, rtol=1e-5)
    assert found.grid == (4, 3, 5)
    assert (received[0] - received[1]).abs().max() > 0.01, "the blocks differ"


def test_the_features_are_those_without_it_bit_by_bit(towers, frames):
    _, model = towers
    with torch.no_grad():
        assert torch.equal(probed(model, [frames]).features, model.encode_frames([frames]))


def test_only_what_is_asked_for_is_computed(towers, frames, monkeypatch):
    _, model = towers
    calls = []
    monkeypatch.setattr(
        tower_probe, "received_attention", lambda q, k: calls.append(q.shape) or q[..., 0, 0]
    )
    keys_alone = probed(model, [frames], TowerProbe(keys=0))
    assert (keys_alone.received, calls) == ((), [])
    assert probed(model, [frames], TowerProbe(received=(-1,))).keys is None
    assert calls == [(4, 60, 2, 16)], "one block, all frames of a part in one batch"
    model.encode_frames([frames])
    assert len(calls) == 1


def test_scores_of_a_frame_are_bounded_and_never_those_of_a_video(monkeypatch):
    q, k = torch.randn(2, 16, 32, 2, 4, generator=torch.manual_seed(0)).unbind()
    monkeypatch.setattr(tower_probe, "SCORES_AT_ONCE", 2 * 32 * 32)  # one frame, two heads
    with LargestTensor() as largest:
        received_attention(q, k)
    assert largest.values <= q.numel() == 2 * 16 * 32 * 4
    monkeypatch.setattr(tower_probe, "SCORES_AT_ONCE", 1)
    row_by_row = received_attention(q, k)
    monkeypatch.undo()
    torch.testing.assert_close(row_by_row, received_attention(q, k))


def test_a_tower_with_too_few_blocks_of_whole_frames_is_refused(frames):
    model = tiny()
    with pytest.raises(ModelError, match=r"asks blocks \[1\] of the vision tower's 1 that attend"):
        probed(model, [frames], TowerProbe(received=(1,)))
