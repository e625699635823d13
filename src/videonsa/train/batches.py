"""Batches of rendered clips with their questions, for the embedded model."""

import random
from typing import NamedTuple, Self

import torch
from torch.utils.data import Dataset

from videonsa.train.recipe import MAX_BATCH_SIZE, EmbeddedRecipe, Stage
from videonsa.video.chat import IGNORED_LABEL, ChatTokenizer, ChatTokens, VisionSlot, chat_tokens
from videonsa.video.synthetic import (
    KINDS,
    PLACE_KINDS,
    STILL_KINDS,
    TOKENS_PER_PATCH,
    Scene,
    SceneBatch,
    ask_about,
    make_scene,
    make_still,
    scene_seed,
)
from videonsa.video.synthetic.scene import SAMPLE_PERIOD


class ClipBatch(NamedTuple):
    """Clips as scenes, to be drawn on the training device, and their conversations."""

    scenes: SceneBatch
    times: torch.Tensor  # [B, N] seconds of each sampled frame
    input_ids: torch.Tensor  # [B, L]
    labels: torch.Tensor  # [B, L]
    attention_mask: torch.Tensor  # [B, L]

    def to(self, device: torch.device) -> Self:
        """The same batch on a device."""
        scenes, *tensors = self
        return type(self)(scenes.to(device), *(tensor.to(device) for tensor in tensors))


def _scene(seed: int, temporal_patches: int) -> Scene:
    """A moving scene, or a still for clips of one temporal patch."""
    if temporal_patches == 1:
        return make_still(seed)
    return make_scene(seed, duration=2 * SAMPLE_PERIOD * temporal_patches)


def _some(rng: random.Random) -> list[str]:
    """Three kinds beside direction, which is the hardest and so asked twice a clip."""
    return rng.sample([kind for kind in KINDS if kind != "direction"], 3)


class ClipBatches(Dataset[ClipBatch]):
    """Batch number i of a recipe: always the same clips and questions."""

    def __init__(
        self,
        recipe: EmbeddedRecipe,
        *,
        tokenizer: ChatTokenizer,
        pad_token_id: int,
    ) -> None:
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.pad_token_id = pad_token_id

    def __len__(self) -> int:
        """Steps of all stages."""
        return self.recipe.total_steps

    def __getitem__(self, index: int) -> ClipBatch:
        """Batch of one step."""
        step = range(len(self))[index]
        stage = self._stage(step)
        patches = stage.temporal_patches
        rng = random.Random(f"{self.recipe.seed}/{step}")
        scenes, rows = [], []
        for i in range(stage.batch_size):
            seed = scene_seed("train", step * MAX_BATCH_SIZE + i)
            scenes.append(_scene(seed, patches))
            rows.append(self._conversation(scenes[-1], patches * TOKENS_PER_PATCH, rng))
        length = max(len(ids) for ids, _ in rows)
        phase = torch.tensor([rng.uniform(0, SAMPLE_PERIOD) for _ in rows])
        pad = self.pad_token_id
        return ClipBatch(
            scenes=SceneBatch.of(scenes),
            times=phase[:, None] + SAMPLE_PERIOD * torch.arange(2 * patches),
            input_ids=torch.tensor([ids + [pad] * (length - len(ids)) for ids, _ in rows]),
            labels=torch.tensor([y + [IGNORED_LABEL] * (length - len(y)) for _, y in rows]),
            attention_mask=torch.tensor(
                [[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in rows]
            ),
        )

    def _stage(self, step: int) -> Stage:
        for stage in self.recipe.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        raise IndexError(step)

    def _conversation(self, scene: Scene, video_tokens: int, rng: random.Random) -> ChatTokens:
        still = video_tokens == TOKENS_PER_PATCH
        kinds = STILL_KINDS if still else ("direction", "direction", *PLACE_KINDS, *_some(rng))
        asked = (ask_about(scene, kind, seed=rng.getrandbits(32)) for kind in kinds)
        turns = [(question.text, question.answer) for question in asked if question is not None]
        *history, (question, answer) = rng.sample(turns, len(turns))
        return chat_tokens(
            question,
            answer=answer,
            history=history,
            vision=[VisionSlot("video", video_tokens)],
            tokenizer=self.tokenizer,
        )
