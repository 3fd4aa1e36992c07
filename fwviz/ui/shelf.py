"""What visitors bring: files, and the pools made of them, each known to one visitor's page and gone with it.

A page has a secret key from the moment it opens; a reload of the same tab brings it along. Everything lies in one
temporary folder per visitor. When the last page with a key has been closed for a while, its folder, its pools and the
records of its runs are deleted. A pool has a name nobody can guess, is found by that name and never listed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fwviz.pools.base import BaseModel
from fwviz.pools.check import PICKLES, Finding, examine
from fwviz.pools.classifiers import Reader, read_reader
from fwviz.pools.making import hold, sweep
from fwviz.pools.open import close_pools
from fwviz.pools.places import lend, take_back
from fwviz.types import FwvizError

Kind = Literal["task", "checkpoint", "base"]

PREFIX = "own-"
_FOLDER = "fwviz-own-"
MAX_BYTES: dict[Kind, int] = {"task": 32 << 20, "checkpoint": 1 << 30, "base": 1 << 30}
MAX_FILES = 16  # of a visitor
MAX_VISITOR = 2 << 30  # bytes
MAX_ALL = 8 << 30  # bytes of all visitors
MAX_POOLS = 24  # of a visitor, those that others were made of included
MAX_VISITORS = 2000
_LONGEST_NAME = 200  # bytes: file systems take 255
_ROOM = 256 << 20  # bytes of disk that stay free
_ENDINGS: dict[Kind, tuple[str, ...]] = {
    "task": (".zip", ".csv", ".tsv", ".txt"),
    "checkpoint": (".safetensors", ".zip", "adapter_config.json"),
    "base": (".safetensors", ".zip", ".json", ".txt", ".model"),
}
_COPY = re.compile(r" ?\(\d{1,3}\)(?=\.\w+$)")  # what browsers add to the name of a file they download again

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Upload:
    """A file that was received."""

    id: str
    kind: Kind
    name: str
    path: Path
    size: int


@dataclass
class OwnBase:
    """A base that a visitor gave, and the checkpoints of it that fit: a pool as soon as there is a task.

    ``card`` is what the page is told of it; ``place`` is the base's folder, ``folder`` holds it and the checkpoints.
    """

    folder: Path
    place: Path
    model: BaseModel
    card: dict[str, Any]
    checkpoints: tuple[tuple[str, Path], ...] = ()

    @property
    def title(self) -> str:
        return str(self.card["title"])

    def examine(self, checkpoint: Path) -> tuple[Finding, ...]:
        """What is found in a checkpoint of it. One that has a classifier may have a whole model's names."""
        classifies = read_reader("", checkpoint, self.place) is not None
        prefixes = self.model.prefixes(classifiers=classifies)
        return examine(checkpoint, self.place, self.model.include, self.model.exclude, prefixes=prefixes)

    def readers(self) -> tuple[Reader, ...]:
        """The classifiers the checkpoints bring along."""
        found = (read_reader(name, place, self.place) for name, place in self.checkpoints)
        return tuple(reader for reader in found if reader is not None)


@dataclass(frozen=True)
class Made:
    """The task that was made last: its file, and what it was added to, a pool or a base of the visitor's own."""

    file: str
    parent: str | OwnBase


@dataclass
class Visitor:
    """One page and what it brought. ``pools`` can be chosen; ``lent`` are also those they were made of."""

    key: str
    pages: set[str] = field(default_factory=set)
    folder: Path | None = None
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)  # while there is a folder
    uploads: dict[str, Upload] = field(default_factory=dict)
    pools: tuple[str, ...] = ()
    lent: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    task: Made | None = None
    base: OwnBase | None = None  # one that is no pool yet
    receiving: int = 0
    left: float | None = None
    seen: float = field(default_factory=time.monotonic)

    @property
    def size(self) -> int:
        """Bytes of disk its folder takes; a file with several names counts once."""
        return held(self.folder) if self.folder is not None else 0


