"""BERT and RoBERTa encoders as a function of their tensors, over texts of any lengths without padding.

Everything but attention works on one (tokens, width) matrix of all texts laid end to end, sorted by length; attention
takes texts of equal length together. So no work is done for padding, and no mask can be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fwviz.backbones.clip_config import read_json
from fwviz.backbones.family import Watch
from fwviz.types import FwvizError

PREFIXES = ("", "bert.", "roberta.")
_ACTIVATIONS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
# What BertConfig and RobertaConfig of transformers take for a key the file leaves out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    kind: {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "vocab_size": vocabulary,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": pad,
        "position_embedding_type": "absolute",
    }
    for kind, vocabulary, pad in (("bert", 30522, 0), ("roberta", 50265, 1), ("xlm-roberta", 30522, 1))
}


@dataclass(frozen=True)
class BertShape:
    """Sizes of an encoder. ``first_position`` is the row of the position table that the first token takes."""

    kind: str
    width: int
    hidden: int
    depth: int
    heads: int
    activation: str
    eps: float
    vocabulary: int
    positions: int
    types: int
    first_position: int

    @property
    def longest(self) -> int:
        """The number of tokens the position table has room for."""
        return self.positions - self.first_position


def read_bert_shape(path: Path) -> BertShape:
    """The encoder of a BERT's or RoBERTa's ``config.json``; FwvizError for another model or a wrong value."""
    config = read_json(path)
    kind = config.get("model_type")
    if kind not in _DEFAULTS:
        raise FwvizError(f"{path} is of model_type {kind!r}, but only {', '.join(_DEFAULTS)} are known.")
    values = _DEFAULTS[kind] | config

    def count(key: str, high: int, low: int = 1) -> int:
        value = values[key]
        if type(value) is not int or not low <= value <= high:
            raise FwvizError(f"{path}: {key} is {value!r}, but must be a whole number from {low} to {high}.")
        return value

    width, heads, eps = count("hidden_size", 1 << 16), count("num_attention_heads", 1 << 12), values["layer_norm_eps"]
    if width % heads:
        raise FwvizError(f"{path}: hidden_size {width} is no multiple of num_attention_heads {heads}.")
    if values["hidden_act"] not in _ACTIVATIONS:
        raise FwvizError(f"{path}: hidden_act is {values['hidden_act']!r}, but must be {' or '.join(_ACTIVATIONS)}.")
    if type(eps) not in (int, float) or not (math.isfinite(eps) and 0 < eps < 1):
        raise FwvizError(f"{path}: layer_norm_eps is {eps!r}, but must be a small positive number.")
    if values["position_embedding_type"] not in ("absolute", None):
        raise FwvizError(f"{path}: position_embedding_type is {values['position_embedding_type']!r}, not absolute.")
    # RoBERTa numbers its tokens from the row behind that of the padding.
    first = 0 if kind == "bert" else count("pad_token_id", 1 << 10, 0) + 1
    return BertShape(
        kind=kind,
        width=width,
        hidden=count("intermediate_size", 1 << 18),
        depth=count("num_hidden_layers", 1 << 10),
        heads=heads,
        activation=values["hidden_act"],
        eps=float(eps),
        vocabulary=count("vocab_size", 1 << 24),
        positions=count("max_position_embeddings", 1 << 20, first + 2),
        types=count("type_vocab_size", 1 << 10),
        first_position=first,
    )


def bert_tensors(shape: BertShape, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Name → shape of the encoder's tensors, without pooler and heads, behind ``prefix``."""
    width, hidden = shape.width, shape.hidden
    tensors: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (shape.vocabulary, width),
        "embeddings.position_embeddings.weight": (shape.positions, width),
        "embeddings.token_type_embeddings.weight": (shape.types, width),
    }
    tensors |= {f"embeddings.LayerNorm.{kind}": (width,) for kind in ("weight", "bias")}
    linears = {f"attention.self.{name}": (width, width) for name in ("query", "key", "value")}
    linears |= {"attention.output.dense": (width, width)}
    linears |= {"intermediate.dense": (hidden, width), "output.dense": (width, hidden)}
    for index in range(shape.depth):
        block = f"encoder.layer.{index}."
        tensors |= {f"{block}{name}.weight": size for name, size in linears.items()}
        tensors |= {f"{block}{name}.bias": size[:1] for name, size in linears.items()}
        for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
            tensors |= {f"{block}{norm}.{kind}": (width,) for kind in ("weight", "bias")}
    return {prefix + name: size for name, size in tensors.items()}


