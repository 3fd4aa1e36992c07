"""Which layers did fine-tuning change most? The spread of |τ| from input to output."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _matrix as matrix
from fwviz.charts import _style as style
from fwviz.registry import chart

READING = (
    "The wider a violin, the more weights of that layer changed by that much, over all checkpoints; bar: the middle "
    "half, line: the median. Dots: the median of each checkpoint. One global scale fits badly where layers differ much."
)
MOST_DOTS = 4000
MOST_CORNERS = 4000  # of all outlines together: more than one per pixel says nothing more
HALF = 0.44  # half the width of the widest violin, of the distance between two
QUANTILES = ("q05", "q25", "median", "q75", "q95")
SIZES = (*QUANTILES, "change")


@chart("Size of the changes", question="Which layers did fine-tuning change most?", lens="magnitudes", reading=READING)
def magnitudes(data: pd.DataFrame, *, theme: style.Theme = "light", narrow: bool = False) -> go.Figure:
    """Violins of |τ| per layer or tensor on a logarithmic axis, in units of the weights.

    Args:
        data: rows group × checkpoint × size of the lens ``magnitudes``: ``group``, ``checkpoint`` ("all" for the
            violins), ``change`` and ``density`` of the outline, ``median``, ``q05``, ``q25``, ``q75``, ``q95``,
            optionally ``layer``, ``checkpoint_title``.
    """
    rows = style.take(data, ("median", *SIZES, "density", "group", "checkpoint"), (*SIZES, "density"))
    if not len(rows):
        return style.empty("No task vectors measured yet.", theme, reading=READING, revision="magnitudes")
    rows = rows.assign(group=rows["group"].astype(str), checkpoint=rows["checkpoint"].astype(str))
    groups = list(dict.fromkeys(rows["group"]))
    layers = dict(zip(rows["group"], rows["layer"].astype(str), strict=True)) if "layer" in rows else {}
    shown_layers = [layers.get(group, group) for group in groups]
    place = {group: i for i, group in enumerate(groups)}
    colours = style.palette(theme)
    numbers = rows[list(SIZES)].to_numpy(dtype=float)
    positive = numbers[numbers > 0]
    # Zeros have no place on a logarithmic axis: what was mostly left as it was is not drawn, low ends stop at the axis.
    floor = float(positive.min()) if positive.size else 0.0
    logarithmic = bool((rows["median"] > 0).any())
    if logarithmic:
        rows[list(SIZES)] = np.maximum(numbers, floor)
        rows = rows[numbers[:, SIZES.index("median")] > 0]
    unchanged = len(groups) - rows["group"].nunique()
    outlines = rows[rows["checkpoint"] == "all"]
    pooled = outlines.drop_duplicates("group")
    single = rows[rows["checkpoint"] != "all"].drop_duplicates(["group", "checkpoint"])
    traces: list[dict[str, Any]] = []
    if len(pooled):
        traces += _violins(outlines, pooled, place, colours)
    if len(single) > MOST_DOTS:  # then the extremes of each group say as much
        ends = single.groupby("group", sort=False)["median"].agg(["idxmin", "idxmax"])
        single = single.loc[sorted({*ends["idxmin"], *ends["idxmax"]})]
    if len(single):
        traces.append(_dots(single, place, layers, colours))
    if len(pooled):
        traces.append(_middles(pooled, place, layers, colours))
    base = style.layout(
        theme,
        320,
        summary=_summary(pooled if len(pooled) else single, len(groups)),
        reading=READING,
        revision="magnitudes",
        margin=(58, 12, 26, 40),
        narrow=narrow,
    )
    foot = "input → output" + (f" {style.DOT} {unchanged} groups mostly unchanged" if unchanged else "")
    changes = {
        "xaxis": style.axis(
            theme,
            **matrix.depth_ticks(shown_layers, narrow),
            showgrid=False,
            range=[-0.6, len(groups) - 0.4],
        ),
        "yaxis": style.axis(
            theme,
            type="log" if logarithmic else "linear",
            **(
                {"dtick": 1, "exponentformat": "power"} if logarithmic and numbers.max() / floor > 30 else {"nticks": 5}
            ),
        ),
        "annotations": [
            style.note("size of the change |τ| (units of the weights)", theme, yshift=5),
            style.note(foot, theme, y=0, yanchor="top", yshift=-22),
        ],
    }
    return style.figure(traces, base | changes)


def _violins(
    outlines: pd.DataFrame, pooled: pd.DataFrame, place: dict[str, int], colours: style.Palette
) -> list[dict[str, Any]]:
    """All violins as one outline with gaps, and the middle halves as one line with gaps."""
    every = max(1, -(-2 * len(outlines) // MOST_CORNERS))
    widest = float(outlines["density"].max()) or 1.0
    x: list[np.ndarray] = []
    y: list[np.ndarray] = []
    for group, points in outlines.sort_values("change").groupby("group", sort=False):
        keep = np.unique([*range(0, len(points), every), len(points) - 1])
        half = HALF * points["density"].to_numpy(dtype=float)[keep] / widest
        size = points["change"].to_numpy(dtype=float)[keep]
        x += [place[str(group)] - half, place[str(group)] + half[::-1], np.array([np.nan])]
        y += [size, size[::-1], np.array([np.nan])]
    at = pooled["group"].map(place).to_numpy(dtype=float)
    gap = np.full(len(pooled), np.nan)
    few = len(pooled) <= 60
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "all checkpoints",
            "x": style.f4(np.concatenate(x)),
            "y": style.f4(np.concatenate(y)),
            "fill": "toself",
            "fillcolor": style.alpha(colours.wanted, 0.22),
            "line": {"color": colours.wanted, "width": 1},
            "hoverinfo": "skip",
        },
        {
            "type": "scatter",
            "mode": "lines",
            "name": "middle half",
            "x": style.f4(np.column_stack([at, at, gap]).ravel()),
            "y": style.f4(np.column_stack([pooled["q25"], pooled["q75"], gap]).ravel()),
            "line": {"color": colours.wanted, "width": 4 if few else 1.5},
            "opacity": 0.7,
            "hoverinfo": "skip",
        },
    ]


def _dots(
    single: pd.DataFrame, place: dict[str, int], layers: dict[str, str], colours: style.Palette
) -> dict[str, Any]:
    """The median of each checkpoint; they stand side by side, in their order, so that none hides another."""
    few = len(single) <= 600
    x = single["group"].map(place).to_numpy(dtype=float)
    order = {name: i for i, name in enumerate(dict.fromkeys(single["checkpoint"]))}
    offset = (single["checkpoint"].map(order).to_numpy(dtype=float) + 0.5) / len(order) - 0.5
    names = style.titles(single, "checkpoint")
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "one checkpoint",
        "x": style.f4(x + 0.7 * offset),
        "y": style.f4(single["median"]),
        "marker": {"size": 5 if few else 3, "color": colours.muted, "opacity": 0.75, "line": {"width": 0}},
        "customdata": [
            [name, layers.get(group, group), style.short(names[name], 40), style.short(group, 60)]
            for name, group in zip(single["checkpoint"], single["group"], strict=True)
        ]
        if few
        else None,
        "hovertemplate": "<b>%{customdata[2]}</b> in %{customdata[3]}:<br>half of its changes are below "
        "%{y:.3g}.<extra></extra>"
        if few
        else "One checkpoint: median change %{y:.3g}.<extra></extra>",
        "meta": style.names("cell", keys=("checkpoint", "layer")),
    }


def _middles(
    pooled: pd.DataFrame, place: dict[str, int], layers: dict[str, str], colours: style.Palette
) -> dict[str, Any]:
    """The median of all checkpoints of each group, which also carries the hover text."""
    few = len(pooled) <= 60
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "median",
        "x": style.f4(pooled["group"].map(place).to_numpy(dtype=float)),
        "y": style.f4(pooled["median"]),
        "marker": {
            "symbol": "line-ew",
            "size": 14 if few else 4,
            "line": {"color": colours.ink, "width": 2 if few else 1},
        },
        "hovertext": [
            f"<b>{style.short(row.group, 60)}</b>, all checkpoints:<br>median change "
            f"{style.number(row.median, False)}, 90 % between {style.number(row.q05, False)} and "
            f"{style.number(row.q95, False)}."
            for row in pooled.itertuples()
        ],
        "customdata": [layers.get(group, group) for group in pooled["group"]],
        "hovertemplate": "%{hovertext}<extra></extra>",
        "meta": style.names("layer"),
    }


def _summary(rows: pd.DataFrame, count: int) -> str:
    middle = rows.groupby("group", sort=False)["median"].median()
    most, least = middle.idxmax(), middle.idxmin()
    return (
        f"Of {count} groups of weights {most} changed most (median {style.number(float(middle[most]), False)}), "
        f"{least} least ({style.number(float(middle[least]), False)})."
    )
