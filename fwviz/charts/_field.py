"""What the pictures of a loss share: the colour of a value, its key, and the runs drawn on top."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from fwviz.charts import _style as style

Value = Literal["loss", "accuracy"]
VALUES: tuple[Value, ...] = ("loss", "accuracy")
Place = Callable[[pd.DataFrame], tuple[np.ndarray, np.ndarray]]

KEY_RUNS = 8  # runs named under the picture


def _choose_task(data: pd.DataFrame, task: str) -> tuple[pd.DataFrame, str]:
    """The rows of one task ("" prefers "joint", else the first) and of runs, and what that task is called."""
    measured = data[data["series"].isin(("grid", "corner"))] if "series" in data else data
    tasks = list(dict.fromkeys(measured["task"].astype(str))) if "task" in data else []
    chosen = task if task in tasks else "joint" if "joint" in tasks else tasks[0] if tasks else ""
    if not tasks:
        return data, chosen
    drawn = (data["task"].astype(str) == chosen) | ~data.index.isin(measured.index)
    return data[drawn], chosen


def measured(
    data: pd.DataFrame, value: Value, task: str, places: Sequence[str]
) -> tuple[pd.DataFrame, str, pd.DataFrame]:
    """(rows of the task and of runs, the task, those of them that were measured in the picture).

    ``places`` are the columns that say where a row stands.
    """
    rows, shown = _choose_task(style.take(data, ("series", *places, value), places), task)
    rows = rows.assign(**{value: pd.to_numeric(rows[value], errors="coerce")}) if len(rows) else rows
    rows = rows if "model" in rows else rows.assign(model="")
    inside = rows["series"].isin(("grid", "corner")) & np.isfinite(rows[value].astype(float))
    return rows, shown, rows[inside]


@dataclass(frozen=True)
class Ramp:
    """How values become colours: losses on a logarithmic scale, lowest first; accuracies evenly, highest first.

    Values beyond ``low`` and ``high`` take the colour of the end.
    """

    value: Value
    low: float
    high: float

    @classmethod
    def of(cls, value: Value, numbers: np.ndarray, limits: tuple[float, float] | None = None) -> Ramp:
        """Between ``limits``, or fitted to finite numbers: the highest losses, only "far too high", then saturate."""
        if limits is not None and limits[1] > limits[0]:
            return cls(value, float(limits[0]), float(limits[1]))
        low = float(numbers.min()) if numbers.size else 0.0
        high = float(numbers.max()) if numbers.size else 1.0
        if value == "loss" and numbers.size > 30:
            high = float(np.quantile(numbers, 0.96))
        if not high > low:
            high = low + (abs(low) or 1.0) * 1e-3
        return cls(value, low, high)

    def even(self, numbers: np.ndarray) -> np.ndarray:
        """Values on the scale of the colours: 0 is the lowest, 1 the highest."""
        clipped = np.clip(np.asarray(numbers, dtype=float), self.low, self.high)
        if not self._logarithmic:
            return (clipped - self.low) / (self.high - self.low)
        return np.log(clipped / self.low) / math.log(self.high / self.low)

    def at(self, share: float) -> float:
        """The value at a place in [0, 1] of the scale."""
        if not self._logarithmic:
            return self.low + share * (self.high - self.low)
        return self.low * (self.high / self.low) ** share

    def scale(self, theme: style.Theme) -> list[list[Any]]:
        """plotly's colour scale over raw values, so that hover texts need no second copy of them."""
        colours = self._colours(theme)
        even = np.linspace(0, 1, len(colours))
        stops = [0.0, *((self.at(p) - self.low) / (self.high - self.low) for p in even[1:-1]), 1.0]
        return [[float(stop), colour] for stop, colour in zip(stops, colours, strict=True)]

    def key(self, theme: style.Theme, narrow: bool, what: str) -> dict[str, Any]:
        """The scale in one line of text above the picture."""
        blocks = "".join(style.coloured("■", colour) for colour in self._colours(theme))
        low, high = self.text(self.low), self.text(self.high)
        unit = " nats" if self.value == "loss" else ""
        more = " or more" if self.value == "loss" else ""
        return style.note(f"{what}: {low} {blocks} {high}{unit}{'' if narrow else more}", theme, yshift=6)

    def text(self, number: float) -> str:
        """A value in words, without its unit."""
        return style.percent(number, 0) if self.value == "accuracy" else style.number(number, signed=False)

    @property
    def _logarithmic(self) -> bool:
        return self.value == "loss" and self.low > 0.0 and self.high > 1.02 * self.low

    def _colours(self, theme: style.Theme) -> Sequence[str]:
        colours = style.palette(theme).sequential
        return colours if self.value == "loss" else colours[::-1]


# --- runs on top ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Path:
    """One run on a picture: its rows by t, its colour, and its name."""

    run: str
    label: str
    rows: pd.DataFrame
    colour: str
    dash: str

    @property
    def last(self) -> pd.Series:
        return self.rows.iloc[-1]


