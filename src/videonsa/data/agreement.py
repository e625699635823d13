"""Whether a manifest and a model go together: what `data check` and `train` compare."""

from collections.abc import Iterator
from dataclasses import fields

from videonsa.data.filter import FilterOptions
from videonsa.data.manifest import BuildFacts, Manifest
from videonsa.data.media import is_script
from videonsa.data.records import VideoRef
from videonsa.data.suite_source import is_drawn
from videonsa.errors import UsageError
from videonsa.video.sampling import DEFAULT_FPS, SamplingSpec

_PATCHES = ("patch_size", "merge_size", "temporal_patch_size")


def disagreements(
    facts: BuildFacts, *, model: str, tokenizer_hash: str, sampling: SamplingSpec
) -> Iterator[str]:
    """Why a manifest is of no use to a model, or contradicts itself; one line each.

    Args:
        facts: of the manifest.
        model: its name.
        tokenizer_hash: of its tokenizer, by `hash_of_tokenizer`.
        sampling: how it samples a video unless told otherwise.
    """
    if tokenizer_hash != facts.tokenizer_hash:
        counted = "" if facts.model == model else f", which {facts.model} has"
        yield (
            f"counted with another tokenizer than that of {model}{counted}: build it again, or "
            "name the right model"
        )
    built, wanted = (
        [getattr(one, name) for name in _PATCHES] for one in (facts.sampling, sampling)
    )
    if built != wanted:
        yield (
            f"built for another vision tower than that of {model}, with {', '.join(_PATCHES)} "
            f"{built} and not {wanted}: build it with that model"
        )
    known = {field.name for field in fields(FilterOptions)}
    options = {name: value for name, value in facts.options.items() if name in known}
    try:
        stated = FilterOptions(**options).sampling
    except (UsageError, TypeError) as error:
        yield f"built with options that mean nothing ({error}): build it again"
        return
    if change := change_of_sampling(stated, facts.sampling):
        yield f"sampled otherwise than its options say, with {change}: build it again"


def trained_sampling(manifest: Manifest, before: SamplingSpec) -> SamplingSpec:
    """How a model samples videos after training on a manifest: as its training videos were.

    Rendered videos have a rate and a size of their own and are not sampled: after a manifest of
    rendered videos alone, the model samples as before.

    Args:
        manifest: what it was trained on.
        before: how it sampled before.
    """
    sampled = not is_drawn(manifest.facts) and any(
        isinstance(media, VideoRef) and not is_script(media)
        for row in manifest
        for media in row.record.media
    )
    return manifest.facts.sampling if sampled else before


def sampling_values(sampling: SamplingSpec) -> dict[str, float]:
    """Sampling by rate, with all five values that determine it filled in."""
    least, most = sampling.pixel_range
    return {
        "fps": DEFAULT_FPS if sampling.fps is None else sampling.fps,
        "min_frames": sampling.min_frames,
        "max_frames": sampling.max_frames,
        "min_pixels": least,
        "max_pixels": most,
    }


def change_of_sampling(before: SamplingSpec, after: SamplingSpec) -> str | None:
    """What differs between two ways to sample, in words; None where nothing does."""
    old, new = sampling_values(before), sampling_values(after)
    changed = [f"{name}={new[name]} (not {old[name]})" for name in new if new[name] != old[name]]
    return ", ".join(changed) or None
