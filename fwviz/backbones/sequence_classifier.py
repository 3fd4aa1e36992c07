"""Sequence classifiers (BERT, MiniLM, RoBERTa): the encoder is merged, a task keeps the classifier of its checkpoint.

The features are the last hidden state of the first token. What stands behind it, BERT's pooler included, is the head of
a task and never merged: it belongs to the classes of that task alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fwviz.backbones._bert import (
    PREFIXES,
    BertFolder,
    bert_tensors,
    encode_packed,
    find_prefix,
    read_bert_shape,
)
from fwviz.backbones._tensors import check_tensors
from fwviz.backbones._texts import Text, encode_typed, read_tokenizer
from fwviz.backbones.clip_config import read_json
from fwviz.backbones.family import Classifier, Family, Watch
from fwviz.backbones.precision import computing
from fwviz.backbones.sentence_encoder import SentenceEncoder
from fwviz.space.files import CheckpointFile, ModelFiles
from fwviz.types import FwvizError, ParamLayout

# The names of dense and output layer in a checkpoint, RoBERTa's and BERT's.
_HEADS = (("classifier.dense", "classifier.out_proj"), ("pooler.dense", "classifier"))
_ADAPTER = "adapter_model.safetensors"


class SequenceClassifier(SentenceEncoder):
    """A BERT-like encoder whose feature is the state of the first token: (b, 2, T) → (B, W), as transformers has it.

    Row 0 of a sample are token ids, −1 behind the end, row 1 says which text of a pair each token is of.
    """

    def features(self, parts: Sequence[Tensor], *, watch: Watch | None = None) -> Tensor:
        """Samples (b, 2, T) of one or several tasks → features (B, W), not of unit length."""
        longest = max(part.shape[2] for part in parts)
        rows = torch.cat([F.pad(part, (0, longest - part.shape[2]), value=-1) for part in parts]).to(self.device)
        with computing(self.device, self.precision):
            packed = encode_packed(rows[:, 0], self._tensors, self.shape, self.prefix, watch, types=rows[:, 1])
        return packed.pooled("first").float()


@dataclass(frozen=True)
class TokenisePairs:
    """Texts or pairs → (N, 2, T) int32 by the base's tokenizer: ids and which text they are of, −1 behind the end."""

    file: Path
    vocabulary: int
    types: int
    longest: int

    def __call__(self, texts: Sequence[Text], answers: Sequence[Sequence[str]] = ()) -> Tensor:
        encoded = encode_typed(read_tokenizer(self.file, self.longest), texts, self.vocabulary)
        rows = torch.full((len(encoded), 2, max((len(ids) for ids, _ in encoded), default=0)), -1, dtype=torch.int32)
        for row, (ids, types) in zip(rows, encoded, strict=True):
            row[0, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
            # RoBERTa tells the texts of a pair apart by marks between them only.
            row[1, : len(ids)] = torch.tensor(types, dtype=torch.int32).clamp_(max=self.types - 1)
        return rows


@dataclass(frozen=True)
class ClassifierArchitecture(BertFolder):
    """The folder of a pretrained encoder, opened."""

    def backbone(self, tensors: Mapping[str, Tensor], device: torch.device | str) -> SequenceClassifier:
        """The encoder with these weights."""
        return SequenceClassifier(self.shape, tensors, prefix=self.prefix, device=device)


def read_sequence_classifier(folder: Path, base: Mapping[str, Any]) -> ClassifierArchitecture:
    """Open the base of a pool of classifiers: headers and configuration only.

    Raises:
        FwvizError: a file is missing or damaged, or they contradict each other or the card's ``tokens``.
    """
    shape = read_bert_shape(folder / "config.json")
    if base["tokens"] > shape.longest:
        raise FwvizError(
            f"the pool card's base.tokens is {base['tokens']}, but the model reads at most {shape.longest}."
        )
    files = ModelFiles(folder)
    shapes = {name: info.shape for name, info in files.tensors.items()}
    files.close()
    prefix = find_prefix(shapes)
    check_tensors(files.path, shapes, bert_tensors(shape, prefix))
    return ClassifierArchitecture(folder, shape, prefix)


def read_tokenise(folder: Path, base: Mapping[str, Any]) -> TokenisePairs:
    """The tokenizer of a base's folder, cutting texts where the card says."""
    shape = read_bert_shape(folder / "config.json")
    return TokenisePairs(folder / "tokenizer.json", shape.vocabulary, shape.types, base["tokens"])


def read_facts(folder: Path) -> Mapping[str, object]:
    """Sizes and activation of a checkpoint's folder."""
    return vars(read_bert_shape(folder / "config.json"))


def open_checkpoint(folder: Path, layout: ParamLayout) -> CheckpointFile:
    """A checkpoint's encoder; a whole model's prefix may be in its names or the base's only."""
    files = ModelFiles(folder)
    own = find_prefix(files.tensors)
    files.close()
    base = next((prefix for prefix in PREFIXES[1:] if layout.names[0].startswith(prefix)), "")
    return CheckpointFile(folder, layout, rename={base: own} if own != base else None)


def read_head(folder: Path, base: Path | None = None) -> Classifier:
    """The classifier of a checkpoint's folder, or the one an adapter keeps beside it.

    An adapter of a BERT keeps the last layer only: what stands before it is the pooler of its ``base``.

    Raises:
        FwvizError: it has none, or its parts do not fit together.
    """
    adapter = (folder / _ADAPTER).is_file()
    sources = [ModelFiles(folder / _ADAPTER if adapter else folder)]
    try:
        if adapter and base is not None:
            sources.append(ModelFiles(base))
        found: dict[str, tuple[ModelFiles, str]] = {}
        for files in reversed(sources):  # its own go over the base's
            found |= {_plain(name): (files, name) for name in files.tensors}
        own = {_plain(name) for name in sources[0].tensors}
        for dense, output in _HEADS:
            wanted = tuple(f"{part}.{kind}" for part in (dense, output) for kind in ("weight", "bias"))
            if all(name in found for name in wanted) and f"{output}.weight" in own:
                tensors = [files.read(name).float() for files, name in (found[want] for want in wanted)]
                break
        else:
            raise FwvizError(
                f"{sources[0].path} has no classifier of its own (classifier.dense and classifier.out_proj, or "
                f"pooler.dense and classifier): give a checkpoint saved with its classification head."
            )
    finally:
        for files in sources:
            files.close()
    first, bias, last, shift = tensors
    width = last.shape[-1]
    files = sources[0]
    if last.dim() != 2 or (*first.shape, *bias.shape, *shift.shape) != (width, width, width, last.shape[0]):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise FwvizError(f"{files.path}: the parts of the classifier have shapes {shapes}, which do not fit together.")
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise FwvizError(f"{files.path}: the classifier holds NaN or infinity: restore the checkpoint.")
    names = tuple(name if name.startswith("classifier") else f"bert.{name}" for name in wanted)
    return Classifier((names[0], names[1], names[2], names[3]), *tensors)


def read_class_names(folder: Path) -> tuple[str, ...]:
    """The names a checkpoint's configuration gives its outputs, in their order; none where it gives none of its own."""
    labels = read_json(folder / "config.json").get("id2label") if (folder / "config.json").is_file() else None
    if not isinstance(labels, dict) or not all(key.isdigit() and isinstance(name, str) for key, name in labels.items()):
        return ()
    names = tuple(labels[key] for key in sorted(labels, key=int))
    return () if all(name.startswith("LABEL_") for name in names) else names


def _plain(name: str) -> str:
    """A tensor's name without what a whole model or PEFT puts in front of it."""
    name = name.removeprefix("base_model.model.").replace(".modules_to_save.default.", ".")
    prefix = next((prefix for prefix in PREFIXES[1:] if name.startswith(prefix)), "")
    return name.removeprefix(prefix)


FAMILY = Family(
    inputs="texts",
    read=read_sequence_classifier,
    facts=read_facts,
    checkpoint=open_checkpoint,
    tokenise=read_tokenise,
    heads="own",
    own_head=read_head,
    prefixes=PREFIXES[1:],
)
