"""The lenses that read recorded runs, against the frames of real runs on the tiny pool."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fwviz import registry
from fwviz.lenses.accuracy import accuracy, positions
from fwviz.lenses.coefficients import coefficients
from fwviz.lenses.comparison import comparison
from fwviz.lenses.gap import gap
from fwviz.lenses.lmo_history import lmo_history
from fwviz.lenses.results import results
from fwviz.lenses.scale_curve import scale_curve
from fwviz.lenses.vertices import vertices
from fwviz.pools.open import Pool
from fwviz.runs.assemble import Assembly
from fwviz.runs.trace import Trace

SMALL: dict[str, dict[str, Any]] = {  # of lenses that measure a lot
    "landscape": {"resolution": 3, "samples": 8},
    "simplex": {"steps": 2, "samples": 8},
    "interpolation": {"points": 3, "samples": 8},
    "scaling": {"counts": "4", "methods": "weight_average"},
}
CHART_OF = {chart.facts["lens"]: name for name, chart in registry.entries("charts").items()}


def test_every_lens_says_what_it_reads_and_needs_nothing_more() -> None:
    for name, entry in registry.entries("lenses").items():
        source, *others = inspect.signature(entry.run).parameters.values()
        assert source.name in ("assembly", "trace", "traces"), name
        assert all(p.default is not inspect.Parameter.empty for p in others), name
        assert entry.facts["question"].endswith("?"), name


@pytest.mark.parametrize("name", sorted(registry.entries("lenses")))
def test_columns_are_documented_and_the_chart_draws_them(
    name: str, assembly: Assembly, soft: Trace, average: Trace, searched: Trace
) -> None:
    entry = registry.entry("lenses", name)
    kind = next(iter(inspect.signature(entry.run).parameters))
    source = {"assembly": assembly, "trace": soft, "traces": [soft, average, searched]}[kind]
    made = entry.run(source, **SMALL.get(name, {}))
    table = made if isinstance(made, pd.DataFrame) else list(made)[-1]  # a lens that grows: its last table
    assert len(table)
    undocumented = [column for column in table.columns if f"``{column}``" not in entry.doc]
    assert not undocumented
    if name in CHART_OF:
        assert registry.entry("charts", CHART_OF[name]).run(table).data


def test_history_holds_the_recorded_scores(soft: Trace, hard: Trace, average: Trace, tiny_pool: Pool) -> None:
    for trace in (soft, hard):
        table = lmo_history(trace, tiny_pool.card)
        iterates = [frame for frame in trace.iterates() if frame.t > 0]
        assert sorted(set(table["t"])) == [frame.t for frame in iterates]
        assert list(dict.fromkeys(table["scope"])) == ["joint", *trace.tasks]
        frame = iterates[0]
        rows = table[(table["t"] == frame.t) & (table["scope"] == "joint")].set_index("checkpoint")
        assert frame.scores is not None
        for i, name in enumerate(trace.checkpoints):
            assert rows.loc[name, "score"] == pytest.approx(sum(row[i] for row in frame.scores))
            share = sum(name in group for group in frame.vertices) / len(frame.vertices)
            assert rows.loc[name, "share"] == pytest.approx(share)
            assert rows.loc[name, "chosen"] == (share > 0)
        task = table[(table["t"] == frame.t) & (table["scope"] == "shape")].set_index("checkpoint")
        assert task.loc["stripes", "score"] == pytest.approx(sum(row[1] for row in frame.task_scores["shape"]))
        assert task["own"].to_dict() == {c: c.startswith("shape") for c in trace.checkpoints}
    assert len(lmo_history(average)) == 0


def test_history_names_vertices_that_are_no_checkpoints(hard: Trace) -> None:
    frames = [
        replace(frame, vertices=(("base",), *frame.vertices[1:])) if frame.t == 2 else frame for frame in hard.frames
    ]
    table = lmo_history(replace(hard, frames=tuple(frames)))
    rows = table[(table["checkpoint"] == "base") & table["chosen"]]
    assert set(rows["t"]) == {2}
    assert rows["score"].isna().all()
    assert registry.entry("charts", "lmo_history").run(table).data


def test_vertices_lists_every_choice(soft: Trace, hard: Trace) -> None:
    table = vertices(hard)
    frame = hard.iterates()[1]
    rows = table[table["t"] == frame.t]
    moving = [(g, group[0]) for g, group in enumerate(frame.vertices) if group]
    assert list(zip(rows["group_index"], rows["checkpoint"], strict=True)) == moving
    assert list(rows["group"]) == [hard.groups["layer"][g] for g, _ in moving]
    assert list(rows["group_size"]) == [hard.group_sizes["layer"][g] for g, _ in moving]
    model = vertices(soft)
    assert set(model["group"]) == {"model"}
    first = model[model["t"] == 1]
    assert tuple(first["checkpoint"]) == soft.iterates()[1].vertices[0]
    assert list(first["place"]) == list(range(len(first)))


def test_gap_has_one_row_per_iterate(soft: Trace, average: Trace) -> None:
    table = gap(soft)
    assert list(table["t"]) == [frame.t for frame in soft.iterates()]
    assert list(table["gap"]) == [frame.gap for frame in soft.iterates()]
    assert list(table["loss"]) == [frame.loss for frame in soft.iterates()]
    assert table["loss"].iloc[-1] < table["loss"].iloc[0]
    assert (table["gap"] >= 0).all()
    assert gap(average)["gap"].isna().all()


def test_accuracy_holds_frames_and_rows_to_beat(soft: Trace, tiny_pool: Pool) -> None:
    table = accuracy(soft, tiny_pool.card, {"colour": 0.4})
    run = table[table["series"] == "run"]
    evaluated = [frame for frame in soft.frames if frame.accuracy and frame.status == "running"]
    assert len(run) == len(evaluated) * len(soft.tasks)
    assert list(run["accuracy"]) == [frame.accuracy[task] for frame in evaluated for task in soft.tasks]
    assert run[run["completed"]]["x"].unique().tolist() == [float(frame.t) for frame in soft.iterates()]
    assert set(run["steps"]) == {3.0}
    for series in ("base", "individual"):
        marks = table[table["series"] == series].set_index("task")["accuracy"].to_dict()
        assert marks == soft.reference[series]["validation"]
    assert table[table["series"] == "average"]["accuracy"].tolist() == [0.4]
    assert set(table["task_title"]) == {task.title for task in tiny_pool.card.tasks if task.id in soft.tasks}


def test_positions_lie_between_iterates_and_stay_where_they_are(soft: Trace) -> None:
    inner = replace(soft.frames[0], t=1, inner=2, status="running")
    frames = (soft.frames[0], replace(inner, inner=1), inner, replace(inner, inner=0))
    trace = replace(soft, frames=frames)
    assert positions(trace) == [0.0, 0.2, 0.4, 1.0]  # the recipe plans four inner updates
    assert positions(replace(trace, frames=frames[:2])) == [0.0, 0.2]


def test_results_compares_with_the_pool_card(soft: Trace) -> None:
    table = results(soft)
    merged = table[table["series"] == "merged"].set_index("task")
    own = table[table["series"] == "individual"].set_index("task")["accuracy"]
    for task in soft.tasks:
        assert merged.loc[task, "accuracy"] == soft.final["test"][task].accuracy
        assert merged.loc[task, "normalised"] == pytest.approx(soft.final["test"][task].accuracy / own[task])
        assert merged.loc[task, "count"] == soft.final["test"][task].count
    assert own.to_dict() == soft.reference["individual"]["test"]
    cut = replace(soft, frames=soft.frames[:-1])
    assert "merged" not in set(results(cut)["series"])


def test_coefficients_of_a_frame(soft: Trace, tiny_pool: Pool) -> None:
    table = coefficients(soft, tiny_pool.card)
    matrix = table.pivot(index="group_index", columns="checkpoint", values="coefficient")[list(soft.checkpoints)]
    np.testing.assert_allclose(matrix.to_numpy(), soft.coefficients(-1).numpy())
    assert set(coefficients(soft, index=0)["coefficient"]) == {0.0}  # it starts at the base
    assert list(table["task"].cat.categories) == list(soft.tasks)
    tasks = dict(zip(table["checkpoint"], table["task"], strict=True))
    assert tasks["shape_foreign"] == "shape"
    assert pd.isna(tasks["corner"])
    nonlinear = replace(soft, frames=tuple(replace(f, coefficients=None) for f in soft.frames))
    assert len(coefficients(nonlinear)) == 0
    assert len(coefficients(replace(soft, frames=()))) == 0


def test_comparison_of_runs(soft: Trace, hard: Trace, average: Trace) -> None:
    named = [replace(trace, id=name) for trace, name in ((soft, "a"), (hard, "b"), (average, "c"))]
    cut = replace(soft, id="d", frames=soft.frames[:-1])
    table = comparison([*named, cut], labels={"b": "mine"})
    assert list(dict.fromkeys(table["run"])) == ["a", "b", "c"]
    for trace in named:
        rows = table[table["run"] == trace.id].set_index("task")
        assert rows["accuracy"].to_dict() == {t: s.accuracy for t, s in trace.final["test"].items()}
        assert rows["mean"].iloc[0] == pytest.approx(rows["accuracy"].mean())
        assert rows["seconds"].iloc[0] == trace.cost.seconds
    labels = dict(zip(table["run"], table["label"], strict=True))
    assert labels["b"] == "mine"
    assert "max steps 3" in labels["a"]
    assert "5 checkpoints" in labels["c"]
    assert not any(math.isnan(v) for v in table["normalised"])
    for _, rows in table.groupby("task"):
        assert rows["rank"].sum() == 1 + 2 + 3  # equal accuracies share their places
        assert rows.loc[rows["accuracy"].idxmax(), "rank"] == rows["rank"].min() < 3
    assert len(comparison([])) == 0


def test_the_scale_curve_is_the_trials_of_the_searches(searched: Trace, soft: Trace) -> None:
    table = scale_curve([soft, searched])
    trials = [frame for frame in searched.frames if frame.inner]
    assert table["scale"].tolist() == [0.5, 1.0, 1.5, 2.0]
    assert table["loss"].tolist() == [frame.loss for frame in trials]
    assert table["accuracy"].tolist() == [pytest.approx(frame.mean_accuracy) for frame in trials]
    assert table["chosen"].tolist() == (table["loss"] == table["loss"].min()).tolist()
    assert set(table["label"]) == {"TIES"}
    assert not len(scale_curve([soft]))
