"""Every trace a page can look at: runs under way, runs of the store, and the recordings that ship with fwviz."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from pathlib import Path

from fwviz.pools.open import first_pool
from fwviz.runs.extension import Kept
from fwviz.runs.store import RunStore, RunSummary
from fwviz.runs.trace import Trace
from fwviz.types import FwvizError
from fwviz.ui.jobs import JobBoard
from fwviz.ui.state import View

TRACES = Path(__file__).parents[2] / "assets" / "traces"
KEPT = 24
FIRST_METHOD = "fw_soft"


def recordings_root() -> Path:
    """``FWVIZ_TRACES`` or the recordings that ship beside the package."""
    return Path(os.environ.get("FWVIZ_TRACES") or TRACES)


class Library:
    """Traces by view. Finished ones are kept in memory, the last used first."""

    def __init__(self, board: JobBoard, recordings: RunStore) -> None:
        self.board = board
        self.recordings = recordings
        self._kept: OrderedDict[View, Trace] = OrderedDict()
        self._lock = threading.Lock()
        self._chosen: tuple[tuple[str, ...], dict[str, View]] = ((), {})

    def find(self, view: View) -> Trace:
        """The trace as it stands now. Raises FwvizError if there is none."""
        if view.kind == "run":
            job = self.board.get(view.id)
            if job is not None and (job.final is None or job.frames):
                return job.trace()
        with self._lock:
            if view in self._kept:
                self._kept.move_to_end(view)
                return self._kept[view]
        trace = self._store(view).load(view.id)
        if trace.finished:
            with self._lock:
                self._kept[view] = trace
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        return trace

    def folder(self, view: View) -> Path:
        """The record of a finished run on disk."""
        if not self.find(view).finished:
            raise FwvizError("the run is still under way: its record can be downloaded when it has ended.")
        return self._store(view).root / view.id

    def kept(self, view: View) -> Kept | None:
        """The parts of the last iterate of a finished run, None if it is under way or all of one part."""
        return self._store(view).kept(view.id) if self.find(view).finished else None

    def forget(self, view: View) -> None:
        """Delete a run of the store."""
        job = self.board.get(view.id)
        if job is not None and not job.ended:
            raise FwvizError("the run is under way: stop it before deleting it.")
        with self._lock:
            self._kept.pop(view, None)
        self.board.store.delete(view.id)

    def recorded(self) -> tuple[View, ...]:
        """The recordings, newest first."""
        return tuple(View("rec", run_id) for run_id in self.recordings.ids())

    def first(self, pool: str | None = None) -> View | None:
        """What is shown of a pool before anything was run: the widest choice given to the method that forms begin with.

        None if nothing of it was recorded. Without a pool: of the one a page begins with, else of any.
        """
        ids = self.recordings.ids()
        if ids != self._chosen[0]:
            self._chosen = (ids, self._widest())
        firsts = self._chosen[1]
        if pool is not None:
            return firsts.get(pool)
        with contextlib.suppress(FwvizError):  # no pool at all
            if (begin := first_pool()) in firsts:
                return firsts[begin]
        return next(iter(firsts.values()), None)

    def _widest(self) -> dict[str, View]:
        """Pool → the recording it is shown by; the widest first, of equals the newest."""
        firsts: dict[str, RunSummary] = {}
        for found in sorted(self.recordings.list(), key=_width, reverse=True):
            firsts.setdefault(found.recipe.pool, found)
        return {pool: View("rec", summary.id) for pool, summary in firsts.items()}

    def _store(self, view: View) -> RunStore:
        return self.recordings if view.kind == "rec" else self.board.store


def _width(recorded: RunSummary) -> tuple[bool, int]:
    return recorded.recipe.method == FIRST_METHOD, len(recorded.recipe.checkpoints)
