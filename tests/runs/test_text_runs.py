"""Runs on a pool of adapters: every kind of method, from one shot to probes into the encoder, ends with its scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fwviz.registry import describe_settings, entries, entry
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import execute

METHODS: dict[str, dict[str, Any]] = {
    "weight_average": {},
    "ties": {},
    "regmean": {},
    "fw_hard": {"max_steps": 3},
    "adamerging": {"updates": 2},
}
# Enough of each other method to exercise it; a value is used only where the method has such a setting.
SHORT = {"max_steps": 2, "inner_updates": 3, "updates": 4, "mask_updates": 3, "samples": 8, "passes": 8}


def recipe(pool: Path, method: str, **values: Any) -> Recipe:
    checkpoints = ["food", "mood", "place", "time"]
    given = {"pool": str(pool), "checkpoints": checkpoints, "tasks": ["food", "mood"], "method": method}
    return Recipe.from_dict(given | {"settings": METHODS.get(method, {})} | values)


@pytest.mark.parametrize("method", METHODS)
def test_a_merge_of_adapters_is_scored(method: str, tiny_text_pool_path: Path) -> None:
    trace = execute(recipe(tiny_text_pool_path, method))
    assert trace.status != "failed", trace.note
    assert set(trace.final["test"]) == {"food", "mood"}
    assert all(0 <= score.accuracy <= 1 and score.count == 96 for score in trace.final["test"].values())
    assert trace.groups["layer"] == ("block.0", "block.1")


@pytest.mark.parametrize("method", [name for name in entries("methods") if name not in METHODS])
def test_every_other_method_runs_too_or_says_in_one_sentence_why_not(method: str, tiny_text_pool_path: Path) -> None:
    names = {spec.name for spec in describe_settings(entry("methods", method).settings)}
    trace = execute(recipe(tiny_text_pool_path, method, settings={k: v for k, v in SHORT.items() if k in names}))
    if trace.status == "failed":
        assert trace.note.count(".") == 1
        assert trace.note.endswith(".")
        assert ":" in trace.note
        return
    assert set(trace.final["test"]) == {"food", "mood"}
    assert all(0 <= score.accuracy <= 1 for score in trace.final["test"].values())


def test_frank_wolfe_finds_the_tasks_own_adapters(tiny_text_pool_path: Path) -> None:
    """Of four adapters the oracle takes those of the two tasks it merges for, and the merge beats the average."""
    found = execute(recipe(tiny_text_pool_path, "fw_hard"))
    chosen = {name for frame in found.frames for group in frame.vertices for name in group}
    assert {"food", "mood"} <= chosen
    average = execute(recipe(tiny_text_pool_path, "weight_average"))
    own, other = (sum(score.accuracy for score in trace.final["test"].values()) for trace in (found, average))
    assert own > other


def test_streamed_and_half_precision_change_little(tiny_text_pool_path: Path) -> None:
    whole = execute(recipe(tiny_text_pool_path, "weight_average")).final["test"]
    streamed = execute(recipe(tiny_text_pool_path, "weight_average", storage="streamed")).final["test"]
    assert {task: score.accuracy for task, score in streamed.items()} == {t: s.accuracy for t, s in whole.items()}
    half = execute(recipe(tiny_text_pool_path, "weight_average", dtype="bfloat16")).final["test"]
    assert all(half[task].loss == pytest.approx(whole[task].loss, rel=0.02) for task in whole)
