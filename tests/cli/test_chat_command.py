"""`videonsa chat`: a question a line, answers on stdout, everything else on stderr."""

import io
import json
import os
import signal

import pytest
from PIL import Image

import videonsa
from videonsa.cli import lines
from videonsa.cli.conversation import Conversation
from videonsa.cli.main import main

QUESTIONS = ("What moves?", "Which way?")


@pytest.fixture
def chat(tiny_folder, clip_path, capsys, monkeypatch):
    """Runs the command with lines on stdin; gives its status, stdout and stderr."""

    def run(typed, *options, video=clip_path):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in typed)))
        arguments = ["chat", str(video), "--model", str(tiny_folder), "--device", "cpu"]
        status = main([*arguments, "--max-new-tokens", "4", *options])
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def model(tiny_folder):
    return videonsa.load(tiny_folder, device="cpu")


def texts(out):
    return [json.loads(line)["text"] for line in out.splitlines()]


def test_each_line_is_a_question_in_one_conversation(chat, model, clip_path):
    session = model.open(clip_path)
    expected = [session.ask(question, max_new_tokens=4).text for question in QUESTIONS]
    status, out, err = chat(QUESTIONS)
    assert status == 0
    assert out == "".join(f"{text}\n" for text in expected)
    assert "frames     8 of 112x84, 0.00 s to 3.50 s, 48 tokens" in err
    assert "of 2048" in err
    assert err.count("first token after") == 2
    assert lines.PROMPT not in err.splitlines()


def test_json_is_one_object_a_line(chat, clip_path):
    status, out, _ = chat([QUESTIONS[0], "/frames", "/nothing"], "--json")
    answer, frames, error = map(json.loads, out.splitlines())
    assert (answer["question"], answer["new_tokens"]) == (QUESTIONS[0], 4)
    assert answer["usage"]["video_tokens"] == 48
    (clip,) = frames["clips"]
    assert (len(clip["times"]), clip["height"], clip["width"], clip["video_tokens"]) == (
        *(8, 84, 112, 48),
    )
    assert frames["num_tokens"] > answer["usage"]["prompt_tokens"]
    assert (error["line"], error["error"][:9]) == ("/nothing", "/nothing:")
    assert status == 2


def test_fresh_asks_about_the_video_alone(chat):
    alone = texts(chat(QUESTIONS[1:], "--json")[1])
    _, out, _ = chat([QUESTIONS[0], f"/fresh {QUESTIONS[1]}", QUESTIONS[1]], "--json")
    assert texts(out)[1] == alone[0]
    prompts = [json.loads(line)["usage"]["prompt_tokens"] for line in out.splitlines()]
    assert prompts[1] < prompts[2]


def test_a_joined_image_is_seen_by_the_questions_that_follow(chat, tmp_path):
    path = tmp_path / "red square.png"
    Image.new("RGB", (56, 56), (255, 0, 0)).save(path)
    _, out, _ = chat([f"/join '{path}'", QUESTIONS[0], "/frames"], "--json")
    joined, answer, frames = map(json.loads, out.splitlines())
    assert joined == {"joined": str(path)}
    assert len(answer["usage"]["joined"]) == 1
    assert [len(clip["times"]) for clip in frames["clips"]] == [8, 1]
    _, _, err = chat([f"/join {path}", "/frames"])  # a name with a space needs no quotes
    assert "image      56x56, 4 tokens" in err
    assert "tokens     52 video + " in err


def test_what_is_joined_is_sampled_like_the_video_but_whole(chat, clip_path):
    options = ("--num-frames", "4", "--start", "2", "--max-pixels", "3136")
    _, out, _ = chat([f"/join {clip_path}", "/frames"], "--json", *options)
    first, joined = json.loads(out.splitlines()[-1])["clips"]
    assert (len(first["times"]), len(joined["times"])) == (4, 4)
    assert (first["times"][0], joined["times"][0]) == (2.0, 0.0)
    assert joined["height"] == first["height"] < 84


