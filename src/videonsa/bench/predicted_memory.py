"""The memory that `videonsa plan` would predict for a stage of `bench prefill`."""

from dataclasses import replace
from typing import Any

import torch

from videonsa.models.checkpoints.quantised import Weights
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.models.features import PATCHES_PER_CHUNK
from videonsa.models.fused import ROWS_PER_CHUNK
from videonsa.models.methods import Dense
from videonsa.models.shape import shape_of_config
from videonsa.planning.devices import find_machine, runs_by_kernels
from videonsa.planning.memory import Workload, decoding_terms, prefill_terms, tower_terms


def prediction(
    stage: dict[str, Any],
    model: VideoNSAForConditionalGeneration,
    grid: tuple[int, int, int],
    *,
    prompt_tokens: int,
    rows_per_chunk: int | None,
    held_bytes: int,
    weights: Weights = "full",
) -> dict[str, float | None]:
    """The predicted peak of a measured stage in GB, and its ratio to the measured one.

    Args:
        stage: its `name` and `peak_gb`, and the `method` where it is another than the model's.
        model: what was measured.
        grid: temporal patches, rows and columns of patches of the clip.
        prompt_tokens: video and text.
        rows_per_chunk: as it was given to the model; None is its own choice, 0 all rows.
        held_bytes: weights on the device, of a baseline too.
        weights: how it is quantised.

    Returns:
        `predicted_gb` and `predicted_ratio`; None without a measurement, for a baseline, and for a
        tower of which a method asks more than features.
    """
    name, peak = stage["name"], stage["peak_gb"]
    if peak is None or name.startswith(("transformers", "vision tower, ")):
        return {"predicted_gb": None, "predicted_ratio": None}
    shape = shape_of_config(model.config.to_dict() | {"dtype": str(model.dtype)})
    shape = replace(shape, weights=weights)
    if Dense.name in name:
        shape = replace(shape, method=Dense())
    elif "method" in stage:
        shape = replace(shape, method=model.config.method_of(stage["method"]))
    work = Workload(
        shape=shape,
        grid=grid,
        prompt_tokens=prompt_tokens,
        max_new_tokens=1,
        kernels=runs_by_kernels(shape, find_machine(model.device)),
        rows_per_chunk=ROWS_PER_CHUNK
        if rows_per_chunk is None
        else rows_per_chunk or prompt_tokens,
        patches_per_chunk=PATCHES_PER_CHUNK,
    )
    if name == "vision tower":
        # All pixels are given on the device, so none come there as bytes and float32.
        in_dtype = _pixel_bytes(work, work.chunk_patches, model.dtype)
        given = _pixel_bytes(work, work.num_patches, torch.float32)
        terms = tower_terms(work) | {"pixels": in_dtype + given}
    elif name.startswith("prefill"):
        terms = prefill_terms(work)
    else:
        # The embeddings of the prompt are still there, for the runs of the prefill.
        embeddings = prefill_terms(work)["embeddings"]
        terms = decoding_terms(work) | {"embeddings": embeddings}
    predicted = (sum(terms.values()) - terms["weights"] + held_bytes) / 1e9
    return {"predicted_gb": predicted, "predicted_ratio": predicted / peak}


def _pixel_bytes(work: Workload, patches: int, dtype: torch.dtype) -> int:
    return patches * work.shape.vision.patch_values * dtype.itemsize
