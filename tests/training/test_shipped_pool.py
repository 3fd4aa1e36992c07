"""The shipped pool keeps its promises: hashes, separate splits, plain Hugging Face loading, honest card."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

POOL = Path(__file__).parents[2] / "assets" / "pools" / "vision"


@cache
def card() -> dict[str, Any]:
    return yaml.safe_load((POOL / "pool.yaml").read_text(encoding="utf-8"))


def tasks() -> list[str]:
    return [task["id"] for task in card()["tasks"]] if POOL.is_dir() else []


def test_card_names_everything_the_app_reads() -> None:
    assert card()["format"] == 1
    ids = {entry["id"] for entry in card()["checkpoints"]}
    assert len(ids) == len(card()["checkpoints"])
    assert len(tasks()) >= 14
    for entry in card()["checkpoints"]:
        assert entry["task"] in tasks()
        assert entry["kind"] in {"own", "weak", "half_classes", "noisy_labels", "foreign_base"}
        assert 0 <= entry["accuracy"]["test"] <= 1
    assert {"weak", "half_classes", "noisy_labels", "foreign_base"} <= {e["kind"] for e in card()["checkpoints"]}
    assert len(card()["default"]["tasks"]) == 4
    assert set(card()["default"]["tasks"]) <= set(tasks())
    assert len(card()["default"]["checkpoints"]) == 8
    assert set(card()["default"]["checkpoints"]) <= ids
    for entry in card()["phenomena"]:
        assert entry["seen"] in (True, False, "partly")
        assert entry["evidence"]


def test_hashes_and_total_size() -> None:
    from fwviz.training.card import sha256

    assert sha256(POOL / "base" / "model.safetensors") == card()["base"]["sha256"]
    for entry in card()["checkpoints"]:
        assert sha256(POOL / entry["path"] / "model.safetensors") == entry["sha256"]
    for task in card()["tasks"]:
        for split in task["splits"].values():
            assert sha256(POOL / split["path"]) == split["sha256"]
    assert sum(path.stat().st_size for path in POOL.rglob("*") if path.is_file()) <= 90e6


@pytest.mark.parametrize("task_id", tasks())
def test_splits_share_no_source(task_id: str) -> None:
    """No font, no drawing and no row of a data set is in two splits; every class is in every split."""
    from fwviz.training.card import read_split
    from fwviz.training.tasks import check_disjoint

    task = next(task for task in card()["tasks"] if task["id"] == task_id)
    splits = {name: read_split(POOL / entry["path"]) for name, entry in task["splits"].items()}
    check_disjoint(task_id, splits)
    for name, split in splits.items():
        assert split.images.shape[1:] == (32, 32, 3)
        assert set(split.labels.tolist()) == set(range(len(task["classes"])))
        assert len(split.labels) == task["splits"][name]["rows"]
    assert len(splits["calibration"].labels) >= 100
    assert len(splits["validation"].labels) >= 100
    assert 300 <= len(splits["test"].labels) <= 500


def test_base_and_checkpoint_load_as_plain_clip() -> None:
    from transformers import CLIPModel, CLIPVisionModelWithProjection

    _, report = CLIPModel.from_pretrained(POOL / "base", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    entry = card()["checkpoints"][0]
    _, report = CLIPVisionModelWithProjection.from_pretrained(POOL / entry["path"], output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_checkpoints_differ_from_the_base_only_where_the_card_says() -> None:
    from safetensors.torch import load_file

    base = load_file(POOL / "base" / "model.safetensors")
    excluded = tuple(card()["merge"]["exclude"])
    for entry in card()["checkpoints"]:
        state = load_file(POOL / entry["path"] / "model.safetensors")
        assert set(state) <= set(base)
        moved = [name for name, value in state.items() if not value.equal(base[name])]
        assert moved
        if entry["kind"] != "foreign_base":
            assert not [name for name in moved if name.startswith(excluded)]


def test_accuracies_of_the_card_are_what_the_files_give() -> None:
    """The base's and one checkpoint's test accuracy, measured again from disk."""
    import torch

    from fwviz.training.card import read_split
    from fwviz.training.finetune import accuracy, vision_state
    from fwviz.training.model import load_clip, zero_shot_head

    clip, tokenizer = load_clip(POOL / "base")
    entry = next(e for e in card()["checkpoints"] if e["kind"] == "own")
    task = next(task for task in card()["tasks"] if task["id"] == entry["task"])
    head = zero_shot_head(clip, tokenizer, task["classes"], task["prompts"])
    split = read_split(POOL / task["splits"]["test"]["path"])
    before = {name: value.clone() for name, value in vision_state(clip).items()}
    base = accuracy(clip, None, head, split.images, split.labels)
    assert base == pytest.approx(task["accuracy"]["base"]["test"], abs=0.01)
    from safetensors.torch import load_file

    state = {name: v.float() for name, v in load_file(POOL / entry["path"] / "model.safetensors").items()}
    assert accuracy(clip, state, head, split.images, split.labels) == pytest.approx(entry["accuracy"]["test"], abs=0.01)
    assert all(torch.equal(value, before[name]) for name, value in vision_state(clip).items())
