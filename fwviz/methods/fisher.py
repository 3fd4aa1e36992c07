"""Fisher merging: a mean of the checkpoints in which every parameter counts by how much the outputs depend on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fwviz.methods._calibrated import SAMPLES_HELP, measure, strangers
from fwviz.registry import merge_method, setting
from fwviz.space.wide import plus
from fwviz.types import Problem, Step


@dataclass(frozen=True)
class Settings:
    """Settings of Fisher merging; the defaults are those of the usual implementations."""

    samples: int = setting(256, SAMPLES_HELP, low=1, high=100_000)
    passes: int = setting(
        256,
        "Backward passes per checkpoint, in which inputs and classes share passes under random signs; 0 makes as many "
        "as the exact Fisher information takes, up to one per input and class.",
        low=0,
        high=1_000_000,
    )
    normalise: bool = setting(True, "Divide each checkpoint's Fisher information by its norm, so that all count alike.")
    floor: float = setting(
        1e-6,
        "Added to every entry of the Fisher information: parameters the outputs do not depend on are averaged.",
        low=1e-12,
        high=1.0,
    )


@merge_method(
    "Fisher merging",
    Settings,
    data="labels",
    paper="Merging models with Fisher-weighted averaging",
    reference="Matena & Raffel, NeurIPS 2022, arXiv:2111.09832",
)
def fisher(problem: Problem, settings: Settings) -> Iterator[Step]:
    """A mean weighted by the diagonal Fisher information: θ = θ₀ + Σᵢ cᵢ·(Fᵢ + floor)·τᵢ / Σᵢ cᵢ·(Fᵢ + floor).

    Fᵢ = E_x Σ_c p_c·(∂ log p_c / ∂θ)² at θᵢ on inputs of its own task, labels weighted by the model's own p;
    cᵢ = 1 / (‖Fᵢ‖₂ + floor), or 1. A checkpoint whose own task is not among the objective's is measured on the joint
    inputs of all of them, with the same number of inputs in all. Labels are never read.

    Other implementations square the gradient of a sum over a batch, which keeps cross terms between inputs; here they
    vanish in the mean, or with ``passes`` = 0 exactly.

    Args: ``problem`` with n checkpoints and an objective that is a probe. Yields the merge of the first i checkpoints
    as inner Steps, then that of all with its loss; deltas (P,). Holds three vectors (P,), whatever n is.
    Reference: Matena & Raffel (2022), arXiv:2111.09832, eq. 3; normalisation as in FusionBench's baselines.
    """
    vectors = problem.vectors
    numerator = torch.zeros_like(vectors.base, dtype=torch.float32)
    denominator = torch.zeros_like(numerator)
    delta = torch.empty_like(numerator)
    for i in range(vectors.n):
        information = _information(problem, settings, i).to(numerator.device)
        weight = 1.0 / (float(information.norm()) + settings.floor) if settings.normalise else 1.0
        for start, stop in pairwise(vectors.layout.offsets):
            part = information[start:stop].add_(settings.floor).mul_(weight)
            denominator[start:stop] += part
            numerator[start:stop] += part.mul_(vectors.block(start, stop, [i])[0])
        torch.div(numerator, denominator, out=delta)
        if i + 1 < vectors.n:
            note = f"Fisher information of {i + 1} of {vectors.n} checkpoints: the mean of those"
            yield Step(0, inner=i + 1, delta=delta, note=note)
    loss = float(problem.objective.losses(plus(vectors.base, delta)).mean())
    note = f"mean of {vectors.n} checkpoints weighted by Fisher information{strangers(problem)}"
    yield Step(0, delta=delta, loss=loss, status="converged", note=note)


def _information(problem: Problem, settings: Settings, i: int) -> Tensor:
    """The diagonal Fisher information of checkpoint i: (P,)."""
    probe = problem.probe()
    parts: list[Tensor] = []  # their sum, once there is one: where one task is measured it needs no vector of its own

    def take(theta: Tensor, task: str, count: int, generator: torch.Generator) -> None:
        passes = max(settings.passes * count // settings.samples, 1) if settings.passes else None
        part = probe.squared_gradients(theta, task, count=count, passes=passes, generator=generator).mul_(count)
        if parts:
            parts[0].add_(part)
        else:
            parts.append(part)

    count = measure(problem, i, settings.samples, take)
    return parts[0].div_(count)
