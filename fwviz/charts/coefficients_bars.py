"""How much of every checkpoint is in the merge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _style as style
from fwviz.registry import chart

READING = (
    "Bar: how much of each checkpoint's task vector is in the merged model (1 = all of it). Small dots: single "
    "layers, pale near the input, dark near the output."
)
ROW = 21


@chart(
    "What is in the merge",
    question="How much of each checkpoint did the merge take?",
    lens="coefficients",
    reading=READING,
)
def coefficients_bars(data: pd.DataFrame, *, theme: style.Theme = "light", narrow: bool = False) -> go.Figure:
    """Coefficients λ of one frame: the mean over groups weighted by their parameters, each group as a dot.

    Args:
        data: rows group × checkpoint of the lens ``coefficients``: ``group``, ``checkpoint``, ``coefficient``,
            optionally ``group_size`` (parameters), ``task`` (the checkpoint's own, if it is evaluated),
            ``checkpoint_title``.
    """
    rows = style.take(data, ("group", "checkpoint", "coefficient"), ("coefficient",))
    if not len(rows):
        return style.empty(
            "No coefficients: this merge is not linear.", theme, reading=READING, revision="coefficients_bars"
        )
    rows = rows.assign(checkpoint=rows["checkpoint"].astype(str), group=rows["group"].astype(str))
    names = style.titles(rows, "checkpoint")
    groups = list(dict.fromkeys(rows["group"]))
    size = pd.to_numeric(rows["group_size"], errors="coerce").fillna(1.0) if "group_size" in rows else 1.0
    rows = rows.assign(size=size, row=rows["checkpoint"].map({name: i for i, name in enumerate(names)}))
    weighted = (rows["coefficient"] * rows["size"]).groupby(rows["checkpoint"], sort=False).sum()
    means = weighted / rows.groupby("checkpoint", sort=False)["size"].sum()
    own = {}
    if "task" in rows:
        known = rows[rows["task"].notna() & (rows["task"] != "")]
        own = dict(zip(known["checkpoint"], known["task"].astype(str), strict=True))
    colours = style.palette(theme)
    # The table knows the tasks in their order, so that a checkpoint wears its task's colour as everywhere else.
    order = (
        list(rows["task"].cat.categories)
        if "task" in rows and isinstance(rows["task"].dtype, pd.CategoricalDtype)
        else own.values()
    )
    styles = style.task_styles(order, theme)
    shades = [styles[own[name]].colour if name in own else colours.quiet for name in names]
    labels = [
        style.coloured(
            style.short(title, 16 if narrow else 26), styles[own[n]].colour if n in own else colours.muted, n in own
        )
        for n, title in names.items()
    ]
    values = means.reindex(list(names)).to_numpy(dtype=float)
    spread = rows.groupby("checkpoint", sort=False)["coefficient"].agg(["min", "max"]).reindex(list(names))
    at = np.arange(len(names), dtype=np.int16)
    # Numbers that are drawn anyway are not sent once more as words: the page writes them.
    least, most = ([style.number(v) for v in spread[end]] for end in ("min", "max"))
    over = f"<br>on average; from %{{customdata[1]}} to %{{customdata[2]}} over {len(groups)} groups"
    traces: list[dict[str, Any]] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": "coefficient",
            "x": style.f4(values),
            "y": at,
            "marker": {"color": shades, "opacity": 0.85, "cornerradius": 2, "line": {"width": 0}},
            "customdata": [list(row) for row in zip(names, least, most, strict=True)],
            "hovertext": [style.safe(title) for title in names.values()],
            "hovertemplate": "<b>%{hovertext}</b> enters with coefficient %{x:+.3~g}"
            + over * (len(groups) > 1)
            + ".<extra></extra>",
            "meta": style.names("checkpoint"),
        }
    ]
    if len(groups) > 1:
        depth = rows["group"].map({group: i / (len(groups) - 1) for i, group in enumerate(groups)})
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "layers",
                "x": style.f4(rows["coefficient"]),
                "y": rows["row"].to_numpy(np.int16),
                "marker": {
                    "size": 5 if len(groups) <= 40 else 4,
                    "opacity": 0.8,
                    "color": style.f4(depth),
                    "colorscale": [[0, style.palette(theme).quiet], [1, colours.ink]],
                    "line": {"width": 0.5, "color": colours.surface},
                },
                "customdata": [[row.checkpoint, row.group, style.short(row.group, 48)] for row in rows.itertuples()]
                if len(rows) <= 600
                else None,
                "hovertemplate": "%{customdata[2]}: %{x:+.3g}<extra></extra>"
                if len(rows) <= 600
                else "%{x:+.3g}<extra></extra>",
                "meta": style.names("cell", keys=("checkpoint", "layer")),
            }
        )
    total = float(np.nansum(values))
    everything = np.append(rows["coefficient"].to_numpy(dtype=float), 0.0)
    low, high = float(everything.min()), float(everything.max())
    pad = 0.06 * ((high - low) or 1.0)
    notes = [
        style.note(
            style.number(value),
            theme,
            x=1,
            xanchor="left",
            xshift=8,
            yref="y",
            y=i,
            yanchor="middle",
            yshift=0,
            font={"size": style.SMALL, "color": colours.ink if name in own else colours.muted},
        )
        for i, (name, value) in enumerate(zip(names, values, strict=True))
        if abs(value) > 5e-4
    ]
    notes.append(
        style.note(
            f"coefficient λ {style.DOT} sum {style.number(total, signed=False)}", theme, y=0, yanchor="top", yshift=-22
        )
    )
    base = style.layout(
        theme,
        ROW * len(names) + 10 + 42,
        summary=_summary(names, values, total),
        reading=READING,
        revision="coefficients_bars",
        margin=(style.text_width(labels) + 10, 58, 10, 42),
        narrow=True,
    )
    changes = {
        "bargap": 0.36,
        "xaxis": style.axis(
            theme,
            range=[low - (pad if low < 0 else 0.01 * pad), high + pad],
            nticks=4 if narrow else 8,
            zeroline=True,
            zerolinecolor=colours.zero,
            fixedrange=True,
        ),
        "yaxis": style.axis(
            theme,
            tickmode="array",
            tickvals=at.tolist(),
            ticktext=labels,
            range=[len(names) - 0.5, -0.5],
            showgrid=False,
            ticklabelstandoff=6,
            fixedrange=True,
            automargin="left",
        ),
        "annotations": notes,
    }
    return style.figure(traces, base | changes)


def _summary(names: dict[str, str], values: np.ndarray, total: float) -> str:
    order = np.argsort(-np.abs(values), kind="stable")[:3]
    titles = list(names.values())
    largest = style.listed([f"{titles[i]} {style.number(float(values[i]))}" for i in order])
    return f"Largest of {len(names)} coefficients: {largest}; they sum to {style.number(total, signed=False)}."