def test_a_saved_session_goes_on_in_the_next_chat(chat, tiny_folder, tmp_path):
    folder = tmp_path / "kept session"
    _, whole, _ = chat(QUESTIONS)
    status, first, err = chat([QUESTIONS[0], f"/save {folder}"])
    assert status == 0
    assert f"it goes on with: videonsa chat '{folder}' --model {tiny_folder}\n" in err
    status, second, err = chat(QUESTIONS[1:], video=folder)
    assert (status, first + second) == (0, whole)
    assert "frames     8 of 112x84, 0.00 s to 3.50 s, 48 tokens" in err
    assert f"asked      1 so far, the last: {QUESTIONS[0]}" in err
    status, _, err = chat(QUESTIONS[1:], "--fps", "1", "--fit", video=folder)
    assert status == 2
    assert "a saved session with --fps, --fit: its video is read already" in err
    assert chat([f"/save {folder.parent}"])[0] == 2  # there is something else


def test_what_stands_behind_a_command_that_takes_nothing_is_refused(chat):
    status, out, err = chat(["/frames 3", "/help me", "/quit now", "/quit", "What moves?"])
    errors = [line for line in err.splitlines() if line.startswith("error ")]
    assert (status, out) == (2, "")
    assert errors == [
        f"error      {name} came with '{rest}': want it alone on its line"
        for name, rest in (("/frames", "3"), ("/help", "me"), ("/quit", "now"))
    ]


