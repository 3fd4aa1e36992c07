"""Fine-tune the image tower on one task with its text head frozen, gently, so that the results still merge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fwviz.training import model
from fwviz.training.augment import normalise

TRAINED = (".self_attn.q_proj.weight", ".self_attn.k_proj.weight", ".self_attn.v_proj.weight",
           ".self_attn.out_proj.weight", ".mlp.fc1.weight", ".mlp.fc2.weight")  # fmt: skip
"""Only these matrices move; embeddings, biases and norms stay at the base, which makes task vectors merge better."""


@dataclass(frozen=True)
class FinetunePlan:
    """How one checkpoint is made.

    Attributes:
        steps, batch, rate: AdamW with a cosine that starts after a short warm-up.
        smoothing: label smoothing.
        keep: weight of the squared change of pretraining pictures' embeddings. A checkpoint that changes nothing but
            its own task's pictures disturbs other tasks less when their task vectors are added.
        keep_batch: pretraining pictures per step.
        average: decay of the running mean of weights that is kept.
        shift: largest random shift in pixels.
    """

    optimiser: str = "sgd"
    steps: int = 150
    batch: int = 64
    rate: float = 0.2
    smoothing: float = 0.05
    keep: float = 5.0
    keep_batch: int = 24
    average: float = 0.95
    shift: int = 2


def to_pixels(images: np.ndarray) -> Tensor:
    """(n, 32, 32, 3) uint8 → (n, 3, 32, 32) in [-1, 1]."""
    return normalise(torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255)


def _shifted(pixels: Tensor, by: int, rng: torch.Generator) -> Tensor:
    if by == 0:
        return pixels
    dx, dy = torch.randint(-by, by + 1, (2,), generator=rng).tolist()
    padded = F.pad(pixels, (by,) * 4, mode="replicate")
    return padded[:, :, by + dy : by + dy + pixels.shape[2], by + dx : by + dx + pixels.shape[3]]


@dataclass(frozen=True)
class Examples:
    """Training rows of one task: head (classes, 128) unit text embeddings, images (n, 32, 32, 3) uint8, labels (n,)."""

    head: Tensor
    images: np.ndarray
    labels: np.ndarray


def finetune(
    clip: Any, tasks: Sequence[Examples], plan: FinetunePlan, seed: int, generic: np.ndarray | None = None
) -> dict[str, Tensor]:
    """Train a copy of the image tower on one task, or on several at once with equal shares of every batch.

    Args:
        clip: the base; left as it was.
        tasks: at most ``plan.batch`` of them; the loss is the mean over tasks.
        generic: (m, 32, 32, 3) uint8, pretraining pictures whose embeddings are kept; None keeps nothing.

    Returns:
        The tower's state: every ``vision_model.*`` tensor and ``visual_projection.weight``.
    """
    from transformers import CLIPVisionModelWithProjection

    tower = CLIPVisionModelWithProjection(clip.config.vision_config)
    tower.load_state_dict(vision_state(clip))
    tower.train()
    moving = [(name, p.requires_grad_(name.endswith(TRAINED))) for name, p in tower.named_parameters()]
    live = [p for name, p in moving if name.endswith(TRAINED)]
    mean = [p.detach().clone() for p in live]
    optimiser: torch.optim.Optimizer
    if plan.optimiser == "sgd":
        optimiser = torch.optim.SGD(live, lr=plan.rate, momentum=0.9, nesterov=True)
    else:
        optimiser = torch.optim.AdamW(live, lr=plan.rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    scale = clip.logit_scale.detach().exp()
    rng, torch_rng = np.random.default_rng([seed, 1]), torch.Generator().manual_seed(seed)
    targets = [torch.from_numpy(task.labels.astype(np.int64)) for task in tasks]
    share_of_batch = plan.batch // len(tasks)
    kept = None
    if generic is not None and plan.keep:
        with torch.no_grad():
            parts = [model.encode_images(tower, to_pixels(generic[i : i + 256])) for i in range(0, len(generic), 256)]
        kept = torch.cat(parts)
    warm_up = max(1, plan.steps // 15)
    orders = [np.empty(0, dtype=int) for _ in tasks]
    for step in range(plan.steps):
        rows = []
        for k, task in enumerate(tasks):
            if len(orders[k]) < share_of_batch:
                orders[k] = np.concatenate([orders[k], rng.permutation(len(task.labels))])
            rows.append(orders[k][:share_of_batch])
            orders[k] = orders[k][share_of_batch:]
        share = max(0.0, step - warm_up) / (plan.steps - warm_up)
        rate = plan.rate * min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * share))
        for group in optimiser.param_groups:
            group["lr"] = rate
        pictures = np.concatenate([task.images[r] for task, r in zip(tasks, rows, strict=True)])
        features = model.encode_images(tower, _shifted(to_pixels(pictures), plan.shift, torch_rng))
        losses = [
            F.cross_entropy(scale * part @ task.head.T, target[r], label_smoothing=plan.smoothing)
            for task, target, r, part in zip(tasks, targets, rows, features.split(share_of_batch), strict=True)
        ]
        loss = torch.stack(losses).mean()
        if kept is not None and generic is not None:
            chosen = rng.integers(len(generic), size=plan.keep_batch)
            moved = model.encode_images(tower, to_pixels(generic[chosen])) - kept[chosen]
            loss = loss + plan.keep * moved.square().sum(1).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(live, 1.0)
        optimiser.step()
        torch._foreach_lerp_(mean, [p.detach() for p in live], 1 - min(plan.average, (1 + step) / (5 + step)))
    with torch.no_grad():
        for p, m in zip(live, mean, strict=True):
            p.copy_(m)
    return {name: value.detach().clone() for name, value in tower.state_dict().items()}


def vision_state(clip: Any) -> dict[str, Tensor]:
    """The image tower's tensors of a CLIPModel, named as in ``CLIPVisionModelWithProjection``."""
    kept = ("vision_model.", "visual_projection.")
    return {name: value for name, value in clip.state_dict().items() if name.startswith(kept)}


@torch.no_grad()
def accuracy(clip: Any, state: dict[str, Tensor] | None, head: Tensor, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of pictures whose nearest class embedding is the right one, with ``state`` in place of the base's tower."""
    if state is not None:
        own = {name: value.clone() for name, value in vision_state(clip).items()}
        try:
            clip.load_state_dict({**clip.state_dict(), **state})
            return accuracy(clip, None, head, images, labels)
        finally:
            clip.load_state_dict({**clip.state_dict(), **own})
    hits = 0
    for i in range(0, len(labels), 250):
        scores = model.encode_images(clip, to_pixels(images[i : i + 250])) @ head.T
        hits += int((scores.argmax(1).numpy() == labels[i : i + 250]).sum())
    return hits / len(labels)


def merge(
    base: dict[str, Tensor], states: Sequence[dict[str, Tensor]], coefficients: Sequence[float]
) -> dict[str, Tensor]:
    """base + Σ coefficient · (state − base), tensor by tensor."""
    merged = {}
    for name, value in base.items():
        if not value.is_floating_point():
            merged[name] = value
            continue
        delta = sum(c * (state[name].float() - value.float()) for c, state in zip(coefficients, states, strict=True))
        merged[name] = value.float() + delta
    return merged
