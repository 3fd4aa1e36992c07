"""The run store: what was written is read back, whatever happened to the writer."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import run
from fwviz.runs.store import CUT_OFF, RunStore, RunWriter
from fwviz.runs.trace import Cost, Frame, Trace, matrix
from fwviz.types import FwvizError, Score

RECIPE = Recipe.from_dict(
    {"pool": "vision", "checkpoints": ["a", "b", "c"], "tasks": ["x", "y"], "method": "task_arithmetic", "seed": 5}
)


def frame(index: int, inner: int = 0) -> Frame:
    torch.manual_seed(index)
    return Frame(
        index=index,
        t=index,
        inner=inner,
        granularity="layer",
        coefficients=matrix(torch.rand(2, 3)),
        loss=1 / (index + 3),
        gap=0.5,
        vertices=(("a",), ("b", "c")),
        in_hull=False,
        scores=matrix(torch.randn(2, 3)),
        task_scores={"x": matrix(torch.randn(2, 3))},
        accuracy={"x": 0.25, "y": 0.5 + index / 100},
        task_loss={"x": 1.0, "y": 2.0},
        seconds=index * 1.5,
        bytes_read=10**9 + index,
        note="é",
    )


def header() -> Trace:
    return Trace(
        "",
        RECIPE,
        "Vision",
        "f" * 16,
        {"model": ("model",), "layer": ("stem", "head")},
        {"model": (10,), "layer": (4, 6)},
        {"base": {"test": {"x": 0.1}}, "individual": {"test": {"x": 0.9}}},
        device="cpu",
        versions={"python": "3"},
    )


def write(store: RunStore, frames: int = 3) -> tuple[RunWriter, Trace]:
    writer = store.create(RECIPE)
    trace = writer.describe(header())
    found = tuple(frame(i) for i in range(frames))
    for one in found:
        writer.append(one)
    return writer, dataclasses.replace(trace, frames=found)


def test_a_finished_run_is_read_back_as_it_was(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    writer, trace = write(store)
    closing = dataclasses.replace(frame(3), status="max_steps", final={"test": {"x": Score(0.75, 1.0, 96)}})
    writer.append(closing)
    trace = dataclasses.replace(
        trace, frames=(*trace.frames, closing), status="max_steps", note="n", cost=Cost(4.5, 1.0, 7, 8)
    )
    writer.finish(trace)
    loaded = store.load(writer.id)
    assert dataclasses.replace(loaded, frames=()) == dataclasses.replace(trace, frames=())
    assert [f.to_dict() for f in loaded.frames] == [f.to_dict() for f in trace.frames]
    assert loaded.final["test"]["x"] == Score(0.75, 1.0, 96)
    assert loaded.results().merged.tolist()[0] == 0.75
    table = pd.read_parquet(tmp_path / writer.id / "frames.parquet")
    assert table["accuracy/y"].tolist() == [0.5, 0.51, 0.52, 0.53]
    assert len(loaded.iterates()) == 3
    (summary,) = store.list()
    assert (summary.id, summary.status, summary.accuracy, summary.seconds) == (writer.id, "max_steps", 0.75, 4.5)


def test_a_run_under_way_is_readable_and_cannot_be_deleted(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    writer, _ = write(store)
    assert store.load(writer.id).status == "running"
    assert len(store.load(writer.id).frames) == 3
    with pytest.raises(FwvizError, match="under way"):
        store.delete(writer.id)
    writer.finish(dataclasses.replace(header(), status="stopped"))
    store.delete(writer.id)
    assert store.ids() == ()


def test_half_a_line_at_the_end_is_left_out_and_the_run_counts_as_cut_off(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    writer, _ = write(store)
    path = tmp_path / writer.id / "frames.jsonl"
    whole = path.read_bytes()
    run_id = writer.id
    writer._frames.close()  # as the kernel does for a killed process
    for cut in (1, 40, len(whole.splitlines()[-1])):
        path.write_bytes(whole[:-cut])
        trace = store.load(run_id)
        assert (len(trace.frames), trace.status, trace.note) == (2, "failed", CUT_OFF)
    assert store.list()[0].status == "failed"


def test_a_damaged_run_is_one_sentence_and_hides_no_other(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    ids = []
    for _ in range(3):
        writer, trace = write(store)
        writer.finish(dataclasses.replace(trace, status="stopped"))
        ids.append(writer.id)
    (tmp_path / ids[0] / "header.json").write_text("{")
    values = json.loads((tmp_path / ids[1] / "header.json").read_text())
    (tmp_path / ids[1] / "header.json").write_text(json.dumps({**values, "recipe": {"pool": 3}}))
    (tmp_path / ids[2] / "frames.jsonl").write_text('{"index": 0, "colour": 1, "t": 0}\n')
    for run_id in ids:
        with pytest.raises(FwvizError):
            store.load(run_id)
    assert [summary.id for summary in store.list()] == [ids[2]]


@pytest.mark.parametrize("run_id", ["", "..", "../x", "a/b", "/etc", "x" * 200, "a\n", None, 3])
def test_an_id_cannot_leave_the_store(tmp_path: Path, run_id: str) -> None:
    (tmp_path / "header.json").write_text("{}")
    store = RunStore(tmp_path / "runs")
    for act in (store.load, store.delete):
        with pytest.raises(FwvizError):
            act(run_id)


def test_the_store_drops_its_oldest_finished_runs(tmp_path: Path) -> None:
    store = RunStore(tmp_path, max_runs=3)
    under_way, _ = write(store)  # the oldest, but not finished
    finished = []
    for _ in range(4):
        writer, trace = write(store)
        writer.finish(dataclasses.replace(trace, status="stopped"))
        finished.append(writer.id)
        time.sleep(0.002)  # ids sort by their millisecond
    assert set(store.ids()) == {under_way.id, *finished[-2:]}


def test_runs_without_a_header_are_swept_when_their_process_is_gone(tmp_path: Path) -> None:
    """A process was killed between making the folder and writing the header, or while it deleted a run."""
    store = RunStore(tmp_path)
    ended, half_deleted, alive, young, listed = (store.create(RECIPE) for _ in range(5))
    for writer in (ended, half_deleted, alive, young):
        (writer.folder / "header.json").unlink()
    (half_deleted.folder / "frames.jsonl").unlink()
    for writer in (ended, half_deleted, young, listed):
        writer._frames.close()  # as the kernel does for a killed process
    mine = tmp_path / "my folder"
    mine.mkdir()
    for folder in (ended.folder, half_deleted.folder, alive.folder, listed.folder, mine):
        os.utime(folder, (0, 0))
    assert store.ids() == (listed.id,)
    fresh = store.create(RECIPE)
    assert {folder.name for folder in tmp_path.iterdir()} == {alive.id, young.id, listed.id, mine.name, fresh.id}


def test_a_live_update_is_small() -> None:
    tasks = [f"a_long_task_name_{i:02}" for i in range(16)]
    rows = matrix(torch.randn(70, 20))
    big = dataclasses.replace(
        frame(5),
        coefficients=rows,
        scores=rows,
        task_scores=dict.fromkeys(tasks, rows),
        accuracy=dict.fromkeys(tasks, 1 / 3),
        task_loss=dict.fromkeys(tasks, 1 / 7),
    )
    update = big.to_update()
    assert len(json.dumps(update)) <= 2048
    mean = torch.tensor(rows).mean(0)
    assert torch.allclose(torch.tensor(update["coefficients"]), mean, atol=1e-3)
    recorded = big.to_dict()
    assert recorded["accuracy"][tasks[0]] == 0.333333
    assert Frame.from_dict(json.loads(json.dumps(recorded))).to_dict() == recorded


def test_a_disk_that_is_full_ends_a_run_with_one_sentence(tiny_pool_path: Path, tmp_path: Path) -> None:
    """What the disk refuses in the middle of a run fails the run; the record counts as cut off."""
    store = RunStore(tmp_path)
    settings = {"scale_search": "calibration", "scale_points": 100}
    plain = {"pool": str(tiny_pool_path), "method": "task_arithmetic", "tasks": ["colour"], "checkpoints": ["colour"]}
    writer = store.create(Recipe.from_dict(plain | {"settings": settings}))
    frames = run(writer._trace.recipe, writer=writer)
    found = [next(frames), next(frames)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / writer.id / "frames.jsonl").stat().st_size + 10, before[1]))
    try:
        found += frames
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert found[-1].status == "failed"
    assert "cannot be written" in found[-1].note
    assert len(found) < 10
    assert store.load(writer.id).note == CUT_OFF
    store.delete(writer.id)


def test_an_unwritable_store_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FwvizError, match="cannot be written"):
        RunStore(tmp_path / "file" / "runs").create(RECIPE)
