"""At which frequencies do the checkpoints get in each other's way? Variance of the amplitudes, before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _spectral as spectral
from fwviz.charts import _style as style
from fwviz.registry import chart

READING = (
    "Height: how much the amplitudes of the checkpoints vary at each frequency. Interference is its mean over all "
    "frequencies and matrices. Orange is what the high-pass filter removes, blue what it leaves."
)


@chart(
    "Interference by frequency",
    question="At which frequencies do the checkpoints get in each other's way?",
    lens="spectrum_variance",
    reading=READING,
)
def spectrum_variance(data: pd.DataFrame, *, theme: style.Theme = "light", narrow: bool = False) -> go.Figure:
    """Variance over the checkpoints per ring of radial frequency, split at the cutoff, with the interference in words.

    Args:
        data: one row per ring of the lens ``spectrum_variance``: ``frequency``, ``variance``, optionally ``low``,
            ``high``, ``cutoff``, ``coefficients``, ``interference``, ``interference_filtered``, ``ratio``,
            ``energy_kept``, ``checkpoints``.
    """
    rows = style.take(data, ("variance", "frequency"), ("variance", "frequency"))
    if not len(rows):
        return style.empty(
            "No variance yet: it needs two checkpoints.", theme, reading=READING, revision="spectrum_variance"
        )
    rows = rows.sort_values("frequency", kind="stable").drop_duplicates("frequency").reset_index(drop=True)
    colours = style.palette(theme)
    cutoff = spectral.cutoff_of(rows)
    x, y = rows["frequency"].to_numpy(dtype=float), rows["variance"].to_numpy(dtype=float)
    edges = rows["low"].to_numpy(dtype=float) if "low" in rows else x
    count = rows["coefficients"].to_numpy(dtype=float) if "coefficients" in rows else np.full(len(rows), np.nan)
    removed = (rows["high"].to_numpy(dtype=float) if "high" in rows else x) <= (0.0 if cutoff is None else cutoff)
    # A ring that the cutoff cuts through counts as kept: most of its coefficients lie at its outer side.
    width = np.diff(np.append(edges, 2 * x[-1] - edges[-1] if "low" in rows else x[-1] + 0.03))
    traces: list[dict[str, Any]] = [
        {
            "type": "bar",
            "name": "variance",
            "x": style.f4(x),
            "y": style.f4(y),
            "width": style.f4(np.maximum(width, 0.004)),
            "marker": {
                "color": [style.alpha(colours.unwanted if gone else colours.wanted, 0.75) for gone in removed],
                "line": {"width": 0},
            },
            "hovertext": [
                f"<b>ρ = {a:.2f}</b>, {'removed' if gone else 'kept'}:<br>variance {style.number(v, False)} (units of "
                f"the weights²)" + (f"<br>over {int(c)} coefficients" if np.isfinite(c) else "")
                for a, v, c, gone in zip(x, y, count, removed, strict=True)
            ],
            "hovertemplate": "%{hovertext}<extra></extra>",
        }
    ]
    base = style.layout(
        theme,
        300,
        summary=_summary(rows, x, y, cutoff),
        reading=READING,
        revision="spectrum_variance",
        margin=(66, 14, 44, 42),
        narrow=narrow,
    )
    changes = {
        "bargap": 0,
        "xaxis": spectral.frequency_axis(theme, narrow),
        "yaxis": style.axis(
            theme,
            rangemode="tozero",
            nticks=5,
            exponentformat="power",
            range=[0, 1.08 * (float(y.max()) or 1.0)],
        ),
        "annotations": [
            style.note(_headline(rows, theme, narrow), theme, yshift=22),
            style.note("variance between checkpoints (units of the weights²)", theme, yshift=5),
            style.note(spectral.FOOT, theme, y=0, yanchor="top", yshift=-22),
            *spectral.cutoff_note(cutoff, theme),
        ],
        "shapes": spectral.cutoff_shapes(cutoff, theme),
    }
    return style.figure(traces, base | changes)


def _scalars(rows: pd.DataFrame) -> tuple[float, float, float] | None:
    """Interference before and after, and the mean share of energy kept; None where the table lacks them."""
    if not {"interference", "interference_filtered", "energy_kept"} <= {*rows}:
        return None
    before, after, energy = (
        float(pd.to_numeric(rows[name], errors="coerce").iloc[0])
        for name in ("interference", "interference_filtered", "energy_kept")
    )
    return (before, after, energy) if np.isfinite([before, after, energy]).all() else None


def _headline(rows: pd.DataFrame, theme: style.Theme, narrow: bool) -> str:
    found = _scalars(rows)
    if found is None:
        return ""
    before, after, energy = found
    ratio = after / before if before > 0 else 1.0
    left = style.coloured(style.percent(ratio, 0), style.palette(theme).wanted, bold=True)
    if narrow:
        return f"interference left {left} {style.DOT} energy left {style.percent(energy, 0)}"
    return (
        f"<b>interference</b> {style.number(before, False)} → {style.number(after, False)}: {left} left, with "
        f"{style.percent(energy, 0)} of the energy"
    )


def _summary(rows: pd.DataFrame, x: np.ndarray, y: np.ndarray, cutoff: float | None) -> str:
    peak = float(x[int(y.argmax())])
    said = f"The checkpoints differ most at radial frequency {peak:.2f}"
    found = _scalars(rows)
    if found is None or cutoff is None:
        return said + "."
    before, after, energy = found
    ratio = style.percent(after / before if before > 0 else 1.0, 0)
    return (
        f"{said}; a high-pass filter at {cutoff:g} leaves {ratio} of the interference "
        f"({style.number(before, False)} before) and {style.percent(energy, 0)} of the energy."
    )
