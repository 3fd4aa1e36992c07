"""How a model computes: in float32, or its matrix products in bfloat16.

Weights, gradients, sums and losses are float32 in either case. In bfloat16 every product casts what it reads and gives
bfloat16; what is added up over layers and normalised stays float32 (torch's autocast). Half the bytes of activations
and, on hardware made for it, several times the speed, for 8 bits of every product.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Literal

import torch

from fwviz.backbones.family import Model
from fwviz.types import FwvizError

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


def computing(device: torch.device, precision: torch.dtype) -> AbstractContextManager[object]:
    """What a model's products are computed in while the block runs.

    No cast is kept beyond its product: a cache would hold a second copy of the weights.
    """
    if precision == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=precision, cache_enabled=False)


@contextlib.contextmanager
def in_float32(model: Model) -> Iterator[None]:
    """The model, for oneself alone, computing in float32 whatever it was set to."""
    with model.lock:
        before, model.precision = model.precision, torch.float32
        try:
            yield
        finally:
            model.precision = before


def require_precision(name: str, device: torch.device) -> torch.dtype:
    """The number format of that name; FwvizError if the device cannot compute in it."""
    precision: torch.dtype = getattr(torch, name)
    if precision != torch.float32 and not _computes(device, precision):
        raise FwvizError(f"{device.type} of this machine cannot compute in {name}: set precision to float32.")
    return precision


def _computes(device: torch.device, precision: torch.dtype) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        ones = torch.ones(2, 2, device=device, dtype=precision)
        return float((ones @ ones).float().sum()) == 8.0
    except (TypeError, RuntimeError):  # older systems of Apple know no bfloat16
        return False
