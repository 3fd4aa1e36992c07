"""Average accuracy of every method over the number of checkpoints in the pool."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _style as style
from fwviz.registry import chart

READING = (
    "From left to right checkpoints join the pool; each curve is a method's average test accuracy on the same tasks. A "
    "curve that stays level ignores what does not help; bands reach one standard deviation over the orders drawn."
)
WORDS = {
    "own": "own",
    "irrelevant": "irrelevant",
    "relevant": "relevant",
    "noisy": "badly trained",
    "mixed": "mixed",
}
KEYS = 8


@chart(
    "Growing pool",
    question="Which method keeps its accuracy when more checkpoints join?",
    lens="scaling",
    reading=READING,
)
def scaling_curves(data: pd.DataFrame, *, theme: style.Theme = "light", narrow: bool = False) -> go.Figure:
    """One curve per variant: accuracy averaged over tasks and seeds, by the number of checkpoints; FW-Merging, Fig. 1.

    Args:
        data: rows seed × count × variant × task of the lens ``scaling``: ``count``, ``variant``, ``task``, ``accuracy``
            in [0, 1], optionally ``seed``, ``joined``, ``newest``, ``settings``, ``seconds``. The variants "base",
            "mtl" and "individual" become lines of reference.

    A point whose seeds are not all there yet is drawn from those that are.
    """
    rows = style.take(data, ("count", "variant", "task", "accuracy"), ("count", "accuracy"))
    if not len(rows):
        return style.empty(
            "No cell is finished yet: press Run to grow the pool.", theme, reading=READING, revision="scaling"
        )
    if "seed" not in rows:
        rows = rows.assign(seed=0)
    rows = rows.assign(variant=rows["variant"].astype(str))
    means = rows.groupby(["variant", "count", "seed"], sort=False)["accuracy"].mean().reset_index()
    shown = means.groupby(["variant", "count"], sort=False)["accuracy"].agg(["mean", "std", "count"])
    order = list(dict.fromkeys(rows["variant"]))
    curves = [name for name in order if name not in style.REFERENCES]
    colours = style.palette(theme)
    styles = style.task_styles(curves, theme)
    counts = sorted({float(count) for count in rows["count"]})
    newest = _newest(rows)
    traces: list[dict[str, Any]] = []
    ends: dict[str, tuple[float, float]] = {}
    for name in curves:
        part = shown.loc[name].sort_index()
        x, y = part.index.to_numpy(dtype=float), part["mean"].to_numpy(dtype=float)
        spread = part["std"].fillna(0.0).to_numpy(dtype=float)
        ends[name] = (float(x[-1]), float(y[-1]))
        look = styles[name]
        if spread.any() and len(x) > 1:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": "",
                    "x": style.f4([*x, *x[::-1]]),
                    "y": style.f4([*(y + spread), *(y - spread)[::-1]]),
                    "fill": "toself",
                    "fillcolor": style.alpha(look.colour, 0.13),
                    "line": {"width": 0, "color": look.colour},
                    "hoverinfo": "skip",
                }
            )
        facts = _facts(rows[rows["variant"] == name])
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": style.short(name, 30),
                "x": style.f4(x),
                "y": style.f4(y),
                "line": {"color": look.colour, "width": 2.5} | ({"dash": look.dash} if look.dash != "solid" else {}),
                "marker": {"size": 8, "color": look.colour, "line": {"width": 1.5, "color": colours.surface}},
                "hovertext": [
                    f"<b>{style.safe(name)}</b><br>{style.percent(v)} on average with {count:g} checkpoints"
                    + (f" (± {style.percent(s)} over {n} orders)" if n > 1 else "")
                    + facts.get(count, "")
                    for count, v, s, n in zip(x, y, spread, part["count"], strict=True)
                ],
                "hovertemplate": "%{hovertext}<extra></extra>",
            }
        )
    marks = {name: float(shown.loc[name]["mean"].mean()) for name in style.REFERENCES if name in order}
    values = [*shown["mean"].tolist()]
    low = max(0.0, math.floor(20 * min(values) - 0.4) / 20)
    high = min(math.ceil(20 * max(values) + 0.4) / 20, 1.02) if max(values) <= 1 else max(values) * 1.05
    if not high > low:
        high = low + 0.1
    if not curves:  # only the lines of reference: one invisible point gives the axes their ground
        traces.append({"type": "scatter", "x": style.f4(counts[:1]), "y": style.f4(values[:1]), "opacity": 0})
    pad = 0.04 * (counts[-1] - counts[0]) or 0.5
    sections, names = _sections(rows, counts, theme, narrow)
    labels = [] if narrow else _end_labels(ends, styles, low, high, theme)
    most = KEYS if not narrow else 6
    key = [
        style.note(
            f"{style.coloured('●', styles[name].colour)} {style.short(name, 30)} "
            f"{style.DOT} {style.percent(ends[name][1])}",
            theme,
            y=0,
            yanchor="top",
            yshift=-46 - 17 * i,
        )
        for i, name in enumerate(sorted(curves, key=lambda name: -ends[name][1])[:most])
    ]
    room = 17 * len(key) if narrow else 0
    key = key if narrow else []
    dotted = {"color": colours.zero, "width": 1.25, "dash": "dot"}
    lines = [
        {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": v, "y1": v, "line": dotted, "layer": "below"}
        for v in marks.values()
    ]
    raised = style.spread(list(marks.values()), (high - low) * 15 / 330, low, high)
    named = [
        style.note(f"{style.REFERENCES[name]} {style.percent(v, 0)}", theme, yref="y", y=y, x=0, xshift=4, yshift=1)
        for (name, v), y in zip(marks.items(), raised, strict=True)
    ]
    base = style.layout(
        theme,
        330 + 50 + room,
        summary=_summary(curves, shown, counts, marks),
        reading=READING,
        revision="scaling",
        margin=(
            48,
            16 if narrow else 16 + style.text_width([f"{style.short(n, 24)} 100 %" for n in curves], style.TEXT),
            34,
            46 + room,
        ),
        narrow=narrow,
    )
    changes = {
        "xaxis": style.axis(
            theme, range=[counts[0] - pad, counts[-1] + pad], tickvals=_ticks(counts, 6 if narrow else 12)
        ),
        "yaxis": style.axis(theme, range=[low, high], tickformat=".0%", nticks=6),
        "shapes": [*sections, *lines],
        "annotations": [
            *named,
            *names,
            *labels,
            *key,
            style.note(
                "checkpoints in the pool" + (f" {style.DOT} last to join: {newest}" if newest and not narrow else ""),
                theme,
                y=0,
                yanchor="top",
                yshift=-22,
            ),
        ],
    }
    return style.figure(traces, base | changes)


def _facts(rows: pd.DataFrame) -> dict[float, str]:
    """Number of checkpoints → who joined last, the settings picked and the seconds it took, for the hover text."""
    found: dict[float, str] = {}
    for count, part in rows.groupby("count", sort=False):
        row = part.iloc[0]
        text = ""
        for column, words in (("newest", "last to join: "), ("settings", "settings: ")):
            value = row.get(column)
            if isinstance(value, str) and value not in ("", "{}"):
                text += f"<br>{words}{style.short(value, 60)}"
        seconds = row.get("seconds", math.nan)
        if isinstance(seconds, float) and np.isfinite(seconds):
            text += f"<br>took {style.duration(seconds)}"
        found[float(count)] = text
    return found


def _ticks(counts: list[float], most: int) -> list[float]:
    """Sizes that were measured, the largest among them, far enough apart that at most ``most`` steps fit."""
    kept = [counts[-1]]
    for count in reversed(counts[:-1]):
        if kept[-1] - count >= (counts[-1] - counts[0]) / most:
            kept.append(count)
    return kept[::-1]


def _newest(rows: pd.DataFrame) -> str:
    """The title of the last checkpoint of the largest pool, where one order was drawn."""
    if "newest" not in rows or rows["seed"].nunique() > 1:
        return ""
    value = rows.loc[rows["count"].astype(float).idxmax(), "newest"]
    return style.short(value, 40) if isinstance(value, str) else ""


def _sections(
    rows: pd.DataFrame, counts: list[float], theme: style.Theme, narrow: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Bands that say what is joining: edges half way between two sizes."""
    if "joined" not in rows:
        return [], []
    kinds: dict[float, str] = {}
    for count, part in rows.groupby("count", sort=True):
        said = part["joined"].dropna().astype(str).unique().tolist()
        kinds[float(count)] = said[0] if len(said) == 1 else "mixed"
    shapes: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    start = 0
    for i in range(1, len(counts) + 1):
        if i < len(counts) and kinds[counts[i]] == kinds[counts[start]]:
            continue
        kind, reach = kinds[counts[start]], counts[-1] - counts[0] or 1.0
        left = counts[0] - 0.04 * reach if start == 0 else (counts[start - 1] + counts[start]) / 2
        right = counts[-1] + 0.04 * reach if i == len(counts) else (counts[i - 1] + counts[i]) / 2
        if len(notes) % 2:
            shapes.append(
                {
                    "type": "rect",
                    "yref": "paper",
                    "x0": left,
                    "x1": right,
                    "y0": 0,
                    "y1": 1,
                    "line": {"width": 0},
                    "fillcolor": style.alpha(style.palette(theme).quiet, 0.18),
                    "layer": "below",
                }
            )
        wide = (right - left) / reach * (30 if narrow else 90)
        word = style.short(WORDS.get(kind, kind), max(int(wide), 3))
        notes.append(style.note(word, theme, xref="x", x=(left + right) / 2, xanchor="center", yshift=4))
        start = i
    return shapes, notes


