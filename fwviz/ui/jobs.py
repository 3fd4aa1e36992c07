"""Runs under way: a few worker threads, a fair queue, and a versioned buffer that any number of pages may read.

A job is one run of the runner in its own thread. Pages poll it by version, so that a frame missed is no harm and a
reload is nothing special. Closing a page does not end a job; a job nobody has looked at for a while ends by itself.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import Control, run
from fwviz.runs.store import RunStore, RunWriter
from fwviz.runs.trace import Frame, Trace
from fwviz.types import FwvizError

JobState = Literal["queued", "starting", "running", "paused", "stopping", "done", "stopped", "failed"]
ENDED: frozenset[JobState] = frozenset({"done", "stopped", "failed"})

Run = Callable[..., Generator[Frame, None, Trace]]

_log = logging.getLogger(__name__)


@dataclass
class Job:
    """One run. ``id`` is the id of its record in the store; ``version`` grows with every change a page could show."""

    id: str
    recipe: Recipe
    owner: str
    writer: RunWriter
    control: Control
    header: Trace
    frames: list[Frame] = field(default_factory=list)
    version: int = 0
    started: bool = False
    ended: bool = False
    final: Trace | None = None
    seen: float = field(default_factory=time.monotonic)
    note: str = ""

    @property
    def state(self) -> JobState:
        if self.final is not None:
            if self.final.status == "failed":
                return "failed"
            return "stopped" if self.final.status == "stopped" else "done"
        if self.ended:
            return "failed"
        if not self.started:
            return "queued"
        if self.control.stopped:
            return "stopping"
        if not self.frames:
            return "starting"
        return "paused" if self.control.state == "paused" else "running"

    def trace(self) -> Trace:
        """What is known of the run by now, as a trace of its own."""
        if self.final is not None:
            return self.final
        return replace(self.header, frames=tuple(self.frames))


class JobBoard:
    """At most ``slots`` runs at a time; the others wait, and owners take turns.

    ``patience`` is the seconds after which a job that no page has asked about is stopped; ``waiting`` bounds the queue
    and ``kept`` the ended jobs held in memory (their records stay in the store).
    """

    def __init__(
        self,
        store: RunStore,
        *,
        slots: int = 2,
        waiting: int = 12,
        per_owner: int = 3,
        patience: float = 600.0,
        kept: int = 20,
        execute: Run = run,
    ) -> None:
        self.store = store
        self.slots = slots
        self.waiting = waiting
        self.per_owner = per_owner
        self.patience = patience
        self.kept = kept
        self._execute = execute
        self._jobs: dict[str, Job] = {}
        self._turns: dict[str, int] = {}
        self._counter = itertools.count(1)
        self._change = threading.Condition()
        self._janitor: threading.Thread | None = None
        self._background: set[Control] = set()
        self._lent = 0  # places that measurements hold

    # --- asked by pages ---------------------------------------------------------------------------

    def submit(self, recipe: Recipe, owner: str, *, paused: bool = False) -> Job:
        """Queue a run and start it when a slot is free. FwvizError if the queue is full."""
        with self._change:
            live = [job for job in self._jobs.values() if not job.ended]
            if sum(job.owner == owner for job in live) >= self.per_owner:
                raise FwvizError(f"you already have {self.per_owner} runs under way: stop one of them first.")
            if len(live) >= self.slots + self.waiting:
                raise FwvizError(f"{len(live)} runs are under way or waiting: try again in a minute.")
            writer = self.store.create(recipe)
            header = Trace(writer.id, recipe, "", "", {}, {}, {})
            job = Job(writer.id, recipe, owner, writer, Control(paused=paused), header)
            self._jobs[job.id] = job
            for background in self._background:
                background.stop(at_once=True)
            self._dispatch()
            self._watch()
            return job

    def get(self, job_id: str) -> Job | None:
        """A job in memory (queued, under way or recently ended); being asked for keeps it alive."""
        with self._change:
            job = self._jobs.get(job_id)
            if job is not None:
                job.seen = time.monotonic()
            return job

    @property
    def busy(self) -> bool:
        """True while any job is queued or under way: what nobody waits for should not begin then."""
        with self._change:
            return any(not job.ended for job in self._jobs.values())

    @contextlib.contextmanager
    def background(self) -> Iterator[Control]:
        """A control for work that nobody waits for: it is stopped at once when a job is submitted."""
        control = Control()
        with self._change:
            self._background.add(control)
        try:
            yield control
        finally:
            with self._change:
                self._background.discard(control)

    @contextlib.contextmanager
    def place(self, check: Callable[[], None]) -> Iterator[None]:
        """One of the ``slots`` for other work than a run, after the runs that wait already.

        ``check`` is called while waiting; what it raises ends the wait. At most half of the places are lent, so that a
        run never waits for measurements alone.
        """
        with self._change:
            while self._queue() or self._lent >= max(self.slots // 2, 1) or self._taken() >= self.slots:
                check()
                self._change.wait(0.1)
            self._lent += 1
        try:
            yield
        finally:
            with self._change:
                self._lent -= 1
                self._dispatch()
                self._change.notify_all()

    def ahead(self, job: Job) -> int:
        """How many queued jobs will start before this one."""
        with self._change:
            queue = self._queue()
            return queue.index(job) if job in queue else 0

    def wait(self, job: Job, version: int, timeout: float) -> int:
        """Block until the job has another version than ``version`` or the timeout is over; its version then."""
        with self._change:
            job.seen = time.monotonic()
            self._change.wait_for(lambda: job.version != version or job.ended, timeout)
            return job.version

    def stop(self, job: Job) -> None:
        """End a job: the first time it still scores its last iterate, the second time at once."""
        with self._change:
            if not job.started and not job.ended:
                self._end(job, "the run was stopped before it started.")
                return
        job.control.stop(at_once=job.control.stopped)
        self.touch(job)

    def touch(self, job: Job) -> None:
        """Tell all pages that something about the job has changed."""
        with self._change:
            job.version += 1
            self._change.notify_all()

    def close(self) -> None:
        """End everything, for tests and for the end of the process."""
        with self._change:
            live = [job for job in self._jobs.values() if not job.ended]
        for job in live:
            self.stop(job)
            job.control.stop(at_once=True)
        deadline = time.monotonic() + 10
        with self._change:
            self._change.wait_for(lambda: all(job.ended for job in live), max(deadline - time.monotonic(), 0))

    # --- the queue --------------------------------------------------------------------------------

    def _queue(self) -> list[Job]:
        """Queued jobs in the order they will start: owners with fewer runs first, then those served longest ago."""
        queued = [job for job in self._jobs.values() if not job.started and not job.ended]
        running = [job.owner for job in self._jobs.values() if job.started and not job.ended]
        nth: dict[str, int] = {}
        ranks = {}
        for place, job in enumerate(queued):
            load = running.count(job.owner) + nth.get(job.owner, 0)
            nth[job.owner] = nth.get(job.owner, 0) + 1
            ranks[job.id] = (load, self._turns.get(job.owner, 0), place)
        return sorted(queued, key=lambda job: ranks[job.id])

    def _taken(self) -> int:
        return self._lent + sum(job.started and not job.ended for job in self._jobs.values())

    def _dispatch(self) -> None:
        """Start queued jobs while slots are free. The lock is held."""
        while self._taken() < self.slots:
            queue = self._queue()
            if not queue:
                return
            job = queue[0]
            job.started = True
            job.version += 1
            self._turns[job.owner] = next(self._counter)
            threading.Thread(target=self._work, args=(job,), name=f"fwviz-{job.id}", daemon=True).start()
        self._change.notify_all()

    def _work(self, job: Job) -> None:
        note = ""
        try:
            frames = self._execute(job.recipe, control=job.control, writer=job.writer)
            while True:
                try:
                    frame = next(frames)
                except StopIteration as end:
                    job.final = end.value
                    break
                if not job.frames:
                    job.header = replace(self.store.load(job.id), frames=())
                job.frames.append(frame)
                self.touch(job)
        except FwvizError as error:
            note = str(error)
        except Exception:
            _log.exception("run %s ended unexpectedly", job.id)
            note = "the run ended unexpectedly: the log of the server has the details."
        finally:
            with self._change:
                self._end(job, note)

    def _end(self, job: Job, note: str) -> None:
        """Mark a job as ended and make room for the next. The lock is held."""
        job.ended = True
        job.note = note or (job.final.note if job.final is not None else "")
        if job.final is None:
            job.final = replace(
                job.header, frames=tuple(job.frames), status="stopped" if not job.started else "failed", note=job.note
            )
            with contextlib.suppress(FwvizError):  # a record that cannot be written must not keep the others waiting
                job.writer.finish(job.final)
        job.version += 1
        ended = [other for other in self._jobs.values() if other.ended]
        for other in sorted(ended, key=lambda other: other.seen)[: max(0, len(ended) - self.kept)]:
            del self._jobs[other.id]
        for owner in set(self._turns) - {other.owner for other in self._jobs.values()}:
            del self._turns[owner]
        self._dispatch()
        self._change.notify_all()

    # --- jobs without a page ----------------------------------------------------------------------

    def _watch(self) -> None:
        """Have a janitor while there is something to watch. The lock is held."""
        if self._janitor is None:
            self._janitor = threading.Thread(target=self._sweep, name="fwviz-janitor", daemon=True)
            self._janitor.start()

    def _sweep(self) -> None:
        while True:
            with self._change:
                live = [job for job in self._jobs.values() if not job.ended]
                if not live:
                    self._janitor = None
                    return
                self._change.wait(min(5.0, self.patience / 4))
                lonely = [job for job in live if not job.ended and time.monotonic() - job.seen > self.patience]
            for job in lonely:
                _log.info("run %s is stopped: no page has asked for it in %.0f s", job.id, self.patience)
                self.stop(job)
