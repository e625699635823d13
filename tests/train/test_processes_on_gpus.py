"""Training over GPUs of one machine, by NCCL: the loss curve of one GPU, within bf16 noise."""

import json
import os
from functools import partial

import pytest
import torch
from small_run import (
    losses,
    make_data,
    recipe_for,
    run_on_from_first_checkpoint,
    run_torchrun,
)

from videonsa.models.checkpoints.loading import load_model

pytestmark = [
    pytest.mark.multi_gpu,
    pytest.mark.slow,
]
COUNT = min(4, torch.cuda.device_count() // 2 * 2)
VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1,2,3").split(",")
ON_GPUS = partial(run_torchrun, processes=COUNT, gpus=",".join(VISIBLE[:COUNT]))
STEPS = 6


@pytest.fixture(scope="module")
def recipe(tiny_folder, tmp_path_factory):
    data = make_data(tmp_path_factory.mktemp("data"))
    settings = (f"optimizer.steps={STEPS}", f"optimizer.batch_size={COUNT}", "run.precision=bf16")
    return recipe_for(tiny_folder, data, *settings)


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "run"
    run_torchrun(recipe, out, processes=1, gpus=VISIBLE[0])
    return losses(out)


@pytest.mark.parametrize(
    "settings",
    [
        (),
        (f"parallel.sequence={COUNT}",),
        ("parallel.fsdp=true",),
        ("parallel.fsdp=true", "parallel.sequence=2"),
        ("parallel.fsdp=true", "parallel.activation_checkpointing=true"),
    ],
    ids=["sequences of their own", "shared sequences", "sharded weights", "both", "recomputed"],
)
def test_gpus_train_as_one(settings, recipe, alone, tmp_path):
    ON_GPUS(recipe, tmp_path / "run", *settings)
    found = losses(tmp_path / "run")
    assert [step for step, *_ in found] == [step for step, *_ in alone]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(alone), rtol=5e-2, atol=1e-2)


def test_a_run_on_gpus_goes_on_from_its_checkpoint(recipe, tmp_path):
    out = tmp_path / "run"
    sharded = ("parallel.fsdp=true", "parallel.sequence=2")
    ON_GPUS(recipe, out, *sharded)
    whole = losses(out)
    run_on_from_first_checkpoint(recipe, out, *sharded, run=ON_GPUS)
    torch.testing.assert_close(torch.tensor(losses(out)), torch.tensor(whole), rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("sequence", [1, 2])
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_trains_as_one_and_goes_on(stage, sequence, recipe, alone, tmp_path):
    pytest.importorskip("deepspeed")
    config = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": stage,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
    }
    (tmp_path / "deepspeed.json").write_text(json.dumps(config))
    out = tmp_path / "run"
    settings = (
        f"parallel.deepspeed={tmp_path / 'deepspeed.json'}",
        f"parallel.sequence={sequence}",
    )
    ON_GPUS(recipe, out, *settings)
    found = losses(out)
    # All of it computes in bfloat16 here, norms and losses too.
    torch.testing.assert_close(torch.tensor(found), torch.tensor(alone), rtol=1e-1, atol=2e-2)
    model = load_model(out / "model", device="cuda", dtype=torch.bfloat16).model
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())
    run_on_from_first_checkpoint(recipe, out, *settings, run=ON_GPUS)
    torch.testing.assert_close(torch.tensor(losses(out)), torch.tensor(found), rtol=2e-2, atol=1e-2)