def find_prefix(names: Mapping[str, object]) -> str:
    """What stands before the encoder's names in a file: nothing, or the name of a whole model's part."""
    return next((prefix for prefix in PREFIXES if f"{prefix}embeddings.word_embeddings.weight" in names), "")


@dataclass(frozen=True)
class BertFolder:
    """The folder of a pretrained encoder, opened: what the families that merge one have in common."""

    folder: Path
    shape: BertShape
    prefix: str

    @property
    def facts(self) -> Mapping[str, object]:
        """Sizes and activation of the encoder."""
        return vars(self.shape)

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        """Name → shape of the encoder's tensors, without its pooler."""
        return bert_tensors(self.shape, self.prefix)

    @property
    def aliases(self) -> Mapping[str, str]:
        """No tensor of an encoder has two names."""
        return {}


@dataclass(frozen=True)
class Packed:
    """The last hidden states of a batch: ``states`` (tokens, W) of texts sorted by length.

    ``spans`` has (first row, number of texts, tokens of each) for each length; ``order`` the texts' places before.
    """

    states: Tensor
    spans: tuple[tuple[int, int, int], ...]
    order: Tensor

    def pooled(self, how: str) -> Tensor:
        """One vector per text, in the order given: the ``mean`` over its tokens, or the ``first`` token: (B, W)."""
        rows = [self.states[a : a + n * length].view(n, length, -1) for a, n, length in self.spans]
        vectors = torch.cat([part.mean(dim=1) if how == "mean" else part[:, 0] for part in rows])
        return vectors[torch.argsort(self.order)]


def encode_packed(
    tokens: Tensor,
    tensors: Mapping[str, Tensor],
    shape: BertShape,
    prefix: str = "",
    watch: Watch | None = None,
    types: Tensor | None = None,
) -> Packed:
    """Token ids (B, T) int, −1 behind the end of a text → its last hidden states.

    ``types`` (B, T) says which text of a pair each token is of; the first if None. Every text has at least one token.
    Equal to the encoder of transformers under an attention mask, up to rounding.
    """
    lengths = (tokens >= 0).sum(dim=1)
    order = torch.argsort(lengths, stable=True)
    counts = torch.unique_consecutive(lengths[order], return_counts=True)
    spans: list[tuple[int, int, int]] = []
    for length, count in zip(*(part.tolist() for part in counts), strict=True):
        start = spans[-1][0] + spans[-1][1] * spans[-1][2] if spans else 0
        spans.append((start, count, length))
    rows = tokens[order]
    kept = rows >= 0
    ids = rows[kept].long()
    places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(rows)[kept] + shape.first_position

    def get(name: str) -> Tensor:
        return tensors[prefix + name]

    def linear(x: Tensor, *names: str) -> Iterator[Tensor]:
        if watch is not None:
            watch([f"{prefix}{name}.weight" for name in names], x)
        return (F.linear(x, get(f"{name}.weight"), get(f"{name}.bias")) for name in names)

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (shape.width,), get(f"{name}.weight"), get(f"{name}.bias"), shape.eps)

    x = F.embedding(ids, get("embeddings.word_embeddings.weight"))
    x = x + F.embedding(places, get("embeddings.position_embeddings.weight"))
    side = get("embeddings.token_type_embeddings.weight")
    x = norm(x + (side[0] if types is None else F.embedding(types[order][kept].long(), side)), "embeddings.LayerNorm")
    for index in range(shape.depth):
        block = f"encoder.layer.{index}."
        q, k, v = linear(x, *(f"{block}attention.self.{name}" for name in ("query", "key", "value")))
        mixed = torch.cat([_attend(q, k, v, span, shape.heads) for span in spans])
        x = norm(x + next(linear(mixed, f"{block}attention.output.dense")), f"{block}attention.output.LayerNorm")
        inner = F.gelu(next(linear(x, f"{block}intermediate.dense")), approximate=_ACTIVATIONS[shape.activation])
        x = norm(x + next(linear(inner, f"{block}output.dense")), f"{block}output.LayerNorm")
    return Packed(x, tuple(spans), order)


def _attend(q: Tensor, k: Tensor, v: Tensor, span: tuple[int, int, int], heads: int) -> Tensor:
    """Attention inside each text of one length: rows of the packed matrices → as many mixed rows."""
    start, count, length = span
    rows = slice(start, start + count * length)
    q, k, v = (x[rows].view(count, length, heads, -1).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(count * length, -1)
