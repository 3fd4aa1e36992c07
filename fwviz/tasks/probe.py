"""What can be measured inside a model at its present weights, beyond losses: Fisher information and input products."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fwviz.backbones.family import Backbone
from fwviz.space.binding import FlatParameters
from fwviz.tasks.heads import Head

# Directions with a smaller share of a sample's information are beyond float32.
_NEGLIGIBLE = 1e-6


@torch.no_grad()
def features(backbone: Backbone, inputs: Tensor, chunk: int, check: Callable[[], None]) -> Tensor:
    """Unit features at the backbone's weights: inputs (N, …) → (N, D) float32, CPU."""
    parts = []
    for part in inputs.split(chunk):
        check()
        parts.append(backbone.features([part]).cpu())
    return torch.cat(parts)


@torch.no_grad()
def input_grams(
    backbone: Backbone, flat: FlatParameters, inputs: Tensor, chunk: int, check: Callable[[], None]
) -> dict[str, Tensor]:
    """Σ xᵀx over all tokens of the inputs, x what each merged linear weight is applied to: name → (in, in), CPU.

    Weights that read the same x (query, key and value) share one tensor.
    """
    merged = frozenset(flat.layout.names)
    grams: dict[tuple[str, ...], Tensor] = {}

    def watch(names: Sequence[str], x: Tensor) -> None:
        key = tuple(name for name in names if name in merged)
        if key:
            rows = x.reshape(-1, x.shape[-1])
            if key not in grams:
                grams[key] = rows.new_zeros(rows.shape[1], rows.shape[1])
            grams[key].addmm_(rows.t(), rows)

    for part in inputs.split(chunk):
        check()
        backbone.features([part], watch=watch)
    return {name: gram for names, shared in grams.items() for gram in [shared.cpu()] for name in names}


def squared_gradients(
    backbone: Backbone,
    flat: FlatParameters,
    head: Head,
    inputs: Tensor,
    passes: int | None,
    generator: torch.Generator | None,
    check: Callable[[], None],
) -> Tensor:
    """Mean over the inputs of Σ_c p_c·(∂ log p_c / ∂θ)², the diagonal of the Fisher information: (P,), CPU.

    One backward pass per sample and class would do. With J = ∂ features / ∂θ the matrix itself is Jᵀ·M·J, where
    M = Wᵀ(diag p − ppᵀ)W for head weights W; writing M = Σ_r u_r·u_rᵀ by its eigenvectors, its diagonal is
    Σ_r (Jᵀu_r)². That takes at most min(C − 1, D) passes, and few where the model is sure of its answers.

    ``passes`` allows fewer: the directions beyond are added up with random signs, whose cross terms vanish in the mean.
    Samples go one by one through the ordinary backward pass into the flat gradient, so that memory stays at one vector
    beside it; on a CPU that is no slower than several at once with weights of their own.
    """
    total = torch.zeros_like(flat.theta)
    for sample in inputs.split(1):
        check()
        with torch.enable_grad():
            output = backbone.features([sample])
        directions = _directions(head, output.detach())
        if passes is not None and len(directions) > passes:
            directions = _mixed(directions, passes, generator)
        for r, direction in enumerate(directions, 1):
            flat.zero_gradient()
            output.backward(direction, retain_graph=r < len(directions))
            total.addcmul_(flat.gradient, flat.gradient)
    return total.div_(len(inputs)).cpu()


def _directions(head: Head, feature: Tensor) -> list[Tensor]:
    """Vectors u_r (1, D), the largest first, with Σ_r u_rᵀ·u_r = Wᵀ(diag p − ppᵀ)W at one feature (1, D)."""
    weight = head.weight.double()
    p = F.softmax(head.logits(feature)[0], dim=-1).double()
    spread = torch.diag(p) - torch.outer(p, p)
    if weight.shape[0] > weight.shape[1]:
        spread, weight = weight.t() @ spread @ weight, torch.eye(weight.shape[1]).to(weight)
    values, vectors = torch.linalg.eigh(spread)
    rows = (vectors * values.clamp(min=0).sqrt()).t() @ weight
    sizes = rows.square().sum(1)
    kept = sizes > _NEGLIGIBLE * sizes.sum()
    order = sizes[kept].argsort(descending=True)
    return list(rows[kept][order].to(feature.dtype)[:, None])


def _mixed(directions: Sequence[Tensor], passes: int, generator: torch.Generator | None) -> list[Tensor]:
    """The largest ``passes`` − 1 directions and one sum, with random signs, of all others."""
    rest = torch.cat(list(directions[passes - 1 :]))
    signs = torch.randint(2, (len(rest), 1), generator=generator).to(rest) * 2 - 1
    return [*directions[: passes - 1], (signs * rest).sum(0, keepdim=True)]
