"""Plans agree with what an answer then uses."""

import json
import shutil

import pytest
from peft import LoraConfig, get_peft_model

import videonsa
from videonsa.errors import BudgetError, ModelError, UsageError
from videonsa.models.methods.head_patterns import HeadPatterns
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
    assert all(stage.terms["weights"] == 2 * plan.parameters for stage in plan.memory.stages)
    assert plan.context == 128_000
    dumped = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
    assert dumped["tokens"]["video"] == 48
    assert dumped["budget"]["dense_equivalent"]


def test_attention_and_dtype_can_be_chosen(clip_path, tiny_folder):
    plan = videonsa.plan_video(clip_path, tiny_folder, method="dense", dtype="bfloat16")
    assert plan.budget is None
    assert plan.memory.peak.terms["weights"] == 2 * plan.parameters
    with pytest.raises(UsageError, match="dtype='int3'"):
        videonsa.plan_video(clip_path, tiny_folder, dtype="int3")


def test_what_a_method_says_of_a_model_is_in_its_plan(clip_path, tiny_folder, tmp_path):
    plan = videonsa.plan_video(clip_path, tiny_folder, method="vscan")
    told = "vscan: tokens leave again after layer 1 of 2; published is 14 of 28"
    assert told in plan.notes
    patterns = HeadPatterns(model="x", searched_on="y", source="z", sizes=(((30, 50),) * 3,))
    (tmp_path / "own.json").write_text(patterns.to_json())
    with pytest.raises(UsageError, match="1 layers of 3 heads, the model has 2 of 4"):
        videonsa.plan_video(
            clip_path, tiny_folder, method=f"minference:patterns={tmp_path / 'own.json'}"
        )


def test_a_plan_may_not_fit(clip_path, tiny_folder):
    spec = SamplingSpec(min_pixels=1_003_520, max_pixels=1_003_520)
    assert not videonsa.plan_video(clip_path, tiny_folder, sampling=spec).fits


def test_memory_is_held_against_that_of_a_gpu(clip_path):
    roomy, narrow = (
        videonsa.plan_video(clip_path, "Enxin/VideoNSA", memory=size)
        for size in (25 * 10**9, 18 * 10**9)
    )
    assert roomy.machine.kind == "cuda"
    assert roomy.memory == narrow.memory
    assert (roomy.fits_memory, narrow.fits_memory) == (True, False)
    dumped = json.loads(json.dumps(narrow.to_dict(), allow_nan=False))["memory_bytes_estimated"]
    assert not dumped["fits"]
    assert dumped["total"] == dumped["stages"][dumped["peak_stage"]]["total"]


def test_time_is_told_for_a_gpu_with_the_rates_it_came_from(clip_path):
    time = videonsa.plan_video(clip_path, "Enxin/VideoNSA", memory=25 * 10**9).time
    assert time.rates_of == "NVIDIA H200"
    assert time.total == pytest.approx(time.vision_tower + time.prefill + 63 * time.next_token)
    assert videonsa.plan_video(clip_path, "Enxin/VideoNSA", device="cpu").time is None


def test_a_plan_that_is_fitted_fits_and_says_what_changed(clip_path, tiny_folder):
    spec = SamplingSpec(min_pixels=1_003_520, max_pixels=1_003_520)
    plan = videonsa.plan_video(clip_path, tiny_folder, sampling=spec, fit=True)
    assert plan.fits
    assert plan.fit.endswith("instead of 8 frames of 1148x840")
    same = videonsa.plan_video(clip_path, tiny_folder, fit=True)
    assert same.fit == "8 frames of 112x84, as asked"
    assert same.sampling == videonsa.plan_video(clip_path, tiny_folder).sampling


def test_what_cannot_fit_is_refused_with_one_line(clip_path):
    with pytest.raises(BudgetError, match=r"the weights take 17\.3 GB of 18\.0 GB") as raised:
        videonsa.plan_video(clip_path, "Enxin/VideoNSA", memory=18 * 10**9, fit=True)
    assert "\n" not in str(raised.value)


def test_an_unknown_model_is_refused(clip_path):
    with pytest.raises(ModelError, match="no folder and no Hugging Face id"):
        videonsa.plan_video(clip_path, "no-such-model")


@pytest.fixture(scope="module")
def adapter(tiny_folder, tmp_path_factory):
    """An adapter that brings gates to a base without, beside which is how it samples."""
    folder = tmp_path_factory.mktemp("adapter")
    dense = shutil.copytree(tiny_folder, folder / "base")
    videonsa.load(tiny_folder, method="dense", device="cpu").model.save_pretrained(dense)
    model = videonsa.load(dense, method="nsa", fresh_gates=True, device="cpu").model
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["g_proj_1", "g_proj_2"])
    get_peft_model(model, config).save_pretrained(folder / "adapter")
    (folder / "adapter/video_preprocessor_config.json").write_text('{"fps": 1.0}')
    return folder / "adapter"


@pytest.mark.parametrize("attention", [None, "dense"])
@pytest.mark.parametrize("settings", [True, False])
def test_an_adapter_is_planned_as_it_is_asked(adapter, clip_path, tmp_path, attention, settings):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    base = shutil.copytree(adapter.parent / "base", tmp_path / "base")
    if not settings:
        (folder / "video_preprocessor_config.json").unlink()
    options = {"base": base, "method": attention}
    plan = videonsa.plan_video(clip_path, folder, **options)
    qa = videonsa.load(folder, device="cpu", **options)
    usage = qa.ask(clip_path, "What moves?", max_new_tokens=1).usage
    assert plan.attention == usage.attention == (attention or "nsa")
    assert plan.notes[0] == usage.notes[0] == f"LoRA adapter {folder} (rank 2) merged into {base}"
    assert plan.sampling.times == usage.times
    assert len(usage.times) == (4 if settings else 8)
    assert plan.parameters == sum(value.numel() for value in qa.model.parameters())


@pytest.mark.parametrize("number", [0, -1, 2.5, "8", None])
def test_a_length_of_the_answer_that_is_none_is_refused(clip_path, number):
    with pytest.raises(UsageError, match="max_new_tokens"):
        videonsa.plan_video(clip_path, max_new_tokens=number)
