"""Merges of several parts on a real pool: judged, recorded, stored, exported and loaded as one thing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from fwviz import registry
from fwviz.cli import main
from fwviz.lenses.comparison import comparison
from fwviz.lenses.results import results
from fwviz.registry import merge_method, setting
from fwviz.runs.assemble import assemble
from fwviz.runs.export import export_weights, merged_parts, merged_weights
from fwviz.runs.merged import load_merged
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import execute
from fwviz.runs.store import RunStore
from fwviz.runs.trace import Cost, Frame
from fwviz.space.experts import SparseExpert
from fwviz.tasks.data import load_split
from fwviz.tasks.extended import stored_bytes
from fwviz.tasks.router import train_router
from fwviz.types import Extension, FwvizError, Problem, Step

TASKS = ("colour", "shape")


@dataclasses.dataclass(frozen=True)
class Parts:
    """Settings of the method with parts."""

    linear: bool = setting(True, "coefficients or a delta")


@pytest.fixture
def parts() -> Iterator[str]:
    """Half the average and, for each task, the larger half of what its own checkpoint lacks."""
    registry.entries("methods")

    @merge_method("Parts", Parts, data="none", paper="none", reference="this test")
    def parts(problem: Problem, settings: Parts) -> Iterator[Step]:
        vectors = problem.vectors
        coefficients = torch.full((1, vectors.n), 0.5 / vectors.n)
        theta = vectors.combine(coefficients, problem.groups("model"))
        experts = {}
        for task in TASKS:
            missing = vectors.base + vectors.vector(vectors.names.index(task)) - theta
            indices = (missing.abs() > missing.abs().median()).nonzero().flatten()
            experts[task] = SparseExpert.make(indices, missing[indices], vectors.layout.size)
        features = {
            task: F.normalize(torch.randn(20, 24, generator=problem.generator(k)) + torch.eye(24)[k], dim=-1)
            for k, task in enumerate(TASKS)
        }
        router = train_router(features, choice="soft", generator=problem.generator(9))
        yield Step(0, coefficients=coefficients)
        moved = {"coefficients": coefficients} if settings.linear else {"delta": theta - vectors.base}
        yield Step(1, **moved, extension=Extension(router, dict(experts)), status="converged", note="done")

    yield "parts"
    del registry._REGISTRIES["methods"]["parts"]


def recipe(pool: Path, **settings: Any) -> Recipe:
    return Recipe.from_dict(
        {
            "pool": str(pool),
            "checkpoints": ["colour", "stripes", "shape", "corner"],
            "tasks": list(TASKS),
            "method": "parts",
            "settings": settings,
        }
    )


def test_frames_judge_and_count_the_whole(tiny_pool_path: Path, parts: str) -> None:
    trace = execute(recipe(tiny_pool_path))
    plain, extended = trace.iterates()
    assert plain.coefficients == extended.coefficients
    assert (plain.stored_bytes, plain.accuracy != {}) == (0, True)
    assert extended.task_loss != plain.task_loss
    assembly = assemble(trace.recipe)
    theta, extension = merged_parts(trace, -1, assembly)
    assert extension is not None
    assert extended.stored_bytes == trace.frames[-1].stored_bytes == trace.cost.stored_bytes == stored_bytes(extension)
    assert extended.stored_bytes > 0
    quick = assembly.evaluator.quick(theta, extension=extension)
    assert extended.accuracy == pytest.approx({task: score.accuracy for task, score in quick.items()})
    for split in ("validation", "test"):
        full = assembly.evaluator.full(theta, split=split, extension=extension)
        assert {t: s.accuracy for t, s in full.items()} == {t: s.accuracy for t, s in trace.final[split].items()}
    assert merged_parts(trace, 0, assembly)[1] is None
    assert torch.equal(merged_weights(trace, -1, assembly), theta)
    assert set(comparison([trace])["stored_bytes"]) == {trace.cost.stored_bytes}
    table = results(trace).set_index("series")["stored_bytes"]
    assert set(table.loc["merged"]) == {trace.cost.stored_bytes}
    assert table.loc["base"].isna().all()


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("format", ["clip_model", "vision_model"])
def test_an_export_answers_as_the_run_was_judged(
    tiny_pool_path: Path, tmp_path: Path, parts: str, linear: bool, format: Any
) -> None:
    store = RunStore(tmp_path / "runs")
    writer = store.create(recipe(tiny_pool_path, linear=linear))
    trace = execute(recipe(tiny_pool_path, linear=linear), writer=writer)
    kept = store.kept(writer.id)
    assert kept is not None
    assert (kept.theta is None) is linear
    assembly = assemble(trace.recipe)
    theta, again = merged_parts(trace, -1, assembly)
    folder = export_weights(trace, -1, tmp_path / "merged", format, kept=kept)
    model = load_merged(folder)
    assert torch.equal(model.theta, theta)
    assert stored_bytes(model.extension) == stored_bytes(kept.extension) == stored_bytes(again)
    for task in TASKS:
        data = load_split(assembly.pool.card, assembly.pool.card.task(task), "test")
        logits = model.logits(data.inputs, task)
        assert len(model.classes[task]) == logits.shape[1]
        score = trace.final["test"][task]
        assert (logits.argmax(-1) == data.labels).float().mean().item() == pytest.approx(score.accuracy, abs=1e-7)
        assert F.cross_entropy(logits, data.labels).item() == pytest.approx(score.loss, abs=1e-5)
    text = (folder / "README.md").read_text()
    assert "load_merged" in text
    assert f"{trace.cost.stored_bytes:,} bytes" in text
    with pytest.raises(FwvizError, match="no head for task 'corner'"):
        model.logits(data.inputs, "corner")


@pytest.mark.parametrize("linear", [True, False])
def test_what_is_kept_is_not_made_again(
    tiny_pool_path: Path, tmp_path: Path, parts: str, linear: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RunStore(tmp_path)
    chosen = recipe(tiny_pool_path, linear=linear)
    writer = store.create(chosen)
    trace = execute(chosen, writer=writer)
    assembly = assemble(chosen)
    theta, extension = merged_parts(trace, -1, assembly)
    earlier = merged_parts(trace, 0, assembly)[0]
    kept = store.kept(writer.id)

    def refuse(problem: Problem, settings: Parts) -> Iterator[Step]:
        raise AssertionError("the method ran again")
        yield

    known = registry.entry("methods", "parts")
    monkeypatch.setitem(registry._REGISTRIES["methods"], "parts", dataclasses.replace(known, run=refuse))
    stored_theta, stored = merged_parts(trace, -1, assembly, kept)
    assert torch.equal(stored_theta, theta)
    assert stored is not None
    assert extension is not None
    assert stored_bytes(stored) == stored_bytes(extension)
    first = merged_parts(trace, 0, assembly, kept)  # what is kept is of the last iterate, and of no other
    assert first[1] is None
    assert torch.equal(first[0], earlier)
    with pytest.raises(AssertionError, match="ran again"):
        merged_parts(trace, -1, assembly)


def test_a_large_backbone_is_left_out_of_the_record(
    tiny_pool_path: Path, tmp_path: Path, parts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fwviz.runs.extension.MAX_BACKBONE_BYTES", 1000)
    store = RunStore(tmp_path)
    chosen = recipe(tiny_pool_path, linear=False)
    writer = store.create(chosen)
    trace = execute(chosen, writer=writer)
    kept = store.kept(writer.id)
    assert kept is not None
    assert kept.theta is None
    assert not (tmp_path / writer.id / "backbone.safetensors").exists()
    assembly = assemble(chosen)
    assert torch.equal(merged_parts(trace, -1, assembly, kept)[0], merged_parts(trace, -1, assembly)[0])


def test_a_kept_backbone_of_another_size_is_refused(tiny_pool_path: Path, tmp_path: Path, parts: str) -> None:
    store = RunStore(tmp_path)
    chosen = recipe(tiny_pool_path, linear=False)
    writer = store.create(chosen)
    execute(chosen, writer=writer)
    save_file({"theta": torch.zeros(3)}, tmp_path / writer.id / "backbone.safetensors")
    with pytest.raises(FwvizError, match="does not fit the run"):
        store.kept(writer.id)


def test_a_plain_export_loads_too(tiny_pool_path: Path, tmp_path: Path) -> None:
    chosen = recipe_of_average(tiny_pool_path)
    trace = execute(chosen)
    folder = export_weights(trace, -1, tmp_path / "merged")
    assert not (folder / "extension.json").exists()
    assert "load_merged" not in (folder / "README.md").read_text()
    model = load_merged(folder)
    data = load_split(assemble(chosen).pool.card, assemble(chosen).pool.card.task("shape"), "test")
    accuracy = (model.logits(data.inputs, "shape").argmax(-1) == data.labels).float().mean().item()
    assert accuracy == pytest.approx(trace.final["test"]["shape"].accuracy, abs=1e-7)


def recipe_of_average(pool: Path) -> Recipe:
    return Recipe.from_dict(
        {"pool": str(pool), "checkpoints": ["colour", "shape"], "tasks": list(TASKS), "method": "weight_average"}
    )


def test_a_damaged_export_is_refused(tiny_pool_path: Path, tmp_path: Path) -> None:
    folder = export_weights(recipe_of_average(tiny_pool_path), -1, tmp_path / "merged")
    facts = json.loads((folder / "fwviz.json").read_text())
    for change, words in (
        ({"format": 9}, "another version"),
        ({"layout": ["nothing"]}, "names tensors"),
        ({"classes": {"shape": ["a"]}}, "does not fit"),
        ({"classes": {"nobody": ["a"]}}, "does not fit"),
    ):
        (folder / "fwviz.json").write_text(json.dumps({**facts, **change}))
        with pytest.raises(FwvizError, match=words):
            load_merged(folder)


def test_the_store_keeps_the_extension_of_a_completed_run_only(
    tiny_pool_path: Path, tmp_path: Path, parts: str
) -> None:
    store = RunStore(tmp_path)
    chosen = recipe(tiny_pool_path)
    writer = store.create(chosen)
    execute(chosen, writer=writer)
    loaded = store.load(writer.id)
    assert loaded.cost.stored_bytes == loaded.frames[-1].stored_bytes > 0
    folder = tmp_path / writer.id
    held = {path.name for path in folder.iterdir()}
    assert {"experts.safetensors", "router.safetensors", "extension.json", "result.json"} <= held
    assert not any(name.endswith(".partial") for name in held)
    (folder / "extension.json").unlink()  # what a run killed while it was writing leaves behind
    assert store.kept(writer.id) is None
    plain = store.create(recipe_of_average(tiny_pool_path))
    execute(recipe_of_average(tiny_pool_path), writer=plain)
    assert store.kept(plain.id) is None


def test_old_records_have_no_stored_bytes() -> None:
    assert Frame.from_dict({"index": 0, "t": 0}).stored_bytes == 0
    assert (
        Cost(**{"seconds": 1.0, "evaluation_seconds": 0.5, "bytes_read": 3, "peak_memory_bytes": 4}).stored_bytes == 0
    )


def test_the_command_line_says_what_is_stored(
    tiny_pool_path: Path, tmp_path: Path, parts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe(tiny_pool_path).to_yaml())
    runs = ["--runs", str(tmp_path / "runs")]
    assert main(["merge", "--recipe", str(tmp_path / "recipe.yaml"), *runs]) == 0
    assert "stored beside the model" in capsys.readouterr().out
    (run_id,) = RunStore(tmp_path / "runs").ids()
    assert main(["export", run_id, "--out", str(tmp_path / "out"), *runs]) == 0
    assert (tmp_path / "out" / "extension.json").is_file()
