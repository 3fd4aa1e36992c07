"""PEFT adapter folders as checkpoints: LoRA and IA3, read as the parts they add to the base. Nothing is unpickled."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fwviz.backbones.clip_config import read_json
from fwviz.space.files import SafetensorsFile
from fwviz.space.lowrank import Dense, LowRank, Part, Rescaled
from fwviz.types import FwvizError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_PREFIX = "base_model.model."
_CLASSIFIERS = ("SEQ_CLS", "TOKEN_CLS")
_FACTOR = re.compile(r"(?P<module>.+)\.(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B|ia3_l)(?:\.weight)?")
# Initialisations after which the base's own weights are no longer those the adapter was trained beside.
_MOVE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Settings of LoRA under which ΔW is not s·B·A.
_OTHER_LORA = (
    "use_dora", "use_qalora", "use_bdlora", "lora_bias", "layer_replication", "target_parameters", "megatron_config",
    "trainable_token_indices", "alora_invocation_tokens", "arrow_config", "kasa_config", "velora_config",
    "monteclora_config",
)  # fmt: skip


def is_adapter(folder: Path) -> bool:
    """Whether a checkpoint's folder holds an adapter rather than whole weights."""
    return (folder / CONFIG).is_file()


@dataclass(frozen=True)
class AdapterConfig:
    """What ``adapter_config.json`` says of how the tensors are to be read.

    ``ranks`` and ``alphas`` are (pattern, value) pairs that go over ``rank`` and ``alpha`` where they match a module.
    """

    kind: str
    rank: int = 0
    alpha: float = 0.0
    root_scale: bool = False  # rank-stabilised: alpha/√r instead of alpha/r
    transposed: bool = False
    ranks: tuple[tuple[str, int], ...] = ()
    alphas: tuple[tuple[str, float], ...] = ()
    feedforward: tuple[str, ...] | str = ()
    kept: tuple[str, ...] = ()  # modules saved whole beside the adapter
    task_type: str | None = None

    def scale_of(self, module: str, rank: int) -> float:
        """The factor s in ΔW = s·B·A."""
        alpha = next((value for pattern, value in self.alphas if _matches(pattern, module)), self.alpha)
        return alpha / (math.sqrt(rank) if self.root_scale else rank)

    def rank_of(self, module: str) -> int:
        """The rank the configuration promises for a module."""
        return next((value for pattern, value in self.ranks if _matches(pattern, module)), self.rank)

    def is_feedforward(self, module: str) -> bool:
        """Whether IA3 rescales the module's inputs, not its outputs."""
        if isinstance(self.feedforward, str):
            return re.fullmatch(self.feedforward, module) is not None
        return any(module == name or module.endswith(f".{name}") for name in self.feedforward)


def read_config(folder: Path) -> AdapterConfig:
    """Read and check ``adapter_config.json``.

    Raises:
        FwvizError: it is missing, damaged, of another kind than LoRA or IA3, or asks for what no sum s·B·A expresses.
    """
    path = folder / CONFIG
    values = read_json(path)
    kind = str(values.get("peft_type", "")).upper()
    kept = _names(path, values, "modules_to_save")
    transposed = _flag(path, values, "fan_in_fan_out")
    task_type = values.get("task_type") if isinstance(values.get("task_type"), str) else None
    if kind == "IA3":
        feedforward = values.get("feedforward_modules")
        return AdapterConfig(
            kind,
            transposed=transposed,
            feedforward=_pattern(path, "feedforward_modules", feedforward)
            if isinstance(feedforward, str)
            else _names(path, values, "feedforward_modules"),
            kept=kept,
            task_type=task_type,
        )
    if kind != "LORA":
        raise FwvizError(
            f"{path} is an adapter of the kind {kind or 'unknown'!r}, but only LORA and IA3 can be merged."
        )
    for key in _OTHER_LORA:
        if values.get(key):
            raise FwvizError(
                f"{path} uses {key}, under which the update is no product of two factors: merge the adapter into its "
                f"base with PEFT (merge_and_unload) and give the whole weights."
            )
    start = str(values.get("init_lora_weights", True)).lower()
    if start.startswith(_MOVE_THE_BASE):
        raise FwvizError(
            f"{path} was initialised by {start}, which changes the base: save it with PEFT's "
            f"path_initial_model_for_weight_conversion, which makes it a plain LoRA."
        )
    return AdapterConfig(
        kind,
        rank=int(_number(path, "r", values.get("r"), 1, 1 << 16, whole=True)),
        alpha=_number(path, "lora_alpha", values.get("lora_alpha"), -1e6, 1e6),
        root_scale=_flag(path, values, "use_rslora"),
        transposed=transposed,
        ranks=tuple(
            (_pattern(path, "rank_pattern", key), int(_number(path, "rank_pattern", value, 1, 1 << 16, whole=True)))
            for key, value in _table(path, values, "rank_pattern").items()
        ),
        alphas=tuple(
            (_pattern(path, "alpha_pattern", key), _number(path, "alpha_pattern", value, -1e6, 1e6))
            for key, value in _table(path, values, "alpha_pattern").items()
        ),
        kept=kept,
        task_type=task_type,
    )


