"""The key that requests under /v1 bring."""

import hmac

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from videonsa.server.errors import RefusedRequest


class ApiKey:
    """Answers requests without the key before anything else looks at them."""

    def __init__(self, app: ASGIApp, *, key: str) -> None:
        self._app, self._wanted = app, f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and scope["path"].startswith("/v1"):
            given = Headers(scope=scope).get("authorization", "").encode()
            # In a time that does not tell how much of the key is right.
            if not hmac.compare_digest(given, self._wanted):
                told = RefusedRequest(
                    401,
                    "no API key, or a wrong one: send the header 'Authorization: Bearer KEY'",
                    code="invalid_api_key",
                )
                await JSONResponse(told.body(), 401, headers=told.headers())(scope, receive, send)
                return
        await self._app(scope, receive, send)
