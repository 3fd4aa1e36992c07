"""The job board: bounded, fair, and never held up by a page that went away."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import Control
from fwviz.runs.store import RunStore, RunWriter
from fwviz.runs.trace import Frame, Trace
from fwviz.types import FwvizError
from fwviz.ui.jobs import Job, JobBoard

RECIPE = Recipe("tiny", ("a", "b"), ("a",), "weight_average")


class Clockwork:
    """A runner without models: it records frames through the real writer and obeys the real control."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.order: list[str] = []
        self.together = 0
        self.most_together = 0
        self._lock = threading.Lock()

    def __call__(self, recipe: Recipe, *, control: Control, writer: RunWriter) -> Generator[Frame, None, Trace]:
        trace = writer.describe(Trace("", recipe, "Tiny", "f", {}, {}, {}))
        with self._lock:
            self.order.append(writer.id)
            self.together += 1
            self.most_together = max(self.most_together, self.together)
        frames = []
        try:
            for t in range(1000):
                frame = Frame(index=t, t=t, accuracy={"a": t / 1000})
                writer.append(frame)
                frames.append(frame)
                yield frame
                control.completed()
                control.wait()
                if control.stopped or self.gate.wait(0.01):
                    break
        finally:
            with self._lock:
                self.together -= 1
        trace = replace(trace, frames=tuple(frames), status="stopped" if control.stopped else "max_steps")
        writer.finish(trace)
        return trace


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@pytest.fixture
def clockwork() -> Clockwork:
    return Clockwork()


@pytest.fixture
def board(tmp_path: Path, clockwork: Clockwork) -> Iterator[JobBoard]:
    board = JobBoard(RunStore(tmp_path), execute=clockwork)
    yield board
    clockwork.gate.set()
    board.close()


def test_a_job_is_read_by_version_and_leaves_a_record(board: JobBoard, clockwork: Clockwork) -> None:
    job = board.submit(RECIPE, "me")
    until(lambda: len(job.frames) >= 3)
    assert job.state == "running"
    version = job.version
    assert board.wait(job, version, 2.0) > version
    assert [frame.t for frame in job.trace().frames[:3]] == [0, 1, 2]
    assert job.trace().pool_title == "Tiny"
    clockwork.gate.set()
    until(lambda: job.ended)
    assert job.state == "done"
    assert board.store.load(job.id).frames == job.trace().frames


def test_stop_acts_within_a_second_and_pause_holds(board: JobBoard) -> None:
    job = board.submit(RECIPE, "me")
    until(lambda: bool(job.frames))
    job.control.pause()
    until(lambda: job.state == "paused")
    time.sleep(0.05)
    held = len(job.frames)
    time.sleep(0.1)
    assert len(job.frames) == held
    job.control.step()
    until(lambda: len(job.frames) == held + 1)
    start = time.monotonic()
    board.stop(job)
    until(lambda: job.ended)
    assert time.monotonic() - start < 1.0
    assert job.state == "stopped"


def test_two_run_and_the_others_wait_their_turn(board: JobBoard, clockwork: Clockwork) -> None:
    mine = [board.submit(RECIPE, "me") for _ in range(3)]
    yours = board.submit(RECIPE, "you")
    until(lambda: all(job.frames for job in mine[:2]))
    assert (mine[2].state, yours.state) == ("queued", "queued")
    # I hold both places: the newcomer goes before my third run.
    assert (board.ahead(yours), board.ahead(mine[2])) == (0, 1)
    board.stop(mine[0])
    until(lambda: bool(yours.frames))
    assert mine[2].state == "queued"
    clockwork.gate.set()
    until(lambda: all(job.ended for job in (*mine, yours)))
    assert clockwork.most_together == 2
    assert clockwork.order[2:] == [yours.id, mine[2].id]


def test_the_queue_is_bounded_per_owner_and_in_all(tmp_path: Path, clockwork: Clockwork) -> None:
    board = JobBoard(RunStore(tmp_path), slots=1, waiting=2, per_owner=2, execute=clockwork)
    board.submit(RECIPE, "me")
    board.submit(RECIPE, "me")
    with pytest.raises(FwvizError, match="you already have 2 runs"):
        board.submit(RECIPE, "me")
    board.submit(RECIPE, "you")
    with pytest.raises(FwvizError, match="3 runs are under way"):
        board.submit(RECIPE, "she")
    clockwork.gate.set()
    board.close()


def test_a_queued_job_can_be_stopped(board: JobBoard) -> None:
    jobs: list[Job] = [board.submit(RECIPE, "me") for _ in range(3)]
    board.stop(jobs[2])
    assert jobs[2].ended
    assert jobs[2].state == "stopped"
    assert board.store.load(jobs[2].id).status == "stopped"
    board.stop(jobs[0])
    until(lambda: jobs[0].ended)


def test_a_record_that_cannot_be_written_keeps_no_other_waiting(tmp_path: Path, clockwork: Clockwork) -> None:
    board = JobBoard(RunStore(tmp_path), slots=1, execute=clockwork)
    first, lost, last = (board.submit(RECIPE, "me") for _ in range(3))
    shutil.rmtree(tmp_path / lost.id)
    board.stop(lost)
    assert lost.state == "stopped"
    clockwork.gate.set()
    until(lambda: first.ended and last.ended)
    assert (first.state, last.state) == ("done", "done")
    board.close()


def test_a_job_nobody_looks_at_ends_by_itself(tmp_path: Path, clockwork: Clockwork) -> None:
    board = JobBoard(RunStore(tmp_path), patience=0.3, execute=clockwork)
    lonely, seen = board.submit(RECIPE, "me"), board.submit(RECIPE, "you")

    def looked_at() -> bool:
        board.get(seen.id)
        return lonely.ended

    until(looked_at)
    assert lonely.state == "stopped"
    assert not seen.ended
    clockwork.gate.set()
    board.close()


def test_an_unexpected_error_ends_the_job_with_one_sentence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken(recipe: Recipe, *, control: Control, writer: RunWriter) -> Generator[Frame, None, Trace]:
        writer.describe(Trace("", recipe, "Tiny", "f", {}, {}, {}))
        yield Frame(index=0, t=0)
        raise RuntimeError("secret path /home/someone")

    board = JobBoard(RunStore(tmp_path), execute=broken)
    job = board.submit(RECIPE, "me")
    until(lambda: job.ended)
    assert job.state == "failed"
    assert "secret" not in job.note
    assert job.note.endswith("details.")
    assert "secret path" in caplog.text


def test_ended_jobs_are_forgotten_but_their_records_stay(tmp_path: Path, clockwork: Clockwork) -> None:
    clockwork.gate.set()
    board = JobBoard(RunStore(tmp_path), kept=2, execute=clockwork)
    ids = []
    for _ in range(5):
        job = board.submit(RECIPE, "me")
        until(lambda job=job: job.ended)  # type: ignore[misc]
        ids.append(job.id)
    assert sum(board.get(name) is not None for name in ids) <= 3
    assert set(board.store.ids()) == set(ids)


def test_background_work_gives_way_to_a_run(board: JobBoard, clockwork: Clockwork) -> None:
    assert not board.busy
    with board.background() as control:
        assert not control.stopped
        job = board.submit(RECIPE, "me")
        assert control.stopped_at_once
    assert board.busy
    with board.background() as later:
        assert not later.stopped
    clockwork.gate.set()
    until(lambda: job.ended)
    assert not board.busy
