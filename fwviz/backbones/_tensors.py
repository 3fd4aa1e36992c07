"""What every encoder needs before it is one: tensors compared with a configuration, and a module that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from fwviz.types import FwvizError


def check_tensors(path: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise FwvizError unless ``found`` has every expected tensor in its shape."""
    for name, size in expected.items():
        if name not in found:
            raise FwvizError(f"{path} has no tensor {name!r}: it does not fit its config.json.")
        if found[name] != size:
            raise FwvizError(f"{path}: tensor {name!r} has shape {found[name]}, but its config.json says {size}.")


def module_of(tensors: Mapping[str, Tensor]) -> nn.Module:
    """A module whose frozen parameters carry the given dotted names."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *path, leaf = name.split(".")
        node = root
        for part in path:
            if not hasattr(node, part):
                node.add_module(part, nn.Module())
            node = getattr(node, part)
        node.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    return root
