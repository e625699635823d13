"""What the server says of itself in /openapi.json."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from videonsa.server.schema import ChatRequest

_REFERENCE = "#/components/schemas/{model}"
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": _REFERENCE.format(model="ChatRequest")}}
        },
    }
}
"""Of a chat completion, which is read bit by bit and not by FastAPI."""
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "A request that cannot be answered; the error names the field."},
    401: {"description": "No API key, or a wrong one."},
    403: {"description": "Media that this server does not take."},
    404: {"description": "No such model, file or upload."},
    408: {"description": "The body arrives too slowly."},
    413: {"description": "A body or a video larger than this server takes."},
    429: {"description": "As many requests as may be are under way: see Retry-After."},
    503: {"description": "The server stops."},
    504: {"description": "No complete answer in time."},
    "default": {"description": "Every refusal has the form of OpenAI's errors."},
}
"""Statuses beside 200."""


def describe(app: FastAPI) -> dict[str, Any]:
    """The routes of an app, with the body of a chat completion."""
    found = get_openapi(title=app.title, version=app.version, routes=app.routes)
    body = ChatRequest.model_json_schema(ref_template=_REFERENCE)
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    schemas |= body.pop("$defs") | {"ChatRequest": body}
    return found
