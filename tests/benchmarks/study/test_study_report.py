"""`study.json` from the files of seeds, where not everything is answered."""

import json
from dataclasses import asdict

from benchmarks.study.answering import VideoLine
from benchmarks.study.seed_result import SeedResult
from benchmarks.study.study_design import Design
from benchmarks.study.study_report import short_table, summarise


def lines(length, free, *, videos=3):
    return [
        VideoLine(
            length=length,
            sample=sample,
            only="",
            kinds=["order"],
            answers=["left"],
            places=[sample % 2],
            free=[right],
            likeliest=[True],
            gates=[],
            seconds=0.1,
        )
        for sample, right in zip(range(videos), free, strict=False)
    ]


def of_seed(answers, **options):
    design = Design(videos=((4096, 3), (8192, 3)), **options)
    facts = {
        "seed": 0,
        "design": json.loads(json.dumps(asdict(design))),
        "runs": [],
        "stills": {},
        "left_out": [],
        "machine": {"device": "cpu"},
    }
    return SeedResult(facts, answers)


def test_a_length_that_dense_attention_has_not_answered_yet_is_reported_without_it():
    known = [True] * 3
    seed = of_seed(
        {
            "dense": lines(4096, known),
            "nsa": lines(4096, known) + lines(8192, known),
            "window": lines(4096, known) + lines(8192, known),
        }
    )
    result = summarise([seed])
    longer = result["lengths"][1]
    assert longer["constant"] == {"order": 1.0}
    assert longer["compared"]["free"]["differences"] == {}
    assert "| 8,192 | 3 | 100.0 | - | 100.0 | 100.0 | 0 of 1 | - | - |" in short_table(result)


def test_what_vision_tokens_attend_to_is_that_of_the_settings():
    answers = {"dense": lines(4096, [True] * 3)}
    keys = [
        summarise([of_seed(answers, settings=settings)])["attention"]["keys"]
        for settings in ((), ("16k:attention.window_size=64", "stills:attention.window_size=9"))
    ]
    assert keys == [16 * 16 + 128, 16 * 16 + 64]


def test_draws_of_the_bootstrap_without_headroom_are_named():
    seed = of_seed(
        {
            "dense": lines(4096, [True] * 3),
            "nsa": lines(4096, [True] * 3),
            "window": lines(4096, [False, True, True]),
        }
    )
    (line,) = (x for x in summarise([seed])["left_out"] if "draws" in x)
    assert line.startswith("4,096 tokens, nsa: ")
    assert line.endswith(" of 2,000 draws of the bootstrap have no headroom")
