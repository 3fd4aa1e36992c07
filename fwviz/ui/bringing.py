"""From what a visitor brings to a pool of their own: a task of labelled examples, or checkpoints."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fwviz.pools.hub import fetch, look
from fwviz.runs.own import OwnPool, Wish, own_pool
from fwviz.types import FwvizError
from fwviz.ui import state
from fwviz.ui.jobs import JobBoard
from fwviz.ui.shelf import PREFIX, Shelf, Upload

MAX_HUB_BYTES = 2 << 30
MAX_TOGETHER = 8  # checkpoints at a time
_HUB = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")

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

        {what: "task", pool, file, names, prompts} or {what: "checkpoints", pool, files, hub}. Yields how far it is, and
        at last what was made: ``pool`` and sentences. Raises FwvizError if it is wrong; closing it ends the work.
        """
        event = state.parse_event(data)
        if event.get("what") == "task":
            return self._task(key, pools, event)
        if event.get("what") == "checkpoints":
            return self._checkpoints(key, pools, event)
        raise FwvizError("the page sent something that cannot be brought: reload it.")

    def _task(self, key: str, pools: Sequence[str], event: Mapping[str, Any]) -> Generator[Told, None, None]:
        upload = self.shelf.upload(key, event.get("file"), "task")
        wish = Wish(names=_names(event.get("names")), prompts=_prompts(event.get("prompts")))
        visitor = self.shelf.visitor(key)
        again = visitor.task is not None and visitor.task[0] == upload.id
        # Other names for the classes of a task make it anew, from what it was added to.
        parent = state.parse_id(
            visitor.task[1] if again and visitor.task else event.get("pool"), (*pools, *visitor.lent), "pool"
        )
        shown = state.parse_id(event.get("pool"), (*pools, *visitor.lent), "pool")
        root = self.shelf.place(key)
        try:
            made = yield from self._work(
                lambda told: own_pool(parent, root, examples=upload.path, wish=wish, told=told)
            )
        except FwvizError:
            if not again:  # other words may be tried again with the same file
                self.shelf.drop(key, [upload])
            raise
        visitor.task = (upload.id, parent)
        assert made.task is not None
        name = self.shelf.add(key, root, shown if shown.startswith(PREFIX) else "")
        base, best = made.scores["base"]["test"], made.scores[made.best]["test"]
        yield {
            "pool": name,
            "task": made.task.title,
            "file": upload.id,
            "said": [
                f"{upload.name}: {made.said}",
                f"Right in the test: the base {100 * base.accuracy:.0f} %, the best checkpoint alone ({made.best}) "
                f"{100 * best.accuracy:.0f} %. The task is ticked below.",
            ],
            "classes": [list(pair) for pair in zip(made.labels, made.task.classes, strict=True)],
            "prompts": list(made.task.prompts),
        }

    def _checkpoints(self, key: str, pools: Sequence[str], event: Mapping[str, Any]) -> Generator[Told, None, None]:
        visitor = self.shelf.visitor(key)
        parent = state.parse_id(event.get("pool"), (*pools, *visitor.lent), "pool")
        files, ids = event.get("files") or [], _hub_ids(event.get("hub"))
        if not isinstance(files, list) or len(files) + len(ids) > MAX_TOGETHER:
            raise FwvizError(f"at most {MAX_TOGETHER} checkpoints can be brought at a time: take fewer.")
        uploads = [self.shelf.upload(key, file, "checkpoint") for file in files]
        if not uploads and not ids:
            raise FwvizError("there is no checkpoint: choose safetensors files, or write ids of the Hub.")
        root = self.shelf.place(key)
        try:
            made = yield from self._work(
                lambda told: own_pool(parent, root, checkpoints=_sources(uploads, ids), told=told)
            )
        finally:
            self.shelf.drop(key, uploads)  # the pool has its own links or copies
        name = self.shelf.add(key, root, parent if parent.startswith(PREFIX) else "")
        yield {"pool": name, "said": [one.sentence() for one in made.brought]}

    def _work(self, make: Callable[[Callable[[int, int], None]], OwnPool]) -> Generator[Told, None, OwnPool]:
        """Make a pool in a thread of its own, telling how far it is; returns the pool."""
        news: queue.Queue[tuple[str, Any]] = queue.Queue()
        ended = threading.Event()

        def check() -> None:
            if ended.is_set():
                raise _Ended

        def told(done: int, total: int) -> None:
            check()
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
                    pool: OwnPool = what
                    return pool
                if kind == "failed":
                    raise what
                while not news.empty() and news.queue[0][0] == "told":  # only the last counts
                    kind, what = news.get()
                yield {"done": what[0], "total": what[1]}
        finally:
            ended.set()


class _Ended(Exception):
    """Raised in the work when nobody waits for it any more."""


def _sources(uploads: Sequence[Upload], ids: Sequence[str]) -> list[tuple[str, Path]]:
    """Name and place of each checkpoint; those of the Hub are downloaded, as anybody could."""
    found = [(upload.name.rpartition(".")[0], upload.path) for upload in uploads]
    for hub in ids:
        report = look(hub, anonymous=True)
        if report.state == "refused":
            raise FwvizError(f"{hub} cannot be had: {report.note}")
        if (report.bytes or 0) > MAX_HUB_BYTES:
            raise FwvizError(
                f"{hub} has {(report.bytes or 0) >> 20} MiB, but a page may ask for {MAX_HUB_BYTES >> 20}: "
                f"use `fwviz own` on a machine of your own."
            )
        found.append((hub.rpartition("/")[2], fetch(hub, anonymous=True)))
    return found


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
        if not _HUB.fullmatch(text) or ".." in text or "--" in text:
            raise FwvizError(f"{text[:60]!r} is no id of a repository on the Hub: write owner/name.")
    return ids
