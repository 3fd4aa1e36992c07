"""Whether learning without labels has gone wrong: a model that answers everything alike is certain, and useless."""

from __future__ import annotations

import torch
from torch import Tensor

from fwviz.types import Probe, Problem

_INPUTS = 128  # per task: enough to count classes
_LOST = 0.5  # share of the classes answered at the start


class Answers:
    """How many classes the model answers with, task by task, compared with the start.

    The number is e to the entropy of the mean prediction over some unlabelled inputs: C where all classes are answered
    alike often, 1 where one is. It needs no label. Without a :class:`Probe` nothing is counted and nothing said.
    """

    def __init__(self, problem: Problem, theta: Tensor) -> None:
        """Counts at the start, θ (P,)."""
        self._problem = problem
        self._first = self._count(theta)

    def warning(self, theta: Tensor) -> str:
        """ "" or what to add to a note: the tasks whose answers at θ narrowed down to half the classes of the start."""
        now = self._count(theta)
        lost = [
            f"{task} ({now[task]:.1f} classes answered, {first:.1f} at the start)"
            for task, first in self._first.items()
            if first > 1.5 and now[task] < _LOST * first
        ]
        return f"; the answers collapse on {', '.join(lost)}" if lost else ""

    def _count(self, theta: Tensor) -> dict[str, float]:
        objective = self._problem.objective
        if not isinstance(objective, Probe):
            return {}
        found = {}
        for task in objective.tasks:
            features = objective.features(
                theta, task, unlabelled=True, count=_INPUTS, generator=self._problem.generator(1)
            )
            mean = torch.softmax(features @ objective.head(task).to(features).T, dim=1).double().mean(dim=0)
            found[task] = float(torch.special.entr(mean).sum().exp())
        return found
