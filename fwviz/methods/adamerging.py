"""AdaMerging: coefficients that make the merged model certain of its answers on unlabelled inputs."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fwviz import solver
from fwviz.methods._answers import Answers
from fwviz.methods._learning import BATCH_HELP, UPDATES_HELP, Rule, as_deltas, learn, start_steps, unit_box
from fwviz.registry import merge_method, setting
from fwviz.space.transformed import elected
from fwviz.types import GRANULARITIES, Granularity, Groups, LossName, Problem, Step


@dataclass(frozen=True)
class Settings:
    """Settings of AdaMerging; the defaults are those of the released code, layer-wise."""

    granularity: Granularity = setting(
        "tensor",
        "What gets its own coefficients: each tensor (the paper's layer-wise), each layer, or the whole model (its "
        "task-wise).",
        choices=GRANULARITIES,
    )
    loss: LossName = setting(
        "entropy",
        "Entropy of the predictions on unlabelled test inputs as in the paper, or cross-entropy on calibration labels.",
        choices=("entropy", "cross_entropy"),
    )
    plus_plus: bool = setting(
        False, "AdaMerging++: learn coefficients of what TIES keeps, the largest entries that have the elected sign."
    )
    density: float = setting(
        0.2, "Share of each task vector that is kept.", low=0.0, high=1.0, applies={"plus_plus": (True,)}
    )
    init_scale: float = setting(0.3, "Coefficient of every task vector at the start.", low=0.0, high=1.0)
    updates: int = setting(500, UPDATES_HELP, low=1, high=5000)
    batch_size: int = setting(16, BATCH_HELP, low=0, high=1024)
    learning_rate: float = setting(0.001, "Largest change of a coefficient per update.", low=1e-5, high=1.0)


@merge_method(
    "AdaMerging",
    Settings,
    data="inputs",
    paper="AdaMerging",
    reference="Yang et al., ICLR 2024, arXiv:2310.02575",
)
def adamerging(problem: Problem, settings: Settings) -> Iterator[Step]:
    """Learn coefficients without labels: θ(j) = θ₀(j) + Σᵢ λ[j, i]·τᵢ(j), λ ∈ [0, 1] of the least mean entropy.

    λ = argmin Σ_k mean over inputs x of task k of −Σ_c p_c(x)·ln p_c(x), by Adam (1e-3, β = 0.9, 0.999) from 0.3
    everywhere. A model that gives every input the same confident answer has no entropy either: where the answers to a
    task narrow down to half the classes of the start, or the calibration loss rises, the note says so.

    ``plus_plus`` puts τ̂ᵢ, what steps 1 and 2 of TIES keep of τᵢ, in the place of τᵢ. The merge is then not linear in
    the checkpoints and Steps carry ``delta``; τ̂ᵢ is made anew whenever it is read, from one byte per coordinate.

    On the embedded pool entropy misleads layer-wise coefficients: in 30 updates at rate 0.01 it halves while the
    calibration loss rises from 1.39 to 2.46, and the note says so.

    Args: ``problem``, ``settings``. Yields t = 0 before (inner = 1) and after its loss, then every update (inner > 0;
    every tenth with ``plus_plus``) and ten iterates with their loss over all inputs.
    Deviations from the released code: coefficients are projected onto [0, 1] after each update; there they are clamped
    when merging only, so that one that has left the interval gets no gradient and never returns.
    Reference: Yang et al. (2024), AdaMerging, arXiv:2310.02575, eq. 5–7; settings of the released code.
    """
    groups = problem.groups(settings.granularity)
    if not settings.plus_plus:
        yield from adapt(problem, settings, groups)
        return
    vectors = elected(problem.vectors, settings.density)
    delta = torch.empty_like(vectors.base, dtype=torch.float32)
    yield from as_deltas(adapt(replace(problem, vectors=vectors), settings, groups), vectors, delta)


def adapt(problem: Problem, settings: Settings, groups: Groups) -> Generator[Step, None, Tensor]:
    """AdaMerging with coefficients for any groups; returns λ (G, n) in float64."""
    vectors = problem.vectors
    theta = problem.room()
    family = solver.Affine.free(len(groups), vectors.n)
    landscape = solver.Landscape(family, vectors, groups, problem.objective, settings.loss, theta)
    weights = torch.full((len(groups), vectors.n), settings.init_scale, dtype=torch.float64)
    rule = Rule(settings.updates, settings.learning_rate, settings.batch_size, project=unit_box)
    yield from start_steps(landscape, weights, f"every coefficient {settings.init_scale:g}")
    answers = Answers(problem, landscape.point(weights)) if settings.loss == "entropy" else None
    steps = learn(landscape, weights, rule, problem.generator(), vectors.names)
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            weights = end.value
            return family.coefficients(weights)
        if answers is not None and step.inner == 0 and step.coefficients is not None:
            theta = vectors.combine(step.coefficients, groups, out=theta)
            step = replace(step, note=step.note + answers.warning(theta))
        yield step
