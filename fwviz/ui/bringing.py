"""From what a visitor brings to a pool of their own: a task of labelled examples, checkpoints, a base for them."""

from __future__ import annotations

import contextlib
import queue
import re
import shutil
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from fwviz.backbones.families import FAMILIES
from fwviz.backbones.folders import MODEL_FILES
from fwviz.pools.base import read_base
from fwviz.pools.check import Finding
from fwviz.pools.hub import check_id, fetch, require
from fwviz.pools.own import Brought, link_or_copy
from fwviz.runs.own import Base, Wish, check_base, own_pool
from fwviz.runs.unpack import sources, unpack_models
from fwviz.types import FwvizError
from fwviz.ui import state, wire
from fwviz.ui.jobs import JobBoard
from fwviz.ui.shelf import PREFIX, Made, OwnBase, Shelf, Upload

MAX_HUB_BYTES = 2 << 30
MAX_TOGETHER = 8  # checkpoints at a time
MAX_PARTS = 16  # files of a base

T = TypeVar("T")
# What the page is told: the state of the work, or what came of it.
Told = dict[str, Any]


class Bringing:
    """Makes pools, one at a time in the places that runs leave free."""

    def __init__(self, shelf: Shelf, board: JobBoard) -> None:
        self.shelf = shelf
        self.board = board
        self._one = threading.Semaphore(1)

    def bring(self, key: str, pools: Sequence[str], data: Any) -> Generator[Told, None, None]:
        """Do what an event asks for.

        {what: "task", pool, file, names, prompts}, {what: "checkpoints", pool, files, hub} or {what: "base", files,
        hub}; with ``base`` true the first two are for the base of the visitor's own, and {what: "base"} with ``drop``
        true puts it away. Yields how far it is, and at last what was made: ``pool`` or ``base``, sentences, and a
        ``report`` on each model. Raises FwvizError if it is wrong; closing it ends the work.
        """
        event = state.parse_event(data)
        deeds = {"task": self._task, "checkpoints": self._checkpoints, "base": self._base}
        what = event.get("what")
        if not isinstance(what, str) or what not in deeds:
            raise FwvizError("the page sent something that cannot be brought: reload it.")
        for told in deeds[what](key, pools, event):
            yield told | {name: wire.placeless(told[name]) for name in ("said", "report") if name in told}

    def _task(self, key: str, pools: Sequence[str], event: Mapping[str, Any]) -> Generator[Told, None, None]:
        upload = self.shelf.upload(key, event.get("file"), "task")
        wish = Wish(names=_names(event.get("names")), prompts=_prompts(event.get("prompts")))
        visitor = self.shelf.visitor(key)
        again = visitor.task is not None and visitor.task.file == upload.id
        # Other names for the classes of a task make it anew, from what it was added to.
        parent: str | OwnBase
        if again and visitor.task is not None:
            parent = visitor.task.parent
        elif event.get("base") is True:
            parent = self._own_base(key)
        else:
            parent = state.parse_id(event.get("pool"), (*pools, *visitor.lent), "pool")
        if isinstance(parent, OwnBase) and not parent.checkpoints:
            self.shelf.drop(key, [upload])
            raise FwvizError(f"there is nothing to merge yet: bring checkpoints of {parent.title} first.")
        shown = state.parse_id(event.get("pool"), (*pools, *visitor.lent), "pool")
        root = self.shelf.place(key)
        start: str | Base = parent if isinstance(parent, str) else Base(str(parent.place), parent.title)
        brought = () if isinstance(parent, str) else parent.checkpoints
        try:
            made = yield from self._work(
                lambda told: own_pool(start, root, examples=upload.path, wish=wish, checkpoints=brought, told=told)
            )
        except FwvizError:
            if not again:  # other words may be tried again with the same file
                self.shelf.drop(key, [upload])
            raise
        visitor.task = Made(upload.id, parent)
        if isinstance(parent, OwnBase) and visitor.base is parent:
            self.shelf.lay(key, None)
        assert made.task is not None
        name = self.shelf.add(key, root, shown if shown.startswith(PREFIX) else "")
        base, best = made.scores["base"]["test"], made.scores[made.best]["test"]
        yield {
            "pool": name,
            "base": self.shelf.base(key),
            "task": made.task.title,
            "file": upload.id,
            "said": [
                f"{upload.name}: {made.said}",
                f"Right in the test: the base {100 * base.accuracy:.0f} %, the best checkpoint alone ({made.best}) "
                f"{100 * best.accuracy:.0f} %. The task is ticked below.",
            ],
            "classes": [list(pair) for pair in zip(made.labels, made.task.classes, strict=False)],
            "prompts": list(made.task.prompts),
        }

    def _checkpoints(self, key: str, pools: Sequence[str], event: Mapping[str, Any]) -> Generator[Told, None, None]:
        visitor = self.shelf.visitor(key)
        base = self._own_base(key) if event.get("base") is True else None
        parent = "" if base else state.parse_id(event.get("pool"), (*pools, *visitor.lent), "pool")
        uploads, ids = self._given(key, event, "checkpoint", MAX_TOGETHER * 2)
        if not uploads and not ids:
            raise FwvizError("there is no checkpoint: choose safetensors files, or write ids of the Hub.")
        root = self.shelf.place(key)

        def gather(work: Path, room: int, alive: Callable[[], None]) -> list[tuple[str, Path]]:
            found = sources([(upload.name, upload.path) for upload in uploads], work, room, alive)
            found += [(hub.rpartition("/")[2], _downloaded(hub, work, room)) for hub in ids]
            if len(found) > MAX_TOGETHER:
                raise FwvizError(f"at most {MAX_TOGETHER} checkpoints can be brought at a time: take fewer.")
            return found

        def join(told: Callable[[int, int], None]) -> tuple[Brought, ...]:
            with self._cleared(key) as (work, room):
                found = gather(work, room, lambda: told(0, 0))
                return own_pool(parent, root, checkpoints=found, told=told).brought

        def hold(told: Callable[[int, int], None]) -> tuple[Brought, ...]:
            assert base is not None
            with self._cleared(key) as (work, room):
                return _held_against(base, gather(work, room, lambda: told(0, 0)), lambda: told(0, 0))

        try:
            brought = yield from self._work(join if base is None else hold)
        finally:
            self.shelf.drop(key, uploads)  # the pool has its own links or copies
        said = {"said": [one.sentence() for one in brought], "report": [_report(b.name, b.findings) for b in brought]}
        if base is not None:
            if not base.checkpoints:
                raise FwvizError(brought[0].sentence())
            base.card["checkpoints"] = [name for name, _ in base.checkpoints]
            base.card["answers"] = [f"{reader.checkpoint}: {reader.said}" for reader in base.readers()]
            yield {"base": base.card, **said}
        else:
            name = self.shelf.add(key, root, parent if parent.startswith(PREFIX) else "")
            yield {"pool": name, **said}

    def _base(self, key: str, pools: Sequence[str], event: Mapping[str, Any]) -> Generator[Told, None, None]:
        if event.get("drop") is True:
            self.shelf.lay(key, None)
            yield {"base": None, "said": []}
            return
        uploads, ids = self._given(key, event, "base", MAX_PARTS)
        if len(ids) > 1 or bool(ids) == bool(uploads):
            raise FwvizError("a base is one model: choose the files of one, or write one id of the Hub.")

        def lay(told: Callable[[int, int], None]) -> tuple[OwnBase, tuple[Finding, ...]]:
            folder, room = self.shelf.scratch(key)
            try:
                made = _lay(folder, uploads, ids, room, lambda: told(0, 0))
                told(0, 0)  # nobody waits for it any more: then it is of no use
                return made
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise

        try:
            base, findings = yield from self._work(lay)
        finally:
            self.shelf.drop(key, uploads)
        self.shelf.lay(key, base)
        yield {
            "base": base.card,
            "said": [f"{base.title}: {base.card['about']}"],
            "report": [_report(base.title, findings)],
        }

    @contextlib.contextmanager
    def _cleared(self, key: str) -> Iterator[tuple[Path, int]]:
        """A folder to work in, gone afterwards, and the bytes there is room for."""
        work, room = self.shelf.scratch(key)
        try:
            yield work, room
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _own_base(self, key: str) -> OwnBase:
        base = self.shelf.visitor(key).base
        if base is None:
            raise FwvizError("your base is no longer there: bring it again.")
        return base

    def _given(self, key: str, event: Mapping[str, Any], kind: Any, most: int) -> tuple[list[Upload], list[str]]:
        """The files and ids of the Hub that an event names."""
        files, ids = event.get("files") or [], _hub_ids(event.get("hub"))
        if not isinstance(files, list) or len(files) + len(ids) > most:
            raise FwvizError(f"at most {most} files can be brought at a time: take fewer.")
        return [self.shelf.upload(key, file, kind) for file in files], ids

    def _work(self, make: Callable[[Callable[[int, int], None]], T]) -> Generator[Told, None, T]:
        """Do something in a thread of its own, telling how far it is; returns what came of it."""
        news: queue.Queue[tuple[str, Any]] = queue.Queue()
        ended = threading.Event()

        def check() -> None:
            if ended.is_set():
                raise _Ended

        def told(done: int, total: int) -> None:
            check()
            if total:
                news.put(("told", (done, total)))

        def work() -> None:
            try:
                with self.board.place(check), self._one:
                    news.put(("made", make(told)))
            except _Ended:
                pass
            except BaseException as error:  # of a thread: handed to the one that waits
                news.put(("failed", error))

        threading.Thread(target=work, name="fwviz-own", daemon=True).start()
        try:
            yield {"done": 0, "total": 0}
            while True:
                kind, what = news.get()
                if kind == "made":
                    found: T = what
                    return found
                if kind == "failed":
                    raise what
                while not news.empty() and news.queue[0][0] == "told":  # only the last counts
                    kind, what = news.get()
                yield {"done": what[0], "total": what[1]}
        finally:
            ended.set()


