"""What a client gets back: OpenAI's objects, with what was used to answer in `usage`."""

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from videonsa.inference.usage import Usage
from videonsa.server.asked import sampling_to_dict
from videonsa.server.jobs import Done


class Reply:
    """The objects of one answer, which share an id."""

    def __init__(self, model: str) -> None:
        self._own = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, done: Done, usage: dict[str, Any]) -> dict[str, Any]:
        """A chat completion."""
        message = {"role": "assistant", "content": done.answer.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _end(done)}
        return self._own | {"object": "chat.completion", "choices": [choice], "usage": usage}

    def chunk(
        self,
        delta: dict[str, Any] | None,
        *,
        finish: str | None = None,
        usage: dict[str, Any] | None = None,
    ) -> bytes:
        """A chunk of a stream; without a delta, one of the usage alone."""
        choices = []
        if delta is not None:
            choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
        found = self._own | {"object": "chat.completion.chunk", "choices": choices}
        return event(found if usage is None else found | {"usage": usage})

    def end(self, done: Done, usage: dict[str, Any], *, apart: bool) -> bytes:
        """The last chunks: how it ended, and the usage, in a chunk of its own or in the same."""
        if apart:
            return self.chunk({}, finish=_end(done)) + self.chunk(None, usage=usage) + LAST_EVENT
        return self.chunk({}, finish=_end(done), usage=usage) + LAST_EVENT


LAST_EVENT = b"data: [DONE]\n\n"


def event(value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, allow_nan=False).encode() + b"\n\n"


def usage_dict(done: Done, *, ignored: Sequence[str]) -> dict[str, Any]:
    """OpenAI's usage, and beside it what was used to answer.

    Args:
        done: the answer.
        ignored: fields of the request without effect.
    """
    answer, usage = done.answer, done.answer.usage
    num_cached = done.cached_tokens
    media = [
        {"sampling": sampling_to_dict(sampling)} | one
        for sampling, one in zip(done.samplings, _media(usage), strict=True)
    ]
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": answer.new_tokens,
        "total_tokens": usage.prompt_tokens + answer.new_tokens,
        "prompt_tokens_details": {"cached_tokens": num_cached},
        "cached_tokens": num_cached,
        "video_tokens": usage.video_tokens,
        "session": done.came_from,
        "answered_together": done.together,
        "method": usage.attention,
        "media": media,
        "generation": asdict(usage.generation),
        "first_token_seconds": answer.first_token_seconds,
        "tokens_per_second": answer.tokens_per_second,
        "decoding": answer.decoding,
        "warnings": list(usage.warnings),
        "notes": list(usage.notes),
        "ignored": list(ignored),
    }


def _media(usage: Usage) -> list[dict[str, Any]]:
    """Of each video and image: its frames, their seconds and size, and tokens."""
    joined = usage.joined
    tokens = usage.video_tokens - sum(one.video_tokens for one in joined)
    shown = [(usage.times, usage.height, usage.width, tokens)]
    shown += [(one.times, one.height, one.width, one.video_tokens) for one in joined]
    return [
        {
            "frames": len(times),
            "seconds": list(times),
            "height": height,
            "width": width,
            "tokens": tokens,
        }
        for times, height, width, tokens in shown
    ]


def _end(done: Done) -> str:
    return done.answer.finish
