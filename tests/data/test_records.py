"""Records: what they refuse, and that their JSON loses nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videonsa.data.records import ImageRef, Record, Text, Turn, VideoRef
from videonsa.errors import UsageError

PATHS = st.text(min_size=1, max_size=8)
COUNTS = st.none() | st.integers(1, 2**30)
VIDEOS = st.one_of(
    st.builds(VideoRef, path=PATHS, fps=st.none() | st.floats(0.1, 30)),
    st.builds(
        VideoRef,
        path=PATHS,
        num_frames=COUNTS,
        min_frames=COUNTS,
        max_frames=COUNTS,
        min_pixels=COUNTS,
        max_pixels=COUNTS,
        total_pixels=COUNTS,
    ),
    st.builds(
        VideoRef,
        frames=st.lists(PATHS, min_size=1, max_size=3).map(tuple),
        frame_rate=st.floats(0.1, 60),
    ),
    st.builds(VideoRef, script=PATHS),
)
TEXTS = st.builds(Text, st.text(max_size=20))
IMAGES = st.builds(ImageRef, path=PATHS, max_pixels=COUNTS)
USER = st.lists(VIDEOS | IMAGES | TEXTS, max_size=4).map(tuple)


def _answer(text: Text, learned: bool) -> Turn:
    return Turn(role="assistant", parts=(text,), learned=learned)


@st.composite
def records(draw: st.DrawFn) -> Record:
    turns = [Turn(role="system", parts=(draw(TEXTS),))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 4))):
        turns.append(Turn(role="user", parts=draw(USER)))
        turns.append(_answer(draw(TEXTS), draw(st.booleans())))
    return Record(id=draw(st.text()), source=draw(st.text()), turns=tuple(turns))


@given(records())
def test_json_is_lossless_and_one_line(record: Record) -> None:
    text = record.to_json()
    assert Record.from_json(text) == record
    assert Record.from_json(text).to_json() == text
    assert "\n" not in text


def test_media_come_in_order_of_appearance() -> None:
    parts = (VideoRef(path="a"), Text("and"), ImageRef(path="b"), VideoRef(path="c"))
    record = Record(
        id="1",
        source="s",
        turns=(Turn(role="user", parts=parts), Turn(role="assistant", parts=(Text("yes"),))),
    )
    assert record.media == (parts[0], parts[2], parts[3])
    assert record.videos == (parts[0], parts[3])
    assert record.images == (parts[2],)


@pytest.mark.parametrize(
    "roles",
    ["", "s", "u", "a", "ua u", "u u a", "s s u a", "a u", "u a s", "u a a"],
)
def test_turns_must_alternate_up_to_an_answer(roles: str) -> None:
    names = {"s": "system", "u": "user", "a": "assistant"}
    turns = tuple(Turn(role=names[role], parts=()) for role in roles.replace(" ", ""))
    with pytest.raises(UsageError, match="want user and assistant in turn"):
        Record(id="1", source="s", turns=turns)


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_only_users_show_videos(role: str) -> None:
    with pytest.raises(UsageError, match="want it in turns of the user"):
        Turn(role=role, parts=(VideoRef(path="a"),))


@pytest.mark.parametrize("given", [{}, {"path": "a", "script": "b"}, {"path": ""}])
def test_video_has_exactly_one_source(given: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="one of path, frames and script"):
        VideoRef(**given)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"id": "1", "source": "s", "turns": [{}]}'])
def test_other_text_is_no_record(text: str) -> None:
    with pytest.raises(UsageError, match="not a record"):
        Record.from_json(text)
