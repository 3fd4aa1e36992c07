"""Merges of adapters written as weights and as one adapter: transformers and PEFT load them and answer the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fwviz.cli import main
from fwviz.runs.assemble import assemble
from fwviz.runs.export import export_weights, merged_weights
from fwviz.runs.merged import load_merged
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import execute
from fwviz.runs.trace import Trace
from fwviz.tasks.data import load_split
from fwviz.types import FwvizError

pytestmark = pytest.mark.filterwarnings("ignore")  # of peft and transformers, about each other


def recipe(pool: Path, method: str = "task_arithmetic", **settings: Any) -> Recipe:
    checkpoints = ["food", "mood", "place", "time"]
    values = {"pool": str(pool), "checkpoints": checkpoints, "tasks": ["food", "mood"], "method": method}
    return Recipe.from_dict(values | {"settings": settings})


def bert(folder: Path) -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder, local_files_only=True).eval()


def texts(trace: Trace) -> dict[str, Tensor]:
    pool = assemble(trace.recipe).pool
    tokens = load_split(pool.card, pool.card.task("food"), "test").inputs[:12].long()
    return {"input_ids": tokens.clamp_min(0), "attention_mask": (tokens >= 0).long()}


def states(model: Any, tokens: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        hidden: Tensor = model(**tokens).last_hidden_state * tokens["attention_mask"][..., None]
        return hidden


@pytest.fixture(scope="module", params=["task_arithmetic", "layer_wise", "ties"])
def trace(request: pytest.FixtureRequest, tiny_text_pool_path: Path) -> Trace:
    """A linear merge, one with coefficients of its own in each layer, and one that is not linear."""
    if request.param == "layer_wise":
        found = execute(recipe(tiny_text_pool_path, "fw_hard", max_steps=2))
        assert found.frame(-1).granularity == "layer"
        return found
    return execute(recipe(tiny_text_pool_path, request.param))


def test_whole_weights_load_with_transformers(trace: Trace, tiny_text_pool_path: Path, tmp_path: Path) -> None:
    assembly, tokens = assemble(trace.recipe), texts(trace)
    theta = merged_weights(trace, -1, assembly)
    reference = bert(tiny_text_pool_path / "base")
    before = states(reference, tokens)
    merged = {name: assembly.pool.layout.view(theta, name) for name in assembly.pool.layout.names}
    reference.load_state_dict(merged, strict=False)
    folder = export_weights(trace, -1, tmp_path / "merged")
    found = states(bert(folder), tokens)
    torch.testing.assert_close(found, states(reference, tokens), atol=1e-5, rtol=1e-5)
    assert (found - before).norm() > 0.1

    data = load_split(assembly.pool.card, assembly.pool.card.task("food"), "test")
    again = load_merged(folder).logits(data.inputs, "food")
    accuracy = (again.argmax(-1) == data.labels).float().mean().item()
    assert accuracy == pytest.approx(assembly.evaluator.full(theta)["food"].accuracy, abs=1e-6)


def test_one_adapter_loads_with_peft_and_answers_the_same(
    trace: Trace, tiny_text_pool_path: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    assembly, tokens = assemble(trace.recipe), texts(trace)
    folder = export_weights(trace, -1, tmp_path / "adapter", "adapter")
    model = PeftModel.from_pretrained(bert(tiny_text_pool_path / "base"), str(folder)).eval()
    reference = bert(tiny_text_pool_path / "base")
    theta = merged_weights(trace, -1, assembly)
    merged = {name: assembly.pool.layout.view(theta, name) for name in assembly.pool.layout.names}
    reference.load_state_dict(merged, strict=False)
    expected, found = states(reference, tokens), states(model, tokens)
    card = (folder / "README.md").read_text()
    if trace.recipe.method == "ties":
        assert "misses 0.00 %" not in card, "what is cut from a merge that is no low-rank sum must be said"
        assert (found - expected).norm() < 0.5 * expected.norm()
    else:
        assert "misses 0.00 %" in card
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_a_smaller_rank_costs_what_the_card_says(tiny_text_pool_path: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    trace = execute(recipe(tiny_text_pool_path))
    folder = export_weights(trace, -1, tmp_path / "adapter", "adapter", rank=2)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert set(config["rank_pattern"].values()) <= {1, 2}
    assembly = assemble(trace.recipe)
    delta = merged_weights(trace, -1, assembly) - assembly.pool.base
    factors = load_file(folder / "adapter_model.safetensors")
    missed = 0.0
    for name in assembly.pool.layout.names:
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        written = factors[f"{stem}.lora_B.weight"] @ factors[f"{stem}.lora_A.weight"]
        missed += float((assembly.pool.layout.view(delta, name) - written).square().sum())
    share = 100 * missed**0.5 / float(delta.norm())
    assert share > 1
    assert f"misses {share:.2f} %" in (folder / "README.md").read_text()
    with pytest.raises(FwvizError, match="rank of at least 1"):
        export_weights(trace, -1, tmp_path / "none", "adapter", rank=0)


def test_formats_are_those_of_the_family(tiny_text_pool_path: Path, tiny_pool_path: Path, tmp_path: Path) -> None:
    trace = execute(recipe(tiny_text_pool_path))
    with pytest.raises(FwvizError, match="no export format 'clip_model': choose model or adapter"):
        export_weights(trace, -1, tmp_path / "x", "clip_model")
    values = {"pool": str(tiny_pool_path), "checkpoints": ["colour"], "tasks": ["colour"], "method": "weight_average"}
    with pytest.raises(FwvizError, match="no export format 'adapter'"):
        export_weights(Recipe.from_dict(values), -1, tmp_path / "x", "adapter")
    assert not list(tmp_path.iterdir())


def test_the_command_line_merges_and_writes_an_adapter(
    tiny_text_pool_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--pool", str(tiny_text_pool_path), "--method", "weight_average", "--runs", str(tmp_path / "runs")]
    assert main(["merge", *options, "--out", str(tmp_path / "out"), "--format", "adapter"]) == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert "test accuracy" in capsys.readouterr().out
