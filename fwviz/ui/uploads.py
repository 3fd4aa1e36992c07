"""Uploads: one route that takes a file piece by piece, counts what comes, and answers with its id or one sentence."""

from __future__ import annotations

import asyncio
from urllib.parse import unquote

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from fwviz.types import FwvizError
from fwviz.ui import wire
from fwviz.ui.shelf import Shelf

MAX_SECONDS = 1800.0
_TOGETHER = 8  # uploads at a time, of all visitors


def routes(prefix: str, shelf: Shelf) -> list[BaseRoute]:
    """``POST /<prefix>/bring/{key}`` with the file as body, its kind and name and whether it is the first in headers.

    A page of another host cannot send such headers, and does not know a key.
    """
    under_way = 0

    async def take(request: Request) -> Response:
        nonlocal under_way
        kind, name = request.headers.get("x-fwviz-kind"), unquote(request.headers.get("x-fwviz-name", ""))
        if kind not in ("task", "checkpoint", "base") or not name:
            return JSONResponse({"problem": "The page sent no file: reload it."}, status_code=400)
        if under_way >= _TOGETHER:
            return JSONResponse({"problem": "Many files are on their way: try again in a minute."}, status_code=429)
        length = request.headers.get("content-length", "")
        announced = int(length) if length.isascii() and length.isdigit() and len(length) < 16 else 0
        under_way += 1
        try:
            first = request.headers.get("x-fwviz-first") == "1"
            file = shelf.receive(request.path_params["key"], kind, name, announced, first=first)
            try:
                async with asyncio.timeout(MAX_SECONDS):
                    async for piece in request.stream():
                        file.write(piece)
                upload = file.finish()
            finally:
                file.give_up()
        except FwvizError as error:
            return JSONResponse({"problem": wire.sentence(error)}, status_code=422)
        except (ClientDisconnect, TimeoutError):
            return JSONResponse({"problem": "The upload was cut off: try again."}, status_code=408)
        finally:
            under_way -= 1
        return JSONResponse({"file": upload.id, "name": upload.name, "size": upload.size})

    return [Route(f"/{prefix}/bring/{{key}}", take, methods=["POST"])]
