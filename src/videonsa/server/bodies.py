"""Bodies of requests as they arrive: as long as they may be, and not too slowly."""

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request

from videonsa.server.errors import Gone, RefusedRequest

IDLE_SECONDS = 60.0
"""In which something of a body has to arrive."""
SLOWEST = 10_000
"""Bytes a second that have to arrive in the long run: a body that trickles would keep a place."""


async def pieces(request: Request) -> AsyncIterator[bytes]:
    """The body of a request, which has to go on arriving.

    Raises:
        RefusedRequest: 408, it does not.
        Gone: the client went away.
    """
    now = asyncio.get_running_loop().time
    end = now() + IDLE_SECONDS
    stream = request.stream()
    piece: bytes | None = b""
    while piece is not None:
        yield piece
        try:
            async with asyncio.timeout_at(end):
                piece = await anext(stream, None)
        except TimeoutError as error:
            raise RefusedRequest(
                408,
                f"the body arrives too slowly: want {SLOWEST} bytes a second; send it again",
            ) from error
        except ClientDisconnect as error:
            raise Gone from error
        end = min(end + len(piece or b"") / SLOWEST, now() + IDLE_SECONDS)


async def read_body(request: Request, most: int) -> bytes:
    """The body of a request.

    Raises:
        RefusedRequest: 413, larger than it may be; no more of it is read. 408, too slow.
        Gone: the client went away.
    """
    refused = RefusedRequest(
        413,
        f"the body is larger than {most} bytes: send a smaller video, or name a file",
        code="body_too_large",
    )
    stated = request.headers.get("content-length", "0")
    if not stated.isdecimal() or int(stated) > most:
        raise refused
    found = bytearray()
    async for piece in pieces(request):
        found += piece
        if len(found) > most:
            raise refused
    return bytes(found)
