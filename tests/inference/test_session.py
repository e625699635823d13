"""A conversation about a video that is read once."""

import gc
import weakref

import pytest
import torch
from PIL import Image

import videonsa
from videonsa.errors import BudgetError, UsageError
from videonsa.inference import decoding
from videonsa.inference.context import Context
from videonsa.models.decoding.reasons import why_not_static
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.models.methods import Dense
from videonsa.video.chat import ChatTurn, VisionSlot, turn_tokens


@pytest.fixture(scope="module")
def qa(tiny_folder):
    return videonsa.load(tiny_folder, device="cpu")


@pytest.fixture
def forwards(qa, monkeypatch):
    """How many tokens each call of the model reads."""
    seen = []
    forward = type(qa.model).forward

    def spy(self, input_ids=None, **options):
        seen.append(input_ids.shape[1])
        return forward(self, input_ids, **options)

    monkeypatch.setattr(type(qa.model), "forward", spy)
    return seen


DRAWN = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3}


def test_a_question_after_a_video_is_the_question_about_it(qa, clip_path, forwards):
    wanted = [qa.ask(clip_path, text, **DRAWN).text for text in ("What moves?", "Where?")]
    session = qa.open(clip_path)
    del forwards[:]
    answers = [session.ask(text, fresh=True, **DRAWN) for text in ("What moves?", "Where?")]
    assert [answer.text for answer in answers] == wanted
    assert max(forwards) < 20  # the video's 48 tokens were not read again
    usage = answers[1].usage
    assert usage.cached_tokens + 1 < usage.prompt_tokens
    assert usage.video_tokens == 48
    assert answers[1].video_seconds == answers[0].video_seconds


def test_features_are_freed_once_they_are_read(qa, clip_path, monkeypatch):
    """Of one question too: while its prompt is read, they are in the embedded prompt alone."""
    encode, features = type(qa).encode, []

    def spy(self, *given, **options):
        clip = encode(self, *given, **options)
        features.append(weakref.ref(clip.features.untyped_storage()))
        return clip

    monkeypatch.setattr(type(qa), "encode", spy)
    freed = []
    forward = type(qa.model).forward

    def look(self, **inputs):
        freed.append([one() for one in features])
        return forward(self, **inputs)

    monkeypatch.setattr(type(qa.model), "forward", look)
    session = qa.open(clip_path)
    session.join(clip_path, max_frames=2)
    assert freed == [[None], [None, None]]
    assert session.ask("What moves?", fresh=True, max_new_tokens=1).usage.joined


def test_a_follow_up_reads_what_was_said_before(qa, clip_path):
    session = qa.open(clip_path)
    first = session.ask("What moves?", max_new_tokens=3)
    held = session.num_tokens
    second = session.ask("And then?", max_new_tokens=3)
    assert second.usage.prompt_tokens == held + len(
        qa.tokenizer.encode("<|im_end|>\n<|im_start|>user\nAnd then?<|im_end|>\n")
    ) + len(qa.tokenizer.encode("<|im_start|>assistant\n"))
    assert second.usage.cached_tokens >= first.usage.prompt_tokens
    assert [turn.role for turn in session.turns] == ["user", "assistant"] * 2
    assert session.turns[1].text == first.text
    assert second.video_seconds == 0


