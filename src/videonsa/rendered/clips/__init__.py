"""Rendered videos whose every fact is known: for the demo, tests, training and evaluation."""

from videonsa.rendered.clips.clips import TOKENS_PER_PATCH, Clip, video_inputs
from videonsa.rendered.clips.questions import KINDS, PLACE_KINDS, STILL_KINDS, Question, ask_about
from videonsa.rendered.clips.render import SceneBatch, render_scene, write_video
from videonsa.rendered.clips.scene import Scene, Sprite, make_scene, make_still, scene_seed

__all__ = [
    "KINDS",
    "PLACE_KINDS",
    "STILL_KINDS",
    "TOKENS_PER_PATCH",
    "Clip",
    "Question",
    "Scene",
    "SceneBatch",
    "Sprite",
    "ask_about",
    "make_scene",
    "make_still",
    "render_scene",
    "scene_seed",
    "video_inputs",
    "write_video",
]
