import itertools

import pytest

from benchmarks.study.study_design import STAGES, Design, Run
from benchmarks.study.study_summary import attended_shares
from videonsa.errors import UsageError
from videonsa.ops.spec import NSASpec
from videonsa.train.reading import read_recipe


def counted(spec, tokens, frame=16):
    """Pairs row by row: keys of selected blocks and window up to the row, means of whole blocks."""
    most, window = spec.num_selected_blocks * frame, spec.window_size
    kept = sum(min(row + 1, most) + min(row + 1, window) for row in range(tokens))
    means = sum(row // frame for row in range(tokens))
    return kept, means, sum(row + 1 for row in range(tokens))


@pytest.mark.parametrize("tokens", [64, 912, 4096])
def test_shares_are_those_of_counting_row_by_row(tokens):
    spec = NSASpec.paper(block_size="frame", num_selected_blocks=8, window_size=64)
    kept, means, dense = counted(spec, tokens)
    shares = attended_shares(spec, tokens)
    assert shares["selected_and_window"] == pytest.approx(kept / dense)
    assert shares["all"] == pytest.approx((kept + means) / dense)


def test_no_video_of_training_is_in_two_sources_and_every_recipe_is_there():
    spans = []
    for stage in STAGES:
        assert read_recipe(stage.recipe_file).attention.block_size == "frame"
        for source in stage.sources:
            options = dict(item.split("=") for item in source.split(":")[1].split(","))
            first = int(options["first"])
            spans.append((first, first + int(options["count"])))
    spans.sort()
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))


def test_twins_differ_in_their_attention_alone(tmp_path):
    design = Design()
    pairs = [
        set(design.settings_of(Run(stage="long", seed=2, attention=name), tmp_path))
        for name in ("nsa", "dense")
    ]
    assert pairs[0] ^ pairs[1] == {"attention.kind=nsa", "attention.kind=dense"}


def test_settings_may_be_those_of_one_stage(tmp_path):
    design = Design(settings=("long:optimizer.steps=9", "run.log_every=3"))
    short, long = (
        design.settings_of(Run(stage=stage, seed=0, attention="dense"), tmp_path)
        for stage in ("short", "long")
    )
    assert "optimizer.steps=9" in long and "optimizer.steps=9" not in short
    assert "run.log_every=3" in long and "run.log_every=3" in short


def test_a_setting_of_no_stage_is_refused_and_a_colon_in_a_value_is_none(tmp_path):
    run = Run(stage="long", seed=0, attention="dense")
    gates = "model.closed_gates=['compressed:1']"
    assert gates in Design(settings=(gates,)).settings_of(run, tmp_path)
    with pytest.raises(UsageError, match="no stage 'study', want one of short, medium, long"):
        Design(settings=("study:optimizer.steps=9",)).settings_of(run, tmp_path)


def test_what_led_to_a_model_that_is_there_is_not_trained_again(tmp_path):
    design = Design()
    short, medium, nsa = (
        Run(stage=stage, seed=1, attention=attention)
        for stage, attention in (("short", "dense"), ("medium", "dense"), ("long", "nsa"))
    )
    assert not design.is_done(short, tmp_path)
    medium.model(tmp_path).mkdir(parents=True)
    assert design.is_done(short, tmp_path) and design.is_done(medium, tmp_path)
    assert not design.is_done(nsa, tmp_path)
    medium.model(tmp_path).rmdir()
    nsa.model(tmp_path).mkdir(parents=True)
    assert not design.is_done(medium, tmp_path)  # its dense twin still has to begin
