"""Which checkpoints pull the same weights in opposite directions? Shares of disagreeing signs."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _square as square
from fwviz.charts import _style as style
from fwviz.registry import chart

READING = (
    "Each cell: the share of weights that two checkpoints moved in opposite directions. No colour is 50 %, which is "
    "what chance gives; blue agrees more, orange cancels more when the two are added."
)


@chart(
    "Sign conflicts",
    question="Which checkpoints pull the same weights in opposite directions?",
    lens="sign_conflict",
    reading=READING,
)
def sign_conflict(data: pd.DataFrame, *, theme: style.Theme = "light", narrow: bool = False) -> go.Figure:
    """Heat-map of the share of coordinates where τᵢ and τⱼ have opposite signs.

    Args:
        data: one row per ordered pair of the lens ``sign_conflict``: ``checkpoint``, ``other``, ``conflict`` in [0, 1],
            optionally ``weighted``, ``checkpoint_title``, ``other_title``.
    """
    rows = style.take(data, ("conflict", "checkpoint", "other"), ("conflict",))
    if not len(rows):
        return style.empty("No pairs of checkpoints yet.", theme, reading=READING, revision="sign_conflict")
    rows = rows.assign(checkpoint=rows["checkpoint"].astype(str), other=rows["other"].astype(str))
    weighted = bool(style.flag(rows, "weighted").any())
    found = square.extremes(rows, "conflict")
    summary = "One checkpoint alone: there is nothing to compare."
    if found is not None:
        (high, low), count = found, rows["checkpoint"].nunique()
        summary = (
            f"Of {count} checkpoints {square.pair(high)} disagree most, in {style.percent(high['conflict'])} of the "
            f"weights both moved; {square.pair(low)} least, in {style.percent(low['conflict'])}."
        )
    what = "of the weights both moved, counted by size," if weighted else "of the weights both moved"
    return square.square(
        rows,
        "conflict",
        theme,
        narrow,
        name="sign_conflict",
        middle=0.5,
        blue_is_high=False,
        ends=("agree", "conflict"),
        hover=f"opposite signs in %{{z:.1%}} {what} (50 % is chance)",
        reading=READING,
        summary=summary,
        percent=True,
        least=0.05,
    )
