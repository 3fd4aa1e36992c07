"""Measurements that take long: in the background, growing as they are looked at, ended when nobody looks.

A measurement holds one of the places that runs hold (:mod:`fwviz.ui.jobs`), so that two pages get the machine in turn.
Pages that ask the same question share one measurement, and a finished one answers all who ask later.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fwviz.runs.runner import Control
from fwviz.types import FwvizError
from fwviz.ui import wire
from fwviz.ui.jobs import JobBoard

if TYPE_CHECKING:
    import pandas as pd

State = Literal["waiting", "running", "done", "stopped", "failed"]
ENDED: frozenset[State] = frozenset({"done", "stopped", "failed"})

# From a check, which raises when the measurement is to end, to tables that grow.
Work = Callable[[Callable[[], None]], "Iterator[pd.DataFrame]"]

_log = logging.getLogger(__name__)


class _Ended(Exception):
    """Raised inside a lens when its measurement is told to stop."""


@dataclass
class Measurement:
    """One question on its way. ``version`` grows with each table; ``progress`` is in [0, 1]."""

    key: Hashable
    owners: set[str]
    state: State = "waiting"
    table: pd.DataFrame | None = None
    progress: float = 0.0
    said: str = ""
    version: int = 0
    seconds: float = 0.0
    control: Control = field(default_factory=Control)
    seen: float = field(default_factory=time.monotonic)

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def facts(self) -> dict[str, Any]:
        """What a page is told beside the picture."""
        return {"state": self.state, "progress": round(self.progress, 3), "said": self.said}


class MeasureBoard:
    """At most one measurement per page and ``waiting`` in all; ``patience`` seconds without a look end one."""

    def __init__(self, board: JobBoard, *, waiting: int = 8, patience: float = 20.0, kept: int = 48) -> None:
        self._board = board
        self._waiting = waiting
        self._patience = patience
        self._kept = kept
        self._known: OrderedDict[Hashable, Measurement] = OrderedDict()
        self._lock = threading.RLock()

    def ask(self, key: Hashable, owner: str, work: Work) -> Measurement:
        """Begin a measurement, or join the one under way; the owner's other measurement ends."""
        with self._lock:
            found = self._known.get(key)
            if found is not None and (found.state == "done" or not found.ended):
                self.leave(owner, but=key)
                found.owners.add(owner)
                return found
            self.leave(owner)
            if sum(not other.ended for other in self._known.values()) >= self._waiting:
                raise FwvizError("too many measurements are under way: try again in a minute.")
            # What was measured before it was stopped stays in the picture until there is more.
            made = Measurement(key, {owner}, table=found.table if found is not None else None)
            self._known[key] = made
            self._forget()
        threading.Thread(target=self._run, args=(made, work), name="fwviz-measure", daemon=True).start()
        return made

    def get(self, key: Hashable) -> Measurement | None:
        """A measurement under way or done; being asked for keeps it alive."""
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                found.seen = time.monotonic()
                self._known.move_to_end(key)
            return found

    def of(self, owner: str) -> Measurement | None:
        """The one under way that a page waits for; being asked for keeps it alive."""
        with self._lock:
            found = next((m for m in self._known.values() if owner in m.owners and not m.ended), None)
            if found is not None:
                found.seen = time.monotonic()
            return found

    def leave(self, owner: str, *, but: Hashable = None) -> None:
        """A page is no longer interested: a measurement that nobody waits for ends."""
        with self._lock:
            for found in self._known.values():
                if found.key != but and owner in found.owners and not found.ended:
                    found.owners.discard(owner)
                    if not found.owners:
                        found.control.stop(at_once=True)
                        found.state, found.said = "stopped", "stopped"
                        found.version += 1

    def close(self) -> None:
        """End everything."""
        with self._lock:
            for found in self._known.values():
                found.control.stop(at_once=True)

    def _run(self, measurement: Measurement, work: Work) -> None:
        control = measurement.control

        def check() -> None:
            if time.monotonic() - measurement.seen > self._patience:
                control.stop(at_once=True)
            if control.stopped:
                raise _Ended

        state: State = "done"
        said = ""
        start = time.monotonic()
        try:
            with self._board.place(check):
                measurement.state = "running"
                measurement.version += 1
                tables = work(check)
                try:
                    for table in tables:
                        check()
                        measurement.table = table
                        done, total = table.attrs.get("done", 0), table.attrs.get("total", 0)
                        measurement.progress = done / total if total else 0.0
                        running = table.attrs.get("running", "")
                        measurement.said = f"{done} of {total} {table.attrs.get('what', 'points')}" if total else ""
                        measurement.said += f", now {running}" if running else ""
                        measurement.version += 1
                finally:
                    close = getattr(tables, "close", None)
                    if close is not None:
                        close()
        except _Ended:
            state, said = "stopped", "stopped"
        except FwvizError as error:
            state, said = "failed", wire.placeless(str(error))
        except Exception:
            _log.exception("a measurement ended unexpectedly")
            state, said = "failed", "it ended unexpectedly: the log of the server has the details"
        with self._lock:
            measurement.seconds = time.monotonic() - start
            measurement.state = state
            measurement.said = said or measurement.said
            if state == "done":
                measurement.progress = 1.0
            measurement.version += 1

    def _forget(self) -> None:
        """Keep as many ended ones as fit. The lock is held."""
        ended = [key for key, found in self._known.items() if found.ended]
        for key in ended[: max(0, len(self._known) - self._kept)]:
            del self._known[key]
