"""A Hub on this machine: the few endpoints huggingface_hub calls, with the ways the real one says no."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories by "models/<id>" or "datasets/<id>" → folder, and what goes wrong.

    ``status`` answers every question about a repository with that code; ``cut`` ends the first ``cut[name]`` downloads
    of a file of that name in the middle. ``asked`` records (method, path, range) of every request, ``tokens`` every
    token that was sent along.
    """

    repositories: dict[str, Path] = field(default_factory=dict)
    licences: dict[str, str] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    cut: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    url: str = ""

    def downloads(self, name: str) -> list[str]:
        """The ranges asked of a file."""
        return [span for method, path, span in self.asked if method == "GET" and path.endswith(f"/{name}")]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.tokens += [token] if (token := self.headers.get("Authorization", "")) else []
            hub.asked.append((self.command, path, self.headers.get("Range", "")))
            api = re.fullmatch(r"/api/(models|datasets)/(.+?)(?:/(revision|tree)/[^/]+)?/?", path)
            file = re.fullmatch(r"/(datasets/)?([^/]+(?:/[^/]+)?)/resolve/[^/]+/(.+)", path)
            if api:
                key = f"{api[1]}/{api[2]}"
            elif file:
                key = f"{'datasets' if file[1] else 'models'}/{file[2]}"
            else:
                return self._send(404, {"X-Error-Code": "EntryNotFound"})
            if key in hub.status:
                return self._send(hub.status[key], {"Retry-After": "0"})
            if key not in hub.repositories:
                return self._send(401, {"X-Error-Code": "RepoNotFound"})
            if key in hub.gated and file:
                return self._send(403, {"X-Error-Code": "GatedRepo"})
            folder = hub.repositories[key]
            if api:
                return self._json(_tree(folder) if api[3] == "tree" else _info(hub, key, api[2], folder))
            assert file is not None
            target = folder / file[3]
            if not target.is_file():
                return self._send(404, {"X-Error-Code": "EntryNotFound"})
            self._content(target)

        def _json(self, value: Any) -> None:
            self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

        def _content(self, target: Path) -> None:
            content = target.read_bytes()
            headers = {
                "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Repo-Commit": COMMIT,
                "Accept-Ranges": "bytes",
            }
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            status, start = 200, 0
            if span and self.command == "GET":
                status, start = 206, int(span[1])
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            body = content[start:]
            if self.command == "GET" and hub.cut.get(target.name, 0) > 0:
                hub.cut[target.name] -= 1
                self._send(status, headers, body, keep=len(body) // 2)
                self.close_connection = True
                self.connection.shutdown(2)
                return
            self._send(status, headers, body)

        def _send(self, status: int, headers: dict[str, str], body: bytes = b"", keep: int | None = None) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body if keep is None else body[:keep])
                self.wfile.flush()

    return Handler


def _info(hub: Hub, key: str, repo: str, folder: Path) -> dict[str, Any]:
    siblings = [
        {"rfilename": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "blobId": "0" * 40}
        for path in _files(folder)
    ]
    card = {"license": hub.licences[key]} if key in hub.licences else {}
    return {
        "id": repo, "_id": "1", "sha": COMMIT, "private": False, "disabled": False, "tags": [], "downloads": 0,
        "likes": 0,
        "gated": "manual" if key in hub.gated else False, "siblings": siblings, "cardData": card,
        "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z",
    }  # fmt: skip


def _tree(folder: Path) -> list[dict[str, Any]]:
    return [
        {"type": "file", "oid": "0" * 40, "size": path.stat().st_size, "path": path.relative_to(folder).as_posix()}
        for path in _files(folder)
    ]


@contextmanager
def serving() -> Iterator[Hub]:
    """A running Hub."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
