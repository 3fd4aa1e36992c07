"""Where does the linear model stop being true? Promise against measurement on the way to a vertex."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _style as style
from fwviz.registry import chart

READING = (
    "Dashed: the loss change the gradient promises on the way to the checkpoint. Solid: the change measured. "
    "Shaded: how far reality is from the promise. The diamond is the best point of the way."
)
HOLDS = 0.25  # the promise "holds" while the measured change is within 25 % of it


@chart(
    "Promise and reality",
    question="How far along the way can the gradient be trusted?",
    lens="promise",
    reading=READING,
)
def promise_reality(data: pd.DataFrame, *, theme: style.Theme = "light", narrow: bool = False) -> go.Figure:
    """Promised γ·⟨∇ℓ(θ_t), s − θ_t⟩ and measured ℓ(θ_t + γ(s − θ_t)) − ℓ(θ_t) over γ ∈ [0, 1], in nats.

    Args:
        data: rows task × γ of the lens ``promise``: ``task`` ("joint" first, then each task), ``gamma``, ``promised``,
            ``measured``, optionally ``task_title``, ``vertex_title`` (where the way leads).

    The joint loss is the large panel, the tasks are small ones on a scale of their own.
    """
    rows = style.take(data, ("task", "gamma", "promised", "measured"), ("gamma", "promised", "measured"))
    if not len(rows):
        return style.empty(
            "Nothing measured yet: pick a checkpoint.", theme, reading=READING, revision="promise_reality"
        )
    rows = rows.assign(task=rows["task"].astype(str)).sort_values("gamma", kind="stable")
    names = style.titles(data.assign(task=data["task"].astype(str)), "task")
    names = {name: title for name, title in names.items() if (rows["task"] == name).any()}
    # With a single task the joint loss is that task's: one panel says it all.
    main = (
        "joint" if "joint" in names and len(names) != 2 else next(n for n in names if n != "joint" or len(names) == 1)
    )
    small = [name for name in names if name not in (main, "joint")]
    goal = str(rows["vertex_title"].iloc[0]) if "vertex_title" in rows else "the checkpoint"
    colours, styles = style.palette(theme), style.task_styles([n for n in names if n != "joint"], theme)

    wide = 2 if narrow else min(4, len(small)) or 1
    lines = -(-len(small) // wide)
    tall, short, between = 250, 92, 58
    height = tall + lines * (short + between)
    traces: list[dict[str, Any]] = []
    changes: dict[str, Any] = {"annotations": []}
    for k, name in enumerate([main, *small]):
        part = rows[rows["task"] == name]
        if k == 0:
            box = ((0.0, 1.0), (1 - tall / height, 1.0))
        else:
            line, column = divmod(k - 1, wide)
            gutter = 0.12 if narrow else 0.05
            width = (1 - gutter * (wide - 1)) / wide
            top = 1 - (tall + between + line * (short + between)) / height
            box = (
                (column * (width + gutter), column * (width + gutter) + width),
                (max(0.0, top - short / height), top),
            )
        colour = colours.ink if name == "joint" else styles[name].colour
        suffix = "" if k == 0 else str(k + 1)
        traces += _pair(part, suffix, colour, theme, name, names[name], main=k == 0)
        changes |= _axes(part, suffix, box, theme, main=k == 0, goal=style.short(goal, 12))
        title = "all tasks together" if name == "joint" else style.short(names[name], 16 if narrow else 28)
        measure = (
            "loss change (nats)" if narrow else f"change of calibration loss (nats) towards {style.short(goal, 40)}"
        )
        changes["annotations"].append(
            style.note(
                style.coloured(title, colour, bold=True) + f" {style.DOT} {measure}" * (k == 0),
                theme,
                x=box[0][0],
                y=box[1][1],
                yshift=6,
            )
        )
        if k == 0:
            low, high = changes["yaxis"]["range"]
            changes["annotations"] += _labels(part, low, high, theme, colour)
    joint = rows[rows["task"] == main]
    base = style.layout(
        theme,
        height + 30 + 24,
        summary=_summary(joint, names, main, goal),
        reading=READING,
        revision="promise_reality",
        margin=(44, 74 if narrow else 96, 30, 24),
        narrow=narrow,
    )
    return style.figure(traces, base | changes)


def trusted(part: pd.DataFrame) -> float:
    """The largest γ up to which every measured change is within 25 % of the promised one; 0 if it never is."""
    reach = 0.0
    for row in part[part["gamma"] > 0].itertuples():
        if abs(row.measured - row.promised) > HOLDS * abs(row.promised):
            break
        reach = float(row.gamma)
    return reach


def _pair(
    part: pd.DataFrame, suffix: str, colour: str, theme: style.Theme, name: str, title: str, *, main: bool
) -> list[dict[str, Any]]:
    colours = style.palette(theme)
    gamma, promised, measured = (style.f4(part[c]) for c in ("gamma", "promised", "measured"))
    shared = {"type": "scatter", "mode": "lines", "xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
    best = int(np.argmin(measured))
    sentence = [
        f"After {style.percent(g, 0)} of the way the gradient promised {style.number(p)} nats,<br>measured: "
        f"<b>{style.number(m)} nats</b> on {'all tasks together' if name == 'joint' else style.safe(title)}."
        for g, p, m in zip(part["gamma"], part["promised"], part["measured"], strict=True)
    ]
    return [
        {
            **shared,
            "name": "promised",
            "x": gamma,
            "y": promised,
            "line": {"color": colours.muted, "width": 1.75 if main else 1.25, "dash": "dash"},
            "hoverinfo": "skip",
        },
        {
            **shared,
            "name": "measured",
            "x": gamma,
            "y": measured,
            "line": {"color": colour, "width": 2.75 if main else 2, "shape": "spline", "smoothing": 0.6},
            "fill": "tonexty",
            "fillcolor": style.alpha(colours.unwanted, 0.13),
            "hovertext": sentence,
            "hovertemplate": "%{hovertext}<extra></extra>",
        },
        {
            **shared,
            "mode": "markers",
            "name": "best point",
            "cliponaxis": False,
            "x": gamma[best : best + 1],
            "y": measured[best : best + 1],
            "marker": {
                "symbol": "diamond",
                "size": 11 if main else 8,
                "color": colour,
                "line": {"width": 1.5, "color": colours.surface},
            },
            "hovertext": [sentence[best] + "<br>The lowest loss of the way."],
            "hovertemplate": "%{hovertext}<extra></extra>",
        },
    ]


def _axes(
    part: pd.DataFrame,
    suffix: str,
    box: tuple[tuple[float, float], tuple[float, float]],
    theme: style.Theme,
    *,
    main: bool,
    goal: str,
) -> dict[str, Any]:
    colours = style.palette(theme)
    values = np.append(part[["promised", "measured"]].to_numpy(dtype=float).ravel(), 0.0)
    # A loss that explodes at the vertex must not flatten the promise: the view stops at three times its size.
    promise = style.limit(part["promised"])
    low, high = max(values.min(), -3 * promise), min(values.max(), 3 * promise)
    pad = 0.08 * ((high - low) or 1.0)
    return {
        f"xaxis{suffix}": style.axis(
            theme,
            domain=list(box[0]),
            anchor=f"y{suffix}",
            range=[0, 1.0],
            tickmode="array",
            tickvals=[0, 0.25, 0.5, 0.75, 1] if main else [0, 1],
            ticktext=["now", "25%", "50%", "75%", goal] if main else ["now", "all"],
            showgrid=main,
        ),
        f"yaxis{suffix}": style.axis(
            theme,
            domain=list(box[1]),
            anchor=f"x{suffix}",
            range=[low - pad, high + pad],
            nticks=5 if main else 3,
            showgrid=main,
            zeroline=True,
            zerolinecolor=colours.zero,
            zerolinewidth=1,
        ),
    }


def _labels(part: pd.DataFrame, low: float, high: float, theme: style.Theme, colour: str) -> list[dict[str, Any]]:
    """Direct labels of the two curves at the right edge of the main panel, whose y axis runs from low to high."""
    colours = style.palette(theme)
    last = part.iloc[-1]
    wanted = [float(np.clip(last[c], low, high)) for c in ("promised", "measured")]
    gap = (high - low) * 30 / 250
    places = style.spread(wanted, gap, low, high)
    texts = (f"promised<br>{style.number(last['promised'])}", f"<b>measured<br>{style.number(last['measured'])}</b>")
    return [
        style.note(
            text,
            theme,
            xref="x domain",
            x=1,
            xshift=8,
            yref="y",
            y=place,
            yshift=0,
            yanchor="middle",
            font={"size": style.SMALL, "color": shade},
        )
        for text, place, shade in zip(texts, places, (colours.muted, colour), strict=True)
    ]


def _summary(joint: pd.DataFrame, names: dict[str, str], main: str, goal: str) -> str:
    best = joint.loc[joint["measured"].idxmin()]
    last = joint.iloc[-1]
    what = "all tasks together" if main == "joint" else names[main]
    promised, measured = style.number(float(last["promised"])), style.number(float(last["measured"]))
    place, lowest = style.percent(float(best["gamma"]), 0), style.number(float(best["measured"]))
    reach = style.percent(trusted(joint), 0)
    return (
        f"Towards {goal} the promise for {what} holds (within 25 %) up to {reach} of the way; "
        f"the best point is at {place} with {lowest} nats; "
        f"at the end of the way {promised} was promised and {measured} measured."
    )
