import pytest

from benchmarks.report.study_section import draw_study, render_study

LENGTHS = (4096, 16384)
RIGHT = {("nsa", 4096): 60, ("dense", 4096): 61, ("nsa", 16384): 55, ("dense", 16384): 40}


def run(name, attention):
    return {
        "name": name,
        "attention": attention,
        "steps": 600,
        "learning_rate": 5e-4,
        "tokens": 18_000_000,
        "videos": 4300,
        "losses": [[10, 1.5], [600, 0.25]],
        "gates": {"gates/layer_00/window": 0.5} if attention == "nsa" else {},
    }


@pytest.fixture
def result():
    kinds = ("order", "all")
    return {
        "design": {"seeds": [0, 1], "samples": 50, "lengths": list(LENGTHS)},
        "attention": {
            "keys": 192,
            "num_selected_blocks": 8,
            "window_size": 64,
            "shares": {str(n): {"selected_and_window": 0.1, "all": 0.16} for n in LENGTHS},
        },
        "runs": [run("long-0-nsa", "nsa"), run("long-0-dense", "dense")],
        "constant": [
            {"length": n, "kind": kind, "right": 25, "total": 100}
            for n in LENGTHS
            for kind in kinds
        ],
        "scores": [
            {
                "attention": name,
                "seed": seed,
                "length": n,
                "kind": kind,
                "right": right,
                "total": 100,
            }
            for (name, n), right in RIGHT.items()
            for seed in (0, 1)
            for kind in kinds
        ],
        "differences": [
            {
                "length": n,
                "kind": kind,
                "points": RIGHT["nsa", n] - RIGHT["dense", n],
                "of_seeds": [-1.0, 1.0],
                "over_seeds": 12.7,
                "over_questions": None,
            }
            for n in LENGTHS
            for kind in kinds
        ],
        "machine": {"device": "a GPU"},
    }


def test_the_section_says_scores_shares_and_differences(result):
    page = render_study(result)
    head = "| 4,096 | 10.0 (16.0) | 25.0 | 60.0 (53.1-66.5) | 61.0 (54.1-67.5) | -1.0 | 12.7 | - |"
    assert head in page and "-1.0, +1.0 |" in page
    assert "| 16,384 |" in page and "| +15.0 |" in page
    assert "| order | 25.0, 60.0, 61.0 | 25.0, 55.0, 40.0 |" in page
    assert "| `long-0-nsa` | 600 | 0.0005 | 18.0 | 4,300 | 1.50, 0.25 |" in page
    assert "layer_00/window 0.50" in page


def test_scaled_time_is_said_and_has_a_plot_of_its_own(result):
    assert "study_accuracy.png" in render_study(result)
    result["design"]["scale_time"] = True
    page = render_study(result)
    assert page.startswith("## NSA and dense twins: time scaled\n")
    assert "no position id is new to them" in page
    assert "study_scaled_accuracy.png" in page


def test_the_plot_is_a_picture(result):
    assert draw_study(result)[:8] == b"\x89PNG\r\n\x1a\n"
