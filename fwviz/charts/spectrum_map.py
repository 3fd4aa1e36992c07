"""At which frequencies did fine-tuning change this weight matrix? Its spectrum as a picture."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _spectral as spectral
from fwviz.charts import _style as style
from fwviz.registry import chart

READING = (
    "Middle: changes that are alike over the whole matrix; rim: changes from one entry to the next. Stronger colour: a "
    "larger amplitude. The veiled disc inside the circle is what the high-pass filter removes."
)


@chart(
    "Spectrum of a weight matrix",
    question="At which frequencies did fine-tuning change this weight matrix?",
    lens="spectrum_map",
    reading=READING,
)
def spectrum_map(data: pd.DataFrame, *, theme: style.Theme = "light", narrow: bool = False) -> go.Figure:
    """Log-amplitude over (f_x, f_y) in units of the Nyquist frequency, with the circle ρ = cutoff.

    Args:
        data: rows cell of the lens ``spectrum_map``: ``fy``, ``fx``, ``amplitude`` (log₁₀), optionally ``cutoff``,
            ``tensor``, ``height``, ``width``, ``checkpoint``, ``checkpoint_title``.
    """
    rows = style.take(data, ("amplitude", "fy", "fx"), ("amplitude", "fy", "fx"))
    if not len(rows):
        return style.empty("No spectrum yet: pick a weight matrix.", theme, reading=READING, revision="spectrum_map")
    colours = style.palette(theme)
    table = rows.pivot_table(index="fy", columns="fx", values="amplitude", aggfunc="first").sort_index()
    table = table.sort_index(axis=1)
    values = table.to_numpy(dtype=float)
    # A few dead frequencies must not wash the rest out.
    low, high = (float(v) for v in np.nanquantile(values, (0.01, 1.0)))
    scale = [colours.diverging[i] for i in (3, 2, 1, 0)]
    traces: list[dict[str, Any]] = [
        {
            "type": "heatmap",
            "name": "amplitude",
            "x": style.f4(table.columns),
            "y": style.f4(table.index),
            "z": style.f4(values),
            "text": style.f4(10.0**values),
            "zmin": low,
            "zmax": high if high > low else low + 1,
            "colorscale": [[i / 3, colour] for i, colour in enumerate(scale)],
            "showscale": False,
            "hoverongaps": False,
            "hovertemplate": "f<sub>x</sub> %{x:.2f}, f<sub>y</sub> %{y:.2f} of the finest<br>amplitude "
            "%{text:.2g} (units of the weights)<extra></extra>",
            "meta": style.names(of={"checkpoint": str(rows["checkpoint"].iloc[0])}) if "checkpoint" in rows else None,
        }
    ]
    cutoff = spectral.cutoff_of(rows)
    shapes = []
    if cutoff is not None and cutoff > 0:
        radius = cutoff * math.sqrt(2)
        disc = {"type": "circle", "x0": -radius, "x1": radius, "y0": -radius, "y1": radius}
        line = {"color": colours.unwanted, "width": 2}
        shapes.append(disc | {"line": line, "fillcolor": style.alpha(colours.unwanted, 0.16)})
    title = _name(rows, "checkpoint_title", "checkpoint")
    tensor = _name(rows, "tensor")
    size = f" ({int(rows['height'].iloc[0])} × {int(rows['width'].iloc[0])})" if {"height", "width"} <= {*rows} else ""
    words = style.short(tensor.replace("vision_model.encoder.", ""), 34 if narrow else 70)
    blocks = "".join(style.coloured("■", colour) for colour in scale)
    side = 300 if narrow else 380
    top = 44
    base = style.layout(
        theme,
        side + top + 42,
        summary=_summary(rows, title, tensor, cutoff),
        reading=READING,
        revision="spectrum_map",
        margin=(52, 14, top, 42),
        narrow=narrow,
    )
    ends = (_power(low), _power(high))
    changes = {
        "xaxis": style.axis(
            theme, range=[-1.02, 1.02], dtick=0.5, showgrid=False, constrain="domain", scaleanchor="y", scaleratio=1
        ),
        "yaxis": style.axis(theme, range=[-1.02, 1.02], dtick=0.5, showgrid=False, constrain="domain"),
        "annotations": [
            style.note(f"<b>{style.short(title, 30)}</b> {style.DOT} {words}{size}", theme, yshift=22),
            style.note(f"amplitude {ends[0]} {blocks} {ends[1]}", theme, yshift=5),
            style.note("frequency along a row (1 = finest)", theme, y=0, yanchor="top", yshift=-22),
        ],
        "shapes": shapes,
    }
    return style.figure(traces, base | changes)


def _name(rows: pd.DataFrame, *columns: str) -> str:
    return next((str(rows[column].iloc[0]) for column in columns if column in rows), "")


def _power(exponent: float) -> str:
    return style.number(10.0**exponent, signed=False) if abs(exponent) < 300 else "0"


def _summary(rows: pd.DataFrame, title: str, tensor: str, cutoff: float | None) -> str:
    radius = np.hypot(rows["fy"].to_numpy(dtype=float), rows["fx"].to_numpy(dtype=float)) / math.sqrt(2)
    power = 10.0 ** (2 * (rows["amplitude"].to_numpy(dtype=float) - float(rows["amplitude"].max())))
    edge = 0.5 if cutoff is None else cutoff
    share = float(power[radius < edge].sum() / power.sum())
    what = f"{tensor} of {title}" if tensor else "the weight matrix"
    return (
        f"Spectrum of {what}: about {style.percent(share, 0)} of the energy lies below the radial frequency {edge:g}."
    )
