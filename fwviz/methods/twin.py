"""Twin-Merging: a shared model, and for each task the leading directions of what its own checkpoint has beyond it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fwviz.methods import _experts
from fwviz.registry import merge_method, setting
from fwviz.space.experts import LowRankExpert
from fwviz.tasks.extended import stored_bytes
from fwviz.types import Expert, Extension, ParamLayout, Problem, Step


@dataclass(frozen=True)
class Settings:
    """The shared model, the rank of the experts and how inputs are routed."""

    backbone_scale: float = setting(
        1.0,
        "Sum of the coefficients of the task vectors in the shared model, the same for each: 1 is their average. The "
        "paper's 0.3 for each of 8 is 2.4; with many checkpoints less is better.",
        low=0.0,
        high=20.0,
    )
    rank: float = setting(
        0.1, "Share of the singular values of each matrix an expert keeps; 10 % in the paper.", low=0.005, high=1.0
    )
    router: str = _experts.router_setting(
        "trained",
        "Who weighs the experts: a small network trained on features of the shared model, as in the paper, somebody "
        "who knows the task, or chance.",
    )
    choice: str = _experts.choice_setting(
        "soft",
        "Mix the experts of the two most likely tasks (the paper mixes all by their probabilities), or take the most "
        "likely one.",
    )
    share: float = _experts.share_setting()


@merge_method(
    "Twin-Merging",
    Settings,
    data="labels",
    paper="Twin-Merging: dynamic integration of modular expertise in model merging",
    reference="Lu et al., NeurIPS 2024, arXiv:2406.15479",
    extends=True,
)
def twin(problem: Problem, settings: Settings) -> Iterator[Step]:
    """Shared and exclusive knowledge: θ(x) = θ* + Σ_t w_t(x)·SVD_r(θ_t − θ*), θ* = θ₀ + (scale/n)·Σᵢ τᵢ.

    All n checkpoints make the shared model; each task with a checkpoint of its own gets an expert (of several it is
    the one with the lowest calibration loss). Matrices keep their r leading singular triplets, r a share of the shorter
    side and at least 1; tensors with more than two dimensions count as matrices of their first; vectors are kept whole.
    The weights w come from a router on features of θ*; soft ones are those of the two most likely tasks, rounded to
    eighths, so that inputs with equal weights are encoded together.

    Yields one Step with coefficients (1, n) of the shared model and an extension of factors in float16. Reads the
    checkpoints of the tasks one at a time.
    Reference: Lu et al. (2024), arXiv:2406.15479, eq. 2–4.
    """
    vectors = problem.vectors
    own = _experts.expert_checkpoints(problem)
    coefficients = torch.full((1, vectors.n), settings.backbone_scale / vectors.n)
    theta = vectors.combine(coefficients, problem.groups("model"))
    experts: dict[str, Expert] = {}
    for task, i in own.items():
        exclusive = vectors.vector(i).add_(vectors.base).sub_(theta)
        experts[task] = low_rank(exclusive, vectors.layout, settings.rank)
    router = _experts.make_router(problem, theta, settings.router, settings.choice, settings.share)
    extension = Extension(router, experts)
    yield Step(
        0,
        coefficients=coefficients,
        in_hull=settings.backbone_scale <= 1.0 + 1e-6,
        extension=extension,
        status="converged",
        note=f"{len(experts)} experts of {100 * settings.rank:.3g} % of the singular values "
        f"({stored_bytes(extension):,} bytes)",
    )


def low_rank(delta: Tensor, layout: ParamLayout, share: float) -> LowRankExpert:
    """The best approximation of every matrix of δ (P,) by ``share`` of its singular values; vectors as they are."""
    factors: dict[int, tuple[Tensor, Tensor]] = {}
    vectors: dict[int, Tensor] = {}
    for at, shape in zip(layout.offsets[:-1], layout.shapes, strict=True):
        if len(shape) < 2:
            vectors[at] = delta[at : at + torch.Size(shape).numel()]
            continue
        matrix = delta[at : at + torch.Size(shape).numel()].view(shape[0], -1)
        rank = max(1, round(share * min(matrix.shape)))
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        root = s[:rank].sqrt()  # in both factors, so that float16 holds either
        factors[at] = (u[:, :rank] * root, root[:, None] * vh[:rank])
    return LowRankExpert.make(layout.size, factors, vectors)
