"""Task vectors of adapters, kept as the factors they are saved as: ΔW = U·D of low rank, never built for a score.

For one matrix the factors of all checkpoints lie side by side, U (rows, R) and D (R, columns), R = Σᵢ rᵢ, so that all
n inner products cost one product with the gradient, ⟨G, Uᵢ Dᵢ⟩ = ⟨Uᵢᵀ G, Dᵢ⟩, and a combination costs one more,
W₀ + (U·diag λ)·D. Adapters that rescale rows or columns (IA3) and small dense parts (biases) stand beside them.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fwviz.space.vectors import Meter, check_base, room_for, segment_sum
from fwviz.types import FwvizError, Groups, ParamLayout


@dataclass(frozen=True)
class LowRank:
    """ΔW = up · down: (rows, r) and (r, columns), the scale of the adapter inside; as the base stores the matrix."""

    up: Tensor
    down: Tensor


@dataclass(frozen=True)
class Rescaled:
    """ΔW[a, b] = W₀[a, b]·factor[a] along ``rows``, ·factor[b] along ``columns``: what IA3 adds."""

    factor: Tensor
    along: Literal["rows", "columns"]


@dataclass(frozen=True)
class Dense:
    """Δ itself, of the tensor's shape."""

    delta: Tensor


Part = LowRank | Rescaled | Dense


@dataclass(frozen=True)
class _Stack:
    """All parts of one tensor: ``owner`` has the checkpoint of each column of ``up``."""

    up: Tensor | None = None
    down: Tensor | None = None
    owner: Tensor | None = None
    rescaled: tuple[tuple[int, Rescaled], ...] = ()
    dense: tuple[tuple[int, Tensor], ...] = ()

    @property
    def bytes(self) -> int:
        tensors = [t for t in (self.up, self.down) if t is not None]
        tensors += [part.factor for _, part in self.rescaled] + [delta for _, delta in self.dense]
        return sum(t.numel() * t.element_size() for t in tensors)

    def products(self, gradient: Tensor, base: Tensor, n: int) -> Tensor:
        """⟨G, Δᵢ⟩ for every checkpoint: G and W₀ of the tensor's shape → (n,) float64."""
        found = torch.zeros(n, dtype=torch.float64, device=gradient.device)
        if self.up is not None and self.down is not None and self.owner is not None:
            inner = self.up.float().T @ gradient
            found.index_add_(0, self.owner, inner.mul_(self.down.float()).sum(dim=1, dtype=torch.float64))
        if self.rescaled:
            weighted = gradient * base
            sums = {along: weighted.sum(dim=dim, dtype=torch.float64) for along, dim in (("rows", 1), ("columns", 0))}
            for i, part in self.rescaled:
                found[i] += torch.dot(sums[part.along], part.factor.double())
        for i, delta in self.dense:
            found[i] += (gradient * delta.float()).sum(dtype=torch.float64)
        return found

    def add(self, target: Tensor, base: Tensor, weights: Tensor) -> None:
        """target += Σᵢ weights[i]·Δᵢ, all of the tensor's shape; weights (n,) float32."""
        if self.up is not None and self.down is not None and self.owner is not None:
            share = weights[self.owner]
            used = share.ne(0)
            if bool(used.any()):
                up, down = (self.up, self.down) if bool(used.all()) else (self.up[:, used], self.down[used])
                target.addmm_(up.float() * share[used], down.float())
        for i, part in self.rescaled:
            if weights[i] != 0:
                factor = part.factor.float() * weights[i]
                target.addcmul_(base, factor[:, None] if part.along == "rows" else factor[None])
        for i, delta in self.dense:
            if weights[i] != 0:
                target.add_(delta.float() * weights[i])

    def rows(self, base: Tensor, i: int, first: int, last: int) -> Tensor:
        """Rows [first, last) of Δᵢ."""
        part = torch.zeros_like(base[first:last])
        self.take([i]).cut(first, last).add(part, base[first:last], torch.ones(1, device=base.device))
        return part

    def cut(self, first: int, last: int) -> _Stack:
        """Only rows [first, last) of the tensor."""
        cut = slice(first, last)
        rescaled = [(i, Rescaled(p.factor[cut], p.along) if p.along == "rows" else p) for i, p in self.rescaled]
        return _Stack(
            None if self.up is None else self.up[cut],
            self.down,
            self.owner,
            tuple(rescaled),
            tuple((i, delta[cut]) for i, delta in self.dense),
        )

    def take(self, chosen: Sequence[int]) -> _Stack:
        """Only some checkpoints, numbered anew in the order given."""
        up, down, owner = self.up, self.down, self.owner
        if up is not None and down is not None and owner is not None:
            columns = [torch.nonzero(owner == i).flatten() for i in chosen]
            counts = torch.tensor([len(part) for part in columns], device=owner.device)
            up, down = up[:, torch.cat(columns)], down[torch.cat(columns)]
            owner = torch.arange(len(chosen), device=owner.device).repeat_interleave(counts)
        return _Stack(
            up,
            down,
            owner,
            tuple((new, part) for new, i in enumerate(chosen) for k, part in self.rescaled if k == i),
            tuple((new, delta) for new, i in enumerate(chosen) for k, delta in self.dense if k == i),
        )


