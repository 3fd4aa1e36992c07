"""Merges of several parts at work and at rest: encoding inputs with backbone, router and experts; packing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fwviz.backbones.family import Backbone
from fwviz.space.experts import LowRankExpert, MaskExpert, SparseExpert
from fwviz.tasks.batches import Chunk, passes
from fwviz.tasks.router import OracleRouter, RandomRouter, TrainedRouter
from fwviz.tasks.surgery import SurgeryMap
from fwviz.types import Expert, Extension, FeatureMap, FwvizError

_EXPERTS: dict[str, Any] = {cls.kind: cls for cls in (SparseExpert, LowRankExpert, MaskExpert)}
_MAPS: dict[str, Any] = {cls.kind: cls for cls in (SurgeryMap,)}
_ROUTERS: dict[str, Any] = {cls.kind: cls for cls in (OracleRouter, RandomRouter, TrainedRouter)}


# --- at work ------------------------------------------------------------------------------------


@torch.no_grad()
def extended_features(
    backbone: Backbone,
    theta: Tensor,
    extension: Extension,
    inputs: Mapping[str, Tensor],
    *,
    chunk: Chunk,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Tensor] | None:
    """The unit features each task's head reads: task → (N, D) on the CPU.

    Inputs with the same shares are encoded together, so the tower's weights change once per distinct row of shares
    instead of once per input. ``backbone`` is bound and its lock held; it is left with the weights of some expert.
    ``inputs`` maps task → (N, …) as the backbone takes them. None if ``should_stop``, asked before each pass, says yes.
    """
    assert backbone.flat is not None
    theta = theta.to(backbone.flat.theta.device, backbone.flat.theta.dtype)
    names = tuple(inputs)
    features = {task: torch.empty(inputs[task].shape[0], backbone.dimension) for task in names}

    def encode(rows: Mapping[str, Tensor]) -> bool:
        """Encode some rows of some tasks at the weights that are loaded; False if told to stop."""
        counts = [len(rows[task]) for task in names]
        return chunk.fit(sum(counts), lambda size: attempt(rows, counts, size))

    def attempt(rows: Mapping[str, Tensor], counts: Sequence[int], size: int) -> bool:
        for pieces in passes(counts, size):
            if should_stop is not None and should_stop():
                return False
            taken = [(names[k], rows[names[k]][start:stop]) for k, start, stop in pieces]
            encoded = backbone.features([inputs[task][index] for task, index in taken]).cpu()
            parts = encoded.split([len(index) for _, index in taken])
            for (task, index), part in zip(taken, parts, strict=True):
                features[task][index] = part
        return True

    if extension.router.reads_features and extension.experts:
        backbone.flat.load(theta)
        if not encode({task: torch.arange(inputs[task].shape[0]) for task in names}):
            return None
    shares = {task: _expert_shares(extension, features[task], task) for task in names}
    distinct, group = torch.unique(torch.cat(list(shares.values())), dim=0, return_inverse=True)
    groups = dict(zip(names, group.split([len(s) for s in shares.values()]), strict=True))
    for g, share in enumerate(distinct.tolist()):
        if extension.router.reads_features and extension.experts and not any(share):
            continue  # answered by the backbone alone, whose features are there already
        load_mixture(backbone.flat.theta, theta, extension, share)
        if not encode({task: (groups[task] == g).nonzero().flatten() for task in names}):
            return None
    return {task: extension.maps[task](f) if task in extension.maps else f for task, f in features.items()}


def load_mixture(out: Tensor, theta: Tensor, extension: Extension, shares: Sequence[float]) -> None:
    """Write θ + Σ_k shares_k·(θ_k − θ) to ``out`` (P,), k over the router's tasks. ``theta`` (P,) stays as it is."""
    out.copy_(theta)
    for task, share in zip(extension.router.tasks, shares, strict=True):
        if share and task in extension.experts:
            extension.experts[task].add_to(out, theta, share)


def _expert_shares(extension: Extension, features: Tensor, task: str) -> Tensor:
    """Shares (N, K), 0 for the tasks without an expert, which the backbone answers itself."""
    present = torch.tensor([float(name in extension.experts) for name in extension.router.tasks])
    return extension.router.shares(features, task) * present


# --- at rest ------------------------------------------------------------------------------------


def pack(extension: Extension) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """(tensors of experts and maps, tensors of the router, the plain facts that say which is which).

    A tensor several experts share is there once.
    """
    stored: dict[str, Tensor] = {}
    names: dict[int, str] = {}

    def keep(prefix: str, part: Expert | FeatureMap) -> dict[str, Any]:
        places = {}
        for name, tensor in part.tensors().items():
            # A scalar is made anew by every call, so its id says nothing; what is shared is large.
            key = id(tensor) if tensor.numel() > 1 else -1 - len(stored)
            if key not in names:
                names[key] = f"{prefix}/{name}"
                stored[names[key]] = tensor.contiguous()
            places[name] = names[key]
        return {"kind": part.kind, "tensors": places}

    facts: dict[str, Any] = {
        "router": {"kind": extension.router.kind, "tasks": list(extension.router.tasks)},
        "experts": {task: keep(f"expert/{task}", expert) for task, expert in extension.experts.items()},
        "maps": {task: keep(f"map/{task}", part) for task, part in extension.maps.items()},
    }
    return stored, {name: tensor.contiguous() for name, tensor in extension.router.tensors().items()}, facts


def unpack(
    experts: Mapping[str, Tensor], router: Mapping[str, Tensor], facts: Mapping[str, Any], size: int
) -> Extension:
    """The extension :func:`pack` took apart, for a backbone of ``size`` parameters; FwvizError if it does not fit."""
    try:
        tasks = tuple(str(task) for task in facts["router"]["tasks"])
        found = Extension(
            _ROUTERS[facts["router"]["kind"]].from_tensors(router, tasks),
            dict(_parts(_EXPERTS, experts, facts["experts"])),
            dict(_parts(_MAPS, experts, facts["maps"])),
        )
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise FwvizError(f"the experts of the merge cannot be read ({error!r}): save them again.") from None
    for task, expert in found.experts.items():
        if expert.size != size:
            raise FwvizError(f"the expert of task {task!r} is of another architecture than the backbone.")
    return found


def _parts(
    kinds: Mapping[str, Any], stored: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    for task, fact in facts.items():
        tensors = {name: stored[place] for name, place in fact["tensors"].items()}
        yield task, kinds[fact["kind"]].from_tensors(tensors)


def stored_bytes(extension: Extension | None) -> int:
    """Bytes of all tensors that are saved beside the backbone: experts, feature maps and router."""
    if extension is None:
        return 0
    experts, router, _ = pack(extension)
    return sum(t.numel() * t.element_size() for part in (experts, router) for t in part.values())
