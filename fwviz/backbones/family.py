"""What a family of models offers to pools, objectives and evaluators, whatever its inputs are.

Inputs are one tensor whose first dimension counts the samples: uint8 images (N, C, H, W), or int32 token ids (N, T)
with −1 behind the end of a text. Only the family looks into it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from fwviz.space.binding import FlatParameters
from fwviz.space.files import CheckpointFile
from fwviz.types import ParamLayout

# Told the names of linear weights and the input (…, in) they are all applied to, rows of padding left out.
Watch = Callable[[Sequence[str], Tensor], None]


class Backbone(Protocol):
    """A model whose merged weights lie in one flat vector: inputs → unit features.

    One instance serves one job: ``lock`` is held by whoever sets its weights and reads its outputs.
    """

    device: torch.device
    lock: threading.RLock
    module: nn.Module
    flat: FlatParameters | None
    logit_scale: float  # ln of the factor between cosines and logits

    @property
    def dimension(self) -> int:
        """D, the length of a feature."""
        ...

    @property
    def chunk(self) -> int:
        """Samples per pass: enough to keep the device busy, few enough to bound memory and to stop soon."""
        ...

    def bind(self, layout: ParamLayout) -> FlatParameters:
        """Move the merged weights into one flat vector; the others are frozen. Returned and kept as ``flat``."""
        ...

    def features(self, parts: Sequence[Tensor], *, watch: Watch | None = None) -> Tensor:
        """Inputs of one or several tasks, one after the other → unit features (B, D) on the device.

        ``watch`` is told what each linear weight is applied to, for all tokens.
        """
        ...


class HeadMaker(Protocol):
    """What turns class names into frozen heads: the same for every checkpoint of a pool."""

    @property
    def parameters(self) -> int:
        """The number of weights."""
        ...

    def heads(self, classes: Sequence[str], prompts: Sequence[str]) -> Tensor:
        """Class names and prompts with ``{}`` → unit class embeddings (C, D)."""
        ...


class Architecture(Protocol):
    """What a base's folder says about itself. Weights are read when they are asked for."""

    @property
    def facts(self) -> Mapping[str, object]:
        """What must be equal for a base and its checkpoints."""
        ...

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        """Name → shape of the encoder's tensors, named as in the base's file."""
        ...

    def backbone(self, tensors: Mapping[str, Tensor], device: torch.device | str) -> Backbone:
        """An unbound backbone with these float32 tensors."""
        ...

    def head_maker(self) -> HeadMaker:
        """What makes heads, read from the folder."""
        ...


@dataclass(frozen=True)
class Family:
    """One kind of model: what it takes in, and how its folders are read.

    ``read(base folder, the card's base)`` opens a base; ``facts(checkpoint folder)`` says what its configuration fixes;
    ``checkpoint(folder, layout)`` opens a checkpoint in any format the family knows; ``tokenise(base folder, the card's
    base)`` gives what turns texts into inputs, for a family that reads texts.
    """

    inputs: Literal["images", "texts"]
    read: Callable[[Path, Mapping[str, Any]], Architecture]
    facts: Callable[[Path], Mapping[str, object]]
    checkpoint: Callable[[Path, ParamLayout], CheckpointFile] = CheckpointFile
    tokenise: Callable[[Path, Mapping[str, Any]], Callable[[Sequence[str]], Tensor]] | None = None
