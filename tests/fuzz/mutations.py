"""Hostile words, and changes to JSON values, texts and bytes. Everything is drawn from one rng."""

import json
import re
import zlib
from random import Random
from typing import Any

NUMBERS = (
    *("-1", "0", "1", "2", "3", "28", "-0", "+3", " 3", "1_0", "0x10", "1e3", "0.5", "-0.5"),
    *("1e-320", "1e400", "-1e400", "nan", "inf", "-inf", "0.9999999", "256", "-2147483648"),
    *("10000000000", str(2**31), str(2**32), str(2**63), str(2**64), "1" + 22 * "0"),
    *("1" + 30 * "0", "-1" + 30 * "0", "9" * 5000, "\u0663", "1,2", "[1, 2]", "{}"),
)
TEXTS = (
    *("", " ", "x", "-", "--", "=", "none", "None", "null", "true", "a,b", ",", ",,", "a=b"),
    *("all", "auto", "frame", "a" * 300, "a" * 5000, "\u00e9\u4e2d", "\udcff", "a\nb", "\x1b[2J"),
    *("%s%d%n", "{0}", "$(id)", "<|im_end|>", "<|video_pad|>", "why " * 3000, "224x224", "28x"),
    *("1k", "17m", "99999m", "0k", "24GB", "1e9GB", "cuda:7", "cpu", "meta", "mps", "tpu"),
    *("(a+)+$", "*", "**/*", "a/../b", "synthetic:", "clips:count=1", "model.base=1", "a.b=c"),
)
PATHS = (
    *("absent", "absent/a.mp4", ".", "folder", "folder/", "loop", "pipe", "self", "self/clip.mp4"),
    *("empty", "locked", "clip.mp4", "clip.mp4/x", "tiny", "tiny/config.json", "text.json", "data"),
    *("~", "~nobody/x", "a" * 300, "/".join(["a" * 200] * 30), "file:///a.mp4", "data:,x"),
    *("https://example.invalid/a.mp4", "nobody/nothing", "embedded", "pipe:0", "concat:a|b"),
)
NAMES = (
    *("auto_map", "quantization_config", "rope_parameters", "rope_scaling", "text_config"),
    *("vision_config", "torch_dtype", "architectures", "model_type", "tie_word_embeddings"),
    *("tokenizer_class", "chat_template", "trust_remote_code", "eos_token_id", "nsa", "__class__"),
)
SIZES = (0, 1, 2, 7, 255, 256, 4096, 13_300, 16_383, 32_767, 65_535, 2**20, 2**31 - 1, 2**32 - 1)
_VALUES = (
    *(None, True, False, -1, 0, 1, 2, 3, 7, 0.5, -0.5, 1e-320, 10**6, 2**31, 10**9, 10**12, 10**30),
    *(float("nan"), float("inf"), "", "x", "1", "auto", "float8", "a" * 5000, "\ud800", "\x00"),
    *([], [0], [1, 2, 3], ["x"], [[]], [None], {}, {"": 0}, {"x": {}}, {"type": "yarn"}),
    {"quant_method": "gptq", "bits": 4},
)


def word(rng: Random) -> str:
    """A hostile word for an argument."""
    return rng.choice(rng.choice((NUMBERS, TEXTS, PATHS)))


def change_text(rng: Random, text: str) -> str:
    """Put a hostile number in place of one, or take, double or add characters."""
    numbers = list(re.finditer(r"\d+", text))
    if numbers and rng.random() < 0.7:
        found = rng.choice(numbers)
        return text[: found.start()] + rng.choice(NUMBERS) + text[found.end() :]
    start = rng.randrange(len(text) + 1)
    stop = min(len(text), start + rng.randrange(1, 5))
    put = rng.choice(("", text[start:stop] * 2, ",", "=", ":", "\n", "[", "{", rng.choice(TEXTS)))
    return text[:start] + put + text[stop:]


