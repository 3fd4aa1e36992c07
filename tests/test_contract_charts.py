"""Every chart on odd inputs: nothing, one row, 20 × 200, NaN, infinity, long and hostile names, both themes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from fwviz import registry
from fwviz.charts._style import PALETTES, THEMES
from fwviz.types import FwvizError

Names = tuple[list[str], list[str], list[str]]  # tasks, checkpoints, groups

PLAIN: Names = (
    [f"task_{k}" for k in range(4)],
    [f"task_{i}" for i in range(4)] + [f"other_{i}" for i in range(4)],
    ["stem", "block.0", "block.1", "head"],
)
LARGE: Names = (
    [f"task_{k}" for k in range(16)],
    [f"task_{i}" for i in range(20)],
    [f"vision_model.encoder.layers.{j // 16}.mlp.{j}" for j in range(200)],
)
ODD: Names = (
    ["<img src=x onerror=alert(1)>", "字" * 40, "%{x} %{meta.y}", "a" * 300],
    ["<b>bold", "Кириллица " * 9, "%{y}", "a" * 300, "name\nwith lines", "&amp;", "‮rtl", "0"],
    ["<script>", "%{z}", "1", "2"],
)


def lmo(names: Names) -> pd.DataFrame:
    r = np.random.default_rng(0)
    tasks, checkpoints, _ = names
    rows = [
        {"task": t, "checkpoint": c, "score": r.normal() - 3 * (i == k), "cosine": r.normal(), "own": i == k}
        for k, t in enumerate(tasks)
        for i, c in enumerate(checkpoints)
    ]
    table = pd.DataFrame(rows)
    return table.assign(chosen=table["score"] == table.groupby("task")["score"].transform("min"))


def lmo_layers(names: Names) -> pd.DataFrame:
    r = np.random.default_rng(1)
    rows = [
        {"group": g, "layer": g if len(names[2]) < 9 else f"block.{j // 16}", "checkpoint": c, "score": r.normal()}
        for j, g in enumerate(names[2])
        for c in names[1]
    ]
    table = pd.DataFrame(rows)
    return table.assign(chosen=table["score"] == table.groupby("group")["score"].transform("min"))


def lmo_history(names: Names) -> pd.DataFrame:
    r = np.random.default_rng(2)
    rows = [
        {"t": t, "scope": s, "checkpoint": c, "score": r.normal(), "chosen": i == t % 3, "share": 0.5}
        for t in range(1, 16)
        for s in ("joint", *names[0])
        for i, c in enumerate(names[1])
    ]
    return pd.DataFrame(rows)


def gap(names: Names) -> pd.DataFrame:
    t = np.arange(16)
    table = pd.DataFrame({"t": t, "gap": np.exp(-t / 5), "loss": 1 + np.exp(-t / 4), "step_size": 2 / (t + 2)})
    return table.assign(vertices=names[1][1], in_hull=True)


def promise(names: Names) -> pd.DataFrame:
    gammas = np.linspace(0, 1, 11)
    rows = [
        {"task": t, "gamma": g, "promised": -g * (k + 1), "measured": -g * (k + 1) + 2 * g * g}
        for k, t in enumerate(("joint", *names[0]))
        for g in gammas
    ]
    return pd.DataFrame(rows)


def accuracy(names: Names) -> pd.DataFrame:
    r = np.random.default_rng(3)
    rows: list[dict[str, Any]] = [
        {
            "series": "run",
            "x": x / 10,
            "seconds": x / 5,
            "completed": x % 10 == 0,
            "task": t,
            "accuracy": r.uniform(0.3, 0.9),
        }
        for x in range(151)
        for t in names[0]
    ]
    for series, value in (("base", 0.3), ("individual", 0.95), ("average", 0.5)):
        rows += [{"series": series, "task": t, "accuracy": value} for t in names[0]]
    return pd.DataFrame(rows).assign(steps=15.0)


def results(names: Names) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"series": s, "task": t, "accuracy": a - 0.01 * k}
            for s, a in (("merged", 0.8), ("base", 0.4), ("individual", 0.95), ("mtl", 0.9), ("average", 0.5))
            for k, t in enumerate(names[0])
        ]
    )


def comparison(names: Names) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "run": f"run{i}",
                "label": c,
                "task": t,
                "accuracy": 0.9 - 0.03 * i + 0.01 * k,
                "normalised": 0.95 - 0.03 * i,
                "base": 0.3,
                "individual": 0.95,
                "mtl": 0.93,
                "seconds": 10.0 * i,
                "peak_memory_bytes": 2**27,
                "stored_bytes": 10**6 * (i % 2),
            }
            for i, c in enumerate(names[1])
            for k, t in enumerate(names[0])
        ]
    )


def coefficients(names: Names) -> pd.DataFrame:
    r = np.random.default_rng(4)
    rows = [
        {
            "group": g,
            "group_size": 10 + j,
            "checkpoint": c,
            "task": c if c in names[0] else None,
            "coefficient": r.uniform(),
        }
        for j, g in enumerate(names[2])
        for c in names[1]
    ]
    return pd.DataFrame(rows).astype({"task": pd.CategoricalDtype(names[0])})


def weights_map(names: Names) -> pd.DataFrame:
    r = np.random.default_rng(5)
    kinds = ["attention query", "MLP", "norms"]
    rows = [
        {
            "run": run,
            "label": run.upper(),
            "t": 3,
            "group": g,
            "group_index": j,
            "layer": f"block.{j // 16}",
            "weight_type": kinds[j % 3],
            "checkpoint": c,
            "coefficient": r.normal(0.3, 0.2),
        }
        for run in (("a",) if len(names[2]) > 100 else ("a", "b"))
        for j, g in enumerate(names[2])
        for c in names[1]
    ]
    return pd.DataFrame(rows)


def weights_by_type(names: Names) -> pd.DataFrame:
    kinds = pd.CategoricalDtype(["embeddings", "attention query", "MLP", "norms"])
    rows = [
        {"run": c, "label": c, "weight_type": k, "mean": 0.1 * i, "low": 0.1 * i - 0.2, "high": 0.1 * i + 0.2}
        for c in names[1][:8]
        for i, k in enumerate(("norms", "MLP", "attention query"))
    ]
    return pd.DataFrame(rows).astype({"weight_type": kinds})


def magnitudes(names: Names) -> pd.DataFrame:
    rows = [
        {"group": g, "checkpoint": c, "layer": f"block.{j // 16}", "change": 1e-3 * 1.2**k, "density": k * (33 - k)}
        | {q: (1 + i) * 1e-3 * (m + 1) for m, q in enumerate(("q05", "q25", "median", "q75", "q95"))}
        for j, g in enumerate(names[2])
        for i, c in enumerate(("all", *names[1]))
        for k in (range(33) if c == "all" else (17,))
    ]
    return pd.DataFrame(rows)


def pairs(value: str, names: Names) -> pd.DataFrame:
    r = np.random.default_rng(6)
    rows = [
        {"checkpoint": a, "other": b, value: 1.0 if a == b else r.uniform(0.3, 0.7)} for a in names[1] for b in names[1]
    ]
    return pd.DataFrame(rows)


def spectrum_map(names: Names) -> pd.DataFrame:
    side = 64 if len(names[2]) > 100 else 16
    f = np.arange(side) * 2 / side - 1
    rows = [
        {"fy": y, "fx": x, "amplitude": -3 - np.hypot(x, y), "cutoff": 0.3, "checkpoint": names[1][0], "tensor": "w"}
        for y in f
        for x in f
    ]
    return pd.DataFrame(rows)


def spectrum_profile(names: Names) -> pd.DataFrame:
    rows = [
        {
            "group": "model",
            "matrices": 3,
            "checkpoint": c,
            "task": c if c in names[0] else None,
            "cutoff": 0.3,
            "frequency": (k + 0.5) / 32,
            "high": (k + 1) / 32,
            "amplitude": (1 + i) * 1e-3 / (k + 1),
            "share_below": ((k + 1) / 32) ** (1 / (i + 1)),
            "white": ((k + 1) / 32) ** 2,
            "removed": 0.1,
        }
        for i, c in enumerate(names[1])
        for k in range(32)
    ]
    return pd.DataFrame(rows).astype({"task": pd.CategoricalDtype(names[0])})


def spectrum_variance(names: Names) -> pd.DataFrame:
    k = np.arange(32)
    table = pd.DataFrame({"low": k / 32, "high": (k + 1) / 32, "frequency": (k + 0.5) / 32, "variance": 1e-6 / (k + 1)})
    return table.assign(
        cutoff=0.3, coefficients=100, interference=1e-7, interference_filtered=7e-8, ratio=0.7, energy_kept=0.8
    )


def runs_on_top(names: Names, columns: tuple[str, str]) -> list[dict[str, Any]]:
    """Rows of runs as the lenses of places give them."""
    return [
        {
            "series": "path",
            "run": f"run{i}",
            "label": c,
            "t": float(t),
            columns[0]: 0.2 * t + 0.1 * i,
            columns[1]: 0.3 * t,
            "out_of_plane": 0.1 * i,
            "task": "joint",
            "loss": 1.0 / (t + 1),
            "accuracy": 0.5,
            "final": t == 4,
        }
        for i, c in enumerate(names[1])
        for t in range(5)
    ]


def simplex(names: Names) -> pd.DataFrame:
    steps = 24 if len(names[2]) > 100 else 8
    corner = {"series": "corner", "column": -1, "row": -1, "stride": 0}
    rows: list[dict[str, Any]] = [
        corner | {"model": c, **{f"lambda_{k + 1}": float(i == k) for k in range(3)}}
        for i, c in enumerate(names[1][:3])
    ]
    for stride in (8, 4, 2, 1):
        for i, j in np.ndindex(steps + 1, steps + 1):
            coarser = stride < 8 and i % (2 * stride) == j % (2 * stride) == 0
            if i + j <= steps and i % stride == j % stride == 0 and not coarser:
                shares = {"lambda_1": 1 - (i + j) / steps, "lambda_2": i / steps, "lambda_3": j / steps}
                rows.append({"series": "grid", "column": i, "row": j, "stride": stride, **shares})
    table = pd.DataFrame(rows)
    loss = 0.1 + (table["lambda_1"] - 0.5) ** 2 + (table["lambda_2"] - 0.3) ** 2
    table = table.assign(task="joint", loss=loss, accuracy=1 / (1 + loss), samples=64)
    runs = pd.DataFrame(runs_on_top(names, ("lambda_1", "lambda_2")))
    return pd.concat([table, runs.assign(lambda_3=1 - runs["lambda_1"] - runs["lambda_2"])], ignore_index=True)


def scaling(names: Names) -> pd.DataFrame:
    many = 20 if len(names[2]) > 100 else 5
    rows = [
        {"seed": s, "count": 4 + 2 * i, "joined": ("own", "irrelevant", "noisy")[min(i, 2)], "newest": c}
        | {"variant": v, "task": t, "accuracy": 0.8 - 0.01 * i * k + 0.02 * s}
        for s in (0, 1)
        for i, c in enumerate((names[1] * 3)[:many])
        for k, v in enumerate(("base", "individual", *names[1][:6]))
        for t in names[0][:4]
    ]
    return pd.DataFrame(rows)


def interpolation(names: Names) -> pd.DataFrame:
    gammas = np.linspace(0, 1, 21)
    rows = [
        {"task": t, "gamma": g, "loss": 0.5 + k / 9 + g * (1 - g), "accuracy": 0.5 - 0.1 * g}
        for k, t in enumerate(("joint", *names[0]))
        for g in gammas
    ]
    return pd.DataFrame(rows).assign(start_title="base", end_title=names[1][0], way=f"base → {names[1][0]}")


def landscape(names: Names) -> pd.DataFrame:
    side = 41 if len(names[2]) > 100 else 9
    rows: list[dict[str, Any]] = [
        {"series": "corner", "model": c, "x": x, "y": y, "column": -1, "row": -1, "stride": 0}
        for c, x, y in zip(["base", *names[1][:2]], (0.0, 3.0, 1.0), (0.0, 0.0, 2.0), strict=True)
    ]
    for stride in (8, 4, 2, 1):
        for i, j in np.ndindex(side, side):
            if i % stride == j % stride == 0 and (stride == 8 or i % (2 * stride) or j % (2 * stride)):
                rows.append({"series": "grid", "column": i, "row": j, "stride": stride, "x": i / 4 - 1, "y": j / 4 - 1})
    table = pd.DataFrame(rows)
    loss = 0.1 + (table["x"] - 1) ** 2 + (table["y"] - 0.5) ** 2
    table = table.assign(task="joint", loss=loss, accuracy=1 / (1 + loss), samples=64)
    return pd.concat([table, pd.DataFrame(runs_on_top(names, ("x", "y")))], ignore_index=True)


def filter_response(names: Names) -> pd.DataFrame:
    rows = [
        {
            "band": band,
            "cutoff": c,
            "task": t,
            "accuracy": 0.5 + 0.1 * c - 0.2 * (band == "low"),
            "loss": 1.0 - 0.1 * c,
            "unfiltered": 0.5,
        }
        for band in ("high", "low")
        for c in (0.0, 0.1, 0.3, 0.6)
        for t in ("joint", *names[0])
    ]
    return pd.DataFrame(rows)


def variance_accuracy(names: Names) -> pd.DataFrame:
    r = np.random.default_rng(7)
    rows = [
        {"subpool": k, "planned": 40, "checkpoints": " ".join(names[1][:4]), "variance": 1e-5 * v, "normalised": 1 - v}
        for k, v in enumerate(r.uniform(size=40))
    ]
    return pd.DataFrame(rows)


def scale_curve(names: Names) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "run": f"run{i}",
                "label": c,
                "method": "ties",
                "scale": j / 5,
                "loss": 1 + (j / 5 - 0.1 * i) ** 2,
                "accuracy": 0.9 - abs(j / 5 - 0.1 * i) / 4,
                "chosen": j == 3,
            }
            for i, c in enumerate(names[1][:8])
            for j in range(1, 11)
        ]
    )


def generalisation(names: Names) -> pd.DataFrame:
    r = np.random.default_rng(8)
    rows = [
        {"checkpoint": c, "task": t, "own": c == t, "accuracy": a, "filtered": a + r.normal(0, 0.02), "base": 0.5}
        for c in names[1]
        for t, a in zip(names[0], r.uniform(0.2, 0.9, len(names[0])), strict=True)
    ]
    return pd.DataFrame(rows).assign(cutoff=0.1)


def merges(value: str, names: Names) -> pd.DataFrame:
    r = np.random.default_rng(9)
    rows = [
        {"run": run, "label": run or "base", "task": t, value: r.uniform(0.2, 0.9), "base": 0.5, "individual": 0.9}
        for run in ("", *names[1])
        for t in names[0]
    ]
    return pd.DataFrame(rows).assign(samples=64)


# Every chart, a table for it, and the columns whose numbers it draws.
FEEDS: dict[str, tuple[Callable[[Names], pd.DataFrame], tuple[str, ...]]] = {
    "lmo_bars": (lmo, ("score",)),
    "lmo_layers": (lmo_layers, ("score",)),
    "lmo_history": (lmo_history, ("score",)),
    "gap_curve": (gap, ("gap", "loss")),
    "promise_reality": (promise, ("promised", "measured")),
    "accuracy_live": (accuracy, ("accuracy",)),
    "accuracy_bars": (results, ("accuracy",)),
    "comparison": (comparison, ("accuracy",)),
    "coefficients_bars": (coefficients, ("coefficient",)),
    "spectrum_map": (spectrum_map, ("amplitude",)),
    "spectrum_profile": (spectrum_profile, ("amplitude",)),
    "energy_share": (spectrum_profile, ("share_below",)),
    "spectrum_variance": (spectrum_variance, ("variance",)),
    "filter_response": (filter_response, ("accuracy",)),
    "variance_accuracy": (variance_accuracy, ("normalised", "variance")),
    "weights_map": (weights_map, ("coefficient",)),
    "weights_by_type": (weights_by_type, ("mean",)),
    "magnitudes": (magnitudes, ("median",)),
    "similarity": (partial(pairs, "cosine"), ("cosine",)),
    "sign_conflict": (partial(pairs, "conflict"), ("conflict",)),
    "scale_curve": (scale_curve, ("loss",)),
    "generalisation": (generalisation, ("accuracy", "filtered")),
    "cka": (partial(merges, "cka"), ("cka",)),
    "left_out": (partial(merges, "accuracy"), ("accuracy",)),
    "landscape_contour": (landscape, ("loss",)),
    "landscape_surface": (landscape, ("loss",)),
    "simplex_triangle": (simplex, ("loss",)),
    "scaling_curves": (scaling, ("accuracy",)),
    "interpolation_curve": (interpolation, ("loss",)),
}
CHARTS = sorted(registry.entries("charts"))


def some_nan(table: pd.DataFrame, columns: tuple[str, ...], value: float = math.nan) -> pd.DataFrame:
    spoilt = table.copy()
    for column in columns:
        spoilt.loc[spoilt.index[::3], column] = value
    return spoilt


INPUTS: dict[str, Callable[[Callable[[Names], pd.DataFrame], tuple[str, ...]], pd.DataFrame]] = {
    "nothing": lambda make, columns: pd.DataFrame(),
    "no rows": lambda make, columns: make(PLAIN).iloc[:0],
    "one row": lambda make, columns: make(PLAIN).iloc[:1],
    "usual": lambda make, columns: make(PLAIN),
    "large": lambda make, columns: make(LARGE),
    "odd names": lambda make, columns: make(ODD),
    "some NaN": lambda make, columns: some_nan(make(PLAIN), columns),
    "some infinite": lambda make, columns: some_nan(make(PLAIN), columns, -math.inf),
    "all NaN": lambda make, columns: make(PLAIN).assign(**dict.fromkeys(columns, math.nan)),
    "all zero": lambda make, columns: make(PLAIN).assign(**dict.fromkeys(columns, 0.0)),
    "tiny": lambda make, columns: make(PLAIN).assign(**{c: make(PLAIN)[c] * 1e-9 for c in columns}),
    "twice": lambda make, columns: pd.concat([make(PLAIN), make(PLAIN)]),
    "shuffled index": lambda make, columns: make(PLAIN).set_index(np.arange(len(make(PLAIN)))[::-1] * 7),
}


def test_every_chart_is_fed() -> None:
    assert set(FEEDS) == set(CHARTS), "give the new chart a table in FEEDS"


@pytest.mark.parametrize("name", CHARTS)
@pytest.mark.parametrize("kind", INPUTS)
def test_chart_draws_odd_inputs(name: str, kind: str) -> None:
    make, columns = FEEDS[name]
    entry = registry.entry("charts", name)
    data = INPUTS[kind](make, columns)
    before = data.copy(deep=True)
    every = [(theme, narrow) for theme in THEMES for narrow in (False, True)]
    for theme, narrow in every if kind in ("usual", "odd names") else every[::3]:
        figure = entry.run(data, theme=theme, narrow=narrow)
        pd.testing.assert_frame_equal(data, before)  # charts never write to their table
        check(figure, entry.facts["reading"], kind)


def check(figure: go.Figure, reading: str, kind: str) -> None:
    text = figure.to_json()
    go.Figure(json.loads(text))  # plotly refuses properties and values it does not know
    drawn = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} in the figure's JSON"))
    shape = drawn["layout"]
    assert shape["paper_bgcolor"] == shape["plot_bgcolor"] == "rgba(0,0,0,0)"
    assert "title" not in shape
    assert "template" not in shape or not shape["template"]
    assert isinstance(shape["height"], int)
    assert 60 <= shape["height"] <= 1600
    assert shape["meta"]["reading"] == reading
    summary = shape["meta"]["summary"]
    assert summary
    assert summary[-1] == "."
    words = json.dumps([shape["meta"], shape.get("annotations", []), [t.get("hovertext") for t in drawn["data"]]])
    assert not re.search(r"\b(nan|inf|None)\b", words), words
    # Without numbers there is a sentence instead of an empty plot.
    if kind in ("nothing", "no rows", "all NaN"):
        assert not drawn["data"]
        assert shape["annotations"][0]["text"]
    else:
        assert drawn["data"]
    if kind == "odd names":
        assert "<img" not in text.replace(json.dumps(summary), "")
        assert "<script" not in text.replace(json.dumps(summary), "")
        assert all("%{x} " not in str(trace.get("name")) for trace in drawn["data"])
    for trace in drawn["data"]:
        for axis in ("x", "y", "z"):
            assert not isinstance(trace.get(axis), list) or len(trace[axis]) < 5 or isinstance(trace[axis][0], str), (
                "numbers go as typed arrays"
            )


@pytest.mark.parametrize("name", CHARTS)
def test_dark_is_light_in_other_colours(name: str) -> None:
    """The page switches themes in the browser by exchanging colours, so nothing else may differ."""

    def flat(value: Any) -> list[str]:
        return [value] if isinstance(value, str) else [colour for item in value for colour in flat(item)]

    def start(colour: str) -> str:
        return f"rgba({','.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))},"

    light, dark = (flat(astuple(PALETTES[theme])) for theme in ("light", "dark"))
    assert len(set(light)) == len(light), "two roles share a colour in the light palette"
    to_dark = dict(zip(light, dark, strict=True))
    to_dark |= {start(a): start(b) for a, b in to_dark.items()}
    make, _ = FEEDS[name]
    run = registry.entry("charts", name).run
    swapped = re.sub(r"#[0-9a-f]{6}|rgba\(\d+,\d+,\d+,", lambda m: to_dark.get(m[0], m[0]), run(make(PLAIN)).to_json())
    assert swapped == run(make(PLAIN), theme="dark").to_json()


@pytest.mark.parametrize("name", CHARTS)
def test_chart_says_what_its_parts_stand_for(name: str) -> None:
    """A page can tell from ``meta`` alone which checkpoint, layer, … a point, a row or a trace is."""
    make, _ = FEEDS[name]
    figure = registry.entry("charts", name).run(make(PLAIN))
    linked = {"checkpoint": set(PLAIN[1]), "layer": {*PLAIN[2], "model"}}
    words = {"checkpoint", "layer", "t", "task", "run", "cell"}
    for trace in figure.data:
        meta = trace.meta or {}
        select = meta.get("select")
        assert select is None or select in words, select
        keys = meta.get("keys") or ([select] if select in linked else [])
        for point in trace.customdata if keys and trace.customdata is not None else ():
            ids = list(point) if isinstance(point, list | tuple | np.ndarray) else [point]
            for key, value in zip(keys, ids, strict=False):
                assert key not in linked or value in linked[key], (key, value)
        for end, axis in (("rows", 0), ("columns", 1)):
            for key, ids in (meta.get(end) or {}).items():
                assert key not in linked or set(ids) <= linked[key], (end, key, ids)
                assert len(ids) == np.asarray(trace.z).shape[axis], (end, len(ids))
        assert all(value in linked[key] for key, value in (meta.get("of") or {}).items() if key in linked)


@pytest.mark.parametrize("name", CHARTS)
def test_chart_keeps_its_zoom_while_data_arrive(name: str) -> None:
    make, _ = FEEDS[name]
    run = registry.entry("charts", name).run
    table = make(PLAIN)
    half = run(table.iloc[: len(table) * 9 // 10]).layout.uirevision
    assert half
    assert half == run(table).layout.uirevision


@pytest.mark.parametrize("name", CHARTS)
def test_chart_names_the_missing_column(name: str) -> None:
    make, columns = FEEDS[name]
    run = registry.entry("charts", name).run
    with pytest.raises(FwvizError, match=columns[0]):
        run(make(PLAIN).drop(columns=columns[0]))
    with pytest.raises(FwvizError, match="theme"):
        run(make(PLAIN), theme="sepia")


@pytest.mark.parametrize("name", CHARTS)
def test_chart_stays_small(name: str) -> None:
    make, _ = FEEDS[name]
    run = registry.entry("charts", name).run
    assert len(run(make(PLAIN)).to_json().encode()) < 32_000
    assert len(run(make(LARGE)).to_json().encode()) < 150_000
