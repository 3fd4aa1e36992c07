"""How the wishes of the gradient change while the merge moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _matrix as matrix
from fwviz.charts import _style as style
from fwviz.registry import chart

READING = (
    "One column per iteration, one row per checkpoint. Blue: the gradient wants it; orange: it would hurt. "
    "Diamond: chosen in that iteration. Colours fade as there is less left to gain."
)
TOP = 26  # px above the map, for the colour key
COUNTS = 3  # the annotation that counts what is chosen in the first row


@chart(
    "Relevance along the run",
    question="What does the oracle want, iteration by iteration?",
    lens="lmo_history",
    reading=READING,
)
def lmo_history(
    data: pd.DataFrame, *, theme: style.Theme = "light", narrow: bool = False, scope: str = "joint"
) -> go.Figure:
    """Heat-map of ⟨∇ℓ(θ_t), θ_i − θ_t⟩ over iterations t, chosen vertices marked.

    Args:
        data: rows of the lens ``lmo_history``: ``t``, ``scope`` ("joint" or a task), ``checkpoint``, ``score`` (nats
            for a full step), optionally ``chosen``, ``share`` (of the groups that chose it), ``checkpoint_title``.
        scope: the joint loss, or one task's. Falls back to the first scope of the table.
    """
    rows = style.take(data, ("t", "scope", "checkpoint", "score"), ("t",))
    # Vertices that are no checkpoints (base, initial solution) have no score, but they can be chosen.
    rows = rows.assign(score=pd.to_numeric(rows["score"], errors="coerce").replace([np.inf, -np.inf], np.nan))
    rows = rows[rows["score"].notna() | style.flag(rows, "chosen")]
    if not rows["score"].notna().any():
        return style.empty("No iterations yet: press Run.", theme, reading=READING, revision="lmo_history")
    scopes = list(dict.fromkeys(rows["scope"].astype(str)))
    scope = scope if scope in scopes else scopes[0]
    rows = rows[rows["scope"].astype(str) == scope].assign(chosen=style.flag(rows, "chosen"))
    rows = rows.assign(checkpoint=rows["checkpoint"].astype(str), t=rows["t"].astype(int))
    names, labels, left = matrix.span_of_labels(rows, narrow, theme)
    values = matrix.columns(rows, list(names), "t", "score")
    iterations = np.sort(rows["t"].unique())
    top = style.limit(values, 0.99 if values.size > 200 else 1.0)
    traces = [
        matrix.heat(
            values,
            iterations.astype(np.int16),
            theme,
            top=top,
            names=list(names),
            hover="Before iteration %{x} a full step to <b>%{y}</b><br>"
            "promises a loss change of %{z:+.3g} nats.<extra></extra>",
            select="t",
            columns={"t": iterations.tolist()},
        )
    ]
    picked = rows[rows["chosen"]]
    tally = picked["checkpoint"].value_counts()
    if len(picked):
        share = picked["share"].astype(float).fillna(1.0) if "share" in picked else pd.Series(1.0, index=picked.index)
        cell = (250 if narrow else 1000) / len(iterations)
        marks = matrix.diamonds(
            picked["t"].to_numpy(np.int16),
            picked["checkpoint"],
            theme,
            float(np.clip(cell * 0.6, 3.5, 10)),
            picked["score"],
            [
                f"{'' if s >= 1 else style.percent(s, 0) + ' of the groups '}to <b>{style.safe(names[name])}</b>"
                for name, s in zip(picked["checkpoint"], share, strict=True)
            ],
            "Iteration %{x} moves %{hovertext}",
            of_map={"cells": 0, "tally": COUNTS}
            | ({"told": [f"to <b>{style.safe(title)}</b>" for title in names.values()]} if (share >= 1).all() else {}),
        )
        # A vertex that few layers chose is a smaller diamond.
        if (share < 1).any():
            marks["marker"]["size"] = style.f4(np.maximum(np.sqrt(share) * marks["marker"]["size"], 3.5))
        traces.append(marks)
    counted = [f"{tally[name]}×" if name in tally else "" for name in names]
    last = rows[rows["t"] == iterations[-1]].sort_values("score").iloc[0]
    base = style.layout(
        theme,
        matrix.ROW * len(names) + TOP + 40,
        summary=(
            f"{len(iterations)} iterations; chosen most often: "
            f"{style.listed([f'{names[n]} ({c} times)' for n, c in tally[tally == tally.max()].items()])}. "
            f"Before iteration {last.t} "
            f"the gradient wants {names[last.checkpoint]} most ({style.number(last.score)} nats)."
        ),
        reading=READING,
        revision=f"lmo_history {scope}",
        margin=(left, 50 if any(counted) else 12, TOP, 40),
        cursor="x",
        narrow=narrow,
    )
    pad = 0.5 * (np.diff(iterations).min() if len(iterations) > 1 else 1)
    changes = {
        "xaxis": style.axis(
            theme,
            showgrid=False,
            range=[iterations[0] - pad, iterations[-1] + pad],
            **_ticks(iterations, 8 if narrow else 20),
            tickangle=0,
        ),
        "yaxis": matrix.row_axis(labels, theme),
        "annotations": [
            matrix.key(top, " nats", theme, narrow),
            style.note("iteration t", theme, y=0, yanchor="top", yshift=-22),
            *matrix.counts(counted, theme, "chosen", narrow),
        ],
    }
    return style.figure(traces, base | changes)


def _ticks(iterations: np.ndarray, most: int) -> dict[str, Any]:
    """Ticks at some of the iterations; where they are evenly spaced a rule, which stays as it is while more come."""
    every = -(-len(iterations) // most)
    steps = np.unique(np.diff(iterations))
    if len(steps) == 1:
        return {"tickmode": "linear", "tick0": int(iterations[0]), "dtick": every * int(steps[0])}
    return {"tickmode": "array", "tickvals": [int(t) for t in iterations[::every]]}
