"""Long measurements: they grow, stop, are shared, and end when nobody looks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from fwviz.runs.store import RunStore
from fwviz.types import FwvizError
from fwviz.ui.jobs import JobBoard
from fwviz.ui.measuring import MeasureBoard, Measurement


class Slow:
    """Some tables, at once while a gate is open, or one every two seconds."""

    def __init__(self, count: int = 20) -> None:
        self.count = count
        self.begun = 0
        self.closed = 0
        self.gate = threading.Event()

    def __call__(self, check: Callable[[], None]) -> Iterator[pd.DataFrame]:
        self.begun += 1
        try:
            for i in range(self.count):
                for _ in range(200):
                    check()
                    if self.gate.wait(0.01):
                        break
                table = pd.DataFrame({"x": range(i + 1)})
                table.attrs |= {"done": i + 1, "total": self.count}
                yield table
        finally:
            self.closed += 1


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[JobBoard]:
    board = JobBoard(RunStore(tmp_path))
    yield board
    board.close()


@pytest.fixture
def board(jobs: JobBoard) -> Iterator[MeasureBoard]:
    board = MeasureBoard(jobs)
    yield board
    board.close()


def test_a_measurement_grows_and_answers_all_who_ask_later(board: MeasureBoard) -> None:
    slow = Slow()
    slow.gate.set()
    found = board.ask("landscape", "me", slow)
    until(lambda: found.ended)
    assert (found.state, found.progress, found.said) == ("done", 1.0, "20 of 20 points")
    assert found.table is not None
    assert len(found.table) == 20
    assert board.ask("landscape", "you", slow) is found
    assert slow.begun == 1


def test_stop_acts_within_a_second_and_keeps_what_there_is(board: MeasureBoard) -> None:
    slow = Slow(100_000)  # more than a busy machine makes before the gate is shut
    found = board.ask("landscape", "me", slow)
    slow.gate.set()
    until(lambda: found.table is not None)
    slow.gate.clear()
    begun = time.monotonic()
    board.leave("me")
    assert found.state == "stopped"
    until(lambda: slow.closed == 1)
    assert time.monotonic() - begun < 1.0
    assert board.of("me") is None
    again = board.ask("landscape", "me", slow)
    assert again is not found
    assert again.table is found.table, "the picture goes blank when it is asked for again"
    board.leave("me")


def test_two_pages_share_one_measurement_until_both_have_left(board: MeasureBoard) -> None:
    slow = Slow()
    found = board.ask("landscape", "me", slow)
    assert board.ask("landscape", "you", slow) is found
    board.leave("me")
    assert not found.ended
    assert board.of("you") is found
    board.leave("you")
    assert found.ended


def test_a_page_that_goes_away_ends_its_measurement(jobs: JobBoard) -> None:
    board = MeasureBoard(jobs, patience=0.2)
    slow = Slow()
    found = board.ask("landscape", "me", slow)
    until(lambda: found.ended, 5.0)
    assert found.state == "stopped"
    assert slow.closed == 1


def test_a_page_measures_one_thing_at_a_time_and_the_queue_is_bounded(jobs: JobBoard) -> None:
    board = MeasureBoard(jobs, waiting=2)
    one: Measurement = board.ask("one", "me", Slow())
    two = board.ask("two", "me", Slow())
    assert one.ended
    assert not two.ended
    board.ask("three", "you", Slow())
    with pytest.raises(FwvizError, match="too many"):
        board.ask("four", "she", Slow())
    board.close()


def test_measurements_leave_a_place_for_a_run(jobs: JobBoard, board: MeasureBoard) -> None:
    first, second = Slow(), Slow()
    one = board.ask("one", "me", first)
    until(lambda: one.state == "running")
    two = board.ask("two", "you", second)
    time.sleep(0.15)
    assert two.state == "waiting", "two measurements hold both places"
    first.gate.set()
    until(lambda: two.state == "running")
    board.leave("you")


def test_an_error_of_a_lens_is_said_and_a_bug_is_not_told(
    board: MeasureBoard, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(check: Callable[[], None]) -> Iterator[pd.DataFrame]:
        raise FwvizError("two of the three corners are the same: choose three.")
        yield pd.DataFrame()

    def broken(check: Callable[[], None]) -> Iterator[pd.DataFrame]:
        raise RuntimeError("secret path")
        yield pd.DataFrame()

    said = board.ask("wrong", "me", wrong)
    until(lambda: said.ended)
    assert (said.state, said.said) == ("failed", "two of the three corners are the same: choose three.")
    hidden = board.ask("broken", "me", broken)
    until(lambda: hidden.ended)
    assert "secret" not in hidden.said
    assert "secret path" in caplog.text
