"""The routes under /v1/files, as OpenAI's clients call them."""

import asyncio
from typing import Any, Literal

from fastapi import FastAPI, Query
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from videonsa.server.bodies import pieces
from videonsa.server.errors import Gone, RefusedRequest
from videonsa.server.front import Front
from videonsa.server.media import MediaSources
from videonsa.server.multipart import FormWithFile
from videonsa.server.openapi import REFUSALS
from videonsa.server.uploads import Incoming, StoredFile, Uploads

MOST_LISTED = 10_000
_NO_SNIFFING = {"X-Content-Type-Options": "nosniff", "Content-Disposition": "attachment"}
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string"},
                        "expires_after[anchor]": {"const": "created_at"},
                        "expires_after[seconds]": {"type": "integer"},
                    },
                }
            }
        },
    }
}


def add_file_routes(app: FastAPI, front: Front) -> None:
    """Let clients upload, list and delete files."""
    uploads = front.sources.uploads

    @app.post("/v1/files", openapi_extra=_FORM, responses=REFUSALS)
    async def upload(request: Request) -> Response:
        try:
            with front.place():
                stored = await _receive(request, front.sources)
        except Gone:
            return Response(status_code=499)  # nobody reads it
        return JSONResponse(stored.to_json())

    @app.get("/v1/files", responses=REFUSALS)
    async def list_files(
        after: str | None = None,
        limit: int = Query(MOST_LISTED, ge=1, le=MOST_LISTED),
        order: Literal["asc", "desc"] = "desc",
        purpose: str | None = None,
    ) -> dict[str, Any]:
        found = [one for one in uploads.files() if purpose in (None, one.purpose)]
        found = found[:: 1 if order == "asc" else -1]
        places = [place for place, one in enumerate(found) if one.id == after]
        rest = found[places[0] + 1 :] if places else found
        return _listed(rest[:limit], has_more=len(rest) > limit)

    @app.get("/v1/files/{name}", responses=REFUSALS)
    async def retrieve(name: str) -> dict[str, Any]:
        return _stored(uploads, name).to_json()

    @app.get("/v1/files/{name}/content", response_class=FileResponse, responses=REFUSALS)
    async def content(name: str) -> Response:
        path = uploads.path(_stored(uploads, name))
        return FileResponse(path, media_type="application/octet-stream", headers=_NO_SNIFFING)

    @app.delete("/v1/files/{name}", responses=REFUSALS)
    async def delete(name: str) -> dict[str, Any]:
        await asyncio.to_thread(uploads.delete, _stored(uploads, name).id)
        return {"id": name, "object": "file", "deleted": True}


async def _receive(request: Request, sources: MediaSources) -> StoredFile:
    """Take in a file; where it is refused or the client goes away, nothing of it stays."""
    uploads = sources.uploads
    stated = request.headers.get("content-length", "0")
    if stated.isdecimal() and int(stated[:20]) > uploads.most_bytes + 2**16:
        raise RefusedRequest(
            413,
            f"an upload of {stated[:20]} bytes: want at most {uploads.most_bytes}, or begin the "
            "server with a larger --max-upload",
            code="media_too_large",
        )
    with uploads.receive() as incoming:
        form = FormWithFile(request.headers.get("content-type", ""), incoming.write)
        await form.read(pieces(request))
        return await asyncio.to_thread(_keep, incoming, form, sources)


def _keep(incoming: Incoming, form: FormWithFile, sources: MediaSources) -> StoredFile:
    info = sources.info(incoming.content, incoming.sha256)
    sources.policy.check(info, kind="file", param="file")
    return incoming.keep(form.filename or "", form.fields)


def _stored(uploads: Uploads, name: str) -> StoredFile:
    found = uploads.get(name)
    if found is None:
        raise RefusedRequest(
            404,
            f"no file {name[:100]!r} here: GET /v1/files lists them",
            code="file_not_found",
        )
    return found


def _listed(files: list[StoredFile], *, has_more: bool) -> dict[str, Any]:
    return {
        "object": "list",
        "data": [one.to_json() for one in files],
        "first_id": files[0].id if files else None,
        "last_id": files[-1].id if files else None,
        "has_more": has_more,
    }
