"""Pages that need nothing beside themselves: their style, their data, and filling a template."""

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from importlib.resources import files
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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


def thumbnail(pixels: NDArray[np.uint8], *, longest: int) -> str:
    """A picture as a small JPEG in base64.

    Args:
        pixels: [3, H, W], RGB.
        longest: pixels of its longer side at most.
    """
    picture = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    picture.thumbnail((longest, longest))
    content = BytesIO()
    picture.save(content, format="JPEG", quality=70)
    return b64encode(content.getvalue()).decode()
