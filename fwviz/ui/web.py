"""What the page loads beside gradio's own files: our scripts and style, plotly.js, and downloads of a run."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import astuple
from functools import lru_cache
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

ASSETS = Path(__file__).parents[2] / "assets" / "web"
PREFIX = "fwviz"
SCRIPTS = ("page.js", "controls.js", "chart.js", "own.js", "form.js", "deck.js", "history.js", "editor.js")
_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}


def plotly_path() -> Path:
    """plotly.js as it ships inside the installed plotly package."""
    from importlib.util import find_spec

    found = find_spec("plotly")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "package_data" / "plotly.min.js"


@lru_cache(maxsize=32)
def _packed(path: Path, modified: float) -> tuple[bytes, bytes]:
    content = path.read_bytes()
    return content, gzip.compress(content, 5)


@lru_cache(maxsize=32)
def _stamp(path: Path) -> str:
    """Ten hex digits that change with the file, so that browsers may keep what they have."""
    return hashlib.sha256(f"{path.stat().st_size}-{path.stat().st_mtime_ns}".encode()).hexdigest()[:10]


def address(name: str) -> str:
    """Address of one of our files, relative to the page."""
    path = plotly_path() if name == "plotly.min.js" else ASSETS / name
    return f"{PREFIX}/{name}?v={_stamp(path)}"


def _serve(request: Request) -> Response:
    """One of a fixed list of files, packed once per version of the file."""
    name = request.path_params["name"]
    known = {path.name: path for path in ASSETS.iterdir() if path.suffix in _TYPES}
    known["plotly.min.js"] = plotly_path()
    path = known.get(name)
    if path is None:
        return PlainTextResponse("no such file", status_code=404)
    content, packed = _packed(path, path.stat().st_mtime)
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "Vary": "Accept-Encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        content, headers = packed, headers | {"Content-Encoding": "gzip"}
    return Response(content, media_type=_TYPES[path.suffix], headers=headers)


def template(file: str, /, **fields: str) -> str:
    """A file of HTML with ``@field`` replaced; the values must be escaped already."""
    text = (ASSETS / file).read_text(encoding="utf-8")
    for field, value in fields.items():
        text = text.replace(f"@{field}", value)
    return text


def routes() -> list[BaseRoute]:
    """Routes given to the app that gradio makes."""
    return [Route(f"/{PREFIX}/{{name}}", _serve)]


def head() -> str:
    """Tags of the page's head: colours for the browser's own chrome, our style and where plotly.js lies."""
    return "\n".join(
        (
            '<meta name="color-scheme" content="light dark">',
            f'<meta name="fw-plotly" content="{address("plotly.min.js")}">',
            f"<meta name=\"fw-palette\" content='{json.dumps(_dark_of_light())}'>",
            f'<link rel="stylesheet" href="{address("style.css")}">',
        )
    )


def _dark_of_light() -> dict[str, str]:
    """Every colour of the charts' light palette → its dark counterpart, as #rrggbb and as the start of rgba()."""
    from fwviz.charts._style import PALETTES

    def flat(value: Any) -> list[str]:
        if isinstance(value, str):
            return [value]
        return [colour for item in value for colour in flat(item)] if isinstance(value, tuple) else []

    def start(colour: str) -> str:
        return f"rgba({','.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))},"

    light, dark = (flat(astuple(PALETTES[name])) for name in ("light", "dark"))
    pairs = dict(zip(light, dark, strict=True))
    return pairs | {start(a): start(b) for a, b in pairs.items()}


def scripts() -> str:
    """Script tags a component of ours needs before it is mounted; the browser loads each once."""
    return "".join(f'<script src="{address(name)}"></script>' for name in SCRIPTS)
