"""The routes, and what stands before and behind them: keys, errors, metrics."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from videonsa import __version__
from videonsa.errors import VideoNSAError
from videonsa.server.api_key import ApiKey
from videonsa.server.asked import Asked
from videonsa.server.errors import Gone, RefusedRequest, refusal
from videonsa.server.files_api import add_file_routes
from videonsa.server.front import Front, last_of, unless_gone
from videonsa.server.jobs import Done, Piece
from videonsa.server.openapi import BODY, REFUSALS, describe
from videonsa.server.page import add_page_routes
from videonsa.server.replies import LAST_EVENT, Reply, event, usage_dict
from videonsa.server.same_site import SameSite

_log = logging.getLogger("videonsa.server")
Events = AsyncGenerator[Asked | Piece | Done]


def build_app(front: Front) -> FastAPI:
    """The application: what a server such as uvicorn runs."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(front.stop)

    # FastAPI's pages load scripts from elsewhere, and its description lacks what it does not read.
    app = FastAPI(title="videonsa", version=__version__, openapi_url=None, lifespan=lifespan)
    if front.settings.api_key is not None:
        app.add_middleware(ApiKey, key=front.settings.api_key)
    app.add_middleware(SameSite, names=front.settings.names)
    app.add_exception_handler(VideoNSAError, _told)
    app.add_exception_handler(HTTPException, _told_of_http)
    app.add_exception_handler(RequestValidationError, _told_of_query)
    app.add_exception_handler(Exception, _told)

    @app.get("/health")
    async def health() -> JSONResponse:
        return _health(front)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(front.metrics.text(), media_type=front.metrics.media_type)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(front)]}

    @app.post("/v1/chat/completions", openapi_extra=BODY, responses=REFUSALS)
    async def chat_completions(request: Request) -> Response:
        return await _chat(front, request)

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> dict[str, Any]:
        return describe(app)

    add_file_routes(app, front)
    add_page_routes(app, front)
    return app


async def _chat(front: Front, request: Request) -> Response:
    events = front.answer(request)
    try:
        asked = await anext(events)
        assert isinstance(asked, Asked)
        # The status is sent with the first piece: an error before it has one of its own.
        first = await unless_gone(request, anext(events))
        if asked.stream:
            return _Stream(events, asked, first, seconds=front.settings.timeout)
        async with aclosing(events):
            done = first if isinstance(first, Done) else await unless_gone(request, last_of(events))
        usage = usage_dict(done, ignored=asked.ignored)
        return JSONResponse(Reply(asked.model).whole(done, usage))
    except Gone:
        await events.aclose()
        return Response(status_code=499)  # nobody reads it
    except BaseException:
        await events.aclose()
        raise


class _Stream(StreamingResponse):
    """Server-sent events; a client that goes away, or takes too long to take them, closes them."""

    def __init__(
        self, events: Events, asked: Asked, first: Asked | Piece | Done, *, seconds: float
    ) -> None:
        self._events, self._seconds = events, seconds
        super().__init__(_chunks(events, asked, first), media_type="text/event-stream")
        self.headers["Cache-Control"] = "no-store"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._seconds):
                    await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()


async def _chunks(
    events: Events, asked: Asked, found: Asked | Piece | Done
) -> AsyncGenerator[bytes]:
    reply = Reply(asked.model)
    yield reply.chunk({"role": "assistant", "content": ""})
    try:
        while not isinstance(found, Done):
            if isinstance(found, Piece):
                yield reply.chunk({"content": found.text})
            found = await anext(events)
        usage = usage_dict(found, ignored=asked.ignored)
        yield reply.end(found, usage, apart=asked.include_usage)
    except Exception as error:  # its status is gone: the event says what went wrong
        yield event(_refused(error).body()) + LAST_EVENT


def _refused(error: Exception) -> RefusedRequest:
    told = refusal(error)
    if told.status >= 500 and not isinstance(error, RefusedRequest):
        _log.error("a request failed", exc_info=error)
    return told


async def _told(request: Request, error: Exception) -> Response:
    told = _refused(error)
    return JSONResponse(told.body(), told.status, headers=told.headers())


async def _told_of_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = RefusedRequest(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    return JSONResponse(told.body(), told.status, headers=error.headers)


async def _told_of_query(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = str(first["loc"][-1])
    told = RefusedRequest(400, f"{name}: {first['msg']}", param=name)
    return JSONResponse(told.body(), told.status)


def _health(front: Front) -> JSONResponse:
    thread = front.thread
    body = {
        "status": "ok" if thread.is_alive else "stopping",
        "model": front.settings.model_name,
        "requests": front.num_requests,
        "waiting": thread.num_waiting,
        "running": thread.num_running,
    }
    return JSONResponse(body, 200 if thread.is_alive else 503)


def _model(front: Front) -> dict[str, Any]:
    name = front.settings.model_name
    return {"id": name, "object": "model", "created": front.started, "owned_by": "videonsa"}
