"""The seam to a borrowed GPU: what it records is what the runner records, and without the package nothing changes."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

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


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A Space with ZeroGPU: a stand-in for the package, absent here, with its contract for generators.

    ``GPU(duration=…)`` decorates; a duration that can be called gets the arguments of the call; arguments and items are
    pickled on the way; closing the generator gives the GPU back; refusals and errors come as gradio's own.
    """
    source = """
import functools, inspect, pickle
import gradio

asked, given_back, refusal = [], [], None

def GPU(task=None, *, duration=None, size=None):
    return functools.partial(_decorated, duration=duration) if task is None else _decorated(task, duration)

def _decorated(task, duration):
    assert inspect.isgeneratorfunction(task)

    @functools.wraps(task)
    def handler(*args, **kwargs):
        asked.append(duration(*args, **kwargs) if callable(duration) else duration)
        if refusal:
            raise gradio.Error(refusal)
        args, kwargs = pickle.loads(pickle.dumps((args, kwargs)))
        try:
            for item in task(*args, **kwargs):
                yield pickle.loads(pickle.dumps(item))
        except Exception as error:
            raise gradio.Error(type(error).__name__) from None
        finally:
            given_back.append(True)

    handler.zerogpu = None
    return handler
"""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "spaces.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.delitem(sys.modules, "spaces", raising=False)
    # The other process has a GPU; here its work is done on the CPU.
    monkeypatch.setattr(hardware, "run", lambda recipe, **given: run(replace(recipe, device="cpu"), **given))
    yield importlib.import_module("spaces")
    sys.modules.pop("spaces", None)


def lent(recipe: Recipe, store: RunStore, control: Control | None = None) -> Trace:
    """A recipe as the page has it executed."""
    asked = replace(recipe, device="cuda")
    frames = hardware.runner(store)(asked, control=control or Control(), writer=store.create(asked))
    for _ in frames:
        if control is not None:
            control.stop()
    return store.load(store.ids()[0])


def test_the_gpu_is_asked_for_as_long_as_the_run_will_take(space: ModuleType, recipe: Recipe, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "runs")
    first = lent(recipe, store)
    assert (first.status, first.recipe.device) == ("max_steps", "cuda")
    assert first.device.startswith("cpu"), "the other process says what it ran on"
    assert space.asked == [hardware.LONGEST], "nothing is known of the first"
    summary = replace(store.list()[0], seconds=40.0)
    assert hardware.lent_seconds(replace(recipe, device="cuda"), [summary]) == 60
    assert hardware.lent_seconds(replace(recipe, device="cuda"), [replace(summary, seconds=9e9)]) == hardware.LONGEST
    lent(recipe, store)
    assert space.asked[1:] == [hardware.SHORTEST], "the first took a second or so"
    assert space.given_back == [True, True]


def test_a_stop_gives_the_gpu_back(space: ModuleType, recipe: Recipe, tmp_path: Path) -> None:
    assert lent(recipe, RunStore(tmp_path / "runs"), Control()).status == "stopped"
    assert space.given_back == [True]


def test_what_is_refused_is_said(space: ModuleType, recipe: Recipe, tmp_path: Path) -> None:
    space.refusal = "You have exceeded your ZeroGPU quota (60s requested vs. 3s left)."  # type: ignore[attr-defined]
    failed = lent(recipe, RunStore(tmp_path / "runs"))
    assert failed.status == "failed"
    assert failed.note.startswith("no GPU was lent (You have exceeded your ZeroGPU quota (60s requested")
    assert failed.note.endswith("try again later or set device to cpu.")


def test_other_errors_of_the_other_process_are_not_hidden(recipe: Recipe, tmp_path: Path) -> None:
    def broken(recipe: Recipe) -> Iterator[Frame | Trace]:
        raise ZeroDivisionError
        yield

    store, asked = RunStore(tmp_path), replace(recipe, device="cuda")
    with pytest.raises(ZeroDivisionError):
        list(hardware.borrowed(broken, asked, control=Control(), writer=store.create(asked)))


def test_pictures_are_measured_here(space: ModuleType, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = replace(recipe, device="cuda", precision="bfloat16")
    assert hardware.at_home(asked) == replace(recipe, device="cpu")
    monkeypatch.delenv("SPACES_ZERO_GPU")
    assert hardware.at_home(asked) == replace(recipe, device="cuda")


def test_the_package_alone_is_no_space(space: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACES_ZERO_GPU")
    monkeypatch.delitem(sys.modules, "spaces")
    assert hardware.on_gpu(hardware.frames_of) is hardware.frames_of
    assert "spaces" not in sys.modules


def test_without_lent_hardware_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    assert hardware.runner() is run
    if importlib.util.find_spec("spaces") is None:
        assert hardware.on_gpu(hardware.frames_of) is hardware.frames_of
