import itertools
from dataclasses import replace

import pytest
import torch

from benchmarks.study.base_model import SIZES
from benchmarks.study.study_design import ARMS, STAGES, Design, Run, Source, Stage
from benchmarks.study.study_jobs import (
    answering_jobs,
    check_settings,
    data_jobs,
    training_jobs,
)
from benchmarks.study.study_report import attended_shares
from videonsa.cli.main import main
from videonsa.errors import UsageError
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.models.methods import NSA
from videonsa.ops.spec import NSASpec
from videonsa.train.reading import read_recipe

LAST = STAGES[-1]


def counted(spec, tokens, frame=16):
    """Pairs row by row: keys of selected blocks and window up to the row, means of whole blocks."""
    most, window = spec.num_selected_blocks * frame, spec.window_size
    kept = sum(min(row + 1, most) + min(row + 1, window) for row in range(tokens))
    means = sum(row // frame for row in range(tokens))
    return kept, means, sum(row + 1 for row in range(tokens))


@pytest.mark.parametrize("tokens", [64, 912, 4096])
def test_shares_are_those_of_counting_row_by_row(tokens):
    spec = NSASpec.paper(block_size="frame", num_selected_blocks=16, window_size=128)
    kept, means, dense = counted(spec, tokens)
    shares = attended_shares(spec, tokens)
    assert shares["selected_and_window"] == pytest.approx(kept / dense)
    assert shares["all"] == pytest.approx((kept + means) / dense)


def test_no_video_of_training_is_in_two_sources(tmp_path):
    spans = []
    for job in data_jobs(Design(), tmp_path):
        for word in job.command(0.0):
            if word.startswith("synthetic:"):
                options = dict(item.split("=") for item in word.split(":")[1].split(","))
                first = int(options["first"])
                spans.append((first, first + int(options["count"])))
    spans.sort()
    assert len(spans) == sum(len(stage.sources) for stage in STAGES)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))


def test_a_manifest_that_leaves_out_videos_of_its_stage_is_refused(tmp_path):
    stage = Stage(name="16k", sources=(Source(length=16_384, count=1),), has_arms=True)
    (job,) = data_jobs(Design(stages=(stage,)), tmp_path)
    assert not job.is_done()
    module, *words = job.command(0.0)
    assert module == "videonsa" and main([*words, "--workers", "1"]) == 0 and job.is_done()
    assert main([*words, "--workers", "1", "--max-frames", "550"]) == 0
    with pytest.raises(UsageError, match="has 0 videos: want all 1 of stage 16k; "):
        job.is_done()


@pytest.mark.parametrize("arm", [*ARMS, "nsa-8-256", "nsa-22-32"])
def test_arms_attend_to_equally_many_keys_from_one_model_of_their_seed(arm, tmp_path):
    design = Design(arms=(arm,), seeds=(3,))
    runs = [Run(stage=stage.name, seed=3, arm=arm) for stage in STAGES if stage.has_arms]
    assert design.before(runs[0]) == Run(stage="4k", seed=3, arm="dense")
    assert design.before(runs[1]) == runs[0]
    method = read_recipe(
        LAST.recipe, settings=design.settings_of(runs[1], tmp_path)
    ).attention.method()
    assert isinstance(method, NSA) == (arm != "dense")
    assert method.attended_keys(16) == (None if arm == "dense" else 384)


def test_an_arm_of_another_point_of_the_budget_is_named_by_its_blocks_and_window(tmp_path):
    design = Design(arms=("nsa", "nsa-8-256"), seeds=(0, 1))
    assert [run.name for run in design.last_runs()] == [
        "16k-0-nsa",
        "16k-0-nsa-8-256",
        "16k-1-nsa",
        "16k-1-nsa-8-256",
    ]
    settings = design.settings_of(design.last_runs()[1], tmp_path)
    spec = read_recipe(LAST.recipe, settings=settings).attention.method().spec
    assert (spec.num_selected_blocks, spec.window_size) == (8, 256)
    check_settings(design, tmp_path)
    with pytest.raises(UsageError, match="want equally many in every arm"):
        check_settings(replace(design, arms=("nsa", "nsa-8-128")), tmp_path)


