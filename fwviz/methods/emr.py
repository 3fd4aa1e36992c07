"""EMR-Merging: one elected task vector, and for each task a mask and a factor that bend it back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fwviz.methods import _experts
from fwviz.registry import merge_method, setting
from fwviz.space.blocks import Blocks, Piece
from fwviz.space.experts import MaskExpert, pack_bits, smallest_exact
from fwviz.space.wide import plus, total
from fwviz.tasks.extended import stored_bytes
from fwviz.types import Extension, ParamLayout, Problem, Step


@dataclass(frozen=True)
class Settings:
    """How masks are rescaled and inputs are routed."""

    rescale: str = setting(
        "paper",
        "Factor of a task: ratio of the magnitudes of its task vector and the masked elected one, summed over all "
        "parameters (paper) or averaged in each tensor first, so that small tensors count as much as large ones (the "
        "released code).",
        choices=("paper", "official"),
    )
    router: str = _experts.router_setting(
        "oracle",
        "Who picks the mask: somebody who knows the task, as in the paper, a router trained on features of the elected "
        "model, or chance.",
    )
    choice: str = _experts.choice_setting(
        "hard", "Take the mask of the most likely task, or mix the weights of the two most likely ones."
    )
    share: float = _experts.share_setting()


@merge_method(
    "EMR-Merging",
    Settings,
    data="labels",
    paper="EMR-Merging: tuning-free high-performance model merging",
    reference="Huang et al., NeurIPS 2024, arXiv:2405.17461",
    extends=True,
)
def emr(problem: Problem, settings: Settings) -> Iterator[Step]:
    """Elect, mask, rescale: θ_t = θ₀ + λ_t·M_t ⊙ τ_uni, with the backbone θ = θ₀ + τ_uni.

    γ = sgn(Σᵢ τᵢ), and τ_uni = γ ⊙ the largest |τᵢ| among those whose sign is γ; M_t = 1[τ_t ⊙ τ_uni > 0] and
    λ_t = Σ|τ_t| / Σ|M_t ⊙ τ_uni|. All n checkpoints elect; each task with a checkpoint of its own gets a mask (of
    several it is the one with the lowest calibration loss, which is all the objective is used for unless a router is
    trained).

    Stored beside the backbone: a bit per parameter and task, and θ₀ in the smallest type that holds it exactly.

    Yields one Step with the backbone's delta (P,) and an extension of masks. Reads the checkpoints once, those of the
    tasks a second time; memory beyond the result does not depend on n.
    Reference: Huang et al. (2024), arXiv:2405.17461, §3.2; the factor also as in the released code.
    """
    vectors = problem.vectors
    own = _experts.expert_checkpoints(problem)
    unified = elect(Blocks(vectors))
    base = smallest_exact(vectors.base)
    experts = {}
    for task, i in own.items():
        tau = vectors.vector(i)
        mask = tau * unified > 0
        factor = rescaler(tau, mask, unified, vectors.layout, settings.rescale)
        experts[task] = MaskExpert(pack_bits(mask), factor, base)
    theta = plus(vectors.base, unified)
    router = _experts.make_router(problem, theta, settings.router, settings.choice, settings.share)
    extension = Extension(router, dict(experts))
    factors = ", ".join(f"{task} {expert.scale:.3g}" for task, expert in experts.items())
    yield Step(
        0,
        delta=unified,
        extension=extension,
        status="converged",
        note=f"{len(experts)} masks of one bit per parameter ({stored_bytes(extension):,} bytes), factors {factors}",
    )


def elect(blocks: Blocks) -> Tensor:
    """τ_uni (P,): the entry of largest magnitude among those with the sign of the sum, − where the sum is 0."""

    def work(block: Tensor, piece: Piece) -> Tensor:
        positive = block.sum(dim=0) > 0
        return torch.where(positive, block.amax(dim=0).clamp_(min=0), block.amin(dim=0).clamp_(max=0))

    return blocks.merge(work, blocks.pieces((0, blocks.layout.size)))


def rescaler(tau: Tensor, mask: Tensor, unified: Tensor, layout: ParamLayout, rule: str) -> float:
    """λ_t of one task vector (P,), its mask (P,) and the elected one (P,); 1 if the mask keeps nothing."""
    own, kept = tau.abs(), (unified * mask).abs_()
    if rule == "paper":
        top, bottom = total(own), total(kept)
    else:
        bounds = list(layout.groups("tensor").ranges())
        top, bottom = (sum(total(part[a:b]) / (b - a) for a, b in bounds) for part in (own, kept))
    return top / bottom if bottom > 0 else 1.0
