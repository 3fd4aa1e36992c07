"""The runner: the one consumer of method generators, for the CLI, the tests and the live view alike.

It pulls Steps, measures quick accuracy beside them, obeys a :class:`Control` and records everything.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from fwviz.registry import entry
from fwviz.runs.assemble import Assembly, assemble, describe
from fwviz.runs.cost import Clock, MemoryWatch
from fwviz.runs.extension import Kept
from fwviz.runs.recipe import Recipe
from fwviz.runs.store import RunWriter
from fwviz.runs.trace import Cost, Frame, Trace, matrix
from fwviz.space.wide import plus
from fwviz.tasks.batches import out_of_memory
from fwviz.tasks.extended import stored_bytes
from fwviz.types import Extension, FwvizError, Score, Split, Status, Step, TaskVectors

FINAL_SPLITS: tuple[Split, ...] = ("test", "validation")
INNER_FRAME_EVERY = 0.1  # seconds: inner updates are shown at most ten times a second
INNER_EVALUATION_EVERY = 0.4  # seconds
EVALUATION_SHARE = 0.4  # of the running time, for inner updates


class Control:
    """Pause, resume, single-step or stop a run from another thread."""

    def __init__(self, *, paused: bool = False) -> None:
        self._change = threading.Condition()
        self._paused = paused
        self._steps: int | None = None
        self._stop: Literal["", "finish", "now"] = ""

    @property
    def state(self) -> Literal["running", "paused", "stopped"]:
        return "stopped" if self._stop else "paused" if self._paused else "running"

    @property
    def stopped(self) -> bool:
        return bool(self._stop)

    @property
    def stopped_at_once(self) -> bool:
        return self._stop == "now"

    def pause(self) -> None:
        """Hold the run before its next loss or gradient."""
        self._set(paused=True, steps=None)

    def resume(self) -> None:
        self._set(paused=False, steps=None)

    def step(self) -> None:
        """Let the run complete exactly one more iterate, then pause. The initial solution is the first iterate."""
        with self._change:
            waiting = self._steps or 0
            self._set(paused=False, steps=waiting + 1)

    def stop(self, *, at_once: bool = False) -> None:
        """End the run. Its last iterate still gets its full test scores, unless ``at_once``."""
        with self._change:
            self._stop = "now" if at_once or self.stopped_at_once else "finish"
            self._change.notify_all()

    def wait(self) -> float:
        """Block while paused, until resumed, stepped or stopped. Returns the seconds waited."""
        with self._change:
            if not self._paused or self._stop:
                return 0.0
            start = time.perf_counter()
            self._change.wait_for(lambda: not self._paused or bool(self._stop))
            return time.perf_counter() - start

    def completed(self) -> None:
        """Told by the runner that an iterate is complete."""
        with self._change:
            if self._steps is not None:
                self._steps -= 1
                if self._steps <= 0:
                    self._set(paused=True, steps=None)

    def _set(self, *, paused: bool, steps: int | None) -> None:
        with self._change:  # the lock of a Condition is re-entrant
            self._paused, self._steps = paused, steps
            self._change.notify_all()


class _Stopped(Exception):
    """Raised between two steps of a method, or inside it out of its objective, when the control says stop."""


def run(
    recipe: Recipe, *, control: Control | None = None, writer: RunWriter | None = None, live: bool = True
) -> Generator[Frame, None, Trace]:
    """Run a recipe, yielding a Frame per completed iterate, inner updates at up to ten a second, and a closing frame.

    Without ``live`` inner updates that are no landmarks are neither shown nor judged, which takes nobody's time where
    nobody looks.

    The closing frame carries the final status and the full scores of the last iterate. Problems (FwvizError, a loss
    that is not finite, memory) end the run with status "failed" and one sentence in ``note``. Closing the generator
    stops the run and completes its record. The generator returns the whole :class:`Trace`.
    """
    session = _Session(recipe, control or Control(), writer, live)
    try:
        yield from session.frames()
    except GeneratorExit:
        session.finish("stopped", "the run was closed before it finished.")
        raise
    except BaseException as error:
        session.finish("failed", f"unexpected {type(error).__name__} inside the run.")
        raise
    return session.trace


def execute(recipe: Recipe, *, control: Control | None = None, writer: RunWriter | None = None) -> Trace:
    """Run a recipe to its end, without a live view, and return the trace."""
    frames = run(recipe, control=control, writer=writer, live=False)
    while True:
        try:
            next(frames)
        except StopIteration as end:
            trace: Trace = end.value
            return trace


class _Session:
    """The state of one run while it lasts."""

    def __init__(self, recipe: Recipe, control: Control, writer: RunWriter | None, live: bool) -> None:
        self.trace = Trace("", recipe, "", "", {}, {}, {})
        self._control = control
        self._writer = writer
        self._live = live
        self._clock = Clock()
        self._memory = MemoryWatch(recipe.device)
        self._frames: list[Frame] = []
        self._last: Step | None = None  # the state the run is in
        self._place: Tensor | None = None  # where the weights of linear steps are built
        self._theta: Tensor | None = None  # the weights of ``_filled``, of any other step
        self._filled: Step | None = None
        self._evaluation_seconds = 0.0
        self._evaluations = 0
        # What was evaluated last: coefficients, extension, accuracy and loss per task.
        self._judged: tuple[Tensor, Extension | None, dict[str, float], dict[str, float]] | None = None
        self._stored: tuple[Extension | None, int] = (None, 0)  # the last extension and its bytes
        self._evaluated_at = 0.0
        self._shown_at = 0.0
        self._bytes_before = 0
        self._vectors: TaskVectors | None = None

    def frames(self) -> Iterator[Frame]:
        """The frames of the run, the closing one last."""
        status: Status = "failed"
        note = ""
        final: dict[Split, dict[str, Score]] = {}
        with self._memory:
            try:
                assembly = assemble(self.trace.recipe, check=self._obey)
                self._begin(assembly)
                try:
                    status = yield from self._iterate(assembly)
                except _Stopped:
                    status = "stopped"
                final = self._judge(assembly)
            except FwvizError as error:
                status, note = "failed", str(error)
            except TypeError as error:
                if "MPS" not in str(error) or "float64" not in str(error):
                    raise
                status, note = "failed", "this method adds up in float64, which mps does not have: set device to cpu."
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                status, note = "failed", "the run ran out of memory: take fewer checkpoints or set storage to streamed."
            yield self.finish(status, note, final)

    def finish(self, status: Status, note: str, final: dict[Split, dict[str, Score]] | None = None) -> Frame:
        """Complete the record with a closing frame; nothing happens if that was done."""
        if not self.trace.finished:
            closing = self._frame(self._last or Step(0), status=status, note=note, final=final or {})
            self._record(closing)
            cost = Cost(
                closing.seconds,
                self._evaluation_seconds,
                closing.bytes_read,
                closing.peak_memory_bytes,
                closing.stored_bytes,
            )
            self.trace = replace(self.trace, frames=tuple(self._frames), status=status, note=closing.note, cost=cost)
            if self._writer is not None:
                self._writer.finish(self.trace, self._kept())
        return self._frames[-1]

    def _begin(self, assembly: Assembly) -> None:
        header = describe(assembly)
        self.trace = header if self._writer is None else self._writer.describe(header)
        self._vectors = assembly.problem.vectors
        self._bytes_before = self._vectors.bytes_read

    def _iterate(self, assembly: Assembly) -> Generator[Frame, None, Status]:
        method = entry("methods", self.trace.recipe.method)
        steps = method.run(assembly.problem, self.trace.recipe.method_settings())
        with contextlib.closing(steps):
            for step in steps:
                _check_finite(step)
                kept = step.inner == 0 or step.landmark
                shown = kept or (self._live and (not self._frames or self._due(INNER_FRAME_EVERY, self._shown_at)))
                if step.rejected:  # the run stays in the state before it
                    pass
                elif step.coefficients is not None:
                    self._last = replace(step, coefficients=step.coefficients.clone())
                elif shown:  # a borrowed delta is kept as weights, of the steps that are recorded only
                    self._last = step
                    self._fill(assembly, step)
                if shown:
                    judged = not step.rejected and self._affordable(step)
                    accuracy, task_loss = self._quick(assembly) if judged else ({}, {})
                    frame = self._frame(step, accuracy=accuracy, task_loss=task_loss)
                    self._record(frame)
                    if frame.completed:
                        self._control.completed()
                    yield frame
                if step.status != "running":
                    return step.status
                self._obey()
        return "max_steps"

    def _obey(self) -> None:
        """Pause or stop; called between steps and a few times a second inside losses and gradients."""
        self._clock.leave_out(self._control.wait())
        if self._control.stopped:
            raise _Stopped

    def _due(self, every: float, last: float) -> bool:
        return self._clock() - last >= every

    def _affordable(self, step: Step) -> bool:
        """Iterates and landmarks are always evaluated; others while evaluation keeps to its share of the time."""
        if step.inner == 0 or step.landmark or not self._evaluations:
            return True
        expected = self._evaluation_seconds * (1 + 1 / self._evaluations)
        return self._due(INNER_EVALUATION_EVERY, self._evaluated_at) and expected <= EVALUATION_SHARE * self._clock()

    def _quick(self, assembly: Assembly) -> tuple[dict[str, float], dict[str, float]]:
        now = self._last.coefficients if self._last is not None else None
        extension = self._last.extension if self._last is not None else None
        known = self._judged
        if now is not None and known is not None and torch.equal(now, known[0]) and extension is known[1]:
            return known[2:]  # an iterate that stayed where it was, or one shown before and after its gradients
        start = self._clock()
        scores = assembly.evaluator.quick(self._weights(assembly), extension=extension)
        self._evaluated_at = self._clock()
        self._evaluation_seconds += self._evaluated_at - start
        self._evaluations += 1
        lost = [task for task, score in scores.items() if not math.isfinite(score.loss)]
        if lost and self._last is not None and self._last.inner:
            return {}, {}  # on the way only: the method may yet turn back
        if lost:
            raise FwvizError(f"the merged model answers task {lost[0]!r} with not-a-number: lower the scale or step.")
        accuracy, task_loss = {t: s.accuracy for t, s in scores.items()}, {t: s.loss for t, s in scores.items()}
        self._judged = None if now is None else (now, extension, accuracy, task_loss)
        return accuracy, task_loss

    def _judge(self, assembly: Assembly) -> dict[Split, dict[str, Score]]:
        """Full scores of the last iterate, as far as the control leaves time for them."""
        if self._last is None:
            return {}
        before = self._control.stopped  # a stop during judging means at once

        def should_stop() -> bool:
            return self._control.stopped_at_once or (self._control.stopped and not before)

        start = self._clock()
        final: dict[Split, dict[str, Score]] = {}
        theta = self._weights(assembly)
        for split in FINAL_SPLITS:
            scores = assembly.evaluator.full(
                theta, split=split, extension=self._last.extension, should_stop=should_stop
            )
            if scores is None:
                break
            final[split] = scores
        self._evaluation_seconds += self._clock() - start
        return final

    def _weights(self, assembly: Assembly) -> Tensor:
        step = self._last
        assert step is not None
        if step.coefficients is not None and step.extension is None:
            # Where the method builds its own: what lies there is anyone's, so it is built anew.
            self._place = assembly.problem.room() if self._place is None else self._place
            vectors = assembly.problem.vectors
            return vectors.combine(step.coefficients, vectors.layout.groups(step.granularity), out=self._place)
        if self._filled is not step:
            self._fill(assembly, step)
        assert self._theta is not None
        return self._theta

    def _fill(self, assembly: Assembly, step: Step) -> None:
        vectors = assembly.problem.vectors
        if self._theta is None:
            self._theta = torch.empty_like(vectors.base, dtype=torch.float32)
        if step.coefficients is not None:
            vectors.combine(step.coefficients, vectors.layout.groups(step.granularity), out=self._theta)
        elif step.delta is not None:
            plus(vectors.base, step.delta, self._theta)
        self._filled = step

    def _kept(self) -> Kept | None:
        """The parts of the last iterate, if it has several."""
        last = self._last
        if last is None or last.extension is None:
            return None
        return Kept(last.extension, self._theta if last.coefficients is None and self._filled is last else None)

    def _frame(
        self,
        step: Step,
        *,
        accuracy: dict[str, float] | None = None,
        task_loss: dict[str, float] | None = None,
        status: Status = "running",
        note: str = "",
        final: dict[Split, dict[str, Score]] | None = None,
    ) -> Frame:
        completed = step.inner == 0
        if step.extension is not self._stored[0]:
            self._stored = (step.extension, stored_bytes(step.extension))
        return Frame(
            index=len(self._frames),
            t=step.t,
            inner=step.inner,
            granularity=step.granularity,
            coefficients=None if step.coefficients is None else matrix(step.coefficients),
            loss=step.loss,
            gap=step.gap,
            step_size=step.step_size,
            vertices=step.vertices,
            in_hull=step.in_hull,
            scores=matrix(step.scores) if completed and step.scores is not None else None,
            task_scores={task: matrix(rows) for task, rows in step.task_scores.items()} if completed else {},
            accuracy=accuracy or {},
            task_loss=task_loss or {},
            seconds=self._clock(),
            bytes_read=self._vectors.bytes_read - self._bytes_before if self._vectors is not None else 0,
            peak_memory_bytes=self._memory.peak_bytes,
            stored_bytes=self._stored[1],
            status=status,
            note=note or step.note,
            final=final or {},
        )

    def _record(self, frame: Frame) -> None:
        self._frames.append(frame)
        self._shown_at = frame.seconds
        if self._writer is not None:
            self._writer.append(frame)


def _check_finite(step: Step) -> None:
    numbers = [x for x in (step.loss, step.gap, step.step_size) if x is not None]
    fine = all(math.isfinite(x) for x in numbers)
    if step.coefficients is not None:
        fine = fine and bool(torch.isfinite(step.coefficients).all())
    if not fine:
        raise FwvizError(f"the merge became not-a-number at iteration {step.t}: lower the scale or the step size.")
