"""Do some kinds of weights take more of the checkpoints than others? Mean coefficients by weight type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _style as style
from fwviz.registry import chart

READING = (
    "Dot: the mean coefficient of one kind of weight; line: where the middle 80 % of its single coefficients lie. A "
    "method that treats all weights alike has its dots in one column."
)
LANE = 13  # px per run inside a row


@chart(
    "Weights by type",
    question="Do some kinds of weights take more of the checkpoints than others?",
    lens="weights_by_type",
    reading=READING,
)
def weights_by_type(data: pd.DataFrame, *, theme: style.Theme = "light", narrow: bool = False) -> go.Figure:
    """Mean λ per weight type and run, with the range from the 10 % to the 90 % quantile.

    Args:
        data: rows run × weight type of the lens ``weights_by_type``: ``weight_type``, ``mean``, optionally ``run``,
            ``label``, ``low``, ``high``, ``tensors`` (how many a type has).
    """
    rows = style.take(data, ("mean", "weight_type"), ("mean",))
    if not len(rows):
        return style.empty(
            "No learnt weights: no linear merge is shown.", theme, reading=READING, revision="weights_by_type"
        )
    given = rows["weight_type"]
    order = list(given.cat.categories) if isinstance(given.dtype, pd.CategoricalDtype) else []
    kinds = [
        kind for kind in dict.fromkeys([*map(str, order), *given.astype(str)]) if (given.astype(str) == kind).any()
    ]
    run = rows["run"].astype(str) if "run" in rows else pd.Series("run", index=rows.index)
    rows = rows.assign(
        weight_type=given.astype(str),
        run=run,
        label=rows["label"].astype(str) if "label" in rows else run,
        low=pd.to_numeric(rows["low"], errors="coerce") if "low" in rows else rows["mean"],
        high=pd.to_numeric(rows["high"], errors="coerce") if "high" in rows else rows["mean"],
    )
    runs = list(dict.fromkeys(rows["run"]))
    styles = style.task_styles(runs, theme)
    height = max(26, LANE * len(runs) + 8)
    traces: list[dict[str, Any]] = []
    key = []
    for k, name in enumerate(runs):
        part = rows[rows["run"] == name]
        lane = ((k + 0.5) / len(runs) - 0.5) * 0.7
        at = np.array([kinds.index(kind) for kind in part["weight_type"]], dtype=float) + lane
        mean = part["mean"].to_numpy(dtype=float)
        low, high = (np.where(np.isfinite(part[end]), part[end], mean).astype(float) for end in ("low", "high"))
        title = str(part["label"].iloc[0])
        key.append(style.coloured(f"● {style.short(title, 16 if narrow else 30)}", styles[name].colour))
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "range",
                "x": style.f4(np.column_stack([low, high, np.full(len(at), np.nan)]).ravel()),
                "y": style.f4(np.repeat(at, 3)),
                "line": {"color": styles[name].colour, "width": 2},
                "opacity": 0.45,
                "hoverinfo": "skip",
            }
        )
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": style.safe(title),
                "x": style.f4(mean),
                "y": style.f4(at),
                "marker": {
                    "size": 9,
                    "color": styles[name].colour,
                    "line": {"width": 1.5, "color": style.palette(theme).surface},
                },
                "customdata": [name] * len(part),
                "hovertext": [
                    f"<b>{style.safe(title)}</b>, {style.safe(kind)}:<br>mean coefficient {style.number(value)};<br>"
                    f"the middle 80 % from {style.number(a)} to {style.number(b)}."
                    for kind, value, a, b in zip(part["weight_type"], mean, low, high, strict=True)
                ],
                "hovertemplate": "%{hovertext}<extra></extra>",
                "meta": style.names("run"),
            }
        )
    every = np.append(rows[["mean", "low", "high"]].to_numpy(dtype=float).ravel(), 0.0)
    every = every[np.isfinite(every)]
    pad = 0.06 * ((float(every.max()) - float(every.min())) or 1.0)
    labels = [style.short(kind, 20) for kind in kinds]
    colours = style.palette(theme)
    # Names that do not fit beside one another stand below one another.
    per_line = 1 if narrow else 3
    lines = [" &nbsp; ".join(key[i : i + per_line]) for i in range(0, len(key), per_line)]
    top = 12 + 15 * len(lines)
    base = style.layout(
        theme,
        height * len(kinds) + top + 42,
        summary=_summary(rows, runs),
        reading=READING,
        revision="weights_by_type",
        margin=(style.text_width(labels) + 12, 14, top, 42),
        narrow=narrow,
    )
    changes = {
        "xaxis": style.axis(
            theme,
            range=[float(every.min()) - pad, float(every.max()) + pad],
            zeroline=True,
            zerolinecolor=colours.zero,
            nticks=5 if narrow else 9,
        ),
        "yaxis": style.axis(
            theme,
            tickmode="array",
            tickvals=list(range(len(kinds))),
            ticktext=labels,
            range=[len(kinds) - 0.5, -0.5],
            showgrid=False,
            fixedrange=True,
            ticklabelstandoff=6,
        ),
        "annotations": [
            style.note("<br>".join(lines), theme, align="left", yshift=4),
            style.note(
                "mean coefficient λ" + ("" if narrow else " (1 = all of a checkpoint's change)"),
                theme,
                y=0,
                yanchor="top",
                yshift=-22,
            ),
        ],
        "shapes": [
            {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": i + 0.5,
                "y1": i + 0.5,
                "line": {"color": colours.grid, "width": 1},
            }
            for i in range(len(kinds) - 1)
        ],
    }
    return style.figure(traces, base | changes)


def _summary(rows: pd.DataFrame, runs: list[str]) -> str:
    said = []
    for run in runs:
        part = rows[rows["run"] == run]
        most, least = part.loc[part["mean"].idxmax()], part.loc[part["mean"].idxmin()]
        if np.isclose(most["mean"], least["mean"]):
            said.append(f"{part['label'].iloc[0]}: {style.number(float(most['mean']))} in every kind")
            continue
        said.append(
            f"{part['label'].iloc[0]}: most in {most['weight_type']} ({style.number(float(most['mean']))}), least in "
            f"{least['weight_type']} ({style.number(float(least['mean']))})"
        )
    return f"Mean coefficient by kind of weight. {style.listed(said, 4)}."
