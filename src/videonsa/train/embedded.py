"""Train the embedded demonstration model: `python -m videonsa.train.embedded --out DIR`.

The run is short (minutes on one H200). It writes DIR/model (a checkpoint that `videonsa ask
--model` takes), DIR/log.jsonl and DIR/run.json (recipe, versions, time).
"""

import argparse
import copy
import json
import math
import platform
import random
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TextIO

import torch
import transformers
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoTokenizer

from videonsa.inference.locate import ASSETS, EMBEDDED
from videonsa.models.loading import load_model
from videonsa.models.modeling import VideoNSAForConditionalGeneration
from videonsa.ops.spec import BRANCHES, NSASpec
from videonsa.train.batches import ClipBatch, ClipBatches
from videonsa.train.recipe import EmbeddedRecipe, Stage
from videonsa.video.synthetic import video_inputs

CLOSED_LOGIT = -2.0
"""Before the gate temperature of 0.3: a gate of 0.0013."""
SAVE_EVERY = 100
"""Steps; a run that dies leaves the last checkpoint."""


def special_token_ids(tokenizer: Any) -> dict[str, int]:
    """Ids of the special tokens under the names that the config gives them."""
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "eos_token_id": "<|im_end|>",
        "pad_token_id": "<|endoftext|>",
    }
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


def learning_rate_factor(step: int, done: float, recipe: EmbeddedRecipe) -> float:
    """Linear warm-up, then cosine to zero; `done` is the share of the run that is over."""
    return min(1.0, (step + 1) / recipe.warmup_steps) * 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def close_gates(model: VideoNSAForConditionalGeneration, branch: str, *, first_layer: int) -> None:
    """Set the gate of a branch to 0.0013 for every input, in the layers from `first_layer` on."""
    index = BRANCHES.index(branch)
    for layer in model.model.language_model.layers[first_layer:]:
        gate = layer.self_attn.g_proj_2
        gate.weight[index :: len(BRANCHES)] = 0.0
        gate.bias[index :: len(BRANCHES)] = CLOSED_LOGIT


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; vectors (norms and biases) do not."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    free = [p for p in model.parameters() if p.ndim < 2]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]


def _run_facts(recipe: EmbeddedRecipe, device: torch.device) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "recipe": asdict(recipe),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": gpu or platform.processor() or "cpu",
    }