def test_every_seed_begins_with_weights_of_its_own(tmp_path):
    design = Design(seeds=(4, 5))
    for run in design.runs_of(STAGES[0]):
        recipe = read_recipe(STAGES[0].recipe, settings=design.settings_of(run, tmp_path))
        assert recipe.model.fresh and recipe.run.seed == run.seed
    later = read_recipe(LAST.recipe, settings=design.settings_of(design.last_runs()[0], tmp_path))
    assert not later.model.fresh


def test_settings_may_be_those_of_one_stage(tmp_path):
    design = Design(settings=("16k:optimizer.steps=9", "run.log_every=3"))
    stills, last = (
        design.settings_of(Run(stage=stage, seed=0, arm="dense"), tmp_path)
        for stage in ("stills", "16k")
    )
    assert "optimizer.steps=9" in last and "optimizer.steps=9" not in stills
    assert "run.log_every=3" in last and "run.log_every=3" in stills


def test_a_setting_of_no_stage_is_refused_and_a_colon_in_a_value_is_none(tmp_path):
    run = Run(stage="16k", seed=0, arm="dense")
    gates = "model.closed_gates=['compressed:1']"
    assert gates in Design(settings=(gates,)).settings_of(run, tmp_path)
    with pytest.raises(UsageError, match="no stage 'long', want one of stills, 1k, 4k, adapt, 16k"):
        Design(settings=("long:optimizer.steps=9",)).settings_of(run, tmp_path)
    with pytest.raises(UsageError, match="arm 'sparse': want some of dense, nsa, window"):
        Design(arms=("dense", "sparse"))


def test_a_run_waits_for_its_data_and_for_what_it_starts_from(tmp_path):
    jobs = {job.name: job.after for job in training_jobs(Design(), tmp_path, trainers=1)}
    assert jobs["stills-0-dense"] == ("data-stills",)
    assert jobs["4k-0-dense"] == ("data-4k", "1k-0-dense")
    assert jobs["adapt-0-nsa"] == ("data-adapt", "4k-0-dense")
    assert jobs["16k-0-nsa"] == ("data-16k", "adapt-0-nsa")


def test_a_run_and_its_data_are_not_needed_where_all_that_begin_with_it_are_trained(tmp_path):
    design, done = Design(arms=("dense", "nsa")), Run(stage="1k", seed=0, arm="dense")
    done.model(tmp_path).mkdir(parents=True)
    jobs = [*data_jobs(design, tmp_path), *training_jobs(design, tmp_path, trainers=1)]
    asked = answering_jobs(design, tmp_path, answerers=1)
    ready = [job.name for job in [*jobs, *asked] if job.is_done()]
    stills = ["stills-0-dense", "answers-stills-0-dense-0/1"]
    assert ready == ["data-stills", "data-1k", stills[0], "1k-0-dense", stills[1]]
    Run(stage="16k", seed=0, arm="nsa").model(tmp_path).mkdir(parents=True)
    assert [job.name for job in jobs if job.is_done()][-2:] == ["adapt-0-nsa", "16k-0-nsa"]


def test_the_model_of_the_study_has_45_million_parameters():
    config = SIZES["45m"].config()
    text, vision = config.text_config, config.vision_config
    assert (text.num_hidden_layers, text.hidden_size, vision.depth) == (12, 512, 6)
    assert (text.num_attention_heads, text.num_key_value_heads) == (8, 2)
    assert sum(text.rope_parameters["mrope_section"]) == 32 and not config.gates
    with torch.device("meta"):
        model = VideoNSAForConditionalGeneration(config)
    assert sum(x.numel() for x in model.parameters()) == pytest.approx(45e6, rel=0.05)
