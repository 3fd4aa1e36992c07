"""Files that came alone become folders of models: a zip of them unpacked, an adapter's two files put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from fwviz.backbones.folders import MODEL_FILES
from fwviz.pools.adapters import CONFIG, WEIGHTS
from fwviz.pools.check import PICKLES
from fwviz.pools.own import link_or_copy
from fwviz.tasks.archive import Archive, Bounds, opened
from fwviz.types import FwvizError

MAX_ZIP = 1 << 30  # bytes of an archive of models
MAX_UNPACKED = 2 << 30  # bytes it unpacks to
MAX_FILES = 400
_MODELS = ("config.json", "open_clip_config.json")

# Called between two pieces of work; what it raises ends it.
Alive = Callable[[], None]


def sources(
    files: Sequence[tuple[str, Path]], work: Path, room: int, alive: Alive = lambda: None
) -> list[tuple[str, Path]]:
    """Name and place of every checkpoint in some files, each given by its name and where it lies.

    A safetensors file is a checkpoint; ``adapter_config.json`` and ``adapter_model.safetensors`` together are one; a
    zip holds folders of checkpoints. What must be put together or unpacked goes into ``work``, ``room`` bytes at most.

    Raises:
        FwvizError: a file is of no use, a pair is not whole or is there twice, or a zip is refused.
    """
    pair = {name: [place for given, place in files if given == name] for name in (CONFIG, WEIGHTS)}
    for name, places in pair.items():
        other = WEIGHTS if name == CONFIG else CONFIG
        if len(places) > 1:
            raise FwvizError(f"{name} is there {len(places)} times: put each adapter's folder into one .zip file.")
        if places and not pair[other]:
            raise FwvizError(f"{name} came without {other}: choose both files of the adapter, or a .zip of its folder.")
    found: list[tuple[str, Path]] = []
    if pair[CONFIG]:
        folder = work / "adapter"
        folder.mkdir(parents=True)
        for name, places in pair.items():
            link_or_copy(places[0], folder / name)
        found.append(("adapter", folder))
    for name, place in files:
        if name in pair:
            continue
        if name.lower().endswith(".zip"):
            inside = unpack_models(place, work / f"zip{len(found)}", room, alive)
            room -= sum(file.stat().st_size for _, folder in inside for file in folder.iterdir())
            found += inside
        else:
            found.append((name.rpartition(".")[0] or name, place))
    return found


def unpack_models(path: Path, target: Path, room: int, alive: Alive = lambda: None) -> list[tuple[str, Path]]:
    """Unpack every folder of a model in a zip into a new folder in ``target``: its name and where it lies now.

    A model is a folder with weights in safetensors beside a config.json, or an adapter beside its adapter_config.json.
    Only weights and what says how to read them are unpacked, ``room`` bytes at most.

    Raises:
        FwvizError: the archive is damaged, hostile or too large, or holds no model, or pickles only.
    """
    bounds = Bounds(
        MAX_ZIP, max(0, min(MAX_UNPACKED, room)), MAX_ZIP, MAX_FILES,
        "a file of a model", "take fewer models", "pack the folder of each model into one .zip file",
    )  # fmt: skip
    found: list[tuple[str, Path]] = []
    with opened(path, bounds) as archive:
        for folder, names in _models(archive, path.name).items():
            place = target / str(len(found))  # no name of a stranger becomes a path
            place.mkdir(parents=True)
            for file in names:
                with (place / PurePosixPath(file).name).open("xb") as out:
                    for piece in archive.pieces(file):
                        alive()
                        _write(out, piece, path.name)
            found.append((PurePosixPath(folder).name or path.stem, place))
    return found


def _write(out: BinaryIO, piece: bytes, title: str) -> None:
    try:
        out.write(piece)
    except OSError as error:
        raise FwvizError(f"{title} cannot be unpacked: {error.strerror}.") from None


def _models(archive: Archive, title: str) -> dict[str, list[str]]:
    """Folder in the archive → the files of its model that are wanted."""
    folders: dict[str, list[str]] = {}
    for name in archive.entries:
        folders.setdefault(str(PurePosixPath(name).parent).removeprefix("."), []).append(name)
    found: dict[str, list[str]] = {}
    for folder, names in sorted(folders.items()):
        plain = {PurePosixPath(name).name for name in names}
        weights = any(name.endswith(".safetensors") for name in plain)
        pickle = next((name for name in sorted(plain) if name.endswith(PICKLES)), None)
        if not weights and pickle is not None:
            way = "PEFT" if pickle.startswith("adapter") else "transformers"
            raise FwvizError(
                f"{title} holds {pickle!a}, a pickle, which can run code when it is read: load it with {way} and "
                f"save_pretrained it again, which writes safetensors."
            )
        if CONFIG in plain and WEIGHTS not in plain:
            raise FwvizError(f"{title} holds {CONFIG} without {WEIGHTS}: zip the folder as save_pretrained wrote it.")
        if weights and CONFIG not in plain and not plain.intersection(_MODELS):
            raise FwvizError(
                f"{title} holds weights without config.json or {CONFIG}: zip the folder as save_pretrained wrote it."
            )
        if weights:
            found[folder] = [n for n in names if any(fnmatch(PurePosixPath(n).name, p) for p in MODEL_FILES)]
    if not found:
        raise FwvizError(f"{title} holds no model: pack folders with safetensors and their configuration.")
    return found
