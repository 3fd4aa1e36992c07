"""A base of a person's own: what kind of model it is, and all that keeps it from being one, before anything heavy."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fwviz.backbones._bert import bert_tensors, find_prefix, read_bert_shape
from fwviz.backbones._texts import read_tokenizer
from fwviz.backbones._words import TYPES, longest_of
from fwviz.backbones.clip_config import read_json, read_text_shape, read_vision_shape
from fwviz.backbones.clip_text import text_tensors
from fwviz.backbones.clip_vision import vision_tensors
from fwviz.backbones.families import FAMILIES
from fwviz.backbones.folders import cached_snapshot
from fwviz.pools.check import MERGEABLE, Finding, finite, listed, refuse_pickles, renamed, sort_findings
from fwviz.space.files import SafetensorsFile, TensorInfo
from fwviz.types import FwvizError

_ENCODERS = ("bert", "roberta", "xlm-roberta")
_TOKENS, _ANSWER, _SCALE = 128, 32, 20.0  # of texts, of answers, of a sentence encoder, where nobody says
_WEIGHTS = "model.safetensors"
# model_type → family of the models that answer in words, and what they are called.
_LANGUAGE = {kind: family for family, kinds in (("seq2seq", TYPES["seq2seq"]), ("causal_lm", TYPES["causal"]))
             for kind in kinds}  # fmt: skip
_CALLED = {"t5": "T5", "gpt2": "GPT-2", "llama": "LLaMA"}


@dataclass(frozen=True)
class _Kind:
    """What a base's configuration says: its family, what a card adds, the tensors it needs, and which are merged.

    ``same`` are second names of tensors that are expected.
    """

    family: str
    said: str
    facts: Mapping[str, Any]
    expected: Mapping[str, tuple[int, ...]]
    include: tuple[str, ...]
    vocabulary: int
    longest: int
    same: frozenset[str] = frozenset()


class BaseModel(NamedTuple):
    """A base as a pool has it: its family, ``base`` of a card, and prefixes of what is merged and what is not."""

    family: str
    base: dict[str, Any]
    include: tuple[str, ...]
    exclude: tuple[str, ...]

    def prefixes(self, *, classifiers: bool) -> tuple[str, ...]:
        """What may stand in front of the names of a checkpoint; ``classifiers`` as in :func:`read_base`."""
        return FAMILIES[_with_classifiers(self.family) if classifiers else self.family].prefixes


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


def read_base(place: str, *, classifiers: bool = False) -> BaseModel:
    """What a pool has to know of a base in a folder or of the Hub's cache.

    ``place`` is an absolute folder or the id of a repository. With ``classifiers`` an encoder of texts is read as one
    behind which the checkpoints have classifiers of their own. Raises FwvizError for a model of another kind.
    """
    folder = place_of_base(place)
    infos = _shapes(folder)
    kind = _kind(folder, infos)
    base: dict[str, Any] = {"path": "base"} if Path(place).is_absolute() else {"hub": place}
    count = sum(math.prod(info.shape) for info in infos.values())
    with (folder / _WEIGHTS).open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    base |= {"sha256": digest, "parameters": count, "licence": "not said", **kind.facts}
    family = _with_classifiers(kind.family) if classifiers else kind.family
    if family == "sequence_classifier":
        del base["scale"]  # of heads made of texts
    exclude = tuple(name for name in _beside_it(infos, kind) if name.startswith(kind.include))
    return BaseModel(family, base, kind.include, exclude)


def _with_classifiers(family: str) -> str:
    """The family of an encoder of texts behind which its checkpoints have classifiers."""
    return "sequence_classifier" if family == "sentence_encoder" else family


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
    beside = _beside_it(infos, kind)
    if beside and prefix is None:
        part = "model" if kind.family in _LANGUAGE.values() else "encoder"
        yield Finding("fact", "extra", f"{listed(beside)}: no part of the {part}, so it stays out of the merge.")
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


def _beside_it(infos: Mapping[str, TensorInfo], kind: _Kind) -> list[str]:
    """The weights of a file that the model does not need."""
    extra = sorted(set(infos) - set(kind.expected) - kind.same)
    return [name for name in extra if not name.endswith(("position_ids", "logit_scale"))]


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
    if kind in _LANGUAGE:
        return _language(folder, str(kind), count)
    raise FwvizError(
        f"{config} is of a {kind!r} model: give a CLIP, a BERT-like encoder, a T5, a GPT-2 or a LLaMA as base."
    )


def _language(folder: Path, kind: str, count: float) -> _Kind:
    """A model that answers in words. Its names and shapes are compared with what transformers builds at once."""
    family = _LANGUAGE[kind]
    try:
        room = longest_of(folder, "seq2seq" if family == "seq2seq" else "causal") or _TOKENS + _ANSWER
        answer = min(_ANSWER, room // 4)
        facts = {"tokens": min(_TOKENS, room - answer), "answer_tokens": answer}
        model = FAMILIES[family].read(folder, facts)
    except FwvizError as error:
        raise FwvizError(f"its config.json is of a {kind!r} model, but {error}") from None
    said = (
        f"a {_CALLED[kind]} of {count:.3g} million weights that answers in words: it reads {facts['tokens']} tokens of "
        f"a prompt and writes {answer}."
    )
    return _Kind(
        family, said, facts, model.tensors, tuple(sorted({f"{name.partition('.')[0]}." for name in model.tensors})),
        int(str(model.facts["vocab_size"])), facts["tokens"], frozenset(model.aliases),
    )  # fmt: skip


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
