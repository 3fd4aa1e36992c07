"""CLIP's text tower: class names and prompts → the frozen heads that every checkpoint of a pool is judged with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from fwviz.backbones._texts import class_texts, encode, read_tokenizer
from fwviz.backbones._transformer import ACTIVATIONS, apply_block, block_of, block_shapes
from fwviz.backbones.clip_config import TextShape, read_text_shape
from fwviz.space.files import SafetensorsFile
from fwviz.types import FwvizError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LAYERS = "text_model.encoder.layers."
_BATCH = 256  # texts at once


class ClipText:
    """The text tower of a CLIP in float32 on the CPU, with its tokenizer."""

    def __init__(self, shape: TextShape, tensors: Mapping[str, Tensor], tokenizer: Tokenizer) -> None:
        self.shape = shape
        self._tensors = {name: tensors[name].float() for name in text_tensors(shape)}
        self._blocks = [block_of(self._tensors, f"{_LAYERS}{index}.") for index in range(shape.depth)]
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, base_dir: Path | str) -> ClipText:
        """Read the text tower and ``tokenizer.json`` of a ``CLIPModel`` folder; FwvizError if they do not fit."""
        folder = Path(base_dir)
        shape = read_text_shape(folder / "config.json")
        file = SafetensorsFile(folder / "model.safetensors")
        try:
            for name, size in text_tensors(shape).items():
                info = file.info(name)
                if info.shape != size:
                    raise FwvizError(
                        f"{file.path}: tensor {name!r} has shape {info.shape}, but its config.json says {size}."
                    )
            tensors = {name: file.read(name) for name in text_tensors(shape)}
        finally:
            file.close()
        return cls(shape, tensors, read_tokenizer(folder / "tokenizer.json", shape.positions))

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(tensor.numel() for tensor in self._tensors.values())

    @torch.no_grad()
    def features(self, texts: Sequence[str]) -> Tensor:
        """Texts → unit embeddings (N, D). Texts beyond the tower's length are cut."""
        parts = [self._features(texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH)]
        return torch.cat(parts) if parts else torch.empty(0, self.shape.projection)

    def heads(self, classes: Sequence[str], prompts: Sequence[str]) -> Tensor:
        """Per class the mean of the unit embeddings of all its prompts, made unit again: (C, D).

        ``{}`` in a prompt stands for the class name. Logits are exp(logit_scale)·⟨feature, head⟩, as in CLIP
        (Radford et al. 2021, prompt ensembling, section 3.1.4).
        """
        features = self.features(class_texts(classes, prompts)).view(len(classes), len(prompts), -1)
        return F.normalize(features.mean(dim=1), dim=-1)

    def _features(self, texts: Sequence[str]) -> Tensor:
        shape, tensors = self.shape, self._tensors
        encoded = encode(self._tokenizer, texts, shape.vocabulary)
        for text, ids in zip(texts, encoded, strict=True):
            if shape.eos not in ids:
                raise FwvizError(
                    f"the tokenizer does not fit the text tower: {text[:40]!r} has no end token {shape.eos}."
                )
        ends = torch.tensor([ids.index(shape.eos) for ids in encoded])
        # No mask for the padding: a causal tower read at its end token never sees what comes after.
        length = int(ends.max()) + 1
        tokens = torch.tensor([(ids + [shape.eos] * length)[:length] for ids in encoded])
        x = tensors["text_model.embeddings.token_embedding.weight"][tokens]
        x = x + tensors["text_model.embeddings.position_embedding.weight"][:length]
        activation = ACTIVATIONS[shape.activation]
        for block in self._blocks:
            x = apply_block(x, block, heads=shape.heads, eps=shape.eps, activation=activation, causal=True)
        x = x[torch.arange(len(texts)), ends]
        weight, bias = (tensors[f"text_model.final_layer_norm.{kind}"] for kind in ("weight", "bias"))
        x = F.layer_norm(x, (shape.width,), weight, bias, shape.eps)
        return F.normalize(F.linear(x, tensors["text_projection.weight"]), dim=-1)


def text_tensors(shape: TextShape) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor of the text tower, named as in ``CLIPModel``."""
    tensors: dict[str, tuple[int, ...]] = {
        "text_model.embeddings.token_embedding.weight": (shape.vocabulary, shape.width),
        "text_model.embeddings.position_embedding.weight": (shape.positions, shape.width),
        "text_model.final_layer_norm.weight": (shape.width,),
        "text_model.final_layer_norm.bias": (shape.width,),
        "text_projection.weight": (shape.projection, shape.width),
    }
    for index in range(shape.depth):
        inside = block_shapes(shape.width, shape.hidden)
        tensors |= {f"{_LAYERS}{index}.{name}": size for name, size in inside.items()}
    return tensors
