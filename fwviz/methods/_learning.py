"""What methods that learn coefficients share: updates on the one solver, cut into iterates measured in full."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fwviz import solver
from fwviz.space import simplex
from fwviz.space.wide import minus
from fwviz.types import Groups, Status, Step, TaskVectors

# Iterates of one run: each costs a pass over all samples, which updates on small batches make worth watching.
ITERATES = 10

UPDATES_HELP = "Updates of the coefficients in all."
BATCH_HELP = "Samples per task and update; 0 takes all of them."


def free(weights: Tensor) -> Tensor:
    """No constraint at all."""
    return weights


def unit_box(weights: Tensor) -> Tensor:
    """The nearest point of [0, 1] to every weight."""
    return weights.clamp(0.0, 1.0)


@dataclass(frozen=True)
class Rule:
    """How weights are updated: Adam, or AdamW with ``weight_decay``, then ``project``.

    ``anneal`` lets the rate fall and averages the last quarter; ``batch_size`` 0 takes all samples.
    """

    updates: int
    rate: float
    batch_size: int
    weight_decay: float = 0.0
    anneal: bool = False
    project: solver.Projection = free


def start_steps(landscape: solver.Landscape, start: Tensor, note: str) -> Generator[Step, None, float]:
    """The initial solution, before (inner = 1) and after its loss over all samples, which is returned."""
    rows = landscape.family.coefficients(start)
    yield linear_step(landscape.groups, rows, t=0, inner=1, note=f"initial solution: {note}")
    loss = landscape.value(start)
    note = f"{note}; {_name(landscape)} {loss:.3f}"
    yield linear_step(landscape.groups, rows, t=0, loss=loss, note=f"initial solution: {note}")
    return loss


def learn(
    landscape: solver.Landscape, start: Tensor, rule: Rule, generator: torch.Generator, names: Sequence[str]
) -> Generator[Step, None, Tensor]:
    """Run the rule, yielding every update (inner > 0) and up to ten iterates with their loss over all samples.

    Args: ``start`` (rows, m); ``names`` of the n checkpoints, for the notes. Returns the last weights (rows, m).
    """
    updates = solver.adam(
        landscape,
        start,
        rule.project,
        updates=rule.updates,
        rate=rule.rate,
        batch_size=rule.batch_size or None,
        generator=generator,
        decay=rule.anneal,
        weight_decay=rule.weight_decay,
    )
    iterates = min(ITERATES, rule.updates)
    t, done, weights = 1, 0, start
    for progress in updates:
        weights = progress.weights
        rows = landscape.family.coefficients(weights)
        yield linear_step(
            landscape.groups,
            rows,
            t=t,
            inner=progress.update - done,
            loss=progress.loss,
            note=f"update {progress.update} of {rule.updates}: {_name(landscape)} of the batch {progress.loss:.3f}",
        )
        if progress.update == t * rule.updates // iterates:
            loss = landscape.value(weights)
            yield linear_step(
                landscape.groups,
                rows,
                t=t,
                loss=loss,
                status="max_steps" if t == iterates else "running",
                note=f"{progress.update} updates: {_name(landscape)} {loss:.3f}; "
                + coefficient_words(rows, landscape.groups, names),
            )
            t, done = t + 1, progress.update
    return weights


def as_deltas(steps: Iterable[Step], vectors: TaskVectors, out: Tensor) -> Iterator[Step]:
    """The same steps as differences to the base, for coefficients of changed task vectors ``vectors``.

    A difference is rebuilt into ``out`` (P,), so of the updates inside an iterate only every tenth is shown.
    """
    for step in steps:
        if step.inner == 0 or step.inner % 10 == 1:
            assert step.coefficients is not None
            groups = vectors.layout.groups(step.granularity)
            delta = minus(vectors.combine(step.coefficients, groups, out=out), vectors.base, out)
            yield replace(step, coefficients=None, delta=delta, in_hull=None)


def coefficient_words(rows: Tensor, groups: Groups, names: Sequence[str]) -> str:
    """Plain words for λ (G, n): the checkpoint that counts most on average, and the largest single coefficient."""
    mean = rows.mean(dim=0)
    most = int(mean.argmax())
    text = f"largest mean coefficient {float(mean[most]):.2f} for {names[most]}"
    if len(groups) > 1:
        group, i = divmod(int(rows.argmax()), rows.shape[1])
        text += f", up to {float(rows[group, i]):.2f} for {names[i]} in {groups.names[group]}"
    negative = float((rows < 0).double().mean())
    return f"{text}, {100 * negative:.0f} % negative" if negative else text


def _name(landscape: solver.Landscape) -> str:
    return "entropy" if landscape.loss == "entropy" else "calibration loss"


def linear_step(
    groups: Groups,
    rows: Tensor,
    *,
    t: int,
    note: str,
    inner: int = 0,
    loss: float | None = None,
    status: Status = "running",
) -> Step:
    """A step with coefficients (G, n) and a note, its place in the hull found out."""
    return Step(
        t=t,
        inner=inner,
        granularity=groups.granularity,
        coefficients=rows.float(),
        loss=loss,
        in_hull=simplex.in_hull(rows),
        status=status,
        note=note,
    )