def paths(data: pd.DataFrame, theme: style.Theme, until: float) -> list[Path]:
    """The runs of a table, as far as iteration ``until``; colours by their order, whatever ``until`` is."""
    if "series" not in data or not (data["series"] == "path").any():
        return []
    rows = data[data["series"] == "path"].copy()
    rows["run"] = rows["run"].astype(str)
    looks = style.task_styles(rows["run"], theme)
    found = []
    for run, part in rows.groupby("run", sort=False):
        part = part.sort_values("t", kind="stable").drop_duplicates("t")
        part = part[(part["t"] <= until) | (np.arange(len(part)) == 0)]
        label = str(part["label"].iloc[0]) if "label" in part else run
        found.append(Path(run, label if label not in ("", "nan") else run, part, looks[run].colour, looks[run].dash))
    return found


def sentence(row: Any, where: str) -> str:
    """What the hover text says of one iterate; ``where`` names the picture that it is outside of."""
    lines = [f"t = {row.t:g}"]
    if np.isfinite(row.out_of_plane):
        lines.append(f"{style.percent(row.out_of_plane, 0)} outside the {where}")
    own = []
    for name in VALUES:
        value = getattr(row, name, math.nan)
        if isinstance(value, float) and np.isfinite(value):
            own.append(f"{name} {_said(name, value)}")
    if own:
        lines.append(f"its own {', '.join(own)} over all tasks")
    return "<br>".join(lines)


def _said(name: Value, value: float) -> str:
    return style.percent(value) if name == "accuracy" else f"{style.number(value, signed=False)} nats"


def drawn(path: Path, place: Place, theme: style.Theme, hover: Sequence[str]) -> list[dict[str, Any]]:
    """A path with a dot per iterate and a large one where it stands."""
    colours = style.palette(theme)
    x, y = (style.f4(values) for values in place(path.rows))
    sizes = np.full(len(x), 6, dtype=np.uint8)
    sizes[-1] = 13
    traces: list[dict[str, Any]] = []
    if len(x) > 1:
        halo = {"color": colours.surface, "width": 5}
        shared = {"type": "scatter", "mode": "lines", "name": "", "x": x, "y": y}
        traces.append({**shared, "line": halo, "hoverinfo": "skip"})
    traces.append(
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": style.short(path.label, 30),
            "x": x,
            "y": y,
            "line": {"color": path.colour, "width": 2.5} | ({"dash": path.dash} if path.dash != "solid" else {}),
            "marker": {
                "size": sizes,
                "opacity": 1,
                "color": path.colour,
                "line": {"width": 1.5, "color": colours.surface},
            },
            "customdata": [[float(t)] for t in path.rows["t"]],
            "hovertext": list(hover),
            "hovertemplate": f"<b>{style.short(path.label, 60)}</b>, %{{hovertext}}<extra></extra>",
            "meta": style.names("t", keys=("t",), of={"run": path.run}),
        }
    )
    return traces


def shares(found: Sequence[Path], place: Place, theme: style.Theme, pixel: float) -> list[dict[str, Any]]:
    """The share outside, written beside where each run stands, unless it would lie on another run's.

    ``pixel`` is the length of a px in the units of the axes. What finds no room stands below the picture.
    """
    colours = style.palette(theme)
    texts: list[dict[str, Any]] = []
    for path in found:
        x, y = place(path.rows)
        share = float(path.last["out_of_plane"])
        near = [t for t in texts if abs(t["x"] - x[-1]) < 82 * pixel and abs(t["y"] - y[-1]) < 17 * pixel]
        if near or not np.isfinite(share):
            continue
        texts.append(
            style.note(
                f"{style.percent(share, 0)} outside",
                theme,
                xref="x",
                yref="y",
                x=float(x[-1]),
                y=float(y[-1]),
                xshift=10,
                yshift=0,
                yanchor="middle",
                bgcolor=style.alpha(colours.surface, 0.7),
                borderpad=1,
                font={"size": style.SMALL, "color": colours.ink},
            )
        )
    return texts


def names_below(found: Sequence[Path], theme: style.Theme, narrow: bool, top: int) -> tuple[list[dict[str, Any]], int]:
    """One line per run under the picture, from ``top`` px below it, and the room they take in px."""
    lines = [
        f"{style.coloured('●', path.colour)} {style.short(path.label, 28 if narrow else 80)} "
        f"{style.DOT} {style.percent(float(path.last['out_of_plane']), 0)} outside"
        for path in found[:KEY_RUNS]
    ]
    if len(found) > KEY_RUNS:
        lines.append(f"and {len(found) - KEY_RUNS} more")
    notes = [
        style.note(line, theme, y=0, yanchor="top", yshift=-top - 17 * i, font={"size": style.SMALL})
        for i, line in enumerate(lines)
    ]
    return notes, 17 * len(lines)