def test_a_conversation_equals_the_whole_chat_as_one_prompt(qa, clip_path, tmp_path):
    """Text said elsewhere, an image in the middle, a second video: all as `ChatTurn` can say."""
    Image.effect_noise((112, 84), 80).convert("RGB").save(tmp_path / "photo.png")
    session = qa.open(clip_path, system="Be brief.", max_frames=6)
    session.say("user", "What moves?")
    session.say("assistant", "A square.")
    session.join(tmp_path / "photo.png")
    session.say("user", " and this?")
    session.say("assistant", "Noise.")
    session.join(clip_path, max_frames=2)
    answer = session.ask("The same?", max_new_tokens=1)
    counts = [clip.grid(qa.shape.vision) for clip in session.clips]
    sizes = [t * h * w // 4 for t, h, w in counts]
    turns = [
        ChatTurn("system", ("Be brief.",)),
        ChatTurn("user", (VisionSlot("video", sizes[0]), "What moves?")),
        ChatTurn("assistant", ("A square.",)),
        ChatTurn("user", (VisionSlot("image", sizes[1]), " and this?")),
        ChatTurn("assistant", ("Noise.",)),
        ChatTurn("user", (VisionSlot("video", sizes[2]), "The same?")),
    ]
    ids = [token for one in turn_tokens(turns, tokenizer=qa.tokenizer) for token in one.ids]
    head = qa.tokenizer.encode("<|im_start|>assistant\n")
    assert answer.usage.prompt_tokens == len(ids) + len(head)
    assert [clip.video_tokens for clip in answer.usage.joined] == sizes[1:]
    assert answer.usage.video_tokens == sum(sizes)
    sampling = [{"max_frames": 6}, {}, {"max_frames": 2}]
    seen = [
        qa.encode(path, qa.wanted_sampling(path, None, changes)).vision(qa.shape.vision)
        for path, changes in zip(
            (clip_path, tmp_path / "photo.png", clip_path), sampling, strict=True
        )
    ]
    whole = Context(qa.model)
    logits = whole.read(whole.passage([*ids, *head], seen))
    assert qa.decode([int(logits.argmax())]) == answer.text
    ours = session._transcript.context.cache
    assert ours.next_position == whole.cache.next_position
    for one, other in zip(ours.layers, whole.cache.layers, strict=True):
        torch.testing.assert_close(one.keys, other.keys, atol=2e-5, rtol=1e-4)


def test_a_stopped_stream_stays_as_far_as_it_came(qa, clip_path):
    session = qa.open(clip_path)
    stream = session.ask("What moves?", stream=True, max_new_tokens=8)
    next(stream)
    session.ask("And then?", max_new_tokens=2)
    assert len(session.turns) == 4
    with pytest.raises(UsageError, match="not complete"):
        _ = stream.answer
    other = qa.open(clip_path)
    other.ask("What moves?", max_new_tokens=1)
    assert session.turns[1].text.startswith(other.turns[1].text)


def test_a_stream_that_was_never_begun_leaves_no_trace(qa, clip_path):
    session = qa.open(clip_path)
    before = session.num_tokens
    stream = session.ask("What moves?", stream=True)
    assert session.num_tokens == before
    session.forget_conversation()
    with pytest.raises(UsageError, match="never begun"):
        next(stream)
    assert session.turns == ()


def test_a_stream_that_another_question_stopped_says_so(qa, clip_path):
    session = qa.open(clip_path)
    stream = session.ask("What moves?", stream=True, **DRAWN)
    first = next(stream)
    session.ask("Where?", **DRAWN)
    with pytest.raises(UsageError, match=r"was stopped after token [1-5]: another question"):
        list(stream)
    with pytest.raises(UsageError, match="not complete"):
        _ = stream.answer
    assert session.turns[1].text.startswith(first)


def test_a_question_that_fails_leaves_the_session_as_it_was(qa, clip_path, monkeypatch):
    session = qa.open(clip_path)
    wanted = session.ask("What moves?", fresh=True, **DRAWN).text
    session.forget_conversation()
    before = session.num_tokens
    with monkeypatch.context() as patch:
        patch.setattr(type(qa.model), "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            session.ask("What?")
    assert (session.num_tokens, session.turns) == (before, ())
    assert session.ask("What moves?", **DRAWN).text == wanted


def test_a_conversation_that_leaves_no_room_says_what_would(qa, clip_path):
    session = qa.open(clip_path)
    session.ask("What moves?", max_new_tokens=3)
    with pytest.raises(BudgetError, match="exceed the context of 2048 tokens: ask with fresh=True"):
        session.ask("And then?", max_new_tokens=1960)
    with pytest.raises(BudgetError, match="open the video with fewer frames"):
        session.ask("x " * 3000, fresh=True)
    assert len(session.turns) == 2


class Both(Dense):
    """A token's output depends on what follows, says the method."""

    name = "both"
    is_causal = False


def test_where_the_future_counts_every_question_reads_all(tiny_folder, clip_path, forwards):
    qa = videonsa.load(tiny_folder, device="cpu", method=Both())
    session = qa.open(clip_path)
    assert forwards == []
    first = session.ask("What moves?", **DRAWN)
    assert forwards[0] == first.usage.prompt_tokens
    del forwards[:]
    again = session.ask("What moves?", fresh=True, **DRAWN)
    assert forwards[0] == first.usage.prompt_tokens
    assert again.text == first.text
    del forwards[:]
    follow = session.ask("And then?", **DRAWN)
    assert forwards[0] == follow.usage.prompt_tokens > first.usage.prompt_tokens
    assert follow.usage.cached_tokens == 0


@pytest.mark.parametrize("begin", [5, 6, 7, 8])
@pytest.mark.parametrize("static", [False, True])
def test_a_conversation_goes_on_from_before_a_stop_string(
    tiny_folder, clip_path, monkeypatch, begin, static
):
    """Wherever in a token it begins, whichever steps decode, and whether or not all is reread."""
    if static:
        monkeypatch.setattr(decoding, "why_not_captured", lambda *given: why_not_static(*given[:3]))
    read = []
    forward = VideoNSAForConditionalGeneration.forward

    def spy(self, input_ids=None, **options):
        read.append(input_ids[0].tolist())
        return forward(self, input_ids, **options)

    monkeypatch.setattr(VideoNSAForConditionalGeneration, "forward", spy)
    drawn = DRAWN | {"max_new_tokens": 24}
    texts, prompts, keys = [], [], []
    for method in (Dense(), Both()):
        qa = videonsa.load(tiny_folder, device="cpu", method=method)
        session = qa.open(clip_path)
        whole = session.ask("What moves?", **drawn).text
        stop = whole[begin : begin + 3]
        answer = session.ask("What moves?", fresh=True, **drawn, stop=[stop])
        assert (answer.text, answer.stop) == (whole[: whole.index(stop)], stop)
        assert session.turns[1].text == answer.text
        del read[:]
        seen = session._transcript.mark().seen
        more = session.ask("And then?", **DRAWN)
        texts.append((answer.text, more.text))
        prompts.append(more.usage.prompt_tokens)
        keys.append(session._transcript.context.cache.layers[-1].keys)
    assert texts[0] == texts[1]
    assert seen <= set(read[0])  # what was forgotten does not count as seen
    assert prompts == [len(read[0])] * 2
    torch.testing.assert_close(*keys, atol=1e-4, rtol=1e-4)
    said = "".join(("assistant\n", answer.text, "<|im_end|>\n<|im_start|>user\nAnd then?"))
    assert said in qa.tokenizer.decode(read[0])


def test_many_questions_grow_nothing(qa, clip_path):
    session = qa.open(clip_path)

    def held():
        gc.collect()
        tensors = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
        strided = [x for x in tensors if x.layout == torch.strided]  # those of others may be sparse
        return len(tensors), sum(x.untyped_storage().nbytes() for x in strided)

    for _ in range(3):
        session.ask("What moves?", fresh=True, max_new_tokens=2)
    before = held()
    for _ in range(20):
        session.ask("What moves?", fresh=True, max_new_tokens=2)
    assert held() == before


@pytest.mark.parametrize("question", ["", "  ", None, 3])
def test_what_is_no_question_is_refused(qa, clip_path, question):
    session = qa.open(clip_path)
    with pytest.raises(UsageError, match="question came"):
        session.ask(question)


QUESTIONS = ["What moves?", "Where is the red square now?", "How many?"]


@pytest.mark.parametrize("options", [{"max_new_tokens": 5}, {"max_new_tokens": 5, "stop": "e"}])
def test_questions_side_by_side_are_answered_as_each_alone(qa, clip_path, options):
    session = qa.open(clip_path)
    wanted = [session.ask(question, fresh=True, **options) for question in QUESTIONS]
    session.forget_conversation()
    before = session.num_tokens
    answers = session.ask_each(QUESTIONS, **options)
    for answer, alone in zip(answers, wanted, strict=True):
        assert (answer.text, answer.stop, answer.new_tokens) == (
            alone.text,
            alone.stop,
            alone.new_tokens,
        )
        assert answer.usage == alone.usage
        assert answer.decoding.startswith("static steps: it runs on a CPU")
    assert (session.num_tokens, session.turns) == (before, ())
    assert session.ask(QUESTIONS[0], **options).text == wanted[0].text


def test_answers_side_by_side_come_as_they_are_written_and_one_that_is_left_stops_no_other(
    qa, clip_path
):
    session = qa.open(clip_path)
    wanted = session.ask_each(QUESTIONS, max_new_tokens=5)
    first, second, third = session.stream_each(QUESTIONS, max_new_tokens=5)
    assert wanted[2].text.startswith(next(third))
    third.close()
    pieces = list(first)
    assert len(pieces) > 1 and "".join(pieces) == wanted[0].text
    assert second.finish().text == wanted[1].text
    assert first.answer.new_tokens == wanted[0].new_tokens and first.answer.decoding
    assert session.turns == ()
    (left,) = session.stream_each(QUESTIONS[:1], max_new_tokens=5)
    next(left)
    session.ask(QUESTIONS[1], max_new_tokens=2)  # stops it
    with pytest.raises(UsageError, match="was stopped"):
        left.finish()


def test_a_step_of_a_stream_is_one_token_with_text_or_without(qa, clip_path):
    session = qa.open(clip_path)
    wanted = session.ask(QUESTIONS[0], fresh=True, max_new_tokens=6)
    stream = session.ask(QUESTIONS[0], fresh=True, stream=True, max_new_tokens=6)
    steps = list(iter(stream.step, None))
    rest = len(steps) - wanted.new_tokens  # what is held back to the end has a step of its own
    assert rest in (0, 1) and "".join(steps) == wanted.text == stream.answer.text


def test_questions_side_by_side_follow_the_conversation(qa, clip_path):
    session = qa.open(clip_path)
    session.ask("What moves?", max_new_tokens=3)
    answers = session.ask_each(QUESTIONS, max_new_tokens=4)
    assert len(session.turns) == 2
    assert session.ask(QUESTIONS[2], max_new_tokens=4).text == answers[2].text
    fresh = session.ask_each(QUESTIONS, fresh=True, max_new_tokens=4)
    assert session.turns == ()
    assert fresh[2].text == session.ask(QUESTIONS[2], max_new_tokens=4).text


def test_where_the_future_counts_questions_are_asked_one_after_another(tiny_folder, clip_path):
    qa = videonsa.load(tiny_folder, device="cpu", method=Both())
    session = qa.open(clip_path)
    answers = session.ask_each(QUESTIONS[:2], max_new_tokens=2)
    assert [a.text for a in answers] == [
        session.ask(question, fresh=True, max_new_tokens=2).text for question in QUESTIONS[:2]
    ]


@pytest.mark.parametrize("questions", ["What?", [], ["What?", ""], [3]])
def test_what_are_no_questions_is_refused(qa, clip_path, questions):
    with pytest.raises(UsageError, match=r"questions? came"):
        qa.open(clip_path).ask_each(questions)
