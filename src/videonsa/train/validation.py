"""The manifest whose loss is computed while a model trains, and never trained on."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from videonsa.data.agreement import change_of_sampling
from videonsa.data.dataset import VideoDataset
from videonsa.data.held_out import HeldOut, held_out_batches
from videonsa.data.manifest import Manifest, read_manifest
from videonsa.data.overlap import overlap
from videonsa.errors import UsageError
from videonsa.models.shape import ModelShape
from videonsa.train.checks import check_data
from videonsa.train.settings import Recipe

Batches = Callable[[], Iterator[HeldOut]]
"""Those of one process, the same at every call."""


def read_validation(
    recipe: Recipe, trained: Manifest, shape: ModelShape, *, tokenizer_hash: str
) -> Manifest | None:
    """The manifest `data.validation`, checked as the training data are; None if there is none.

    Raises:
        UsageError: another tokenizer, sampling or system message than the training data, or these
            data themselves.
    """
    if not recipe.data.validation:
        return None
    manifest = read_manifest(recipe.data.validation)
    check_data(recipe, manifest, shape, tokenizer_hash=tokenizer_hash)
    if manifest.data_hash == trained.data_hash:
        raise UsageError(
            f"data.validation={recipe.data.validation} has the samples of data.manifest: want "
            "samples that are not trained on"
        )
    change = change_of_sampling(trained.facts.sampling, manifest.facts.sampling)
    if manifest.facts.system != trained.facts.system:
        change = f"system={manifest.facts.system!r} (not {trained.facts.system!r})"
    if change:
        raise UsageError(
            f"data.validation={recipe.data.validation} was built otherwise than data.manifest, "
            f"with {change}: build it with the same options"
        )
    return manifest


def overlap_line(validation: Manifest, trained: Manifest) -> str | None:
    """What of the validation data is trained on, in a line; None if nothing is."""
    found = overlap(validation, trained)
    if not any(found):
        return None
    return (
        f"of {len(validation)} samples of data.validation, {found.records} are training samples "
        f"and {found.media} more show their videos or images: eval/loss is not of held-out data "
        "alone"
    )


def validation_batches(
    recipe: Recipe, manifest: Manifest, tokenizer: Any, processes: Any
) -> Batches:
    """The batches of this process; the ranks of one context-parallel group read the same ones."""
    sharing = recipe.parallel.sequence
    return partial(
        held_out_batches,
        VideoDataset(manifest, tokenizer=tokenizer, loss=recipe.data.loss),
        max_tokens=recipe.data.context,
        most_samples=recipe.run.validation_samples,
        rank=processes.process_index // sharing,
        world_size=processes.num_processes // sharing,
        num_workers=recipe.data.num_workers,
        max_failed_share=recipe.data.max_failed_share,
        always_vision=recipe.parallel.shards,
    )
