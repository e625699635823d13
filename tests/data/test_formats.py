"""Rows of every format to turns, and why some are not kept."""

from typing import Any

import pytest

from videonsa.data.formats import detect_format, parse_row
from videonsa.data.reasons import DropError, Reason
from videonsa.data.records import ImageRef, Text, Turn, VideoRef

V, W, PICTURE = VideoRef(path="/v.mp4"), VideoRef(path="/w.mp4"), ImageRef(path="/i.png")


def resolve(path: str) -> str:
    return f"/{path}"


def user(*parts: object) -> Turn:
    return Turn(role="user", parts=tuple(Text(p) if isinstance(p, str) else p for p in parts))


def assistant(text: str) -> Turn:
    return Turn(role="assistant", parts=(Text(text),))


def llava(*said: str, **more: Any) -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(said)]
    return {"id": 1, "conversations": turns, "video": "v.mp4"} | more


def swift(*said: str, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]
    return {"messages": turns} | more


def messages(*content: object, answer: object = "Yes.") -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": list(content)},
            {"role": "assistant", "content": answer},
        ]
    }


def with_turn(index: int, **more: Any) -> dict[str, Any]:
    row = swift("<video>?", "Yes.", videos=["v.mp4"])
    row["messages"][index] |= more
    return row


ASK = {"type": "text", "text": "What?"}
PARSED = {
    "llava": (llava("<image>\nWhat?", "Yes."), [user(V, "What?"), assistant("Yes.")]),
    "llava, other placeholder": (
        llava("<video>\nWhat?", "Yes."),
        [user(V, "What?"), assistant("Yes.")],
    ),
    "llava, at the end": (llava("What?\n<video>", "Yes."), [user("What?", V), assistant("Yes.")]),
    "llava, several turns": (
        llava("<image>\nA?", "B.", "C?", "D."),
        [user(V, "A?"), assistant("B."), user("C?"), assistant("D.")],
    ),
    "llava, image and video": (
        llava("<image>\n<video>\nWhat?", "Yes.", image="i.png"),
        [user(PICTURE, V, "What?"), assistant("Yes.")],
    ),
    "llava, no placeholder": (llava("What?", "Yes."), [user(V, "What?"), assistant("Yes.")]),
    "swift": (
        swift("<video>What?", "Yes.", videos=["v.mp4"]),
        [user(V, "What?"), assistant("Yes.")],
    ),
    "swift, its line breaks stay": (
        swift("<video>\nA <video> b", "Yes.", videos=["v.mp4", "w.mp4"]),
        [user(V, "\nA ", W, " b"), assistant("Yes.")],
    ),
    "swift, in the second turn": (
        swift("Hi", "Hello", "<image>?", "Yes.", images=[{"path": "i.png"}]),
        [user("Hi"), assistant("Hello"), user(PICTURE, "?"), assistant("Yes.")],
    ),
    "swift, frames": (
        swift("<video>What?", "Yes.", videos=[["a.png", "b.png"]]),
        [user(VideoRef(frames=("/a.png", "/b.png")), "What?"), assistant("Yes.")],
    ),
    "swift, system": (
        swift("<video>What?", "Yes.", video="v.mp4", system="Be brief."),
        [
            Turn(role="system", parts=(Text("Be brief."),)),
            user(V, "What?"),
            assistant("Yes."),
        ],
    ),
    "swift, placeholders of the assistant are text": (
        swift("<video>What?", "<video>", videos=["v.mp4"]),
        [user(V, "What?"), assistant("<video>")],
    ),
    "messages": (
        messages(
            ASK, {"type": "video", "video": "v.mp4"}, answer=[{"type": "text", "text": "Yes."}]
        ),
        [user("What?", V), assistant("Yes.")],
    ),
    "messages, address keys": (
        messages(
            {"type": "image_url", "image_url": {"url": "i.png"}},
            {"type": "video", "path": "v.mp4"},
            ASK,
        ),
        [user(PICTURE, V, "What?"), assistant("Yes.")],
    ),
    "messages, own rate": (
        messages({"type": "video", "video": "v.mp4", "fps": 1.5}, ASK),
        [user(VideoRef(path="/v.mp4", fps=1.5), "What?"), assistant("Yes.")],
    ),
    "messages, own sampling": (
        messages(
            {"type": "image", "image": "i.png", "max_pixels": 3136},
            {"type": "video", "video": "v.mp4", "nframes": 8, "total_pixels": 10**6},
            {"type": "video", "video": "w.mp4", "min_frames": 2, "max_frames": 9, "min_pixels": 1},
            ASK,
        ),
        [
            user(
                ImageRef(path="/i.png", max_pixels=3136),
                VideoRef(path="/v.mp4", num_frames=8, total_pixels=10**6),
                VideoRef(path="/w.mp4", min_frames=2, max_frames=9, min_pixels=1),
                "What?",
            ),
            assistant("Yes."),
        ],
    ),
    "messages, frames at a rate": (
        messages({"type": "video", "video": ["a.png"], "sample_fps": 4}, ASK),
        [user(VideoRef(frames=("/a.png",), frame_rate=4), "What?"), assistant("Yes.")],
    ),
    "messages, listed beside": (
        messages({"type": "video"}, ASK) | {"videos": ["v.mp4"]},
        [user(V, "What?"), assistant("Yes.")],
    ),
}


