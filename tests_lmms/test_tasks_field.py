"""The field's other benchmarks in lmms-eval 0.7.3: prompts word by word, scores by hand."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests_lmms.asked import prompt, scored
from videonsa.errors import DataError, UsageError
from videonsa.evals.field.fixtures.hub_cache import FIXTURES
from videonsa.evals.field.fixtures.other_benchmarks import MVBENCH_FOLDERS
from videonsa.evals.field.sample_line import json_values
from videonsa.evals.field.tasks import (
    FOLDERS,
    JUDGED,
    FieldTask,
    LmmsScoring,
    check_task,
    load_tasks,
    missing_packages,
    task_files,
)


@pytest.fixture(scope="module")
def listed_tasks() -> list[FieldTask]:
    files = task_files(list(FOLDERS))
    single = [name for name in FOLDERS if not name.startswith("mvbench_")]
    return [task for name in single for task in load_tasks(name, files=files)]


def test_every_listed_task_can_be_imported_here_and_reads_its_fixture(listed_tasks):
    assert {name: missing_packages(name) for name in FOLDERS if missing_packages(name)} == {}
    read = {task.name: len(task.docs) for task in listed_tasks}
    assert set(read) == set(FOLDERS) - {"mvbench"}
    assert {name for fixture in FIXTURES for name in fixture.tasks} == set(FOLDERS)
    assert all(read.values())


def test_a_task_that_is_not_listed_or_is_a_group_is_refused():
    with pytest.raises(UsageError, match="task 'mmmu' is not listed: want one of longvideobench"):
        check_task("mmmu")
    with pytest.raises(UsageError, match="mvbench is a group: score each of its tasks"):
        LmmsScoring("mvbench").score({}, 0, "A")


def test_a_missing_video_is_an_error_of_its_document_and_not_the_end_of_the_process(hub):
    video = hub / "mlvu/scene1.mp4"
    hidden = video.rename(hub / "hidden.mp4")
    try:
        (task,) = load_tasks("mlvu_dev")
        assert task.messages(0)
        with pytest.raises(DataError, match=r"video path:.*scene1.mp4 does not exist"):
            task.messages(2)
    finally:
        hidden.rename(video)


VIDEOMME_QUESTION = (
    "Select the best answer to the following multiple-choice question based on the video and the "
    "subtitles. Respond with only the letter (A, B, C, or D) of the correct option.\n"
    "What colour is the square?\nA. red.\nB. green.\nC. blue.\nD. white.\n"
)


def test_videomme_prompt(hub):
    videos, text = prompt("videomme", 0)
    assert videos == [str(hub / "videomme/data/scene0.mp4")]
    # The post prompt begins with a line break of its own.
    assert text == VIDEOMME_QUESTION + (
        "\nAnswer with the option's letter from the given choices directly."
    )


def test_videomme_prompt_with_subtitles():
    _, text = prompt("videomme_w_subtitle", 0)
    assert text == (
        "This video's subtitles are listed below: \nA blue triangle comes first.\n"
        "Look, a flash!\n" + VIDEOMME_QUESTION + "The best answer is:"
    )


def test_videomme_is_the_share_of_all():
    answers = {
        0: "A",  # right
        1: "The correct answer is (C).",  # wrong: B is true
        2: "I choose A",  # right
        3: "nothing",  # no letter: wrong
    }
    values, totals = scored("videomme", answers)
    assert values == [(1.0, "A"), (0.0, "C"), (1.0, "A"), (0.0, None)]
    assert totals.values == {"videomme_perception_score": 50.0}


def test_videomme_long_has_the_long_videos_only():
    (task,) = load_tasks("videomme_long")
    assert [doc["duration"] for doc in task.docs] == ["long"]


VIDEOMME_V2_OPTIONS = (
    "A. a circle\nB. a square\nC. a triangle\nD. a cross\n"
    "E. a line\nF. a point\nG. a star\nH. a face\n"
)


def test_videomme_v2_prompts(hub):
    videos, text = prompt("videomme_v2", 0)
    assert videos == [str(hub / "videomme_v2/001.mp4")]
    question = "Question: What moves to the left?\n" + VIDEOMME_V2_OPTIONS
    request = (
        "Select the best answer to the following multiple-choice question based on the video. "
        "Respond with only the letter (A, B, C, D, E, F, G, or H) of the correct option."
    )
    assert text == question + request
    _, text = prompt("videomme_v2_w_subtitle", 0)
    heading = "This video's subtitles are listed below:\nLook, a flash!\n\n"
    assert text == heading + question + request
    assert prompt("videomme_v2_w_subtitle", 4)[1] == question + request, "without subtitles"


def test_videomme_v2_scores_groups_of_four():
    right, wrong = ("A", "B", "C", "H"), "D"
    marks = {
        "001": (1, 1, 0, 1),  # relevance, 3 right: 9/16
        "002": (1, 1, 0, 1),  # chain 1-2-3-4, 2 before the first wrong one: 4/16
        "003": (1, 0, 1, 1),  # 1-{2, 3}-4: 1 and then 3, so 2: 4/12
        "004": (0, 1, 0, 1),  # {1, 2}-3-4: 2 alone counts as 1: 1/10
    }
    flat = [mark for group in marks.values() for mark in group]
    answers = {i: right[i % 4] if mark else wrong for i, mark in enumerate(flat)}
    values, totals = scored("videomme_v2", answers)
    assert [value for value, _ in values] == flat
    groups = [100 * share for share in (9 / 16, 4 / 16, 4 / 12, 1 / 10)]
    assert totals.values == pytest.approx(
        {
            "videomme_v2_overall_score": sum(groups) / 4,
            "videomme_v2_relevance_score": groups[0],
            "videomme_v2_logic_score": sum(groups[1:]) / 3,
            "videomme_v2_level_1_score": groups[0],
            "videomme_v2_level_2_score": groups[1],
            "videomme_v2_level_3_score": (groups[2] + groups[3]) / 2,
            "videomme_v2_overall_acc": 100 * 11 / 16,
            "videomme_v2_relevance_acc": 75.0,
            "videomme_v2_logic_acc": 100 * 8 / 12,
            "videomme_v2_level_1_acc": 75.0,
            "videomme_v2_level_2_acc": 75.0,
            "videomme_v2_level_3_acc": 100 * 5 / 8,
        }
    )


@pytest.mark.parametrize(
    "answer, taken",
    [
        ("**A**", "A"),
        ("First the flash.\nA", "A"),  # a letter alone on the last line
        ("the answer is b", "B"),  # small letters too
        ("It must be a circle, surely", "A"),  # by the text of one option
        ("a circle or a square", None),  # by two: nothing
    ],
)
def test_videomme_v2_finds_an_option_by_letter_or_by_text(answer, taken):
    assert scored("videomme_v2", {0: answer})[0] == [(float(taken == "A"), taken)]


def test_lvbench_adds_options_where_the_question_has_none(hub):
    videos, text = prompt("lvbench", 0)
    assert videos == [str(hub / "lvbench/scene0.mp4")]
    request = "\nAnswer the question with the option letter"
    assert text == "What colour is the square?\n(A) red\n(B) green\n(C) blue\n(D) white" + request
    _, text = prompt("lvbench", 2)
    assert text == "What flashes?\n(A) ice\n(B) a cup\n(C) a triangle\n(D) fire" + request


def test_lvbench_is_the_share_of_all():
    answers = {0: "(A) red", 1: "B", 2: "C.", 3: "white"}  # right, wrong, right, nothing
    values, totals = scored("lvbench", answers)
    assert values == [(1.0, "A"), (0.0, "B"), (1.0, "C"), (0.0, None)]
    assert totals.values == {"lvbench_score": 0.5}


@pytest.mark.parametrize("subtask", ["action_count", "episodic_reasoning", "fine_grained_pose"])
def test_mvbench_prompt(subtask, hub):
    videos, text = prompt(f"mvbench_{subtask}", 0)
    name = "scene0" if subtask == "episodic_reasoning" else "scene0.mp4"
    assert videos == [str(hub / "mvbench_video" / MVBENCH_FOLDERS[subtask] / name)]
    assert text == (
        "Question:What colour is the square?\nOption:\n(A) red\n(B) green\n(C) blue\n(D) white\n"
        "Only give the best option.\n"
    )


@pytest.mark.parametrize(
    "answer, taken",
    [
        ("A", "A"),
        ("(A) red", "A"),
        ("a red square", "A"),  # a small "a" alone is a letter
        ("D. white", "D"),
        ("red", None),  # the text of an option is no answer
    ],
)
def test_mvbench_takes_the_first_letter_that_stands_alone(answer, taken):
    assert scored("mvbench_action_count", {0: answer})[0] == [(float(taken == "A"), taken)]


def test_mvbench_leaves_out_empty_answers():
    # Two answers of which one is empty and one right: 100, not 50.
    _, totals = scored("mvbench_action_count", {0: "", 1: "A"})
    assert totals.values == {"mvbench_accuracy": 100.0}


def test_mvbench_is_a_group_of_twenty():
    tasks = load_tasks("mvbench")
    assert [task.name for task in tasks] == [f"mvbench_{name}" for name in MVBENCH_FOLDERS]
    assert all(task.messages(1) for task in tasks)


def test_videoevalpro_prompts_openly_or_for_a_letter(hub):
    videos, text = prompt("videoevalpro", 2)
    assert videos == [str(hub / "videoevalpro/videos_filtered/scene1.mp4")]
    assert text == "What flashes? Keep the answer short and concise."
    _, text = prompt("videoevalpro_mcq", 2)
    assert text == (
        "What flashes?\nA. circle\nB. square\nC. triangle\nD. cross\nE. nothing\n"
        "Answer with the option letter only."
    )


def test_videoevalpro_mcq_is_the_share_of_all_and_of_each_kind():
    answers = {0: "A", 1: "The answer is A.", 2: "E", 3: "blue"}  # right, right, wrong, nothing
    values, totals = scored("videoevalpro_mcq", answers)
    assert values == [(1.0, "A"), (1.0, "A"), (0.0, "E"), (0.0, None)]
    assert totals.values["videoevalpro_mcq_score"] == {
        "Local Perception": 1.0,
        "Local Reasoning": 1.0,
        "Holistic Perception": 0.0,
        "Holistic Reasoning": 0.0,
        "overall": 0.5,
    }


def test_videoevalpro_without_a_key_for_its_judge_is_refused(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("AZURE_OPENAI_API_KEY", raising=False)
    with pytest.raises(UsageError, match=r"no key for it.*or ask videoevalpro_mcq by"):
        LmmsScoring("videoevalpro")


class Judge(BaseHTTPRequestHandler):
    """Says A where the truth is in the answer, B elsewhere, and fails at "stop"."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = asked["messages"][0]["content"]
        truth, answer = (
            said.rsplit(name, 1)[1].splitlines()[0] for name in ("Goldtarget:", "Predictedanswer:")
        )
        message = {"role": "assistant", "content": "A" if truth in answer else "B"}
        body = json.dumps({"model": asked["model"], "choices": [{"index": 0, "message": message}]})
        self.send_response(400 if answer == "stop" else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Keep still."""


@pytest.fixture
def judge(monkeypatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("OPENAI_API_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    yield
    server.shutdown()
    thread.join()


def test_videoevalpro_is_what_its_judge_says(judge):
    answers = {0: "It is red.", 1: "right", 2: "a triangle", 3: "white"}
    values, totals = scored("videoevalpro", answers)
    assert [value for value, _ in values] == [1.0, 0.0, 1.0, 1.0]
    assert totals.values["videoevalpro_score"] == {
        "Local Perception": 1.0,
        "Local Reasoning": 0.0,
        "Holistic Perception": 1.0,
        "Holistic Reasoning": 1.0,
        "overall": 0.75,
    }


def test_an_answer_whose_judge_fails_is_not_a_wrong_answer(judge):
    with pytest.raises(DataError, match="videoevalpro was not scored: OpenAI judge failed"):
        scored("videoevalpro", {0: "stop"})


def test_a_document_of_the_log_scores_as_that_of_the_data_set(listed_tasks):
    for task in listed_tasks:
        if task.name in JUDGED:
            continue
        scoring = LmmsScoring(task.name)
        for doc_id, doc in enumerate(task.docs):
            logged = json.loads(json.dumps(json_values(doc)))
            assert scoring.score(logged, doc_id, "B") == scoring.score(doc, doc_id, "B")