class _Ended(Exception):
    """Raised in the work when nobody waits for it any more."""


def _downloaded(hub: str, work: Path, room: int) -> Path:
    """The folder of a repository of the Hub, downloaded into ``work`` as anybody could, unless this machine has it."""
    report = require(hub, anonymous=True)
    size = report.bytes or 0
    if size > MAX_HUB_BYTES:
        raise FwvizError(
            f"{hub} has {size >> 20} MiB, but a page may ask for {MAX_HUB_BYTES >> 20}: use `fwviz own` on a machine "
            f"of your own."
        )
    if report.state == "here":
        return fetch(hub, anonymous=True)
    if size > room:
        raise FwvizError(f"there is no room for {hub} on the server: try a smaller one, or later.")
    return fetch(hub, anonymous=True, cache=work / "hub")


def _lay(
    folder: Path, uploads: Sequence[Upload], ids: Sequence[str], room: int, alive: Callable[[], None]
) -> tuple[OwnBase, tuple[Finding, ...]]:
    """A base from files, a zip or the Hub in ``folder``, and what was found in it; FwvizError if it can be none."""
    place, title = folder / "base", ids[0] if ids else "your base"
    place.mkdir()
    if ids:
        files = {file.name: file for file in _downloaded(ids[0], folder / "unpacked", room).iterdir()}
    elif len(uploads) == 1 and uploads[0].name.lower().endswith(".zip"):
        inside = unpack_models(uploads[0].path, folder / "unpacked", room, alive)
        if len(inside) > 1:
            raise FwvizError(f"{uploads[0].name} holds {len(inside)} models: a base is one, with nothing beside it.")
        title, only = inside[0]
        files = {file.name: file for file in only.iterdir()}
    else:
        files = _parts(uploads)
    for name, file in files.items():
        if any(fnmatch(name, pattern) for pattern in MODEL_FILES):
            link_or_copy(file, place / name)
    shutil.rmtree(folder / "unpacked", ignore_errors=True)
    alive()
    findings = check_base(Base(str(place), title))
    model = read_base(str(place))
    about = next(finding.text for finding in findings if finding.kind == "base")
    family = FAMILIES[model.family]
    card = {"title": title, "about": about, "inputs": family.inputs, "heads": family.heads, "checkpoints": [],
            "answers": []}  # fmt: skip
    return OwnBase(folder, place, model, card), findings


