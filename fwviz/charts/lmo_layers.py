"""Which checkpoint does each layer want? The table behind the layer-wise oracle."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _matrix as matrix
from fwviz.charts import _style as style
from fwviz.registry import chart

READING = (
    "Blue: moving this layer to that checkpoint promises a lower loss; orange: a higher one. Diamond: the "
    "checkpoint the layer-wise oracle picks for the layer."
)
TOP = 26  # px above the map, for the colour key
COUNTS = 3  # the annotation that counts what is picked in the first row


@chart(
    "Relevance layer by layer",
    question="Does every layer want the same checkpoint?",
    lens="lmo_layers",
    reading=READING,
)
def lmo_layers(
    data: pd.DataFrame,
    *,
    theme: style.Theme = "light",
    narrow: bool = False,
    scale: Literal["shared", "layer"] = "shared",
) -> go.Figure:
    """Heat-map of ⟨∇_g ℓ(θ), θ_i,g − θ_g⟩: layers or tensors from input to output, one row per checkpoint.

    Args:
        data: rows group × checkpoint of the lens ``lmo_layers``: ``group``, ``checkpoint``, ``score`` (nats for a full
            step of that group alone), optionally ``group_index``, ``layer``, ``chosen``, ``checkpoint_title``.
        scale: one colour scale for all layers, or each layer by its own largest score, which shows its choice even
            where its gradient is small.
    """
    rows = style.take(data, ("group", "checkpoint", "score"), ("score",))
    if not len(rows):
        return style.empty("No layer-wise scores yet.", theme, reading=READING, revision="lmo_layers")
    groups = list(dict.fromkeys(rows["group"].astype(str)))
    place = {group: i for i, group in enumerate(groups)}
    rows = rows.assign(
        checkpoint=rows["checkpoint"].astype(str),
        column=rows["group"].astype(str).map(place),
        chosen=style.flag(rows, "chosen"),
    )
    layers = _layers(rows, groups)
    names, labels, left = matrix.span_of_labels(rows, narrow, theme)
    values = matrix.columns(rows, list(names), "column", "score")
    drawn = values
    if scale == "layer":
        drawn = values / np.array([style.limit(values[:, j]) for j in range(values.shape[1])])
    # A few extreme cells must not turn the rest grey: saturate at the 99th percentile of many cells.
    top = style.limit(drawn, 0.99 if drawn.size > 200 else 1.0)
    unit = " nats" if scale == "shared" else " of the layer's largest"
    hover = (
        "Moving only <b>%{x}</b> all the way to <b>%{y}</b><br>promises a loss change of "
        f"%{{z:+.3g}}{unit}.<extra></extra>"
    )
    traces: list[dict[str, Any]] = [
        matrix.heat(
            drawn,
            [style.safe(group) for group in groups],
            theme,
            top=top,
            names=list(names),
            hover=hover,
            select="cell",
            columns={"layer": layers},
        )
    ]
    picked = rows[rows["chosen"]]
    if len(picked):
        cell = (250 if narrow else 1000) / len(groups)
        traces.append(
            matrix.diamonds(
                [style.safe(group) for group in picked["group"]],
                picked["checkpoint"],
                theme,
                float(np.clip(cell * 0.6, 3.5, 9)),
                picked["score"],
                [f"<b>{style.safe(names[name])}</b>" for name in picked["checkpoint"]],
                "<b>%{x}</b> picks %{hovertext}",
                [layers[column] for column in picked["column"]],
                {"cells": 0, "told": [f"<b>{style.safe(title)}</b>" for title in names.values()], "tally": COUNTS}
                if scale == "shared"
                else None,
            )
        )
    tally = picked["checkpoint"].value_counts()
    counted = [f"{tally[name]}×" if name in tally else "" for name in names]
    base = style.layout(
        theme,
        matrix.ROW * len(names) + TOP + 40,
        summary=_summary(tally, names, len(groups)),
        reading=READING,
        revision=f"lmo_layers {len(groups)}",
        margin=(left, 50 if any(counted) else 12, TOP, 40),
        narrow=narrow,
    )
    changes = {
        "xaxis": style.axis(
            theme,
            type="category",
            **matrix.depth_ticks(layers, narrow),
            showgrid=False,
            range=[-0.5, len(groups) - 0.5],
        ),
        "yaxis": matrix.row_axis(labels, theme),
        "annotations": [
            matrix.key(top, " nats" if scale == "shared" else "", theme, narrow),
            style.note("input → output", theme, y=0, yanchor="top", yshift=-22),
            *matrix.counts(counted, theme, "picked", narrow),
        ],
        "shapes": matrix.separators(layers, theme),
    }
    return style.figure(traces, base | changes)


def _layers(rows: pd.DataFrame, groups: list[str]) -> list[str]:
    """The layer each group belongs to; the group itself where the table does not say."""
    if "layer" not in rows:
        return groups
    found = dict(zip(rows["group"].astype(str), rows["layer"].astype(str), strict=True))
    return [found[group] for group in groups]


def _summary(tally: pd.Series, names: dict[str, str], count: int) -> str:
    if not len(tally):
        return f"Scores of {len(names)} checkpoints over {count} layers."
    parts = [f"{names[name]} in {times}" for name, times in tally.items()]
    return f"Of {count} layers the oracle picks {style.listed(parts, 5)}."
