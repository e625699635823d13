"""Arguments of wrong kinds are refused in one line, and the session answers on as before."""

import pytest

import videonsa
from videonsa.errors import UsageError
from videonsa.models.recorder.protocol import Recorder

ASKED = {"max_new_tokens": 3}


@pytest.fixture(scope="module")
def qa(tiny_folder):
    return videonsa.load(tiny_folder, device="cpu")


@pytest.fixture(scope="module")
def session(qa, clip_path):
    session = qa.open(clip_path)
    session.wanted = session.ask("What moves?", **ASKED).text
    return session


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (lambda s: s.ask("What?", recorder=5), "recorder came as int: want Recorder"),
        (lambda s: s.ask("What?", recorder=Recorder), "recorder came as .*: want Recorder"),
        (lambda s: s.ask("What?", temprature=1), "temprature: no option of this call: an answer"),
        (lambda s: s.ask("What?", stop=(x for x in "ab")), "stop=<generator .*: want a tuple"),
        (lambda s: s.ask_each(["What?"], stream=True), "stream: no option of this call"),
        (lambda s: s.ask_each("What?"), "questions came as 'What.': want a list of at least one"),
        (lambda s: s.ask_each(x for x in ["What?"]), "questions came as <generator"),
        (lambda s: s.ask_each({"What?"}), "questions came as {'What.'}: want a list"),
        (lambda s: s.ask_each(5), "questions came as 5: want a list"),
        (lambda s: s.ask_each(["What?", 3]), "question came as int"),
        (lambda s: s.join("clip.mp4", fp=1), "fp: no option of this call: a video has fps, "),
        (lambda s: s.join("clip.mp4", fp=None), "fp: no option of this call"),
        (lambda s: s.say("user", "\ud800"), "the character .*; wanted valid Unicode"),
        (lambda s: s.count(None), "question came as NoneType"),
        (lambda s: s.save(None), "None names no folder"),
        (lambda s: s.save("a\0b"), r"'a\\x00b' names no folder"),
        (lambda s: s.save("n" * 300), "names no folder .*: name another"),
        (lambda s: type(s).load("n" * 300, s._qa), "names no folder"),
        (lambda s: type(s).load("kept", "embedded"), "the model came as str: want what videonsa"),
        (lambda s: s._qa.open_live(sampling=3), "sampling came as int: want SamplingSpec"),
        (lambda s: s._qa.open_live(system="\ud800"), "wanted valid Unicode"),
    ],
)
def test_it_is_one_line_and_nothing_has_changed(session, call, wanted):
    before = session.num_tokens, session.turns
    with pytest.raises(UsageError, match=wanted) as caught:
        call(session)
    assert "\n" not in str(caught.value)
    assert (session.num_tokens, session.turns) == before


def test_after_all_refusals_the_answer_is_the_same(session):
    assert session.ask("What moves?", fresh=True, **ASKED).text == session.wanted


class Asking(Recorder):
    """Asks another question while an answer is being written."""

    def __init__(self, session):
        self.session = session

    def record(self, layer, q, k, attended):
        self.session.ask("And what else?", **ASKED)


def test_a_question_within_an_answer_is_refused(session):
    with pytest.raises(UsageError, match="is writing an answer at this moment"):
        session.ask("What moves?", fresh=True, recorder=Asking(session), **ASKED)
    assert session.ask("What moves?", fresh=True, **ASKED).text == session.wanted
