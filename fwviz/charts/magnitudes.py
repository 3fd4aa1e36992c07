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
    "Box: the middle half of all changes in a layer, whiskers from 5 % to 95 %, over all checkpoints; dots: the median "
    "of each checkpoint. One global scale fits badly where the layers differ much."
)
MOST_DOTS = 4000
QUANTILES = ("q05", "q25", "median", "q75", "q95")


@chart("Size of the changes", question="Which layers did fine-tuning change most?", lens="magnitudes", reading=READING)
def magnitudes(data: pd.DataFrame, *, theme: style.Theme = "light", narrow: bool = False) -> go.Figure:
    """Boxes of |τ| per layer or tensor on a logarithmic axis, in units of the weights.

    Args:
        data: rows group × checkpoint of the lens ``magnitudes``: ``group``, ``checkpoint`` ("all" for the boxes),
            ``median``, ``q05``, ``q25``, ``q75``, ``q95``, optionally ``layer``, ``checkpoint_title``.
    """
    rows = style.take(data, ("median", *QUANTILES, "group", "checkpoint"), QUANTILES)
    if not len(rows):
        return style.empty("No task vectors measured yet.", theme, reading=READING, revision="magnitudes")
    rows = rows.assign(group=rows["group"].astype(str), checkpoint=rows["checkpoint"].astype(str))
    groups = list(dict.fromkeys(rows["group"]))
    layers = dict(zip(rows["group"], rows["layer"].astype(str), strict=True)) if "layer" in rows else {}
    shown_layers = [layers.get(group, group) for group in groups]
    place = {group: i for i, group in enumerate(groups)}
    colours = style.palette(theme)
    numbers = rows[list(QUANTILES)].to_numpy(dtype=float)
    positive = numbers[numbers > 0]
    # Zeros have no place on a logarithmic axis: what was mostly left as it was is not drawn, low ends stop at the axis.
    floor = float(positive.min()) if positive.size else 0.0
    if (rows["median"] > 0).any():
        rows[list(QUANTILES)] = np.maximum(numbers, floor)
        rows = rows[numbers[:, QUANTILES.index("median")] > 0]
    unchanged = len(groups) - rows["group"].nunique()
    pooled = rows[rows["checkpoint"] == "all"]
    single = rows[rows["checkpoint"] != "all"]
    traces: list[dict[str, Any]] = []
    if len(single) > MOST_DOTS:  # then the extremes of each group say as much
        ends = single.groupby("group", sort=False)["median"].agg(["idxmin", "idxmax"])
        single = single.loc[sorted({*ends["idxmin"], *ends["idxmax"]})]
    if len(single):
        few = len(single) <= 600
        x = single["group"].map(place).to_numpy(dtype=float)
        # Checkpoints stand side by side, in their order, so that dots of one layer do not hide one another.
        order = {name: i for i, name in enumerate(dict.fromkeys(single["checkpoint"]))}
        offset = (single["checkpoint"].map(order).to_numpy(dtype=float) + 0.5) / len(order) - 0.5
        names = style.titles(single, "checkpoint")
        traces.append(
            {
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
        )
    if len(pooled):
        at = pooled["group"].map(place).to_numpy(dtype=float)
        traces.append(
            {
                "type": "box",
                "name": "all checkpoints",
                "x": style.f4(at),
                "lowerfence": style.f4(pooled["q05"]),
                "q1": style.f4(pooled["q25"]),
                "median": style.f4(pooled["median"]),
                "q3": style.f4(pooled["q75"]),
                "upperfence": style.f4(pooled["q95"]),
                "width": 0.8,
                "whiskerwidth": 0.4,
                "line": {"color": colours.wanted, "width": 1.5 if len(groups) <= 60 else 1},
                "fillcolor": style.alpha(colours.wanted, 0.18),
                "hoverinfo": "skip",
            }
        )
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "median",
                "x": style.f4(at),
                "y": style.f4(pooled["median"]),
                "marker": {"size": 9 if len(groups) <= 60 else 4, "color": colours.wanted, "opacity": 0.01},
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
        )
    base = style.layout(
        theme,
        320,
        summary=_summary(pooled if len(pooled) else single, len(groups)),
        reading=READING,
        revision="magnitudes",
        margin=(58, 12, 26, 40),
        narrow=narrow,
    )
    logarithmic = bool((rows["median"] > 0).any())
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


def _summary(rows: pd.DataFrame, count: int) -> str:
    middle = rows.groupby("group", sort=False)["median"].median()
    most, least = middle.idxmax(), middle.idxmin()
    return (
        f"Of {count} groups of weights {most} changed most (median {style.number(float(middle[most]), False)}), "
        f"{least} least ({style.number(float(middle[least]), False)})."
    )
