"""FREE-Merging: FR-Merging's backbone, and for each task its largest changes as a sparse expert behind a router."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fwviz.methods import _experts, _frequency
from fwviz.registry import merge_method, setting
from fwviz.space.experts import SparseExpert
from fwviz.space.selection import order_statistics
from fwviz.space.wide import plus, total
from fwviz.tasks.extended import stored_bytes
from fwviz.types import Expert, Extension, ParamLayout, Problem, Step


@dataclass(frozen=True)
class Settings:
    """The backbone, the experts and the router."""

    mode: str = _frequency.mode_setting()
    cutoff: float = _frequency.cutoff_setting(0.1)
    ratio: float = _frequency.ratio_setting()
    filter_tensors: str = _frequency.tensors_setting()
    others: str = _frequency.others_setting("merged")
    weights: str = setting(
        "uniform",
        "Weights of the checkpoints in the backbone: alike; in proportion to their mean magnitude (eq. 3), which lets "
        "a checkpoint from another base drown the others; or in every tensor raised to the largest mean magnitude, "
        "each divided by their number (released code).",
        choices=("proportional", "equalised", "uniform"),
    )
    backbone_scale: float = setting(
        1.0, "Factor on these weights; at 1 the uniform and the proportional ones sum to 1.", low=0.0, high=10.0
    )
    density: float = setting(
        0.1,
        "Share of the parameters an expert keeps; 1 % in the paper, 2 % for 30 tasks. The small model of the embedded "
        "pool spreads its changes wider: on its validation data, four tasks of it, 1 % with factor 4 keep 90 % of the "
        "single checkpoints' accuracy, 5 % with factor 2 keep 96 %, and 10 % with factor 1.5 keep 97 %.",
        low=0.0005,
        high=1.0,
    )
    top: str = setting(
        "vector",
        "Keep the largest changes of the whole task vector (paper) or of each row of each matrix (released code).",
        choices=("vector", "row"),
    )
    rescale: str = setting(
        "constant",
        "Factor on what an expert keeps: eq. 4 of the paper, that of the released code, which has no λ and takes the "
        "mean of the kept entries, or a constant, as the released code for 30 tasks does.",
        choices=("paper", "official", "constant"),
    )
    constant: float = setting(
        1.5,
        "The constant factor; 7 in the released code for 30 vision tasks, 10 for RoBERTa. The default is the best on "
        "the embedded pool's validation data, where the other two rules give much more than helps.",
        low=0.0,
        high=100.0,
        applies={"rescale": ("constant",)},
    )
    combine: str = setting(
        "add",
        "Add the expert to the backbone (paper), or let it take the place of the backbone's change where it has an "
        "entry (released code).",
        choices=("add", "replace"),
    )
    router: str = _experts.router_setting(
        "trained",
        "Who picks the expert: a small network trained on features of the backbone, as in the paper, somebody who "
        "knows the task, or chance.",
    )
    choice: str = _experts.choice_setting(
        "hard", "Take the expert of the most likely task, as in the paper, or mix those of the two most likely ones."
    )
    share: float = _experts.share_setting()


@merge_method(
    "FREE-Merging",
    Settings,
    data="labels",
    paper="FREE-Merging: Fourier transform for efficient model merging",
    reference="Zheng & Wang, ICCV 2025, arXiv:2411.16815",
    extends=True,
)
def free_merging(problem: Problem, settings: Settings) -> Iterator[Step]:
    """A filtered backbone and light experts: θ(x) = θ_m + Σ_t w_t(x)·μ_t·M(τ_t, d), θ_m = θ₀ + scale·Σᵢ λᵢ·G(τᵢ).

    G and λ are those of FR-Merging. M keeps the share d of largest magnitude. The factor μ (eq. 4) is
    −E|M|·ln d / (λ_t·E|τ_t|) with E over all parameters, those M drops included; over the kept ones only it would be in
    the hundreds. The released code computes −log₁₀ d·E_kept|M| / E|G(τ_t)| from means per tensor. w is one expert per
    input (hard) or the two most likely ones; a task without an expert is answered by the backbone.

    All n checkpoints make the backbone; each task with a checkpoint of its own gets an expert (of several it is the
    one with the lowest calibration loss). An expert is stored as float16 values and packed indices. With the share of
    data the paper calls 0 % there is no router: that is FR-Merging itself.

    Yields one Step with the backbone's delta (P,) and an extension. Memory beyond it is a task vector and its experts.
    Reference: Zheng & Wang (2025), arXiv:2411.16815, eq. 1–4, algorithm 1, appendix D.5–D.6; the code released with it.
    """
    vectors, layout = problem.vectors, problem.vectors.layout
    passing = _frequency.Filter(mode=settings.mode, cutoff=settings.cutoff, ratio=settings.ratio)
    own = _experts.expert_checkpoints(problem)
    delta = _frequency.frequency_delta(
        vectors,
        passing,
        filter_tensors=settings.filter_tensors,
        others=settings.others,
        weights=settings.weights,
    )
    # λ of every checkpoint as eq. 3 has it, with sum 1; equalised weights have no such sum, and count as uniform.
    lambdas = [1 / vectors.n] * vectors.n
    if settings.weights == "proportional":
        lambdas = _frequency.magnitude_shares(vectors, _frequency.filtered_tensors(layout, settings.filter_tensors))
        delta.mul_(settings.backbone_scale)
    else:
        delta.mul_(settings.backbone_scale / vectors.n)
    theta = plus(vectors.base, delta)
    experts: dict[str, Expert] = {}
    factors = {}
    for task, i in own.items():
        tau = vectors.vector(i)
        indices = largest(tau, layout, settings.density, settings.top)
        if settings.rescale == "paper":
            mu = paper_factor(tau, indices, settings.density, lambdas[i] * settings.backbone_scale)
        elif settings.rescale == "official":
            chosen = _frequency.filtered_tensors(layout, settings.filter_tensors)
            mu = official_factor(tau, indices, settings.density, layout, passing, chosen)
        else:
            mu = settings.constant
        values = mu * tau[indices]
        if settings.combine == "replace":
            values -= delta[indices]  # added to the backbone, this leaves the expert's change alone
        experts[task] = SparseExpert.make(indices, values, layout.size)
        factors[task] = mu
    router = _experts.make_router(problem, theta, settings.router, settings.choice, settings.share)
    extension = Extension(router, experts)
    words = ", ".join(f"{task} {mu:.3g}" for task, mu in factors.items())
    yield Step(
        0,
        delta=delta,
        extension=extension,
        status="converged",
        note=f"{len(experts)} experts of {100 * settings.density:.3g} % of the parameters "
        f"({stored_bytes(extension):,} bytes with the router), factors {words}"
        + _frequency.nothing_filtered(layout, settings.filter_tensors, settings.others),
    )


def largest(tau: Tensor, layout: ParamLayout, density: float, top: str) -> Tensor:
    """Coordinates of the largest magnitudes of τ (P,), ascending: ⌊density·size⌋ and at least 1, more where they tie.

    Fewer where τ is zero, which is no change to keep; at density 1 every coordinate, whatever it is.

    ``top`` = "vector" looks at all coordinates together, "row" at each row of each matrix and each vector on its own.
    """
    if density >= 1.0:
        return torch.arange(layout.size, device=tau.device)
    if top == "vector":
        rank = layout.size - max(1, int(density * layout.size))
        bound = order_statistics(lambda start, stop: tau[None, start:stop].abs(), 0, layout.size, [rank], 1)
        return ((tau.abs() >= float(bound)) & tau.ne(0)).nonzero().flatten()
    found = []
    for (start, stop), shape in zip(pairwise(layout.offsets), layout.shapes, strict=True):
        rows = tau[start:stop].abs().view(shape[0] if len(shape) > 1 else 1, -1)
        count = max(1, int(density * rows.shape[1]))
        bound = rows.kthvalue(rows.shape[1] - count + 1, dim=1, keepdim=True).values
        found.append(((rows >= bound) & rows.gt(0)).flatten().nonzero().flatten() + start)
    return torch.cat(found)


def paper_factor(tau: Tensor, indices: Tensor, density: float, weight: float) -> float:
    """μ = −E|M|·ln d / (λ·E|τ|), both means over all parameters; ``weight`` is λ; 0 where τ is."""
    whole = total(tau.abs())
    kept = total(tau[indices].abs())
    return -kept * math.log(density) / (weight * whole) if weight * whole > 0 else 0.0


def official_factor(
    tau: Tensor,
    indices: Tensor,
    density: float,
    layout: ParamLayout,
    passing: _frequency.Filter,
    chosen: frozenset[int],
) -> float:
    """μ = −log₁₀ d·Σ_p mean|M_p|/d / Σ_p mean|G(τ_p)| over the filtered tensors p, as released; 0 where τ is."""
    kept = torch.zeros_like(tau)
    kept[indices] = tau[indices].abs()
    top, bottom = 0.0, 0.0
    for j in sorted(chosen):
        start, stop = layout.offsets[j : j + 2]
        top += float(kept[start:stop].mean()) / density
        bottom += float(passing(tau[start:stop].view(layout.shapes[j])).abs().mean())
    return -math.log10(density) * top / bottom if bottom > 0 else 0.0
