"""Rendered scenes show what their facts say."""

import random

import av
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from videonsa.rendered.clips import (
    KINDS,
    SceneBatch,
    ask_about,
    make_scene,
    render_scene,
    scene_seed,
    write_video,
)
from videonsa.rendered.clips.scene import COLOURS, DIRECTIONS, SAMPLE_PERIOD, SIZE

seeds = st.integers(0, 2**41 - 1)


@given(seeds)
@settings(derandomize=True, max_examples=100, deadline=None)
def test_names_colours_and_shapes_of_a_scene_are_all_different(seed: int) -> None:
    scene = make_scene(seed)
    sprites = (*scene.objects, scene.flash)
    assert len({s.colour for s in sprites}) == len({s.shape for s in sprites}) == len(sprites)


@given(seeds, st.floats(8, 200))
@settings(derandomize=True, max_examples=100, deadline=None)
def test_objects_stay_inside_the_picture_and_the_clip(seed: int, duration: float) -> None:
    scene = make_scene(seed, duration=duration)
    for sprite in scene.objects:
        assert 0 <= sprite.start < sprite.end <= duration
        for time in (sprite.start, sprite.end):
            x, y = sprite.position(time)
            assert sprite.radius <= x <= SIZE - sprite.radius
            assert sprite.radius <= y <= SIZE - sprite.radius


# Binary fractions: the times of the frames are then sums without rounding.
phases = st.integers(0, 1023).map(lambda i: i / 1024 * SAMPLE_PERIOD)


@given(seeds, phases)
@settings(derandomize=True, max_examples=100, deadline=None)
def test_the_flash_is_in_exactly_one_sampled_frame_whatever_the_phase(
    seed: int, phase: float
) -> None:
    flash = make_scene(seed).flash
    times = [phase + SAMPLE_PERIOD * i for i in range(96)]
    assert sum(flash.start <= time < flash.end for time in times) == 1


def test_train_and_test_seeds_never_meet() -> None:
    assert scene_seed("train", 2**40 - 1) < scene_seed("test", 0)
    with pytest.raises(ValueError, match=r"want 0 <= index < 2\*\*40"):
        scene_seed("train", 2**40)


def test_a_seed_gives_the_same_pixels_again_and_another_seed_does_not() -> None:
    times = [0.0, 7.5]
    first, again = (render_scene(make_scene(5), times) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, render_scene(make_scene(6), times))


def test_each_sprite_is_drawn_in_its_colour_at_its_place_and_only_in_its_time() -> None:
    for seed in range(20):
        scene = make_scene(seed, num_objects=1)
        for sprite in (scene.objects[0], scene.flash):
            time = (sprite.start + sprite.end) / 2
            x, y = sprite.position(time)
            shown, before = render_scene(scene, [time, sprite.start - 0.01], noise=False)
            level = torch.tensor(COLOURS[sprite.colour])
            if sprite is scene.flash:  # the flash is on top; the object may be under it
                assert (shown[:, int(y), int(x)] - level).abs().max() <= 1
                assert (before[:, int(y), int(x)] - level).abs().max() > 1
            elif not scene.flash.start <= time < scene.flash.end:
                assert (shown[:, int(y), int(x)] - level).abs().max() <= 1


def test_a_batch_draws_each_scene_as_alone() -> None:
    scenes = [make_scene(seed) for seed in (1, 2, 3)]
    times = torch.tensor([0.0, 11.0, 23.5])
    batch = SceneBatch.of(scenes).render(times)
    for scene, frames in zip(scenes, batch, strict=True):
        assert torch.equal(frames, render_scene(scene, times.tolist(), noise=False))


def test_answers_follow_from_the_scene() -> None:
    for seed in range(200):
        scene = make_scene(seed)
        by_name = {sprite.name: sprite for sprite in scene.objects}
        for kind in KINDS:
            question = ask_about(scene, kind, seed=seed)
            if question is None:
                assert kind == "order" and len(scene.objects) == 1
                continue
            assert question.answer in question.options
            named = [s for name, s in by_name.items() if name in question.text]
            if kind == "direction":
                dx, dy = DIRECTIONS[question.answer]
                assert named[0].vx * dx + named[0].vy * dy > 0
            elif kind == "order":
                assert question.answer == min(named, key=lambda s: s.start).name
            elif kind == "flash":
                assert question.answer == scene.flash.name
            elif kind == "count":
                assert int(question.answer) == len(scene.objects)


def test_no_answer_is_much_more_frequent_than_chance() -> None:
    rng = random.Random(0)
    for kind in KINDS:
        asked = (ask_about(make_scene(rng.getrandbits(40)), kind) for _ in range(2000))
        questions = [q for q in asked if q is not None]
        places = [q.options.index(q.answer) for q in questions]
        chance = 1 / len(questions[0].options)
        share = max(places.count(i) for i in range(len(questions[0].options))) / len(places)
        assert share < 1.25 * chance + 0.02, kind


def test_the_written_video_has_the_scene_in_it(tmp_path) -> None:
    scene = make_scene(3, duration=8.0)
    path = tmp_path / "clip.mp4"
    write_video(scene, path, fps=8)
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 64
    drawn = render_scene(scene, [i / 8 for i in range(64)], noise=False)
    for shown, frame in zip(drawn, frames, strict=True):
        assert (shown.permute(1, 2, 0).float() - torch.from_numpy(frame)).abs().mean() < 4
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]
