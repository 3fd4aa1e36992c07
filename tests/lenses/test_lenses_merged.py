"""Lenses that judge models anew: one task vector on every task, features of merges, tasks that were left out."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from fwviz.backbones.folders import base_folder
from fwviz.lenses.cka import cka
from fwviz.lenses.generalisation import generalisation
from fwviz.lenses.left_out import left_out
from fwviz.pools.open import pool_card
from fwviz.runs.assemble import Assembly, assemble
from fwviz.runs.export import merged_parts
from fwviz.runs.own import own_pool
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import execute
from fwviz.runs.store import RunStore
from fwviz.runs.trace import Trace
from fwviz.space.layout import unflatten
from fwviz.space.similarity import linear_cka
from fwviz.space.spectrum import high_pass
from fwviz.types import FwvizError
from tests.own_models import lora_of


def opened(pool: Path, checkpoints: tuple[str, ...], tasks: tuple[str, ...]) -> Assembly:
    return assemble(recipe(pool, checkpoints, tasks, "weight_average"))


def recipe(pool: Path, checkpoints: tuple[str, ...], tasks: tuple[str, ...], method: str, **settings: Any) -> Recipe:
    values = {"pool": str(pool), "checkpoints": checkpoints, "tasks": tasks, "method": method, "settings": settings}
    return Recipe.from_dict(values)


def last(tables: Iterator[pd.DataFrame]) -> pd.DataFrame:
    seen = list(tables)
    assert seen[-1].attrs["done"] == seen[-1].attrs["total"]
    return seen[-1]


# --- one task vector on every task ----------------------------------------------------------------


def test_every_cell_is_one_task_vector_on_the_base(tiny_pool_path: Path, tmp_path: Path) -> None:
    here = opened(tiny_pool_path, ("stripes", "corner"), ("colour", "stripes"))
    store = RunStore(tmp_path)
    tables = list(generalisation(here, cutoff=0.4, scale=0.8, store=store))
    assert [table.attrs["done"] for table in tables] == [1, 2, 3, 4]
    table = tables[-1]
    assert list(table["checkpoint"]) == ["stripes", "stripes", "corner", "corner"]
    assert list(table["own"]) == [False, True, False, False]
    vectors = here.problem.vectors
    for i, name in enumerate(vectors.names):
        tau = vectors.vector(i)
        scores = here.evaluator.full(vectors.base + 0.8 * tau, "test")
        fine = tau.clone()
        for tensor, values in unflatten(vectors.layout, fine).items():
            if values.dim() == 2 and ("attn" in tensor or "mlp" in tensor):
                values.copy_(high_pass(values, 0.4))
        assert not torch.equal(fine, tau)
        filtered = here.evaluator.full(vectors.base + 0.8 * fine, "test")
        for row in table[table["checkpoint"] == name].itertuples():
            assert row.accuracy == pytest.approx(scores[row.task].accuracy)
            assert row.filtered == pytest.approx(filtered[row.task].accuracy)
            assert row.difference == pytest.approx(row.filtered - row.accuracy)
            assert row.base == here.pool.card.task(row.task).accuracy["base"]["test"]
    assert len(store.ids()) == 4
    again = last(generalisation(here, cutoff=0.4, scale=0.8, store=store))
    assert len(store.ids()) == 4
    assert again["reused"].all()
    assert not table["reused"].any()
    columns = ["accuracy", "filtered", "run", "run_filtered"]
    pd.testing.assert_frame_equal(again[columns], table[columns])


def test_no_filter_changes_nothing(tiny_pool_path: Path) -> None:
    here = opened(tiny_pool_path, ("stripes",), ("colour", "stripes"))
    table = last(generalisation(here, cutoff=0.0, split="validation"))
    assert (table["difference"] == 0.0).all()
    scores = here.evaluator.full(here.problem.vectors.base + here.problem.vectors.vector(0), "validation")
    assert list(table["accuracy"]) == pytest.approx([scores[task].accuracy for task in table["task"]])


@pytest.mark.parametrize(
    ("options", "words"),
    [({"cutoff": 1.5}, "cutoff"), ({"scale": 0.0}, "scale"), ({"split": "calibration"}, "split")],
)
def test_generalisation_says_what_is_wrong(assembly: Assembly, options: dict[str, Any], words: str) -> None:
    with pytest.raises(FwvizError, match=words):
        next(generalisation(assembly, **options))


# --- features of merges ---------------------------------------------------------------------------


def test_cka_of_adapters_beside_whole_checkpoints(tiny_pool_path: Path, tmp_path: Path) -> None:
    """An adapter cannot be streamed, so a merge with one is rebuilt in memory."""
    card = pool_card(tiny_pool_path)
    adapter = lora_of(card.root / card.checkpoint("shape").path, base_folder(card), tmp_path / "low")
    pool = own_pool(str(tiny_pool_path.resolve()), tmp_path / "mixed", checkpoints=[("low", adapter)]).root
    trace = execute(recipe(pool, ("colour", "low"), ("colour",), "weight_average"))
    table = last(cka(opened(pool, ("colour", "low"), ("colour",)), [trace], samples=40)).set_index("run")
    assert 0.5 < table.loc[trace.recipe.fingerprint(), "cka"] < 1.0


def test_cka_compares_with_the_tasks_own_checkpoints(assembly: Assembly, soft: Trace, tiny_pool_path: Path) -> None:
    alone = execute(recipe(tiny_pool_path, ("stripes",), ("stripes",), "task_arithmetic", scale=1.0))
    table = last(cka(assembly, [soft, alone], samples=40)).set_index(["run", "task"])
    vectors, tasks = assembly.problem.vectors, assembly.recipe.tasks
    judge = assembly.evaluator.focused(tasks, count=40)

    def read(theta: Tensor) -> dict[str, Tensor]:
        return judge.features(theta)

    own = {task: read(vectors.base + vectors.vector(vectors.names.index(task)))[task] for task in tasks}
    merged = read(soft.theta(-1, vectors))
    for task in tasks:
        assert own[task].shape[0] == 40
        assert table.loc[("", task), "cka"] == pytest.approx(linear_cka(read(vectors.base)[task], own[task]), abs=1e-5)
        found = table.loc[(soft.recipe.fingerprint(), task)]
        assert found["cka"] == pytest.approx(linear_cka(merged[task], own[task]), abs=1e-5)
        assert found["base"] == table.loc[("", task), "cka"]
    # The checkpoint itself is what its own task is compared with, and not so the others.
    rows = table.loc[alone.recipe.fingerprint(), "cka"]
    assert rows["stripes"] == pytest.approx(1.0, abs=1e-6)
    assert max(rows["colour"], rows["shape"]) < 0.999


def test_cka_sees_experts(assembly: Assembly, tiny_pool_path: Path, tmp_path: Path) -> None:
    """An expert that keeps everything and takes the backbone's place is the own checkpoint; without it, it is not."""
    store = RunStore(tmp_path)
    whole = {"density": 1.0, "constant": 1.0, "combine": "replace", "router": "oracle"}
    names = assembly.recipe.checkpoints
    wanted = recipe(tiny_pool_path, names, assembly.recipe.tasks, "free_merging", **whole)
    execute(wanted, writer=store.create(wanted))
    trace = store.load(store.ids()[0])
    kept = last(cka(assembly, [trace], samples=40, store=store))
    made = kept[kept["run"] == trace.id]
    assert made["cka"].min() > 0.9999  # experts are stored as float16
    again = last(cka(assembly, [trace], samples=40))  # run once more, where nothing was kept
    pd.testing.assert_frame_equal(again, kept)
    assert kept[kept["run"] == ""]["cka"].max() < 0.999


