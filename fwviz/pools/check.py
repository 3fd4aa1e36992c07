"""A checkpoint held against its base before anything heavy, headers first: a report a person can act on."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from fwviz.backbones.clip_config import read_json
from fwviz.backbones.open_clip import WEIGHTS as OPEN_CLIP_WEIGHTS
from fwviz.backbones.open_clip import is_open_clip, place_of, read_open_clip_shape
from fwviz.pools.adapters import AdapterFile, is_adapter
from fwviz.space.files import Place, SafetensorsFile, TensorInfo, shards
from fwviz.types import FwvizError

Severity = Literal["error", "warning", "fact"]

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# What one model calls its parts and another leaves out.
_PREFIXES = (
    "model.",
    "bert.",
    "roberta.",
    "transformer.",
    "encoder.",
    "clip.",
    "module.",
    "base_model.",
    "vision_model.",
)
_TIED = ("lm_head.", "embed_tokens.", "predictions.decoder.", "shared.", "embed_out.")
_VOCABULARY = ("embed_tokens", "word_embeddings", "token_embedding", "wte.", "shared.", "lm_head")
MERGEABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_PIECE = 1 << 22  # elements looked at together
_SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """One thing about a checkpoint. An ``error`` keeps it out of a merge; the sentence says what to do."""

    severity: Severity
    kind: str
    text: str


def examine(
    folder: Path | str,
    base: Path | str,
    include: Sequence[str] = ("",),
    exclude: Sequence[str] = (),
    *,
    prefixes: Sequence[str] = (),
    values: bool = True,
) -> tuple[Finding, ...]:
    """Compare a checkpoint's folder or file with its base's: names, shapes, dtypes, ties, vocabulary, then values.

    ``include`` and ``exclude`` are prefixes of what is merged, as in a pool card; outside of it differences are only
    warned of. ``prefixes`` are those in front of names that may stand on one side only, as the family of the base has
    them. ``values`` also reads the weights for NaN, infinity and equality, unless the headers are wrong already. Never
    raises for what a checkpoint holds: damage is a finding. Raises FwvizError if the base cannot be read.
    """
    place, root = Path(folder), Path(base)
    known = _Tensors(root)
    try:
        merged = {n for n in known.home if n.startswith(tuple(include)) and not n.startswith(tuple(exclude))}
        found = [*_compare(place, known, merged, tuple(include), tuple(prefixes))]
        if values and not any(finding.severity == "error" for finding in found):
            found += _look_inside(place, known, merged, tuple(prefixes))
    except FwvizError as error:
        found = [Finding("error", "damaged", str(error))]
    finally:
        known.close()
    return sort_findings(found)


def sort_findings(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """The gravest first."""
    order = {"error": 0, "warning": 1, "fact": 2}
    return tuple(sorted(found, key=lambda finding: order[finding.severity]))


class _Tensors:
    """Name → place of every tensor of a model's folder or file, over all its shards."""

    def __init__(self, path: Path) -> None:
        refuse_pickles(path)
        target = path / OPEN_CLIP_WEIGHTS if path.is_dir() and is_open_clip(path) else path
        self.files = [SafetensorsFile(part) for part in shards(target)]
        self.home = {name: file for file in self.files for name in file.tensors}

    @property
    def info(self) -> dict[str, TensorInfo]:
        return {name: file.tensors[name] for name, file in self.home.items()}

    def close(self) -> None:
        for file in self.files:
            file.close()


def refuse_pickles(path: Path) -> None:
    """Raise FwvizError if a model is there as pickles only, with the way to convert it."""
    if path.is_dir():
        if any(path.glob("*.safetensors")):
            return
        pickles = sorted(file for file in path.iterdir() if file.suffix in PICKLES)
    else:
        pickles = [path] if path.suffix in PICKLES else []
    if pickles:
        raise FwvizError(
            f"{pickles[0]} is a pickle, which can run code when it is read: where you trust it, load it with "
            f"transformers and save_pretrained it again, which writes safetensors."
        )


