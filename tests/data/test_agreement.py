from dataclasses import asdict, replace

import pytest
from small_manifest import OPTIONS

from videonsa.data.agreement import change_of_sampling, disagreements
from videonsa.data.filter import FilterOptions
from videonsa.data.manifest import BuildFacts
from videonsa.video.sampling import SamplingSpec

FILTER = FilterOptions(**OPTIONS)
FACTS = BuildFacts(
    sampling=FILTER.sampling,
    max_tokens=None,
    system="",
    model="a",
    tokenizer_hash="hash",
    options=asdict(FILTER) | {"sources": ["clips"]},
)


def compare(facts, **changes):
    own = {"model": "b", "tokenizer_hash": "hash", "sampling": SamplingSpec()}
    return list(disagreements(facts, **(own | changes)))


def test_a_manifest_goes_with_every_model_of_its_tokenizer_and_patches():
    assert compare(FACTS) == []
    # How the model samples unless told otherwise is free: it is what training may change.
    assert compare(FACTS, sampling=SamplingSpec(fps=1.0, max_frames=8)) == []


def test_another_tokenizer_or_tower_is_named():
    (text,) = compare(FACTS, tokenizer_hash="other")
    assert text.startswith("counted with another tokenizer than that of b, which a has")
    (text,) = compare(FACTS, sampling=SamplingSpec(patch_size=16))
    assert "temporal_patch_size [14, 2, 2] and not [16, 2, 2]" in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fps", 3.0),
        ("min_frames", 6),
        ("max_frames", 32),
        ("min_pixels", 4000),
        ("max_pixels", 800),
    ],
)
def test_sampling_that_its_own_options_contradict_is_named(name, value):
    (text,) = compare(replace(FACTS, sampling=replace(FACTS.sampling, **{name: value})))
    assert text.startswith("sampled otherwise than its options say") and f"{name}={value}" in text


@pytest.mark.parametrize("options", [{"min_frames": 9, "max_frames": 2}, {"fps": "x"}])
def test_options_that_mean_nothing_are_named(options):
    (text,) = compare(replace(FACTS, options=options))
    assert text.startswith("built with options that mean nothing")


def test_a_change_of_sampling_in_words():
    before = SamplingSpec()
    assert change_of_sampling(before, replace(before, fps=2.0, min_pixels=3136)) is None
    assert change_of_sampling(before, replace(before, fps=4.0)) == "fps=4.0 (not 2.0)"
