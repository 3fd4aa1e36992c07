"""Merges by hand: as a recipe in every form it takes, as a run, and as an edit that is judged at once."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fwviz.cli import recipe_from_arguments
from fwviz.methods.given_coefficients import Settings, given_coefficients
from fwviz.runs.assemble import Assembly, assemble
from fwviz.runs.edit import edited, edited_recipe, refined
from fwviz.runs.recipe import MAX_CELLS, Recipe, coefficients_text
from fwviz.runs.runner import execute
from fwviz.types import Coefficients, FwvizError, Problem
from tests.toy import toy_problem

PLAIN: dict[str, Any] = {
    "pool": "vision",
    "checkpoints": ["a", "b", "c"],
    "tasks": ["a"],
    "method": "given_coefficients",
}


def by_hand(values: Any, granularity: str = "layer", **changes: Any) -> Recipe:
    return Recipe.from_dict({**PLAIN, **changes, "coefficients": {"granularity": granularity, "values": values}})


@pytest.fixture(scope="module")
def assembly(tiny_pool_path: Path) -> Assembly:
    values = {"pool": str(tiny_pool_path), "checkpoints": ["colour", "stripes", "shape"], "tasks": ["colour", "shape"]}
    return assemble(Recipe.from_dict(values | {"method": "weight_average"}))


# --- the recipe ---------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.floats(-10, 10), min_size=3, max_size=3), min_size=1, max_size=6),
    st.sampled_from(["layer", "tensor"]),
)
def test_every_way_out_leads_back_in(values: list[list[float]], granularity: str) -> None:
    recipe = by_hand(values, granularity)
    assert recipe.coefficients is not None
    for row, expected in zip(recipe.coefficients.values, values, strict=True):
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-300)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert Recipe.from_text(recipe.to_yaml()) == recipe
    assert Recipe.from_text(recipe.to_json()) == recipe
    assert Recipe.from_url(recipe.to_url() + "&tab=weights") == recipe
    words = shlex.split(recipe.cli_line())
    assert words[-1] == f"--coefficients={coefficients_text(recipe.coefficients)}"


def test_a_group_is_a_line_of_the_file_and_a_word_of_the_link() -> None:
    recipe = by_hand([[0.3, -0.25, 0], [1, 0, 0.1234567]])
    assert "  - [0.3, -0.25, 0.0]\n  - [1.0, 0.0, 0.123457]\n" in recipe.to_yaml()
    assert "coefficients=layer:0.3,-0.25,0_1,0,0.123457" in recipe.to_url()
    other = by_hand([[0.3, -0.25, 0], [1, 0, 0.2]])
    assert other.fingerprint() != recipe.fingerprint()


def test_recipes_without_coefficients_look_as_before() -> None:
    recipe = Recipe.from_dict({**PLAIN, "method": "task_arithmetic"})
    assert "coefficients" not in recipe.to_dict()
    assert "coefficients" not in recipe.to_yaml() + recipe.to_url() + recipe.cli_line()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"coefficients": {"granularity": "layer", "values": [[0.1, 0.2]]}}, "2 columns, but there are 3 checkpoints"),
        ({"coefficients": {"granularity": "layer", "values": [[0.1, 0.2, 0.3], [1]]}}, "equally long"),
        ({"coefficients": {"granularity": "model", "values": [[0, 0, 0], [0, 0, 0]]}}, "a model is one group"),
        (
            {"coefficients": {"granularity": "block", "values": [[0, 0, 0]]}},
            "granularity of the coefficients is 'block'",
        ),
        ({"coefficients": {"granularity": [], "values": [[0, 0, 0]]}}, "granularity"),
        ({"coefficients": {"values": [[0, 0, 0]]}}, "must have 'granularity' and 'values'"),
        ({"coefficients": {"granularity": "layer", "values": []}}, "list of rows"),
        ({"coefficients": {"granularity": "layer", "values": [[]]}}, "list of rows"),
        ({"coefficients": {"granularity": "layer", "values": "0.1"}}, "list of rows"),
        ({"coefficients": {"granularity": "layer", "values": [[0, math.nan, 0]]}}, "a coefficient is nan"),
        ({"coefficients": {"granularity": "layer", "values": [[0, 11, 0]]}}, "between -10 and 10"),
        ({"coefficients": {"granularity": "layer", "values": [[0, 10**400, 0]]}}, "a huge number"),
        ({"coefficients": {"granularity": "layer", "values": [[0, True, 0]]}}, "a coefficient is True"),
        ({"coefficients": {"granularity": "layer", "values": [[0, "x", 0]]}}, "a coefficient is 'x'"),
        ({"coefficients": {"granularity": "layer", "values": [[0.0] * 3] * MAX_CELLS}}, "at most 5000"),
        ({"coefficients": "layer"}, "list of rows"),
        ({"coefficients": "layer:0.1,,0.2"}, "a coefficient is ''"),
        ({"coefficients": 3}, "'granularity' and 'values'"),
        ({"method": "task_arithmetic", "coefficients": "model:0.1,0.2,0.3"}, "finds its own coefficients"),
    ],
)
def test_wrong_coefficients_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(FwvizError, match=words):
        Recipe.from_dict({**PLAIN, **change})


def test_too_many_for_a_link_but_not_for_a_file() -> None:
    recipe = by_hand([[0.123456] * 3] * 200, "tensor")
    assert Recipe.from_text(recipe.to_yaml()) == recipe
    with pytest.raises(FwvizError, match="too many for a link"):
        recipe.to_url()


def test_the_command_line_repeats_the_merge(assembly: Assembly) -> None:
    recipe = edited_recipe(assembly.recipe, "model", [[0.5, -0.2, 0.0]])
    assert recipe_from_arguments(shlex.split(recipe.cli_line())[2:]) == recipe


# --- the method ---------------------------------------------------------------------------------


def test_the_method_merges_what_it_is_given() -> None:
    toy = toy_problem(n=3)
    groups = toy.groups("layer")
    values = torch.linspace(-0.5, 1.0, 3 * len(groups)).view(len(groups), 3)
    problem = Problem(
        toy.vectors, toy.objective, given=Coefficients("layer", tuple(tuple(row) for row in values.tolist()))
    )
    (step,) = given_coefficients(problem, Settings(scale=0.5))
    assert step.granularity == "layer"
    torch.testing.assert_close(step.coefficients, 0.5 * values)
    assert step.in_hull is False
    (inside,) = given_coefficients(
        Problem(toy.vectors, toy.objective, given=Coefficients("model", ((0.5, 0.5, 0),))), Settings()
    )
    assert inside.in_hull is True
    (start,) = given_coefficients(toy, Settings())
    torch.testing.assert_close(start.coefficients, torch.full((1, 3), 1 / 3))


def test_another_model_is_refused(assembly: Assembly) -> None:
    recipe = edited_recipe(assembly.recipe, "layer", [[0.1, 0.2, 0.3]])
    with pytest.raises(FwvizError, match="1 groups, but the model"):
        assemble(recipe)


# --- the edit -----------------------------------------------------------------------------------


def test_an_edit_scores_what_the_run_of_its_recipe_scores(assembly: Assembly) -> None:
    groups = assembly.problem.groups("layer")
    values = torch.full((len(groups), 3), 0.3)
    values[1, 0], values[-1, 2] = 0.9, -0.1
    buffer = torch.empty_like(assembly.problem.vectors.base, dtype=torch.float32)
    found = edited(assembly, "layer", values, out=buffer)
    assert found is not None
    trace = execute(found.recipe)
    assert trace.status == "converged"
    assert trace.frames[0].accuracy == {task: score.accuracy for task, score in found.scores.items()}
    assert found.mean_accuracy == pytest.approx(trace.frames[0].mean_accuracy)
    torch.testing.assert_close(trace.theta(0, assembly.problem.vectors), buffer)
    again = edited(assembly, "layer", torch.zeros_like(values))
    assert again is not None
    base = assembly.evaluator.quick(assembly.problem.vectors.base)
    assert again.scores == base
    assert edited(assembly, "layer", values, should_stop=lambda: True) is None
    with pytest.raises(FwvizError, match="2 rows of coefficients"):
        edited(assembly, "layer", values[:2])
    with pytest.raises(FwvizError, match="a coefficient is nan"):
        edited(assembly, "layer", values * math.nan)


def test_finer_groups_make_the_same_merge(assembly: Assembly) -> None:
    vectors = assembly.problem.vectors
    layers = torch.randn(len(vectors.layout.groups("layer")), 3, generator=torch.Generator().manual_seed(0))
    tensors = refined(layers, "layer", "tensor", vectors.layout)
    assert tensors.shape == (len(vectors.layout.names), 3)
    fine = vectors.combine(tensors, vectors.layout.groups("tensor"))
    torch.testing.assert_close(fine, vectors.combine(layers, vectors.layout.groups("layer")))
    with pytest.raises(FwvizError, match="choose finer"):
        refined(tensors, "tensor", "layer", vectors.layout)
