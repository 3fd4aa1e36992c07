"""A base of a person's own: what kind of model it is, and all that keeps it from being one, before anything heavy."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fwviz.backbones._bert import bert_tensors, find_prefix, read_bert_shape
from fwviz.backbones._texts import read_tokenizer
from fwviz.backbones.clip_config import read_json, read_text_shape, read_vision_shape
from fwviz.backbones.clip_text import text_tensors
from fwviz.backbones.clip_vision import vision_tensors
from fwviz.backbones.families import FAMILIES
from fwviz.backbones.folders import cached_snapshot
from fwviz.pools.check import MERGEABLE, Finding, finite, listed, refuse_pickles, renamed, sort_findings
from fwviz.space.files import SafetensorsFile, TensorInfo
from fwviz.types import FwvizError

_ENCODERS = ("bert", "roberta", "xlm-roberta")
_TOKENS, _SCALE = 128, 20.0  # of a sentence encoder, where nobody says
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class _Kind:
    """What a base's configuration says: its family, what a card adds, the tensors it needs, and which are merged."""

    family: str
    said: str
    facts: Mapping[str, Any]
    expected: Mapping[str, tuple[int, ...]]
    include: tuple[str, ...]
    vocabulary: int
    longest: int


def examine_base(folder: Path) -> tuple[Finding, ...]:
    """Whether a folder holds a base that checkpoints can be merged into and heads be made by, headers first.

    Names, shapes and dtypes against its own config.json, its tokenizer against its vocabulary, then NaN and infinity.
    Never raises for what the folder holds: damage is a finding.
    """
    found: list[Finding] = []
    try:
        found.extend(_look(folder))
    except FwvizError as error:
        found.append(Finding("error", "damaged", str(error)))
    return sort_findings(found)


def read_base(place: str) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """Family, ``base`` of a card and prefixes of what is merged, of a base in a folder or of the Hub's cache.

    ``place`` is an absolute folder or the id of a repository. Raises FwvizError for a model of another kind.
    """
    folder = place_of_base(place)
    kind = _kind(folder, _shapes(folder))
    base: dict[str, Any] = {"path": "base"} if Path(place).is_absolute() else {"hub": place}
    file = SafetensorsFile(folder / _WEIGHTS)
    count = sum(math.prod(info.shape) for info in file.tensors.values())
    file.close()
    with (folder / _WEIGHTS).open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return (
        kind.family,
        base | {"sha256": digest, "parameters": count, "licence": "not said", **kind.facts},
        kind.include,
    )


def place_of_base(place: str) -> Path:
    """The folder of a base that is named by an absolute folder or by its id in the Hub's cache."""
    folder = Path(place) if Path(place).is_absolute() else cached_snapshot(place)
    if folder is None:
        raise FwvizError(f"the base {place} is not on this machine: download it, or name its folder.")
    return folder


def _look(folder: Path) -> Iterator[Finding]:
    """Everything that is found; the last is what only the family that reads the folder can tell."""
    infos = _shapes(folder)
    kind = _kind(folder, infos)
    yield Finding("fact", "base", kind.said)
    missing, extra = sorted(set(kind.expected) - set(infos)), sorted(set(infos) - set(kind.expected))
    prefix = renamed(missing, extra)
    if prefix is not None:
        way = f"without the {prefix[1:]!r}" if prefix.startswith("-") else f"with a {prefix!r}"
        yield Finding(
            "error", "renamed", f"{len(missing)} tensors are there {way} that their names should not have: save the "
            f"whole model with save_pretrained."
        )  # fmt: skip
    elif missing:
        yield Finding(
            "error",
            "missing",
            f"{len(missing)} of {len(kind.expected)} tensors are missing: {listed(missing)}; save it whole.",
        )
    beside = [name for name in extra if not name.endswith(("position_ids", "logit_scale"))]
    if beside and prefix is None:
        yield Finding("fact", "extra", f"{listed(beside)}: no part of the encoder, so it stays out of the merge.")
    there = [name for name in kind.expected if name in infos]
    wrong = [finding for name in there for finding in _tensor(name, infos[name], kind.expected[name])]
    around = [*_beside(folder, kind)]
    yield from (*wrong, *around)
    if missing or wrong or any(finding.severity == "error" for finding in around):
        return
    bad = _not_finite(folder, there)
    if bad:
        yield Finding("error", "not finite", f"{listed(bad)} holds NaN or infinity: restore the base.")
    FAMILIES[kind.family].read(folder, kind.facts)


