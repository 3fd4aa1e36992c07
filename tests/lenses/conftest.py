"""Opened recipes and really recorded runs on the tiny pool, made once for all lens tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fwviz.runs.assemble import Assembly, assemble
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import execute
from fwviz.runs.trace import Trace

CHECKPOINTS = ("colour", "stripes", "shape", "corner", "shape_foreign")
TASKS = ("colour", "stripes", "shape")


def recipe(pool: Path, method: str, **settings: Any) -> Recipe:
    values = {"pool": str(pool), "checkpoints": CHECKPOINTS, "tasks": TASKS, "method": method, "settings": settings}
    return Recipe.from_dict(values)


@pytest.fixture(scope="session")
def assembly(tiny_pool_path: Path) -> Assembly:
    """The tiny pool opened for three of its tasks and all its checkpoints."""
    return assemble(recipe(tiny_pool_path, "weight_average"))


@pytest.fixture(scope="session")
def soft(tiny_pool_path: Path) -> Trace:
    """A model-wise FW-soft run with inner updates."""
    return execute(recipe(tiny_pool_path, "fw_soft", max_steps=3, inner_updates=4))


@pytest.fixture(scope="session")
def hard(tiny_pool_path: Path) -> Trace:
    """A layer-wise FW-hard run."""
    return execute(recipe(tiny_pool_path, "fw_hard", max_steps=3, init="base", step_rule="open_loop"))


@pytest.fixture(scope="session")
def searched(tiny_pool_path: Path) -> Trace:
    """A run that searched its scale."""
    return execute(recipe(tiny_pool_path, "ties", scale_search="calibration", scale_points=4))


@pytest.fixture(scope="session")
def average(tiny_pool_path: Path) -> Trace:
    """A one-shot run without an oracle."""
    return execute(recipe(tiny_pool_path, "weight_average"))
