"""The order of a model's mergeable tensors in one flat vector, and the way there and back."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fwviz.types import FwvizError, ParamLayout

# Block containers of HF CLIP, ViT, BERT, RoBERTa, LLaMA ("layers.3", "layer.3"), T5 and timm ("block.3", "blocks.3"),
# GPT-2 ("h.3"), open_clip ("resblocks.3"), ResNets ("layer3."). The first hit counts: T5 nests "layer.0" in "block.3".
_BLOCK = re.compile(r"(?:^|\.)(?:(?:layers?|blocks?|resblocks|h|stages?)\.|layer)(\d+)(?:\.|$)")
_TEXT = re.compile(
    r"^(?:text_model|text|text_projection|token_embedding|positional_embedding|ln_final|transformer\.resblocks)(?:\.|$)"
)
_DECODER = re.compile(r"^(?:(?:model|transformer)\.)?decoder\.")
_STEM = re.compile(
    r"embed|patch|pos_emb|cls_token|pre_layrnorm|pre_layernorm|ln_pre|norm_pre|(?:^|\.)(?:wte|wpe|conv1|bn1|shared)\."
)

# What a tensor does, by the names that the families above give it; the first hit counts, so norms inside an attention
# are norms, and T5's "SelfAttention.o" and timm's "attn.proj" are outputs of an attention.
_END = r"(?:\.|$)"
_KINDS = {
    "norm": rf"norm|layrnorm|(?:^|\.)(?:ln|bn)_?\w*{_END}",
    "query": rf"(?:^|\.)(?:q|q_proj|q_lin|query){_END}",
    "key": rf"(?:^|\.)(?:k|k_proj|k_lin|key){_END}",
    "value": rf"(?:^|\.)(?:v|v_proj|v_lin|value){_END}",
    "qkv": rf"(?:^|\.)(?:qkv|qkv_proj|query_key_value|c_attn|in_proj\w*){_END}",
    "embedding": rf"embed|relative_attention_bias|(?:^|visual\.)conv1\.|(?:^|\.)(?:wte|wpe|shared|cls_token){_END}",
    "output": rf"att\w*\.(?:\w+\.)*(?:out_proj|o_proj|out_lin|o|proj|c_proj|dense){_END}",
    "mlp": rf"mlp|densereludense|intermediate|output\.dense|(?:^|\.)(?:fc1|fc2|c_fc|lin1|lin2){_END}",
    "projection": rf"projection|classifier|(?:^|\.)(?:proj|lm_head|head|fc|pooler){_END}",
}
_WEIGHT_TYPES = {kind: re.compile(pattern) for kind, pattern in _KINDS.items()}
WEIGHT_TYPES = ("embedding", "query", "key", "value", "qkv", "output", "mlp", "norm", "projection", "other")

_INDEX_BUFFER = re.compile(r"(?:^|\.)(?:position_ids|token_type_ids|num_batches_tracked)$")


def layer_of(name: str) -> str:
    """The layer a tensor belongs to: ``stem``, ``block.<i>`` or ``head``.

    A second tower carries its name in front: ``text.block.3`` (text side of CLIP), ``decoder.block.3`` (T5). Tensors
    outside every block are the stem if they embed the input, else the head.
    """
    tower = "text." if _TEXT.search(name) else "decoder." if _DECODER.search(name) else ""
    block = _BLOCK.search(name)
    if block:
        return f"{tower}block.{int(block.group(1))}"
    return f"{tower}stem" if _STEM.search(name) else f"{tower}head"


def weight_type(name: str) -> str:
    """What a tensor does in its layer, one of :data:`WEIGHT_TYPES`: weights and biases alike.

    ``query``, ``key``, ``value``, ``qkv`` (fused) and ``output`` belong to an attention; ``mlp`` are both sides of a
    feed-forward; ``projection`` is what follows the last block: projections, classifiers, language-model heads.
    """
    lower = name.lower()
    return next((kind for kind, pattern in _WEIGHT_TYPES.items() if pattern.search(lower)), "other")


def build_layout(
    tensors: Mapping[str, tuple[int, ...]],
    include: Sequence[str] = ("",),
    exclude: Sequence[str] = (),
    changed: frozenset[str] | None = None,
) -> ParamLayout:
    """Order the mergeable tensors by layer (stem, blocks, head), by natural sort inside a layer.

    Args:
        tensors: name → shape of every tensor of the model.
        include: prefixes; a tensor takes part if its name starts with one of them.
        exclude: names or prefixes that stay at the base nevertheless.
        changed: the tensors that any checkpoint changes, where that is known (adapters); the others stay out.

    Raises:
        FwvizError: an ``include`` prefix matches nothing, or nothing is left to merge.
    """
    for prefix in include:
        if not any(name.startswith(prefix) for name in tensors):
            raise FwvizError(
                f"the model has no tensor whose name starts with {prefix!r}: correct 'include' (the first tensor is "
                f"{next(iter(tensors), 'missing')!r})."
            )
    excluded: dict[str, str] = {}
    for name, shape in tensors.items():
        hit = next((entry for entry in exclude if name.startswith(entry)), None)
        if not any(name.startswith(prefix) for prefix in include):
            excluded[name] = f"outside the merged part ({', '.join(include)})"
        elif hit is not None:
            excluded[name] = f"excluded by {hit!r}"
        elif _INDEX_BUFFER.search(name):
            excluded[name] = "an index buffer, not a weight"
        elif 0 in shape:
            excluded[name] = "empty"
        elif changed is not None and name not in changed:
            excluded[name] = "no adapter changes it"
    names = sorted((name for name in tensors if name not in excluded), key=_sort_key)
    if not names:
        raise FwvizError("no tensor of the model is left to merge: relax 'include' or 'exclude'.")
    offsets = [0]
    for name in names:
        offsets.append(offsets[-1] + math.prod(tensors[name]))
    return ParamLayout(
        names=tuple(names),
        shapes=tuple(tuple(tensors[name]) for name in names),
        offsets=tuple(offsets),
        layers=tuple(layer_of(name) for name in names),
        excluded=excluded,
    )


def _sort_key(name: str) -> tuple[int, int, int, list[str | int]]:
    layer = layer_of(name)
    tower, _, place = layer.rpartition(".") if layer.endswith(("stem", "head")) else layer.partition("block.")
    tower_rank = {"": 0, "text": 1, "decoder": 2}[tower.rstrip(".")]
    if layer == "head":  # the one output of all towers comes last
        tower_rank = 3
    place_rank = {"stem": (0, 0), "head": (2, 0)}.get(place) or (1, int(place))
    natural = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
    return (tower_rank, *place_rank, natural)


def flatten(
    layout: ParamLayout,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> Tensor:
    """Copy named tensors into one flat (P,) vector, written to ``out`` (any dtype and device) if given.

    Raises:
        FwvizError: a tensor of the layout is missing or has another shape.
    """
    if out is None:
        out = torch.empty(layout.size, dtype=dtype)
    for j, name in enumerate(layout.names):
        if name not in tensors:
            raise FwvizError(f"tensor {name!r} is missing: the checkpoint is not of this architecture.")
        tensor = tensors[name]
        if tuple(tensor.shape) != layout.shapes[j]:
            raise FwvizError(f"tensor {name!r} has shape {tuple(tensor.shape)}, but must have {layout.shapes[j]}.")
        out[layout.offsets[j] : layout.offsets[j + 1]].copy_(tensor.detach().reshape(-1))
    return out


def unflatten(layout: ParamLayout, flat: Tensor) -> dict[str, Tensor]:
    """Name → view of its range of the flat (P,) vector."""
    bounds = zip(layout.offsets[:-1], layout.offsets[1:], strict=True)
    return {
        name: flat[start:stop].view(shape)
        for name, shape, (start, stop) in zip(layout.names, layout.shapes, bounds, strict=True)
    }
