"""What the charts over radial frequency share: the axis and the cutoff of a high-pass filter."""

from __future__ import annotations

from typing import Any

import pandas as pd

from fwviz.charts import _style as style

FOOT = "coarse ← radial frequency ρ (1 = finest) → fine"


def frequency_axis(theme: style.Theme, narrow: bool) -> dict[str, Any]:
    """ρ from 0 to 1."""
    return style.axis(theme, range=[0, 1], dtick=0.25 if narrow else 0.1, showgrid=False)


def cutoff_of(rows: pd.DataFrame) -> float | None:
    """The cutoff of the table; None where it has none."""
    found = pd.to_numeric(rows["cutoff"], errors="coerce").dropna() if "cutoff" in rows else pd.Series(dtype=float)
    return float(found.iloc[0]) if len(found) else None


def cutoff_shapes(cutoff: float | None, theme: style.Theme) -> list[dict[str, Any]]:
    """A line at the cutoff, and a veil over what the filter removes."""
    if cutoff is None:
        return []
    colours = style.palette(theme)
    box = {"type": "rect", "yref": "paper", "x0": 0, "x1": cutoff, "y0": 0, "y1": 1, "layer": "below"}
    line = {"type": "line", "yref": "paper", "x0": cutoff, "x1": cutoff, "y0": 0, "y1": 1}
    return [
        box | {"fillcolor": style.alpha(colours.unwanted, 0.09), "line": {"width": 0}},
        line | {"line": {"color": colours.unwanted, "width": 1.5, "dash": "dash"}},
    ]


def cutoff_note(cutoff: float | None, theme: style.Theme) -> list[dict[str, Any]]:
    """The words at the cutoff's line, on the side that has room."""
    if cutoff is None:
        return []
    left = cutoff > 0.5
    words = f"← removed below {cutoff:g}" if left else f"{cutoff:g}: kept from here on →"
    return [
        style.note(
            words,
            theme,
            xref="x",
            x=cutoff,
            xanchor="right" if left else "left",
            xshift=-6 if left else 6,
            y=1,
            yanchor="top",
            yshift=-2,
            font={"size": style.SMALL, "color": style.palette(theme).unwanted},
        )
    ]


def colours_of(rows: pd.DataFrame, theme: style.Theme) -> dict[str, str]:
    """Checkpoint → the colour of its own task, quiet for those of tasks that are not evaluated."""
    quiet = style.palette(theme).quiet
    if "task" not in rows:
        return dict.fromkeys(rows["checkpoint"], quiet)
    given = rows["task"]
    order = list(given.cat.categories) if isinstance(given.dtype, pd.CategoricalDtype) else list(given.dropna())
    styles = style.task_styles([str(task) for task in order], theme)
    pairs = zip(rows["checkpoint"], given, strict=True)
    return {name: styles[str(task)].colour if pd.notna(task) and task != "" else quiet for name, task in pairs}


def end_labels(
    ends: list[tuple[float, str, str]], low: float, high: float, theme: style.Theme, room: int
) -> list[dict[str, Any]]:
    """Names of curves beside their right ends: (y as drawn, text, colour), moved apart where they would overlap.

    ``room`` is how many labels fit above one another.
    """
    places = style.spread([y for y, _, _ in ends], (high - low) / room, low, high)
    return [
        style.note(
            text,
            theme,
            x=1,
            xshift=6,
            yref="y",
            y=place,
            yshift=0,
            yanchor="middle",
            font={"size": style.SMALL, "color": colour},
        )
        for (_, text, colour), place in zip(ends, places, strict=True)
    ]
