"""The attention section and its plot, from made-up numbers."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.report.attention_section import attention_figure, render_attention

FIXTURE = Path(__file__).parents[2] / "fixtures/bench/attention.json"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def result():
    return json.loads(FIXTURE.read_text())


@pytest.fixture
def page(result):
    return render_attention(result, figure="attention.svg")


def rows(page, shape):
    """The cells of a shape's table."""
    section = page.split(f"### {shape}:")[1].split("###")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_shape_has_a_table_with_time_spread_ratio_memory_and_union(page):
    assert rows(page, "7b-16k")[:3] == [
        ["`videonsa`", "random", "3.500 (3.000-4.000)", "0.875", "1.14", "0.25", "200.2"],
        ["`videonsa`", "coherent", "2.000 (2.000-2.500)", "0.500", "2.00", "0.25", "31.5"],
        ["`sdpa-cudnn`", "any", "4.000 (3.900-4.250)", "1.000", "1.00", "0.00", ""],
    ]
    assert "### frame60-64k: 65,520 tokens, 28 query and 4 KV heads of 128, frames of 60" in page


def test_what_has_no_number_says_why(page):
    table = rows(page, "7b-64k")
    assert ["`fla-nsa`", "random", "out of memory", "", "", "", ""] in table
    section = page.split("### 7b-64k:")[1]
    assert "- `fla-nsa`: without a window branch; OutOfMemoryError: CUDA out of memory." in section
    assert section.count("CUDA out of memory") == 1


def test_without_the_baseline_the_ratio_is_left_empty(page):
    assert rows(page, "frame60-64k") == [
        ["`videonsa`", "random", "1234 (1234-1235)", "", "", "1.00", "221.0"]
    ]


def test_machine_method_and_verification_stand_below(page):
    assert "device Made-up GPU, memory_gb 100.0, torch 1.2.3, commit 0000000" in page
    assert "driver" not in page.splitlines()[-1], "what is not known is left out"
    assert "How: made-up numbers." in page
    assert "errors at most 0.75 of what is allowed; 3 of 56000 selections differ" in page
    assert "tests/ops/triton: 9 passed in 1s" in page


@pytest.mark.parametrize(
    ("which", "name"),
    [("backward", "Backward pass"), ("both", "Forward and backward pass")],
)
def test_another_pass_is_named_in_its_section_and_its_plot(result, page, which, name):
    forward_plot = attention_figure(result)
    result["pass"] = which
    result["shapes"][0]["verification"]["worst_gradient_error"] = 0.875
    text = render_attention(result, figure=None)
    assert text.startswith(f"## Attention on Made-up GPU: {name.lower()}\n\n{name} of one")
    assert "radients " in text.split("###")[0]
    assert "errors at most 0.75 (of gradients 0.88) of what is allowed" in text
    assert rows(text, "7b-16k") == rows(page, "7b-16k")
    plot = forward_plot.replace("forward pass of one layer", f"{name.lower()} of one layer")
    assert attention_figure(result) == plot


def test_a_forward_section_does_not_speak_of_gradients(page):
    assert page.startswith("## Attention on Made-up GPU\n\nForward pass of one")
    assert "gradient" not in page


def test_a_result_of_peers_alone_says_that_nothing_was_verified(result):
    for entry in result["shapes"]:
        entry["verification"] = {"checks": 0, "tests": None}
    assert "nothing was verified" in render_attention(result, figure=None)


def test_the_plot_has_a_line_and_a_label_for_every_measured_curve(result):
    root = ElementTree.fromstring(attention_figure(result))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    labels = ["dense, cuDNN", "dense, flash", "NSA of fla*, random", "videonsa, random",
              "videonsa, coherent"]  # fmt: skip
    assert set(labels) <= set(texts)
    assert {"length in tokens", "time in milliseconds", "16K", "64K"} <= set(texts)
    assert any("Made-up GPU" in text and "n = 32" in text for text in texts)
    points = [len(line.get("points").split()) for line in root.iter(f"{SVG}polyline")]
    # Flash and the competitor have no number at 64K.
    assert sorted(points) == [1, 1, 2, 2, 2]


def test_the_plot_follows_the_numbers(result):
    before = attention_figure(result)
    result["shapes"][0]["runs"][0]["ms"] *= 1.5
    assert attention_figure(result) != before
    assert attention_figure(json.loads(FIXTURE.read_text())) == before


def test_one_length_is_no_plot(result):
    result["shapes"] = result["shapes"][1:]
    assert attention_figure(result) is None
