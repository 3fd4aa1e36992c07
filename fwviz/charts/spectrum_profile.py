"""How do the spectra of the checkpoints differ, from coarse to fine? Radial profiles over one another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _spectral as spectral
from fwviz.charts import _style as style
from fwviz.registry import chart

READING = (
    "Each line: how strongly one checkpoint changed the weights at each fineness, from coarse (left) to fine (right). "
    "Where lines lie apart the models differ; the filter removes what is left of the cutoff."
)


@chart(
    "Radial spectra",
    question="How do the spectra of the checkpoints differ, from coarse to fine?",
    lens="spectrum_profile",
    reading=READING,
)
def spectrum_profile(data: pd.DataFrame, *, theme: style.Theme = "light", narrow: bool = False) -> go.Figure:
    """Mean amplitude per ring of radial frequency, one line per checkpoint, on a logarithmic axis.

    Args:
        data: rows checkpoint × ring of the lens ``spectrum_profile``: ``checkpoint``, ``frequency``, ``amplitude``,
            optionally ``checkpoint_title``, ``task`` (its own, if evaluated), ``cutoff``, ``group``, ``matrices``.
    """
    rows = style.take(data, ("amplitude", "checkpoint", "frequency"), ("amplitude", "frequency"))
    if not len(rows):
        return style.empty("No spectra measured yet.", theme, reading=READING, revision="spectrum_profile")
    rows = rows.assign(checkpoint=rows["checkpoint"].astype(str)).sort_values("frequency", kind="stable")
    names, shades = style.titles(data.assign(checkpoint=data["checkpoint"].astype(str)), "checkpoint"), None
    names = {name: title for name, title in names.items() if (rows["checkpoint"] == name).any()}
    shades = spectral.colours_of(rows, theme)
    values = rows["amplitude"].to_numpy(dtype=float)
    logarithmic = bool((values > 0).any())
    colours = style.palette(theme)
    traces: list[dict[str, Any]] = []
    ends: list[tuple[float, str, str]] = []
    # Checkpoints of evaluated tasks are drawn last, above the others.
    for name in sorted(names, key=lambda n: shades[n] != colours.quiet):
        part = rows[rows["checkpoint"] == name]
        y = part["amplitude"].to_numpy(dtype=float)
        shown = y > 0 if logarithmic else np.ones(len(y), dtype=bool)
        if not shown.any():
            continue
        own = shades[name] != colours.quiet
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": style.safe(names[name]),
                "x": style.f4(part["frequency"][shown]),
                "y": style.f4(y[shown]),
                "line": {"color": shades[name], "width": 2.25 if own else 1.25},
                "customdata": [name] * int(shown.sum()),
                "hovertemplate": f"<b>{style.short(names[name], 40)}</b><br>mean amplitude %{{y:.3g}} (units of the "
                "weights)<br>at radial frequency %{x:.2f}<extra></extra>",
                "meta": style.names("checkpoint", of={"checkpoint": name}),
            }
        )
        if own:
            last = float(y[shown][-1])
            label = style.short(names[name], 20)
            ends.append((float(np.log10(last)) if logarithmic else last, label, shades[name]))
    drawn = np.log10(values[values > 0]) if logarithmic else values
    low, high = float(drawn.min()), float(drawn.max())
    pad = 0.06 * ((high - low) or 1.0)
    ends = ends[:12]
    cutoff = spectral.cutoff_of(rows)
    beside = [] if narrow else ends  # on a phone the names stand below, two a line
    right = style.text_width([text for _, text, _ in beside]) + 12 if beside else 14
    below = [[style.coloured(f"● {text}", shade) for _, text, shade in ends[i : i + 2]] for i in range(0, len(ends), 2)]
    below = below if narrow else []
    base = style.layout(
        theme,
        320 + 17 * len(below),
        summary=_summary(rows, names, cutoff),
        reading=READING,
        revision="spectrum_profile",
        margin=(58, right, 28, 42 + 17 * len(below)),
        narrow=narrow,
    )
    many = f" {style.DOT} {int(rows['matrices'].iloc[0])} matrices" if "matrices" in rows else ""
    group = f" {style.DOT} {style.short(rows['group'].iloc[0], 18 if narrow else 60)}" if "group" in rows else ""
    changes = {
        "xaxis": spectral.frequency_axis(theme, narrow),
        "yaxis": style.axis(theme, type="log" if logarithmic else "linear", range=[low - pad, high + pad], nticks=6),
        "annotations": [
            style.note(f"mean amplitude{'' if narrow else ' (units of the weights)'}{group}{many}", theme),
            style.note(spectral.FOOT, theme, y=0, yanchor="top", yshift=-22),
            *spectral.cutoff_note(cutoff, theme),
            *spectral.end_labels(beside, low, high, theme, 17),
            *(
                style.note("   ".join(line), theme, y=0, yanchor="top", yshift=-40 - 17 * i)
                for i, line in enumerate(below)
            ),
        ],
        "shapes": spectral.cutoff_shapes(cutoff, theme),
    }
    return style.figure(traces, base | changes)


def _summary(rows: pd.DataFrame, names: dict[str, str], cutoff: float | None) -> str:
    mean = rows.groupby("checkpoint", sort=False)["amplitude"].mean()
    most, least = mean.idxmax(), mean.idxmin()
    said = f"Spectra of {len(names)} checkpoints: {names[most]} changed most on average, {names[least]} least"
    if "removed" in rows and cutoff is not None and rows["removed"].notna().any():
        removed = style.percent(float(rows.drop_duplicates("checkpoint")["removed"].mean()), 0)
        said += f"; the cutoff {cutoff:g} removes {removed} of the energy on average"
    return said + "."
