import json

import pytest

from benchmarks.baselines.asking import SettingLine
from benchmarks.baselines.baseline_design import FRAME_TOKENS, Comparison, lengths_of
from benchmarks.baselines.baseline_result import Facts, summarise
from videonsa.errors import UsageError

VIDEOS = 40
COMPARISON = Comparison(
    methods=("dense", "nsa", "tri_shape"), videos=((64, VIDEOS), (256, VIDEOS)), questions=2
)
ATTENTION = {
    "dense": 1.0,
    "nsa": 0.2,
    "tri_shape": 0.6,
    "tri_shape:n_local=1024": 0.4,
    "tri_shape:n_local=512": 0.21,
    "tri_shape:n_local=256": 0.1,
}


def line(setting, sample, right, *, length=64, **more):
    """Questions of two kinds; `right` says which verdicts are right."""
    fields = {
        "setting": setting,
        "length": length,
        "sample": sample,
        "kinds": ["order", "state"],
        "answers": ["a", "b"],
        "places": [sample % 2, 1],
        "free": list(right),
        "likeliest": [True, True],
        "attention": ATTENTION[setting],
        "kept": 1.0,
        "seconds": 0.5,
        "encode_seconds": 0.25,
    }
    return SettingLine(**fields | more)


def summary(rights, **more):
    lines = [
        line(setting, sample, rights.get(setting, (True, True)), **more)
        for setting in ATTENTION
        for sample in range(VIDEOS)
    ]
    result = summarise(COMPARISON, lines, Facts({"device": "CPU"}, 2))
    return json.loads(json.dumps(result, allow_nan=False))


def test_differences_are_paired_and_none_where_all_answers_are_the_same():
    result = summary({"nsa": (False, True)})
    (one,) = result["lengths"]
    cells = {cell["setting"]: cell for cell in one["cells"]}
    assert cells["nsa"]["accuracy"]["value"] == 0.5
    assert cells["nsa"]["difference"]["points"]["value"] == -50
    assert cells["tri_shape"]["difference"]["points"] == dict.fromkeys(
        ("value", "low", "high", "error"), 0.0
    )
    assert cells["nsa"]["by_kind"] == {"order": 0.0, "state": 1.0}
    assert cells["nsa"]["likeliest"]["value"] == 1
    assert result["seconds"] == len(ATTENTION) * VIDEOS * 0.75


def test_a_method_is_compared_at_the_cheapest_setting_that_computes_as_much_as_nsa():
    equal = summary({})["lengths"][0]["equal"]
    assert equal["tri_shape"] == {"setting": "tri_shape:n_local=512", "computes_less": False}
    assert equal["nsa"]["setting"] == "nsa" and equal["dense"]["setting"] == "dense"


def test_where_none_computes_as_much_it_is_the_most_expensive_and_that_is_said(monkeypatch):
    monkeypatch.setitem(ATTENTION, "nsa", 0.7)
    equal = summary({})["lengths"][0]["equal"]
    assert equal["tri_shape"] == {"setting": "tri_shape", "computes_less": True}


def test_a_sentence_says_what_is_lost_where_and_that_no_loss_shows():
    sentences = summary({"nsa": (False, True)})["sentences"]
    assert sentences["nsa"] == (
        "`nsa` computes 20 % of dense attention at 64 tokens: it loses 50.0 points at 64 tokens "
        "(50.0 to 50.0), most in `order` (100 to 0 %)."
    )
    assert sentences["tri_shape"] == (
        "`tri_shape:n_local=512` computes 21 % of dense attention at 64 tokens: no loss shows at "
        "64 tokens (+0.0 points, +0.0 to +0.0)."
    )
    better = summary({"dense": (False, True)})["sentences"]["nsa"]
    assert "it gains 50.0 points at 64 tokens (50.0 to 50.0)." in better


def test_what_was_refused_or_not_finished_is_left_out_by_name():
    refused = line("nsa", 0, (), kinds=[], answers=[], places=[], likeliest=[], reason="no gates")
    lines = [line("dense", sample, (True, True)) for sample in range(VIDEOS - 1)]
    result = summarise(COMPARISON, [*lines, refused], Facts({}, 1))
    assert [cell["setting"] for cell in result["lengths"][0]["cells"]] == ["dense"]
    assert result["left_out"][:3] == [
        "nsa at 64 tokens: no gates",
        "64 tokens: 39 of 40 videos have answers of every setting",
        "256 tokens: 0 of 40 videos have answers of every setting",
    ]


def test_lengths_are_multiples_of_the_training_length_within_the_context():
    assert lengths_of(4096) == (4096, 16_384, 65_536)
    assert lengths_of(16_384) == (16_384, 65_536, 2**18 - 1024)
    assert all(length % FRAME_TOKENS == 0 for length in lengths_of(16_384))


def test_methods_and_kinds_that_there_are_not_are_refused():
    for fields in ({"methods": ("dense", "fast")}, {"kinds": ("order", "colour")}):
        with pytest.raises(UsageError, match="want some of"):
            Comparison(**fields)