def _parts(uploads: Sequence[Upload]) -> dict[str, Path]:
    """The files of a base by their names in its folder; one file of weights may be called otherwise."""
    files: dict[str, Path] = {}
    for upload in uploads:
        name = "model.safetensors" if upload.name.lower().endswith(".safetensors") else upload.name
        if name in files:
            raise FwvizError(f"{upload.name} is one {name} too many: a base is one model, its weights in one file.")
        if not any(fnmatch(name, pattern) for pattern in MODEL_FILES):
            raise FwvizError(
                f"{upload.name} is no part of a base: choose model.safetensors, config.json, tokenizer.json and, for "
                f"pictures, preprocessor_config.json."
            )
        files[name] = upload.path
    return files


def _held_against(base: OwnBase, found: Sequence[tuple[str, Path]], alive: Callable[[], None]) -> tuple[Brought, ...]:
    """Compare checkpoints with a base of the visitor's own, and keep those that fit beside it."""
    brought = []
    for name, source in found:
        alive()
        findings = base.examine(source)
        brought.append(Brought(name, findings, None))
        if findings and findings[0].severity == "error":
            continue
        folder = base.folder / f"{len(base.checkpoints)}"
        folder.mkdir()
        if source.is_dir():
            for file in source.iterdir():
                link_or_copy(file, folder / file.name)
        else:
            link_or_copy(source, folder / "alone.safetensors")
        place = folder if source.is_dir() else folder / "alone.safetensors"
        base.checkpoints = (*base.checkpoints, (name, place))
    return tuple(brought)


def _report(name: str, findings: Iterable[Finding]) -> Told:
    """Everything that was found in a model, as the page shows it."""
    return {"name": name, "findings": [asdict(finding) for finding in findings]}


def _names(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or len(value) > 100:
        raise FwvizError("the page sent no names of classes: reload it.")
    pairs = {str(folder): name for folder, name in value.items()}
    if not all(isinstance(name, str) for name in pairs.values()):
        raise FwvizError("the page sent no names of classes: reload it.")
    return {folder: str(name) for folder, name in pairs.items()}


def _prompts(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > 32 or not all(isinstance(item, str) for item in value):
        raise FwvizError("the page sent no prompts: reload it.")
    return tuple(value)


def _hub_ids(value: Any) -> list[str]:
    if value is None or value == "":
        return []
    if not isinstance(value, str) or len(value) > 2000:
        raise FwvizError("the page sent no ids of the Hub: reload it.")
    ids = list(dict.fromkeys(re.split(r"[\s,;]+", value.strip())))
    for text in ids:
        check_id(text)
        if "/" not in text:
            raise FwvizError(f"{text[:60]!r} is no id of a repository on the Hub: write owner/name.")
    return ids