@pytest.mark.parametrize("name", PARSED)
def test_rows_say_the_same_in_every_format(name: str) -> None:
    row, turns = PARSED[name]
    parsed = parse_row(row, resolve=resolve)
    assert list(parsed.turns) == turns
    assert detect_format(row) == name.split(",")[0]
    assert parsed.placed is (name == "llava, no placeholder")


def test_data_set_is_the_one_that_the_row_names() -> None:
    row = llava("<image>\nWhat?", "Yes.", data_source="0_30_s_academic_v0_1")
    assert parse_row(row, resolve=resolve).source == "0_30_s_academic_v0_1"
    assert parse_row(llava("<image>\nWhat?", "Yes."), resolve=resolve).source is None


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (7, Reason.BAD_ROW),
        ({"question": "a", "answer": "b"}, Reason.BAD_ROW),
        ({"messages": []}, Reason.BAD_ROW),
        ({"messages": ["text"]}, Reason.BAD_ROW),
        ({"messages": [{"role": "user", "content": 3}]}, Reason.BAD_ROW),
        (swift("<video>?", "Yes.", videos=[3]), Reason.BAD_ROW),
        (swift("<video>?", "Yes.", videos=["a\0b"]), Reason.BAD_ROW),
        (swift("<image>?", "Yes.", images=[["a.png"]]), Reason.BAD_ROW),
        (messages({"type": "video", "video": "v.mp4", "fps": "fast"}, ASK), Reason.BAD_ROW),
        ({"messages": [{"role": "tool", "content": "x"}]}, Reason.BAD_TURNS),
        (messages(ASK, answer=[{"type": "video", "video": "v.mp4"}]), Reason.BAD_TURNS),
        (llava("<video>\nWhat?", " "), Reason.EMPTY_TEXT),
        (llava("<video>\nWhat?", "Yes.", "", "No."), Reason.EMPTY_TEXT),
        (llava("<video> <video>", "Yes."), Reason.PLACEHOLDERS),
        (llava("<video>?", "Yes.", video=["v.mp4", "w.mp4"]), Reason.PLACEHOLDERS),
        (llava("<video>?", "Yes.", video=None), Reason.PLACEHOLDERS),
        (swift("<video><image>", "Yes.", images=["i.png"]), Reason.PLACEHOLDERS),
        *(
            (swift("<video>?", "<bbox>.", videos=["v.mp4"], **{name: value}), Reason.UNSUPPORTED)
            for name, value in {
                "audios": ["a.wav"],
                "objects": {"ref": [], "bbox": [[1, 2, 3, 4]]},
                "tools": "[]x",
                "rejected_response": "No.",
                "label": False,
            }.items()
        ),
        *(
            (messages({"type": "video", "video": "v.mp4", name: 3}, ASK), Reason.UNSUPPORTED)
            for name in ("video_start", "video_end", "start", "resized_height", "resized_width")
        ),
        *(
            (messages({"type": "video", "video": "v.mp4"} | own, ASK), Reason.BAD_ROW)
            for own in (
                {"nframes": 8, "fps": 1},
                {"nframes": 0},
                {"max_pixels": "many"},
                {"max_frames": 1.5},
                {"min_pixels": True},
                {"total_pixels": 10**40},
            )
        ),
        (messages({"type": "image", "image": "i.png", "resized_width": 9}, ASK), "unsupported"),
        (messages({"type": "image", "image": "i.png", "max_pixels": -1}, ASK), Reason.BAD_ROW),
        (swift("<video>?", "Yes.", videos=["v.mp4"], system=["a"]), Reason.BAD_ROW),
        (swift("<video>?", "Yes.", videos=[{"path": "v.mp4", "end": 3}]), Reason.UNSUPPORTED),
        (with_turn(1, loss=False), Reason.NO_LOSS),
        (with_turn(1, loss="no"), Reason.BAD_ROW),
        (with_turn(0, loss=True), Reason.UNSUPPORTED),
        (with_turn(1, loss_scale=0.5), Reason.UNSUPPORTED),
        (with_turn(1, weight=0), Reason.UNSUPPORTED),
        (swift("<image>?", "Yes.", images=[{"bytes": "x"}]), Reason.UNSUPPORTED),
        (messages({"type": "audio", "audio": "a.wav"}, ASK), Reason.UNSUPPORTED),
    ],
)
def test_rows_that_cannot_be_trained_on_say_why(row: object, reason: Reason) -> None:
    with pytest.raises(DropError) as caught:
        parse_row(row, resolve=resolve)
    assert caught.value.reason == reason


def test_a_turn_that_says_so_is_not_learnt() -> None:
    row = swift("<video>A?", "B.", "C?", "D.", videos=["v.mp4"])
    row["messages"][1]["loss"] = False
    row["messages"][3]["loss"] = True
    row["messages"][2]["loss"] = False  # as every turn of the user
    turns = parse_row(row, resolve=resolve).turns
    assert [turn.learned for turn in turns] == [True, False, True, True]


def test_fields_that_nothing_is_made_of_are_named() -> None:
    row = swift("<video>A?", "B.", videos=[{"path": "v.mp4", "title": "x"}], split="train")
    row["messages"][0]["name"] = "Ann"
    row |= {"empty": None, "objects": {}, "audios": []}
    assert parse_row(row, resolve=resolve).unread == ("name of a turn", "split", "title of a video")
    assert parse_row(llava("<video>\nWhat?", "Yes."), resolve=resolve).unread == ()
