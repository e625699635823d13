"""A rendered clip, and questions about it that the embedded model can answer."""

from videonsa.rendered.clips import make_scene, scene_seed, write_video

QUESTIONS = ("What flashed?", "What colour is the circle?", "In which quarter was the flash?")


def write_test_clip(path, *, seed=3, seconds=8.0):
    scene = make_scene(scene_seed("test", seed), duration=seconds, num_objects=3)
    write_video(scene, path)
    return path
