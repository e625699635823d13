"""Pages that need nothing beside themselves: their style, their data, and filling a template."""

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

_STYLE = "webpage.css"


def style() -> str:
    """What all pages share: colours on a light and on a dark ground, text, the focused element."""
    return files("videonsa").joinpath(_STYLE).read_text("utf-8")


def fill(template: str, given: Mapping[str, str]) -> str:
    """A template with a text for each `{{name}}`; `{{style}}` is the style of all pages.

    What is put in is not looked at again. Texts are put in as they are: escape them.

    Raises:
        KeyError: the template names what is not given.
    """
    texts = {"style": style(), **given}
    return re.sub(r"\{\{(\w+)\}\}", lambda found: texts[found[1]], template)


def script_json(value: Any) -> str:
    """JSON for a script element: no text in it can end the element or begin a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
