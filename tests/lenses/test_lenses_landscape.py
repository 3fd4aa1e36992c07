"""The pictures of a loss: against analytic losses on the toy, against the evaluator and real runs on the tiny pool."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from fwviz.lenses import _field as field
from fwviz.lenses.landscape import landscape, plane_of, survey, window
from fwviz.lenses.landscape_points import landscape_points
from fwviz.runs.assemble import Assembly, assemble
from fwviz.runs.recipe import Recipe
from fwviz.runs.trace import Trace
from fwviz.space.plane import plane_through
from fwviz.types import FwvizError, Problem, Score
from tests.toy import toy_problem


def exact(problem: Problem) -> field.Measure:
    def measure(theta: Tensor) -> dict[str, Score]:
        losses = problem.objective.losses(theta).tolist()
        return {t: Score(0.5, value, 1) for t, value in zip(problem.objective.tasks, losses, strict=True)}

    return measure


# --- the order of a grid --------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 6, 7, 20, 36, 97])
def test_every_grid_point_comes_once_and_coarse_grids_first(steps: int) -> None:
    levels = field.strides(steps)
    assert levels[0] == steps
    assert levels[-1] == 1
    assert all(a % b == 0 and a > b for a, b in pairwise(levels))
    grids = {s: [(i, j) for j in range(0, steps + 1, s) for i in range(0, steps + 1, s)] for s in levels}
    seen: dict[tuple[int, int], float] = {}
    order = []
    for point, stride in field.refine(grids.__getitem__, steps, seen.get):
        assert point in grids[stride]
        seen[point] = 0.0
        order.append(stride)
    assert sorted(seen) == sorted(grids[1])
    assert order == sorted(order, reverse=True)


def test_places_where_the_picture_changes_come_first() -> None:
    steps = 8
    grids = {s: [(i, j) for j in range(0, 9, s) for i in range(0, 9, s)] for s in field.strides(steps)}
    seen: dict[tuple[int, int], float] = {}
    last = []
    for point, stride in field.refine(grids.__getitem__, steps, seen.get):
        seen[point] = float(point[0] > 5)  # a cliff
        if stride == 1:
            last.append(point)
    assert {i for i, _ in last[:13]} == {4, 5}  # all of the cells that hold it: column 5, every other of column 4


# --- landscape ------------------------------------------------------------------------------------


def test_the_landscape_of_the_toy_is_its_analytic_loss() -> None:
    problem = toy_problem()
    plane = plane_through(problem.vectors, ("base", "c0", "c1"))
    tables = list(survey(plane, exact(problem), 9, 0.5, {}))
    table = tables[-1]
    grid = table[table["series"] == "grid"]
    assert len(grid) == 81 * 4  # three tasks and their mean
    assert table.attrs == {"done": 84, "total": 84}
    for row in grid.iloc[::17].itertuples():
        theta = plane.origin.double() + row.x * plane.u.double() + row.y * plane.v.double()
        losses = problem.objective.losses(theta)
        expected = losses.mean() if row.task == "joint" else losses[problem.objective.tasks.index(row.task)]
        assert row.loss == pytest.approx(float(expected), rel=1e-4)
    left, low, side = window(plane, 0.5)
    one = grid[(grid["column"] == 2) & (grid["row"] == 7)].iloc[0]
    assert (one["x"], one["y"]) == pytest.approx((left + 2 * side / 8, low + 7 * side / 8))
    corners = table[(table["series"] == "corner") & (table["task"] == "joint")].set_index("model")
    for name, i in (("base", None), ("c0", 0), ("c1", 1)):
        theta = problem.vectors.base + (0 if i is None else problem.vectors.vector(i))
        assert corners.loc[name, "loss"] == pytest.approx(float(problem.objective.losses(theta).mean()), rel=1e-4)
    for x, y in plane.corners.values():
        assert left < x < left + side
        assert low < y < low + side


def test_landscape_measures_what_the_evaluator_does(assembly: Assembly) -> None:
    table = list(landscape(assembly, models="colour,base,shape", resolution=3, samples=48))[-1]
    vectors = assembly.problem.vectors
    corners = table[table["series"] == "corner"].set_index(["model", "task"])
    for name in ("colour", "shape"):
        theta = vectors.base + vectors.vector(vectors.names.index(name))
        scores = assembly.evaluator.full(theta, split="validation")  # 48 rows: all of them
        for task, score in scores.items():
            assert corners.loc[(name, task), "accuracy"] == pytest.approx(score.accuracy)
            assert corners.loc[(name, task), "loss"] == pytest.approx(score.loss, rel=1e-4, abs=1e-5)
    assert corners.loc[("base", "joint"), "x"] > 0  # the first model named is the origin
    assert corners.loc[("colour", "joint"), ["x", "y"]].tolist() == [0.0, 0.0]
    one = list(landscape(assembly, task="stripes", resolution=2, samples=8, split="calibration"))[-1]
    assert set(one["task"]) == {"stripes"}
    assert set(one["samples"]) == {8}


def test_a_coarse_picture_comes_first_and_closing_stops_it(assembly: Assembly, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(field, "EVERY", 0.0)
    tables = landscape(assembly, task="shape", resolution=5, samples=4)
    first = next(tables)
    grid = first[first["series"] == "grid"]
    assert set(grid["stride"]) == {4}
    assert first.attrs["done"] < first.attrs["total"] == 28
    later = next(tables)
    assert len(later) > len(first)
    tables.close()
    with pytest.raises(StopIteration):
        next(tables)


def test_high_pass_moves_the_checkpoints_and_keeps_the_base(assembly: Assembly) -> None:
    plain, half, none = (plane_of(assembly, high_pass=cutoff) for cutoff in (0.0, 0.5, 1e-9))
    assert half.corners["base"] == plain.corners["base"] == (0.0, 0.0)
    assert 0 < half.corners["colour"][0] < 0.95 * plain.corners["colour"][0]
    assert none.corners["colour"][0] == pytest.approx(plain.corners["colour"][0], rel=1e-3)
    table = list(landscape(assembly, resolution=2, samples=4, high_pass=0.5, task="shape"))[-1]
    assert set(table["high_pass"]) == {0.5}


def test_random_directions_start_at_the_weights_given(assembly: Assembly) -> None:
    theta = assembly.problem.vectors.base + 0.01
    table = list(landscape(assembly, theta, models="random", resolution=3, samples=8, task="shape"))[-1]
    middle = table[(table["column"] == 1) & (table["row"] == 1)].iloc[0]
    score = assembly.evaluator.focused(("shape",), count=8).quick(theta)["shape"]
    assert middle["loss"] == pytest.approx(score.loss, rel=1e-4)


def test_wrong_questions_are_one_sentence(assembly: Assembly) -> None:
    for options, words in (
        ({"models": "base,colour"}, "three different"),
        ({"models": "base,colour,nobody"}, "'nobody' is not merged here"),
        ({"task": "corner"}, "not of this recipe"),
        ({"resolution": 1}, "resolution"),
        ({"samples": 0}, "at least one sample"),
        ({"margin": math.nan}, "margin"),
        ({"models": "random", "high_pass": 0.5}, "nothing to filter"),
    ):
        with pytest.raises(FwvizError, match=words):
            next(landscape(assembly, **options))  # type: ignore[arg-type]


# --- runs on the landscape ------------------------------------------------------------------------


def test_points_lie_where_the_weights_do(assembly: Assembly, soft: Trace, hard: Trace, average: Trace) -> None:
    table = landscape_points(assembly, traces=[soft, hard, average], models="base,colour,shape")
    plane = plane_of(assembly, models="base,colour,shape")
    vectors = assembly.problem.vectors
    for trace in (soft, hard, average):
        rows = table[table["run"] == (trace.id or trace.recipe.fingerprint())]
        assert rows["t"].tolist() == [float(frame.t) for frame in trace.iterates()]
        assert rows["final"].tolist() == [False] * (len(rows) - 1) + [True]
        for row, frame in zip(rows.itertuples(), trace.iterates(), strict=True):
            known = plane.locate(trace.theta(frame.index, vectors))
            assert (row.x, row.y) == pytest.approx((known.x, known.y), abs=1e-3)
            assert row.out_of_plane == pytest.approx(known.share, abs=2e-3)
            assert row.accuracy == pytest.approx(frame.mean_accuracy)
            assert row.loss == pytest.approx(np.mean(list(frame.task_loss.values())))
    models = table[table["series"] == "model"].set_index("label")
    assert len(models) == 1 + len(vectors.names)
    inside = models["out_of_plane"] < 1e-3
    assert sorted(models[inside].index) == sorted(
        ["base", *(c.title for c in assembly.pool.card.checkpoints if c.id in ("colour", "shape"))]
    )
    assert set(table["task"]) == {"joint"}


def test_runs_may_use_checkpoints_the_recipe_lacks(tiny_pool_path, soft: Trace) -> None:  # type: ignore[no-untyped-def]
    from fwviz.runs.assemble import assemble
    from fwviz.runs.recipe import Recipe

    small = assemble(
        Recipe.from_dict(
            {
                "pool": str(tiny_pool_path),
                "checkpoints": ["shape", "colour"],
                "tasks": ["shape"],
                "method": "weight_average",
            }
        )
    )
    table = landscape_points(small, traces=[soft])
    path = table[table["series"] == "path"]
    plane = plane_of(small)
    last = plane.locate(soft.theta(soft.iterates()[-1].index, _vectors(soft)))
    assert path.iloc[-1]["x"] == pytest.approx(last.x, abs=1e-3)
    assert path.iloc[-1]["out_of_plane"] == pytest.approx(last.share, abs=2e-3)


def _vectors(trace: Trace):  # type: ignore[no-untyped-def]
    from fwviz.runs.assemble import assemble

    return assemble(trace.recipe).problem.vectors


def test_a_run_judged_on_other_tasks_has_no_height_here(assembly: Assembly, soft: Trace, tiny_pool_path: Path) -> None:
    """Losses over different tasks cannot be compared: a plane of two tasks takes their mean, one of others has none."""

    def heights(*tasks: str) -> pd.DataFrame:
        values = {"pool": str(tiny_pool_path), "checkpoints": ["colour", "shape"], "tasks": list(tasks)}
        here = assemble(Recipe.from_dict(values | {"method": "weight_average"}))
        table = landscape_points(here, traces=[soft])
        return table[table["series"] == "path"]

    assert set(soft.tasks) == {"colour", "stripes", "shape"}
    some = heights("colour", "shape")
    for row, frame in zip(some.itertuples(), soft.iterates(), strict=True):
        assert row.loss == pytest.approx((frame.task_loss["colour"] + frame.task_loss["shape"]) / 2)
        assert row.accuracy == pytest.approx((frame.accuracy["colour"] + frame.accuracy["shape"]) / 2)
    other = heights("colour", "corner")
    assert len(other) == len(some)
    assert other["loss"].isna().all()
    assert other["accuracy"].isna().all()


def test_runs_of_another_pool_are_refused(assembly: Assembly, soft: Trace) -> None:
    from dataclasses import replace

    with pytest.raises(FwvizError, match="another pool"):
        landscape_points(assembly, traces=[replace(soft, pool_fingerprint="0" * 16)])


def test_tables_have_numbers_where_numbers_are_meant(assembly: Assembly) -> None:
    table = landscape_points(assembly)
    assert pd.api.types.is_float_dtype(table["x"])
    assert torch.isfinite(torch.tensor(table["distance"].tolist())).all()
