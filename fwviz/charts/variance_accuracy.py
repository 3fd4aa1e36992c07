"""Do checkpoints that differ more in frequency merge worse? Sub-pools as points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _style as style
from fwviz.registry import chart

READING = (
    "Each dot: some checkpoints picked at random and merged. To the right they differ more in frequency, higher up the "
    "merge keeps more of their accuracy. If interference does the harm, the dots fall from left to right."
)


@chart(
    "Interference and accuracy",
    question="Do checkpoints that differ more in frequency merge worse?",
    lens="variance_accuracy",
    reading=READING,
)
def variance_accuracy(data: pd.DataFrame, *, theme: style.Theme = "light", narrow: bool = False) -> go.Figure:
    """Scatter of frequency variance against normalised accuracy, with Pearson's and Spearman's correlation.

    Args:
        data: one row per sub-pool of the lens ``variance_accuracy``: ``variance``, ``normalised``, optionally
            ``checkpoints`` (ids), ``planned``.
    """
    rows = style.take(data, ("normalised", "variance"), ("normalised", "variance"))
    if not len(rows):
        return style.empty("No sub-pools yet: press Measure.", theme, reading=READING, revision="variance_accuracy")
    colours = style.palette(theme)
    x, y = rows["variance"].to_numpy(dtype=float), rows["normalised"].to_numpy(dtype=float)
    named = rows["checkpoints"].astype(str) if "checkpoints" in rows else pd.Series("", index=rows.index)
    traces: list[dict[str, Any]] = []
    pearson, ranked = correlation(x, y), correlation(_ranks(x), _ranks(y))
    if np.isfinite(pearson):
        slope = pearson * y.std() / x.std()
        ends = np.array([x.min(), x.max()])
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "trend",
                "x": style.f4(ends),
                "y": style.f4(y.mean() + slope * (ends - x.mean())),
                "line": {"color": colours.muted, "width": 1.5, "dash": "dash"},
                "hoverinfo": "skip",
            }
        )
    traces.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "sub-pool",
            "x": style.f4(x),
            "y": style.f4(y),
            "marker": {
                "size": 9 if len(rows) <= 100 else 6,
                "color": colours.wanted,
                "opacity": 0.8,
                "line": {"width": 1, "color": colours.surface},
            },
            "hovertext": [
                f"<b>{style.short(names.replace(' ', ', '), 80)}</b><br>variance {style.number(a, False)} (units of "
                f"the weights²)<br>keeps {style.percent(b)} of the individual accuracy"
                for names, a, b in zip(named, x, y, strict=True)
            ],
            "hovertemplate": "%{hovertext}<extra></extra>",
        }
    )
    planned = int(rows["planned"].iloc[0]) if "planned" in rows and pd.notna(rows["planned"].iloc[0]) else len(rows)
    said = _said(pearson, ranked)
    progress = f"{len(rows)} sub-pools" if len(rows) >= planned else f"{len(rows)} of {planned} sub-pools"
    base = style.layout(
        theme,
        320,
        summary=f"{progress}: {said}.",
        reading=READING,
        revision="variance_accuracy",
        margin=(56, 14, 44, 42),
        narrow=narrow,
    )
    foot = (
        "variance in frequency (units of the weights²)"
        if narrow
        else ("interference: variance of the spectra between the checkpoints (units of the weights²)")
    )
    changes = {
        "xaxis": style.axis(theme, nticks=4 if narrow else 8, exponentformat="power"),
        "yaxis": style.axis(theme, tickformat=".0%", nticks=6),
        "annotations": [
            style.note(f"<b>{progress}</b> {style.DOT} {said}", theme, yshift=22),
            style.note("share of the individual accuracy kept", theme, yshift=5),
            style.note(foot, theme, y=0, yanchor="top", yshift=-22),
        ],
    }
    return style.figure(traces, base | changes)


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's r; NaN for fewer than three points or where one of the two does not vary."""
    if len(x) < 3 or x.std() <= 1e-12 * abs(x).max() or y.std() <= 1e-12 * abs(y).max():
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, ties at their mean."""
    return pd.Series(values).rank().to_numpy(dtype=float)


def _said(pearson: float, ranked: float) -> str:
    if not np.isfinite(pearson):
        return "too few for a correlation"
    return f"correlation {style.number(pearson)} (of ranks {style.number(ranked)})"
