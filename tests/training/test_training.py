"""The recipe's parts, on small made-up data: no network, no packages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from fwviz.training import augment, captions, card, finetune, model, sources
from fwviz.training.sources import Package
from fwviz.training.tasks import TASKS, Split, check_disjoint
from fwviz.training.text_tasks import TEXT_TASKS


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    names = ["digit three", "hiragana letter ka", "red apple", "flag of peru", "latin small letter a with acute"] * 4
    return captions.train_tokenizer(names, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def clip(tokenizer):
    return model.new_clip(tokenizer, seed=0).eval()


def test_tokenizer_round_trip(tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "flag of peru"
    ids = again(text)["input_ids"]
    assert ids == tokenizer(text)["input_ids"]
    assert ids[0] == again.bos_token_id
    assert ids[-1] == again.eos_token_id
    assert again.decode(ids, skip_special_tokens=True).strip() == text


def test_an_unknown_sign_does_not_end_the_sentence(tokenizer) -> None:
    ids = tokenizer("digit, three")["input_ids"]
    assert ids.count(tokenizer.eos_token_id) == 1


def test_caption_says_the_name_in_either_order() -> None:
    rng = np.random.default_rng(0)
    seen = {captions.caption("HIRAGANA LETTER KA", "glyph", rng) for _ in range(200)}
    assert "hiragana letter ka" in seen
    assert "letter ka of hiragana" in seen


def test_augmentation_is_decided_by_its_generator() -> None:
    masks = torch.randint(0, 256, (6, 48, 48), dtype=torch.uint8)
    pictures = torch.randint(0, 256, (6, 48, 48, 4), dtype=torch.uint8)
    for draw, source in ((augment.draw_masks, masks), (augment.draw_pictures, pictures)):
        first = draw(source, augment.PRETRAINING, torch.Generator().manual_seed(3))
        again = draw(source, augment.PRETRAINING, torch.Generator().manual_seed(3))
        other = draw(source, augment.PRETRAINING, torch.Generator().manual_seed(4))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert first.shape == (6, 3, 32, 32)
        assert first.min() >= 0
        assert first.max() <= 1


def test_fixed_turn_turns() -> None:
    """A bar at the top of the mask is at a side after a quarter turn."""
    still = replace(
        augment.PRETRAINING, rotation=0, zoom=(1, 1), shear=0, shift=0, wobble=0, outline=0, thicken=0, thin=0,
        plain=1.0, texture=0, noise=0, blur=0,
    )  # fmt: skip
    mask = torch.zeros(1, 48, 48, dtype=torch.uint8)
    mask[:, 4:12, 8:40] = 255
    upright = augment.draw_masks(mask, still, torch.Generator().manual_seed(0))[0, 0]
    turned = augment.draw_masks(mask, replace(still, turn=90), torch.Generator().manual_seed(0))[0, 0]
    inside = (upright - upright[16, 16]).abs() > 0.5
    rows = torch.nonzero(inside)[:, 0].float().mean()
    side = torch.nonzero((turned - turned[16, 16]).abs() > 0.5)[:, 1].float().mean()
    assert rows < 8
    assert side < 8 or side > 23


def test_finetuning_moves_only_its_matrices_and_learns(clip, tokenizer) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 2
    images = rng.integers(0, 60, (64, 32, 32, 3)).astype(np.uint8)
    images[labels == 1, :16] += 150
    head = model.zero_shot_head(clip, tokenizer, ("digit three", "red apple"), ("{}",))
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    plan = finetune.FinetunePlan(steps=30, batch=16, rate=1e-3, average=0.5)
    examples = finetune.Examples(head, images, labels)
    state = finetune.finetune(clip, [examples], plan, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in clip.state_dict().items())
    moved = {name for name, value in state.items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.endswith(finetune.TRAINED) for name in moved)
    assert finetune.accuracy(clip, state, head, images, labels) > 0.9
    again = finetune.finetune(clip, [examples], plan, seed=0)
    assert all(torch.equal(value, again[name]) for name, value in state.items())


def test_one_tower_learns_two_tasks_at_once(clip, tokenizer) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60, (64, 32, 32, 3)).astype(np.uint8)
    labels = np.arange(64) % 2
    top, left = images.copy(), images.copy()
    top[labels == 1, :16] += 150
    left[labels == 1, :, :16] += 150
    head = model.zero_shot_head(clip, tokenizer, ("digit three", "red apple"), ("{}",))
    other = model.zero_shot_head(clip, tokenizer, ("green bird", "letter a"), ("{}",))
    plan = finetune.FinetunePlan(steps=40, batch=32, rate=0.05, average=0.5)
    state = finetune.finetune(
        clip, [finetune.Examples(head, top, labels), finetune.Examples(other, left, labels)], plan, seed=0
    )
    assert finetune.accuracy(clip, state, head, top, labels) > 0.9
    assert finetune.accuracy(clip, state, other, left, labels) > 0.9


def test_merge_is_linear(clip) -> None:
    base = finetune.vision_state(clip)
    other = {name: value + 1 if value.is_floating_point() else value for name, value in base.items()}
    merged = finetune.merge(base, [other, other], [0.25, 0.5])
    name = "visual_projection.weight"
    assert torch.allclose(merged[name], base[name] + 0.75)


def test_shared_keys_are_refused() -> None:
    def split(*keys: str) -> Split:
        return Split(np.zeros((len(keys), 32, 32, 3), np.uint8), np.zeros(len(keys), int), keys)

    check_disjoint("t", {"train": split("a", "a"), "test": split("b")})
    with pytest.raises(ValueError, match="font:x"):
        check_disjoint("t", {"train": split("font:x"), "test": split("font:x")})


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.id)
def test_every_class_comes_equally_often(task) -> None:
    for role, low, high in (("calibration", 100, 200), ("validation", 100, 250), ("test", 300, 500)):
        assert task.rows(role) % len(task.classes) == 0
        assert low <= task.rows(role) <= high
    assert len(set(task.classes)) == len(task.classes)
    assert task.question.endswith("?")


@pytest.mark.parametrize(("pool", "number"), [("vision", 0), ("text", 0)])
def test_a_task_is_entered_as_the_shipped_cards_have_it(pool: str, number: int) -> None:
    """Written from the recipe's own task and the shipped files, but for what is measured, the entry is the shipped."""
    folder = Path(__file__).parents[2] / "assets" / "pools" / pool
    shipped = yaml.safe_load((folder / "pool.yaml").read_text(encoding="utf-8"))["tasks"][number]
    tasks: tuple[Any, ...] = TASKS if pool == "vision" else TEXT_TASKS
    task = next(task for task in tasks if task.id == shipped["id"])
    files = {name: card.split_path(folder, task.id, name) for name in card.SPLITS}
    rows = {name: pq.read_metadata(path).num_rows for name, path in files.items()}
    made = card.task_entry(
        folder, task, files, rows, source=shipped["source"], licence=shipped["licence"], accuracy=shipped["accuracy"]
    )
    assert made == shipped
    assert list(made) == list(shipped)
    bare = card.task_entry(folder, task, files, rows, source="x", licence="y")
    assert [*bare] == [key for key in shipped if key != "accuracy"]


def test_a_wheel_is_no_source_archive(tmp_path: Path) -> None:
    """vaderSentiment's wheel lacks the sentences that its source archive has."""
    package = Package("vaderSentiment", "pypi", "MIT", "sentences", source=True)
    (tmp_path / "vaderSentiment-3.3.2-py2.py3-none-any.whl").touch()
    assert sources._find_archive(package, tmp_path) is None
    (tmp_path / "vaderSentiment-3.3.2.tar.gz").touch()
    found = sources._find_archive(package, tmp_path)
    assert found is not None
    assert found.name == "vaderSentiment-3.3.2.tar.gz"
    assert sources._version(package, found) == "3.3.2"
