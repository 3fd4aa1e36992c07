"""What can be measured inside a model at its present weights, beyond losses: Fisher information and input products."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fwviz.backbones.family import Backbone
from fwviz.space.binding import FlatParameters
from fwviz.space.wide import double
from fwviz.tasks.heads import TaskHead

# Directions with a smaller share of a sample's information are beyond float32.
_NEGLIGIBLE = 1e-6


@torch.no_grad()
def features(backbone: Backbone, head: TaskHead, inputs: Tensor, chunk: int, check: Callable[[], None]) -> Tensor:
    """What the head's linear layer reads at the backbone's weights: inputs (N, …) → (N, D) float32, CPU."""
    parts = []
    for part in inputs.split(chunk):
        check()
        parts.append(head.inner(backbone.features([part])).cpu())
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
            rows = x.reshape(-1, x.shape[-1]).float()
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
    head: TaskHead,
    inputs: Tensor,
    passes: int | None,
    generator: torch.Generator | None,
    chunk: int,
    check: Callable[[], None],
) -> Tensor:
    """Mean over the inputs of Σ_c p_c·(∂ log p_c / ∂θ)², the diagonal of the Fisher information: (P,), CPU.

    One backward pass per sample and class would do. With J = ∂ features / ∂θ the matrix itself is Jᵀ·M·J, where
    M = Wᵀ(diag p − ppᵀ)W for head weights W; writing M = Σ_r u_r·u_rᵀ by its eigenvectors, its diagonal is
    Σ_r (Jᵀu_r)². That takes at most min(C − 1, D) passes, and few where the model is sure of its answers.

    ``passes`` limits them over all inputs: what has to share a pass, directions of one sample and if need be samples,
    is added up with random signs, whose cross terms vanish in the mean.
    Gradients go through the ordinary backward pass into the flat gradient, so that memory stays at one vector beside
    it; on a CPU samples one by one are no slower than several at once with weights of their own.
    """
    total = torch.zeros_like(flat.theta)
    count = len(inputs)
    shared = 1 if passes is None else min(max(-(-count // passes), 1), chunk)
    each = None if passes is None else max(passes // count, 1)
    for part in inputs.split(shared):
        check()
        with torch.enable_grad():
            output = head.inner(backbone.features([part]))
        rows = [_limited(_directions(head, feature), each, generator) for feature in output.detach()]
        for r in range(max(map(len, rows))):
            direction = torch.stack([row[r] if r < len(row) else torch.zeros_like(row[0]) for row in rows])
            flat.zero_gradient()
            output.backward(direction, retain_graph=True)
            total.addcmul_(flat.gradient, flat.gradient)
    return total.div_(count).cpu()


def _directions(head: TaskHead, feature: Tensor) -> Tensor:
    """Vectors u_r, the largest first, with Σ_r u_r·u_rᵀ = Wᵀ(diag p − ppᵀ)W at one feature (D,): (R, D)."""
    if head.is_number:  # a normal distribution around it: the information is that of its own slope
        return head.weight.to(feature)
    weight = double(head.weight)
    p = double(F.softmax(feature @ head.weight.T, dim=-1))
    spread = torch.diag(p) - torch.outer(p, p)
    if weight.shape[0] > weight.shape[1]:
        spread, weight = weight.t() @ spread @ weight, torch.eye(weight.shape[1]).to(weight)
    values, vectors = torch.linalg.eigh(spread)
    rows = (vectors * values.clamp(min=0).sqrt()).t() @ weight
    sizes = rows.square().sum(1)
    order = sizes.argsort(descending=True)
    kept = int((sizes > _NEGLIGIBLE * sizes.sum()).sum())
    return rows[order[: max(kept, 1)]].to(feature)


def _limited(directions: Tensor, passes: int | None, generator: torch.Generator | None) -> Tensor:
    """The largest ``passes`` − 1 directions and the sum, with random signs, of all others; all with random signs.

    A sign of its own for every direction that stays lets samples share a pass.
    """
    if passes is None:
        return directions
    signs = torch.randint(2, (len(directions), 1), generator=generator).to(directions) * 2 - 1
    signed = signs * directions
    return torch.cat([signed[: passes - 1], signed[passes - 1 :].sum(0, keepdim=True)])
