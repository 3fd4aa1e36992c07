"""Which checkpoint does each task's gradient want? Figure 3 of FW-Merging, with all checkpoints on shared rows."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _style as style
from fwviz.registry import chart

READING = (
    "A bar to the left promises a lower loss when the merge moves to that checkpoint: the longer, the more the "
    "task's gradient wants it. Coloured: the task's own checkpoint. Diamond: picked by the oracle, for this task or "
    "another."
)
PROMISES = ("promises a lower loss", "promises a higher loss")  # by the sign of a score
ROW = 21
GAP = "\u00a0" * 3  # between a number and the tip of its bar, which may wear a diamond
MOST_PANELS, MOST_PANELS_NARROW = 6, 4


@chart(
    "Relevance of every checkpoint",
    question="Which checkpoints does the gradient of each task want?",
    lens="lmo",
    reading=READING,
)
def lmo_bars(
    data: pd.DataFrame,
    *,
    theme: style.Theme = "light",
    narrow: bool = False,
    order: Literal["pool", "score"] = "pool",
    value: Literal["score", "cosine"] = "score",
) -> go.Figure:
    """Bars of ⟨∇ℓ_task(θ), θ_i − θ⟩, one row per checkpoint and one panel per task; a dot matrix beyond six tasks.

    Args:
        data: rows task × checkpoint as made by the lens ``lmo``: ``task``, ``checkpoint``, ``score`` (nats for a full
            step), optionally ``cosine``, ``own``, ``chosen``, ``task_title``, ``checkpoint_title``.
        order: rows as in the pool, or the most wanted checkpoint first.
        value: draw the inner product or the released code's sum of cosines.

    Each panel has its own scale: what counts is the order within a task, and steep tasks would dwarf flat ones.
    """
    rows = style.take(data, ("task", "checkpoint", value), (value,))
    if not len(rows):
        return style.empty(
            "No scores yet: choose a pool, checkpoints and tasks.", theme, reading=READING, revision="lmo_bars"
        )
    tasks, checkpoints = style.titles(rows, "task"), style.titles(rows, "checkpoint")
    rows = rows.assign(
        own=style.flag(rows, "own"),
        chosen=style.flag(rows, "chosen"),
        task=rows["task"].astype(str),
        checkpoint=rows["checkpoint"].astype(str),
        value=rows[value].astype(float),
    )
    rows["rank"] = rows.groupby("task", sort=False)["value"].rank(method="first").astype(int)
    rows["relative"] = rows["value"] / rows.groupby("task", sort=False)["value"].transform(style.limit)
    if order == "score":
        best = rows.groupby("checkpoint", sort=False)["relative"].min().sort_values(kind="stable").index
        checkpoints = {name: checkpoints[name] for name in best}
    rows["row"] = rows["checkpoint"].map({name: i for i, name in enumerate(checkpoints)})
    rows["hover"] = _sentences(rows, tasks, checkpoints, value)

    draw = _dots if len(tasks) > (MOST_PANELS_NARROW if narrow else MOST_PANELS) else _panels
    traces, changes, margin = draw(rows, tasks, checkpoints, theme, narrow, value)
    base = style.layout(
        theme,
        ROW * len(checkpoints) + margin[2] + margin[3],
        summary=_summary(rows, tasks, checkpoints),
        reading=READING,
        revision=f"lmo_bars {order} {value}",
        margin=margin,
        narrow=True,
    )
    return style.figure(traces, base | changes)


def _panels(
    rows: pd.DataFrame, tasks: dict[str, str], checkpoints: dict[str, str], theme: style.Theme, narrow: bool, value: str
) -> tuple[list[dict[str, Any]], dict[str, Any], tuple[int, int, int, int]]:
    colours, styles = style.palette(theme), style.task_styles(tasks, theme)
    labels = _row_labels(rows, checkpoints, theme, narrow)
    gutter = 0.05 if narrow else 0.035  # room for the tick labels of two neighbours
    width = (1 - gutter * (len(tasks) - 1)) / len(tasks)
    signs = {"hovertext": PROMISES} if value == "score" else {}
    traces: list[dict[str, Any]] = []
    changes: dict[str, Any] = {"annotations": [], "shapes": [], "bargap": 0.36, "barmode": "overlay"}
    changes["hovermode"] = "y"  # a short bar is hit anywhere in its row
    for k, task in enumerate(tasks):
        own_axis = "" if k == 0 else str(k + 1)
        part = rows[rows["task"] == task]
        colour = styles[task].colour
        start = k * (width + gutter)
        low, high = reach(part["value"].to_numpy(dtype=float))
        bars = len(traces)
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": style.short(tasks[task], 40),
                "x": style.f4(part["value"]),
                "y": part["row"].to_numpy(np.int16),
                "xaxis": f"x{own_axis}",
                "marker": {
                    "color": [colour if own else colours.quiet for own in part["own"]],
                    "opacity": [1.0 if own else 0.75 for own in part["own"]],
                    "line": {"width": 0},
                    "cornerradius": 2,
                },
                "customdata": part["checkpoint"].tolist(),
                "text": part["rank"].to_numpy(np.int16),
                "textposition": "none",  # it is told with the pointer on the bar
                "hoverinfo": "x",  # not the row's name over its own label
                "hovertext": part["hover"].tolist(),
                "hovertemplate": f"%{{hovertext}}:<br>%{{x:+.3~g}}{' nats' * (value == 'score')} "
                f"(rank %{{text}} of {len(part)})<extra></extra>",
                "meta": style.names(
                    "checkpoint", task=task, ranks="text", signs=signs, halved=["x"], reach=f"xaxis{own_axis}"
                ),
            }
        )
        picked = np.flatnonzero(part["chosen"])
        if len(picked):
            marks = _diamonds(part["value"].iloc[picked], part["row"].iloc[picked], part.iloc[picked], colours)
            meta = style.names(picks={"x": [bars, picked.tolist()]})
            traces.append(marks | {"xaxis": f"x{own_axis}", "meta": meta})
        told = np.flatnonzero(part["own"] | part["chosen"])
        if len(told) and not narrow:
            traces.append(_numbers(part.iloc[told], told, bars, (low, high), colours) | {"xaxis": f"x{own_axis}"})
        changes[f"xaxis{own_axis}"] = style.axis(
            theme,
            domain=[start, start + width],
            anchor="y",
            range=ends(low, high),
            showgrid=False,
            nticks=2 if narrow else 3,
            tickangle=0,
            fixedrange=True,
            tickformat="~s" if high - low > 1e4 else "",
            exponentformat="power",
            zeroline=True,
            zerolinecolor=colours.zero,
            zerolinewidth=1,
        )
        header = style.short(tasks[task], 26 // len(tasks) if narrow else max(10, 96 // len(tasks)))
        changes["annotations"].append(
            style.note(
                style.coloured(header, colour, bold=True),
                theme,
                x=start,
                yshift=6,
                font={"size": style.SMALL if narrow else style.TEXT, "color": colour},
            )
        )
        # A hairline in the task's colour ties the header to its panel.
        changes["shapes"].append(
            {
                "type": "line",
                "xref": "paper",
                "yref": "paper",
                "x0": start,
                "x1": start + width,
                "y0": 1,
                "y1": 1,
                "line": {"color": colour, "width": 2},
            }
        )
    changes["yaxis"] = _rows_axis(labels, theme)
    unit = (
        "promised change of the task's loss for a full step (nats)"
        if value == "score"
        else "sum of cosines over tensors"
    )
    arrow = f"← wanted {style.DOT} {'change of loss (nats)' if narrow and value == 'score' else unit}"
    changes["annotations"].append(style.note(arrow, theme, y=0, yanchor="top", yshift=-24))
    return traces, changes, (style.text_width(labels) + 10, 14, 30, 48)


def _dots(
    rows: pd.DataFrame, tasks: dict[str, str], checkpoints: dict[str, str], theme: style.Theme, narrow: bool, value: str
) -> tuple[list[dict[str, Any]], dict[str, Any], tuple[int, int, int, int]]:
    colours, styles = style.palette(theme), style.task_styles(tasks, theme)
    labels = _row_labels(rows, checkpoints, theme, narrow)
    left = style.text_width(labels) + 10
    column = rows["task"].map({task: k for k, task in enumerate(tasks)})
    largest = min(ROW - 3, (260 if narrow else 1000) / len(tasks))
    # The area of a dot shows the score; the smallest stays visible.
    size = np.maximum(np.sqrt(rows["relative"].abs().to_numpy(dtype=float)) * largest, 2.5)
    own = rows["own"].to_numpy()
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "own checkpoint",
            "x": column[own].to_numpy(np.int16),
            "y": rows["row"][own].to_numpy(np.int16),
            "marker": {
                "symbol": "square",
                "size": largest + 3,
                "color": [style.alpha(styles[t].colour, 0.22) for t in rows["task"][own]],
                "line": {"width": 1, "color": [styles[t].colour for t in rows["task"][own]]},
            },
            "hoverinfo": "skip",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "score",
            "x": column.to_numpy(np.int16),
            "y": rows["row"].to_numpy(np.int16),
            "marker": {
                "size": style.f4(size),
                "color": [colours.wanted if v < 0 else colours.unwanted for v in rows["value"]],
                "symbol": ["circle" if v < 0 else "circle-open" for v in rows["value"]],
                "opacity": 0.92,
                "line": {"width": [0 if v < 0 else 1.5 for v in rows["value"]]},
            },
            "customdata": rows["checkpoint"].tolist(),
            "hovertext": [
                f"{text}:<br>{style.number(v)}{' nats' * (value == 'score')} (rank {rank} of {len(checkpoints)})"
                for text, v, rank in zip(rows["hover"], rows["value"], rows["rank"], strict=True)
            ],
            "hovertemplate": "%{hovertext}<extra></extra>",
            "meta": style.names("checkpoint"),
        },
    ]
    picked = rows[rows["chosen"]]
    if len(picked):
        traces.append(_diamonds(column[picked.index], picked["row"], picked, colours, size=min(9.0, largest * 0.6)))
    heads = [style.coloured(style.short(t, 14), styles[k].colour) for k, t in tasks.items()]
    changes = {
        "xaxis": style.axis(
            theme,
            side="top",
            tickmode="array",
            tickvals=list(range(len(tasks))),
            ticktext=heads,
            tickangle=-50,
            range=[-0.6, len(tasks) - 0.4],
            fixedrange=True,
        ),
        "yaxis": _rows_axis(labels, theme),
        "annotations": [
            style.note(
                f"{style.coloured('●', colours.wanted)} wanted: promises a lower loss   "
                f"{style.coloured('○', colours.unwanted)} raises it"
                + "   (area: score within the task)"
                * (not narrow),
                theme,
                y=0,
                yanchor="top",
                yshift=-8,
                xshift=-left if narrow else 0,
            )
        ],
    }
    tallest = int(min(style.text_width(heads) * 0.78 + 14, 90))
    return traces, changes, (left, 34 if narrow else 44, tallest, 30)


def _diamonds(
    x: pd.Series, y: pd.Series, picked: pd.DataFrame, colours: style.Palette, size: float = 9
) -> dict[str, Any]:
    """Marks on chosen vertices; hover and clicks go to the bar or dot below."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "chosen vertex",
        "x": style.f4(x),
        "y": y.to_numpy(np.int16),
        "marker": {
            "symbol": "diamond",
            "size": size,
            "color": colours.ink,
            "line": {"width": 1.5, "color": colours.surface},
        },
        "customdata": picked["checkpoint"].tolist(),
        "cliponaxis": False,  # a panel of a phone is as narrow as a few diamonds
        "hoverinfo": "skip",
    }


