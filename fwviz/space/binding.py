"""A module whose parameters live in one flat vector, so that merging writes and scoring reads without copies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from fwviz.space.layout import unflatten
from fwviz.types import FwvizError, ParamLayout


@dataclass(frozen=True)
class FlatParameters:
    """θ and ∇ℓ(θ) of a bound module as flat (P,) vectors; its parameters and their ``.grad`` are views of them."""

    layout: ParamLayout
    theta: Tensor
    gradient: Tensor
    parameters: tuple[nn.Parameter, ...]

    def load(self, theta: Tensor) -> None:
        """Set the module's weights to a flat (P,) vector of any dtype and device."""
        if theta is not self.theta:
            self.theta.copy_(theta)

    def zero_gradient(self) -> None:
        """Set the gradient to zero, and make every ``.grad`` a view again if an optimiser dropped it."""
        self.gradient.zero_()
        for parameter, view in zip(self.parameters, unflatten(self.layout, self.gradient).values(), strict=True):
            if parameter.grad is None or parameter.grad.data_ptr() != view.data_ptr():
                parameter.grad = view


def bind(module: nn.Module, layout: ParamLayout, rename: Mapping[str, str] | None = None) -> FlatParameters:
    """Move the module's merged parameters into one flat vector, in layout order, keeping their values.

    Parameters outside the layout get ``requires_grad = False``. The vectors have the dtype and device of the module:
    cast or move it before, never after, since both would replace the views.

    Args:
        rename: prefix of a module's parameter name → prefix of the layout's name for it, the longest match counts;
            ``{"": "vision_model."}`` binds a bare vision tower to a whole model's layout.

    Raises:
        FwvizError: a tensor of the layout is no parameter of the module or has another shape, two of them are tied or
            share memory, one is not contiguous, or they differ in dtype or device.
    """
    prefixes = sorted((rename or {}).items(), key=lambda item: -len(item[0]))
    wanted = frozenset(layout.names)
    found: dict[str, nn.Parameter] = {}
    owner: dict[int, str] = {}
    # With duplicates: a tied weight may be in the layout under either of its names.
    for own_name, parameter in module.named_parameters(remove_duplicate=False):
        name = next((new + own_name.removeprefix(old) for old, new in prefixes if own_name.startswith(old)), own_name)
        if name not in wanted:
            continue
        first = owner.setdefault(id(parameter), name)
        if first != name:
            raise FwvizError(f"{first!r} and {name!r} are one tied tensor: exclude one of them from the merge.")
        if found.setdefault(name, parameter) is not parameter:
            raise FwvizError(f"two parameters of the model are both called {name!r}: correct the rename.")
    parameters = tuple(_checked(layout, found))
    _refuse_shared_memory(layout, parameters)

    theta = torch.empty(layout.size, dtype=parameters[0].dtype, device=parameters[0].device)
    gradient = torch.zeros_like(theta)
    for other in module.parameters():
        other.requires_grad_(id(other) in owner)
    views = unflatten(layout, theta)
    with torch.no_grad():
        for name, parameter in zip(layout.names, parameters, strict=True):
            views[name].copy_(parameter)
            parameter.data = views[name]
            parameter.grad = None
    flat = FlatParameters(layout, theta, gradient, parameters)
    flat.zero_gradient()
    return flat


def _checked(layout: ParamLayout, found: Mapping[str, nn.Parameter]) -> list[nn.Parameter]:
    """The parameters in layout order, all of one kind."""
    parameters: list[nn.Parameter] = []
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        if name not in found:
            raise FwvizError(f"the model has no parameter {name!r}: exclude it from the merge or give a rename.")
        parameter = found[name]
        if tuple(parameter.shape) != shape:
            raise FwvizError(f"parameter {name!r} has shape {tuple(parameter.shape)}, but the layout has {shape}.")
        if not parameter.is_contiguous():
            raise FwvizError(f"parameter {name!r} is not contiguous in memory: make it so before binding.")
        if parameters and (parameter.dtype, parameter.device) != (parameters[0].dtype, parameters[0].device):
            raise FwvizError(
                f"parameter {name!r} is {parameter.dtype} on {parameter.device}, but {layout.names[0]!r} is "
                f"{parameters[0].dtype} on {parameters[0].device}: cast and move the whole model first."
            )
        parameters.append(parameter)
    return parameters


def _refuse_shared_memory(layout: ParamLayout, parameters: tuple[nn.Parameter, ...]) -> None:
    """Tensors that overlap would silently come apart when they move into the flat vector."""
    spans = sorted(
        (parameter.data_ptr(), parameter.data_ptr() + parameter.numel() * parameter.element_size(), name)
        for name, parameter in zip(layout.names, parameters, strict=True)
    )
    for (_, stop, name), (start, _, other) in pairwise(spans):
        if start < stop:
            raise FwvizError(f"{name!r} and {other!r} share memory: exclude one of them from the merge.")
