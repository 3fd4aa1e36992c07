"""What every command writes alike: tables, numbers, settings."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from fwviz.registry import SettingSpec, describe_settings, entry


class Parser(argparse.ArgumentParser):
    """A parser that complains in one sentence, without the list of all options before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"fwviz: {message}; {self.prog} --help tells the options.\n")


def parser_of(name: str, command: Callable[..., Any]) -> argparse.ArgumentParser:
    return Parser(prog=f"fwviz {name}", description=command.__doc__, allow_abbrev=False)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def settings_of(method: str) -> tuple[SettingSpec, ...]:
    cls = entry("methods", method).settings
    return describe_settings(cls) if cls else ()


def range_of(spec: SettingSpec) -> str:
    if spec.choices:
        return "|".join(spec.choices)
    if spec.kind is bool:
        return "true|false"
    low, high = ("" if bound is None else f"{bound:g}" for bound in (spec.low, spec.high))
    return f"{low}..{high}"


def shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def print_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns as wide as they need, but the last, which is text."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[j]) for row in cells) for j in range(len(head))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def size(count: int | None) -> str:
    if count is None:
        return "-"
    unit = next((u for u in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if count >= u[1]), ("B", 1.0))
    return f"{count / unit[1]:.3g} {unit[0]}"


def percent(value: float | None) -> str:
    return "-" if value is None or value != value else f"{100 * value:.1f}"


def short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