class Trainer:
    """One run: model, optimizer and log."""

    def __init__(
        self,
        recipe: EmbeddedRecipe,
        *,
        tokenizer: Any,
        out: Path,
        device: torch.device,
        init: Path | None = None,
    ) -> None:
        self.recipe, self.tokenizer, self.out, self.device = recipe, tokenizer, out, device
        torch.manual_seed(recipe.seed)
        config = recipe.config(vocab_size=len(tokenizer), token_ids=special_token_ids(tokenizer))
        if init is None:
            self.model = VideoNSAForConditionalGeneration(config)
        else:
            loaded = load_model(init, nsa_spec=recipe.spec(), dtype=torch.float32)
            self.model = loaded.model
        self.model.to(device)
        close_gates(self.model, "compressed", first_layer=recipe.num_compressed_layers)
        close_gates(self.model, "window", first_layer=recipe.num_window_layers)
        self.model.model.visual.requires_grad_(not recipe.freeze_vision)
        self.chance = random.Random(recipe.seed)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, recipe.weight_decay),
            lr=recipe.learning_rate,
            betas=(0.9, 0.98),
            fused=device.type == "cuda",
        )
        self.noise = torch.Generator(device).manual_seed(recipe.seed)

    def run(self, *, workers: int, minutes: float | None) -> None:
        """Train to the end of the recipe, or stop early after `minutes` with what is learnt."""
        batches = ClipBatches(
            self.recipe,
            tokenizer=self.tokenizer,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        loader = DataLoader(batches, batch_size=None, num_workers=workers)
        start = time.monotonic()
        with (self.out / "log.jsonl").open("w") as log:
            for step, batch in enumerate(tqdm(loader, desc="training", unit="step", mininterval=5)):
                minutes_done = (time.monotonic() - start) / 60 / minutes if minutes else 0.0
                done = max(step / len(batches), min(minutes_done, 1.0))
                for group in self.optimizer.param_groups:
                    factor = learning_rate_factor(step, done, self.recipe)
                    group["lr"] = self.recipe.learning_rate * factor
                loss = self._step(batch)
                if step % 50 == 0 or step + 1 == len(batches):
                    self._log(log, step, loss, time.monotonic() - start)
                if step % SAVE_EVERY == SAVE_EVERY - 1:
                    self.save()
                if minutes_done >= 1:
                    break
        facts = _run_facts(self.recipe, self.device)
        facts |= {"steps": step + 1, "seconds": round(time.monotonic() - start, 1)}
        (self.out / "run.json").write_text(json.dumps(facts, indent=2) + "\n")
        self.save()

    def _step(self, batch: ClipBatch) -> torch.Tensor:
        batch = batch.to(self.device)
        self.model.train()
        loss: torch.Tensor = self.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            labels=batch.labels,
            use_cache=False,
            nsa_spec=self._spec(),
            **video_inputs(batch.scenes.render(batch.times, generator=self.noise)),
        ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _spec(self) -> NSASpec:
        """The attention of this step: of the branches, the selected one always stays."""
        dropped = {
            branch
            for branch in ("compressed", "window")
            if self.chance.random() < self.recipe.branch_dropout
        }
        return self.recipe.spec().with_options(
            branches=tuple(branch for branch in BRANCHES if branch not in dropped)
        )

    def _log(self, log: TextIO, step: int, loss: torch.Tensor, seconds: float) -> None:
        value = loss.item()
        if not math.isfinite(value):
            raise RuntimeError(f"loss is {value} at step {step}: lower the learning rate")
        log.write(json.dumps({"step": step, "loss": value, "seconds": round(seconds, 1)}) + "\n")
        log.flush()

    def save(self) -> None:
        """Write DIR/model in bfloat16, tokenizer included."""
        copy.deepcopy(self.model).to(torch.bfloat16).save_pretrained(self.out / "model")
        self.tokenizer.save_pretrained(self.out / "model")


def _stages(text: str) -> tuple[Stage, ...]:
    parts = (tuple(map(int, part.split("x"))) for part in text.split(","))
    return tuple(
        Stage(temporal_patches=patches, batch_size=clips, steps=steps)
        for patches, clips, steps in parts
    )


def _overridden(recipe: EmbeddedRecipe, settings: list[str]) -> EmbeddedRecipe:
    """Set fields from `name=value`; a stage is written as patches x clips x steps."""
    values: dict[str, Any] = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        kinds = {field.name: type(getattr(recipe, field.name)) for field in fields(recipe)}
        if name not in kinds:
            raise SystemExit(f"--set {setting}: want one of {', '.join(kinds)}, then = and a value")
        values[name] = _stages(text) if name == "stages" else _convert(kinds[name], text)
    return replace(recipe, **values)


def _convert(kind: type, text: str) -> Any:
    return text == "true" if kind is bool else kind(text)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--tokenizer", default=ASSETS / EMBEDDED, help="folder of the tokenizer")
    parser.add_argument("--init", type=Path, help="checkpoint to start from; its shape holds")
    parser.add_argument("--workers", type=int, default=2, help="processes that prepare batches")
    parser.add_argument("--minutes", type=float, help="stop early, with what is learnt by then")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    trainer = Trainer(
        _overridden(EmbeddedRecipe(), args.set),
        tokenizer=AutoTokenizer.from_pretrained(args.tokenizer),
        out=args.out,
        device=device,
        init=args.init,
    )
    trainer.run(workers=args.workers, minutes=args.minutes)


if __name__ == "__main__":
    main()
