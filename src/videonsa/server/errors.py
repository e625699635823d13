"""What a client is told where a request is refused: a status, and OpenAI's JSON of an error."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from videonsa.errors import BudgetError, UsageError, VideoError, VideoNSAError

_TYPES: Mapping[int, str] = MappingProxyType(
    {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        429: "rate_limit_error",
    }
)
"""OpenAI's types of errors; other statuses below 500 are invalid requests."""
_LONGEST = 1000
"""Characters of a message, which may repeat what a client sent."""


class Gone(Exception):
    """The client does not wait for the answer."""


class RefusedRequest(VideoNSAError):
    """A request that is not answered, with the HTTP status that says so."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Say why.

        Args:
            status: of HTTP, from 400 on.
            message: one line: what came, what was wanted, what to do.
            param: the field of the request that it is about, as in "messages.0.content".
            code: a word for programs, such as "context_length_exceeded".
            retry_after: seconds after which to try again.
        """
        line = " ".join(message.split())
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
        super().__init__(line)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    def body(self) -> dict[str, Any]:
        """The JSON that OpenAI's clients read."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": str(self),
                "type": _TYPES.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        """Headers beside those of every answer."""
        found = {}
        if self.retry_after is not None:
            found["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
        if self.status == 401:
            found["WWW-Authenticate"] = "Bearer"
        return found


def refusal(error: Exception) -> RefusedRequest:
    """What to tell of an error: a user's is told as it is, a defect of ours without its details."""
    if isinstance(error, RefusedRequest):
        return error
    if isinstance(error, BudgetError):
        return RefusedRequest(400, str(error), code="context_length_exceeded")
    if isinstance(error, VideoError):
        return RefusedRequest(400, str(error), code="unreadable_media")
    if isinstance(error, UsageError):
        return RefusedRequest(400, str(error))
    told = str(error) if isinstance(error, VideoNSAError) else "a defect of the server: see its log"
    return RefusedRequest(500, told)
