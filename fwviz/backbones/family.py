"""What a family of models offers to pools, objectives and evaluators, whatever its inputs are.

Inputs are one tensor whose first dimension counts the samples: uint8 images (N, C, H, W), or int32 token ids (N, T)
with −1 behind the end of a text, or (N, R, T) where a sample has several rows of them. Only the family looks into it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fwviz.backbones._texts import Text
from fwviz.space.binding import FlatParameters
from fwviz.space.files import CheckpointFile
from fwviz.types import ParamLayout

# Told the names of linear weights and the input (…, in) they are all applied to, rows of padding left out.
Watch = Callable[[Sequence[str], Tensor], None]


class Model(Protocol):
    """A model whose merged weights lie in one flat vector.

    One instance serves one job: ``lock`` is held by whoever sets its weights and reads its outputs.
    """

    device: torch.device
    precision: torch.dtype  # of its products; see fwviz.backbones.precision
    lock: threading.RLock
    module: nn.Module
    flat: FlatParameters | None

    @property
    def chunk(self) -> int:
        """Samples per pass: enough to keep the device busy, few enough to bound memory and to stop soon."""
        ...

    def bind(self, layout: ParamLayout) -> FlatParameters:
        """Move the merged weights into one flat vector; the others are frozen. Returned and kept as ``flat``."""
        ...


@runtime_checkable
class Backbone(Model, Protocol):
    """A model that makes features, which heads of their own read: inputs → features, of unit length for text heads."""

    logit_scale: float  # ln of the factor between cosines and logits

    @property
    def dimension(self) -> int:
        """D, the length of a feature."""
        ...

    def features(self, parts: Sequence[Tensor], *, watch: Watch | None = None) -> Tensor:
        """Inputs of one or several tasks, one after the other → features (B, D) on the device.

        ``watch`` is told what each linear weight is applied to, for all tokens.
        """
        ...


@runtime_checkable
class LanguageModel(Model, Protocol):
    """A model that answers in words: a sample is a prompt and the answers that are compared, C of them.

    Inputs are (N, 1 + C, T) token ids: row 0 the prompt, the others the answers, with their end mark.
    """

    def log_probs(self, inputs: Tensor, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """ln p of every token of the answers given the prompt and what goes before it.

        ``chosen`` (B,) picks one answer per sample, all if None. Returns (B, C or 1, L) with 0 behind an answer's end,
        and how many tokens each answer has, (B, C or 1).
        """
        ...

    def first(self, inputs: Tensor) -> Tensor:
        """ln p of every word as the first one of an answer: (B, vocabulary)."""
        ...

    def write(self, inputs: Tensor) -> list[str]:
        """The answer to each prompt, word after word the likeliest (greedy)."""
        ...


@dataclass(frozen=True)
class Classifier:
    """A classifier on features: (B, W) → W₂·tanh(W₁·f + b₁) + b₂, a row per class; one row predicts a number.

    ``dense_weight`` (W, W), ``dense_bias`` (W,), ``weight`` (C, W), ``bias`` (C,). RoBERTa keeps all four in its
    classification head; of BERT the first two are its pooler. ``names`` are those the tensors have in a checkpoint.
    """

    names: tuple[str, str, str, str]
    dense_weight: Tensor
    dense_bias: Tensor
    weight: Tensor
    bias: Tensor

    def inner(self, features: Tensor) -> Tensor:
        """What the last layer reads: (B, W) → (B, W)."""
        return torch.tanh(F.linear(features, self.dense_weight, self.dense_bias))

    def logits(self, features: Tensor) -> Tensor:
        """(B, W) → (B, C)."""
        return F.linear(self.inner(features), self.weight, self.bias)

    def to(self, device: torch.device | str) -> Classifier:
        """The same on another device."""
        return Classifier(self.names, *(tensor.to(device) for tensor in self.tensors().values()))

    def tensors(self) -> dict[str, Tensor]:
        """The four tensors under their names in a checkpoint."""
        parts = (self.dense_weight, self.dense_bias, self.weight, self.bias)
        return dict(zip(self.names, parts, strict=True))


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

    @property
    def aliases(self) -> Mapping[str, str]:
        """Second names in the base's file of tied tensors → the name the tensor is merged under."""
        ...

    def backbone(self, tensors: Mapping[str, Tensor], device: torch.device | str) -> Model:
        """An unbound model with these float32 tensors."""
        ...


@runtime_checkable
class MakesHeads(Protocol):
    """An architecture that makes heads of texts."""

    def head_maker(self) -> HeadMaker:
        """What makes heads, read from the folder."""
        ...


# Where heads come from: texts embedded by the base, a classifier each checkpoint brings along, or no head at all
# because the model answers in words.
Heads = Literal["texts", "own", "words"]


class Tokeniser(Protocol):
    """Turns samples into a family's inputs."""

    def __call__(self, texts: Sequence[Text], answers: Sequence[Sequence[str]] = ()) -> Tensor:
        """Texts, or pairs of them, and where the model answers in words the answers compared → inputs (N, …)."""
        ...


@dataclass(frozen=True)
class Family:
    """One kind of model: what it takes in, and how its folders are read.

    ``read(base folder, the card's base)`` opens a base; ``facts(checkpoint folder)`` says what its configuration fixes;
    ``checkpoint(folder, layout)`` opens a checkpoint in any format the family knows; ``tokenise(base folder, the card's
    base)`` gives what turns texts and the answers to each, empty but for a family that answers in words, into inputs;
    ``own_head(checkpoint folder, base folder)`` reads the classifier a checkpoint brings along. ``prefixes`` are what a
    whole model puts in front of the names of the base's tensors, which may stand in a checkpoint's or the base's names
    only.
    """

    inputs: Literal["images", "texts"]
    read: Callable[[Path, Mapping[str, Any]], Architecture]
    facts: Callable[[Path], Mapping[str, object]]
    checkpoint: Callable[[Path, ParamLayout], CheckpointFile] = CheckpointFile
    tokenise: Callable[[Path, Mapping[str, Any]], Tokeniser] | None = None
    heads: Heads = "texts"
    own_head: Callable[[Path, Path | None], Classifier] | None = None
    prefixes: tuple[str, ...] = ()
