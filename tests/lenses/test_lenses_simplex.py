"""The triangle of three checkpoints and the straight way between two models."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fwviz.lenses import _field as field
from fwviz.lenses import interpolation as interpolation_module
from fwviz.lenses import simplex as simplex_module
from fwviz.lenses.interpolation import interpolation
from fwviz.lenses.simplex import simplex, triangle
from fwviz.lenses.simplex_paths import barycentric, simplex_paths, simplex_recipes
from fwviz.registry import entries
from fwviz.runs.assemble import Assembly
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import execute
from fwviz.runs.trace import Trace
from fwviz.space.plane import plane_through
from fwviz.types import FwvizError, Problem, Score
from tests.toy import toy_problem

THREE = ("colour", "stripes", "shape")


def exact(problem: Problem) -> field.Measure:
    def measure(theta: Tensor) -> dict[str, Score]:
        losses = problem.objective.losses(theta).tolist()
        return {t: Score(0.5, value, 1) for t, value in zip(problem.objective.tasks, losses, strict=True)}

    return measure


# --- triangle -------------------------------------------------------------------------------------


def test_every_mix_of_the_toy_has_its_analytic_loss() -> None:
    problem = toy_problem()
    names = ("c3", "c0", "c1")
    plane = plane_through(problem.vectors, names)
    table = list(simplex_module.survey(plane, exact(problem), 6, {}))[-1]
    assert table.attrs == {"done": 28, "total": 28}
    grid = table[(table["series"] == "grid") & (table["task"] == "t1")]
    assert len(grid) == 28
    weights = problem.vectors.matrix[[3, 0, 1]].double()
    for row in grid.itertuples():
        shares = torch.tensor([row.lambda_1, row.lambda_2, row.lambda_3], dtype=torch.float64)
        assert float(shares.sum()) == pytest.approx(1)
        assert float(shares.min()) >= 0
        assert (row.lambda_2, row.lambda_3) == pytest.approx((row.column / 6, row.row / 6))
        loss = problem.objective.losses(problem.vectors.base.double() + shares @ weights, tasks=["t1"])
        assert row.loss == pytest.approx(float(loss), rel=1e-4)
    corners = table[(table["series"] == "corner") & (table["task"] == "joint")].set_index("model")
    for name, i in (("c3", 3), ("c0", 0), ("c1", 1)):
        loss = problem.objective.losses(problem.vectors.base + problem.vectors.vector(i)).mean()
        assert corners.loc[name, "loss"] == pytest.approx(float(loss), rel=1e-4)


def test_corners_of_the_triangle_are_the_checkpoints(assembly: Assembly) -> None:
    table = list(simplex(assembly, models="shape,colour,stripes", steps=2, samples=16, task="shape"))[-1]
    corners = table[table["series"] == "corner"].set_index("model")
    vectors, judge = assembly.problem.vectors, assembly.evaluator.focused(("shape",), count=16)
    for name in THREE:
        score = judge.quick(vectors.base + vectors.vector(vectors.names.index(name)))["shape"]
        assert corners.loc[name, "accuracy"] == pytest.approx(score.accuracy)
        assert corners.loc[name, "loss"] == pytest.approx(score.loss, rel=1e-3, abs=1e-5)
    assert list(corners.loc["shape", ["lambda_1", "lambda_2", "lambda_3"]]) == [1, 0, 0]
    assert list(corners.loc["stripes", ["lambda_1", "lambda_2", "lambda_3"]]) == [0, 0, 1]


def test_barycentric_coordinates_undo_the_mix(assembly: Assembly) -> None:
    plane = triangle(assembly, "shape,colour,stripes")
    places = np.array(list(plane.corners.values()))
    for shares in ((0.2, 0.3, 0.5), (1.0, 0.0, 0.0), (1.4, -0.1, -0.3)):
        x, y = np.array(shares) @ places
        assert barycentric(plane, x, y) == pytest.approx(shares, abs=1e-9)


@pytest.fixture(scope="module")
def runs(tiny_pool_path: Path) -> dict[str, Trace]:
    """The recipes that the view runs, run."""
    values = {"pool": str(tiny_pool_path), "checkpoints": THREE, "tasks": ["corner"], "method": "weight_average"}
    recipes = simplex_recipes(Recipe.from_dict(values), THREE)
    assert {"fw_hard", "fw_soft", "task_arithmetic", "weight_average"} <= {r.method for r in recipes}
    assert {r.method for r in recipes} <= set(entries("methods"))
    assert all(r.tasks == r.checkpoints == THREE for r in recipes)
    chosen = ("fw_hard", "task_arithmetic", "weight_average")
    return {r.method: execute(r) for r in recipes if r.method in chosen}


def test_runs_lie_on_the_triangle_where_their_coefficients_say(assembly: Assembly, runs: dict[str, Trace]) -> None:
    table = simplex_paths(assembly, list(runs.values()), models=",".join(THREE))
    base = table[table["series"] == "model"].iloc[0]
    assert base["out_of_plane"] == 1.0
    average = table[table["method"] == "weight_average"].iloc[-1]
    assert list(average[["lambda_1", "lambda_2", "lambda_3"]]) == pytest.approx([1 / 3] * 3, abs=1e-5)
    assert average["out_of_plane"] == pytest.approx(0, abs=1e-4)
    arithmetic = table[table["method"] == "task_arithmetic"].iloc[-1]
    assert arithmetic["out_of_plane"] == pytest.approx(0.1, abs=1e-5)  # three times 0.3
    hard = table[table["method"] == "fw_hard"]
    for row, frame in zip(hard.itertuples(), runs["fw_hard"].iterates(), strict=True):
        assert frame.coefficients is not None
        assert row.out_of_plane == pytest.approx(abs(1 - sum(frame.coefficients[0])), abs=1e-4)
        assert row.lambda_1 + row.lambda_2 + row.lambda_3 == pytest.approx(1)


def test_runs_of_other_checkpoints_are_left_out(assembly: Assembly, soft: Trace, runs: dict[str, Trace]) -> None:
    table = simplex_paths(assembly, [soft, runs["fw_hard"]], models=",".join(THREE))
    assert set(table["method"]) == {"", "fw_hard"}  # soft merged five


def test_a_triangle_needs_three_checkpoints(assembly: Assembly) -> None:
    for models in ("base,colour,shape", "colour,shape", "colour,shape,nobody", "colour,shape,shape"):
        with pytest.raises(FwvizError):
            next(simplex(assembly, models=models))
    with pytest.raises(FwvizError, match="three different"):
        simplex_recipes(assembly.recipe, ("colour", "shape"))
    with pytest.raises(FwvizError, match="steps"):
        next(simplex(assembly, steps=0))


# --- the way between two --------------------------------------------------------------------------


def way(problem: Problem, measure: field.Measure, points: int = 11) -> object:
    first, last = problem.vectors.base, problem.vectors.base + problem.vectors.vector(2)
    return list(interpolation_module.survey(first, last, measure, points, {"way": "base → c2"}))[-1]


def test_a_convex_quadratic_has_no_barrier_and_a_hill_has_its_height() -> None:
    problem = toy_problem()
    table = way(problem, exact(problem))
    assert table["barrier"].tolist() == pytest.approx([0.0] * len(table), abs=1e-5)  # type: ignore[index]
    first, last = problem.vectors.base, problem.vectors.base + problem.vectors.vector(2)

    def hill(theta: Tensor) -> dict[str, Score]:
        share = float((theta - first) @ (last - first) / (last - first).square().sum())
        return {"t": Score(0.5, 2.0 + share + 4 * 0.7 * share * (1 - share), 1)}

    bumpy = way(problem, hill)
    assert bumpy["barrier"].iloc[0] == pytest.approx(0.7, abs=1e-4)  # type: ignore[index]
    top = bumpy.loc[bumpy["above"].idxmax()]  # type: ignore[attr-defined, index]
    assert top["gamma"] == pytest.approx(0.5)
    assert top["chord"] == pytest.approx(2.5, abs=1e-5)


def test_the_way_of_the_toy_has_its_analytic_losses() -> None:
    problem = toy_problem()
    table = way(problem, exact(problem))
    rows = table[table["task"] == "t0"]  # type: ignore[index]
    assert rows["gamma"].tolist() == pytest.approx([k / 10 for k in range(11)])
    for row in rows.itertuples():
        theta = problem.vectors.base.double() + row.gamma * problem.vectors.vector(2).double()
        assert row.loss == pytest.approx(float(problem.objective.losses(theta, tasks=["t0"])), rel=1e-4)
    assert rows["length"].iloc[0] == pytest.approx(float(problem.vectors.vector(2).norm()), rel=1e-5)
    assert rows["above"].iloc[[0, -1]].tolist() == pytest.approx([0.0, 0.0], abs=1e-9)


def test_both_ends_are_the_models_named(assembly: Assembly) -> None:
    vectors = assembly.problem.vectors
    theta = vectors.base + 0.5 * vectors.vector(0)
    judge = assembly.evaluator.focused(("shape",), count=16)
    options = {"task": "shape", "samples": 16, "points": 3}
    table = list(interpolation(assembly, theta, start="shape", **options))[-1]  # type: ignore[arg-type]
    assert set(table["way"]) == {"shape → merge"}
    own = judge.quick(vectors.base + vectors.vector(2))["shape"].loss
    merged = judge.quick(theta)["shape"].loss
    assert table["loss"].iloc[0] == pytest.approx(own, rel=1e-3, abs=1e-5)
    assert table["loss"].iloc[-1] == pytest.approx(merged, rel=1e-3, abs=1e-5)
    for wrong, words in (
        ({"start": "base", "end": "base"}, "no length"),
        ({"start": "merge"}, "no merged model"),
        ({"end": "nobody"}, "not merged here"),
        ({"points": 1}, "points"),
    ):
        with pytest.raises(FwvizError, match=words):
            next(interpolation(assembly, **wrong))  # type: ignore[arg-type]


def test_the_drawn_barrier_is_the_measured_one(assembly: Assembly) -> None:
    from fwviz.charts.interpolation_curve import barrier

    table = list(interpolation(assembly, end="shape_foreign", points=5, samples=16))[-1]
    joint = table[table["task"] == "joint"]
    height, at, chord = barrier(joint)
    assert height == pytest.approx(joint["barrier"].iloc[0])
    assert height > 0.1  # a fine-tune of another base lies behind a hill
    row = joint[joint["gamma"] == at].iloc[0]
    assert chord == pytest.approx(row["chord"])
    assert math.isclose(row["loss"] - chord, height)
