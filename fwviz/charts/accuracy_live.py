"""Accuracy per task while the merge happens, with the marks to beat on a rail at the right edge."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _style as style
from fwviz.registry import chart

READING = (
    "One line per task, the thick one is their average. At the right edge: ring = base, bar = the task's own "
    "checkpoint, dot = now. A merge is good when the dots reach the bars. Measured on a few validation samples, to be "
    "quick."
)
HEIGHT, HEIGHT_NARROW = 380, 340
AVERAGE = ""  # the key of the mean over tasks: no task has an empty id


@chart(
    "Accuracy as it merges",
    question="Is the merged model getting better, and on which tasks?",
    lens="accuracy",
    reading=READING,
)
def accuracy_live(
    data: pd.DataFrame,
    *,
    theme: style.Theme = "light",
    narrow: bool = False,
    x: Literal["t", "seconds"] = "t",
    max_points: int = 44,
) -> go.Figure:
    """Lines of accuracy over iterations (inner updates as fractions) or seconds, with reference marks per task.

    Args:
        data: rows of the lens ``accuracy``: ``series`` ("run", "base", "individual", "average"), ``task``, ``accuracy``
            in [0, 1]; for "run" also ``x`` (iterations), ``seconds``, ``completed``; optionally ``steps`` (iterations
            planned) and ``task_title``.
        max_points: per line. Longer runs are thinned for drawing: inner updates by a stride that rarely changes, so
            that the picture does not shimmer as it grows; completed iterates and the newest frame always stay.

    The axes keep their range while points arrive: planned iterations × from below the worst to above the best mark.
    """
    rows = style.take(data, ("series", "task", "accuracy"), ("accuracy",))
    rows = rows.assign(task=rows["task"].astype(str))
    run = rows[rows["series"] == "run"]
    if not len(run):
        return style.empty("Nothing evaluated yet: press Run.", theme, reading=READING, revision="accuracy_live")
    run = style.take(run, ("x", *({"seconds"} if x == "seconds" else ())), ("x",))
    names = style.titles(run, "task")
    colours, styles = style.palette(theme), style.task_styles(names, theme)
    table = run.assign(
        at=run["seconds" if x == "seconds" else "x"].astype(float), completed=style.flag(run, "completed")
    )
    table = table.drop_duplicates(["x", "task"], keep="last")
    lines = table.pivot(index="x", columns="task", values="accuracy").reindex(columns=list(names)).sort_index()
    at = table.groupby("x")["at"].first().reindex(lines.index).to_numpy(dtype=float)
    done = table.groupby("x")["completed"].any().reindex(lines.index).to_numpy(dtype=bool)
    # An average over some of the tasks would not be comparable.
    mean = lines.mean(axis=1, skipna=False).to_numpy(dtype=float)
    keep = thin(done, max_points)

    marks = _marks(rows, names)
    many = len(names) > 8
    height = HEIGHT_NARROW if narrow else HEIGHT
    words = [f"100% {style.short(title, 9 if narrow else 18)}" for title in [*names.values(), "average"]]
    margin = (38, 8 + style.text_width(words), 12, 62 if narrow else 46)
    rail = (0.2 if narrow else 0.075) if marks else 0.0
    seen = np.append(lines.to_numpy(dtype=float).ravel(), [v for mark in marks.values() for v in mark.values()])
    low, high = _ends(seen)
    traces: list[dict[str, Any]] = []
    for task in names:
        values = lines[task].to_numpy(dtype=float)
        kept = keep & np.isfinite(values)
        traces.append(
            {
                "type": "scatter",
                # A one-shot method has a single point, which no line shows.
                "mode": "lines" if kept.sum() > 1 else "markers",
                "name": style.short(names[task], 24),
                "x": style.f4(at[kept]),
                "y": style.f4(values[kept]),
                "line": {"color": styles[task].colour, "width": 1.5 if many else 2}
                | ({"dash": styles[task].dash} if styles[task].dash != "solid" else {}),
                "hovertemplate": "%{y:.1%}",
                "meta": style.names("t" if x == "t" else "task", task=task),
            }
        )
    whole = np.isfinite(mean)
    traces.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": "<b>average</b>",
            "x": style.f4(at[keep & whole]),
            "y": style.f4(mean[keep & whole]),
            "line": {"color": colours.ink, "width": 3.5},
            "hovertemplate": "<b>%{y:.1%}</b>",
            "meta": style.names("t" if x == "t" else None),
        }
    )
    traces.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "iterate",
            "x": style.f4(at[done & whole & keep]),
            "y": style.f4(mean[done & whole & keep]),
            "marker": {
                "size": 6 if narrow else 8,
                "color": colours.ink,
                "line": {"width": 1 if narrow else 2, "color": colours.surface},
            },
            "hoverinfo": "skip",
            "meta": style.names("t"),
        }
    )
    now = {task: _last(lines[task].to_numpy(dtype=float)) for task in names}
    now[AVERAGE] = _last(mean)
    shades = {task: styles[task].colour for task in names} | {AVERAGE: colours.ink}
    if marks:
        traces += _rail(marks, now, shades, theme)
    traces.append(_labels(now, names, shades, (low, high), height - margin[2] - margin[3], len(marks) - 0.15, narrow))
    planned = pd.to_numeric(run["steps"], errors="coerce").max() if "steps" in run else math.nan
    ticks = 6 if narrow else 12
    reach = _reach(float(np.nanmax(at)), planned if x == "t" else math.nan)
    base = style.layout(
        theme,
        height,
        summary=_summary(now, names, marks, at[-1], x),
        reading=READING,
        revision=f"accuracy_live {x}",
        margin=margin,
        cursor="x" if x == "t" else None,
        narrow=narrow,
    )
    changes: dict[str, Any] = {
        "hovermode": "x unified",
        "xaxis": style.axis(
            theme,
            domain=[0, 1 - rail - (0.02 if rail else 0)],
            range=[-0.015 * reach, 1.015 * reach],
            **({"dtick": style.whole_step(reach, ticks)} if x == "t" else {"nticks": ticks}),
            unifiedhovertitle={"text": "iteration %{x:.2~f}" if x == "t" else "after %{x:.1f} s"},
        ),
        "yaxis": style.axis(theme, range=[low, high], tickformat=".0%", dtick=0.2 if high - low > 0.5 else 0.1),
        "annotations": [
            style.note("iteration t" if x == "t" else "seconds", theme, y=0, yanchor="top", yshift=-22),
        ],
    }
    changes["xaxis2"] = {
        "domain": [1 - (rail or 0.005), 1],
        "range": [-0.7, len(marks) - 0.1],
        "visible": False,
        "fixedrange": True,
    }
    if marks:
        key = "○ base  ━ own checkpoint" + "  ◇ average merge" * any("average" in mark for mark in marks.values())
        place = {"x": 0, "yshift": -40} if narrow else {"x": 1, "xanchor": "right", "yshift": -22}
        changes["annotations"].append(style.note(key, theme, y=0, yanchor="top", **place))
    return style.figure(traces, base | changes)


def thin(done: np.ndarray, most: int) -> np.ndarray:
    """Which frames to draw: at most about ``most`` of them, the first and the newest among them.

    All completed iterates stay and every k-th inner update; if the iterates alone are too many, every k-th of these.
    """
    kind, count = (done, np.cumsum(done) - 1) if done.sum() >= most else (~done, np.cumsum(~done))
    others = done if kind is not done else np.zeros_like(done)
    keep = np.ones(len(done), dtype=bool)
    for stride in (k for power in range(32) for k in (2**power, 3 * 2**power // 2)):
        keep = others | (kind & (count % stride == 0))
        keep[[0, -1]] = True
        if keep.sum() <= max(most, 2):
            break
    return keep


def _marks(rows: pd.DataFrame, names: dict[str, str]) -> dict[str, dict[str, float]]:
    """Reference accuracies per task and their average: {} if the table has none; beyond 8 tasks the average only."""
    table = rows[rows["series"] != "run"].drop_duplicates(["task", "series"])
    table = table.pivot(index="task", columns="series", values="accuracy").reindex(list(names))
    if table.empty or table.shape[1] == 0:
        return {}
    table.loc[AVERAGE] = table.mean(skipna=False)
    kept = table if len(names) <= 8 else table.loc[[AVERAGE]]
    return {str(task): {str(s): float(v) for s, v in row.items() if np.isfinite(v)} for task, row in kept.iterrows()}


def _rail(
    marks: dict[str, dict[str, float]], now: dict[str, float], shades: dict[str, str], theme: style.Theme
) -> list[dict[str, Any]]:
    """From ring (base) to bar (own checkpoint), with the present value as a dot, one column per task."""
    colours = style.palette(theme)
    order = list(marks)
    stem_x, stem_y = [], []
    for i, task in enumerate(order):
        ends = [marks[task].get(s, math.nan) for s in ("base", "individual")]
        stem_x += [i, i, math.nan]
        stem_y += [*ends, math.nan]
    shared = {"type": "scatter", "xaxis": "x2", "hoverinfo": "skip"}
    traces = [
        {
            **shared,
            "mode": "lines",
            "x": style.f4(stem_x),
            "y": style.f4(stem_y),
            "line": {"color": colours.quiet, "width": 1},
        }
    ]
    looks = {
        "base": {"symbol": "circle", "size": 7},
        "individual": {"symbol": "line-ew", "size": 10},
        "average": {"symbol": "diamond-open", "size": 8},
        "now": {"symbol": "circle", "size": 8},
    }
    for series, look in looks.items():
        found = now if series == "now" else {t: m[series] for t, m in marks.items() if series in m}
        at = [i for i, task in enumerate(order) if task in found]
        if not at:
            continue
        tint = [shades[order[i]] for i in at]
        marker: dict[str, Any] = {**look, "color": tint}
        if series == "base":
            marker |= {"color": colours.surface, "line": {"width": 1.5, "color": tint}}
        elif series == "individual":
            marker["line"] = {"width": 3, "color": tint}
        traces.append(
            {
                **shared,
                "mode": "markers",
                "name": series,
                "x": np.array(at, dtype=np.uint8),
                "y": style.f4([found[order[i]] for i in at]),
                "marker": marker,
            }
        )
    return traces


def _labels(
    now: dict[str, float],
    names: dict[str, str],
    shades: dict[str, str],
    ends: tuple[float, float],
    plot: int,
    x: float,
    narrow: bool,
) -> dict[str, Any]:
    """Value and name of every line at the right edge, moved apart where they would overlap."""
    shown = [task for task in now if math.isfinite(now[task])]
    low, high = ends
    span = high - low
    places = style.spread([now[task] for task in shown], span * 14 / plot, low + 0.02 * span, high - 0.02 * span)
    texts = []
    for task in shown:  # one text trace is half the size of an annotation each
        text = f"{100 * now[task]:.0f}% {style.short(names.get(task, 'average'), 9 if narrow else 18)}"
        texts.append(f"<b>{text}</b>" if task == AVERAGE else text)
    return {
        "type": "scatter",
        "mode": "text",
        "xaxis": "x2",
        "x": style.f4([x] * len(shown)),
        "y": style.f4(places),
        "text": texts,
        "textposition": "middle right",
        "textfont": {"size": min(style.SMALL, int(plot / max(len(shown), 1))), "color": [shades[t] for t in shown]},
        "cliponaxis": False,
        "hoverinfo": "skip",
    }


def _last(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else math.nan


def _ends(values: np.ndarray) -> tuple[float, float]:
    """The y axis: from ten points below the lowest to five above the highest, in tens, so that it rarely changes.

    With the marks among the values it holds the base and the tasks' own checkpoints from the first frame on.
    """
    known = values[np.isfinite(values)]
    low = max(0.0, math.floor(10 * float(known.min()) - 0.5) / 10)
    high = math.ceil(10 * float(known.max()) + 0.5) / 10
    return low, 1.01 if high >= 1.0 else high


def _reach(latest: float, planned: float) -> float:
    """The right end of the x axis: what is planned, else the next of 1, 2, 5, 10, 15, 20, 30, 50, 100, …"""
    if math.isfinite(planned) and planned >= latest:
        return max(float(planned), 1.0)
    scale = 10.0 ** math.floor(math.log10(max(latest, 1.0)))
    return next(scale * m for m in (1, 1.5, 2, 3, 5, 10) if scale * m >= latest)


def _summary(
    now: dict[str, float], names: dict[str, str], marks: dict[str, dict[str, float]], at: float, x: str
) -> str:
    where = f"iteration {at:.3g}" if x == "t" else style.duration(at)
    tasks = ", ".join(f"{names[t]} {style.percent(now[t], 0)}" for t in list(names)[:8])
    goal = marks.get(AVERAGE, {})
    against = [
        f"{word} {style.percent(goal[s])}"
        for s, word in (("base", "base"), ("individual", "own checkpoints"))
        if s in goal
    ]
    compared = f" ({', '.join(against)})" if against else ""
    return f"At {where} the average accuracy is {style.percent(now[AVERAGE])}{compared}: {tasks}."
