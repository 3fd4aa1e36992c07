"""The shipped text pool keeps its promises: hashes, separate splits, plain PEFT adapters, honest accuracies."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fwviz.pools.open import missing_base, open_pool, pool_card
from fwviz.registry import entries
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import execute

POOL = Path(__file__).parents[2] / "assets" / "pools" / "text"
SHORT = {
    "max_steps": 1, "trials": 2, "scale_points": 2, "inner_updates": 2, "official_updates": 2, "updates": 2,
    "mask_updates": 2, "samples": 16, "passes": 2, "init_updates": 2,
}  # fmt: skip
"""Enough of each method to see it run; a value is used only where the method has such a setting."""

with_base = pytest.mark.skipif(bool(missing_base(pool_card(POOL))), reason=missing_base(pool_card(POOL)))


@cache
def card() -> dict[str, Any]:
    return yaml.safe_load((POOL / "pool.yaml").read_text(encoding="utf-8"))


def columns(path: str) -> dict[str, list[Any]]:
    import pyarrow.parquet as pq

    found: dict[str, list[Any]] = pq.read_table(POOL / path).to_pydict()
    return found


def test_card_hashes_and_total_size() -> None:
    from fwviz.training.card import sha256

    own = [entry for entry in card()["checkpoints"] if entry["kind"] == "own"]
    assert len(own) >= 8
    assert {entry["task"] for entry in own} == {task["id"] for task in card()["tasks"]}
    assert {"weak", "noisy_labels"} <= {entry["kind"] for entry in card()["checkpoints"]}
    assert (len(card()["default"]["tasks"]), len(card()["default"]["checkpoints"])) == (4, 8)
    for entry in card()["checkpoints"]:
        assert sha256(POOL / entry["path"] / "adapter_model.safetensors") == entry["sha256"]
    for task in card()["tasks"]:
        for split in task["splits"].values():
            assert sha256(POOL / split["path"]) == split["sha256"]
    for found in card()["phenomena"]:
        assert found["seen"] in (True, False, "partly")
        assert found["evidence"]
    assert sum(path.stat().st_size for path in POOL.rglob("*") if path.is_file()) <= 15e6


def test_no_source_is_in_two_splits_of_any_tasks() -> None:
    """So that no checkpoint was trained, and no merge calibrated, on what another task tests."""
    place: dict[str, str] = {}
    for task in card()["tasks"]:
        for split, entry in task["splits"].items():
            table = columns(entry["path"])
            assert len(table["text"]) == entry["rows"] >= {"calibration": 100, "validation": 100, "test": 300}[split]
            assert set(table["label"]) == set(range(len(task["classes"])))
            counts = [table["label"].count(label) for label in range(len(task["classes"]))]
            assert min(counts) == max(counts), "every class equally often"
            for key in table["source_key"]:
                assert place.setdefault(key, split) == split, key
    assert "@" not in "".join(text.replace("@anonymous", "") for text in columns("tasks/spam/test.parquet")["text"])


def test_adapters_move_the_attention_only_and_say_where_they_come_from() -> None:
    included = card()["merge"]["include"]
    for entry in card()["checkpoints"]:
        config = json.loads((POOL / entry["path"] / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == card()["base"]["hub"]
        assert config["peft_type"] == "LORA"
        names = load_file(POOL / entry["path"] / "adapter_model.safetensors")
        moved = {n.removeprefix("base_model.model.").split(".lora_")[0] + ".weight" for n in names}
        assert moved == set(included)


@with_base
def test_task_vectors_are_scaled_products_of_the_factors() -> None:
    pool = open_pool(POOL)
    name = card()["default"]["checkpoints"][0]
    vectors = pool.task_vectors([name])
    factors = load_file(POOL / "checkpoints" / name / "adapter_model.safetensors")
    config = json.loads((POOL / "checkpoints" / name / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    vector = vectors.vector(0)
    for tensor, shape, offset in zip(pool.layout.names, pool.layout.shapes, pool.layout.offsets, strict=False):
        module = f"base_model.model.{tensor.removesuffix('.weight')}"
        expected = scale * factors[f"{module}.lora_B.weight"].float() @ factors[f"{module}.lora_A.weight"].float()
        found = vector[offset : offset + expected.numel()].view(shape)
        assert expected.abs().max() > 0
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


@with_base
def test_the_encoder_is_the_one_of_transformers_and_the_card_is_honest() -> None:
    """Features of some sentences by transformers, then the test accuracy of one task's base and own checkpoint."""
    from transformers import AutoModel

    from fwviz.runs.assemble import assemble
    from fwviz.tasks.data import load_split

    pool = open_pool(POOL)
    encoder = AutoModel.from_pretrained(pool.base_dir, local_files_only=True).eval()
    backbone = pool.backbone()
    data = load_split(pool.card, pool.card.task("spam"), "test")
    tokens = data.inputs[:8]
    mask = (tokens >= 0).long()
    with torch.no_grad():
        hidden = encoder(input_ids=tokens.clamp(min=0).long(), attention_mask=mask).last_hidden_state
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        ours = backbone.features([tokens])
    torch.testing.assert_close(ours, torch.nn.functional.normalize(mean, dim=-1), atol=2e-6, rtol=1e-4)
    values = {"pool": str(POOL), "tasks": ["spam"], "checkpoints": ["spam"], "method": "weight_average"}
    made = assemble(Recipe.from_dict(values))
    accuracy = pool.card.task("spam").accuracy
    vectors = made.problem.vectors
    for row, theta in (("base", vectors.base), ("individual", vectors.base + vectors.vector(0))):
        assert made.evaluator.full(theta)["spam"].accuracy == pytest.approx(accuracy[row]["test"], abs=1e-4)


@with_base
@pytest.mark.slow
@pytest.mark.parametrize("method", entries("methods"))
def test_every_method_that_applies_runs(method: str) -> None:
    """Two tasks, their own checkpoints and another one, few steps; what cannot run says so in one sentence."""
    from fwviz.registry import describe_settings, entry

    names = {spec.name for spec in describe_settings(entry("methods", method).settings)}
    values = {"pool": str(POOL), "tasks": ["spam", "topic"], "checkpoints": ["spam", "topic", "things"]}
    settings = {name: value for name, value in SHORT.items() if name in names}
    trace = execute(Recipe.from_dict({**values, "method": method, "settings": settings}))
    if trace.status == "failed":
        assert trace.note.endswith(".")
        assert trace.note.count(". ") == 0
        return
    assert set(trace.final["test"]) == {"spam", "topic"}
    assert all(score.count >= 300 for score in trace.final["test"].values())
