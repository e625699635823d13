"""The tree of `scripts/make_video_tree.py`, and one clip of it."""

import importlib.util
from pathlib import Path
from types import ModuleType

SCRIPT = Path(__file__).parents[2] / "scripts/make_video_tree.py"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_video_tree", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_clip(path: Path) -> Path:
    """Eight frames in two seconds."""
    made = script()
    made.write_video(path, seconds=2, rate=4, size=(64, 48), form=made.FORMATS[0])
    return path
