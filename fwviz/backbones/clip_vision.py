"""CLIP: an image tower whose weights lie in one flat vector, and the frozen text tower that makes its heads."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fwviz.backbones._tensors import check_tensors, module_of
from fwviz.backbones._transformer import ACTIVATIONS, apply_block, block_of, block_shapes
from fwviz.backbones.clip_config import VisionShape, read_json, read_vision_shape
from fwviz.backbones.clip_text import ClipText
from fwviz.backbones.family import Family, Watch
from fwviz.backbones.open_clip import CONFIG as OPEN_CLIP_CONFIG
from fwviz.backbones.open_clip import is_open_clip, open_clip_checkpoint, read_open_clip_shape
from fwviz.backbones.precision import computing
from fwviz.space.binding import FlatParameters, bind
from fwviz.space.files import CheckpointFile, SafetensorsFile
from fwviz.types import FwvizError, ParamLayout

_EMBEDDINGS = "vision_model.embeddings."
_LAYERS = "vision_model.encoder.layers."
# Tokens in a pass: with fewer, reading the weights and adding to their gradients outweighs the products (ViT-B/32, one
# core, forward and backward: 5 % slower at half as many, 2 % faster at twice).
_ROWS = 400


def vision_tensors(shape: VisionShape) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor of the image tower, named as in ``CLIPModel``."""
    norm = {"weight": (shape.width,), "bias": (shape.width,)}
    grid = shape.image_size // shape.patch_size
    tensors: dict[str, tuple[int, ...]] = {
        f"{_EMBEDDINGS}class_embedding": (shape.width,),
        f"{_EMBEDDINGS}patch_embedding.weight": (shape.width, shape.channels, shape.patch_size, shape.patch_size),
        f"{_EMBEDDINGS}position_embedding.weight": (grid * grid + 1, shape.width),
        "visual_projection.weight": (shape.projection, shape.width),
    }
    for place in ("pre_layrnorm", "post_layernorm"):  # sic: the name in every CLIP file
        tensors |= {f"vision_model.{place}.{kind}": size for kind, size in norm.items()}
    for index in range(shape.depth):
        inside = block_shapes(shape.width, shape.hidden)
        tensors |= {f"{_LAYERS}{index}.{name}": size for name, size in inside.items()}
    return tensors


