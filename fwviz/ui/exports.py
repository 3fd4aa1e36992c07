"""Downloads of a run: plain links, so that a browser names and keeps the file and nothing stays behind here."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
import threading
import zipfile
from pathlib import Path

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from fwviz.pools.open import pool_card
from fwviz.runs.extension import Kept
from fwviz.runs.origin import recipe_text
from fwviz.runs.recipe import Recipe
from fwviz.runs.trace import Trace
from fwviz.types import FwvizError
from fwviz.ui import wire
from fwviz.ui.library import Library
from fwviz.ui.state import parse_index, parse_view

# Weights are rebuilt from the pool: two at a time bound the memory and the disk they take.
_rebuilding = threading.BoundedSemaphore(2)


def routes(prefix: str, library: Library) -> list[BaseRoute]:
    """The routes over the runs and recordings of a library."""

    def serve(request: Request) -> Response:
        try:
            view = parse_view(request.path_params["view"])
            what = request.path_params["what"]
            if what == "recipe":
                text = _recipe(library.find(view).recipe)
                return _file(text.encode(), f"{view.id}.yaml", "application/yaml")
            if what == "table":
                return _file(library.find(view).table().to_csv(index=False).encode(), f"{view.id}.csv", "text/csv")
            if what == "trace":
                return _file(_zipped(library.folder(view)), f"{view.id}.zip", "application/zip")
            if what == "weights":
                trace = library.find(view)
                index = parse_index(request.query_params.get("index", "0"), len(trace.frames))
                return _weights(trace, index, library.kept(view))
            return PlainTextResponse("There is no such download.", status_code=404)
        except FwvizError as error:
            return PlainTextResponse(wire.sentence(error), status_code=404)

    return [Route(f"/{prefix}/export/{{view}}/{{what}}", serve)]


def _file(content: bytes, name: str, media_type: str) -> Response:
    return Response(content, media_type=media_type, headers={"Content-Disposition": f'attachment; filename="{name}"'})


def _recipe(recipe: Recipe) -> str:
    card = None
    with contextlib.suppress(FwvizError):  # the pool may be gone: then nothing more is known of it
        card = pool_card(recipe.pool)
    return recipe_text(recipe, card)


def _zipped(folder: Path) -> bytes:
    """The record of a run, as it is but for what its sentences say of places on this machine."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            name = f"{folder.name}/{path.name}"
            if not path.is_file() or path.is_symlink():
                continue
            if path.suffix == ".jsonl":
                lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
                archive.writestr(name, "".join(line if "/" not in line else _scrubbed(line) for line in lines))
            elif path.suffix == ".json":
                archive.writestr(name, _scrubbed(path.read_text(encoding="utf-8"), indent=1))
            else:
                archive.write(path, name)
    return memory.getvalue()


def _scrubbed(text: str, indent: int | None = None) -> str:
    try:
        plain = json.loads(text)
    except ValueError:  # cut off in the middle: nothing that can be read is lost
        return wire.placeless(text)
    separators, end = ((",", ":"), "\n") if indent is None else (None, "")
    return json.dumps(wire.placeless(plain), indent=indent, separators=separators) + end


def _weights(trace: Trace, index: int, kept: Kept | None) -> Response:
    """The merged model of one frame as a zip, written to a folder that is removed once it is sent."""
    from fwviz.runs.export import export_weights

    if not _rebuilding.acquire(timeout=60):
        raise FwvizError("other downloads of weights are being made: try again in a minute.")
    folder = Path(tempfile.mkdtemp(prefix="fwviz-export-"))
    try:
        name = f"{trace.id or 'merge'}-t{trace.frame(index).t}"
        model = export_weights(trace, index, folder / name, kept=kept)
        packed = folder / f"{name}.zip"
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:  # weights do not shrink
            for path in sorted(model.rglob("*")):
                archive.write(path, path.relative_to(folder))
        shutil.rmtree(model)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        _rebuilding.release()
    cleanup = BackgroundTask(shutil.rmtree, folder, ignore_errors=True)
    return FileResponse(packed, filename=packed.name, media_type="application/zip", background=cleanup)
