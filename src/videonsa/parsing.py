"""Reading JSON that somebody wrote: what is no such file, or no such JSON, is one error."""

import json
from pathlib import Path
from typing import Any

from videonsa.errors import UsageError, VideoNSAError

MOST_BYTES = 2**28
"""Of a JSON file. The largest that is met, a tokenizer's, has 2**24."""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none: broken, nested too deeply, in no UTF-8, or with a number of more
            digits than Python reads.

    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_regular(path: Path, *, most_bytes: int = MOST_BYTES) -> bytes:
    """The bytes of a file that is one: no pipe or device, which may never end.

    Raises:
        OSError: it is not there, not readable, no regular file, or larger than `most_bytes`.

    """
    if not path.exists():
        raise FileNotFoundError("there is no such file")
    if not path.is_file():
        raise OSError("it is not a regular file")
    if (size := path.stat().st_size) > most_bytes:
        raise OSError(f"it has {size} bytes, of at most {most_bytes}")
    return path.read_bytes()


def read_json_object(
    path: Path,
    *,
    error: type[VideoNSAError] = UsageError,
    remedy: str = "write it again, or name another",
) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: of the file.
        error: what to raise.
        remedy: what the reader should do; the end of the message.

    Raises:
        VideoNSAError: as `error` says; the file is not there or holds no JSON object.

    """
    try:
        content = parse_json(read_regular(path))
    except OSError as reason:
        raise error(f"{path} cannot be read ({one_line(reason)}): {remedy}") from reason
    except ValueError as reason:
        raise error(f"{path} is not readable JSON ({one_line(reason)}): {remedy}") from reason
    if not isinstance(content, dict):
        raise error(f"{path} holds no JSON object: {remedy}")
    return content


def one_line(error: BaseException, most: int = 200) -> str:
    """The message of an error, cut and on one line; of the system's, without the path."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split())[:most] or type(error).__name__