class LowRankTaskVectors:
    """Task vectors of n adapters over one layout, held as factors. Satisfies :class:`fwviz.types.TaskVectors`.

    Memory beyond the base is that of the factors; scores and combinations read each of them once.
    """

    def __init__(
        self, layout: ParamLayout, names: Sequence[str], base: Tensor, adapters: Sequence[Mapping[str, Part]]
    ) -> None:
        """``adapters`` has for each checkpoint the tensors it changes, by name; those outside the layout are left out.

        Raises:
            FwvizError: there is no checkpoint, or a part does not have the shape of its tensor.
        """
        check_base(layout, names, base)
        self.layout = layout
        self.names = tuple(names)
        self.base = base.detach()
        self._meter = Meter()
        for name, shape in zip(layout.names, layout.shapes, strict=True):
            for checkpoint, adapter in zip(self.names, adapters, strict=True):
                if name in adapter:
                    _check_part(adapter[name], shape, f"{checkpoint!r}, tensor {name!r}")
        self._stacks = tuple(
            _stack([(i, a[name]) for i, a in enumerate(adapters) if name in a], base.device) for name in layout.names
        )
        self._norms: tuple[Tensor, Tensor] | None = None

    @property
    def n(self) -> int:
        """The number of checkpoints."""
        return len(self.names)

    @property
    def bytes_read(self) -> int:
        """Bytes of factors used so far, by this object, what it was taken from, and its subsets."""
        return self._meter.bytes

    def scores(self, gradient: Tensor, groups: Groups) -> Tensor:
        """S[g, i] = ⟨gradient_g, τᵢ,g⟩ as Σ over matrices of ⟨Uᵢᵀ G, Dᵢ⟩: (P,) → (G, n) float32 on the CPU."""
        owner = self._group_of(groups, gradient)
        return segment_sum(self._products(gradient), owner, len(groups)).float().cpu()

    def cosines(self, gradient: Tensor, groups: Groups) -> Tensor:
        """C[g, i] = Σ over tensors of cos(gradient_p, θᵢ,p), 0 where a norm is 0: (P,) → (G, n) float32 on the CPU.

        With θ = W₀ + Δ: ⟨G, θ⟩ = ⟨G, W₀⟩ + ⟨G, Δ⟩ and ‖θ‖² = ‖W₀‖² + 2⟨W₀, Δ⟩ + ‖Δ‖², all in low rank.
        """
        owner = self._group_of(groups, gradient)
        if self._norms is None:
            own = torch.stack([self._gram(j).diagonal() for j in range(len(self._stacks))])
            self._norms = self._products(self.base), own
        cross, squares = self._norms
        slope, weight = self._tensor_sums(gradient, gradient), self._tensor_sums(self.base, self.base)
        mixed = self._tensor_sums(gradient, self.base)
        dot = mixed[:, None] + self._products(gradient)
        norms = (slope[:, None] * (weight[:, None] + 2 * cross + squares).clamp_min(0)).sqrt()
        cosine = torch.where(norms > 0, dot / norms, 0.0)
        return segment_sum(cosine, owner, len(groups)).float().cpu()

    def gram(self, groups: Groups) -> Tensor:
        """K[g, i, j] = ⟨τᵢ,g, τⱼ,g⟩, with ⟨Uᵢ Dᵢ, Uⱼ Dⱼ⟩ = Σ (UᵢᵀUⱼ) ∘ (DᵢDⱼᵀ): (G, n, n) float64 on the CPU."""
        owner = self._group_of(groups, None)
        grams = torch.stack([self._gram(j).flatten() for j in range(len(self._stacks))])
        return segment_sum(grams, owner, len(groups)).view(len(groups), self.n, self.n).cpu()

    def combine(self, coefficients: Tensor, groups: Groups, out: Tensor | None = None) -> Tensor:
        """θ₀ + Σᵢ λ[g, i]·τᵢ,g: coefficients (G, n) → (P,), written to ``out`` (any dtype and device) if given."""
        owner = self._group_of(groups, None)
        out = room_for(coefficients, (len(groups), self.n), self.base, out)
        weights = coefficients.detach().to(self.base.device, torch.float32)
        direct = out.dtype == torch.float32 and out.device == self.base.device
        target = out.detach() if direct else torch.empty_like(self.base, dtype=torch.float32)
        target.copy_(self.base)
        for j, stack in enumerate(self._stacks):
            row = weights[owner[j]]
            if bool(row.ne(0).any()):
                stack.add(self._view(target, j), self._view(self.base, j).float(), row)
                self._meter.add(stack.bytes)
        if not direct:
            out.detach().copy_(target)
        return out

    def vector(self, i: int) -> Tensor:
        """τᵢ as a new flat (P,) float32 tensor."""
        return self.block(0, self.layout.size, [i])[0]

    def block(self, start: int, stop: int, rows: Sequence[int] | None = None) -> Tensor:
        """τᵢ in [start, stop) of some checkpoints, all if None: a new (len(rows), stop − start) float32 tensor.

        May be called from several threads at once.
        """
        chosen = list(range(self.n)) if rows is None else list(rows)
        out = torch.empty(len(chosen), stop - start, device=self.base.device)
        j = bisect_right(self.layout.offsets, start) - 1
        while j < len(self._stacks) and self.layout.offsets[j] < stop:
            offset, width = self.layout.offsets[j], math.prod(self.layout.shapes[j][1:])
            a, b = max(start, offset), min(stop, self.layout.offsets[j + 1])
            first, last = (a - offset) // width, -((offset - b) // width)
            base = self._view(self.base, j).float()
            for row, i in zip(out, chosen, strict=True):
                part = self._stacks[j].rows(base, i, first, last).reshape(-1)
                begin = a - offset - first * width
                row[a - start : b - start] = part[begin : begin + b - a]
            self._meter.add(self._stacks[j].bytes)
            j += 1
        return out

    def subset(self, indices: Sequence[int]) -> LowRankTaskVectors:
        """The same storage restricted to some checkpoints, in the order given. Shares ``bytes_read``."""
        chosen = [range(self.n)[i] for i in indices]
        part = LowRankTaskVectors(self.layout, [self.names[i] for i in chosen], self.base, [{} for _ in chosen])
        part._stacks = tuple(stack.take(chosen) for stack in self._stacks)
        part._meter = self._meter
        return part

    def factors(self, weights: Tensor) -> dict[str, LowRank | None]:
        """Σᵢ weights[j, i]·τᵢ of each tensor j as factors of rank Σᵢ rᵢ, exact: (tensors, n) → name → factors.

        Checkpoints with weight 0 take no rank; None stands for a tensor that has parts of no low rank.
        """
        found: dict[str, LowRank | None] = {}
        for name, stack, row in zip(self.layout.names, self._stacks, weights.to(self.base.device), strict=True):
            if any(row[i] != 0 for i, _ in (*stack.rescaled, *stack.dense)):
                found[name] = None
            elif stack.up is not None and stack.down is not None and stack.owner is not None:
                share = row[stack.owner].float()
                used = share.ne(0)
                if bool(used.any()):
                    found[name] = LowRank(stack.up[:, used].float() * share[used], stack.down[used].float())
        return found

    # --- sums over tensors ------------------------------------------------------------------------

    def _view(self, flat: Tensor, j: int) -> Tensor:
        return flat[self.layout.offsets[j] : self.layout.offsets[j + 1]].view(self.layout.shapes[j] or (1,))

    def _group_of(self, groups: Groups, gradient: Tensor | None) -> list[int]:
        """The group of each tensor."""
        offsets = self.layout.offsets
        if groups.bounds[0] != 0 or groups.bounds[-1] != self.layout.size or not set(groups.bounds) <= set(offsets):
            raise ValueError("groups must be made of whole tensors and cover the layout")
        if gradient is not None and gradient.shape != self.base.shape:
            raise ValueError(f"the gradient has shape {tuple(gradient.shape)}, but must have {tuple(self.base.shape)}")
        return [bisect_right(groups.bounds, offset) - 1 for offset in offsets[:-1]]

    def _products(self, gradient: Tensor) -> Tensor:
        """⟨G_p, Δᵢ,p⟩ per tensor: (P,) → (tensors, n) float64."""
        gradient = gradient.detach().to(self.base.device)
        rows = []
        for j, stack in enumerate(self._stacks):
            slope = self._view(gradient, j).float()
            rows.append(stack.products(slope, self._view(self.base, j).float() if stack.rescaled else slope, self.n))
            self._meter.add(stack.bytes)
        return torch.stack(rows)

    def _gram(self, j: int) -> Tensor:
        """⟨Δᵢ, Δₖ⟩ of one tensor: (n, n) float64."""
        stack, n = self._stacks[j], self.n
        self._meter.add(stack.bytes)
        found = torch.zeros(n, n, dtype=torch.float64, device=self.base.device)
        if stack.rescaled or stack.dense:
            base = self._view(self.base, j).float()
            rows = torch.stack([stack.rows(base, i, 0, base.shape[0]).flatten() for i in range(n)]).double()
            return rows @ rows.T
        if stack.up is not None and stack.down is not None and stack.owner is not None:
            up, down = stack.up.double(), stack.down.double()
            between = (up.T @ up) * (down @ down.T)
            part = torch.zeros(n, between.shape[1], dtype=torch.float64, device=found.device)
            found.index_add_(1, stack.owner, part.index_add_(0, stack.owner, between))
        return found

    def _tensor_sums(self, a: Tensor, b: Tensor) -> Tensor:
        """⟨a_p, b_p⟩ per tensor: (tensors,) float64."""
        a = a.detach().to(self.base.device)
        pairs = [(self._view(a, j).float(), self._view(b, j).float()) for j in range(len(self._stacks))]
        return torch.stack([(x * y).sum(dtype=torch.float64) for x, y in pairs])


