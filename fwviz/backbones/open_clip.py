"""Image towers as open_clip saves them, seen under the names ``CLIPModel`` has for the same weights.

open_clip keeps query, key and value in one matrix, stores the projection transposed and names everything otherwise; the
numbers are the same. So a checkpoint of either library is a member of the same pool, read in place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fwviz.backbones.clip_config import VisionShape, read_json
from fwviz.space.files import CheckpointFile, Place
from fwviz.types import FwvizError, ParamLayout

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"

_LAYER = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.(.+)")
_INSIDE = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_OUTSIDE = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",  # sic: the name in every CLIP file
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}
# Settings of a tower under which it is another function than CLIPModel's; what may stand there all the same.
_OTHERWISE: dict[str, tuple[Any, ...]] = {
    "timm_model_name": (None, ""),
    "ls_init_value": (None,),
    "attentional_pool": (False, None),
    "no_ln_pre": (False,),
    "final_ln_after_pool": (False,),
    "input_patchnorm": (False,),
    "global_average_pool": (False,),
    "pool_type": ("tok",),
    "pos_embed_type": ("learnable",),
    "norm_kwargs": (None, {}),
    "act_kwargs": (None, {}),
    "block_type": (None,),
    "qk_norm": (False,),
}


def is_open_clip(folder: Path) -> bool:
    """Whether a folder is one of open_clip's rather than of transformers'."""
    return (folder / CONFIG).is_file()


def read_open_clip_shape(path: Path) -> VisionShape:
    """The image tower of an ``open_clip_config.json``; FwvizError for what is no plain ViT of CLIP."""
    config = read_json(path).get("model_cfg")
    tower = config.get("vision_cfg") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(tower, dict):
        raise FwvizError(f"{path} has no model_cfg with a vision_cfg: save the model with open_clip again.")
    for key, allowed in _OTHERWISE.items():
        if key in tower and tower[key] not in allowed:
            raise FwvizError(
                f"{path}: vision_cfg has {key} {tower[key]!r}, which the image tower of CLIP does not know."
            )

    def count(key: str, value: Any, high: int) -> int:
        if type(value) is not int or not 1 <= value <= high:
            raise FwvizError(f"{path}: {key} is {value!r}, but must be a whole number from 1 to {high}.")
        return value

    size = tower.get("image_size", 224)
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    width, head = (
        count("width", tower.get("width", 768), 1 << 16),
        count("head_width", tower.get("head_width", 64), 1 << 12),
    )
    ratio = tower.get("mlp_ratio", 4.0)
    if width % head or type(ratio) not in (int, float) or not 0 < ratio <= 64:
        raise FwvizError(f"{path}: width {width}, head_width {head} and mlp_ratio {ratio!r} make no transformer.")
    shape = VisionShape(
        width=width,
        hidden=int(width * ratio),
        depth=count("layers", tower.get("layers", 12), 1 << 10),
        heads=width // head,
        activation="quick_gelu" if config.get("quick_gelu") else "gelu",
        eps=1e-5,
        projection=count("embed_dim", config.get("embed_dim"), 1 << 16),
        channels=3,
        image_size=count("image_size", size, 4096),
        patch_size=count("patch_size", tower.get("patch_size", 16), 4096),
    )
    if shape.image_size % shape.patch_size:
        raise FwvizError(f"{path}: image_size {shape.image_size} is no multiple of patch_size {shape.patch_size}.")
    return shape


def place_of(name: str) -> Place:
    """Where open_clip keeps a tensor of ``CLIPModel``'s image tower."""
    if name == "visual_projection.weight":
        return Place("visual.proj", transposed=True)
    if name in _OUTSIDE:
        return Place(_OUTSIDE[name])
    match = _LAYER.fullmatch(name)
    if match is None:
        raise FwvizError(f"open_clip has no tensor for {name!r}: only the image tower can be read from it.")
    block = f"visual.transformer.resblocks.{match[1]}."
    module, _, kind = match[2].rpartition(".")
    if module in _INSIDE:
        return Place(f"{block}{_INSIDE[module]}.{kind}")
    # q_proj, k_proj and v_proj are the three thirds of one matrix.
    return Place(f"{block}attn.in_proj_{kind}", part="qkv".index(module.removeprefix("self_attn.")[0]), parts=3)


def open_clip_checkpoint(folder: Path, layout: ParamLayout) -> CheckpointFile:
    """An open_clip folder as a checkpoint of a CLIP pool; nothing is copied or unpickled."""
    if not (folder / WEIGHTS).exists() and (folder / "open_clip_pytorch_model.bin").exists():
        raise FwvizError(
            f"{folder / 'open_clip_pytorch_model.bin'} is a pickle, which can run code when it is read: save the model "
            f"as {WEIGHTS} with safetensors.torch.save_file."
        )
    file = CheckpointFile(folder / WEIGHTS, layout, place=place_of)
    known = {place_of(name).name for name in layout.names} | {place_of(name).name for name in _tower(layout.excluded)}
    extra = [name for name in file.tensors if name.startswith("visual.") and name not in known]
    if extra:
        raise FwvizError(
            f"{file.path} has a tensor {extra[0]!r} that the image tower of CLIP lacks: it is another model."
        )
    return file


def to_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image tower of a ``CLIPModel`` under open_clip's names: the way back."""
    found: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        place = place_of(name)
        if place.parts > 1:
            thirds.setdefault(place.name, {})[place.part] = tensor
        else:
            found[place.name] = tensor.T.contiguous() if place.transposed else tensor
    return found | {name: torch.cat([parts[k] for k in range(3)]) for name, parts in thirds.items()}


def from_open_clip(tensors: Mapping[str, Tensor], names: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors of open_clip's image tower under the names ``CLIPModel`` has for them."""
    found: dict[str, Tensor] = {}
    for name in names:
        place = place_of(name)
        tensor = tensors[place.name].chunk(place.parts)[place.part]
        found[name] = (tensor.T if place.transposed else tensor).contiguous()
    return found


def _tower(names: Mapping[str, str]) -> list[str]:
    return [
        name
        for name in names
        if name.startswith(("vision_model.", "visual_projection.")) and "position_ids" not in name
    ]
