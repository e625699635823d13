"""Is selecting blocks of 64 tokens a good fit to attention that nobody trained for it?

    python benchmarks/real_attention.py SmolLM2-135M-Instruct.Q4_1.gguf \
        --out benchmarks/results/cpu/real_attention.json

Dense attention of a published language model (any GGUF file that transformers reads; needs the
package gguf) over texts that tell what is seen in videos of the suite, each with its questions.
Per layer, on tiles of 16 neighbouring rows from the second half of each text:

- the share of attention that the n best blocks of 64 keep, by n. All query heads of a KV head share
  the blocks, and the row's own block is always one, as in NSA. The best are chosen by the attention
  itself, by the scores that NSA would use (queries times the mean keys of blocks), as the first
  block and the latest ones, as the latest ones, or at random. Beside them the n * 64 best tokens of
  each head: what blocks cost.
- how many different blocks 16 rows select together (their union).
- sinks, in both readings (videonsa/models/recorder/sinks.py).
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer

from videonsa.disk import write_atomic
from videonsa.machine import measurement_facts
from videonsa.models.recorder.sinks import READINGS, Received, dense_sums
from videonsa.models.recorder.unions import TILE_ROWS, mean_union
from videonsa.ops.masks import ascending, top_blocks
from videonsa.rendered.clips.scene import Sprite
from videonsa.rendered.suite import Script, SuiteSpec, make_script, questions_of, suite_seed

FORMAT = "videonsa real attention 1"
BLOCK = 64
BUDGETS = (1, 2, 4, 8, 16, 32)
CHOICES = ("attention", "compressed", "first_and_latest", "latest", "random")
TILE_STRIDE = 4
"""One of so many tiles of the second half is looked at."""


def tell(script: Script) -> str:
    """What is seen, second by second, then the questions with their answers."""
    seen, duration = script.evidence, script.duration
    lines = [
        (sprite.start, f"a {sprite.name} {how}")
        for sprites, how in (
            (seen.flashes, "flashes for a moment"),
            (seen.boxes, "is shown in a white box"),
        )
        for sprite in sprites
    ]
    moving = [*seen.objects, *script.distractors(0, duration)]
    lines += [(sprite.start, f"a {sprite.name} {_motion(sprite)}") for sprite in moving]
    captions = [*seen.numbers, *script.lines(0, duration)]
    lines += [(caption.start, f'a text reads "{caption.text}"') for caption in captions]
    told = [
        f"{int(max(t, 0)) // 60:02}:{int(max(t, 0)) % 60:02} {what}." for t, what in sorted(lines)
    ]
    asked = [f"Question: {one.text} Answer: {one.answer}." for one in questions_of(script)]
    return "\n".join([*told, *asked])


def _motion(sprite: Sprite) -> str:
    sides = [("left", "right")[sprite.vx > 0]] if abs(sprite.vx) > 1e-9 else []
    sides += [("up", "down")[sprite.vy > 0]] if abs(sprite.vy) > 1e-9 else []
    return f"moves {' and '.join(sides)}" if sides else "stands still"


@dataclass
class Layer:
    """Sums over the rows that were looked at."""

    kept: dict[str, Tensor] = field(default_factory=dict)
    """By what chose the blocks: the share kept by each budget, `[budgets]`, summed over tiles."""
    unions: dict[str, list[float]] = field(default_factory=dict)
    tiles: int = 0
    sinks: dict[str, float] = field(default_factory=dict)
    """Share of the keys of a KV head, by reading."""
    no_sinks: float = 0.0
    """Share of the KV heads where the spread of the norms leaves no room for any."""
    first_key: dict[str, float] = field(default_factory=dict)
    """Alpha of the first key, by reading: mean over KV heads."""


class Watcher:
    """Looks on while the layers of a model attend to a text."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []

    def attend(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Dense causal attention, as transformers calls it: heads before tokens."""
        self.layers.append(look(query[0], key[0], value[0]))
        group = query.shape[1] // key.shape[1]
        k, v = (x.repeat_interleave(group, dim=1) for x in (key, value))
        out = F.scaled_dot_product_attention(query, k, v, is_causal=True, scale=scaling)
        return out.transpose(1, 2), None


def look(q: Tensor, k: Tensor, v: Tensor) -> Layer:
    """All numbers of a layer; q `[HQ, T, D]`, k and v `[H, T, D]`."""
    layer, num_heads, num_tokens = Layer(), len(k), k.shape[1]
    generator = torch.Generator().manual_seed(0)
    means = k.unflatten(1, (-1, BLOCK)).mean(2)  # [H, C, D]
    scaled = q.unflatten(0, (num_heads, -1)) * q.shape[-1] ** -0.5  # [H, G, T, D]
    tiles = range(num_tokens // 2 // TILE_ROWS, num_tokens // TILE_ROWS, TILE_STRIDE)
    for tile in tiles:
        rows = torch.arange(tile * TILE_ROWS, (tile + 1) * TILE_ROWS)
        scores = scaled[:, :, rows] @ k.mT[:, None]  # [H, G, R, T]
        later = torch.arange(num_tokens) > rows[:, None]
        probability = scores.masked_fill(later, -torch.inf).softmax(-1)
        block = torch.arange(len(means[0]))
        current = int(rows[0]) // BLOCK
        pooled = (scaled[:, :, rows] @ means.mT[:, None])[..., :current].softmax(-1).sum(1)
        mass = probability.unflatten(-1, (-1, BLOCK)).sum(-1)  # [H, G, R, C]
        recent = (block / len(block)).expand_as(mass[:, 0])
        by = {
            "attention": mass.sum(1),
            "compressed": F.pad(pooled, (0, len(block) - current)),
            "first_and_latest": recent + 2.0 * (block == 0),
            "latest": recent,
            "random": torch.rand(mass[:, 0].shape, generator=generator),
        }
        for name, importance in by.items():
            best = top_blocks(importance, block < current, block == current, max(BUDGETS))
            _add_choice(layer, name, best, mass)
        first = probability[:, :, 0].sort(-1, descending=True).values.cumsum(-1)
        kept = first[..., torch.tensor(BUDGETS) * BLOCK - 1].mean((0, 1))
        layer.kept["tokens"] = layer.kept.get("tokens", 0) + kept
        layer.tiles += 1
    _add_sinks(layer, q, k, v)
    return layer


def _add_choice(layer: Layer, name: str, best: Tensor, mass: Tensor) -> None:
    """What the first of the best blocks `[H, R, n]` keep of the mass, and their unions."""
    kept = mass.take_along_dim(best[:, None].long(), dim=-1).cumsum(-1)  # [H, G, R, n]
    share = kept[..., torch.tensor(BUDGETS) - 1].mean((0, 1, 2))
    layer.kept[name] = layer.kept.get(name, 0) + share
    unions = [mean_union(ascending(best[None, ..., :n].transpose(1, 2))) for n in BUDGETS]
    before = layer.unions.get(name, [0.0] * len(BUDGETS))
    layer.unions[name] = [a + b for a, b in zip(before, unions, strict=True)]


def _add_sinks(layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> None:
    ones = torch.ones(k.shape[1], dtype=torch.bool)
    received = Received(is_vision=~ones, norms=v.norm(dim=-1))
    rows = torch.arange(0, k.shape[1], TILE_ROWS // 2)
    for found in dense_sums(q.transpose(0, 1), k.transpose(0, 1), rows, first=0):
        received.add(found)
    for reading in READINGS:
        layer.sinks[reading] = float(received.sinks(reading).float().mean())
        layer.first_key[reading] = float(received.alpha(reading)[:, 0].mean())
    layer.no_sinks = float((received.norm_limit() <= 0).float().mean())


def texts(tokenizer: Any, *, number: int, length: int) -> Iterator[Tensor]:
    """Ids `[1, length]` of so many texts; of videos with evidence strewn over all of them."""
    for index in range(number):
        spec = SuiteSpec(num_frames=2 * length // 10, difficulty="hard")
        text = tell(make_script(suite_seed("test", index), spec=spec))
        ids = tokenizer(text, return_tensors="pt").input_ids
        if ids.shape[1] < length:
            raise SystemExit(f"a text of {ids.shape[1]} tokens: want {length}")
        yield ids[:, -length:]  # the questions stand at the end


def summary(layers: list[Layer]) -> dict[str, Any]:
    """Of one text, for JSON: by layer."""
    return {
        "kept": {
            name: [[round(x, 5) for x in (one.kept[name] / one.tiles).tolist()] for one in layers]
            for name in (*CHOICES, "tokens")
        },
        "unions": {
            name: [[round(x / one.tiles, 3) for x in one.unions[name]] for one in layers]
            for name in CHOICES
        },
        "sinks": {name: [one.sinks[name] for one in layers] for name in READINGS},
        "first_key": {name: [one.first_key[name] for one in layers] for name in READINGS},
        "heads_without_room": [one.no_sinks for one in layers],
    }


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=8192)
    args = parser.parse_args()
    named = {"gguf_file": args.gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(args.gguf.parent, **named)
    load: Callable[..., Any] = partial(AutoModelForCausalLM.from_pretrained, args.gguf.parent)
    watcher = Watcher()
    AttentionInterface.register("watched", watcher.attend)
    model = load(**named, dtype=torch.float32, attn_implementation="watched").eval()
    found = []
    for ids in texts(tokenizer, number=args.texts, length=args.tokens):
        watcher.layers = []
        with torch.inference_mode():
            loss = model(ids, labels=ids).loss
        found.append({"loss": float(loss), **summary(watcher.layers)})
        print(f"text {len(found)}: loss {found[-1]['loss']:.3f} nats a token", flush=True)
        result = {
            "format": FORMAT,
            "model": args.gguf.stem,
            "tokens": args.tokens,
            "block": BLOCK,
            "budgets": list(BUDGETS),
            "rows_of_a_union": TILE_ROWS,
            "machine": measurement_facts(torch.device("cpu")),
            "texts": found,
        }
        write_atomic(args.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
