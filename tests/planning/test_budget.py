"""Attention budget, and advice that works."""

import re

import pytest

from videonsa.errors import BudgetError
from videonsa.models.methods import NSA
from videonsa.ops.spec import NSASpec
from videonsa.planning.budget import attention_budget, check_context
from videonsa.planning.defaults import change_sampling
from videonsa.video.sampling import SamplingSpec, VideoInfo, plan_sampling

HOUR = VideoInfo(path="x", duration=3600.0, num_frames=90_000, fps=25.0, width=1280, height=720)


def test_budget_is_the_papers_at_128k():
    budget = attention_budget(NSA(), prompt_tokens=128_000, tokens_per_frame=64)
    assert budget.keys == 32 * 64 + 256
    assert budget.gamma == pytest.approx(0.036, abs=5e-5)
    assert not budget.dense_equivalent


def test_a_short_prompt_is_dense_equivalent():
    short = attention_budget(NSA(), prompt_tokens=4609, tokens_per_frame=64)
    assert short.gamma == 1.0
    assert short.dense_equivalent


def test_frame_blocks_count_the_tokens_of_a_frame():
    spec = NSASpec(block_size="frame", num_selected_blocks=4, window_size=16)
    assert attention_budget(NSA(spec), prompt_tokens=1000, tokens_per_frame=60).keys == 4 * 60 + 16


def test_what_fits_to_the_last_token_passes():
    plan = plan_sampling(HOUR, SamplingSpec(max_frames=64))
    check_context(plan, text_tokens=30, max_new_tokens=64, context=plan.num_tokens + 94)
    with pytest.raises(BudgetError):
        check_context(plan, text_tokens=30, max_new_tokens=64, context=plan.num_tokens + 93)


@pytest.mark.parametrize("option", ["max-frames", "fps", "max-tokens"])
def test_the_advice_of_the_error_fits(option):
    spec = SamplingSpec()
    with pytest.raises(BudgetError) as raised:
        check_context(plan_sampling(HOUR, spec), text_tokens=30, max_new_tokens=64, context=9000)
    advised = re.search(rf"--{option} (?:to )?([0-9.]+)", str(raised.value))
    assert advised, str(raised.value)
    value = float(advised[1]) if option == "fps" else int(advised[1])
    changed = change_sampling(spec, **{option.replace("-", "_"): value})
    better = plan_sampling(HOUR, changed)
    check_context(better, text_tokens=30, max_new_tokens=64, context=9000)
    assert better.num_tokens > 0.5 * 9000, "the advice throws away more than it must"


def test_a_question_that_fills_the_context_alone_is_told_so():
    plan = plan_sampling(HOUR, SamplingSpec())
    with pytest.raises(BudgetError, match="shorten the question"):
        check_context(plan, text_tokens=8990, max_new_tokens=64, context=9000)
