import pytest
import torch

from videonsa.bench.comparison import CELLS, NUMBERS, Candidate, ComparisonRequest, compare_methods
from videonsa.errors import BudgetError
from videonsa.inference.engine import load
from videonsa.models.methods import AttentionMethod, Dense, parse_method
from videonsa.video.decode import read_video

QUESTION = "What flashed?"


class LastHalf(AttentionMethod):
    """Half of the vision tokens leave after the first layer."""

    name = "half"
    leaves_after = (0,)

    def attend(self, layer, hidden, q, k, v, step):
        return Dense().attend(layer, hidden, q, k, v, step)

    def prepare(self, tokens):
        return Dense().prepare(tokens)

    def kept_after(self, layer, hidden, step, following):
        if not step.tokens.has_vision:
            return None
        vision = step.tokens.vision_mask[0].nonzero()[:, 0]
        gone = vision[: len(vision) // 2]
        places = torch.arange(hidden.shape[1])
        return places[~torch.isin(places, gone)]


@pytest.fixture(scope="module")
def qa(tiny_folder):
    return load(tiny_folder, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def result(qa, clip_path):
    candidates = [
        Candidate("dense", Dense()),
        Candidate("nsa", qa.model.method),
        Candidate("half", LastHalf()),
        Candidate("gone", None, "no such thing here"),
        Candidate("visionzip", parse_method("visionzip:ratio=0.25")),
        Candidate("evs", parse_method("evs:pruning_rate=0.5")),
    ]
    clip = read_video(clip_path, sampling=qa.sampling)
    request = ComparisonRequest(
        question=QUESTION,
        settings=qa.generation_settings(temperature=0, max_new_tokens=3),
        repeats=2,
        layer=1,
    )
    told = []
    *_, last = compare_methods(qa, clip, candidates, request, progress=told.append)
    return last | {"told": told}


def test_answers_are_those_of_ask_and_shares_those_of_what_was_computed(result, qa, clip_path):
    dense, nsa, half, *_ = result["methods"]
    asked = qa.ask(clip_path, QUESTION, max_new_tokens=3, temperature=0)
    assert nsa["answer"] == asked.text and nsa["options"] == asked.usage.spec
    assert dense["attention"] == 1 and 0 < nsa["attention"] < 1
    assert dense["kept_tokens"] == nsa["kept_tokens"] == result["video_tokens"] == 48
    assert half["kept_tokens"] == 48 and half["leaves"] == [{"layer": 1, "tokens": 24}]
    whole, left = result["prompt_tokens"], result["prompt_tokens"] - 24
    pairs = [n * (n + 1) / 2 for n in (whole, left)]
    assert half["attention"] == pytest.approx((1 + pairs[1] / pairs[0]) / 2)
    for line in (dense, nsa, half):
        assert len(line["times_ms"]) == 2 and line["first_ms"] > 0 and line["peak_gb"] is None


def test_tokens_that_a_method_does_not_keep_are_empty_columns_and_rows(result):
    found = result["methods"][4]
    assert found["kept_tokens"] == 12 and found["attention"] < 0.3
    first, end = result["axis"]["vision"]
    kept = found["pattern"]["kept"]
    assert sum(kept[first:end]) == 12 and all(sum(kept[i : i + 12]) == 3 for i in (first, end - 12))
    assert found["pattern"]["shares"][end][first:end] == kept[first:end]
    assert [found["pattern"]["shares"][first + i][first + i] for i in range(48)] == kept[first:end]
    assert found["encode_ms"] != result["methods"][0]["encode_ms"]  # the tower ran for it alone
    assert result["methods"][0]["encode_ms"] == result["methods"][2]["encode_ms"]


def test_a_method_that_cannot_run_stands_there_with_its_reason(result):
    line = result["methods"][3]
    assert line["reason"] == "no such thing here" and line["name"] == "gone"
    assert all(line[name] is None for name in NUMBERS if name != "reason")
    assert result["told"][3] == "gone: no such thing here"


def test_methods_that_leave_gates_out_are_named(result):
    told = "the gates of these weights are left out by dense, half, visionzip, evs"
    assert told in result["notes"]


def test_a_method_that_refuses_the_model_says_why(qa, clip_path):
    stock = parse_method("nsa")
    qa.model.config.gates, before = False, qa.model.config.gates
    try:
        request = ComparisonRequest(question=QUESTION, settings=qa.generation_settings())
        clip = read_video(clip_path, sampling=qa.sampling)
        (found,) = compare_methods(qa, clip, [Candidate("nsa", stock)], request, progress=str)
    finally:
        qa.model.config.gates = before
    assert "without gates" in found["methods"][0]["reason"]


def test_patterns_are_of_the_whole_prompt_and_of_the_layer_that_was_asked_for(result):
    size = min(CELLS, result["prompt_tokens"])
    dense, nsa, half, *_ = (line["pattern"] for line in result["methods"])
    for pattern in (dense, nsa, half):
        assert len(pattern["shares"]) == len(pattern["kept"]) == size
        assert all(
            row[column] is None
            for row, column in zip(pattern["shares"], range(1, size), strict=False)
        )
    assert {share for row in dense["shares"] for share in row} == {1.0, None}
    assert dense["kept"] == nsa["kept"] == [1.0] * size
    first, end = result["axis"]["vision"]
    assert sum(half["kept"]) == size - 24 and half["kept"][first : first + 24] == [0.0] * 24
    assert end - first == 48 and len(result["axis"]["seconds"]) == 4
    gone = half["shares"][end][first : first + 24]
    assert gone == [0.0] * 24 and half["shares"][end][first + 24 : end] == [1.0] * 24


def test_a_method_that_needs_features_alone_is_given_those_there_are(result, qa, clip_path):
    evs = result["methods"][5]
    assert evs["kept_tokens"] == 24 and evs["pattern"]["kept"].count(0.0) == 24
    first, end = result["axis"]["vision"]
    assert evs["pattern"]["kept"][first : first + 12] == [1.0] * 12  # the first frame
    kept = qa.model.encode_kept(
        read_video(clip_path, sampling=qa.sampling).frames.split(2),
        method=parse_method("evs:pruning_rate=0.5"),
    )
    places = [i for i, one in enumerate(evs["pattern"]["kept"][first:end]) if one]
    assert places == kept.places.tolist()
    assert evs["encode_ms"] > result["methods"][0]["encode_ms"]


def test_a_prompt_that_exceeds_the_context_is_refused(qa, clip_path):
    settings = qa.generation_settings(max_new_tokens=2048)
    request = ComparisonRequest(question=QUESTION, settings=settings)
    clip = read_video(clip_path, sampling=qa.sampling)
    with pytest.raises(BudgetError, match="exceed the context of 2048 tokens"):
        next(compare_methods(qa, clip, [], request, progress=str))
