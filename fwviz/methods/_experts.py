"""What the methods with experts share: whose expert answers a task, and the router that chooses."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from fwviz.registry import setting
from fwviz.tasks.router import CHOICES, Choice, OracleRouter, RandomRouter, train_router
from fwviz.types import FwvizError, Problem, Router

ROUTERS = ("trained", "oracle", "random")


def router_setting(default: str, help: str) -> Any:
    """The field ``router``."""
    return setting(default, help, choices=ROUTERS)


def choice_setting(default: str, help: str) -> Any:
    """The field ``choice``."""
    return setting(default, help, choices=CHOICES, applies={"router": ("trained",)})


def share_setting() -> Any:
    """The field ``share``."""
    return setting(
        1.0,
        "Share of the calibration inputs the router learns from. The embedded pool has about 120 a task, which is some "
        "per cent of what its checkpoints were trained on; the paper takes 1 % of the training data.",
        low=0.01,
        high=1.0,
        applies={"router": ("trained",)},
    )


def expert_checkpoints(problem: Problem) -> dict[str, int]:
    """Task → index of the checkpoint its expert is made of, for the tasks that have one.

    Of several checkpoints fine-tuned on a task it is the one with the lowest calibration loss there, whatever their
    order. Where the problem does not say what any checkpoint was fine-tuned on, all of them are candidates for every
    task. Checkpoints of no evaluated task are in the backbone only. Raises FwvizError if no task has an expert.
    """
    n = problem.vectors.n
    known = any(problem.owners)
    chosen: dict[str, int] = {}
    for task in problem.objective.tasks:
        candidates = [i for i in range(n) if not known or problem.owner(i) == task]
        if len(candidates) > 1:
            chosen[task] = min(candidates, key=lambda i: _loss(problem, i, task))
        elif candidates:
            chosen[task] = candidates[0]
    if not chosen:
        raise FwvizError(
            "none of the chosen checkpoints was fine-tuned on a chosen task, so nothing can be an expert: add one."
        )
    return chosen


def _loss(problem: Problem, i: int, task: str) -> float:
    theta = problem.vectors.vector(i).add_(problem.vectors.base)
    loss = float(problem.objective.losses(theta, tasks=(task,)))
    return loss if math.isfinite(loss) else math.inf


def make_router(problem: Problem, theta: Tensor, kind: str, choice: str, share: float) -> Router:
    """The router over the objective's tasks; a trained one reads the features of the backbone θ (P,).

    It learns from ``share`` of each task's calibration inputs and from which task they belong to, not from labels.
    """
    tasks = problem.objective.tasks
    if kind == "oracle":
        return OracleRouter(tasks)
    if kind == "random":
        return RandomRouter(tasks, problem.seed)
    probe = problem.probe()
    draws = problem.generator(stream=1)
    features = {}
    for task in tasks:
        count = max(1, round(share * probe.labels(task).numel())) if share < 1 else None
        features[task] = probe.features(theta, task, count=count, generator=draws)
    picked: Choice = "soft" if choice == "soft" else "hard"
    return train_router(features, choice=picked, generator=problem.generator(stream=2))
