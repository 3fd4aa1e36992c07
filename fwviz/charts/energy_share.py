"""How much of a change is coarse? The share of energy below each frequency."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _spectral as spectral
from fwviz.charts import _style as style
from fwviz.registry import chart

READING = (
    "Each line: the share of a checkpoint's change that is coarser than this frequency. Dashed: random numbers; a line "
    "above it holds more coarse structure than chance. Where the line meets the cutoff is what the filter removes."
)


@chart(
    "Energy below a frequency",
    question="How much of what fine-tuning changed is coarse?",
    lens="spectrum_profile",
    reading=READING,
)
def energy_share(data: pd.DataFrame, *, theme: style.Theme = "light", narrow: bool = False) -> go.Figure:
    """Cumulative share of Σ A² over the radial frequency, one line per checkpoint, beside that of random numbers.

    Args:
        data: rows checkpoint × ring of the lens ``spectrum_profile``: ``checkpoint``, ``high``, ``share_below``,
            optionally ``white``, ``removed``, ``cutoff``, ``checkpoint_title``, ``task``.
    """
    rows = style.take(data, ("share_below", "checkpoint", "high"), ("share_below", "high"))
    if not len(rows):
        return style.empty("No spectra measured yet.", theme, reading=READING, revision="energy_share")
    rows = rows.assign(checkpoint=rows["checkpoint"].astype(str)).sort_values("high", kind="stable")
    names = style.titles(rows, "checkpoint")
    shades = spectral.colours_of(rows, theme)
    colours = style.palette(theme)
    traces: list[dict[str, Any]] = []
    if "white" in rows:
        white = rows.drop_duplicates("high")
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "random numbers",
                "x": style.f4(np.append(0.0, white["high"])),
                "y": style.f4(np.append(0.0, white["white"])),
                "line": {"color": colours.muted, "width": 1.5, "dash": "dash"},
                "hovertemplate": "random numbers: %{y:.0%} below %{x:.2f}<extra></extra>",
            }
        )
    for name in sorted(names, key=lambda n: shades[n] != colours.quiet):
        part = rows[rows["checkpoint"] == name]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": style.safe(names[name]),
                "x": style.f4(np.append(0.0, part["high"])),
                "y": style.f4(np.append(0.0, part["share_below"])),
                "line": {"color": shades[name], "width": 2.25 if shades[name] != colours.quiet else 1.25},
                "customdata": [name] * (len(part) + 1),
                "hovertemplate": f"<b>{style.short(names[name], 40)}</b><br>%{{y:.1%}} of its energy is coarser than "
                "%{x:.2f}<extra></extra>",
                "meta": style.names("checkpoint", of={"checkpoint": name}),
            }
        )
    cutoff = spectral.cutoff_of(rows)
    base = style.layout(
        theme,
        300,
        summary=_summary(rows, names, cutoff),
        reading=READING,
        revision="energy_share",
        margin=(48, 14, 28, 42),
        narrow=narrow,
    )
    changes = {
        "xaxis": spectral.frequency_axis(theme, narrow),
        "yaxis": style.axis(theme, range=[0, 1.02], tickformat=".0%", dtick=0.25),
        "annotations": [
            style.note("share of the energy Σ A² below ρ", theme),
            style.note(spectral.FOOT, theme, y=0, yanchor="top", yshift=-22),
            *spectral.cutoff_note(cutoff, theme),
        ],
        "shapes": spectral.cutoff_shapes(cutoff, theme),
    }
    return style.figure(traces, base | changes)


def _summary(rows: pd.DataFrame, names: dict[str, str], cutoff: float | None) -> str:
    if "removed" not in rows or cutoff is None or not rows["removed"].notna().any():
        return f"Share of energy below each frequency for {len(names)} checkpoints."
    removed = rows.drop_duplicates("checkpoint").set_index("checkpoint")["removed"].astype(float).dropna()
    most, least = removed.idxmax(), removed.idxmin()
    return (
        f"Below the cutoff {cutoff:g} lies between {style.percent(float(removed[least]), 0)} ({names[least]}) and "
        f"{style.percent(float(removed[most]), 0)} ({names[most]}) of a checkpoint's energy."
    )
