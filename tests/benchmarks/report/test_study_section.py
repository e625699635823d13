import copy

import pytest

from benchmarks.report.study_section import draw_study, render_study

ARMS = {"dense": 0.9, "nsa": 0.8, "window": 0.5, "random": 0.55}


def around(value):
    return {"value": value, "low": value - 0.02, "high": value + 0.02, "error": 0.01}


def of_length(length):
    recovered = {
        arm: {"share": around((ARMS[arm] - 0.5) / 0.4), "share_that_would_be_seen": 0.07}
        for arm in ("nsa", "random")
    }
    return {
        "length": length,
        "videos": 300,
        "questions": 9000,
        "constant": {"order": 0.5, "state": 0.3},
        "accuracy": [
            {"style": style, "arm": arm, "kind": kind, **around(share)}
            for style in ("free", "likeliest")
            for arm, share in ARMS.items()
            for kind in ("order", "state", "mean")
        ],
        "compared": {
            "free": {
                "kinds": ["order"],
                "recovered": recovered,
                "by_kind": {"order": recovered},
                "differences": {
                    arm: {
                        "points": {"value": 100 * (share - 0.9), "low": -50.0, "high": 1.0},
                        "points_that_would_be_seen": 2.8,
                    }
                    for arm, share in ARMS.items()
                    if arm != "dense"
                },
            }
        },
    }


@pytest.fixture
def result():
    return {
        "design": {"arms": ["dense", "nsa", "window", "random", "no-compressed"]},
        "seeds": [0, 1],
        "attention": {
            "keys": 384,
            "num_selected_blocks": 16,
            "window_size": 128,
            "shares": {str(n): {"selected_and_window": 0.1, "all": 0.16} for n in (4096, 16384)},
        },
        "runs": [
            {
                "name": "16k-0-nsa",
                "steps": 1000,
                "learning_rate": 4e-4,
                "tokens": 131_000_000,
                "videos": 4200,
                "losses": [[10, 1.5], [1000, 0.25]],
                "tokens_per_second": 300_000.0,
                "mfu": 0.15,
            }
        ],
        "lengths": [of_length(4096), of_length(16384)],
        "gates": {
            "branches": ["compressed", "selected", "window"],
            "kinds": {"order": [[0.2, 0.6, 0.5], [0.4, 0.8, 0.5]]},
        },
        "left_out": ["seed 1: random is not trained"],
        "machine": {"device": "a GPU"},
    }


def test_the_section_says_scores_shares_and_what_would_have_been_seen(result):
    page = render_study(result)
    assert (
        "| 4,096 | 300 | 10.0 (16.0) | 40.0 | 90.0 (88.0 to 92.0) | 80.0 (78.0 to 82.0) |" in page
    )
    assert "| order | 75 (73 to 77) | 13 (11 to 15) | 7 |" in page
    assert "| 16,384 | -10.0 (-50.0 to +1.0); 2.8 | -40.0 (-50.0 to +1.0); 2.8 |" in page
    assert "| state | 30.0 | 90.0 (88.0 to 92.0) |" in page and "no-compressed" not in page
    assert "| order | 0.30 (0.20-0.40) | 0.70 (0.60-0.80) | 0.50 (0.50-0.50) |" in page
    assert "| `16k-0-nsa` | 1,000 | 0.0004 | 131.0 | 4,200 | 1.50, 0.25 | 300,000 | 15.0 |" in page
    assert "Left out: seed 1: random is not trained." in page
    assert "Tokens and MFU count padding" in page


def test_without_a_kind_that_counts_it_says_so(result):
    poor = copy.deepcopy(result)
    for one in poor["lengths"]:
        one["compared"]["free"] |= {"kinds": [], "recovered": {}, "by_kind": {}}
    poor["gates"]["kinds"] = {}
    page = render_study(poor)
    assert "| none | - | - | - |" in page and "Gates by kind" not in page


def test_an_arm_that_was_not_asked_about_a_length_has_no_score_there(result):
    last = result["lengths"][1]
    last["accuracy"] = [x for x in last["accuracy"] if x["arm"] not in ("nsa", "random")]
    last["compared"]["free"] |= {"recovered": {}, "by_kind": {}}
    del last["compared"]["free"]["differences"]["nsa"]
    page = render_study(result)
    assert "| 90.0 (88.0 to 92.0) | - | 50.0 (48.0 to 52.0) | - | 90.0 | - | order |" in page
    assert "| 16,384 | - | -40.0 (" in page
    assert draw_study(result)[:4] == b"\x89PNG"


def test_the_plot_is_a_picture(result):
    assert draw_study(result)[:8] == b"\x89PNG\r\n\x1a\n"
