"""Reading the ``config.json`` of a CLIP folder, distrusting every value."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fwviz.backbones._transformer import ACTIVATIONS
from fwviz.types import FwvizError

_MAX_JSON = 4 << 20  # bytes

# What CLIPVisionConfig and CLIPTextConfig of transformers take for a key the file leaves out.
_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_TEXT = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}


@dataclass(frozen=True)
class Tower:
    """What both towers have: sizes, activation, and the length of the shared embedding space."""

    width: int
    hidden: int
    depth: int
    heads: int
    activation: str
    eps: float
    projection: int


@dataclass(frozen=True)
class VisionShape(Tower):
    """An image tower of square images and patches."""

    channels: int
    image_size: int
    patch_size: int


@dataclass(frozen=True)
class TextShape(Tower):
    """A text tower. ``eos`` is the token whose output is read."""

    vocabulary: int
    positions: int
    eos: int


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    try:
        if path.stat().st_size > _MAX_JSON:
            raise FwvizError(f"{path} is larger than {_MAX_JSON >> 20} MiB: that is no configuration file.")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise FwvizError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise FwvizError(f"{path} is no valid JSON: save the model again.") from None
    if not isinstance(value, dict):
        raise FwvizError(f"{path} holds no JSON object: save the model again.")
    return value


def read_vision_shape(path: Path) -> VisionShape:
    """The image tower of a CLIPModel's or CLIPVisionModelWithProjection's ``config.json``."""
    config = read_json(path)
    kind = config.get("model_type")
    if kind == "clip":
        values = _VISION | _section(config, "vision_config")
        projection = config.get("projection_dim", 512)
    elif kind == "clip_vision_model":
        values, projection = _VISION | config, config.get("projection_dim", 512)
    else:
        raise FwvizError(f"{path} is of model_type {kind!r}, but only 'clip' and 'clip_vision_model' are known.")
    read = _Reader(path, values)
    shape = VisionShape(
        **read.tower(projection),
        channels=read.count("num_channels", 16),
        image_size=read.side("image_size"),
        patch_size=read.side("patch_size"),
    )
    if shape.image_size % shape.patch_size:
        raise FwvizError(f"{path}: image_size {shape.image_size} is no multiple of patch_size {shape.patch_size}.")
    return shape


def read_text_shape(path: Path) -> TextShape:
    """The text tower of a CLIPModel's ``config.json``."""
    config = read_json(path)
    if config.get("model_type") != "clip":
        raise FwvizError(f"{path} is of model_type {config.get('model_type')!r}, but a text tower needs 'clip'.")
    read = _Reader(path, _TEXT | _section(config, "text_config"))
    vocabulary, eos = read.count("vocab_size", 1 << 24), read.count("eos_token_id", 1 << 24, low=0)
    return TextShape(
        **read.tower(config.get("projection_dim", 512)),
        vocabulary=vocabulary,
        positions=read.count("max_position_embeddings", 1 << 16),
        # Configurations of 2021 say 2 by mistake; their end token is the last of the vocabulary.
        eos=vocabulary - 1 if eos == 2 else eos,
    )


def _section(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A tower's part; the older ``…_config_dict`` wins where a file still has it, as in transformers."""
    parts = [config.get(name), config.get(f"{name}_dict")]
    return {key: value for part in parts if isinstance(part, dict) for key, value in part.items()}


class _Reader:
    """Values of one tower, with errors that name file and key."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self._path = path
        self._values = values

    def count(self, key: str, high: int, low: int = 1) -> int:
        return self._count(key, self._values[key], high, low)

    def side(self, key: str) -> int:
        value = self._values[key]
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        return self._count(key, value, 4096, 1)

    def tower(self, projection: Any) -> dict[str, Any]:
        width, heads = self.count("hidden_size", 1 << 16), self.count("num_attention_heads", 1 << 12)
        if width % heads:
            raise FwvizError(f"{self._path}: hidden_size {width} is no multiple of num_attention_heads {heads}.")
        activation, eps = self._values["hidden_act"], self._values["layer_norm_eps"]
        if activation not in ACTIVATIONS:
            raise FwvizError(
                f"{self._path}: hidden_act is {activation!r}, but must be one of {', '.join(ACTIVATIONS)}."
            )
        if type(eps) not in (int, float) or not (math.isfinite(eps) and 0 < eps < 1):
            raise FwvizError(f"{self._path}: layer_norm_eps is {eps!r}, but must be a small positive number.")
        return {
            "width": width,
            "hidden": self.count("intermediate_size", 1 << 18),
            "depth": self.count("num_hidden_layers", 1 << 10),
            "heads": heads,
            "activation": activation,
            "eps": float(eps),
            "projection": self._count("projection_dim", projection, 1 << 16, 1),
        }

    def _count(self, key: str, value: Any, high: int, low: int) -> int:
        if type(value) is not int or not low <= value <= high:
            raise FwvizError(f"{self._path}: {key} is {value!r}, but must be a whole number from {low} to {high}.")
        return value
