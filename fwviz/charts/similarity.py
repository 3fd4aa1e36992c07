"""Which checkpoints changed the model in the same direction? Cosines of task vectors."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _square as square
from fwviz.charts import _style as style
from fwviz.registry import chart

READING = (
    "Blue: two task vectors point the same way and help each other when they are added; no colour: they have nothing "
    "to do with one another; orange: they undo each other."
)


@chart(
    "Similarity of task vectors",
    question="Which checkpoints changed the model in the same direction?",
    lens="similarity",
    reading=READING,
)
def similarity(data: pd.DataFrame, *, theme: style.Theme = "light", narrow: bool = False) -> go.Figure:
    """Heat-map of cos(τᵢ, τⱼ), saturating at the largest off the diagonal, at ±0.1 at least.

    Args:
        data: one row per ordered pair of the lens ``similarity``: ``checkpoint``, ``other``, ``cosine``, optionally
            ``checkpoint_title``, ``other_title``.
    """
    rows = style.take(data, ("cosine", "checkpoint", "other"), ("cosine",))
    if not len(rows):
        return style.empty("No pairs of checkpoints yet.", theme, reading=READING, revision="similarity")
    rows = rows.assign(checkpoint=rows["checkpoint"].astype(str), other=rows["other"].astype(str))
    found = square.extremes(rows, "cosine")
    summary = "One checkpoint alone: there is nothing to compare."
    if found is not None:
        (high, low), count = found, rows["checkpoint"].nunique()
        summary = (
            f"Of {count} task vectors the most alike are {square.pair(high)} (cosine {style.number(high['cosine'])}), "
            f"the least {square.pair(low)} ({style.number(low['cosine'])})."
        )
    return square.square(
        rows,
        "cosine",
        theme,
        narrow,
        name="similarity",
        middle=0.0,
        blue_is_high=True,
        ends=("opposite", "alike"),
        hover="cosine of their task vectors %{z:+.3f} (1 = same direction, 0 = unrelated)",
        reading=READING,
        summary=summary,
        percent=False,
        least=0.1,
    )
