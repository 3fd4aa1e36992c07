"""Whether learning without labels has gone wrong: a model that answers everything alike is certain, and useless."""

from __future__ import annotations

import torch
from torch import Tensor

from fwviz.types import Probe, Problem

_INPUTS = 128  # per task: enough to count classes
_LOST = 0.5  # share of the classes answered at the start
_WORSE = 1.02  # times the calibration loss


class Answers:
    """What less entropy has cost, compared with the start: classes that are no longer answered, and calibration loss.

    The number of classes is e to the entropy of the mean prediction over some unlabelled inputs: C where all classes
    are answered alike often, 1 where one is. It needs no label, but a :class:`Probe`. The calibration loss does need
    labels: they are looked at for the warning only, no merge ever depends on it.
    """

    def __init__(self, problem: Problem, theta: Tensor) -> None:
        """Looks at the start, θ (P,)."""
        self._problem = problem
        self._first = self._count(theta)
        self._loss = self._least = self._judge(theta)

    def warning(self, theta: Tensor) -> str:
        """Nothing, or what to add to a note about θ (P,): it narrowed its answers down, or grew surer and worse."""
        now, loss = self._count(theta), self._judge(theta)
        self._least = min(self._least, loss)
        words = ""
        if loss > _WORSE * self._loss:
            words += f"; surer, not better: calibration loss {self._loss:.2f} at the start, {loss:.2f} now"
        elif loss > _WORSE * self._least:
            words += f"; surer, not better: calibration loss {self._least:.2f} at its least, {loss:.2f} now"
        lost = [
            f"{task} ({now[task]:.1f} classes answered, {first:.1f} at the start)"
            for task, first in self._first.items()
            if first > 1.5 and now[task] < _LOST * first
        ]
        return words + (f"; the answers collapse on {', '.join(lost)}" if lost else "")

    def _judge(self, theta: Tensor) -> float:
        return float(self._problem.objective.losses(theta, loss="cross_entropy").mean())

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
