"""What a merge has beside its backbone, as files: experts, feature maps and router.

::

    backbone.safetensors  the backbone's weights, in a record, where no coefficients tell them
    experts.safetensors   tensors of experts and feature maps
    router.safetensors    tensors of the router, none for one that is told the task
    extension.json        which tensor is which part of what   (written last: where it is, the others are whole)
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fwviz.space.files import SafetensorsFile
from fwviz.tasks.extended import pack, unpack
from fwviz.types import Extension, FwvizError

EXTENSION_FILES = ("experts.safetensors", "router.safetensors", "extension.json")
BACKBONE_FILE = "backbone.safetensors"
MAX_BACKBONE_BYTES = 128 << 20
FORMAT = 1

_MAX_JSON = 16 << 20  # bytes


@dataclass(frozen=True)
class Kept:
    """The parts of the last iterate of a run: the extension, and the backbone θ (P,) if it is not linear.

    A record leaves out a backbone of more than 128 MiB: it is made again from the recipe when it is wanted.
    """

    extension: Extension
    theta: Tensor | None = None


def save_kept(folder: Path, kept: Kept) -> None:
    """Write the parts, the extension last: where it is, all that is kept is there."""
    if kept.theta is not None and kept.theta.nbytes <= MAX_BACKBONE_BYTES:
        _replace(folder / BACKBONE_FILE, {"theta": kept.theta.cpu()})
    save_extension(folder, kept.extension)


def load_kept(folder: Path, size: int) -> Kept | None:
    """The parts in a folder for a backbone of ``size`` parameters, None if there are none.

    Raises FwvizError if a file is damaged or does not fit.
    """
    extension = load_extension(folder, size)
    if extension is None:
        return None
    path = folder / BACKBONE_FILE
    theta = _read(path).get("theta") if path.is_file() else None
    if theta is not None and theta.shape != (size,):
        raise FwvizError(f"{path} does not fit the run: delete the run and merge again.")
    return Kept(extension, theta)


def save_extension(folder: Path, extension: Extension) -> None:
    """Write the three files, each by rename, so that a reader sees all of an extension or none."""
    experts, router, facts = pack(extension)
    _replace(folder / EXTENSION_FILES[0], experts)
    _replace(folder / EXTENSION_FILES[1], router)
    _replace(folder / EXTENSION_FILES[2], {"format": FORMAT, **facts})


def load_extension(folder: Path, size: int) -> Extension | None:
    """The extension in a folder for a backbone of ``size`` parameters, None if there is none.

    Nothing is unpickled. Raises FwvizError if a file is missing or damaged, or does not fit the backbone.
    """
    path = folder / EXTENSION_FILES[2]
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _MAX_JSON:
            raise ValueError
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise FwvizError(f"{path} cannot be read: save the merge again.") from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise FwvizError(f"{path} is of another version: save the merge again with this one.")
    experts, router = (_read(folder / name) for name in EXTENSION_FILES[:2])
    return unpack(experts, router, facts, size)


def _read(path: Path) -> dict[str, Tensor]:
    file = SafetensorsFile(path)
    try:
        return {name: file.read(name) for name in file.tensors}
    finally:
        file.close()


def _replace(path: Path, content: dict[str, Any]) -> None:
    from safetensors.torch import save

    plain = path.suffix == ".json"
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(json.dumps(content, indent=1).encode() if plain else save(content))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
