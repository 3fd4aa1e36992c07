"""The heat-map shared by the charts that show score per checkpoint over layers or over iterations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fwviz.charts import _style as style

ROW = 20
# Ticks stand a hair beside their category: on it, the hover text would show the short label instead of the id.
OFF = 0.02


def columns(rows: pd.DataFrame, names: Sequence[str], column: str, value: str) -> np.ndarray:
    """values[row, column]: one row per checkpoint in the order of ``names``, NaN where nothing was measured."""
    table = rows.pivot_table(
        index="checkpoint", columns=column, values=value, aggfunc="first", sort=False, dropna=False
    )
    return table.reindex(index=list(names)).sort_index(axis=1).to_numpy(dtype=float)


def heat(
    values: np.ndarray,
    x: Any,
    theme: style.Theme,
    *,
    top: float,
    names: Sequence[str],
    hover: str,
    select: str,
    columns: Mapping[str, Sequence[Any]],
) -> dict[str, Any]:
    """A diverging heat-map around 0; colours saturate at ±``top``. Rows are categories named by their ids.

    ``columns`` says what each column stands for: {"layer": names} or {"t": iterations}.

    So the hover text can name them without a text per cell, which would be 200 KB for 20 checkpoints × 200 tensors.
    """
    colours = style.palette(theme)
    return {
        "type": "heatmap",
        "name": "score",
        "z": style.f4(values),
        "x": x,
        "y": [style.safe(name) for name in names],
        "zmin": -top,
        "zmax": top,
        "zmid": 0,
        "colorscale": [list(stop) for stop in zip(style.DIVERGING_STOPS, colours.diverging, strict=True)],
        "xgap": 1 if values.shape[1] <= 60 else 0,
        "ygap": 1,
        "hoverongaps": False,
        "hovertemplate": hover,
        "meta": style.names(select, rows={"checkpoint": names}, columns=columns, halved=["z"]),
        "showscale": False,
    }


def key(top: float, unit: str, theme: style.Theme, narrow: bool) -> dict[str, Any]:
    """The colour scale in one line of text above the map; plotly's own bar would push the margins about."""
    blocks = "".join(style.coloured("■", colour) for colour in style.palette(theme).diverging)
    low, high = style.number(-top), style.number(top)
    return style.note(f"wanted {low} {blocks} {high}{'' if narrow else unit}", theme, yshift=5)


def diamonds(
    x: Any,
    ids: Sequence[str],
    theme: style.Theme,
    size: float,
    scores: Any,
    hover: Sequence[str],
    said: str,
    layers: Sequence[str] | None = None,
    of_map: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Chosen cells: of a checkpoint each, or with ``layers`` of a checkpoint and a layer.

    ``said`` is the template of their hover text, ``hover`` the words that differ from cell to cell in it; what is
    promised follows. ``scores`` are NaN for vertices that promise nothing. ``of_map`` says what of this follows from
    the map below and need not be sent (see :mod:`fwviz.ui.brief`).
    """
    colours = style.palette(theme)
    scores = style.f4(scores)
    promised = f"{said}:<br>%{{text:+.3~g}} nats promised.<extra></extra>"
    silent = f"{said}.<extra></extra>"
    known = np.isfinite(scores)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "chosen vertex",
        "x": x,
        "y": [style.safe(name) for name in ids],
        "marker": {
            "symbol": "diamond",
            "size": size,
            "opacity": 1,
            "color": colours.ink,
            "line": {"width": 1 if size < 7 else 1.5, "color": colours.surface},
        },
        "customdata": list(ids) if layers is None else [list(pair) for pair in zip(ids, layers, strict=True)],
        "text": scores,
        "hovertext": list(hover),
        "hovertemplate": promised if known.all() else [promised if told else silent for told in known],
        "meta": style.names("checkpoint", halved=["text"], **of_map or {})
        if layers is None
        else style.names("cell", keys=("checkpoint", "layer"), halved=["text"], **of_map or {}),
    }


def row_axis(labels: Sequence[str], theme: style.Theme) -> dict[str, Any]:
    """Checkpoints from top to bottom."""
    return style.axis(
        theme,
        type="category",
        tickmode="array",
        tickvals=[row + OFF for row in range(len(labels))],
        ticktext=list(labels),
        range=[len(labels) - 0.5, -0.5],
        showgrid=False,
        ticklabelstandoff=6,
        fixedrange=True,
        automargin="left",
    )


def column_axis(labels: Sequence[str], theme: style.Theme, *, level: bool = False) -> dict[str, Any]:
    """Names below a map's columns, on end unless they are ``level``."""
    return style.axis(
        theme,
        type="category",
        tickmode="array",
        tickvals=[column + OFF for column in range(len(labels))],
        ticktext=list(labels),
        tickangle=0 if level else -90,
        showgrid=False,
        range=[-0.5, len(labels) - 0.5],
        fixedrange=True,
    )


def counts(counted: Sequence[str], theme: style.Theme, head: str, narrow: bool) -> list[dict[str, Any]]:
    """One short text per row at the right edge, under a heading; none at all if all are empty."""
    colours = style.palette(theme)
    texts = [
        style.note(
            text,
            theme,
            x=1,
            xanchor="left",
            xshift=8,
            yref="y",
            y=row,
            yanchor="middle",
            yshift=0,
            font={"size": style.SMALL, "color": colours.ink},
        )
        for row, text in enumerate(counted)
    ]
    heading = style.note("" if narrow else head, theme, x=1, xanchor="left", xshift=4, yshift=5)
    return [heading, *texts] if any(counted) else []


def span_of_labels(rows: pd.DataFrame, narrow: bool, theme: style.Theme) -> tuple[dict[str, str], list[str], int]:
    """Checkpoint titles, their row labels and the left margin these need."""
    names = style.titles(rows, "checkpoint")
    colours = style.palette(theme)
    labels = [style.coloured(style.short(t, 16 if narrow else 26), colours.muted) for t in names.values()]
    return names, labels, style.text_width(labels) + 10


def depth_ticks(layers: Sequence[str], narrow: bool) -> dict[str, Any]:
    """One tick per layer of neighbouring columns, at its middle, thinned to what fits: numbers alone for blocks."""
    spans: dict[str, list[int]] = {}
    for i, layer in enumerate(layers):
        spans.setdefault(layer, []).append(i)
    fits = 8 if narrow else 24
    kept = list(spans.items())[:: -(-len(spans) // fits)]
    crowded = len(kept) > (5 if narrow else 12)
    texts = [
        style.short(name.removeprefix("block.") if crowded else name.replace("block.", "block "), 8 if narrow else 16)
        for name, _ in kept
    ]
    return {
        "tickmode": "array",
        "tickvals": [float(np.mean(at)) + OFF for _, at in kept],
        "ticktext": texts,
        "tickangle": 0,
    }


def separators(layers: Sequence[str], theme: style.Theme) -> list[dict[str, Any]]:
    """Lines between the columns of two layers; none where every column is a layer of its own."""
    edges = [i - 0.5 for i in range(1, len(layers)) if layers[i] != layers[i - 1]]
    if len(edges) + 1 >= len(layers):
        return []
    line = {"color": style.palette(theme).surface, "width": 2}
    return [{"type": "line", "yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": line} for x in edges]
