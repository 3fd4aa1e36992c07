"""Recorded runs beside a plane: which checkpoints that takes, and where every iterate lies."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fwviz.lenses._merged import lean
from fwviz.lenses.comparison import describe
from fwviz.runs.assemble import Assembly, assemble, pool_fingerprint
from fwviz.runs.export import merged_weights
from fwviz.runs.trace import Frame, Trace
from fwviz.space.plane import BASE, Place, Plane, Projector
from fwviz.types import FwvizError, TaskVectors


@dataclass(frozen=True)
class Located:
    """An iterate of a run, or (``frame`` None) the base or a checkpoint, and where it lies.

    ``tasks`` are those of the picture: a run that was not judged on all of them has no height in it.
    """

    name: str
    place: Place
    frame: Frame | None = None
    trace_id: str = ""
    method: str = ""
    final: bool = False
    tasks: tuple[str, ...] = ()

    @property
    def loss(self) -> float:
        """Mean over the picture's tasks of the loss measured during the run; NaN if one was not."""
        return self._mean(self.frame.task_loss) if self.frame else math.nan

    @property
    def accuracy(self) -> float:
        """Mean over the picture's tasks of the accuracy measured during the run; NaN if one was not."""
        return self._mean(self.frame.accuracy) if self.frame else math.nan

    def _mean(self, measured: Mapping[str, float]) -> float:
        return math.fsum(measured.get(task, math.nan) for task in self.tasks) / len(self.tasks)


def with_checkpoints_of(assembly: Assembly, traces: Sequence[Trace]) -> TaskVectors:
    """Task vectors of the recipe's checkpoints, then of those that only the runs merged.

    Raises FwvizError if a run is of another pool.
    """
    own = pool_fingerprint(assembly.pool.card)
    for trace in traces:
        if trace.pool_fingerprint != own:
            raise FwvizError(f"run {trace.id or describe(trace)!r} is of another pool: choose runs of this pool.")
    names = list(assembly.recipe.checkpoints)
    more = dict.fromkeys(name for trace in traces for name in _used(trace) if name not in names)
    if not more:
        return assembly.problem.vectors
    recipe = assembly.recipe
    return assembly.pool.task_vectors(
        [*names, *more], recipe.storage, getattr(torch, recipe.dtype), torch.device(recipe.device)
    )


def locate_runs(
    assembly: Assembly, plane: Plane, vectors: TaskVectors, traces: Sequence[Trace], *, rerun: bool
) -> Iterator[Located]:
    """The base, every checkpoint of the recipe, then every iterate of every run."""
    projector = Projector(plane, vectors)
    n = vectors.n
    yield Located(BASE, projector.locate(torch.zeros(1, n), "model"))
    for i, name in enumerate(assembly.recipe.checkpoints):
        yield Located(name, projector.locate(torch.nn.functional.one_hot(torch.tensor([i]), n), "model"))
    for trace in traces:
        columns = [vectors.names.index(name) if name in vectors.names else -1 for name in trace.checkpoints]
        iterates = trace.iterates()
        name = f"{describe(trace)} (backbone)" if trace.has_parts else describe(trace)
        shared: dict[str, Any] = {"name": name, "trace_id": trace.id or trace.recipe.fingerprint()}
        shared |= {"tasks": assembly.recipe.tasks, "method": trace.recipe.method}
        for frame in iterates:
            final = frame is iterates[-1]
            if frame.coefficients is not None:
                wide = torch.zeros(len(frame.coefficients), n, dtype=torch.float64)
                for column, values in zip(columns, zip(*frame.coefficients, strict=True), strict=True):
                    if column >= 0:
                        wide[:, column] = torch.tensor(values, dtype=torch.float64)
                place = projector.locate(wide, frame.granularity)
            elif rerun and final:
                with contextlib.suppress(FwvizError):  # a method that no longer passes there has no place either
                    theta = merged_weights(trace, frame.index, assemble(lean(trace.recipe)))
                    yield Located(**shared, place=plane.locate(theta), frame=frame, final=True)
                continue
            else:
                continue
            yield Located(**shared, place=place, frame=frame, final=final)


def _used(trace: Trace) -> tuple[str, ...]:
    """The checkpoints that had a coefficient other than zero in any iterate."""
    used = [False] * len(trace.checkpoints)
    for frame in trace.iterates():
        for row in frame.coefficients or ():
            used = [known or value != 0.0 for known, value in zip(used, row, strict=True)]
    return tuple(name for name, known in zip(trace.checkpoints, used, strict=True) if known)
