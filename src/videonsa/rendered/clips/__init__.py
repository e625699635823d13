"""Rendered videos whose every fact is known: for the demo, tests, training and evaluation."""

from videonsa.rendered.clips.clip_frames import SceneBatch, render_scene, write_video
from videonsa.rendered.clips.clip_questions import (
    KINDS,
    PLACE_KINDS,
    STILL_KINDS,
    ClipQuestion,
    ask_about,
)
from videonsa.rendered.clips.rendered_clip import TOKENS_PER_PATCH, Clip, video_inputs
from videonsa.rendered.clips.scene import Scene, Sprite, make_scene, make_still, scene_seed

__all__ = [
    "KINDS",
    "PLACE_KINDS",
    "STILL_KINDS",
    "TOKENS_PER_PATCH",
    "Clip",
    "ClipQuestion",
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
