"""The released preset through the whole model, against its description put together once more.

Nothing of the package computes here but the vision tower, which has tests of its own: layers,
positions, gates and attention are written from docs/semantics.md with whole matrices of scores.
"""

import pytest
import torch
import torch.nn.functional as F
from tiny_models import END, START, VIDEO, config_fields, video

from videonsa.models.config import VideoNSAConfig
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.ops.spec import NSASpec

HEADS, KV_HEADS, DIM, BLOCK, PADDED = 28, 4, 16, 64, 64
SECTIONS = [2, 3, 3]
SLOTS, WINDOW = 2, 40
LEFTS = [[i for i in range(64) if not i & 2**step] for step in range(6)]
"""Of the pairs that the network compares at a distance of 2^step."""
MASKS = ("current_and_later", "past_complete", "past_and_current")


def network(slots):
    """The order of 64 (importance, index + 1) pairs, of at most one chunk of blocks."""

    def stage(slots, number, flips):
        for step in reversed(range(number)):
            distance = 2**step
            for left in LEFTS[step]:
                right = left + distance
                if (slots[left][0] > slots[right][0]) != flips(left):
                    slots[left], slots[right] = slots[right], slots[left]
        return slots

    for number in range(1, 6):
        slots = stage(slots, number, lambda i, number=number: (i >> number) % 2 == 1)
    return stage(slots, 6, lambda i: True)


def selection(importance, current):
    """The blocks of one row and group."""
    slots = [(float(importance[c]), c + 1) for c in range(current + 1)]
    slots += [(0.0, 0)] * (64 - len(slots))
    return [index - 1 for _, index in network(slots)[:SLOTS] if index > 0]


def attend(scores, mask, values):
    """Softmax attention of heads `[P, T, S]` over values `[P, S, D]`; output and LSE."""
    scores = scores.masked_fill(~mask, float("-inf"))
    lse = scores.logsumexp(-1)
    weights = (scores - lse.masked_fill(lse == -torch.inf, 0)[..., None]).exp()
    return weights @ values, lse


