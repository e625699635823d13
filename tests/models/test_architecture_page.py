"""docs/architecture.md: its examples run as they stand, and the files that it names exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text("utf-8")
CLIP = "videonsa-demo/clip.mp4"


def test_the_method_and_the_recorder_of_the_page_run(clip_path, capsys):
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    assert code.count(CLIP) == 2
    space = {}
    exec(code.replace(CLIP, str(clip_path)), space)
    assert space["model"].model.method.name == "sliding_window"
    assert capsys.readouterr().out.strip()
    norms = space["recorder"].norms
    assert sorted(norms) == list(range(space["model"].shape.num_layers))
    assert all(norm > 0 for steps in norms.values() for norm in steps)


def test_every_file_that_the_page_names_exists():
    names = set(re.findall(r"`([a-z0-9_/]+\.(?:py|yaml))`", PAGE))
    assert len(names) > 10
    files = [str(path) for path in (ROOT / "src/videonsa").rglob("*.*")]
    assert not [name for name in names if not any(path.endswith(f"/{name}") for path in files)]


def test_every_room_is_in_the_page():
    rooms = {path.parent.name for path in (ROOT / "src/videonsa").glob("*/__init__.py")}
    assert not [room for room in rooms if f"**`{room}`" not in PAGE]