def _numbers(
    part: pd.DataFrame, at: np.ndarray, bars: int, reach: tuple[float, float], colours: style.Palette
) -> dict[str, Any]:
    """The numbers of some bars; ``at`` is where these rows stand in the trace number ``bars``."""
    x, text, side = beside(part["value"].to_numpy(dtype=float), reach)
    return {
        "type": "scatter",
        "mode": "text",
        "name": "numbers",
        "x": style.f4(x),
        "y": part["row"].to_numpy(np.int16),
        "text": text,
        "texttemplate": f"{GAP}%{{text}}{GAP}",
        "textposition": side,
        "textfont": {"size": style.SMALL, "color": [colours.ink if own else colours.muted for own in part["own"]]},
        "cliponaxis": False,
        "hoverinfo": "skip",
        "meta": style.names(beside=[bars, at.tolist()]),
    }


def reach(values: np.ndarray) -> tuple[float, float]:
    """From where to where bars go that begin at zero."""
    return min(float(values.min()), 0.0), max(float(values.max()), 0.0)


def beside(values: np.ndarray, reach: tuple[float, float]) -> tuple[list[float], list[str], list[str]]:
    """Numbers beside bars, beyond the tip if there is room, else on the other side of zero: place, text and side."""
    low, high = reach
    outward = np.where(values < 0, values - low, high - values) / ((high - low) or 1.0) > 0.25
    left = (values < 0) == outward
    sides = ["middle left" if side else "middle right" for side in left]
    return np.where(outward, values, 0.0).tolist(), [style.number(v) for v in values], sides


