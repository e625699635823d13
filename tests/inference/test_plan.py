"""Plans agree with what an answer then uses."""

import json

import pytest

import videonsa
from videonsa.errors import ModelError, UsageError
from videonsa.video.sampling import SamplingSpec


def test_a_plan_has_the_frames_and_tokens_that_an_answer_uses(tiny_folder, clip_path):
    plan = videonsa.plan_video(clip_path, tiny_folder)
    usage = videonsa.load(tiny_folder, device="cpu").ask(clip_path, "?", max_new_tokens=1).usage
    assert plan.sampling.times == usage.times
    assert plan.sampling.grid == usage.grid
    assert plan.sampling.num_tokens == usage.video_tokens
    assert plan.attention == usage.attention
    assert plan.budget.keys == usage.budget.keys
    assert plan.fits


def test_a_published_model_is_planned_without_weights_or_network(clip_path):
    plan = videonsa.plan_video(clip_path, "Enxin/VideoNSA")
    assert plan.parameters == 8_660_360_496
    assert plan.memory.weights == 2 * plan.parameters
    assert plan.context == 128_000
    dumped = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
    assert dumped["tokens"]["video"] == 48
    assert dumped["budget"]["dense_equivalent"]


def test_attention_and_dtype_can_be_chosen(clip_path, tiny_folder):
    plan = videonsa.plan_video(clip_path, tiny_folder, attention="dense", dtype="bfloat16")
    assert plan.budget is None
    assert plan.memory.weights == 2 * plan.parameters
    with pytest.raises(UsageError, match="dtype='int3'"):
        videonsa.plan_video(clip_path, tiny_folder, dtype="int3")


def test_a_plan_may_not_fit(clip_path, tiny_folder):
    spec = SamplingSpec(min_pixels=1_003_520, max_pixels=1_003_520)
    assert not videonsa.plan_video(clip_path, tiny_folder, sampling=spec).fits


def test_an_unknown_model_is_refused(clip_path):
    with pytest.raises(ModelError, match="no folder and no Hugging Face id"):
        videonsa.plan_video(clip_path, "no-such-model")
