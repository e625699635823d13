"""A model watches the suite: prefilled once, equal to asking in one prompt."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from suite_runs import FEW, ask, small_run

from videonsa.errors import BudgetError, ModelError, UsageError
from videonsa.evals.journal import RUN, SAMPLES
from videonsa.evals.tasks.suite import video_answerer
from videonsa.evals.tasks.suite.video_answerer import ModelAnswerer
from videonsa.inference.context import Context, EncodedVision
from videonsa.inference.engine import VideoQA, load
from videonsa.inference.sampling import GenerationSettings
from videonsa.models.methods import Dense, nsa_method
from videonsa.ops.spec import NSASpec
from videonsa.rendered.suite import iter_frames, make_script, questions_of
from videonsa.video.chat import VisionSlot, chat_tokens
from videonsa.video.processing import build_prompt

EVERY = ("whole", "no-compressed", "no-selected", "no-window", "none", "grey", "blind")


@pytest.fixture(scope="module")
def qa(tiny_folder) -> VideoQA:
    return load(tiny_folder, device="cpu")


def script_of(run):
    video = run.videos()[0]
    return make_script(video.seed, spec=video.spec)


def prompt_of(qa, script, text, time_scale=1.0):
    frames = torch.cat(list(iter_frames(script)))
    clip = SimpleNamespace(frames=frames, times=[i / 2 * time_scale for i in range(len(frames))])
    return build_prompt([clip], text, tokenizer=qa.tokenizer)


def texts(replies) -> list[str]:
    return [reply.text for reply in replies]


@pytest.mark.parametrize("time_scale", [1.0, 0.25])
def test_replies_are_those_to_one_prompt_with_video_and_question(qa, time_scale) -> None:
    run = small_run(model="tiny", time_scale=time_scale)
    script = script_of(run)
    questions = questions_of(script)
    wanted = []
    for question in questions:
        longest = max(len(qa.tokenizer.encode(option)) for option in question.options)
        settings = GenerationSettings(max_new_tokens=longest + 4)
        prompt = prompt_of(qa, script, question.text, time_scale)
        (grid,) = prompt.video_grid_thw.tolist()
        features = qa.model.encode_vision(prompt.pixel_values_videos, [grid])
        video = EncodedVision("video", features, tuple(grid), prompt.video_times[0])
        context = Context(qa.model)
        passage = context.passage(prompt.input_ids, [video])
        answer = context.answer(passage, settings=settings, stop_ids=qa.stop_ids)
        tokens = [token for (token,) in answer]
        wanted.append(qa.tokenizer.decode(tokens, skip_special_tokens=True))
    assert texts(ModelAnswerer(qa, run).answers(script, questions, "whole")) == wanted
    assert len(wanted) == len(FEW)


def test_the_likeliest_option_is_that_of_whole_prompts_with_each_answer(qa) -> None:
    run = small_run(model="tiny", style="likeliest")
    script = script_of(run)
    for question in questions_of(script):
        logs = []
        for option in question.options:
            slot = VisionSlot("video", 256)
            chat = chat_tokens(question.text, vision=[slot], tokenizer=qa.tokenizer, answer=option)
            prompt = prompt_of(qa, script, question.text)
            with torch.inference_mode():
                logits = qa.model(
                    input_ids=torch.tensor([chat.ids]),
                    pixel_values_videos=prompt.pixel_values_videos,
                    video_grid_thw=prompt.video_grid_thw,
                    video_times=prompt.video_times,
                ).logits[0]
            labels = torch.tensor(chat.labels)[1:]
            learned = (labels != -100).nonzero()[:, 0]
            scores = logits[:-1].log_softmax(-1)[learned, labels[learned]]
            logs.append(float(scores.sum()))
        wanted = question.options[logs.index(max(logs))]
        assert texts(ModelAnswerer(qa, run).answers(script, [question], "whole")) == [wanted]


def test_conditions_differ_in_what_is_watched_and_computed(qa, tmp_path) -> None:
    run = small_run(model="tiny", samples=1, conditions=EVERY)
    answerer = ModelAnswerer(qa, run)
    lines = ask(run, tmp_path, answerer)
    by = {line.condition: line for line in lines if line.kind == "order"}
    assert set(by) == set(EVERY)
    # n = 2 blocks of 8 tokens, a window of 8, and a prompt of the video and some text.
    keys = {name: line.attended_keys for name, line in by.items()}
    assert keys == {
        "whole": 24, "no-compressed": 24, "no-selected": 8, "no-window": 16, "none": 0,
        "grey": 24, "blind": None,
    }  # fmt: skip
    whole = by["whole"]
    assert whole.video_tokens == 256
    assert whole.attention_fraction == pytest.approx(48 / (whole.prompt_tokens - 1))
    assert by["none"].attention_fraction == 0
    assert by["no-window"].spec["branches"] == ["compressed", "selected"]
    assert by["blind"].prompt_tokens < 100 < whole.prompt_tokens
    assert by["blind"].attention_fraction is by["blind"].spec is None
    for line in lines:
        assert line.answer_seconds > 0
        assert (line.prefill_seconds is None) == (line.condition == "blind")
        assert (line.peak_bytes or 1) > 0


def test_ablations_and_grey_change_what_the_model_reads(qa) -> None:
    run = small_run(model="tiny")
    answerer, script = ModelAnswerer(qa, run), script_of(run)
    seen: dict[str, torch.Tensor] = {}
    forward = qa.model.forward

    def watching(*args, **kwargs):
        output = forward(*args, **kwargs)
        seen.setdefault(name, output.logits[0, -1])
        return output

    qa.model.forward = watching
    try:
        for name in EVERY:
            list(answerer.answers(script, questions_of(script)[:1], name))
    finally:
        del qa.model.forward
    values = [seen[name] for name in EVERY]
    pairs = [(a, b) for i, a in enumerate(values) for b in values[i + 1 :]]
    assert not any(torch.equal(a, b) for a, b in pairs)


def test_a_video_is_encoded_once_for_all_its_conditions(qa, monkeypatch) -> None:
    drawn = []

    def counted(script, **options):
        drawn.append(options)
        return iter_frames(script, **options)

    monkeypatch.setattr(video_answerer, "iter_frames", counted)
    run = small_run(model="tiny")
    answerer, script = ModelAnswerer(qa, run), script_of(run)
    for name in ("whole", "none", "no-window", "grey", "blind"):
        list(answerer.answers(script, questions_of(script), name))
    assert len(drawn) == 2  # as it is, and grey


def test_frames_come_in_chunks_one_ahead_and_errors_of_their_thread_arrive() -> None:
    assert list(video_answerer._ahead(iter(()))) == []
    chunks = [torch.full((1,), value) for value in range(5)]
    assert [int(x) for x in video_answerer._ahead(iter(chunks))] == list(range(5))

    def broken():
        yield chunks[0]
        raise UsageError("no more")

    with pytest.raises(UsageError, match="no more"):
        list(video_answerer._ahead(broken()))


def test_a_chunk_is_drawn_only_when_the_one_before_is_taken() -> None:
    drawn = []

    def chunks():
        for value in range(9):
            drawn.append(value)
            yield torch.full((1,), value)

    for taken, _ in enumerate(video_answerer._ahead(chunks()), 1):
        assert len(drawn) <= taken + 1


def test_running_out_of_memory_is_one_line_that_says_what_to_do(qa, monkeypatch) -> None:
    def exhausted(*_, **__):
        raise torch.OutOfMemoryError("too much")

    run = small_run(model="tiny")
    answerer, script = ModelAnswerer(qa, run), script_of(run)
    monkeypatch.setattr(qa.model, "encode_frames", exhausted)
    with pytest.raises(BudgetError, match=r"on cpu with a prompt of 256 tokens: take shorter"):
        list(answerer.answers(script, questions_of(script), "whole"))


def test_the_spec_can_be_changed_and_nonsense_is_refused(qa, tmp_path) -> None:
    run = small_run(model="tiny", samples=1, conditions=("whole",), nsa=(("window_size", 16),))
    answerer = ModelAnswerer(qa, run)
    line = ask(run, tmp_path, answerer)[0]
    assert (line.attended_keys, line.spec["window_size"]) == (32, 16)
    assert json.loads((tmp_path / SAMPLES).read_text().splitlines()[0])["attended_keys"] == 32
    with pytest.raises(UsageError, match="the attention asked for cannot be: window_size=0"):
        ModelAnswerer(qa, replace(run, nsa=(("window_size", 0),)))


def test_dense_attention_is_all_of_it(tiny_folder, tmp_path) -> None:
    qa = load(tiny_folder, method="dense", device="cpu")
    run = small_run(model="tiny", samples=1, attention="dense")
    lines = ask(run, tmp_path, ModelAnswerer(qa, run))
    assert {line.attention_fraction for line in lines if line.condition == "whole"} == {1.0}
    assert {line.spec for line in lines} == {None}
    with pytest.raises(UsageError, match="conditions none with dense attention: it has no branch"):
        ModelAnswerer(qa, replace(run, conditions=("whole", "none")))


def test_the_released_attention_reads_each_question_with_the_video(qa, monkeypatch) -> None:
    run = small_run(model="tiny")
    answerer, script = ModelAnswerer(qa, run), script_of(run)
    answerer.method = nsa_method(NSASpec.released())
    given = []

    def recorded(context, passage, **_):
        given.append((context.method, context.num_tokens, passage.num_tokens))
        return iter([[5]])

    monkeypatch.setattr(Context, "answer", recorded)
    questions = questions_of(script)
    replies = list(answerer.answers(script, questions, "whole"))
    assert len(replies) == len(given) == len(questions)
    released = nsa_method(NSASpec.released())
    assert given == [(released, 0, reply.cost.prompt_tokens) for reply in replies]


@pytest.mark.parametrize("style", ["free", "likeliest"])
def test_logits_that_are_not_finite_are_an_error_and_no_answer(tiny_folder, style) -> None:
    spoiled = load(tiny_folder, device="cpu")
    spoiled.model.model.language_model.norm.weight.data[0] = float("nan")
    run = small_run(style=style)
    script = script_of(run)
    answers = ModelAnswerer(spoiled, run).answers(script, questions_of(script), "whole")
    with pytest.raises(ModelError, match="not finite"):
        list(answers)


@pytest.mark.parametrize("style", ["free", "likeliest"])
def test_questions_and_answers_attend_by_the_method_of_the_run(qa, style, monkeypatch) -> None:
    class Never(Dense):
        def attend(self, *_):
            raise AssertionError("this is the model's own method")

    monkeypatch.setattr(qa.model, "method", Never())
    run = small_run(model="tiny", style=style)
    answerer, script = ModelAnswerer(qa, run), script_of(run)
    answerer.method = Dense()
    for condition in ("whole", "blind"):
        assert texts(answerer.answers(script, questions_of(script), condition))


def test_of_another_method_the_pairs_are_counted_and_the_run_states_its_options(
    tiny_folder, tmp_path
) -> None:
    qa = load(tiny_folder, method="fastv:layer=1,ratio=0.25", device="cpu")
    run = small_run(model="tiny", samples=1, conditions=("whole",), attention="fastv")
    lines = ask(run, tmp_path, ModelAnswerer(qa, run))
    assert all(0.5 < line.attention_fraction < 0.6 for line in lines)
    stated = {"layer": 1, "ratio": 0.25}
    assert all(line.spec == stated for line in lines)
    assert json.loads((tmp_path / RUN).read_text())["config"]["parameters"] == stated
    other = load(tiny_folder, method="fastv:layer=1,ratio=0.5", device="cpu")
    with pytest.raises(UsageError, match=r"holds a run with parameters\.ratio=0\.25, not 0\.5"):
        ask(run, tmp_path, ModelAnswerer(other, run))


def test_a_run_of_nsa_states_all_parameters_and_resumes_one_that_did_not(qa, tmp_path) -> None:
    run = small_run(model="tiny", samples=1, conditions=("whole",), kinds=("needle",))
    ask(run, tmp_path, ModelAnswerer(qa, run))
    path = tmp_path / RUN
    facts = json.loads(path.read_text())
    assert facts["config"].pop("parameters")["gate_temperature"] == 0.3
    path.write_text(json.dumps(facts))
    ask(replace(run, samples=2), tmp_path, ModelAnswerer(qa, run))
