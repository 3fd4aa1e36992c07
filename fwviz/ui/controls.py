"""The small controls above the charts of a tab: described here, drawn by assets/web/controls.js, kept per page.

A control is plain data. What a browser or a link sends passes :func:`parse`; what is not at its default is part of the
link as ``<tab>.<name>``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fwviz.types import FwvizError
from fwviz.ui import wire

Value = str | float | bool
Kind = Literal["choice", "number", "switch"]


@dataclass(frozen=True)
class Control:
    """One control. ``choices`` are (value, title); ``live`` numbers are sent while they are dragged."""

    name: str
    label: str
    kind: Kind
    default: Value
    help: str = ""
    choices: tuple[tuple[str, str], ...] = ()
    low: float = 0.0
    high: float = 1.0
    step: float = 0.01
    live: bool = False


def choice(
    name: str, label: str, choices: Sequence[tuple[str, str]], default: str | None = None, help: str = ""
) -> Control:
    """One of several; the first if ``default`` is not among them."""
    known = [value for value, _ in choices]
    first = default if default in known else known[0] if known else ""
    return Control(name, label, "choice", first, help, tuple(choices))


def number(
    name: str, label: str, default: float, low: float, high: float, step: float, help: str = "", *, live: bool = False
) -> Control:
    """A number in [low, high]."""
    return Control(name, label, "number", default, help, (), low, high, step, live)


def switch(name: str, label: str, default: bool, help: str = "") -> Control:
    """Yes or no."""
    return Control(name, label, "switch", default, help)


def parse(control: Control, raw: Any) -> Value:
    """The value of one control from outside: FwvizError of one sentence if it is none."""
    if control.kind == "choice":
        if isinstance(raw, str) and raw in [value for value, _ in control.choices]:
            return raw
        raise FwvizError(f"{control.label.lower()!r} has no such choice: pick one of the list.")
    if control.kind == "switch":
        if isinstance(raw, bool):
            return raw
        if raw in ("true", "false"):
            return bool(raw == "true")
        raise FwvizError(f"{control.label.lower()!r} is either on or off.")
    try:
        value = math.nan if isinstance(raw, bool) or (isinstance(raw, str) and len(raw) > 30) else float(raw)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not control.low <= value <= control.high:
        raise FwvizError(f"{control.label.lower()!r} must be a number from {control.low:g} to {control.high:g}.")
    return float(round(value)) if control.step == 1 else value


def values_of(controls: Sequence[Control], raw: Mapping[str, Any]) -> dict[str, Value]:
    """The value of every control; what is absent, or no longer among the choices, is at its default."""
    values: dict[str, Value] = {}
    for control in controls:
        try:
            values[control.name] = parse(control, raw[control.name]) if control.name in raw else control.default
        except FwvizError:
            values[control.name] = control.default
    return values


def controls_value(tab: str, controls: Sequence[Control], values: Mapping[str, Value], said: Mapping[str, str]) -> str:
    """What the strip of a tab is sent: every control with the value it stands at.

    ``said`` is what stands beside some of them: these also tell when they are let go.
    """
    fields = [
        {
            "name": c.name,
            "label": c.label,
            "kind": c.kind,
            "default": c.default,
            "value": values[c.name],
            "help": c.help,
            "choices": [list(pair) for pair in c.choices],
            "low": c.low,
            "high": c.high,
            "step": c.step,
            "live": c.live,
            **({"said": said[c.name]} if c.name in said else {}),
        }
        for c in controls
    ]
    return wire.message(tab=tab, fields=fields)