def _compare(
    path: Path, base: _Tensors, merged: set[str], include: tuple[str, ...], prefixes: tuple[str, ...]
) -> Iterator[Finding]:
    """Everything the headers and configurations tell."""
    shapes = {name: info.shape for name, info in base.info.items()}
    if path.is_dir() and is_adapter(path):
        adapter = AdapterFile(path, shapes)
        adapter.file.close()
        yield from _adapter(adapter, merged)
        return
    own = _Tensors(path)
    own.close()
    if path.is_dir() and is_open_clip(path):
        shape = read_open_clip_shape(path / "open_clip_config.json")
        yield Finding("fact", "open_clip", f"saved by open_clip: {shape.depth} blocks of width {shape.width}.")
    else:
        yield from _configurations(path, base)
    found = own.info
    places = {name: _place(path, name, found, prefixes) for name in merged}
    missing = sorted(name for name in merged if places[name].name not in found)
    known = {*shapes, *(place.name for place in places.values())}
    extra = sorted(set(found) - known) if not is_open_clip(path) else []
    yield from _names(path, missing, extra, merged, include)
    for name in sorted(merged - set(missing)):
        yield from _shape(name, found[places[name].name], places[name], shapes[name])
    kinds = Counter(str(found[places[name].name].dtype).removeprefix("torch.") for name in merged - set(missing))
    theirs = Counter(str(base.info[name].dtype).removeprefix("torch.") for name in merged)
    if kinds and set(kinds) != set(theirs):
        yield Finding(
            "warning" if set(kinds) - {"float32", "float64"} else "fact",
            "dtype",
            f"saved in {', '.join(sorted(kinds))}, the base in {', '.join(sorted(theirs))}: the task vector "
            f"carries the rounding of both.",
        )


def _adapter(adapter: AdapterFile, merged: set[str]) -> Iterator[Finding]:
    """What an adapter changes, and what of that is merged."""
    changes = adapter.changes
    outside = sorted(changes - merged)
    yield Finding(
        "fact", "adapter", f"a {adapter.config.kind} adapter that changes {len(changes)} tensors of the base."
    )
    if outside:
        everything = len(outside) == len(changes)
        yield Finding(
            "error" if everything else "warning",
            "outside",
            f"it changes {listed(outside)}, which is no part of the merge"
            + (": its task vector would be zero." if everything else ", so that this stays as the base has it."),
        )


def _place(path: Path, name: str, found: Collection[str], prefixes: Sequence[str]) -> Place:
    """Where a checkpoint that has ``found`` keeps a tensor of the base."""
    if path.is_dir() and is_open_clip(path):
        return place_of(name)
    others = (prefix + name if not name.startswith(prefix) else name.removeprefix(prefix) for prefix in prefixes)
    return Place(next((other for other in (name, *others) if other in found), name))


def _configurations(path: Path, base: _Tensors) -> Iterator[Finding]:
    """What two config.json say of one architecture."""
    own, theirs = path / "config.json", base.files[0].path.parent / "config.json"
    if not (path.is_dir() and own.is_file() and theirs.is_file()):
        return
    mine, other = (_flat(read_json(file)) for file in (own, theirs))
    for key in ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "vocab_size"):
        if key in mine and key in other and mine[key] != other[key] and not {"clip", "clip_vision_model"} >= {
            mine[key], other[key]
        }:  # fmt: skip
            kind = "vocabulary" if key == "vocab_size" else "architecture"
            severity: Severity = "warning" if kind == "vocabulary" else "error"
            yield Finding(severity, kind, f"{own} says {key} {mine[key]!r}, the base's {other[key]!r}.")


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """The image tower's part of a CLIP's configuration, else the configuration."""
    part = config.get("vision_config")
    inner = part if isinstance(part, dict) else {}
    kept = (
        {"model_type": config.get("model_type")} | {k: v for k, v in inner.items() if k != "model_type"}
        if inner
        else config
    )
    return {key: value for key, value in kept.items() if isinstance(value, (str, int))}


def _names(
    path: Path, missing: list[str], extra: list[str], merged: set[str], include: tuple[str, ...]
) -> Iterator[Finding]:
    prefix = renamed(missing, extra)
    if prefix is not None:
        way = f"without the {prefix[1:]!r}" if prefix.startswith("-") else f"with a {prefix!r}"
        yield Finding(
            "error",
            "renamed",
            f"{len(missing)} tensors are there {way} that the base's names "
            f"{'have' if prefix.startswith('-') else 'lack'}: save the same part of the model as the base is.",
        )
        return
    tied = [name for name in missing if any(mark in name for mark in _TIED)]
    if tied and len(tied) == len(missing):
        yield Finding(
            "warning", "tied", f"{listed(tied)} is not saved, being tied to another tensor: leave it out of the merge."
        )
    elif missing:
        yield Finding(
            "error",
            "missing",
            f"{len(missing)} of {len(merged)} tensors are missing: {listed(missing)}; save it whole.",
        )
    inside = [
        name for name in extra if name.startswith(include) and not name.endswith("position_ids") and include != ("",)
    ]
    outside = [name for name in extra if name not in inside and not name.endswith("position_ids")]
    if inside:
        yield Finding("error", "extra", f"{listed(inside)}: the base lacks this, so it is of another model.")
    if outside:
        yield Finding(
            "warning", "extra", f"{listed(outside)}: the base lacks this; it stays out of the merge, as a head does."
        )