def change_json(rng: Random, value: Any) -> str:
    """Change one place of a JSON value; where it is, and what was done."""
    places = list(_places(value))
    if not places:
        return "nothing to change"
    holder, key, where = rng.choice(places)
    kind = rng.randrange(5)
    if kind == 0:
        del holder[key]
        return f"{where}: deleted"
    if kind == 1 and isinstance(holder, dict):
        name = rng.choice(NAMES)
        holder[name] = rng.choice((*_VALUES, holder[key]))
        return f"{where}: {name} beside it is {_short(holder[name])}"
    old = holder[key]
    if kind == 2 and isinstance(old, int | float) and not isinstance(old, bool):
        holder[key] = rng.choice((old + 1, old - 1, -old, old * 2, old * 10**6, float(old)))
    elif kind == 2 and isinstance(old, list | dict | str):
        holder[key] = old * 2 if isinstance(old, list | str) else [old]
    else:
        holder[key] = rng.choice(_VALUES)
    return f"{where}: {_short(holder[key])}"


def _places(value: Any, where: str = "") -> Any:
    """Every key of every object and list (of a long one, the ends), with what holds it."""
    keys: list[Any] = []
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    for key in keys if len(keys) <= 40 else [*keys[:8], *keys[-8:]]:
        yield value, key, f"{where}/{key}"
        yield from _places(value[key], f"{where}/{key}")


def _short(value: Any) -> str:
    return repr(value)[:60]


def change_bytes(rng: Random, content: bytes) -> tuple[bytes, str]:
    """Cut, fill up, overwrite, take or double bytes; most changes are near either end."""
    data = bytearray(content)
    kind = rng.randrange(6)
    if kind == 0 or not data:
        stop = rng.choice((0, 1, 8, 64, rng.randrange(len(data) + 1)))
        return bytes(data[:stop]), f"cut to {stop} bytes"
    near = min(len(data), rng.choice((16, 128, 1024, len(data))))
    start = rng.randrange(near) if rng.random() < 0.8 else len(data) - 1 - rng.randrange(near)
    if kind == 1:
        for _ in range(rng.randrange(1, 9)):
            data[rng.randrange(near)] = rng.randrange(256)
        return bytes(data), f"bytes below {near} overwritten"
    if kind == 2:
        width = rng.choice((1, 2, 4, 8))
        order = rng.choice(("big", "little"))
        number = rng.choice(SIZES) & (256**width - 1)
        data[start : start + width] = number.to_bytes(width, order)
        return bytes(data), f"{number} at byte {start}, {width} bytes, {order}"
    stop = start + rng.choice((1, 4, 64, 1000))
    if kind == 3:
        del data[start:stop]
        return bytes(data), f"bytes {start} to {stop} deleted"
    if kind == 4:
        data[stop:stop] = data[start:stop]
        return bytes(data), f"bytes {start} to {stop} doubled"
    data[start:stop] = rng.choice((b"\x00", b"\xff", b"[", b'{"a":', b"9")) * rng.choice((8, 9999))
    return bytes(data), f"bytes {start} to {stop} filled up"


def inflate(rng: Random, content: bytes, sides: tuple[int, int]) -> tuple[bytes, str]:
    """State other sizes wherever the sides of the picture stand in the header, in any spelling."""
    data = bytearray(content)
    places = [
        (found.start(), width, order)
        for side in sides
        for width in (2, 4)
        for order in ("big", "little")
        for found in re.finditer(re.escape(side.to_bytes(width, order)), content)
    ]
    if not places:
        return change_bytes(rng, content)
    size = rng.choice(SIZES[3:])
    for at, width, order in places if rng.random() < 0.5 else rng.choices(places, k=2):
        data[at : at + width] = (size & (256**width - 1)).to_bytes(width, order)  # type: ignore[arg-type]
    if content.startswith(b"\x89PNG"):  # with a sum that is right, or nobody reads on
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data), f"{size} in place of {sides}"


def nested(depth: int) -> str:
    """A JSON text that is nested too deeply."""
    return "[" * depth + "]" * depth


def to_json(value: Any) -> bytes:
    """JSON as Python writes it, lone surrogates and all."""
    return json.dumps(value).encode("utf-8", "surrogatepass")
