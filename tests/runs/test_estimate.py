"""What is expected of a run: the time of the most similar one before it, scaled; nothing where nothing is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fwviz.runs.estimate import expected_seconds, in_words
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import execute
from fwviz.runs.store import RunStore, RunSummary


def recipe(method: str = "fw_soft", tasks: int = 2, checkpoints: int = 4, **changes: Any) -> Recipe:
    settings = changes.pop("settings", {})
    fields = {"tasks": [f"t{k}" for k in range(tasks)], "checkpoints": [f"c{k}" for k in range(checkpoints)]}
    return Recipe.from_dict({"pool": "some", "method": method, "settings": settings, **fields, **changes})


def ran(seconds: float, of: Recipe, **changes: Any) -> RunSummary:
    return replace(RunSummary("run", "", of, "max_steps", "", 0.5, seconds, ""), **changes)


def test_the_same_again_takes_as_long() -> None:
    assert expected_seconds(recipe(seed=3), [ran(12.0, recipe()), ran(40.0, recipe())]) == 12.0, "the newest counts"


def test_nothing_is_known_without_a_run_like_it() -> None:
    assert expected_seconds(recipe(), []) is None
    others = [
        ran(1.0, recipe("fw_hard")),
        ran(1.0, recipe(device="cuda")),
        ran(1.0, recipe(storage="streamed")),
        ran(1.0, recipe(dtype="bfloat16")),
        ran(1.0, recipe(precision="bfloat16")),
        ran(1.0, recipe(pool="other")),
        ran(1.0, recipe(settings={"batch_size": 64})),
        ran(1.0, recipe(), status="stopped"),
        ran(1.0, recipe(), status="failed"),
        ran(1.0, recipe(), status="running"),
        ran(1.0, recipe(tasks=9)),
        ran(1.0, recipe(checkpoints=17)),
        ran(1.0, recipe(settings={"max_steps": 100})),
    ]
    assert [expected_seconds(recipe(), [other]) for other in others] == [None] * len(others)


@pytest.mark.parametrize(
    "where", [{"device": "cuda"}, {"device": "mps"}, {"device": "cuda:1", "precision": "bfloat16"}]
)
def test_every_device_and_precision_has_times_of_its_own(where: dict[str, str]) -> None:
    before = [ran(30.0, recipe()), ran(3.0, recipe(**where))]
    assert expected_seconds(recipe(**where), before) == 3.0
    assert expected_seconds(recipe(), before) == 30.0


def test_the_first_gpu_is_the_gpu() -> None:
    assert expected_seconds(recipe(device="cuda:0"), [ran(2.0, recipe(device="cuda"))]) == 2.0
    assert expected_seconds(recipe(device="cuda:1"), [ran(2.0, recipe(device="cuda"))]) is None


def test_time_grows_with_tasks_and_updates() -> None:
    before = [ran(10.0, recipe())]
    assert expected_seconds(recipe(tasks=4), before) == pytest.approx(20.0)
    assert expected_seconds(recipe(checkpoints=8), before) == pytest.approx(10.0), "gradients are most of it"
    assert expected_seconds(recipe(settings={"max_steps": 5}), before) == pytest.approx(5.0)
    assert expected_seconds(recipe(settings={"max_steps": 20, "inner_updates": 50}), before) == pytest.approx(40.0)
    assert expected_seconds(recipe(settings={"official_updates": 7}), before) == 10.0, "it has no effect here"


def test_without_data_it_is_the_checkpoints_that_are_read() -> None:
    before = [ran(4.0, recipe("task_arithmetic"))]
    assert expected_seconds(recipe("task_arithmetic", checkpoints=8), before) == pytest.approx(6.0)
    assert expected_seconds(recipe("task_arithmetic", settings={"scale": 0.5}), before) == pytest.approx(4.0)


def test_the_nearest_run_is_asked() -> None:
    before = [ran(100.0, recipe(tasks=8)), ran(9.0, recipe(tasks=3)), ran(1.0, recipe(tasks=1))]
    assert expected_seconds(recipe(tasks=4), before) == pytest.approx(12.0)


def test_a_run_of_the_store_says_what_it_took(tiny_pool_path: Path, tmp_path: Path) -> None:
    fields = {"pool": str(tiny_pool_path), "checkpoints": ["colour", "shape"], "tasks": ["colour"]}
    done = Recipe.from_dict({"method": "weight_average", **fields})
    store = RunStore(tmp_path)
    trace = execute(done, writer=store.create(done))
    assert store.summary(store.ids()[0]) == store.list()[0]
    assert expected_seconds(done, store.list()) == pytest.approx(trace.cost.seconds)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.02, "1 s"), (3.4, "3 s"), (12.4, "10 s"), (63, "65 s"), (91, "2 min"), (3000, "50 min"), (7100, "2 h")],
)
def test_times_are_rounded(seconds: float, words: str) -> None:
    assert in_words(seconds) == f"about {words}"