def renamed(missing: Sequence[str], extra: Sequence[str]) -> str | None:
    """The prefix by which all missing names are there, "-" before one that is too much in the base; None if none."""
    if not missing or len(extra) < len(missing):
        return None
    there = set(extra)
    for prefix in _PREFIXES:
        if all(prefix + name in there for name in missing):
            return prefix
        if all(name.startswith(prefix) and name.removeprefix(prefix) in there for name in missing):
            return f"-{prefix}"
    return None


def _shape(name: str, info: TensorInfo, place: Place, shape: tuple[int, ...]) -> Iterator[Finding]:
    wanted = place.stored(shape)
    if info.shape != wanted:
        grown = len(info.shape) == len(wanted) == 2 and info.shape[1] == wanted[1]
        if grown and any(mark in name for mark in _VOCABULARY):
            yield Finding(
                "error",
                "vocabulary",
                f"{name!r} has {info.shape[0]} tokens, the base {wanted[0]}: bring both to one vocabulary with "
                f"resize_token_embeddings, or exclude it from the merge.",
            )
        else:
            yield Finding(
                "error", "shape", f"{name!r} has shape {info.shape}, the base {wanted}: it is of another model."
            )
    elif info.dtype not in MERGEABLE and info.dtype not in (torch.int64, torch.int32, torch.uint8, torch.bool):
        yield Finding("error", "dtype", f"{name!r} is {info.dtype}: save it as float16, bfloat16 or float32.")
    elif info.dtype not in MERGEABLE and not name.endswith(("position_ids", "token_type_ids", "num_batches_tracked")):
        yield Finding("error", "dtype", f"{name!r} is {info.dtype}, quantised perhaps: save it as float16 or float32.")


def _look_inside(path: Path, base: _Tensors, merged: set[str], prefixes: tuple[str, ...]) -> Iterator[Finding]:
    """What only the values tell: NaN and infinity, and whether anything was learnt."""
    if path.is_dir() and is_adapter(path):
        adapter = AdapterFile(path, {name: info.shape for name, info in base.info.items()})
        try:
            adapter.read({name: base.home[name].read(name).float() for name in adapter.changes})
        finally:
            adapter.file.close()
        return
    own, bad, moved = _Tensors(path), [], False
    try:
        for name in sorted(merged):
            place = _place(path, name, own.home, prefixes)
            if place.name not in own.home or own.info[place.name].dtype not in MERGEABLE:
                continue
            if not finite(own.home[place.name], place.name):
                bad.append(place.name)
            whole = place == Place(place.name)  # not a part of another library's tensor
            moved = moved or not whole or _differ(own.home[place.name], place.name, base.home[name], name)
    finally:
        own.close()
    if bad:
        yield Finding(
            "error", "not finite", f"{listed(sorted(set(bad)))} holds NaN or infinity: leave it out or restore it."
        )
    elif not moved:
        yield Finding("warning", "equal", "every merged tensor equals the base's: its task vector is zero.")


def finite(file: SafetensorsFile, name: str) -> bool:
    """Whether a tensor holds numbers only; read piece by piece."""
    return all(bool(piece.isfinite().all()) for piece in _pieces(file, name))


def _differ(own: SafetensorsFile, own_name: str, base: SafetensorsFile, name: str) -> bool:
    pairs = zip(_pieces(own, own_name), _pieces(base, name), strict=True)
    return any(not torch.equal(a.float(), b.float()) for a, b in pairs)


def _pieces(file: SafetensorsFile, name: str) -> Iterator[torch.Tensor]:
    info = file.info(name)
    size = math.prod(info.shape)
    for start in range(0, size, _PIECE):
        count = min(_PIECE, size - start)
        yield file.read_into(name, torch.empty(count, dtype=info.dtype), start, count)


def listed(names: Sequence[str]) -> str:
    """Some names and how many more there are."""
    shown = ", ".join(json.dumps(name, ensure_ascii=False) for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
