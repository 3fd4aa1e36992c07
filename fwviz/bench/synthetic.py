"""Pools with the shapes of CLIP towers or of LoRA adapters and random weights, for measuring speed and memory only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from fwviz.backbones.clip_config import VisionShape
from fwviz.backbones.clip_vision import ClipVision
from fwviz.space.files import CheckpointFile
from fwviz.space.layout import build_layout, unflatten
from fwviz.space.lowrank import LowRank, LowRankTaskVectors
from fwviz.space.vectors import ResidentTaskVectors
from fwviz.tasks.data import TaskData
from fwviz.tasks.objectives import CalibrationObjective
from fwviz.types import ParamLayout

SHIFT = 9973


def vit_layout(
    width: int = 768, blocks: int = 12, patch: int = 32, image: int = 224, projection: int | None = None
) -> ParamLayout:
    """The layout of a CLIP vision tower; the defaults are ViT-B/32 with P = 87 849 216."""
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (width,),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": ((image // patch) ** 2 + 1, width),
        "visual_projection.weight": (projection or width * 2 // 3, width),
    }
    for norm in ("pre_layrnorm", "post_layernorm"):
        shapes |= {f"vision_model.{norm}.{kind}": (width,) for kind in ("weight", "bias")}
    linear = {f"self_attn.{name}_proj": (width, width) for name in "qkv"}
    linear |= {"self_attn.out_proj": (width, width), "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for i in range(blocks):
        block = f"vision_model.encoder.layers.{i}"
        for name, shape in linear.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{block}.{norm}.{kind}": (width,) for kind in ("weight", "bias")}
    return build_layout(shapes)


def write_pool(
    folder: Path, layout: ParamLayout, count: int, dtype: torch.dtype = torch.float16
) -> Iterator[CheckpointFile]:
    """Write ``count`` checkpoints θᵢ = θ₀ + noise, one at a time, and open each."""
    from safetensors.torch import save_file

    base = random_base(layout, dtype)
    noise = random_move(layout)
    for i in range(count):
        theta = (base + noise.roll(i * SHIFT)).to(dtype)
        path = folder / f"checkpoint-{i}.safetensors"
        save_file({name: view.contiguous() for name, view in unflatten(layout, theta).items()}, path)
        yield CheckpointFile(path, layout)


def random_move(layout: ParamLayout) -> Tensor:
    """τ₀ (P,) float32; τᵢ is this rolled by i·SHIFT, which is faster than drawing again and distinct enough."""
    return 1e-3 * torch.randn(layout.size, generator=torch.Generator().manual_seed(1))


def random_base(layout: ParamLayout, dtype: torch.dtype = torch.float16) -> Tensor:
    """θ₀ (P,) of ``dtype``: a pool holds its base as it was saved."""
    return (0.02 * torch.randn(layout.size, generator=torch.Generator().manual_seed(0))).to(dtype)


def random_vectors(
    layout: ParamLayout, count: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> ResidentTaskVectors:
    """The task vectors of such a pool in the memory of a device, made without files."""
    move = random_move(layout)
    matrix = torch.empty(count, layout.size, dtype=dtype, device=device)
    for i in range(count):
        matrix[i] = move.roll(i * SHIFT)
    return ResidentTaskVectors(layout, [f"c{i}" for i in range(count)], random_base(layout).to(device), matrix)


def random_tower(layout: ParamLayout, device: torch.device | str = "cpu") -> ClipVision:
    """The tower of a layout at the random base, bound to it."""
    tensors = unflatten(layout, random_base(layout))
    width, channels, patch, _ = tensors["vision_model.embeddings.patch_embedding.weight"].shape
    places = tensors["vision_model.embeddings.position_embedding.weight"].shape[0] - 1
    shape = VisionShape(
        width=width,
        hidden=4 * width,
        depth=sum(name.endswith("fc1.weight") for name in layout.names),
        heads=max(width // 64, 1),
        activation="quick_gelu",
        eps=1e-5,
        projection=tensors["visual_projection.weight"].shape[0],
        channels=channels,
        image_size=math.isqrt(places) * patch,
        patch_size=patch,
    )
    tower = ClipVision(shape, tensors, logit_scale=math.log(100.0), device=device)
    tower.bind(layout)
    return tower


def random_objective(
    layout: ParamLayout,
    tasks: int,
    samples: int,
    classes: int,
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
) -> CalibrationObjective:
    """The tower of the layout on random images and labels: tasks t0, t1 … of ``samples`` each."""
    tower = random_tower(layout, device)
    tower.precision = precision
    random = torch.Generator().manual_seed(4)
    size, depth = tower.shape.image_size, tower.shape.channels
    head = F.normalize(torch.randn(classes, tower.dimension, generator=random), dim=-1)
    data = {
        f"t{k}": TaskData(
            f"t{k}",
            "calibration",
            torch.randint(256, (samples, depth, size, size), dtype=torch.uint8, generator=random),
            torch.randint(classes, (samples,), generator=random),
            ("random",) * samples,
        )
        for k in range(tasks)
    }
    return CalibrationObjective(tower, data, dict.fromkeys(data, head))


def lora_vectors(
    width: int, blocks: int, rank: int, count: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> LowRankTaskVectors:
    """LoRA adapters of the square matrices of a language model's attention; the base, which no score needs, is 0."""
    names = [f"model.layers.{i}.self_attn.{part}_proj.weight" for i in range(blocks) for part in "qkvo"]
    layout = build_layout(dict.fromkeys(names, (width, width)))
    random = torch.Generator(device).manual_seed(5)

    def factors() -> LowRank:
        up, down = (torch.randn(shape, generator=random, device=device) for shape in ((width, rank), (rank, width)))
        return LowRank((1e-3 * up).to(dtype), down.to(dtype))

    adapters = [{name: factors() for name in names} for _ in range(count)]
    base = torch.zeros(layout.size, dtype=dtype, device=device)
    return LowRankTaskVectors(layout, [f"c{i}" for i in range(count)], base, adapters)
