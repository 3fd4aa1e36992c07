"""Merges that were exported, at work again: backbone, experts and router loaded from a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fwviz.backbones.clip_config import read_json, read_vision_shape
from fwviz.backbones.clip_vision import ClipArchitecture, read_normalisation
from fwviz.backbones.families import FAMILIES
from fwviz.backbones.family import Architecture, Backbone, Classifier, Family
from fwviz.cards import PoolCard
from fwviz.runs.extension import load_extension, save_extension
from fwviz.space.files import SafetensorsFile
from fwviz.space.layout import layer_of
from fwviz.tasks.batches import Chunk
from fwviz.tasks.extended import extended_features
from fwviz.tasks.router import OracleRouter
from fwviz.types import Extension, FwvizError, ParamLayout

HEADS_FILE, HEADS_FOLDER = "heads.safetensors", "heads"
FACTS_FILE = "fwviz.json"
FORMAT = 1


@dataclass(frozen=True)
class MergedModel:
    """A merged model with its heads. ``theta`` (P,) are the weights of its backbone, ``extension`` what is beside it.

    ``heads`` maps task → (C, D) with the logit scale inside, or a classifier; ``classes`` task → names in the order of
    the logits, none for a number.
    """

    backbone: Backbone
    theta: Tensor
    extension: Extension
    heads: dict[str, Tensor | Classifier]
    classes: dict[str, tuple[str, ...]]

    def logits(self, inputs: Tensor, task: str) -> Tensor:
        """Inputs as the family takes them, as uint8 images (N, 3, H, W) → logits (N, C) of ``task``, on the CPU."""
        if task not in self.heads:
            raise FwvizError(f"the merge has no head for task {task!r}: choose from {', '.join(self.heads)}.")
        with self.backbone.lock:
            features = extended_features(
                self.backbone, self.theta, self.extension, {task: inputs}, chunk=Chunk(self.backbone.chunk)
            )
        assert features is not None
        head = self.heads[task]
        return head.logits(features[task]) if isinstance(head, Classifier) else features[task] @ head.T


def save_parts(
    folder: Path,
    card: PoolCard,
    layout: ParamLayout,
    heads: Mapping[str, Tensor | Classifier],
    extension: Extension | None,
) -> None:
    """Write beside ``model.safetensors`` what :func:`load_merged` needs besides.

    ::

        heads.safetensors   task → (C, D), logits = unit features @ headᵀ, or
        heads/<task>.safetensors   the classifier of a task, named as in its checkpoint
        fwviz.json          family, classes of every task, and the order of the merged tensors in the flat vector

    and, for a merge with experts, the files of :mod:`fwviz.runs.extension`.
    """
    from safetensors.torch import save_file

    embedded = {task: head.contiguous() for task, head in heads.items() if isinstance(head, Tensor)}
    if embedded:
        save_file(embedded, folder / HEADS_FILE)
    save_classifiers(folder, heads)
    facts = {
        "format": FORMAT,
        "family": card.family,
        "base": {key: value for key, value in card.base.items() if key not in ("path", "sha256")},
        "classes": {task: list(card.task(task).classes) for task in heads},
        "layout": list(layout.names),
    }
    (folder / FACTS_FILE).write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")
    if extension is not None:
        save_extension(folder, extension)


def save_classifiers(folder: Path, heads: Mapping[str, Tensor | Classifier]) -> None:
    """Write the classifiers among some heads as ``heads/<task>.safetensors``, named as in their checkpoints."""
    from safetensors.torch import save_file

    for task, head in heads.items():
        if isinstance(head, Classifier):
            (folder / HEADS_FOLDER).mkdir(exist_ok=True)
            parts = {name: tensor.contiguous() for name, tensor in head.tensors().items()}
            save_file(parts, folder / HEADS_FOLDER / f"{task}.safetensors")


def load_merged(folder: Path | str, device: torch.device | str = "cpu") -> MergedModel:
    """The merged model :func:`fwviz.runs.export.export_weights` wrote; its logits are those the run was judged by.

    ::

        model = load_merged("path/to/export")
        logits = model.logits(images, "mnist")   # uint8 (N, 3, H, W) → (N, C)

    Nothing is unpickled. Raises FwvizError if a file is missing or damaged, or they contradict each other.
    """
    root = Path(folder)
    facts = read_json(root / FACTS_FILE)
    if facts.get("format") != FORMAT:
        raise FwvizError(f"{root / FACTS_FILE} is of another version: export the merge again with this one.")
    architecture = _architecture(root, facts)
    expected = architecture.tensors
    backbone = architecture.backbone(_read(root / "model.safetensors", expected), device)
    assert isinstance(backbone, Backbone)  # no others are saved with heads
    theta = backbone.bind(_layout(root, facts, expected)).theta.clone()
    try:
        classes = {str(task): tuple(str(name) for name in names) for task, names in facts["classes"].items()}
    except (KeyError, TypeError, AttributeError):
        raise FwvizError(f"{root / FACTS_FILE} names no classes: export the merge again.") from None
    heads = _heads(root, FAMILIES[facts["family"]], classes, backbone.dimension)
    extension = load_extension(root, theta.numel()) or Extension(OracleRouter(tuple(classes)))  # no experts: one model
    return MergedModel(backbone, theta, extension, heads, classes)


def _heads(
    root: Path, family: Family, classes: Mapping[str, Sequence[str]], width: int
) -> dict[str, Tensor | Classifier]:
    """The heads of an export, each compared with its classes."""
    heads: dict[str, Tensor | Classifier] = {}
    if family.own_head is None:
        heads |= _read(root / HEADS_FILE, None)
    else:
        heads |= {task: family.own_head(root / HEADS_FOLDER / f"{task}.safetensors", None) for task in classes}
    for task, names in classes.items():
        head = heads.get(task)
        weight = head.weight if isinstance(head, Classifier) else head
        if weight is None or weight.shape != (max(len(names), 1), width):
            raise FwvizError(f"{root}: the head of task {task!r} does not fit {FACTS_FILE}: export the merge again.")
    return heads


def _architecture(root: Path, facts: Mapping[str, Any]) -> Architecture:
    if read_json(root / "config.json").get("model_type") == "clip_vision_model":
        # The image tower alone has no logit scale, which is inside the heads.
        mean, std = read_normalisation(root)
        return ClipArchitecture(root, read_vision_shape(root / "config.json"), 0.0, mean, std)
    try:
        return FAMILIES[facts["family"]].read(root, facts["base"])
    except (KeyError, TypeError, ValueError):
        raise FwvizError(f"{root / FACTS_FILE} does not say what kind of model this is: export it again.") from None


def _layout(root: Path, facts: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]) -> ParamLayout:
    names = facts.get("layout")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n in expected for n in names):
        raise FwvizError(f"{root / FACTS_FILE} names tensors the model does not have: export the merge again.")
    offsets = [0]
    for name in names:
        offsets.append(offsets[-1] + torch.Size(expected[name]).numel())
    shapes = tuple(expected[name] for name in names)
    return ParamLayout(tuple(names), shapes, tuple(offsets), tuple(layer_of(name) for name in names))


def _read(path: Path, expected: Mapping[str, tuple[int, ...]] | None) -> dict[str, Tensor]:
    file = SafetensorsFile(path)
    try:
        for name, shape in (expected or {}).items():
            if file.info(name).shape != shape:
                raise FwvizError(f"{path}: tensor {name!r} has shape {file.info(name).shape}, but must have {shape}.")
        return {name: file.read(name) for name in expected or file.tensors}
    finally:
        file.close()
