"""Tables as the lenses of weights, spectra and loss fields give them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from tests.charts.tables_runs import Names


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
