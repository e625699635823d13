"""Web sites of others may not use the server through the browser of somebody who can reach it."""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from videonsa.server.errors import RefusedRequest

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class SameSite:
    """Refuses what a browser sends for the pages of other sites."""

    def __init__(self, app: ASGIApp, *, names: frozenset[str] | None) -> None:
        """Stand before an application.

        Args:
            app: the application.
            names: by which it may be called; None: any. A site can have its own name lead to the
                loopback address of its visitors, so that their browsers take the server for its
                own; where there is no key, the name is what tells.
        """
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        why = None
        if scope["type"] == "http":
            why = self._why_not(Headers(scope=scope), reads=scope["method"] == "GET")
        if why is None:
            await self._app(scope, receive, send)
            return
        told = RefusedRequest(403, why, code="other_site")
        await JSONResponse(told.body(), told.status)(scope, receive, send)

    def _why_not(self, headers: Headers, *, reads: bool) -> str | None:
        host = headers.get("host", "")
        if self._names is not None and _name(host) not in self._names:
            return (
                f"this server, which has no API key, is not called {host[:100]!r}: call it "
                "127.0.0.1 (a proxy has to say so too), or begin it with --api-key-file"
            )
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site is not None:  # which pages cannot set
            is_other = site in ("cross-site", "same-site")  # another port is another site here
            follows_link = reads and headers.get("sec-fetch-mode") == "navigate"
            is_other = is_other and not follows_link
        else:
            is_other = origin is not None and urlsplit(origin).netloc != host
        if not is_other:
            return None
        return (
            f"a page of {(origin or 'another site')[:100]!r} may not ask this server: open the page"
            " of the server, or ask from a program (a proxy has to pass the Host header on)"
        )


def _name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