def nsa(q, k, v, gates, compressed_mask):
    """Of the whole sequence, text zeroed: `[T, 28, D]`. q `[T, 28, D]`, k and v `[T, 4, D]`."""
    length = len(q)
    t = torch.arange(length)
    num_blocks = -(-length // BLOCK)
    c = torch.arange(num_blocks)
    padded = torch.cat([q, q, q.new_zeros(length, 8, DIM)], dim=1).transpose(0, 1)  # [64, T, D]
    of_head = torch.arange(PADDED) // 16
    keys, values = (x.transpose(0, 1)[of_head] for x in (k, v))  # [64, T, D]
    pooled = [
        torch.stack([part.mean(1) for part in x.split(BLOCK, dim=1)], dim=1) for x in (keys, values)
    ]
    scale = DIM**-0.5
    block_scores = padded @ pooled[0].transpose(1, 2) * scale  # [64, T, C]
    seen = {
        "current_and_later": t[:, None] <= 64 * (c + 1) - 1,
        "past_complete": t[:, None] >= 64 * (c + 1) - 1,
        "past_and_current": c <= t[:, None] // 64,
    }[compressed_mask]
    compressed, lse = attend(block_scores, seen, pooled[1])
    # The memory of [64, T] read as [T, 64].
    misread = lse.flatten().view(length, PADDED).T.nan_to_num(neginf=0.0)  # [64, T]
    share = (block_scores - misread[..., None]).exp()
    share = torch.where(c == t[:, None] // 64, 1.0, share)
    importance = share.view(4, 16, length, num_blocks).sum(1)
    chosen = torch.zeros(4, length, length, dtype=torch.bool)
    for group in range(4):
        for row in range(length):
            for block in selection(importance[group, row], row // 64):
                chosen[group, row, 64 * block : 64 * (block + 1)] = True
    scores = padded @ keys.transpose(1, 2) * scale
    causal = t <= t[:, None]
    selected, _ = attend(scores, chosen[of_head] & causal, values)
    window, _ = attend(scores, causal & (t > t[:, None] - WINDOW), values)
    weights = torch.cat([gates, gates, gates.new_zeros(length, 8, 3)], dim=1).transpose(0, 1)
    total = sum(weights[..., i, None] * o for i, o in enumerate((compressed, selected, window)))
    return ((total[:HEADS] + total[HEADS : 2 * HEADS]) / 2).transpose(0, 1)


def layer_attention(layer, x, angles, vision, compressed_mask):
    """What goes into `o_proj`, `[T, 28 * D]`."""
    length = len(x)
    q, k, v = (getattr(layer, f"{name}_proj")(x).view(length, -1, DIM) for name in ("q", "k", "v"))
    q, k = rotate(q, angles), rotate(k, angles)
    hidden = F.gelu(layer.g_proj_1(x))
    gates = torch.sigmoid(layer.g_proj_2(hidden) / 0.3).view(length, HEADS, 3)
    gates = torch.where(vision[:, None, None], gates, 0.5)
    on_vision = vision[:, None, None]
    sparse = nsa(q * on_vision, k * on_vision, v * on_vision, gates, compressed_mask)
    queries = (q * ~on_vision).transpose(0, 1)  # those of vision rows are 0: the mean of v
    of_head = torch.arange(HEADS) // 7
    keys, values = (one.transpose(0, 1)[of_head] for one in (k, v))
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    dense, _ = attend(queries @ keys.transpose(1, 2) * DIM**-0.5, causal, values)
    return (sparse + dense.transpose(0, 1)).flatten(1)


def rotate(x, angles):
    cos, sin = angles.cos()[:, None].to(x.dtype), angles.sin()[:, None].to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def positions_of(ids, grids, seconds):
    """Ids (t, h, w) of every token; a second stands for two positions."""
    found, start, taken = [], 0, 0
    waiting = list(grids)
    while taken < len(ids):
        if ids[taken] != VIDEO:
            found.append((start,) * 3)
            start, taken = start + 1, taken + 1
            continue
        frames, rows, columns = waiting.pop(0)
        segment = [
            (start + int(i * seconds * 2), start + row, start + column)
            for i in range(frames)
            for row in range(rows // 2)
            for column in range(columns // 2)
        ]
        found += segment
        taken += len(segment)
        start = max(map(max, segment)) + 1
    return torch.tensor(found)


def norm(x, module):
    """In float32, as Qwen's."""
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)
    return module.weight * y.to(x.dtype)


def composed(model, ids, features, grids, compressed_mask):
    """Logits `[T, V]`."""
    text = model.model.language_model
    x = text.embed_tokens(ids)
    x = x.masked_scatter((ids == VIDEO)[:, None], features)
    positions = positions_of(ids.tolist(), grids, seconds=1.0)
    vision = (positions[:, 0] != positions[:, 1]) | (positions[:, 1] != positions[:, 2])
    rates = 1 / 10_000.0 ** (torch.arange(0, DIM, 2).float() / DIM)  # [D / 2]
    which = torch.tensor([axis for axis, count in enumerate(SECTIONS) for _ in range(count)])
    angles = positions[:, which].float() * rates
    for layer in text.layers:
        out = layer_attention(
            layer.self_attn, norm(x, layer.input_layernorm), angles, vision, compressed_mask
        )
        x = x + layer.self_attn.o_proj(out)
        y, mlp = norm(x, layer.post_attention_layernorm), layer.mlp
        x = x + mlp.down_proj(F.silu(mlp.gate_proj(y)) * mlp.up_proj(y))
    return model.lm_head(norm(x, text.norm)), vision


@pytest.mark.parametrize("compressed_mask", MASKS)
def test_logits_are_those_of_the_description(compressed_mask):
    torch.manual_seed(0)
    spec = NSASpec.released(
        compressed_mask=compressed_mask, num_selected_blocks=SLOTS, window_size=WINDOW
    )
    fields = config_fields(
        hidden_size=HEADS * DIM,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
    )
    config = VideoNSAConfig(nsa=spec, gate_init="released", **fields)
    model = VideoNSAForConditionalGeneration(config).eval().double()
    for name, parameter in model.named_parameters():
        if "g_proj_2" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    clips = [video(8, 8, 8, seed=1), video(5, 6, 10, seed=2)]
    grids = [tuple(clip["video_grid_thw"][0].tolist()) for clip in clips]
    tokens = [t * h * w // 4 for t, h, w in grids]
    ids = torch.tensor(
        [20, START, *[VIDEO] * tokens[0], END, 21, 22, START, *[VIDEO] * tokens[1], END, 30, 31]
    )
    pixels = torch.cat([clip["pixel_values_videos"] for clip in clips]).double()
    with torch.no_grad():
        features = model.encode_vision(pixels, grids)
        wanted, vision = composed(model, ids, features, grids, compressed_mask)
        logits = model(
            input_ids=ids[None],
            pixel_values_videos=pixels,
            video_grid_thw=torch.tensor(grids),
        ).logits[0]
    assert len(ids) // BLOCK > SLOTS, "more blocks than are selected"
    assert (~vision & (ids == VIDEO)).any(), "tokens on the diagonal count as text"
    torch.testing.assert_close(logits, wanted, atol=1e-6, rtol=1e-6)
