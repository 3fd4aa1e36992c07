"""Representation Surgery: a merged model, and for each task a small correction of its features."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from fwviz.methods import _experts
from fwviz.methods.task_arithmetic import Settings as TaskArithmetic
from fwviz.methods.task_arithmetic import task_arithmetic
from fwviz.methods.ties import Settings as Ties
from fwviz.methods.ties import ties
from fwviz.methods.weight_average import Settings as WeightAverage
from fwviz.methods.weight_average import weight_average
from fwviz.registry import merge_method, setting
from fwviz.space.wide import plus
from fwviz.tasks.router import OracleRouter
from fwviz.tasks.surgery import SurgeryMap, corrected
from fwviz.types import Extension, FeatureMap, Problem, Step

_ROUNDS = 10  # completed iterates that share the updates

# Task → (down (r, D), up (D, r)), leaves of the gradient.
Corrections = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Settings:
    """The merge that is corrected, and how its corrections are learnt."""

    backbone: str = setting(
        "task_arithmetic",
        "The merge whose features are corrected, with its own default settings.",
        choices=("task_arithmetic", "weight_average", "ties"),
    )
    backbone_scale: float = setting(
        0.3,
        "Coefficient of every task vector; 0.3 in the paper.",
        low=0.0,
        high=2.0,
        applies={"backbone": ("task_arithmetic",)},
    )
    rank: int = setting(16, "Width of the correction of each task; 16 in the paper.", low=1, high=256)
    updates: int = setting(500, "Updates of Adam; 500 to 1000 in the paper.", low=0, high=10_000)
    rate: float = setting(1e-3, "Learning rate of Adam.", low=1e-5, high=0.1)
    batch: int = setting(16, "Inputs per task in an update.", low=1, high=1024)


@merge_method(
    "Representation Surgery",
    Settings,
    data="inputs",
    paper="Representation surgery for multi-task model merging",
    reference="Yang et al., ICML 2024, arXiv:2402.02705",
    extends=True,
)
def surgery(problem: Problem, settings: Settings) -> Iterator[Step]:
    """Bend the merged features back to the task's own: f̂ = f − up_t·relu(down_t·f), f the features at the merged θ.

    The corrections minimise Σ_t mean |f̂ − f_t|, with f_t the features of the task's own checkpoint on the same inputs,
    by Adam from up = 0, so that the start is the merge itself. Inputs are unlabelled test inputs, as in the paper. Of
    several checkpoints of a task it is the one with the lowest calibration loss; a task without any is not corrected.
    θ = θ₀ + the backbone's delta never changes. Features have length 1, and so have those that the heads read.

    Yields the merge with corrections that do nothing, then a Step per tenth of the updates. Features of both models
    are computed once, so an update costs next to nothing.
    Reference: Yang et al. (2024), arXiv:2402.02705, eq. 4–6.
    """
    vectors, probe = problem.vectors, problem.probe()
    own = _experts.expert_checkpoints(problem)
    merged = _backbone(problem, settings)
    if merged.delta is None:
        assert merged.coefficients is not None
        theta = vectors.combine(merged.coefficients, problem.groups(merged.granularity))
    else:
        theta = plus(vectors.base, merged.delta)
    features: dict[str, Tensor] = {}
    targets: dict[str, Tensor] = {}
    for task, i in own.items():
        features[task] = probe.features(theta, task, unlabelled=True)
        targets[task] = probe.features(vectors.vector(i).add_(vectors.base), task, unlabelled=True)
    corrections = initial(features, settings.rank, problem.generator(stream=1))
    optimiser = torch.optim.Adam([x for pair in corrections.values() for x in pair], lr=settings.rate)
    draws = problem.generator(stream=2)
    done = 0
    for t in range(_ROUNDS + 1):
        goal = settings.updates * t // _ROUNDS
        while done < goal:
            batches = {task: torch.randperm(len(x), generator=draws)[: settings.batch] for task, x in features.items()}
            with torch.enable_grad():
                optimiser.zero_grad()
                distance(corrections, features, targets, batches).backward()
                optimiser.step()
            done += 1
        with torch.no_grad():
            remaining = float(distance(corrections, features, targets)) / len(corrections)
        maps: dict[str, FeatureMap] = {
            task: SurgeryMap(down.detach().clone(), up.detach().clone()) for task, (down, up) in corrections.items()
        }
        yield replace(
            merged,
            t=t,
            extension=Extension(OracleRouter(problem.objective.tasks), maps=maps),
            status="max_steps" if t == _ROUNDS else "running",
            note=f"after {done} updates features are {remaining:.4g} off those of the tasks' own checkpoints",
        )


def initial(features: dict[str, Tensor], rank: int, generator: torch.Generator) -> Corrections:
    """down uniform in ±1/√D, as a linear layer begins, and up = 0: corrections that change nothing."""
    corrections = {}
    for task, x in features.items():
        width = x.shape[1]
        down = torch.rand(rank, width, generator=generator).mul_(2).sub_(1).div_(math.sqrt(width))
        corrections[task] = (down.requires_grad_(True), torch.zeros(width, rank, requires_grad=True))
    return corrections


def distance(
    corrections: Corrections,
    features: dict[str, Tensor],
    targets: dict[str, Tensor],
    rows: dict[str, Tensor] | None = None,
) -> Tensor:
    """Σ_t mean |f̂ − f_t| over the rows given, or all, and the D entries."""
    total = torch.zeros(())
    for task, (down, up) in corrections.items():
        x, y = features[task], targets[task]
        if rows is not None:
            x, y = x[rows[task]], y[rows[task]]
        total = total + F.l1_loss(corrected(x, down, up), y)
    return total


def _backbone(problem: Problem, settings: Settings) -> Step:
    """The last step of the merge that is corrected, with a delta of its own."""
    if settings.backbone == "task_arithmetic":
        steps = task_arithmetic(problem, TaskArithmetic(scale=settings.backbone_scale))
    elif settings.backbone == "weight_average":
        steps = weight_average(problem, WeightAverage())
    else:
        steps = ties(problem, Ties())
    *_, last = steps
    return replace(last, delta=None if last.delta is None else last.delta.clone())
