"""Which checkpoint does each layer take, and do the methods agree? Coefficients as heat-maps side by side."""

from __future__ import annotations

import os.path
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.charts import _matrix as matrix
from fwviz.charts import _style as style
from fwviz.registry import chart

READING = (
    "Each cell: how much of a checkpoint's change a weight of the model takes. Blue: added (1 is all of it); orange: "
    "subtracted; pale: left out, or never changed by fine-tuning. Every run has a map of its own, on one colour scale."
)
MOST = 4  # maps above one another
HEAD = 24  # px above each map
TALLEST = 1200
BRIEF = {
    "embeddings": "emb",
    "attention query": "q",
    "attention key": "k",
    "attention value": "v",
    "attention q, k, v": "qkv",
    "attention output": "o",
    "MLP": "MLP",
    "norms": "norm",
    "projection": "proj",
    "other": "other",
}


@chart(
    "Learnt weights",
    question="Which checkpoint does each layer take, and do the methods agree?",
    lens="weights_map",
    reading=READING,
)
def weights_map(
    data: pd.DataFrame,
    *,
    theme: style.Theme = "light",
    narrow: bool = False,
    order: Literal["type", "depth"] = "type",
) -> go.Figure:
    """Heat-maps of λ[g, i]: weights on x, checkpoints on y, one map per run, at most four.

    Args:
        data: rows run × group × checkpoint of the lens ``weights_map``: ``group``, ``checkpoint``, ``coefficient``,
            optionally ``run``, ``label``, ``t``, ``group_index``, ``layer``, ``weight_type``, ``checkpoint_title``.
        order: columns gathered by what a weight does (query, key, …), or from input to output.
    """
    rows = style.take(data, ("coefficient", "group", "checkpoint"), ("coefficient",))
    if not len(rows):
        return style.empty(
            "No learnt weights: no linear merge is shown.", theme, reading=READING, revision="weights_map"
        )
    # Numbers from here on: comparing the words of 30,000 rows would take a second.
    place, ids = pd.factorize(rows["group"].astype(str).to_numpy(object))
    once = rows.drop_duplicates("group").reset_index(drop=True)
    at, sections = _columns(once, order)
    groups = [str(ids[i]) for i in at]
    layers = [str(layer) for layer in once["layer" if "layer" in once else "group"].iloc[at]]
    column = np.empty(len(at), dtype=int)
    column[at] = np.arange(len(at))
    owner, runs = (
        pd.factorize(rows["run"].astype(str).to_numpy(object)) if "run" in rows else (np.zeros(len(rows), int), ["run"])
    )
    drawn = list(runs)[:MOST]
    parts = [rows[owner == k] for k in range(len(drawn))]
    top = style.limit(rows["coefficient"], 0.99 if len(rows) > 200 else 1.0)
    shown = _short_names(groups)
    counts = [part["checkpoint"].nunique() for part in parts]
    row = float(np.clip((TALLEST - HEAD * len(drawn)) / sum(counts), 8, matrix.ROW))
    heights = [row * count for count in counts]
    inner = sum(heights) + HEAD * (len(drawn) - 1)
    colours = style.palette(theme)
    traces: list[dict[str, Any]] = []
    axes: dict[str, Any] = {}
    notes: list[dict[str, Any]] = []
    left, above = 0, 0.0
    titled = "label" in rows
    said = []
    for k, (run, part) in enumerate(zip(drawn, parts, strict=True)):
        names, labels, width = matrix.span_of_labels(part.drop_duplicates("checkpoint"), narrow, theme)
        left = max(left, width)
        suffix = "" if k == 0 else str(k + 1)
        line, _ = pd.factorize(part["checkpoint"].astype(str).to_numpy(object))
        full = np.full((len(names), len(groups)), np.nan)
        full[line, column[place[owner == k]]] = part["coefficient"].to_numpy(dtype=float)
        title = str(part["label"].iloc[0]) if "label" in part else ""
        traces.append(
            _heat(full, shown, names, layers, str(run), theme, top, title or "run")
            | {"xaxis": "x", "yaxis": f"y{suffix}"}
        )
        said.append(_said(title or "the merge", full, list(names.values())))
        low = 1 - (above + heights[k]) / inner
        axis = matrix.row_axis(labels, theme)
        step = -(-style.SMALL // int(row)) if row < style.SMALL + 1 else 1  # labels that would overlap are thinned
        axis |= {"tickvals": axis["tickvals"][::step], "ticktext": axis["ticktext"][::step]}
        axes[f"yaxis{suffix}"] = axis | {"domain": [max(low, 0.0), min(low + heights[k] / inner, 1.0)]}
        when = f" {style.DOT} t = {int(part['t'].iloc[0])}" if "t" in part else ""
        if title:
            named = f"<b>{style.short(title, 22 if narrow else 40)}</b>{when}"
            notes.append(
                style.note(
                    named,
                    theme,
                    y=1 - above / inner,
                    yshift=5,
                    font={"size": style.SMALL, "color": colours.ink},
                )
            )
        above += heights[k] + HEAD
    blocks = "".join(style.coloured("■", colour) for colour in reversed(colours.diverging))
    notes.append(style.note(f"{style.number(-top)} {blocks} {style.number(top)}", theme, yshift=HEAD if titled else 5))
    by_type = "by kind of weight" if narrow else "by kind of weight, each input → output"
    foot = by_type if order == "type" and len(set(sections)) > 1 else "input → output"
    if len(runs) > MOST:
        foot += f" {style.DOT} the first {MOST} of {len(runs)} runs"
    notes.append(style.note(foot, theme, y=0, yanchor="top", yshift=-22))
    over = 22 + HEAD * titled
    base = style.layout(
        theme,
        int(inner) + over + 40,
        summary=f"Coefficients of {len(groups)} groups of weights: {'; '.join(said)}.",
        reading=READING,
        revision="weights_map",
        margin=(left, 12, over, 40),
        narrow=narrow,
    )
    typed = order == "type" and len(set(sections)) > 1
    ticks = _type_ticks(sections, narrow) if typed else matrix.depth_ticks(sections, narrow)
    changes = {
        "xaxis": style.axis(
            theme,
            type="category",
            **ticks,
            showgrid=False,
            range=[-0.5, len(groups) - 0.5],
            anchor=f"y{len(drawn)}" if len(drawn) > 1 else "y",
        ),
        **axes,
        "annotations": notes,
        "shapes": matrix.separators(sections, theme),
    }
    return style.figure(traces, base | changes)


def _columns(once: pd.DataFrame, order: str) -> tuple[np.ndarray, list[str]]:
    """The order of the groups from left to right, and the section (weight type or layer) each one stands in."""
    depth = once["group_index"].to_numpy(dtype=float) if "group_index" in once else np.arange(len(once), dtype=float)
    kinds = list(once["weight_type"].astype(str)) if "weight_type" in once else ["other"] * len(once)
    by_type = order == "type" and len(set(kinds)) > 1
    rank = {kind: i for i, kind in enumerate(BRIEF)}
    ranks = np.array([rank.get(kind, len(rank)) if by_type else 0 for kind in kinds])
    at = np.lexsort((depth, ranks))
    words = kinds if by_type else [str(layer) for layer in once["layer" if "layer" in once else "group"]]
    return at, [words[i] for i in at]


def _short_names(groups: list[str]) -> list[str]:
    """Names without the words that all of them begin with."""
    common = os.path.commonpath(groups) if len(groups) > 1 else ""
    common = common[: common.rfind(".") + 1]
    return [style.safe(group[len(common) :]) for group in groups]


def _heat(
    values: np.ndarray,
    ids: list[str],
    names: dict[str, str],
    layers: list[str],
    run: str,
    theme: style.Theme,
    top: float,
    title: str,
) -> dict[str, Any]:
    colours = style.palette(theme).diverging[::-1]
    return {
        "type": "heatmap",
        "name": style.safe(title),
        "z": style.f4(values),
        "x": ids,
        "y": [style.safe(name) for name in names],
        "zmin": -top,
        "zmax": top,
        "colorscale": [list(stop) for stop in zip(style.DIVERGING_STOPS, colours, strict=True)],
        "xgap": 1 if values.shape[1] <= 60 else 0,
        "ygap": 1,
        "hoverongaps": False,
        "hovertemplate": f"{style.short(title, 40)}: <b>%{{x}}</b><br>takes %{{z:+.3g}} of what <b>%{{y}}</b> changed "
        "(1 = all).<extra></extra>",
        "meta": style.names("cell", rows={"checkpoint": list(names)}, columns={"layer": layers}, of={"run": run}),
        "showscale": False,
    }


def _type_ticks(sections: list[str], narrow: bool) -> dict[str, Any]:
    """One tick per weight type, in words where there is room."""
    spans: dict[str, list[int]] = {}
    for i, section in enumerate(sections):
        spans.setdefault(section, []).append(i)
    brief = narrow or len(spans) > 7
    return {
        "tickmode": "array",
        "tickvals": [float(np.mean(at)) + matrix.OFF for at in spans.values()],
        "ticktext": [
            style.short(BRIEF.get(name, name) if brief else name.replace("attention ", ""), 14) for name in spans
        ],
        "tickangle": 0,
    }


def _said(title: str, values: np.ndarray, names: list[str]) -> str:
    """One map in half a sentence."""
    low, high = (style.number(float(end)) for end in (np.nanmin(values), np.nanmax(values)))
    if low == high:
        return f"{title} takes {low} of every checkpoint"
    counts = np.isfinite(values).sum(axis=1)
    means = np.nansum(values, axis=1) / np.maximum(counts, 1)
    most = int(np.abs(means).argmax())
    mean = style.number(float(means[most]))
    return f"{title} takes most of {names[most]} ({mean} on average; cells from {low} to {high})"