def ends(low: float, high: float) -> list[float]:
    """A range around the bars that moves in steps: it mostly stays as it is while a run goes on."""
    span = (high - low) or 1.0
    step = 10.0 ** math.floor(math.log10(span)) / 10
    return [math.floor((low - 0.07 * span) / step) * step, math.ceil((high + 0.07 * span) / step) * step]


def _row_labels(rows: pd.DataFrame, checkpoints: dict[str, str], theme: style.Theme, narrow: bool) -> list[str]:
    """Row labels; a task's own checkpoint wears the task's colour."""
    styles, colours = style.task_styles(rows["task"], theme), style.palette(theme)
    owner = {row.checkpoint: row.task for row in rows[rows["own"]].itertuples()}
    return [
        style.coloured(
            style.short(title, 16 if narrow else 26),
            styles[owner[name]].colour if name in owner else colours.muted,
            bold=name in owner,
        )
        for name, title in checkpoints.items()
    ]


def _rows_axis(labels: list[str], theme: style.Theme) -> dict[str, Any]:
    return style.axis(
        theme,
        tickmode="array",
        tickvals=list(range(len(labels))),
        ticktext=labels,
        range=[len(labels) - 0.5, -0.5],
        griddash="dot",
        ticklabelstandoff=6,
        fixedrange=True,
        automargin="left",
    )


