"""Sentence encoders (BERT, MiniLM, RoBERTa with mean pooling): texts → unit features; heads are embedded descriptions.

As in CLIP, the head of a task is made by the base from texts that describe its classes and is the same for every
checkpoint, so that only the encoder differs between them. Reimers & Gurevych (2019), Sentence-BERT.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fwviz.backbones._bert import BertFolder, BertShape, bert_tensors, encode_packed, find_prefix, read_bert_shape
from fwviz.backbones._tensors import check_tensors, module_of
from fwviz.backbones._texts import Text, class_texts, encode, padded, read_tokenizer
from fwviz.backbones.family import Family, Watch
from fwviz.backbones.precision import computing
from fwviz.space.binding import FlatParameters, bind
from fwviz.space.files import SafetensorsFile
from fwviz.types import FwvizError, ParamLayout

_HEAD_BATCH = 32  # texts at once


class SentenceEncoder:
    """A BERT-like encoder with mean pooling: token ids → unit features, equal to transformers up to rounding.

    One instance serves one job: ``lock`` is held by whoever sets its weights and reads its outputs.
    """

    def __init__(
        self,
        shape: BertShape,
        tensors: Mapping[str, Tensor],
        *,
        prefix: str = "",
        logit_scale: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        """``tensors`` are copied if they are not float32 on ``device``, else shared until :meth:`bind`."""
        self.shape = shape
        self.prefix = prefix
        self.logit_scale = logit_scale
        self.device = torch.device(device)
        self.precision = torch.float32
        self.lock = threading.RLock()
        names = bert_tensors(shape, prefix)
        self.module = module_of({name: tensors[name].to(self.device, torch.float32) for name in names})
        self.flat: FlatParameters | None = None
        self._tensors = dict(self.module.named_parameters())

    @property
    def dimension(self) -> int:
        """The width of the encoder."""
        return self.shape.width

    @property
    def chunk(self) -> int:
        """Texts per pass: enough for their lengths to repeat, few enough to bound memory and to stop soon."""
        return 32 if self.device.type == "cpu" else 512

    def bind(self, layout: ParamLayout) -> FlatParameters:
        """Move the merged weights into one flat vector; the others are frozen. Returned and kept as ``flat``."""
        self.flat = bind(self.module, layout)
        return self.flat

    def features(self, parts: Sequence[Tensor], *, watch: Watch | None = None) -> Tensor:
        """Token ids (b, t) int32, −1 behind the end, of one or several tasks → unit features (B, W)."""
        longest = max(part.shape[1] for part in parts)
        tokens = torch.cat([F.pad(part, (0, longest - part.shape[1]), value=-1) for part in parts]).to(self.device)
        with computing(self.device, self.precision):
            packed = encode_packed(tokens, self._tensors, self.shape, self.prefix, watch)
        return F.normalize(packed.pooled("mean").float(), dim=-1)


@dataclass(frozen=True)
class SentenceHeads:
    """The base itself, embedding the descriptions of classes."""

    encoder: SentenceEncoder
    tokenise: Tokenise

    @property
    def parameters(self) -> int:
        """The number of weights of the encoder."""
        return sum(parameter.numel() for parameter in self.encoder.module.parameters())

    @torch.no_grad()
    def heads(self, classes: Sequence[str], prompts: Sequence[str]) -> Tensor:
        """Per class the mean of the unit embeddings of its name in all prompts, made unit again: (C, W)."""
        tokens = self.tokenise(class_texts(classes, prompts))
        features = torch.cat([self.encoder.features([part]) for part in tokens.split(_HEAD_BATCH)])
        return F.normalize(features.view(len(classes), len(prompts), -1).mean(dim=1), dim=-1)


@dataclass(frozen=True)
class Tokenise:
    """Texts → token ids (N, T) int32 by the base's tokenizer, −1 behind the end; longer texts are cut."""

    file: Path
    vocabulary: int
    longest: int

    def __call__(self, texts: Sequence[Text], answers: Sequence[Sequence[str]] = ()) -> Tensor:
        return padded(encode(read_tokenizer(self.file, self.longest), texts, self.vocabulary))


@dataclass(frozen=True)
class SentenceArchitecture(BertFolder):
    """The folder of a sentence encoder, opened."""

    logit_scale: float
    tokenise: Tokenise

    def backbone(self, tensors: Mapping[str, Tensor], device: torch.device | str) -> SentenceEncoder:
        """The encoder with these weights."""
        return SentenceEncoder(self.shape, tensors, prefix=self.prefix, logit_scale=self.logit_scale, device=device)

    def head_maker(self) -> SentenceHeads:
        """The base's encoder, read from the folder."""
        file = SafetensorsFile(self.folder / "model.safetensors")
        try:
            tensors = {name: file.read(name) for name in self.tensors}
        finally:
            file.close()
        return SentenceHeads(self.backbone(tensors, "cpu"), self.tokenise)


def read_sentence_encoder(folder: Path, base: Mapping[str, Any]) -> SentenceArchitecture:
    """Open the base of a pool of sentence encoders: headers and configuration only.

    ``base`` of the card says how many ``tokens`` of a text are read and the ``scale`` between cosines and logits.

    Raises:
        FwvizError: a file is missing or damaged, or they contradict each other or the card.
    """
    shape = read_bert_shape(folder / "config.json")
    if base["tokens"] > shape.longest:
        raise FwvizError(
            f"the pool card's base.tokens is {base['tokens']}, but the model reads at most {shape.longest}."
        )
    file = SafetensorsFile(folder / "model.safetensors")
    shapes = {name: info.shape for name, info in file.tensors.items()}
    file.close()
    prefix = find_prefix(shapes)
    check_tensors(file.path, shapes, bert_tensors(shape, prefix))
    tokenise = read_tokenise(folder, base)
    return SentenceArchitecture(folder, shape, prefix, math.log(base["scale"]), tokenise)


def read_tokenise(folder: Path, base: Mapping[str, Any]) -> Tokenise:
    """The tokenizer of a base's folder, cutting texts where the card says."""
    shape = read_bert_shape(folder / "config.json")
    return Tokenise(folder / "tokenizer.json", shape.vocabulary, base["tokens"])


def read_facts(folder: Path) -> Mapping[str, object]:
    """Sizes and activation of a checkpoint's folder."""
    return vars(read_bert_shape(folder / "config.json"))


FAMILY = Family(inputs="texts", read=read_sentence_encoder, facts=read_facts, tokenise=read_tokenise)
