"""The runner on a real pool: frames, control, failures, record."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fwviz import registry
from fwviz.registry import merge_method, setting
from fwviz.runs.assemble import assemble
from fwviz.runs.cost import MemoryWatch
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import Control, execute, run
from fwviz.runs.store import CUT_OFF, RunStore
from fwviz.runs.trace import Frame, Trace
from fwviz.types import Problem, Step


def recipe(pool: Path, method: str = "fw_soft", **settings: Any) -> Recipe:
    return Recipe.from_dict(
        {
            "pool": str(pool),
            "checkpoints": ["colour", "stripes", "shape", "corner"],
            "tasks": ["colour", "stripes"],
            "method": method,
            "settings": settings,
        }
    )


def test_landmarks_are_kept_and_judged_without_a_live_view(tiny_pool_path: Path) -> None:
    """The trials of a scale search are the curve a run is made for; other inner updates are not recorded."""
    trace = execute(recipe(tiny_pool_path, "task_arithmetic", scale_search="calibration", scale_points=4))
    trials = [frame for frame in trace.frames if frame.inner]
    assert [frame.step_size for frame in trials] == [0.25, 0.5, 0.75, 1.0]
    assert all(frame.accuracy and frame.loss for frame in trials)
    assert len(trace.iterates()) == 1
    assert not any(frame.inner for frame in execute(recipe(tiny_pool_path, "fw_soft", max_steps=1)).frames)


@dataclasses.dataclass(frozen=True)
class Slow:
    """Settings of the slow method."""

    steps: int = setting(400, "steps", low=1, high=1000)
    fail_at: int = setting(-1, "iterate whose loss is not a number", low=-1, high=1000)
    linear: bool = setting(True, "coefficients or a delta")
    gradients: int = setting(1, "gradients per iterate", low=1, high=10_000)


@pytest.fixture
def slow_method() -> Iterator[str]:
    """A method of many short steps: λ₀ grows by 1/400 a step."""
    registry.entries("methods")

    @merge_method("Slow", Slow, data="labels", paper="none", reference="this test")
    def slow(problem: Problem, settings: Slow) -> Iterator[Step]:
        for t in range(settings.steps):
            coefficients = torch.zeros(1, problem.vectors.n)
            coefficients[0, 0] = t / 400
            theta = problem.vectors.combine(coefficients, problem.groups("model"))
            for _ in range(settings.gradients):
                losses, _ = problem.objective.gradient(theta)
            loss = float("nan") if t == settings.fail_at else float(losses.mean())
            if settings.linear:
                yield Step(t, coefficients=coefficients, loss=loss)
            else:
                yield Step(t, delta=theta - problem.vectors.base, loss=loss)

    yield "slow"
    del registry._REGISTRIES["methods"]["slow"]


def comparable(trace: Trace) -> list[dict[str, Any]]:
    """What must not depend on the clock: the completed iterates without their cost."""
    measured = ("index", "seconds", "bytes_read", "peak_memory_bytes")
    return [{k: v for k, v in frame.to_dict().items() if k not in measured} for frame in trace.iterates()]


# --- what comes out -----------------------------------------------------------------------------


def test_frames_agree_with_the_evaluator(tiny_pool_path: Path) -> None:
    chosen = recipe(tiny_pool_path, max_steps=2)
    frames = list(run(chosen))
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert [(frame.t, frame.completed) for frame in frames[:2]] == [(0, False), (0, True)]  # before and after gradients
    assert frames[0].accuracy == frames[1].accuracy
    assert set(frames[0].accuracy) == set(chosen.tasks)
    iterates = [frame for frame in frames if frame.completed]
    assert len(iterates) >= 2
    assert all(set(frame.accuracy) == set(chosen.tasks) for frame in iterates)
    closing = frames[-1]
    assert closing.status in ("converged", "max_steps")
    assert closing.coefficients == iterates[-1].coefficients
    assembly = assemble(chosen)
    groups = assembly.problem.groups(closing.granularity)
    theta = assembly.problem.vectors.combine(torch.tensor(closing.coefficients), groups)
    for split in ("validation", "test"):
        again = assembly.evaluator.full(theta, split=split)
        for task in chosen.tasks:
            assert closing.final[split][task].count == again[task].count
            assert closing.final[split][task].accuracy == pytest.approx(again[task].accuracy, abs=0.011)
            assert closing.final[split][task].loss == pytest.approx(again[task].loss, abs=1e-3)
    quick = assembly.evaluator.quick(theta)
    assert iterates[-1].task_loss == pytest.approx({t: s.loss for t, s in quick.items()}, abs=1e-3)


def test_inner_updates_are_shown_live_and_leave_the_result_alone(tiny_pool_path: Path) -> None:
    chosen = recipe(tiny_pool_path, max_steps=2)
    live = list(run(chosen))
    quiet = execute(chosen)
    assert any(frame.inner and frame.coefficients for frame in live)
    assert not any(frame.inner for frame in quiet.frames)
    assert [f.coefficients for f in live if f.completed] == [f.coefficients for f in quiet.iterates()]
    assert {t: s.loss for t, s in live[-1].final["test"].items()} == {t: s.loss for t, s in quiet.final["test"].items()}


def test_one_shot_methods_give_a_start_and_a_close(tiny_pool_path: Path) -> None:
    frames = list(run(recipe(tiny_pool_path, "weight_average")))
    assert [frame.status for frame in frames] == ["running", "converged"]
    assert frames[0].coefficients == ((0.25, 0.25, 0.25, 0.25),)
    assert set(frames[1].final) == {"test", "validation"}


def test_the_trace_knows_its_reference_rows_and_rebuilds_weights(tiny_pool_path: Path) -> None:
    chosen = recipe(tiny_pool_path, "task_arithmetic", scale=0.5)
    trace = execute(chosen)
    assembly = assemble(chosen)
    card = assembly.pool.card
    assert trace.reference["individual"]["test"]["colour"] == card.task("colour").accuracy["individual"]["test"]
    assert trace.groups["layer"] == assembly.problem.groups("layer").names
    assert sum(trace.group_sizes["tensor"]) == assembly.problem.vectors.layout.size
    theta = trace.theta(-1, assembly.problem.vectors)
    expected = assembly.problem.vectors.base + 0.5 * sum(assembly.problem.vectors.vector(i) for i in range(4))
    torch.testing.assert_close(theta, expected, rtol=1e-5, atol=1e-6)
    assert trace.cost.seconds > 0
    table = trace.results()
    assert table.task.tolist() == ["colour", "stripes"]
    assert table.merged.between(0, 1).all()


def test_same_recipe_same_result_and_storage_does_not_matter(tiny_pool_path: Path) -> None:
    chosen = recipe(tiny_pool_path, max_steps=2)
    assert comparable(execute(chosen)) == comparable(execute(chosen))
    streamed = execute(dataclasses.replace(chosen, storage="streamed"))
    resident = execute(chosen)
    torch.testing.assert_close(streamed.coefficients(-1), resident.coefficients(-1), rtol=1e-3, atol=1e-4)
    assert streamed.cost.bytes_read > 0


def test_two_runs_at_once_do_not_disturb_each_other(tiny_pool_path: Path) -> None:
    recipes = [recipe(tiny_pool_path, max_steps=2), recipe(tiny_pool_path, "fw_hard", max_steps=3)]
    recipes[1] = dataclasses.replace(recipes[1], tasks=("shape", "corner"))
    alone = [comparable(execute(chosen)) for chosen in recipes]
    together: list[Any] = [None, None]

    def work(i: int) -> None:
        together[i] = comparable(execute(recipes[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert together == alone


# --- control ------------------------------------------------------------------------------------


def test_step_completes_exactly_one_iterate_then_pauses(tiny_pool_path: Path, slow_method: str) -> None:
    control = Control(paused=True)
    frames: list[Frame] = []

    def work() -> None:
        for frame in run(recipe(tiny_pool_path, slow_method), control=control):
            frames.append(frame)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.3)
    assert frames == []
    for expected in (1, 2, 3):
        control.step()
        wait_until(lambda count=expected: len(frames) >= count and control.state == "paused")
        time.sleep(0.1)
        assert [frame.t for frame in frames] == list(range(expected))
    control.resume()
    wait_until(lambda: len(frames) > 5)
    control.pause()
    at_pause = len(frames)
    time.sleep(1)
    count, seconds, clock = len(frames), frames[-1].seconds, time.perf_counter()
    assert count <= at_pause + 1  # the frame that was being measured
    time.sleep(0.5)
    assert len(frames) == count
    control.resume()
    wait_until(lambda: len(frames) > count)
    # The pause is not counted; what runs beside us must not decide the test, so clock is compared with clock.
    assert frames[count].seconds - seconds < time.perf_counter() - clock - 0.3
    control.stop()
    thread.join(10)
    assert frames[-1].status == "stopped"


def test_stop_ends_with_full_scores_of_the_last_iterate(tiny_pool_path: Path, slow_method: str, tmp_path: Path) -> None:
    control = Control()
    writer = RunStore(tmp_path).create(recipe(tiny_pool_path, slow_method))
    frames = []
    for frame in run(recipe(tiny_pool_path, slow_method), control=control, writer=writer):
        frames.append(frame)
        if frame.t == 3:
            control.stop()
            stopped = time.perf_counter()
    assert time.perf_counter() - stopped < 1
    assert [frame.status for frame in frames[-2:]] == ["running", "stopped"]
    assert frames[-1].coefficients == frames[-2].coefficients
    assert set(frames[-1].final) == {"test", "validation"}
    trace = RunStore(tmp_path).load(writer.id)
    assert trace.status == "stopped"
    assert [f.to_dict() for f in trace.frames] == [f.to_dict() for f in frames]


def test_stop_at_once_interrupts_a_long_step_and_skips_the_scores(tiny_pool_path: Path, slow_method: str) -> None:
    control = Control()
    chosen = recipe(tiny_pool_path, slow_method, gradients=10_000)
    timer = threading.Timer(1.0, lambda: control.stop(at_once=True))
    timer.start()
    start = time.perf_counter()
    (closing,) = list(run(chosen, control=control))
    assert time.perf_counter() - start < 2
    assert closing.status == "stopped"
    assert closing.final == {}


def test_closing_the_generator_completes_the_record(tiny_pool_path: Path, slow_method: str, tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    writer = store.create(recipe(tiny_pool_path, slow_method))
    frames = run(recipe(tiny_pool_path, slow_method), writer=writer)
    for _ in range(3):
        next(frames)
    assert store.load(writer.id).status == "running"
    frames.close()
    trace = store.load(writer.id)
    assert trace.status == "stopped"
    assert trace.frames[-1].status == "stopped"
    assert len(trace.iterates()) == 3


# --- failures -----------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_fails_the_run_and_keeps_what_was(
    tiny_pool_path: Path, slow_method: str, tmp_path: Path
) -> None:
    store = RunStore(tmp_path)
    chosen = recipe(tiny_pool_path, slow_method, fail_at=2)
    writer = store.create(chosen)
    frames = list(run(chosen, writer=writer))
    assert [frame.t for frame in frames if frame.completed] == [0, 1]
    assert frames[-1].status == "failed"
    assert "not-a-number" in frames[-1].note
    assert frames[-1].coefficients == frames[-2].coefficients
    loaded = store.load(writer.id)
    assert (loaded.status, len(loaded.frames)) == ("failed", 3)
    assert json.loads((tmp_path / writer.id / "result.json").read_text())["status"] == "failed"


def test_a_trial_that_is_not_finite_is_shown_and_nothing_ends_on_it(tiny_pool_path: Path, tmp_path: Path) -> None:
    """Neither the run, nor, stopped at such a moment, its result: that is the state before."""
    registry.entries("methods")
    broken = torch.full((1, 4), 1e30)  # finite coefficients of a model that answers with not-a-number

    @merge_method("Rejecting", Slow, data="labels", paper="none", reference="this test")
    def rejecting(problem: Problem, settings: Slow) -> Iterator[Step]:
        yield Step(0, inner=1, coefficients=broken, landmark=True, rejected=True, note="rejected")
        yield Step(0, coefficients=torch.zeros(1, 4))
        yield Step(1, inner=1, coefficients=broken, landmark=True, rejected=True, note="rejected")
        # One that looked well where the method looked, and does not where the run does.
        yield Step(1, inner=2, coefficients=broken, landmark=True, loss=1.0)
        yield Step(1, coefficients=torch.full((1, 4), 0.1))
        yield Step(2, inner=1, delta=torch.full_like(problem.vectors.base, torch.inf), rejected=True, landmark=True)
        if settings.linear:
            yield Step(2, coefficients=broken)

    try:
        frames = list(run(recipe(tiny_pool_path, "rejecting", linear=False)))
        assert [(f.inner, bool(f.accuracy)) for f in frames[:-1]] == [
            (1, False), (0, True), (1, False), (2, False), (0, True), (1, False)
        ]  # fmt: skip
        assert frames[-1].status == "max_steps"
        assert frames[-1].coefficients == ((0.1,) * 4,)
        assert set(frames[-1].final["test"]) == {"colour", "stripes"}
        control = Control()
        frames = []
        for frame in run(recipe(tiny_pool_path, "rejecting", linear=False), control=control):
            frames.append(frame)
            if frame.t == 2:
                control.stop()
        assert (frames[-1].status, frames[-1].coefficients) == ("stopped", ((0.1,) * 4,))
        # An iterate that answers with not-a-number ends the run, as ever.
        frames = list(run(recipe(tiny_pool_path, "rejecting")))
        assert frames[-1].status == "failed"
        assert "not-a-number" in frames[-1].note
    finally:
        del registry._REGISTRIES["methods"]["rejecting"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"checkpoints": ("colour", "nobody")}, "nobody"),
        ({"pool": "no_such_pool"}, "no_such_pool"),
        ({"device": "cuda:77"}, "cuda:77"),
    ],
)
def test_what_cannot_be_opened_fails_with_a_sentence(
    tiny_pool_path: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    chosen = dataclasses.replace(recipe(tiny_pool_path), **change)
    writer = RunStore(tmp_path).create(chosen)
    (closing,) = list(run(chosen, writer=writer))
    assert closing.status == "failed"
    assert words in closing.note
    assert "\n" not in closing.note
    assert RunStore(tmp_path).load(writer.id).note == closing.note


def test_a_gpu_nobody_has_fails_with_a_sentence_beside_one_that_is_there(
    tiny_pool_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory is not asked for, as that would be an error of torch's."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    (closing,) = list(run(dataclasses.replace(recipe(tiny_pool_path), device="cuda:3")))
    assert (closing.status, closing.note) == ("failed", "this machine has no device 'cuda:3': set device to cpu.")


def test_memory_of_a_gpu_nobody_used_yet_can_be_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch resets the peak of a device only once it knows it."""
    done: list[str] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "init", lambda: done.append("init"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: done.append(f"reset {device}"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1000 * len(done))
    with MemoryWatch("cuda:0") as memory:
        assert done == ["init", "reset cuda:0"]
        done.append("work")
        assert memory.peak_bytes == 1000


def test_lack_of_memory_is_said_plainly(
    tiny_pool_path: Path, slow_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(problem: Problem, settings: Slow) -> Iterator[Step]:
        yield Step(0, coefficients=torch.zeros(1, problem.vectors.n))
        torch.empty(1 << 50)  # 4 PiB: the allocator's own error

    entry = registry.entry("methods", slow_method)
    monkeypatch.setitem(registry._REGISTRIES["methods"], slow_method, dataclasses.replace(entry, run=greedy))
    closing = list(run(recipe(tiny_pool_path, slow_method)))[-1]
    assert closing.status == "failed"
    assert "memory" in closing.note


def test_a_killed_run_is_readable(tiny_pool_path: Path, tmp_path: Path) -> None:
    chosen = recipe(tiny_pool_path, max_steps=100, epsilon=0.0)
    (tmp_path / "recipe.yaml").write_text(chosen.to_yaml())
    command = [sys.executable, "-m", "fwviz", "merge", "--recipe", "recipe.yaml", "--runs", "runs"]
    source = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    store = RunStore(tmp_path / "runs")
    try:
        # A limit, not a delay: on a machine with much else to do Python alone can take a minute to start.
        wait_until(lambda: bool(store.ids()) and len(store.load(store.ids()[0]).iterates()) >= 3, 300)
        assert store.load(store.ids()[0]).status == "running"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    trace = store.load(store.ids()[0])
    assert (trace.status, trace.note) == ("failed", CUT_OFF)
    assert len(trace.iterates()) >= 3
    assert trace.recipe == chosen
    assert trace.coefficients(-1).shape[1] == 4


def wait_until(condition: Any, seconds: float = 60) -> None:
    end = time.perf_counter() + seconds
    while not condition():
        assert time.perf_counter() < end, "waited in vain"
        time.sleep(0.02)