class Shelf:
    """All visitors. ``patience`` is the seconds after which what a closed page brought is deleted.

    ``gone`` is told the names of pools that are about to go, and the runs made with them.
    """

    def __init__(
        self,
        root: Path | None = None,
        *,
        patience: float = 60.0,
        gone: Callable[[Sequence[str], Sequence[str]], None] = lambda pools, runs: None,
    ) -> None:
        self._root = root
        self._patience = patience
        self._gone = gone
        self._visitors: OrderedDict[str, Visitor] = OrderedDict()
        self._lock = threading.RLock()
        self._sweeper: threading.Thread | None = None

    # --- pages ------------------------------------------------------------------------------------

    def enter(self, page: str, key: str = "") -> str:
        """A page opens, with the key it had before, if it had one; the key it has from now on."""
        with self._lock:
            visitor = self._visitors.get(key)
            if visitor is None:
                visitor = Visitor(secrets.token_urlsafe(18))
                self._visitors[visitor.key] = visitor
            visitor.pages.add(page)
            visitor.left, visitor.seen = None, time.monotonic()
            self._visitors.move_to_end(visitor.key)
            spare = [v for v in self._visitors.values() if not v.lent and not v.uploads and v is not visitor]
            for old in spare[: max(0, len(self._visitors) - MAX_VISITORS)]:
                del self._visitors[old.key]
            return visitor.key

    def leave(self, page: str) -> None:
        """A page is closed, or reloaded: then the next one enters with its key."""
        with self._lock:
            for visitor in list(self._visitors.values()):
                if page in visitor.pages:
                    visitor.pages.discard(page)
                    if not visitor.pages:
                        visitor.left = time.monotonic()
            self._watch()

    def pools(self, key: str) -> tuple[str, ...]:
        """Names of the pools a visitor may choose, the last made first."""
        with self._lock:
            visitor = self._visitors.get(key)
            return visitor.pools if visitor else ()

    def may_see(self, key: str, pool: str) -> bool:
        """Whether a pool is nobody's own, or this visitor's."""
        with self._lock:
            visitor = self._visitors.get(key)
            return not pool.startswith(PREFIX) or (visitor is not None and pool in visitor.lent)

    def ran(self, key: str, run: str) -> None:
        """A run was begun with a pool of the visitor's own: its record goes with the pool."""
        with self._lock:
            visitor = self._visitor(key)
            visitor.runs = (*visitor.runs, run)

    # --- files ------------------------------------------------------------------------------------

    def receive(self, key: str, kind: str, name: str, announced: int, *, first: bool = False) -> Receiving:
        """Begin to take a file. FwvizError if it is of no use here or there is no room for it.

        With the ``first`` of several, those of the same kind go that came before and were never made anything of.
        """
        with self._lock:
            visitor = self._visitor(key)
            chosen: Kind = "base" if kind == "base" else "checkpoint" if kind == "checkpoint" else "task"
            if first:
                kept = visitor.task.file if visitor.task is not None else ""
                self.drop(key, [u for u in visitor.uploads.values() if u.kind == chosen and u.id != kept])
            if re.search(r"[/\\]", name) or not name.isprintable() or name.startswith("."):
                raise FwvizError(f"{name[-80:]!a} is a name that could lead elsewhere: call the file otherwise.")
            plain = re.sub(r"[^\w.+ ()-]", "_", name)[-80:].lstrip(".")
            plain = plain if chosen == "task" else _COPY.sub("", plain)
            plain = plain.encode()[-_LONGEST_NAME:].decode(errors="ignore")
            if not plain.lower().endswith(_ENDINGS[chosen]):
                raise FwvizError(_wrong_ending(plain, chosen))
            if len(visitor.uploads) + visitor.receiving >= MAX_FILES:
                raise FwvizError(f"you have brought {MAX_FILES} files, which is all there is room for: remove some.")
            folder = self._folder(visitor)
            room = min(MAX_BYTES[chosen], self._room(visitor))
            if announced > MAX_BYTES[chosen]:
                raise _too_large(plain, MAX_BYTES[chosen])
            if announced > room:
                raise FwvizError(f"there is no room for {plain} on the server: try a smaller one, or later.")
            token = secrets.token_hex(8)
            try:
                (folder / "files" / token).mkdir(parents=True)
                receiving = Receiving(self, key, chosen, plain, folder / "files" / token / plain, room, token)
            except OSError:
                raise FwvizError(f"there is no room for {plain} on the server: try later.") from None
            visitor.receiving += 1
            self._watch()
            return receiving

    def upload(self, key: str, file: object, kind: Kind) -> Upload:
        """A file that was received from this visitor."""
        with self._lock:
            found = self._visitor(key).uploads.get(file) if isinstance(file, str) else None
        if found is None or found.kind != kind:
            raise FwvizError("that file is no longer there: choose it again.")
        return found

    def drop(self, key: str, uploads: Sequence[Upload]) -> None:
        """Delete files of which everything needed has been made."""
        with self._lock:
            visitor = self._visitor(key)
            for upload in uploads:
                visitor.uploads.pop(upload.id, None)
                shutil.rmtree(upload.path.parent, ignore_errors=True)

    def received(self, receiving: Receiving, upload: Upload | None) -> None:
        """Told by a file when it is whole, or given up."""
        with self._lock:
            visitor = self._visitors.get(receiving.key)
            if visitor is not None:
                visitor.receiving -= 1
                if upload is not None:
                    visitor.uploads[upload.id] = upload
        if visitor is None or upload is None:
            shutil.rmtree(receiving.path.parent, ignore_errors=True)

    def scratch(self, key: str) -> tuple[Path, int]:
        """A new folder among a visitor's, and the bytes there is room for in it."""
        with self._lock:
            visitor = self._visitor(key)
            folder = self._folder(visitor) / f"work-{secrets.token_hex(6)}"
            folder.mkdir()
            self._watch()
            return folder, max(0, self._room(visitor))

    # --- bases ------------------------------------------------------------------------------------

    def base(self, key: str) -> dict[str, Any] | None:
        """What the page is told of the base of its own that waits for checkpoints or a task; None if there is none."""
        with self._lock:
            visitor = self._visitors.get(key)
            return visitor.base.card if visitor is not None and visitor.base is not None else None

    def lay(self, key: str, base: OwnBase | None) -> None:
        """From now on this is the visitor's base; the one before is deleted unless a pool was made of it."""
        with self._lock:
            visitor = self._visitor(key)
            before, visitor.base = visitor.base, base
        if before is not None and (visitor.task is None or visitor.task.parent is not before):
            shutil.rmtree(before.folder, ignore_errors=True)

    # --- pools ------------------------------------------------------------------------------------

    def place(self, key: str) -> Path:
        """A folder for a new pool of a visitor, named so that nobody can guess it."""
        with self._lock:
            visitor = self._visitor(key)
            if len(visitor.lent) >= MAX_POOLS:
                raise FwvizError(f"you have made {MAX_POOLS} pools, which is all there is room for: reload the page.")
            return self._folder(visitor) / f"{PREFIX}{secrets.token_hex(12)}"

    def add(self, key: str, root: Path, replaces: str = "") -> str:
        """A pool was made; the one it was made of is no longer offered. Returns its name."""
        with self._lock:
            visitor = self._visitor(key)
            lend(root.name, root)
            visitor.lent = (root.name, *visitor.lent)
            visitor.pools = (root.name, *(name for name in visitor.pools if name != replaces))
            return root.name

    def visitor(self, key: str) -> Visitor:
        """The record of a visitor. FwvizError if there is none."""
        with self._lock:
            return self._visitor(key)

    # --- the end ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Delete everything, at the end of the process."""
        with self._lock:
            visitors, self._visitors = [*self._visitors.values()], OrderedDict()
        for visitor in visitors:
            self._delete(visitor)

    def sweep(self) -> None:
        """Delete what closed pages brought, once their time is over."""
        now = time.monotonic()
        with self._lock:
            over = [v for v in self._visitors.values() if v.left is not None and now - v.left >= self._patience]
            for visitor in over:
                del self._visitors[visitor.key]
        for visitor in over:
            self._delete(visitor)

    def _delete(self, visitor: Visitor) -> None:
        if not visitor.folder:
            return
        try:
            self._gone(visitor.lent, visitor.runs)
        except Exception:
            _log.exception("the runs of a visitor's own pool could not be ended")
        for name in visitor.lent:
            take_back(name)
        close_pools(visitor.folder)
        shutil.rmtree(visitor.folder, ignore_errors=True)
        visitor.held.close()

    def _watch(self) -> None:
        """Have a sweeper while there is something to delete. The lock is held."""
        if self._sweeper is None and any(v.folder for v in self._visitors.values()):
            self._sweeper = threading.Thread(target=self._run, name="fwviz-shelf", daemon=True)
            self._sweeper.start()

    def _run(self) -> None:
        while True:
            time.sleep(min(5.0, max(self._patience / 4, 0.05)))
            self.sweep()
            with self._lock:
                if not any(v.folder for v in self._visitors.values()):
                    self._sweeper = None
                    return

    def _visitor(self, key: str) -> Visitor:
        visitor = self._visitors.get(key)
        if visitor is None:
            raise FwvizError("this page has been away for too long: reload it.")
        visitor.seen = time.monotonic()
        return visitor

    def _room(self, visitor: Visitor) -> int:
        """Bytes a visitor may still bring. The lock is held."""
        total = sum(v.size for v in self._visitors.values())
        free = shutil.disk_usage(self._folder(visitor)).free - _ROOM
        return min(MAX_VISITOR - visitor.size, MAX_ALL - total, free)

    def _folder(self, visitor: Visitor) -> Path:
        if visitor.folder is None:
            if self._root is not None:
                self._root.mkdir(parents=True, exist_ok=True)
            around = Path(tempfile.gettempdir()) if self._root is None else self._root
            sweep(around.glob(f"{_FOLDER}*"))  # of servers that were killed
            visitor.folder = Path(tempfile.mkdtemp(prefix=_FOLDER, dir=around))
            visitor.held = hold(visitor.folder)
        return visitor.folder


