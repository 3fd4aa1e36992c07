"""What a run holds: base, weights and gradient of the model, and no further vector of its size, whatever n is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fwviz.bench.synthetic import random_base, random_objective, vit_layout, write_pool
from fwviz.pools.open import open_pool
from fwviz.registry import entry, parse_settings
from fwviz.runs.assemble import assemble
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import Control, run
from fwviz.space.vectors import StreamedTaskVectors
from fwviz.types import Problem
from tests.toy import toy_problem

LAYOUT = vit_layout(width=24, blocks=2, patch=8, image=16)
METHODS: dict[str, dict[str, Any]] = {
    "fw_soft": {"max_steps": 2, "inner_updates": 2, "batch_size": 2, "init": "average"},
    "fw_hard": {"max_steps": 2, "init": "average"},
    "adamerging": {"updates": 2},
    "supermerge": {"updates": 2},
}


class LargeTensors(TorchDispatchMode):
    """Counts the tensors of at least ``size`` elements that come into being."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.made: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {t.untyped_storage().data_ptr() for t in (*args, *(kwargs or {}).values()) if isinstance(t, Tensor)}
        found = function(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else (found,):
            new = isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in before
            if new and tensor.numel() >= self.size:
                self.made.append(f"{function} {tuple(tensor.shape)}")
        return found


@contextmanager
def small_blocks() -> Iterator[None]:
    with mock.patch.multiple("fwviz.space.vectors", _ROWS=2, _COLUMNS=1000):
        yield


@pytest.mark.parametrize("method", METHODS)
def test_no_vector_of_the_models_size_is_made(tmp_path: Path, method: str) -> None:
    """Beside the base and what the model is made of; one that copies θ once is noticed."""
    files = list(write_pool(tmp_path, LAYOUT, 5))
    vectors = StreamedTaskVectors(LAYOUT, "abcde", random_base(LAYOUT), files)
    problem = Problem(vectors, random_objective(LAYOUT, 2, 4, 10))
    found = entry("methods", method)
    assert found.settings is not None
    with small_blocks(), LargeTensors(LAYOUT.size) as large:
        steps = sum(1 for _ in found.run(problem, parse_settings(found.settings, METHODS[method])))
        assert steps > 2
        assert large.made == []
        torch.empty_like(vectors.base)
        assert len(large.made) == 1, "the count would notice one"


def test_the_room_is_the_models_own(tiny_pool_path: Path) -> None:
    recipe = Recipe.from_dict({"pool": str(tiny_pool_path), "method": "fw_hard"}, open_pool(tiny_pool_path).card)
    problem = assemble(recipe).problem
    assert problem.room().data_ptr() == problem.objective.place.data_ptr()  # type: ignore[attr-defined]
    assert problem.room().data_ptr() != problem.vectors.base.data_ptr()


class Impatient(Control):
    """Says stop once it was asked ``patience`` times, wherever the run is then."""

    def __init__(self, patience: int) -> None:
        super().__init__()
        self._left = patience

    @property
    def stopped(self) -> bool:
        self._left -= 1
        return self._left < 0


@pytest.mark.parametrize("patience", [4, 9, 17])
@pytest.mark.parametrize("method", ["fw_hard", "fw_soft", "adamerging"])
def test_a_run_that_is_stopped_inside_a_gradient_is_judged_at_its_last_step(
    tiny_pool_path: Path, method: str, patience: int
) -> None:
    """The method has left other weights in the model by then."""
    recipe = Recipe.from_dict({"pool": str(tiny_pool_path), "method": method}, open_pool(tiny_pool_path).card)
    *_, last = run(recipe, control=Impatient(patience))
    assert last.status == "stopped"
    assert last.coefficients is not None
    opened = assemble(recipe)
    groups = opened.problem.vectors.layout.groups(last.granularity)
    theta = opened.problem.vectors.combine(torch.tensor(last.coefficients), groups)
    for split, found in last.final.items():
        for task, score in opened.evaluator.full(theta, split).items():
            assert found[task].accuracy == score.accuracy
            assert found[task].loss == pytest.approx(score.loss, abs=1e-4)
    assert set(last.final) == {"test", "validation"}


def test_an_objective_without_a_model_lends_nothing() -> None:
    problem = toy_problem()
    room = problem.room()
    assert room.shape == problem.vectors.base.shape
    assert room.data_ptr() != problem.room().data_ptr()


def test_a_room_of_another_kind_is_not_taken(tiny_pool_path: Path) -> None:
    """A model in half precision, say: θ is built in float32."""
    recipe = Recipe.from_dict({"pool": str(tiny_pool_path), "method": "fw_hard"}, open_pool(tiny_pool_path).card)
    problem = assemble(recipe).problem
    with mock.patch.object(type(problem.objective), "place", torch.empty(problem.vectors.base.shape).half()):
        assert problem.room().dtype == torch.float32