def _shapes(folder: Path) -> dict[str, TensorInfo]:
    """The header of the one file a base's weights lie in."""
    if not folder.is_dir():
        raise FwvizError(f"{folder} is no folder of a model: give the folder that save_pretrained wrote.")
    refuse_pickles(folder)
    if not (folder / _WEIGHTS).is_file():
        what = "its weights in shards" if (folder / f"{_WEIGHTS}.index.json").is_file() else f"no {_WEIGHTS}"
        raise FwvizError(
            f"{folder} has {what}: save the base with save_pretrained(max_shard_size='50GB'), in one file."
        )
    file = SafetensorsFile(folder / _WEIGHTS)
    found = dict(file.tensors)
    file.close()
    return found


def _kind(folder: Path, infos: Mapping[str, TensorInfo]) -> _Kind:
    config = folder / "config.json"
    if not config.is_file():
        raise FwvizError("there is no config.json, by which the model is known: add it from the model's folder.")
    kind = read_json(config).get("model_type")
    count = sum(math.prod(info.shape) for info in infos.values()) / 1e6
    if kind == "clip":
        vision, text = read_vision_shape(config), read_text_shape(config)
        size = vision.image_size
        said = (
            f"a CLIP of {count:.3g} million weights that takes pictures of {size} x {size}; its image tower is merged."
        )
        return _Kind(
            "clip_vision", said, {"image_size": size}, vision_tensors(vision) | text_tensors(text),
            ("vision_model.", "visual_projection."), text.vocabulary, text.positions,
        )  # fmt: skip
    if kind in _ENCODERS:
        shape, prefix = read_bert_shape(config), find_prefix(infos)
        tokens = min(shape.longest, _TOKENS)
        said = (
            f"an encoder of texts of {count:.3g} million weights, {shape.depth} blocks of width {shape.width}, that "
            f"reads {tokens} tokens."
        )
        return _Kind(
            "sentence_encoder", said, {"tokens": tokens, "scale": _SCALE}, bert_tensors(shape, prefix),
            (f"{prefix}embeddings.", f"{prefix}encoder."), shape.vocabulary, tokens,
        )  # fmt: skip
    raise FwvizError(f"{config} is of a {kind!r} model: give a CLIP or a BERT-like encoder as base.")


def _tensor(name: str, info: TensorInfo, wanted: tuple[int, ...]) -> Iterator[Finding]:
    if info.shape != wanted:
        grown = "embedding" in name and info.shape[1:] == wanted[1:]
        kind = "vocabulary" if grown and ("word" in name or "token_embedding" in name) else "shape"
        yield Finding(
            "error", kind, f"{name!r} has shape {info.shape}, its config.json says {wanted}: save both together."
        )
    elif info.dtype not in MERGEABLE:
        yield Finding("error", "dtype", f"{name!r} is {info.dtype}: save it as float16, bfloat16 or float32.")


def _beside(folder: Path, kind: _Kind) -> Iterator[Finding]:
    """The files beside the weights: how pictures are normalised and words are read."""
    if kind.family == "clip_vision" and not (folder / "preprocessor_config.json").is_file():
        yield Finding(
            "error",
            "preprocessor",
            "there is no preprocessor_config.json, by which pictures are normalised: add it from the model's folder.",
        )
    file = folder / "tokenizer.json"
    if not file.is_file():
        yield Finding(
            "error",
            "tokenizer",
            "there is no tokenizer.json, by which the words for classes are read: add it from the model's folder.",
        )
        return
    size = read_tokenizer(file, kind.longest).get_vocab_size()
    if size > kind.vocabulary:
        yield Finding(
            "warning",
            "vocabulary",
            f"tokenizer.json has {size} tokens, the model {kind.vocabulary}: texts with the others will be refused.",
        )


def _not_finite(folder: Path, names: Sequence[str]) -> list[str]:
    file = SafetensorsFile(folder / _WEIGHTS)
    try:
        return [name for name in names if not finite(file, name)]
    finally:
        file.close()