def _sentences(rows: pd.DataFrame, tasks: dict[str, str], checkpoints: dict[str, str], value: str) -> list[str]:
    """What a bar or a dot says before its number and its rank, which are not sent once more where the page has them."""
    sentences = []
    for row in rows.itertuples():
        name, task = f"<b>{style.safe(checkpoints[row.checkpoint])}</b>", style.safe(tasks[row.task])
        if value == "score":
            first = f"A full step to {name} {PROMISES[row.value >= 0]} on {task}"
        else:
            first = f"{name}: the cosines of {task}'s gradient with it, summed over the tensors"
        facts = ", ".join(filter(None, ["its own checkpoint" * row.own, "chosen by the oracle" * row.chosen]))
        sentences.append(first + f"<br>({facts})" * bool(facts))
    return sentences


def _summary(rows: pd.DataFrame, tasks: dict[str, str], checkpoints: dict[str, str]) -> str:
    first = rows[rows["rank"] == 1]
    own = int(first["own"].sum())
    wants = [f"{tasks[r.task]} wants {checkpoints[r.checkpoint]} ({style.number(r.value)})" for r in first.itertuples()]
    kept = f"{own} of {len(tasks)} tasks want their own checkpoint most" if len(tasks) > 1 else ""
    return f"{'; '.join(filter(None, [kept, *wants[:8]]))}."
