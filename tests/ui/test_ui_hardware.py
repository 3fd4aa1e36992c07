"""The seam to a borrowed GPU: what it records is what the runner records, and without the package nothing changes."""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fwviz.pools.open import open_pool
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import Control, execute, run
from fwviz.runs.store import RunStore
from fwviz.runs.trace import Frame, Trace
from fwviz.ui import hardware


@pytest.fixture
def recipe(tiny_pool_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setenv("FWVIZ_POOLS", str(tiny_pool_path.parent))
    settings = {"max_steps": 2, "inner_updates": 3, "batch_size": 4}
    values = {"pool": tiny_pool_path.name, "method": "fw_soft", "settings": settings, "tasks": ["colour"]}
    return Recipe.from_dict(values, open_pool(tiny_pool_path.name).card)


def elsewhere(recipe: Recipe) -> Iterator[Frame | Trace]:
    """What comes back of another process: pickled and one at a time."""
    for item in hardware.frames_of(replace(pickle.loads(pickle.dumps(recipe)), device="cpu")):
        yield pickle.loads(pickle.dumps(item))


def test_a_borrowed_run_leaves_the_record_of_an_ordinary_one(recipe: Recipe, tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    asked = replace(recipe, device="cuda")
    writer = store.create(asked)
    frames = list(hardware.borrowed(elsewhere, asked, control=Control(), writer=writer))
    recorded, ordinary = store.load(writer.id), execute(recipe)
    last = [frame for frame in frames if frame.completed][-1]
    assert recorded.frames[-1].coefficients == ordinary.frames[-1].coefficients == last.coefficients
    assert (recorded.status, recorded.pool_title) == (ordinary.status, ordinary.pool_title)
    assert recorded.final.keys() == ordinary.final.keys()


def test_a_borrowed_run_can_be_stopped(recipe: Recipe, tmp_path: Path) -> None:
    store, control = RunStore(tmp_path), Control()
    asked = replace(recipe, device="cuda")
    writer = store.create(asked)
    frames = hardware.borrowed(elsewhere, asked, control=control, writer=writer)
    next(frames)
    control.stop()
    assert not list(frames)
    assert store.load(writer.id).status == "stopped"


def test_without_lent_hardware_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    assert hardware.runner() is run
    if importlib.util.find_spec("spaces") is None:
        assert hardware.on_gpu(hardware.frames_of) is hardware.frames_of
