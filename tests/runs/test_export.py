"""Exports: others load them without fwviz, and they answer as the evaluator measured."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fwviz.runs.assemble import assemble
from fwviz.runs.export import export_weights, merged_weights
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import execute
from fwviz.tasks.data import load_split
from fwviz.types import FwvizError


def recipe(pool: Path, method: str = "task_arithmetic", **settings: Any) -> Recipe:
    return Recipe.from_dict(
        {
            "pool": str(pool),
            "checkpoints": ["colour", "stripes", "shape", "corner"],
            "tasks": ["colour", "shape"],
            "method": method,
            "settings": settings,
        }
    )


def test_what_was_merged_on_a_gpu_is_exported_where_there_is_none(tiny_pool_path: Path, tmp_path: Path) -> None:
    """A linear merge is added up from its coefficients; one that must be run again needs the run's device."""
    here = execute(recipe(tiny_pool_path))
    there = replace(here, recipe=replace(here.recipe, device="cuda:7", precision="bfloat16"))
    weights = [export_weights(t, -1, tmp_path / name) / "model.safetensors" for t, name in ((here, "a"), (there, "b"))]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    again = execute(recipe(tiny_pool_path, "ties"))
    again = replace(again, recipe=replace(again.recipe, device="cuda:7"))
    with pytest.raises(FwvizError, match="no device 'cuda:7'"):
        export_weights(again, -1, tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("format", ["clip_model", "vision_model"])
def test_an_export_loads_with_transformers_and_answers_the_same(
    tiny_pool_path: Path, tmp_path: Path, format: Any
) -> None:
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer, CLIPVisionModelWithProjection

    trace = execute(recipe(tiny_pool_path))
    folder = export_weights(trace, -1, tmp_path / "merged", format)
    assembly = assemble(trace.recipe)
    theta = merged_weights(trace, -1, assembly)
    assert not torch.equal(theta, assembly.problem.vectors.base)

    data = load_split(assembly.pool.card, assembly.pool.card.task("shape"), "test")
    processor = CLIPImageProcessor.from_pretrained(folder)
    pixels = processor(list(data.inputs), return_tensors="pt")["pixel_values"]
    heads = assembly.pool.heads(("shape",))["shape"].cpu()
    with torch.no_grad():
        if format == "clip_model":
            model = CLIPModel.from_pretrained(folder).eval()
            features = model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
            texts = CLIPTokenizer.from_pretrained(folder)(["a square"], return_tensors="pt")
            assert model.get_text_features(**texts, return_dict=True).pooler_output.isfinite().all()
        else:
            model = CLIPVisionModelWithProjection.from_pretrained(folder).eval()
            features = model(pixel_values=pixels).image_embeds
    scale = CLIPModel.from_pretrained(tiny_pool_path / "base").logit_scale.float().exp()
    logits = scale * torch.nn.functional.normalize(features, dim=-1) @ heads.T
    score = assembly.evaluator.full(theta, split="test")["shape"]
    assert (logits.argmax(-1) == data.labels).float().mean().item() == pytest.approx(score.accuracy, abs=1e-6)
    assert torch.nn.functional.cross_entropy(logits, data.labels).item() == pytest.approx(score.loss, abs=1e-4)

    backbone = assembly.pool.backbone()
    assert backbone.flat is not None
    backbone.flat.load(theta)
    with torch.no_grad():
        own = scale * backbone.encode(pixels) @ heads.T
    torch.testing.assert_close(logits, own, rtol=0, atol=1e-4)


def test_an_export_carries_its_recipe_and_card(tiny_pool_path: Path, tmp_path: Path) -> None:
    trace = execute(recipe(tiny_pool_path, scale=0.4))
    folder = export_weights(trace, 0, tmp_path / "merged")
    assert Recipe.from_text((folder / "recipe.yaml").read_text()) == trace.recipe
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0"
    assert trace.recipe.cli_line() in card
    assert f"{100 * trace.frames[0].accuracy['colour']:.1f}" in card
    final = export_weights(trace, -1, tmp_path / "final")
    assert f"{100 * trace.final['test']['colour'].accuracy:.1f}" in (final / "README.md").read_text()
    present = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer_config.json"} <= present


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tiny_pool_path: Path, tmp_path: Path) -> None:
    trace = execute(recipe(tiny_pool_path))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(FwvizError, match="not empty"):
        export_weights(trace, -1, tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    export_weights(trace, -1, tmp_path / "empty")
    with pytest.raises(FwvizError, match="no frame 99"):
        export_weights(trace, 99, tmp_path / "late")
    assert not (tmp_path / "late").exists()


def test_an_export_that_fails_leaves_nothing(tiny_pool_path: Path, tmp_path: Path) -> None:
    """Not even half of one, which would keep the next from the same place."""
    trace = execute(recipe(tiny_pool_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(FwvizError, match="cannot be written"):
            export_weights(trace, -1, tmp_path / "merged")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not any(tmp_path.iterdir())
    assert export_weights(trace, -1, tmp_path / "merged").is_dir()


def test_an_export_into_the_folder_one_is_in(
    tiny_pool_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export_weights(execute(recipe(tiny_pool_path)), -1, ".")
    assert (tmp_path / "here" / "model.safetensors").is_file()


def test_a_merge_without_coefficients_is_made_again(tiny_pool_path: Path, tmp_path: Path) -> None:
    trace = execute(recipe(tiny_pool_path, "fw_hard", merge_fn="ties", max_steps=2))
    assert trace.frames[-1].coefficients is None
    assembly = assemble(trace.recipe)
    theta = merged_weights(trace, -1, assembly)
    scores = assembly.evaluator.full(theta, split="test")
    for task, score in trace.final["test"].items():
        assert scores[task].loss == pytest.approx(score.loss, abs=1e-5)
    with pytest.raises(FwvizError, match="not a linear merge"):
        trace.theta(-1, assembly.problem.vectors)


def test_a_recipe_is_run_first(tiny_pool_path: Path, tmp_path: Path) -> None:
    folder = export_weights(recipe(tiny_pool_path, "weight_average"), -1, tmp_path / "average")
    assert (folder / "model.safetensors").is_file()
    wrong = recipe(tmp_path / "nowhere", "weight_average")
    with pytest.raises(FwvizError, match="nowhere"):
        export_weights(wrong, -1, tmp_path / "none")
    assert not (tmp_path / "none").exists()