def test_a_stdin_that_is_closed_has_no_lines(chat, tiny_folder, clip_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    assert main(["chat", str(clip_path), "--model", str(tiny_folder), "--device", "cpu"]) == 0


def test_options_of_answers_are_checked_before_the_video_is_read(chat):
    status, out, err = chat(QUESTIONS, "--stop", "", video="nothing.mp4")
    assert (status, out) == (2, "")
    assert "stop=('',): want" in err


def test_a_line_that_cannot_be_done_is_told_and_the_next_is_done(chat):
    typed = [
        "/fresh",
        "/join",
        "/join nothing.mp4",
        "/save",
        "/save a\0b",
        "\udcff",
        "",
        QUESTIONS[0],
    ]
    status, out, err = chat(typed)
    errors = [line for line in err.splitlines() if line.startswith("error ")]
    assert len(errors) == 6
    assert "nothing.mp4: no such file" in errors[2]
    assert out == chat(QUESTIONS[:1])[1]
    assert status == 2


def test_nothing_is_read_after_quit(chat):
    status, out, _ = chat(["/help", "/quit", QUESTIONS[0]])
    assert (status, out) == (0, "")


def test_sampling_and_generation_options_reach_the_model(chat):
    _, out, _ = chat(QUESTIONS[:1], "--json", "--num-frames", "2", "--max-new-tokens", "2")
    answer = json.loads(out)
    assert (len(answer["usage"]["times"]), answer["new_tokens"]) == (2, 2)


class Typist:
    """Stands for `input`: gives lines, or raises what is among them."""

    def __init__(self, *typed):
        self._typed = iter(typed)

    def __call__(self, prompt):
        assert prompt == lines.PROMPT
        line = next(self._typed, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line


@pytest.fixture
def typed(monkeypatch):
    """The lines that are read of what a person types."""

    def run(*what):
        monkeypatch.setattr("sys.stdin", io.StringIO())
        for stream in ("stdin", "stdout"):
            monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True, raising=False)
        monkeypatch.setattr("builtins.input", Typist(*what))
        return list(lines.Lines())

    return run


def test_ctrl_c_twice_on_an_empty_line_leaves_and_once_does_not(typed, capsys, monkeypatch):
    interrupt = KeyboardInterrupt()
    assert typed("one", interrupt, "two", interrupt, interrupt, "three") == ["one", "two"]
    assert capsys.readouterr().err.count("Ctrl-C again leaves") == 2
    monkeypatch.setattr(lines, "_being_typed", lambda: "half a line")
    assert typed(interrupt, interrupt, interrupt, "one") == ["one"]


def test_ctrl_d_leaves(typed):
    assert typed("one", EOFError(), "two") == ["one"]


def test_without_a_terminal_for_stdout_the_prompt_is_on_stderr(typed, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdin", Terminal("one\n\ntwo"))
    assert list(lines.Lines()) == ["one", "", "two"]
    out, err = capsys.readouterr()
    assert (out, err) == ("\n", lines.PROMPT * 4)


class Interrupted:
    """A session of the model in which Ctrl-C is pressed while an answer is written."""

    def __init__(self, session, *, after, times=1):
        self._session, self._after, self._times = session, after, times

    def __getattr__(self, name):
        return getattr(self._session, name)

    def ask(self, question, **options):
        stream = self._session.ask(question, **options)
        push = stream._iterator

        def pieces():
            for number, piece in enumerate(push, start=1):
                if number == self._after:
                    for _ in range(self._times):
                        os.kill(os.getpid(), signal.SIGINT)
                yield piece

        stream._iterator = pieces()
        return stream


def talk(session, model, *questions, is_typed=True, max_new_tokens=6):
    options = {"max_new_tokens": max_new_tokens}
    conversation = Conversation(session, model, as_json=False, is_typed=is_typed, options=options)
    return conversation.run(questions)


def test_a_full_context_is_told_in_the_words_of_the_prompt(model, clip_path, capsys):
    session = model.open(clip_path)
    most = 2048 - session.count(QUESTIONS[0]) - 20
    assert talk(session, model, QUESTIONS[0], max_new_tokens=30)
    assert not talk(session, model, QUESTIONS[0], max_new_tokens=most)
    assert "ask with /fresh, which forgets the conversation" in capsys.readouterr().err


def test_ctrl_c_stops_the_answer_and_what_was_said_stays(model, clip_path, capsys):
    session = model.open(clip_path)
    assert talk(Interrupted(session, after=2), model, QUESTIONS[0])
    out, err = capsys.readouterr()
    assert "stopped: what was said so far stays in the conversation" in err
    question, answer = session.turns
    assert (question.text, answer.text) == (QUESTIONS[0], out.removesuffix("\n"))
    whole = model.open(clip_path).ask(QUESTIONS[0], max_new_tokens=6).text
    assert 0 < len(answer.text) < len(whole)
    assert whole.startswith(answer.text)
    session.ask(QUESTIONS[1], max_new_tokens=2)
    assert len(session.turns) == 4


def test_a_second_ctrl_c_stops_at_once_and_the_session_goes_on(model, clip_path, capsys):
    session = model.open(clip_path)
    assert talk(Interrupted(session, after=2, times=2), model, QUESTIONS[0])
    assert "note       stopped" in capsys.readouterr().err
    fresh = session.ask(QUESTIONS[1], fresh=True, max_new_tokens=4)
    assert fresh.text == model.open(clip_path).ask(QUESTIONS[1], max_new_tokens=4).text


def test_ctrl_c_ends_a_program_that_nobody_types_to(model, clip_path):
    session = Interrupted(model.open(clip_path), after=2)
    with pytest.raises(KeyboardInterrupt):
        talk(session, model, QUESTIONS[0], is_typed=False)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_join_that_is_interrupted_leaves_the_session_as_it_was(model, clip_path, monkeypatch):
    session = model.open(clip_path)
    before = session.num_tokens
    read = session._transcript.context.read

    def interrupted(*args, **options):
        read(*args, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session._transcript.context, "read", interrupted)
        assert talk(session, model, f"/join {clip_path}")
    assert (session.num_tokens, len(session.clips)) == (before, 1)
    answer = session.ask(QUESTIONS[0], max_new_tokens=4)
    assert answer.text == model.open(clip_path).ask(QUESTIONS[0], max_new_tokens=4).text
