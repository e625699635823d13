"""What the script says is in the pixels, however they are asked for."""

import dataclasses
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from videonsa.errors import UsageError
from videonsa.rendered.clips.scene import COLOURS
from videonsa.rendered.suite import (
    DIFFICULTIES,
    Script,
    SuiteSpec,
    frames_for_tokens,
    iter_frames,
    make_script,
    min_frames,
    questions_of,
    render_frames,
    suite_seed,
    write_suite_video,
)
from videonsa.rendered.suite.font import text_mask

GREY = 40
NOISE = 6 * 4.5  # levels: four and a half standard deviations


def script_of(index: int = 0, **options: object) -> Script:
    spec = SuiteSpec(**{"num_frames": 400, **options})
    return make_script(suite_seed("test", index), spec=spec)


@pytest.mark.parametrize("size", [112, 224])
def test_a_frame_is_the_same_however_the_video_is_cut(size: int) -> None:
    script = script_of(difficulty="hard", frame_size=size)
    whole = render_frames(script, 40, 140)
    assert whole.shape == (100, 3, size, size)
    assert whole.dtype == torch.uint8
    parts = [render_frames(script, a, b) for a, b in ((40, 41), (41, 107), (107, 140))]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(render_frames(script, 99, 100)[0], whole[59])


def test_frames_come_in_order_and_complete() -> None:
    script = script_of(num_frames=min_frames())
    chunks = list(iter_frames(script, chunk=50))
    assert [len(chunk) for chunk in chunks] == [50, 50, script.num_frames - 100]
    assert torch.equal(torch.cat(chunks), render_frames(script, 0, script.num_frames))


def test_frames_differ_from_each_other_and_between_seeds() -> None:
    frames = render_frames(script_of(), 0, 50)
    assert all(not torch.equal(a, b) for a, b in pairwise(frames))
    assert not torch.equal(frames, render_frames(script_of(1), 0, 50))


def test_the_end_of_a_million_tokens_costs_no_more_than_the_start() -> None:
    script = script_of(num_frames=frames_for_tokens(1 << 20, frame_size=112), difficulty="hard")
    last = script.num_frames
    crowd = script.distractors((last - 20) / script.fps, last / script.fps)
    assert len(crowd) <= 9 * 4
    assert len(render_frames(script, last - 20, last)) == 20


@pytest.mark.parametrize(("first", "last"), [(-1, 3), (5, 5), (390, 401)])
def test_frames_outside_the_video_are_refused(first: int, last: int) -> None:
    with pytest.raises(UsageError, match="400"):
        render_frames(script_of(), first, last)
    with pytest.raises(UsageError, match="chunk=0"):
        next(iter_frames(script_of(), chunk=0))


@pytest.mark.parametrize("part", ["flashes", "boxes", "numbers", "objects"])
def test_taking_evidence_away_changes_its_frames_and_no_other(part: str) -> None:
    script = script_of(num_frames=min_frames(), difficulty="medium")
    shown = getattr(script.evidence, part)
    bare = dataclasses.replace(script, evidence=dataclasses.replace(script.evidence, **{part: ()}))
    pairs = zip(
        render_frames(script, 0, script.num_frames),
        render_frames(bare, 0, script.num_frames),
        strict=True,
    )
    for frame, (one, other) in enumerate(pairs):
        seen = any(thing.start <= frame / 2 < thing.end for thing in shown)
        assert torch.equal(one, other) != seen


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
@pytest.mark.parametrize("size", [112, 224])
def test_nothing_covers_what_the_questions_are_about(difficulty: str, size: int) -> None:
    """The middle of every sprite has its colour in every frame in which it is seen."""
    for index in range(4):
        script = script_of(index, difficulty=difficulty, frame_size=size)
        shown, strength = script.evidence, script.spec.level.strength
        for sprite in (*shown.objects, *shown.flashes, *shown.boxes):
            first = int(sprite.start * 2)
            frames = render_frames(script, first, int(sprite.end * 2))
            assert len(frames) == 2 * (sprite.end - sprite.start) >= 1
            colour = torch.tensor(COLOURS[sprite.colour])
            colour = GREY + strength * (colour - GREY)
            for i, frame in enumerate(frames):
                x, y = (int(c) for c in sprite.position((first + i) / 2))
                assert (frame[:, y, x] - colour).abs().max() < NOISE
                assert size > x + sprite.radius and x - sprite.radius > -1
                assert size > y + sprite.radius and y - sprite.radius > -1


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
@pytest.mark.parametrize("size", [112, 224])
def test_the_number_can_be_read_off_the_pixels(difficulty: str, size: int) -> None:
    for index in range(5):
        script = script_of(index, difficulty=difficulty, frame_size=size)
        (number,) = script.evidence.numbers
        answer = questions_of(script)[1].answer
        mask = text_mask(f"#{answer}", scale=int(script.spec.level.text * size / 112))
        top = int(number.y) - mask.shape[0] // 2
        left = int(number.x) - mask.shape[1] // 2
        for frame in render_frames(script, int(2 * number.start), int(2 * number.end)):
            grey = frame.float().mean(0).numpy()
            plate = grey[top : top + mask.shape[0], left : left + mask.shape[1]]
            assert np.array_equal(plate > 80, mask > 0)


@pytest.mark.parametrize("size", [112, 224])
def test_the_encoded_video_shows_the_same(tmp_path: Path, size: int) -> None:
    script = script_of(num_frames=32, frame_size=size, kinds=("needle", "number"))
    write_suite_video(script, tmp_path / "a.mp4")
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]
    with av.open(str(tmp_path / "a.mp4")) as container:
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(images) == 16 * 8
    decoded = torch.from_numpy(np.stack(images[::4])).permute(0, 3, 1, 2).float()
    wanted = render_frames(script, 0, 32).float()
    assert (decoded - wanted).abs().mean() < 9  # noise, 4:2:0 and the codec
    first = int(2 * questions_of(script)[0].evidence[0][0])
    other = (first + 4) % 32
    assert (decoded[first] - wanted[first]).abs().mean() < (
        (decoded[first] - wanted[other]).abs().mean()
    )


def test_no_file_is_left_when_encoding_fails(tmp_path: Path) -> None:
    broken = dataclasses.replace(script_of(), evidence=SimpleNamespace())
    with pytest.raises(AttributeError):
        write_suite_video(broken, tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())