def _end_labels(
    ends: dict[str, tuple[float, float]], styles: dict[str, Any], low: float, high: float, theme: style.Theme
) -> list[dict[str, Any]]:
    """Names of the curves beside their last points."""
    names = list(ends)
    places = style.spread([ends[name][1] for name in names], (high - low) * 15 / 330, low, high)
    return [
        style.note(
            style.coloured(
                f"{style.short(name, 24)} {style.percent(ends[name][1], 0)}", styles[name].colour, bold=True
            ),
            theme,
            x=1,
            xshift=6,
            yref="y",
            y=place,
            yanchor="middle",
            yshift=0,
        )
        for name, place in zip(names, places, strict=True)
    ]


def _summary(curves: list[str], shown: pd.DataFrame, counts: list[float], marks: dict[str, float]) -> str:
    parts = []
    for name in curves[:8]:
        part = shown.loc[name].sort_index()["mean"]
        first, last = style.percent(float(part.iloc[0])), style.percent(float(part.iloc[-1]))
        parts.append(f"{name} from {first} to {last}")
    text = f"Average accuracy with {counts[0]:g} to {counts[-1]:g} checkpoints"
    if parts:
        text += f": {'; '.join(parts)}"
    if marks:
        text += ". For comparison: " + ", ".join(f"{style.REFERENCES[n]} {style.percent(v)}" for n, v in marks.items())
    return text + "."
