"""What a merge has beside its backbone, as files: experts, feature maps and router.

::

    experts.safetensors   tensors of experts and feature maps
    router.safetensors    tensors of the router, none for one that is told the task
    extension.json        which tensor is which part of what   (written last: where it is, the others are whole)
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from fwviz.space.files import SafetensorsFile
from fwviz.tasks.extended import pack, unpack
from fwviz.types import Extension, FwvizError

EXTENSION_FILES = ("experts.safetensors", "router.safetensors", "extension.json")
FORMAT = 1

_MAX_JSON = 16 << 20  # bytes


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