def test_cka_needs_a_checkpoint_of_the_tasks_own(assembly: Assembly) -> None:
    card = assembly.pool.card
    without = replace(card, checkpoints=tuple(replace(c, kind="weak") for c in card.checkpoints))
    pool = copy.copy(assembly.pool)
    pool.card = without
    with pytest.raises(FwvizError, match="choose other tasks"):
        next(cka(replace(assembly, pool=pool)))


# --- tasks left out -------------------------------------------------------------------------------


def test_tasks_left_out_are_those_no_run_knows(tiny_pool_path: Path) -> None:
    known = ("colour", "stripes")
    here = opened(tiny_pool_path, known, known)
    runs = [
        execute(recipe(tiny_pool_path, known, known, "weight_average")),
        execute(recipe(tiny_pool_path, known, ("colour",), "task_arithmetic", scale=1.0)),
    ]
    table = last(left_out(here, runs))
    assert set(table["task"]) == {"shape", "corner"}
    other = opened(tiny_pool_path, known, ("shape", "corner"))
    vectors = here.problem.vectors
    for trace, scale in zip(runs, (0.5, 1.0), strict=True):
        theta = vectors.base + scale * (vectors.vector(0) + vectors.vector(1))
        scores = other.evaluator.full(theta, "test")
        rows = table[table["run"] == trace.recipe.fingerprint()].set_index("task")
        for task in ("shape", "corner"):
            assert rows.loc[task, "accuracy"] == pytest.approx(scores[task].accuracy)
    first = table[table["run"] == ""].set_index("task")
    for task, score in other.evaluator.full(here.problem.vectors.base, "test").items():
        assert first.loc[task, "accuracy"] == first.loc[task, "base"] == pytest.approx(score.accuracy)
    for _, rows in table[table["run"] != ""].groupby("task"):
        best = rows.sort_values("accuracy", ascending=False)
        assert list(best["rank"]) == sorted(best["rank"])
        assert best["rank"].sum() == 3.0
    # A run that merged the checkpoint of a task knows it, whatever it was judged on.
    third = execute(recipe(tiny_pool_path, (*known, "corner"), known, "weight_average"))
    assert set(last(left_out(here, [*runs, third]))["task"]) == {"shape"}


def test_nobody_tells_the_task_of_a_task_left_out(tiny_pool_path: Path) -> None:
    """Who has to be told the task has no expert there: the backbone answers."""
    known = ("colour", "stripes")
    here = opened(tiny_pool_path, known, known)
    table = last(left_out(here, [execute(recipe(tiny_pool_path, known, known, "emr", router="oracle"))]))
    trained = last(left_out(here, [execute(recipe(tiny_pool_path, known, known, "emr", router="trained"))]))
    assert set(table["task"]) == set(trained["task"]) == {"shape", "corner"}
    theta, extension = merged_parts(execute(recipe(tiny_pool_path, known, known, "emr", router="oracle")), -1, here)
    assert extension is not None
    scores = opened(tiny_pool_path, known, ("shape", "corner")).evaluator.full(theta, "test")
    for row in table[table["run"] != ""].itertuples():
        assert row.accuracy == pytest.approx(scores[row.task].accuracy)


def test_runs_must_fit_and_leave_something_out(assembly: Assembly, soft: Trace) -> None:
    with pytest.raises(FwvizError, match="every task"):
        next(left_out(assembly, [soft]))
    with pytest.raises(FwvizError, match="another pool"):
        next(left_out(assembly, [replace(soft, pool_fingerprint="0" * 16)]))
    with pytest.raises(FwvizError, match="another pool"):
        next(cka(assembly, [replace(soft, pool_fingerprint="0" * 16)]))
