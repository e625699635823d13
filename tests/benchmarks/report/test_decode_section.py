"""The pages of decoding and of sessions, and their targets, from made-up numbers."""

import json

from benchmarks import headline, targets
from benchmarks.report.__main__ import render
from benchmarks.report.decode_section import render_decode_steps, render_session
from videonsa.cli.main import main

MACHINE = {"device": "NVIDIA H200", "torch": "2.11.0"}


def run(what, batch, ms, **more):
    numbers = dict.fromkeys(("first_ms", "host_ms", "kernels", "busy_ms", "peak_gb"))
    rate = None if ms is None else 1e3 * batch / ms
    found = {"what": what, "tokens": 131072, "batch": batch, "ms": ms, "error": None}
    found |= {"times_ms": [] if ms is None else [ms - 0.5, ms, ms + 1], "tokens_per_s": rate}
    return found | numbers | {"bound_ms": 5.0, "how": "captured steps"} | more


def decode_result(*runs):
    return {
        "model": "7B",
        "copy_tb_per_s": 4.2,
        "question_tokens": 30,
        "machine": MACHINE,
        "method": "in turn",
        "runs": list(runs),
    }


ONE = run("videonsa", 1, 6.25, first_ms=12.5, host_ms=0.05, kernels=400.0, busy_ms=6.0, span_ms=6.2)
MANY = run("videonsa", 16, 8.0)


def test_a_run_has_its_time_range_share_of_the_bound_rate_and_first_token():
    text = render_decode_steps(decode_result(ONE | {"peak_gb": 25.44}), what=", weights in fp8")
    assert text.startswith("## Decoding: 7B on NVIDIA H200, weights in fp8\n")
    assert "### 131,072 tokens in the cache (bound of one question: 5.00 ms)" in text
    row = "6.25 (5.75-7.25) | 80 % | 160 | 12.5 (2.0) | 0.050 | 400 | 6.00 + 0.20 | 25.4 |"
    assert f"| videonsa | 1 | {row}" in text


def test_sampling_stands_beside_the_time_of_the_host_where_it_is_known():
    text = render_decode_steps(decode_result(ONE | {"sampling_ms": 0.03}))
    assert "| 0.050 (0.030) |" in text


def test_a_run_without_a_number_says_why():
    failed = run("transformers, dynamic cache", 16, None, error="OutOfMemoryError: CUDA")
    text = render_decode_steps(decode_result(ONE, failed))
    assert "| transformers, dynamic cache | 16 | no number |" in text
    assert "- transformers, dynamic cache, questions: 16: OutOfMemoryError: CUDA\n" in text
    assert "- videonsa, " not in text


def test_what_was_not_decoded_by_captured_steps_says_so():
    text = render_decode_steps(decode_result(ONE | {"how": "plain steps: a recorder looks on"}))
    assert "- videonsa, questions: 1: plain steps: a recorder looks on\n" in text


def test_targets_of_decoding_are_found(tmp_path):
    (tmp_path / "decode_steps.json").write_text(json.dumps(decode_result(ONE, MANY)))
    found = {cells[0]: cells[3:] for cells, _ in targets.rows(tmp_path) if "decode" in cells[0]}
    assert found["128k decode, one question: a token"] == ["6.25 ms", "aim"]
    assert found["128k decode: first token of a second question of 30 tokens"] == [
        "2 steps",
        "aim",
    ]
    together = "128k decode: 16 questions over one cache, tokens a second over one question's"
    assert found[together] == ["12.5x", "aim"]
    assert found["1m decode: the host's part of a step"] == ["not measured", ""]


def test_readme_has_tokens_of_all_lengths_beside_transformers(tmp_path, monkeypatch):
    monkeypatch.setattr(headline, "RESULTS", tmp_path)
    assert list(headline._decoding()) == []
    others = [ONE | {"tokens": 2**13, "ms": 4.0}, ONE | {"tokens": 2**20, "ms": 20.0}]
    theirs = run(headline.DYNAMIC, 1, 30.0), run(headline.DYNAMIC, 16, None, error="no memory")
    for name, runs in (("", (ONE, MANY, *others)), ("_peers", (ONE, MANY, *theirs))):
        path = tmp_path / f"decode_steps{name}.json"
        path.write_text(json.dumps(decode_result(*runs)))
    token, first, together = headline._decoding()
    assert token[1:] == [
        "4.0 / 6.2 / 20.0 ms",
        "- / 30.0 / - ms in transformers, dynamic cache",
        "125 / 80 / 25 % of the speed at which memory is copied",
    ]
    assert first[1:] == ["12 ms", "", "2.0 decode steps"]
    assert together[1:] == [
        "8.0 ms",
        "does not run in transformers, with 16 caches",
        "12.5 times as many tokens a second as one",
    ]


def test_readme_does_not_speak_of_what_was_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(headline, "RESULTS", tmp_path)
    others = [ONE | {"tokens": tokens} for tokens in (2**13, 2**20)]
    plain = run("videonsa, plain forward", 1, 70.0)
    result = decode_result(ONE, MANY, *others, plain)
    (tmp_path / "decode_steps.json").write_text(json.dumps(result))
    token, _, together = headline._decoding()
    assert token[2] == "- / 70.0 / - ms by the plain forward"
    assert together[2] == ""


def test_a_stage_of_a_session_has_its_times_and_speed():
    stage = {
        "name": "save, exact",
        "ms": 4000.0,
        "times_ms": [4000.0],
        "error": None,
        "first_ms": None,
        "decoding": "captured steps",
        "first_token_ms": None,
        "ms_a_token": None,
        "gb": 7.52,
        "gb_per_s": 1.88,
        "peak_gb": 30.0,
    }
    failed = stage | {"name": "load, exact", "error": "UsageError: damaged"}
    text = render_session(
        {
            "model": "7B",
            "weights_gb": 16.6,
            "new_tokens": 64,
            "machine": MACHINE,
            "method": "in turn",
            "videos": [{"video": "a.mp4", "tokens": 1280, "stages": [stage, failed]}],
        }
    )
    assert "### a.mp4: 1,280 tokens with its text" in text
    assert "| save, exact | 4000.0 |  |  |  | 7.52 | 1.88 | 30.0 |" in text
    assert "| load, exact | UsageError: damaged |" in text
    assert "Answers were decoded by captured steps.\n" in text


def test_what_the_commands_write_becomes_pages(tmp_path):
    folder = tmp_path / "results" / "some-gpu"
    folder.mkdir(parents=True)
    tiny = ["--model", "tiny", "--device", "cpu", "--repeats", "1", "--out"]
    decode = ["bench", "decode", "--tokens", "40", "--batch", "1", "--new-tokens", "8", *tiny]
    assert main([*decode, str(folder / "decode_steps.json")]) == 0
    session = ["bench", "session", "--tokens", "16", "--frame", "56x56", "--video", "none", *tiny]
    assert main([*session, str(folder / "session.json"), "--new-tokens", "3"]) == 0
    for path in folder.iterdir():
        result = json.loads(path.read_text())
        result["machine"]["dirty"] = False  # sources may be edited while tests run
        path.write_text(json.dumps(result))
    text = render(folder.parent)
    assert "## Decoding: tiny on cpu" in text
    assert "## A session: tiny on cpu" in text
