"""Registries of methods, lenses and charts, each filled by scanning one folder.

A file ``methods/fw_soft.py`` registers exactly one thing, named ``fw_soft``. Settings are frozen dataclasses whose
fields are made with :func:`setting`; UI controls, CLI flags and docs are all derived from :func:`describe_settings`,
and every value that comes from outside passes :func:`parse_settings`.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from fwviz.types import FwvizError

# --- settings -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SettingSpec:
    """One setting: its name, type, default, help and range. ``choices`` is empty for numbers and switches.

    ``applies`` maps another setting's name to the values under which this one has an effect; empty means always.
    """

    name: str
    kind: type
    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    applies: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    applies: Mapping[str, tuple[Any, ...]] | None = None,
) -> Any:
    """A dataclass field that carries its help and range."""
    metadata = {"help": help, "low": low, "high": high, "choices": choices, "applies": applies or {}}
    return dataclasses.field(default=default, metadata=metadata)


def describe_settings(cls: type) -> tuple[SettingSpec, ...]:
    """The settings of a frozen settings dataclass, in order."""
    return tuple(
        SettingSpec(name=f.name, kind=type(f.default), default=f.default, **f.metadata) for f in dataclasses.fields(cls)
    )


def parse_settings(cls: type, values: Mapping[str, Any]) -> Any:
    """Build ``cls`` from outside values; every problem is a FwvizError that names the field."""
    specs = {spec.name: spec for spec in describe_settings(cls)}
    unknown = [name for name in values if name not in specs]
    if unknown:
        raise FwvizError(f"unknown setting {unknown[0]!r}: the settings are {', '.join(specs) or '(none)'}.")
    return cls(**{name: _parse_value(specs[name], value) for name, value in values.items()})


def _parse_value(spec: SettingSpec, value: Any) -> Any:
    if spec.choices:
        if not isinstance(value, str) or value not in spec.choices:
            raise FwvizError(f"setting {spec.name!r} is {value!r}, but must be one of {', '.join(spec.choices)}.")
        return value
    if spec.kind is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        raise FwvizError(f"setting {spec.name!r} is {value!r}, but must be true or false.")
    if spec.kind not in (int, float):
        raise TypeError(f"setting {spec.name!r} has no parser for {spec.kind}")
    if isinstance(value, bool):
        raise FwvizError(f"setting {spec.name!r} is {value!r}, but must be a number.")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise FwvizError(f"setting {spec.name!r} is {value!r}, but must be a number.") from None
    if not math.isfinite(number):
        raise FwvizError(f"setting {spec.name!r} is {value!r}, but must be finite.")
    if (spec.low is not None and number < spec.low) or (spec.high is not None and number > spec.high):
        raise FwvizError(f"setting {spec.name!r} is {value!r}, but must lie between {spec.low:g} and {spec.high:g}.")
    if spec.kind is int:
        if number != int(number):
            raise FwvizError(f"setting {spec.name!r} is {value!r}, but must be a whole number.")
        return int(number)
    return number


# --- registries ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One registered method, lens or chart. ``facts`` holds what its decorator was given beyond the title."""

    name: str
    title: str
    run: Callable[..., Any]
    settings: type | None
    facts: Mapping[str, Any]

    @property
    def doc(self) -> str:
        return inspect.cleandoc(self.run.__doc__ or "")

    def data_for(self, settings: Any) -> str:
        """What the method needs with these settings: "none", "labels" or "inputs"; see :func:`merge_method`."""
        if getattr(settings, "loss", "") == "entropy":
            return "inputs"
        if self.facts["data"] == "none" and getattr(settings, "scale_search", "off") != "off":
            return "labels"
        return str(self.facts["data"])


_REGISTRIES: dict[str, dict[str, Entry]] = {"methods": {}, "lenses": {}, "charts": {}}
_scanned: set[str] = set()


def _decorator(kind: str, title: str, settings: type | None, facts: Mapping[str, Any]) -> Callable[..., Any]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        entry = Entry(function.__name__, title, function, settings, facts)
        _REGISTRIES[kind][entry.name] = entry
        return function

    return register


def merge_method(
    title: str,
    settings: type,
    *,
    data: str,
    paper: str,
    reference: str,
    convex: bool = False,
    extends: bool = False,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
) -> Callable[..., Any]:
    """Register a generator ``(Problem, Settings) -> Iterator[Step]`` as a merge method.

    ``data`` is what it needs with its default settings: "none", "labels" (calibration) or "inputs" (unlabelled).
    ``convex`` says that with its default settings copies of one checkpoint merge to that checkpoint's segment to the
    base; ``extends`` that its result is more than one set of weights (experts, masks, feature maps). ``presets`` are
    named settings worth a click: title → what differs from the defaults.
    """
    facts = {"data": data, "paper": paper, "reference": reference, "convex": convex, "extends": extends}
    return _decorator("methods", title, settings, {**facts, "presets": presets or {}})


def lens(title: str, *, question: str) -> Callable[..., Any]:
    """Register an analysis: pool or trace → tidy DataFrame."""
    return _decorator("lenses", title, None, {"question": question})


def chart(title: str, *, question: str, lens: str, reading: str) -> Callable[..., Any]:
    """Register a pure function DataFrame → plotly Figure.

    ``lens`` names the analysis whose table it draws; ``reading`` says in one sentence how to read it.
    """
    return _decorator("charts", title, None, {"question": question, "lens": lens, "reading": reading})


def entries(kind: str) -> dict[str, Entry]:
    """All entries of "methods", "lenses" or "charts", scanning their folder on first use."""
    if kind not in _scanned:
        package: ModuleType = importlib.import_module(f"fwviz.{kind}")
        for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")):
            importlib.import_module(f"fwviz.{kind}.{module}")
        _scanned.add(kind)
    return _REGISTRIES[kind]


def entry(kind: str, name: str) -> Entry:
    """One entry by name; a FwvizError lists the choices."""
    found = entries(kind)
    if name not in found:
        singular = {"methods": "method", "lenses": "lens", "charts": "chart"}[kind]
        raise FwvizError(f"there is no {singular} {name!r}: choose from {', '.join(found)}.")
    return found[name]
