"""A pool of a person's own: checkpoints they bring, held against a base, and the card that makes a pool of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from fwviz.backbones.families import FAMILIES
from fwviz.backbones.folders import base_folder
from fwviz.backbones.open_clip import is_open_clip
from fwviz.cards import CheckpointCard, PoolCard, TaskCard
from fwviz.pools.adapters import is_adapter
from fwviz.pools.card import load_card, weights_name
from fwviz.pools.check import Finding, examine
from fwviz.pools.places import is_id
from fwviz.space.files import ModelFiles, SafetensorsFile
from fwviz.types import FwvizError

# What of a checkpoint's folder a pool keeps: weights and what says how to read them.
_KEPT = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json", "open_clip_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class Brought:
    """A checkpoint that was held against the base: its card where it fits, and everything that was found."""

    name: str
    findings: tuple[Finding, ...]
    card: CheckpointCard | None

    def sentence(self) -> str:
        """The gravest finding, or that there is none."""
        if not self.findings:
            return f"{self.name}: fits the base."
        first = self.findings[0]
        if first.severity == "error":
            return f"{self.name} cannot be merged: {first.text}"
        return f"{self.name}: fits the base; {first.text}"


def bring_checkpoint(source: Path, name: str, base: PoolCard, root: Path, taken: Sequence[str] = ()) -> Brought:
    """Hold a folder or safetensors file against the base of a card and, if it fits, keep it under ``root``.

    Files are linked where the disk allows it, else copied. Tensors the base lacks, such as a head, are left out. A file
    alone is taken to have the base's configuration. ``taken`` are ids that are not free any more.
    """
    folder, family = base_folder(base), FAMILIES[base.family]
    findings = examine(source, folder, base.include, base.exclude, prefixes=family.prefixes)
    if any(finding.severity == "error" for finding in findings):
        return Brought(name, findings, None)
    chosen = free_id(name, taken)
    target = root / "checkpoints" / chosen
    target.mkdir(parents=True)
    if source.is_dir():
        for file in sorted(file for pattern in _KEPT for file in source.glob(pattern)):
            link_or_copy(file, target / file.name)
    else:
        link_or_copy(source, target / "model.safetensors")
    if not is_adapter(target) and not is_open_clip(target):
        if not (target / "config.json").is_file():
            shutil.copyfile(folder / "config.json", target / "config.json")
        if family.heads == "texts":  # others know what to leave aside, and classifiers are needed
            _drop_strangers(target, folder)
    weights = target / weights_name(target)
    with weights.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    note = " ".join(finding.text for finding in findings)
    title = " ".join(name.split())[:80] or chosen
    card = CheckpointCard(chosen, title, f"checkpoints/{chosen}", digest, task="", kind="brought", note=note[:2000])
    return Brought(name, findings, card)


def extend_pool(
    parent: str,
    card: PoolCard,
    root: Path,
    *,
    tasks: Sequence[TaskCard] = (),
    checkpoints: Sequence[CheckpointCard] = (),
    training: Mapping[str, Any] | None = None,
) -> PoolCard:
    """Write ``root/pool.yaml``: the pool ``parent`` (a name or absolute folder) of ``card`` with more in it.

    The tasks given are merged for unless chosen otherwise, with every checkpoint there is. Returns the card as read.
    """
    known = [*(c.id for c in card.checkpoints), *(c.id for c in checkpoints)]
    title = ", ".join(task.title for task in tasks) or f"{len(checkpoints)} checkpoints of your own"
    plain = {
        "format": 1,
        "id": root.name,
        "extends": parent,
        "title": f"{title} + {card.title}"[:200],
        "summary": card.summary,
        "checkpoints": [_checkpoint(c) for c in checkpoints],
        "tasks": [_task(t) for t in tasks],
        "default": {"tasks": [t.id for t in tasks] or list(card.default_tasks), "checkpoints": known},
        "training": dict(training or {}),
    }
    return _write(plain, root)


def found_pool(
    base: Mapping[str, Any],
    family: str,
    include: Sequence[str],
    exclude: Sequence[str],
    root: Path,
    *,
    tasks: Sequence[TaskCard],
    checkpoints: Sequence[CheckpointCard],
    training: Mapping[str, Any] | None = None,
    called: str = "a base of your own",
) -> PoolCard:
    """Write ``root/pool.yaml`` of a pool with a base of its own, ``base`` as a card says it; the card as read."""
    plain = {
        "format": 1,
        "id": root.name,
        "title": f"{', '.join(task.title for task in tasks)} + {called}"[:200],
        "summary": f"{len(checkpoints)} checkpoints of {called} that were brought, and their tasks.",
        "family": family,
        "base": dict(base),
        "merge": {"include": list(include), "exclude": list(exclude)},
        "checkpoints": [_checkpoint(c) for c in checkpoints],
        "tasks": [_task(t) for t in tasks],
        "default": {"tasks": [t.id for t in tasks], "checkpoints": [c.id for c in checkpoints]},
        "training": dict(training or {}),
    }
    return _write(plain, root)


def free_id(text: str, taken: Sequence[str]) -> str:
    """An id made of a text (the name of a file), another than those taken."""
    plain = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:40] or "own"
    return next(name for name in (plain, *(f"{plain}_{i}" for i in range(2, 10_000))) if name not in taken)


def link_or_copy(source: Path, target: Path) -> None:
    """The same file in another place: a hard link where the disk allows one, else a copy."""
    real = source.resolve()  # the Hub's cache is made of symbolic links
    try:
        os.link(real, target)
    except OSError:
        shutil.copyfile(real, target)


def _drop_strangers(folder: Path, base: Path) -> None:
    """Rewrite the weights of a checkpoint without the tensors its base lacks."""
    from safetensors.torch import load_file, save_file

    file = ModelFiles(base)
    known = set(file.tensors)
    file.close()
    parts = sorted(folder.glob("*.safetensors"))
    names = {part: _names(part) for part in parts}
    if all(name in known or name.endswith("position_ids") for inside in names.values() for name in inside):
        return
    kept: dict[str, Any] = {}
    for part in parts:
        kept |= {name: tensor for name, tensor in load_file(part).items() if name in known}
        part.unlink()  # a link: the file it was made from stays
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def _names(part: Path) -> tuple[str, ...]:
    file = SafetensorsFile(part)
    try:
        return tuple(file.tensors)
    finally:
        file.close()


def _write(plain: dict[str, Any], root: Path) -> PoolCard:
    if not is_id(root.name):
        raise FwvizError(f"{root.name!r} cannot be the name of a pool: use letters, digits and _ . + -")
    root.mkdir(parents=True, exist_ok=True)
    partial = root / "pool.yaml.partial"
    partial.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120), encoding="utf-8")
    partial.replace(root / "pool.yaml")
    return load_card(root)


def _checkpoint(card: CheckpointCard) -> dict[str, Any]:
    return {name: value for name, value in asdict(card).items() if value not in ("", {})}


def _task(card: TaskCard) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(card)))  # tuples become lists
    return plain
