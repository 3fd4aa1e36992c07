"""Calibration loss and accuracy over the one global scale of a merge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _style as style
from fwviz.registry import chart

READING = (
    "Each curve is one method whose merged task vector is taken more and more strongly. The dot is the scale that the "
    "search took: the lowest calibration loss above, which need not be the highest accuracy below."
)
UPPER, LOWER = 0.56, 0.44  # where the two panels meet


@chart("Scale searched", question="How far should the merged task vector reach?", lens="scale_curve", reading=READING)
def scale_curve(data: pd.DataFrame, *, theme: style.Theme = "light", narrow: bool = False) -> go.Figure:
    """Two panels over the scale, one curve per run: calibration loss in nats, and mean accuracy where it was judged.

    Args:
        data: rows run × scale of the lens ``scale_curve``: ``label``, ``scale``, ``loss``, optionally ``accuracy`` in
            [0, 1], ``chosen`` and ``run`` (tells runs of one label apart).
    """
    rows = style.take(data, ("label", "scale", "loss"), ("scale", "loss"))
    if not len(rows):
        message = "No run has searched its scale: set scale_search to calibration."
        return style.empty(message, theme, reading=READING, revision="scale_curve")
    rows = rows.assign(
        run=(rows["run"] if "run" in rows else rows["label"]).astype(str),
        label=rows["label"].astype(str),
        accuracy=pd.to_numeric(rows["accuracy"], errors="coerce") if "accuracy" in rows else np.nan,
        chosen=style.flag(rows, "chosen"),
    ).drop_duplicates(["run", "scale"])
    names = dict(zip(rows["run"], rows["label"], strict=True))
    styles = style.task_styles(names, theme)
    judged = bool(np.isfinite(rows["accuracy"].to_numpy(dtype=float)).any())
    traces: list[dict[str, Any]] = []
    for run, part in rows.sort_values("scale", kind="stable").groupby("run", sort=False):
        for axis, column in (("y", "loss"), ("y2", "accuracy")):
            known = part[np.isfinite(part[column].to_numpy(dtype=float))]
            if len(known):
                traces.append(_curve(known, column, axis, names[str(run)], styles[str(run)]))
    most = 3 if narrow else 8
    key = "  ".join(style.coloured(f"● {style.short(names[n], 16)}", styles[n].colour) for n in [*names][:most])
    notes = [
        style.note("<b>calibration loss</b> (nats)", theme, y=1, yshift=4),
        style.note("scale", theme, x=1, xanchor="right", y=0, yanchor="top", yshift=-22),
        style.note(key + "  …" * (len(names) > most), theme, y=0, yanchor="top", yshift=-40),
    ]
    if judged:
        notes.append(style.note("<b>accuracy</b> (validation, mean of tasks)", theme, y=LOWER, yshift=4))
    base = style.layout(
        theme,
        380 if judged else 260,
        summary=_summary(rows, names),
        reading=READING,
        revision="scale_curve",
        margin=(48, 20, 28, 62),
        narrow=narrow,
    )
    reach = float(rows["scale"].max()) or 1.0
    changes: dict[str, Any] = {
        "xaxis": style.axis(theme, range=[0.0, 1.04 * reach], anchor="y2" if judged else "y"),
        "yaxis": style.axis(theme, domain=[UPPER if judged else 0, 1], nticks=5),
        "annotations": notes,
    }
    if judged:
        changes["yaxis2"] = style.axis(theme, domain=[0, LOWER], nticks=4, tickformat=".0%", anchor="x")
    return style.figure(traces, base | changes)


def _curve(part: pd.DataFrame, column: str, axis: str, name: str, look: style.TaskStyle) -> dict[str, Any]:
    chosen = part["chosen"].to_numpy(dtype=bool)
    shown = [style.number(x, signed=False) if column == "loss" else style.percent(x) for x in part[column]]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": style.short(name, 30),
        "x": style.f4(part["scale"]),
        "y": style.f4(part[column]),
        "yaxis": axis,
        "line": {"color": look.colour, "width": 2.25, "dash": look.dash},
        "marker": {"color": look.colour, "size": [10 if taken else 4 for taken in chosen]},
        "hovertext": [
            f"<b>{style.short(name, 40)}</b><br>scale {style.number(scale, signed=False)}"
            f"<br>{'calibration loss' if column == 'loss' else 'accuracy'} {value}{' nats' if column == 'loss' else ''}"
            f"{'<br>taken' if taken else ''}"
            for scale, value, taken in zip(part["scale"], shown, chosen, strict=True)
        ],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }


def _summary(rows: pd.DataFrame, names: dict[str, str]) -> str:
    lowest = rows.loc[rows.groupby("run", sort=False)["loss"].idxmin()]
    found = [
        f"{style.short(names[run], 24)} at scale {style.number(scale, signed=False)}"
        for run, scale in zip(lowest["run"], lowest["scale"], strict=True)
    ]
    return f"Lowest calibration loss: {style.listed(found)}."
