"""Where pools lie: folders with a ``pool.yaml`` that have a name, and for how long."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

from fwviz.types import FwvizError

ASSETS = Path(__file__).resolve().parents[2] / "assets" / "pools"

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
_lock = threading.Lock()
_lent: dict[str, Path] = {}


def is_id(text: str) -> bool:
    """Whether a text can be the id of a pool, checkpoint or task (and so is no path)."""
    return bool(_ID.fullmatch(text)) and ".." not in text


def pool_folders() -> dict[str, Path]:
    """Name → folder of ``FWVIZ_POOLS`` and of ``assets/pools``; a name found twice counts where it comes first."""
    found: dict[str, Path] = {}
    given = [Path(part) for part in os.environ.get("FWVIZ_POOLS", "").split(os.pathsep) if part]
    for place in [*given, ASSETS]:
        for folder in [place, *(sorted(place.iterdir()) if place.is_dir() else [])]:
            if is_id(folder.name) and (folder / "pool.yaml").is_file():
                found.setdefault(folder.name, folder)
    return found


def find_pool(id_or_path: str | Path) -> Path:
    """The folder of a pool's name, or the folder itself (a ``Path``, or a text that holds a path separator)."""
    if isinstance(id_or_path, Path) or os.sep in id_or_path:
        return Path(id_or_path)
    with _lock:
        if id_or_path in _lent:
            return _lent[id_or_path]
    folders = pool_folders()
    if id_or_path not in folders:
        known = f"choose from {', '.join(folders)}" if folders else "set FWVIZ_POOLS to a folder of pools"
        raise FwvizError(f"there is no pool {id_or_path!r}: {known}.")
    return folders[id_or_path]


def is_there(id_or_path: str) -> bool:
    """Whether there is a pool of this name, or in this folder."""
    try:
        return (find_pool(id_or_path) / "pool.yaml").is_file()
    except (FwvizError, OSError):
        return False


def lend(name: str, folder: Path) -> None:
    """Give a folder a name for this process. It is found by those who know the name, and never listed."""
    if not is_id(name):
        raise ValueError(f"{name!r} is no name of a pool")
    with _lock:
        _lent[name] = folder


def take_back(name: str) -> None:
    """The name means nothing from now on."""
    with _lock:
        _lent.pop(name, None)