def truncate(matrix: Tensor, rank: int) -> tuple[LowRank, float]:
    """The best factors of a rank, and what they miss as a share of the norm: (rows, columns) → factors, error.

    Eckart & Young (1936): the first ``rank`` singular triplets; error = √(Σ_{k > rank} σ_k²) / ‖matrix‖.
    """
    u, s, v = torch.linalg.svd(matrix.float(), full_matrices=False)
    kept = min(rank, s.shape[0])
    root = s[:kept].sqrt()
    total = float(s.square().sum().sqrt())
    error = float(s[kept:].square().sum().sqrt()) / total if total else 0.0
    return LowRank(u[:, :kept] * root, root[:, None] * v[:kept]), error


def _stack(parts: Sequence[tuple[int, Part]], device: torch.device) -> _Stack:
    low = [(i, part) for i, part in parts if isinstance(part, LowRank)]

    def move(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device)

    ranks = torch.tensor([part.up.shape[1] for _, part in low], dtype=torch.int64)
    return _Stack(
        up=torch.cat([move(part.up) for _, part in low], dim=1) if low else None,
        down=torch.cat([move(part.down) for _, part in low]) if low else None,
        owner=torch.tensor([i for i, _ in low]).repeat_interleave(ranks).to(device) if low else None,
        rescaled=tuple((i, Rescaled(move(p.factor), p.along)) for i, p in parts if isinstance(p, Rescaled)),
        dense=tuple((i, move(p.delta).reshape(p.delta.shape or (1,))) for i, p in parts if isinstance(p, Dense)),
    )


def _check_part(part: Part, shape: tuple[int, ...], what: str) -> None:
    if isinstance(part, LowRank):
        fits = len(shape) == 2 and (part.up.shape[0], part.down.shape[1]) == shape
        fits = fits and part.up.dim() == part.down.dim() == 2 and part.up.shape[1] == part.down.shape[0]
    elif isinstance(part, Rescaled):
        fits = len(shape) == 2 and part.factor.shape == (shape[0 if part.along == "rows" else 1],)
    else:
        fits = part.delta.shape == shape
    if not fits:
        raise FwvizError(f"the adapter of {what} does not have the shape {shape} of the base: it is of another model.")