class AdapterFile:
    """One adapter on disk, its header compared with its configuration and with the base; parts are read on demand.

    ``changes`` has the base's tensors it changes. Raises FwvizError if configuration, tensors and base do not fit.
    """

    def __init__(self, folder: Path, base: Mapping[str, tuple[int, ...]]) -> None:
        """``base`` has name → shape of every tensor of the base."""
        self.folder = folder
        self.config = read_config(folder)
        self._base = base
        if not (folder / WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
            raise FwvizError(
                f"{folder / 'adapter_model.bin'} is a pickle, which can run code when it is read: load it with PEFT "
                f"and save_pretrained it again, which writes safetensors."
            )
        self.file = SafetensorsFile(folder / WEIGHTS)
        self._low: dict[str, tuple[str, str, str]] = {}  # base tensor → (A, B, module)
        self._rescaled: dict[str, tuple[str, str]] = {}  # base tensor → (l, module)
        self._dense: dict[str, str] = {}
        try:
            self._sort()
        except BaseException:
            self.file.close()
            raise

    @property
    def changes(self) -> frozenset[str]:
        """Names of the base's tensors the adapter changes."""
        return frozenset((*self._low, *self._rescaled, *self._dense))

    @property
    def modules(self) -> dict[str, str]:
        """Tensor of the base changed at low rank → the module PEFT knows it as."""
        return {name: module for name, (_, _, module) in self._low.items()}

    def is_embedding(self, name: str) -> bool:
        """Whether a tensor is an embedding table, whose factors PEFT names otherwise."""
        return name in self._low and "embedding" in self._low[name][0]

    def read(self, base: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> dict[str, Part]:
        """The parts by the name of the tensor they change, for those in ``base`` (name → tensor).

        Raises:
            FwvizError: a factor holds NaN or infinity, or the file changed.
        """
        parts: dict[str, Part] = {}
        for name, (a, b, module) in self._low.items():
            if name in base:
                down, up = self._finite(a), self._finite(b)
                up = up * self.config.scale_of(module, down.shape[0])
                flipped = "embedding" in a or self.config.transposed
                low = LowRank(down.T.contiguous(), up.T.contiguous()) if flipped else LowRank(up, down)
                parts[name] = LowRank(low.up.to(dtype), low.down.to(dtype))
        for name, (factor, module) in self._rescaled.items():
            if name in base:
                change = self._finite(factor).flatten() - 1.0
                if len(self._base[name]) == 1:
                    parts[name] = Dense(change * base[name])
                else:
                    inputs = self.config.is_feedforward(module) != self.config.transposed
                    parts[name] = Rescaled(change, "columns" if inputs else "rows")
        for name, own in self._dense.items():
            if name in base:
                parts[name] = Dense(self._finite(own) - base[name])
        return parts

    # --- the header -------------------------------------------------------------------------------

    def _sort(self) -> None:
        """Sort the file's tensors by what they do, and compare each with the base."""
        found: dict[str, dict[str, str]] = {}
        for name, info in self.file.tensors.items():
            if not info.dtype.is_floating_point:
                raise FwvizError(
                    f"{self.file.path}: tensor {name!r} is {info.dtype}: an adapter needs F16, BF16 or F32."
                )
            match = _FACTOR.fullmatch(name.removeprefix(_PREFIX))
            if match is None:
                self._take_whole(name)
            else:
                found.setdefault(match["module"], {})[match["kind"]] = name
        for module, factors in found.items():
            self._take(module, factors)
        if not self.changes:
            raise FwvizError(f"{self.file.path} changes nothing of the base: it is no adapter of this model.")

    def _take(self, module: str, factors: Mapping[str, str]) -> None:
        name = self._find(f"{module}.weight")
        if name is None:
            raise FwvizError(
                f"{self.file.path} adapts {module!r}, which the base lacks: it is an adapter of another model."
            )
        kinds = set(factors)
        if kinds == {"ia3_l"} and self.config.kind == "IA3":
            self._take_rescaled(name, module, factors["ia3_l"])
        elif self.config.kind == "LORA" and kinds in ({"lora_A", "lora_B"}, {"lora_embedding_A", "lora_embedding_B"}):
            self._take_low(name, module, *(factors[kind] for kind in sorted(kinds)))
        else:
            raise FwvizError(
                f"{self.file.path} has only {', '.join(sorted(kinds))} for {module!r}, but {self.config.kind} needs "
                f"{'one ia3_l' if self.config.kind == 'IA3' else 'lora_A and lora_B'}: save the adapter again."
            )

    def _take_low(self, name: str, module: str, a: str, b: str) -> None:
        shape, down, up = self._base[name], self.file.info(a).shape, self.file.info(b).shape
        if not len(shape) == len(down) == len(up) == 2:
            raise FwvizError(
                f"{self.file.path}: the adapter of {module!r} is no pair of matrices, which alone are merged."
            )
        rank = self.config.rank_of(module)
        if not down[0] == up[1] == rank:
            raise FwvizError(
                f"{self.file.path}: the factors of {module!r} have ranks {up[1]} and {down[0]}, but {CONFIG} says "
                f"{rank}."
            )
        transposed = "embedding" in a or self.config.transposed
        if shape != ((down[1], up[0]) if transposed else (up[0], down[1])):
            raise FwvizError(
                f"{self.file.path}: the update of {module!r} is {up[0]} x {down[1]}, but the base's tensor has shape "
                f"{shape}: it is an adapter of another model."
            )
        self._low[name] = (a, b, module)

    def _take_rescaled(self, name: str, module: str, factor: str) -> None:
        shape, count = self._base[name], math.prod(self.file.info(factor).shape)
        inputs = self.config.is_feedforward(module)
        if len(shape) != 2 or count != shape[int(inputs != self.config.transposed)]:
            raise FwvizError(
                f"{self.file.path}: {module!r} has {count} factors, but the base's tensor has shape {shape}: it is an "
                f"adapter of another model."
            )
        self._rescaled[name] = (factor, module)
        bias = f"{name.removesuffix('weight')}bias"
        if not inputs and bias in self._base:  # outputs are rescaled, the bias with them
            self._rescaled[bias] = (factor, module)

    def _take_whole(self, name: str) -> None:
        """A tensor saved whole: a trained bias, or a module kept beside the adapter such as a new head."""
        own = self._find(
            name.removeprefix(_PREFIX).replace(".modules_to_save.default.", ".").replace(".base_layer.", ".")
        )
        if own is None:
            stem = name.removeprefix(_PREFIX).rpartition(".")[0]
            if any(part in self.config.kept for part in stem.split(".")):
                return  # a head the base does not have: it stays out of the merge
            raise FwvizError(
                f"{self.file.path} has a tensor {name!r} that the base lacks: it is an adapter of another model."
            )
        if self._base[own] != self.file.info(name).shape:
            raise FwvizError(
                f"{self.file.path}: tensor {name!r} has shape {self.file.info(name).shape}, but the base has "
                f"{self._base[own]}: it is an adapter of another model."
            )
        self._dense[own] = name

    def _find(self, name: str) -> str | None:
        """The base's name of a tensor; a model's own prefix (``bert.``, ``model.``) may be on one side only."""
        if name in self._base:
            return name
        longer = [own for own in self._base if own.endswith(f".{name}")]
        shorter = [own for own in self._base if name.endswith(f".{own}")]
        found = longer or shorter
        return found[0] if len(found) == 1 else None

    def _finite(self, name: str) -> Tensor:
        tensor = self.file.read(name).float()
        if not bool(tensor.isfinite().all()):
            raise FwvizError(f"{self.file.path}: tensor {name!r} holds NaN or infinity: leave it out or restore it.")
        return tensor


def write_lora(
    folder: Path, factors: Mapping[str, LowRank], like: Sequence[AdapterFile], base_name: str | None = None
) -> None:
    """Write factors as a LoRA folder that ``PeftModel.from_pretrained`` loads; ΔW of each tensor is exactly up·down.

    Ranks may differ between tensors; alpha is the rank, so that the scale is 1. ``like`` are the adapters the factors
    came from: they say what PEFT calls the modules.

    Raises:
        FwvizError: there is nothing to write, or the adapters store their matrices in different orientations.
    """
    from safetensors.torch import save_file

    if not factors:
        raise FwvizError("the merge is the base itself: there is no adapter to write.")
    if len({file.config.transposed for file in like}) > 1:
        raise FwvizError("the adapters differ in fan_in_fan_out: export the merged weights instead.")
    modules = {name: module for file in reversed(like) for name, module in file.modules.items()}
    transposed = like[0].config.transposed
    tensors: dict[str, Tensor] = {}
    for name, part in factors.items():
        embedding = any(file.is_embedding(name) for file in like)
        flipped = embedding or transposed
        down, up = (part.up.T, part.down.T) if flipped else (part.down, part.up)
        stem = f"{_PREFIX}{modules[name]}"
        names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
        tensors |= {f"{stem}.{names[0]}": down.cpu().contiguous(), f"{stem}.{names[1]}": up.cpu().contiguous()}
    ranks = {re.escape(modules[name]): part.up.shape[1] for name, part in factors.items()}
    most = max(ranks.values())
    config = {
        "peft_type": "LORA",
        # Of a classifier's adapter PEFT wants the classifier in the file, which belongs to one task and is not merged.
        "task_type": None if like[0].config.task_type in _CLASSIFIERS else like[0].config.task_type,
        "base_model_name_or_path": base_name,
        "r": most,
        "lora_alpha": most,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": [modules[name] for name in factors],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "inference_mode": True,
        "init_lora_weights": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")


# --- values of the configuration ----------------------------------------------------------------


def _matches(pattern: str, module: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def _pattern(path: Path, key: str, value: str) -> str:
    try:
        re.compile(value)
    except re.error:
        raise FwvizError(f"{path}: {key} has {value[:60]!r}, which is no regular expression.") from None
    # What repeats a group, or repeats much, can take for ever to find no match.
    if len(value) > 500 or re.search(r"\)[*+{]", value) or sum(value.count(sign) for sign in "*+{") > 4:
        raise FwvizError(f"{path}: {key} has {value[:60]!r}, which is too intricate a pattern: name the modules.")
    return value


def _number(path: Path, key: str, value: Any, low: float, high: float, *, whole: bool = False) -> float:
    fits = type(value) is int or (type(value) is float and not whole and math.isfinite(value))
    if not fits or not low <= value <= high:
        raise FwvizError(f"{path}: {key} is {value!r}, but must be a {'whole ' if whole else ''}number: save it again.")
    return float(value)


def _flag(path: Path, values: Mapping[str, Any], key: str) -> bool:
    value = values.get(key) or False
    if not isinstance(value, bool):
        raise FwvizError(f"{path}: {key} is {value!r}, but must be true or false.")
    return value


def _names(path: Path, values: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = values.get(key) or []
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise FwvizError(f"{path}: {key} must be a list of names.")
    return tuple(value)


def _table(path: Path, values: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = values.get(key) or {}
    if not isinstance(value, dict):
        raise FwvizError(f"{path}: {key} must be a table of patterns.")
    return value