class ClipVision:
    """A CLIP image tower: pixels → unit features, equal to ``CLIPModel`` up to rounding.

    One instance serves one job: ``lock`` is held by whoever sets its weights and reads its outputs.
    """

    def __init__(
        self,
        shape: VisionShape,
        tensors: Mapping[str, Tensor],
        *,
        logit_scale: float,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        base_dir: Path | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """``tensors`` are copied if they are not float32 on ``device``, else shared until :meth:`bind`."""
        self.shape = shape
        self.logit_scale = logit_scale
        self.base_dir = base_dir
        self.device = torch.device(device)
        self.precision = torch.float32
        self.lock = threading.RLock()
        self.module = module_of({name: tensors[name].to(self.device, torch.float32) for name in vision_tensors(shape)})
        self.flat: FlatParameters | None = None
        self._mean = torch.tensor(mean, device=self.device).mul(255).view(1, -1, 1, 1)
        self._std = torch.tensor(std, device=self.device).mul(255).view(1, -1, 1, 1)
        # Binding replaces the data of these parameters, never the objects, so that they can be picked once.
        self._tensors = dict(self.module.named_parameters())
        self._blocks = [block_of(self._tensors, f"{_LAYERS}{index}.") for index in range(shape.depth)]

    @classmethod
    def load(cls, base_dir: Path | str, device: torch.device | str = "cpu") -> ClipVision:
        """Read the image tower of a ``CLIPModel`` folder. Nothing in it is executed or unpickled.

        Raises:
            FwvizError: a file is missing or damaged, or tensors and config.json contradict each other.
        """
        folder = Path(base_dir)
        shape = read_vision_shape(folder / "config.json")
        file = SafetensorsFile(folder / "model.safetensors")
        try:
            check_tensors(file.path, {n: info.shape for n, info in file.tensors.items()}, vision_tensors(shape))
            tensors = {name: file.read(name) for name in vision_tensors(shape)}
            scale = read_logit_scale(file)
        finally:
            file.close()
        mean, std = read_normalisation(folder)
        return cls(shape, tensors, logit_scale=scale, mean=mean, std=std, base_dir=folder, device=device)

    @property
    def dimension(self) -> int:
        """The length of the embedding space shared with the text tower."""
        return self.shape.projection

    @property
    def chunk(self) -> int:
        """Images per pass: enough to keep the device busy, few enough to bound memory and to stop soon.

        A stop is noticed within 0.2 s of a small tower; eight images of a ViT-B/32 take two seconds of one core.
        """
        tokens = (self.shape.image_size // self.shape.patch_size) ** 2 + 1
        budget = 100_000 if self.device.type == "cpu" else 8_000_000  # numbers in one hidden state
        return max(-(-_ROWS // tokens), min(512, budget // (tokens * self.shape.width)))

    def bind(self, layout: ParamLayout) -> FlatParameters:
        """Move the merged weights into one flat vector; the others are frozen. Returned and kept as ``flat``."""
        self.flat = bind(self.module, layout)
        return self.flat

    def features(self, parts: Sequence[Tensor], *, watch: Watch | None = None) -> Tensor:
        """uint8 images (b, C, H, W), of one or several tasks → unit features (B, D)."""
        return self.encode(self.pixels(torch.cat(list(parts))), watch=watch)

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 images (B, C, H, W) → normalised float32 pixels on the tower's device."""
        return images.to(self.device, torch.float32).sub_(self._mean).div_(self._std)

    def encode(self, pixels: Tensor, *, watch: Watch | None = None) -> Tensor:
        """Normalised pixels (B, C, H, W) → unit features (B, D). A watch makes the last block compute all tokens."""
        with computing(self.device, self.precision):
            projected = self._project(pixels, watch)
        return F.normalize(projected.float(), dim=-1)

    def _project(self, pixels: Tensor, watch: Watch | None) -> Tensor:
        shape, tensors = self.shape, self._tensors
        size, patch, width = shape.image_size, shape.patch_size, shape.width
        batch, grid = pixels.shape[0], size // patch
        if pixels.shape[1:] != (shape.channels, size, size):
            raise FwvizError(
                f"images have shape {tuple(pixels.shape[1:])}, but the model takes {(shape.channels, size, size)}."
            )
        # A convolution whose stride is its size is one product with the patches laid out as rows.
        rows = pixels.view(batch, shape.channels, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
        patches = F.linear(
            rows.reshape(batch, grid * grid, -1), tensors[f"{_EMBEDDINGS}patch_embedding.weight"].view(width, -1)
        )
        first = tensors[f"{_EMBEDDINGS}class_embedding"].expand(batch, 1, -1)
        x = torch.cat([first, patches], dim=1) + tensors[f"{_EMBEDDINGS}position_embedding.weight"]
        x = self._norm(x, "vision_model.pre_layrnorm")
        for index, block in enumerate(self._blocks):
            x = apply_block(
                x,
                block,
                heads=shape.heads,
                eps=shape.eps,
                activation=ACTIVATIONS[shape.activation],
                first_only=index == shape.depth - 1 and watch is None,
                watch=None if watch is None else partial(_watch_inside, watch, f"{_LAYERS}{index}."),
            )
        pooled = self._norm(x[:, 0], "vision_model.post_layernorm")
        if watch is not None:
            watch(["visual_projection.weight"], pooled)
        return F.linear(pooled, tensors["visual_projection.weight"])

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Texts → unit embeddings (N, D) by the base's own text tower, read from disk for this call."""
        return self._text().features(texts).to(self.device)

    def heads(self, classes: Sequence[str], prompts: Sequence[str]) -> Tensor:
        """Classes and prompts with ``{}`` → unit class embeddings (C, D), see :meth:`ClipText.heads`."""
        return self._text().heads(classes, prompts).to(self.device)

    def _text(self) -> ClipText:
        if self.base_dir is None:
            raise FwvizError("this tower was built without its folder: load the model from disk to embed texts.")
        return ClipText.load(self.base_dir)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]
        return F.layer_norm(x, (self.shape.width,), weight, bias, self.shape.eps)


def _watch_inside(watch: Watch, prefix: str, names: Sequence[str], x: Tensor) -> None:
    watch([prefix + name for name in names], x)


def read_logit_scale(file: SafetensorsFile) -> float:
    """ln of the factor between cosines and logits."""
    info = file.info("logit_scale")
    if math.prod(info.shape) != 1:
        raise FwvizError(f"{file.path}: logit_scale has shape {info.shape}, but must be one number.")
    value = float(file.read("logit_scale"))
    if not -20 < value < 20:
        raise FwvizError(f"{file.path}: logit_scale is {value}, but e to its power must be a sensible factor.")
    return value


def read_normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, of images in [0, 1], from ``preprocessor_config.json``."""
    path = folder / "preprocessor_config.json"
    config = read_json(path)
    read: list[tuple[float, ...]] = []
    for key in ("image_mean", "image_std"):
        value = config.get(key)
        if not isinstance(value, list) or len(value) != 3 or not all(type(v) in (int, float) for v in value):
            raise FwvizError(f"{path}: {key} is {value!r}, but must be three numbers.")
        if not all(abs(v) < 1e3 for v in value) or (key == "image_std" and not all(v > 1e-6 for v in value)):
            raise FwvizError(f"{path}: {key} is {value!r}, which no image can be normalised by.")
        read.append(tuple(float(v) for v in value))
    return read[0], read[1]


@dataclass(frozen=True)
class ClipArchitecture:
    """A ``CLIPModel`` folder, opened: the image tower merges, the text tower makes the heads."""

    folder: Path
    shape: VisionShape
    logit_scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def facts(self) -> Mapping[str, object]:
        """Sizes and activation of the image tower."""
        return vars(self.shape)

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        """Name → shape of the image tower's tensors."""
        return vision_tensors(self.shape)

    @property
    def aliases(self) -> Mapping[str, str]:
        """No tensor of it has two names."""
        return {}

    def backbone(self, tensors: Mapping[str, Tensor], device: torch.device | str) -> ClipVision:
        """The image tower with these weights."""
        return ClipVision(
            self.shape,
            tensors,
            logit_scale=self.logit_scale,
            mean=self.mean,
            std=self.std,
            base_dir=self.folder,
            device=device,
        )

    def head_maker(self) -> ClipText:
        """The text tower, read from the folder."""
        return ClipText.load(self.folder)


def read_clip(folder: Path, base: Mapping[str, Any]) -> ClipArchitecture:
    """Open the base of a pool of CLIP image towers: headers and configuration only.

    Raises:
        FwvizError: a file is missing or damaged, or they contradict each other or the card's ``image_size``.
    """
    shape = read_vision_shape(folder / "config.json")
    if shape.image_size != base["image_size"]:
        raise FwvizError(
            f"the pool card's base.image_size is {base['image_size']}, but {folder / 'config.json'} says "
            f"{shape.image_size}."
        )
    file = SafetensorsFile(folder / "model.safetensors")
    try:
        check_tensors(file.path, {name: info.shape for name, info in file.tensors.items()}, vision_tensors(shape))
        scale = read_logit_scale(file)
    finally:
        file.close()
    mean, std = read_normalisation(folder)
    return ClipArchitecture(folder, shape, scale, mean, std)


def read_facts(folder: Path) -> Mapping[str, object]:
    """Sizes and activation of the image tower of a checkpoint's folder, of transformers or open_clip."""
    if is_open_clip(folder):
        return vars(read_open_clip_shape(folder / OPEN_CLIP_CONFIG))
    return vars(read_vision_shape(folder / "config.json"))


def open_checkpoint(folder: Path, layout: ParamLayout) -> CheckpointFile:
    """A checkpoint's image tower, of transformers or open_clip."""
    return open_clip_checkpoint(folder, layout) if is_open_clip(folder) else CheckpointFile(folder, layout)


FAMILY = Family(inputs="images", read=read_clip, facts=read_facts, checkpoint=open_checkpoint)