class Receiving:
    """A file on its way: written piece by piece, never longer than there is room for."""

    def __init__(self, shelf: Shelf, key: str, kind: Kind, name: str, path: Path, room: int, token: str) -> None:
        self.key, self.kind, self.name, self.path = key, kind, name, path
        self._shelf, self._room, self._token = shelf, room, token
        self._file = path.open("wb")
        self._size = 0
        self._over = False

    def write(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > MAX_BYTES[self.kind]:
            raise _too_large(self.name, MAX_BYTES[self.kind])
        if self._size > self._room:
            raise FwvizError(f"there is no room for {self.name} on the server: try a smaller one, or later.")
        try:
            self._file.write(piece)
        except OSError:
            raise FwvizError(f"there is no room for {self.name} on the server: try later.") from None

    def finish(self) -> Upload:
        """The file is whole."""
        self._file.close()
        upload = Upload(self._token, self.kind, self.name, self.path, self._size)
        self._over = True
        self._shelf.received(self, upload)
        return upload

    def give_up(self) -> None:
        """Delete what there is of a file that did not come to its end; nothing after :meth:`finish`."""
        if not self._over:
            self._over = True
            self._file.close()
            self._shelf.received(self, None)


def _too_large(name: str, most: int) -> FwvizError:
    return FwvizError(f"{name} is too large: a file of this kind may have {most >> 20} MiB.")


def held(folder: Path) -> int:
    """Bytes of the files in a folder and below; a file with several names counts once."""
    sizes: dict[tuple[int, int], int] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # it may be deleted meanwhile
                found = os.lstat(os.path.join(place, name))
                sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())


def _wrong_ending(name: str, kind: Kind) -> str:
    if kind == "task":
        return f"{name or 'the file'} is of no use here: choose a .zip of class folders or a .csv of texts and labels."
    if name.lower().endswith(PICKLES):
        way = "load it with PEFT and save_pretrained it" if name.startswith("adapter") else "save the model"
        again = "again, which writes safetensors" if name.startswith("adapter") else "as safetensors first"
        return f"{name} is a pickle, which can run code when it is read: {way} {again}."
    if kind == "base":
        return f"{name or 'the file'} is no part of a base: choose model.safetensors and the .json files beside it."
    return (
        f"{name or 'the file'} is no checkpoint that can be read here: choose .safetensors files, an adapter's "
        f"adapter_config.json with adapter_model.safetensors, or a .zip of such folders."
    )
