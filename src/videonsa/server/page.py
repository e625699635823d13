"""The page at `/`, and the two routes that it has beside OpenAI's: the plan, and the look."""

import asyncio
from contextlib import aclosing, closing
from dataclasses import replace
from functools import partial
from html import escape
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from videonsa.analysis.inspect_page import page_data
from videonsa.analysis.inspect_words import attention_sentences
from videonsa.analysis.inspection import Looks
from videonsa.inference.demonstration import WHAT_IT_KNOWS
from videonsa.planning.defaults import change_sampling
from videonsa.planning.devices import find_machine
from videonsa.planning.plan import NEW_TOKENS, TEXT_TOKENS, Question
from videonsa.server.asked import changes_of, sampling_to_dict
from videonsa.server.bodies import read_body
from videonsa.server.errors import Gone
from videonsa.server.front import Front, last_of, unless_gone
from videonsa.server.jobs import Done
from videonsa.server.media import RequestMedia
from videonsa.server.openapi import BODY, REFUSALS
from videonsa.server.schema import PlanRequest, parse_body
from videonsa.video.sampling import plan_sampling, sampling_notes, spread
from videonsa.webpage import fill, script_json

TEMPLATE = "page.html"
THUMBNAIL = 128
"""Pixels of the longer side."""
_MOST_BODY = 2**16
_PLAN_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": PlanRequest.model_json_schema()}},
    }
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data: blob:; media-src blob:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def add_page_routes(app: FastAPI, front: Front) -> None:
    """Serve the page, and what it asks for."""
    html = page(front)

    @app.get("/", response_class=HTMLResponse)
    async def index() -> Response:
        return HTMLResponse(html, headers=_HEADERS)

    @app.post("/v1/videonsa/plan", openapi_extra=_PLAN_BODY, responses=REFUSALS)
    async def plan(request: Request) -> Response:
        try:
            with front.place():
                asked = parse_body(PlanRequest, await read_body(request, _MOST_BODY))
                with closing(RequestMedia(front.sources)) as media:
                    finding = front.find(media, partial(_plan, front, asked, media))
                    return JSONResponse(await unless_gone(request, finding))
        except Gone:
            return Response(status_code=499)  # nobody reads it

    @app.post("/v1/videonsa/look", openapi_extra=BODY, responses=REFUSALS)
    async def look(request: Request) -> Response:
        return await _look(front, request)


def page(front: Front) -> str:
    """The page for a model; it needs nothing from elsewhere."""
    name, demonstration = front.settings.model_name, front.qa.demonstration
    data = {
        "model": name,
        "method": front.qa.shape.method.full_name,
        "context": front.qa.shape.context,
        "sampling": sampling_to_dict(front.qa.sampling),
        "mostBytes": front.sources.policy.most_bytes,
        "takesFiles": front.sources.policy.folder is not None,
        "hosts": sorted(front.sources.policy.hosts),
        "needsKey": front.settings.api_key is not None,
    }
    said = f"This is the demonstration model: {WHAT_IT_KNOWS}." if demonstration else ""
    given = {"model": escape(name), "demonstration": escape(said), "data": script_json(data)}
    return fill(files("videonsa.server").joinpath(TEMPLATE).read_text("utf-8"), given)


def _plan(front: Front, asked: PlanRequest, media: RequestMedia) -> dict[str, Any]:
    """What a question about a video would take, and how the video looks."""
    qa = front.qa
    found = media.get(asked.url, kind=asked.kind, param="url")
    sampling = change_sampling(qa.sampling, **changes_of(asked))
    frames = plan_sampling(found.info, sampling)
    question = Question(
        shape=qa.shape,
        machine=find_machine(qa.model.device),
        text_tokens=TEXT_TOKENS,
        max_new_tokens=asked.max_tokens or NEW_TOKENS,
    )
    info = replace(found.info, path="")  # where files lie here is nobody's business
    plan = question.plan(front.settings.model_name, info, frames)
    shown = spread(frames.num_frames, min(asked.thumbnails, frames.num_frames) or 1)
    times = [frames.times[place] for place in shown] if asked.thumbnails else []
    images = front.sources.thumbnails(found.path, times, longest=THUMBNAIL) if times else []
    notes = (*qa.notes, *found.info.notes, *sampling_notes(found.info, sampling))
    seconds = [{"second": time, "image": image} for time, image in zip(times, images, strict=True)]
    whole = replace(plan, notes=notes).to_dict()
    return whole | {"fits": plan.fits and plan.fits_memory, "thumbnails": seconds}


async def _look(front: Front, request: Request) -> Response:
    """Answer once more, and tell where the model looked.

    The video is not read again where a session holds it; the answer is the same where its seed, or
    none, decides on it.
    """
    looks = Looks()
    try:
        async with aclosing(front.answer(request, recorder=looks.recorder)) as events:
            await anext(events)  # what is asked; from here on, the body is read
            done = await unless_gone(request, last_of(events))
        return JSONResponse(await asyncio.to_thread(_seen, looks, done))
    except Gone:
        return Response(status_code=499)  # nobody reads it


def _seen(looks: Looks, done: Done) -> dict[str, Any]:
    found = looks.inspection(
        done.answer,
        video="",
        question="",
        thumbnails=(),
        machine={},
        seconds=0.0,
    )
    return {
        "answer": done.answer.text,
        "sentences": list(attention_sentences(found)),
        "notes": list(found.notes),
        "cached_tokens": done.cached_tokens,
        **page_data(found),
    }
