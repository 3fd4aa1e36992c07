"""RegMean: the linear weights whose outputs are nearest to each checkpoint's own, on that checkpoint's inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fwviz.methods._calibrated import SAMPLES_HELP, measure, strangers
from fwviz.registry import merge_method, setting
from fwviz.space.wide import plus
from fwviz.types import Problem, Step


@dataclass(frozen=True)
class Settings:
    """Settings of RegMean; the defaults are those used for vision models."""

    samples: int = setting(256, SAMPLES_HELP, low=1, high=100_000)
    off_diagonal: float = setting(
        0.95,
        "Factor on the off-diagonal entries of the input products, which keeps their sum well conditioned: 0.95 for "
        "vision, 1.0 or 0.6 elsewhere; 0 takes a mean weighted by the size of every input.",
        low=0.0,
        high=1.0,
    )


@merge_method(
    "RegMean",
    Settings,
    data="labels",
    paper="Dataless knowledge fusion by merging weights of language models",
    reference="Jin et al., ICLR 2023, arXiv:2212.09849",
)
def regmean(problem: Problem, settings: Settings) -> Iterator[Step]:
    """Least squares for every linear weight: θ = θ₀ + δ with δᵀ = (Σᵢ Gᵢ)⁻¹·Σᵢ Gᵢ·τᵢᵀ, the other tensors averaged.

    Gᵢ = XᵢᵀXᵢ / N over the inputs Xᵢ of the weight inside checkpoint i, off-diagonal entries times ``off_diagonal``.
    It minimises Σᵢ ‖Xᵢ·W − Xᵢ·Wᵢ‖² over W. A checkpoint whose own task is not among the objective's is measured on the
    joint inputs of all of them, with the same number of inputs in all. Labels are never read.
    A direction that no input has stays at the base.

    Args: ``problem`` with n checkpoints and an objective that is a probe. Yields one Step with the delta (P,). Holds
    the sums Σ Gᵢ and those of one checkpoint, whatever n is.
    Reference: Jin et al. (2023), arXiv:2212.09849, eq. 2 and §4.1.
    """
    vectors, layout = problem.vectors, problem.vectors.layout
    delta = torch.zeros_like(vectors.base, dtype=torch.float32)
    sums: dict[str, Tensor] = {}
    reads: dict[str, str] = {}
    for i in range(vectors.n):
        grams, reads = _grams(problem, settings, i)
        for name, start, stop in zip(layout.names, layout.offsets[:-1], layout.offsets[1:], strict=True):
            tau = vectors.block(start, stop, [i])
            if name in reads:
                gram = grams[reads[name]]
                tau = tau.view(-1, len(gram)) @ gram.to(tau.device)
            delta[start:stop] += tau.view(-1)
        for key, gram in grams.items():
            sums[key] = sums[key].add_(gram) if key in sums else gram
    factors = {key: _factor(sums.pop(key)) for key in tuple(sums)}
    for name in layout.names:
        part = layout.view(delta, name)
        if name in reads:
            factor = factors[reads[name]]
            part.copy_(torch.cholesky_solve(part.t().to(factor), factor).t())
        else:
            part /= vectors.n
    loss = float(problem.objective.losses(plus(vectors.base, delta)).mean())
    note = f"least squares for {len(reads)} linear weights of {vectors.n} checkpoints{strangers(problem)}"
    yield Step(0, delta=delta, loss=loss, status="converged", note=note)


def _grams(problem: Problem, settings: Settings, i: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Gᵢ of checkpoint i by the first of the weights that read the same input, and for each weight that first one."""
    probe = problem.probe()
    grams: dict[str, Tensor] = {}
    reads: dict[str, str] = {}

    def take(theta: Tensor, task: str, count: int, generator: torch.Generator) -> None:
        firsts: dict[int, str] = {}
        found = probe.input_grams(theta, task, count=count, generator=generator)
        for name, gram in found.items():
            first = reads[name] = firsts.setdefault(id(gram), name)
            if first == name:
                grams[name] = grams[name].add_(gram) if name in grams else gram

    count = measure(problem, i, settings.samples, take)
    for gram in grams.values():
        diagonal = gram.diagonal() / count
        gram.mul_(settings.off_diagonal / count).diagonal().copy_(diagonal)
    return grams, reads


def _factor(gram: Tensor) -> Tensor:
    """The Cholesky factor (in, in), in float64. What makes the sum singular, as far as rounding goes, is raised."""
    wide = gram.double()
    level = float(wide.diagonal().mean()) or 1.0
    for power in range(-15, 1):
        factor, failed = torch.linalg.cholesky_ex(wide)
        if not int(failed):
            return factor
        wide.diagonal().add_(level * 10.0**power)
    raise AssertionError("a positive semidefinite matrix plus its mean diagonal has a Cholesky factor")
