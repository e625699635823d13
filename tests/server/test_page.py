"""The page, and what it asks for; that it works in a browser is tried by hand."""

import re

import pytest
from served import QUESTIONS, chat, running, text, video

pytest_plugins = ["server_fixtures"]


@pytest.fixture(scope="module")
def served(qa, clip):
    with running(qa, folder=clip.parent) as found:
        yield found


def test_the_page_needs_nothing_from_elsewhere_and_names_the_demonstration(served):
    page = served.get("/").decode()
    assert "This is the demonstration model" in page and "{{" not in page
    addresses = re.findall(r"https?://[^\s\"']+", page)
    assert set(addresses) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(?:script|link|img)[^>]*(?:src|href)=\"(?!data:)", page)


def test_a_plan_tells_frames_tokens_and_memory_and_shows_the_video(served, clip):
    status, plan, _ = served.post(
        {"url": clip.as_uri(), "num_frames": 6, "thumbnails": 4}, "/v1/videonsa/plan"
    )
    assert status == 200 and plan["frames"]["count"] == 6 and plan["fits"]
    assert plan["tokens"]["prompt"] > plan["tokens"]["video"] > 0
    assert plan["memory_bytes_estimated"]["total"] > 0
    assert [one["second"] for one in plan["thumbnails"]] == sorted(
        {one["second"] for one in plan["thumbnails"]}
    )
    assert len(plan["thumbnails"]) == 4 and str(clip.parent) not in str(plan)


def test_a_look_tells_where_an_answer_looked_without_reading_the_video_again(served, clip):
    body = chat(video(clip), text(QUESTIONS[0]))
    _, answer, _ = served.post(body)
    status, look, _ = served.post(body, "/v1/videonsa/look")
    assert status == 200 and look["answer"] == answer["choices"][0]["message"]["content"]
    assert look["cached_tokens"] > 0 and len(look["sentences"]) == 2
    attention = look["series"]["attention"]
    assert len(look["bars"]) == len(attention["times"][0]) == 8
    assert sum(attention["seen"][0]) == pytest.approx(1, abs=1e-3)


def test_a_look_is_told_of_one_video(served, clip):
    body = chat(video(clip), video(clip), text(QUESTIONS[0]))
    status, told, _ = served.post(body, "/v1/videonsa/look")
    assert status == 400 and "told of one" in told["error"]["message"]
