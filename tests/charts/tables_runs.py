"""Tables as the lenses of runs give them, of plain, large and hostile names: relevance, accuracy, coefficients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

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
