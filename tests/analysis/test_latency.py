"""`latency`: each way computes what its name says, and times are kept, told and drawn."""

from dataclasses import replace

import pytest
import torch

from videonsa.analysis.asked import AskedNothing
from videonsa.analysis.latency import (
    DENSE,
    GIVEN,
    ON_A_CPU,
    TOGETHER,
    WAYS,
    Latency,
    LatencyOptions,
    calls_of,
)
from videonsa.analysis.look import LIGHT, picture
from videonsa.analysis.registry import finding_from
from videonsa.bench.attention_inputs import make_inputs
from videonsa.bench.attention_shapes import SHAPES
from videonsa.cli.main import EXIT_USER, main
from videonsa.errors import UsageError
from videonsa.inference.engine import load
from videonsa.ops.spec import BRANCHES


def check_ways(shape, device, **tolerance):
    """The branches alone add up to all three; dense attention is a causal softmax."""
    inputs = make_inputs(shape, ("random",), device=device)["random"]
    with torch.inference_mode():
        found = {way: call()[0].float() for way, call in calls_of(inputs, shape).items()}
    assert tuple(found) == (TOGETHER, *BRANCHES, GIVEN, DENSE)
    torch.testing.assert_close(sum(found[x] for x in BRANCHES), found[TOGETHER], **tolerance)
    torch.testing.assert_close(found[GIVEN], found["selected"], **tolerance)
    q, k, v = (x[0].float().transpose(0, 1) for x in inputs[:3])  # [heads, T, D]
    k, v = (x.repeat_interleave(len(q) // len(k), dim=0) for x in (k, v))
    scores = (q @ k.mT) * q.shape[-1] ** -0.5
    later = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
    expected = scores.masked_fill(later, -torch.inf).softmax(-1) @ v
    torch.testing.assert_close(found[DENSE][0], expected, **tolerance)


@pytest.mark.parametrize("name", ["tiny-256", "tiny-frame20"])
def test_branches_alone_add_up_and_dense_attention_is_a_causal_softmax(name):
    shape = replace(SHAPES[name], dtype="float32")
    check_ways(shape, torch.device("cpu"), atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def qa():
    return load("embedded", device="cpu")


def measured(qa, **options):
    said = []
    found = Latency.measure(qa, AskedNothing(), LatencyOptions(**options), progress=said.append)
    return found, said


@pytest.fixture(scope="module")
def latency(qa):
    return measured(qa, lengths=(64, 32), repeats=1)


def test_times_of_a_cpu_say_that_they_are_no_times_of_kernels(latency):
    found, said = latency
    assert said[0] == ON_A_CPU and ON_A_CPU in found.facts.notes
    assert [(one.way, one.tokens) for one in found.times] == [
        (way, tokens) for tokens in (32, 64) for way in WAYS
    ]
    assert all(one.ms > 0 for one in found.times)
    assert (found.layer["query_heads"], found.layer["num_selected"]) == (6, 2)
    assert finding_from(found.to_json()) == found
    assert b"selected, blocks given" in picture(found, LIGHT, kind="svg")


def test_the_slowest_branch_is_named_and_what_cannot_be_run_says_why(latency):
    found, _ = latency
    ms = dict(zip(WAYS, (8.0, 5.0, 3.0, 2.0, 1.0, 24.0), strict=True))

    def told(compressed_least, *, failing=""):
        times = tuple(
            replace(one, ms=None, error="out of memory")
            if one.way == failing
            else replace(
                one,
                ms=ms[one.way],
                ms_min=compressed_least if one.way == "compressed" else ms[one.way],
                ms_max=ms[one.way],
            )
            for one in found.times
            if one.tokens == 32
        )
        return replace(found, times=times).sentences()

    *_, slowest, dense = told(4.0)
    assert slowest == (
        "At 32 tokens the compressed branch alone takes longest: 50 % of the sum of the three."
    )
    assert "3.00 times as long" in dense
    assert "its runs overlap with those of the selected branch" in told(2.0)[-2]
    assert "window out of memory" in told(4.0, failing="window")[-1]


def test_lengths_and_repeats_begin_with_one(qa):
    for options in ({"lengths": (0,)}, {"repeats": 0}):
        with pytest.raises(UsageError, match="from 1 on"):
            measured(qa, **options)


def test_the_command_shows_no_video(tmp_path, capsys):
    options = ["--set", "lengths=32", "--set", "repeats=1", "--out", str(tmp_path)]
    assert main(["analyze", "latency", *options]) == 0
    assert (tmp_path / "latency.json").exists()
    capsys.readouterr()
    assert main(["analyze", "latency", "clip.mp4"]) == EXIT_USER
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.gpu
def test_on_a_gpu_kernels_are_timed_and_its_facts_are_kept():
    check_ways(replace(SHAPES["7b-16k"], tokens=1024), torch.device("cuda"), atol=5e-2, rtol=2e-2)
    found, said = measured(
        load("embedded", device="cuda"), lengths=(1024, 4096), repeats=3, shape="7b"
    )
    assert not any(ON_A_CPU in line for line in (*said, *found.facts.notes))
    assert all(one.ms_min <= one.ms <= one.ms_max for one in found.times)
    assert all(one.extra_gb is not None and one.error is None for one in found.times)
    assert found.hardware["memory_gb"] > 0 and found.hardware["driver"]
    assert "CUDA events" in found.how and found.layer["query_heads"] == 28
