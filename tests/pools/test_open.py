"""Pools opened: what is shared, what is checked, and what damaged checkpoints say."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fwviz.pools.open import Pool, first_pool, missing_base, open_pool, pool_card, pool_ids
from fwviz.space.layout import flatten
from fwviz.types import FwvizError


def test_task_vectors_are_the_files_differences(tiny_pool: Pool) -> None:
    root = tiny_pool.card.root
    base = load_file(root / "base" / "model.safetensors")
    vectors = tiny_pool.task_vectors(["stripes", "colour"])
    assert vectors.names == ("stripes", "colour")
    assert vectors.base.dtype == torch.float16
    assert torch.equal(vectors.base, flatten(tiny_pool.layout, base, torch.float16))
    for i, name in enumerate(vectors.names):
        own = load_file(root / "checkpoints" / name / "model.safetensors")
        expected = flatten(tiny_pool.layout, own) - flatten(tiny_pool.layout, base)
        assert expected.norm() > 0
        assert torch.equal(vectors.vector(i), expected)


@pytest.mark.parametrize("saved", [torch.float16, torch.bfloat16, torch.float32, torch.float64, None])
def test_a_base_is_held_as_it_was_saved(saved: torch.dtype | None, pool_copy: Any) -> None:
    """In half precision where all that is merged is; a base of several precisions keeps every digit."""
    path = pool_copy.root / "base" / "model.safetensors"
    tensors = load_file(path)
    first = next(iter(sorted(name for name in tensors if name.startswith("vision_model.encoder"))))
    for name in tensors:
        tensors[name] = tensors[name].to(saved or torch.float16)
    if saved is None:
        tensors[first] = tensors[first].float() + 1e-6
    save_file(tensors, path, metadata={"format": "pt"})
    pool_copy.seal()
    pool = open_pool(pool_copy.root)
    expected = flatten(pool.layout, tensors, torch.float32)
    assert pool.base.dtype == (saved if saved in (torch.float16, torch.bfloat16) else torch.float32)
    assert torch.equal(pool.base.float(), expected)
    assert torch.equal(pool.model().flat.theta, expected)


def test_the_layout_is_the_whole_image_tower(tiny_pool: Pool) -> None:
    own = load_file(tiny_pool.card.root / "checkpoints" / "colour" / "model.safetensors")
    assert set(tiny_pool.layout.names) == set(own)
    assert tiny_pool.layout.size == sum(tensor.numel() for tensor in own.values())
    assert "logit_scale" in tiny_pool.layout.excluded
    assert tiny_pool.layout.groups("layer").names == ("stem", "block.0", "block.1", "head")


def test_streamed_equals_resident(tiny_pool: Pool) -> None:
    groups = tiny_pool.layout.groups("layer")
    gradient = torch.randn(tiny_pool.layout.size, generator=torch.Generator().manual_seed(0))
    resident = tiny_pool.task_vectors(tiny_pool.checkpoint_ids)
    streamed = tiny_pool.task_vectors(tiny_pool.checkpoint_ids, "streamed")
    torch.testing.assert_close(streamed.scores(gradient, groups), resident.scores(gradient, groups))
    half = tiny_pool.task_vectors(tiny_pool.checkpoint_ids, dtype=torch.bfloat16)
    torch.testing.assert_close(half.vector(0), resident.vector(0), atol=1e-5, rtol=0.01)
    assert not torch.equal(half.vector(0), resident.vector(0))


def test_base_tensors_are_the_file(tiny_pool: Pool) -> None:
    expected = load_file(tiny_pool.card.root / "base" / "model.safetensors")
    found = tiny_pool.base_tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) and found[name].dtype == torch.float16 for name in found)


def test_excluded_tensors_stay_at_the_base(pool_copy: Any) -> None:
    pool_copy.edit(lambda card: card["merge"].update(exclude=["vision_model.embeddings."]))
    pool = open_pool(pool_copy.root)
    assert not any("embeddings" in name for name in pool.layout.names)
    tower, full = pool.backbone(), pool.task_vectors(["colour"])
    tower.flat.load(full.base + full.vector(0))
    parameters = dict(tower.module.named_parameters())
    name = "vision_model.embeddings.class_embedding"
    assert torch.equal(parameters[name], pool.base_tensors()[name].float())
    assert not parameters[name].requires_grad


def test_heads_are_made_once_and_for_the_tasks_asked(tiny_pool: Pool) -> None:
    heads = tiny_pool.heads(["corner", "colour"])
    assert list(heads) == ["corner", "colour"]
    assert heads["corner"].shape == (4, 24)
    assert tiny_pool.heads(["corner"])["corner"] is heads["corner"]
    with pytest.raises(FwvizError, match="no task 'other'"):
        tiny_pool.heads(["other"])


@pytest.mark.parametrize(
    ("names", "message"), [([], "at least one"), (["x"], "no checkpoint 'x'"), (["colour"] * 2, "twice")]
)
@pytest.mark.parametrize("storage", ["resident", "streamed"])
def test_wrong_choice_of_checkpoints(tiny_pool: Pool, names: list[str], message: str, storage: Any) -> None:
    with pytest.raises(FwvizError, match=message):
        tiny_pool.task_vectors(names, storage)


def test_many_threads_get_one_pool_and_equal_results(pool_copy: Any) -> None:
    barrier, found, failures = threading.Barrier(6), [], []

    def work() -> None:
        try:
            barrier.wait()
            pool = open_pool(pool_copy.root)
            vectors = pool.task_vectors(pool.checkpoint_ids)
            found.append((pool, vectors, pool.backbone().flat.theta.clone(), pool.heads(pool.task_ids)))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len({id(pool) for pool, *_ in found}) == 1
    assert len({vectors.matrix.data_ptr() for _, vectors, *_ in found}) == 1, "one matrix is shared, not six held"
    assert all(torch.equal(theta, found[0][2]) for *_, theta, _ in found)
    assert all(heads["shape"] is found[0][3]["shape"] for *_, heads in found)


def test_a_changed_card_is_read_again(pool_copy: Any) -> None:
    before = open_pool(pool_copy.root)
    assert open_pool(str(pool_copy.root)) is before
    pool_copy.edit(lambda card: card.update(title="Another title"))
    assert open_pool(pool_copy.root).card.title == "Another title"


def test_pools_are_found_by_name(pool_copy: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FWVIZ_POOLS", str(tmp_path))
    assert "tiny" in pool_ids()
    assert open_pool("tiny").card.root == tmp_path / "tiny"
    monkeypatch.setenv("FWVIZ_POOLS", str(tmp_path / "tiny"))
    assert "tiny" in pool_ids(), "the folder of one pool does as well"
    monkeypatch.setenv("FWVIZ_POOLS", str(tmp_path / "nowhere"))
    assert "tiny" not in pool_ids()
    with pytest.raises(FwvizError, match="there is no pool 'tiny'"):
        open_pool("tiny")


def test_a_pool_without_its_base_is_listed_but_never_the_first(
    text_pool_copy: Any, tiny_pool_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = text_pool_copy.root.rename(tmp_path / "a_first_by_name")
    shutil.copytree(tiny_pool_path, tmp_path / "tiny")
    monkeypatch.setenv("FWVIZ_POOLS", str(tmp_path))
    assert first_pool() == "a_first_by_name"
    assert missing_base(pool_card(root)) == ""
    replace(text_pool_copy, root=root).edit(lambda card: card["base"].update(hub="someone/not-here"))
    assert pool_ids()[:2] == ("a_first_by_name", "tiny")
    assert first_pool() == "tiny"
    assert "fwviz pools fetch" in missing_base(pool_card("a_first_by_name"))
    monkeypatch.setattr("fwviz.pools.open.pool_folders", dict)
    with pytest.raises(FwvizError, match="there is no pool of checkpoints here: set FWVIZ_POOLS"):
        first_pool()


@pytest.mark.parametrize("name", ["..", ".", "tests", ""])
def test_a_name_never_leads_elsewhere(name: str) -> None:
    """Names come from links and forms: without a separator they are looked up, never followed."""
    with pytest.raises(FwvizError, match="there is no pool"):
        open_pool(name)


Damage = Callable[[Path], Any]


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], Any], part: str = "checkpoints/shape") -> Damage:
    def edit(root: Path) -> None:
        file = root / part / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return edit


def poison(
    value: float, name: str = "vision_model.encoder.layers.1.mlp.fc1.weight"
) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[-1] = value

    return change


def edit_config(**values: Any) -> Damage:
    def edit(root: Path) -> None:
        file = root / "checkpoints" / "shape" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return edit


def cut(root: Path) -> None:
    file = root / "checkpoints" / "shape" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-2])


NAME = "vision_model.pre_layrnorm.weight"
CHECKPOINTS: dict[str, tuple[Damage, str]] = {
    "NaN": (
        edit_tensors(poison(float("nan"))),
        "'shape' holds NaN or infinity in 'vision_model.encoder.layers.1.mlp",
    ),
    "infinity": (edit_tensors(poison(float("-inf"))), "'shape' holds NaN or infinity"),
    "tensor missing": (edit_tensors(lambda t: t.pop(NAME)), f"has no tensor '{NAME}'"),
    "tensor too much": (edit_tensors(lambda t: t.update(extra=torch.zeros(2))), "'extra' that the base lacks"),
    "other shape": (edit_tensors(lambda t: t.update({NAME: t[NAME][:-1].clone()})), r"shape \(31,\), but the base"),
    "whole numbers": (edit_tensors(lambda t: t.update({NAME: t[NAME].to(torch.int8)})), "torch.int8"),
    "cut off": (cut, "cut off|ends at|end at"),
    "missing": (lambda root: (root / "checkpoints/shape/model.safetensors").unlink(), "cannot be opened"),
    "a pickle": (
        lambda root: torch.save({"a": torch.zeros(9)}, root / "checkpoints/shape/model.safetensors"),
        "no safetensors file",
    ),
    "config missing": (lambda root: (root / "checkpoints/shape/config.json").unlink(), "config.json cannot be read"),
    "other heads": (edit_config(num_attention_heads=4), "another architecture: its heads is 4, the base's 2"),
    "other activation": (edit_config(hidden_act="relu"), "another architecture: its activation is relu"),
    "other family": (edit_config(model_type="llama"), "model_type 'llama'"),
    "folder missing": (lambda root: shutil.rmtree(root / "checkpoints/shape"), "cannot be read"),
}


@pytest.mark.parametrize("storage", ["resident", "streamed"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_damaged_checkpoint_gives_one_sentence(name: str, storage: Any, pool_copy: Any) -> None:
    damage, message = CHECKPOINTS[name]
    damage(pool_copy.root)
    if (pool_copy.root / "checkpoints/shape/model.safetensors").exists():
        pool_copy.seal()
    pool = open_pool(pool_copy.root)
    assert pool.task_vectors(["colour", "corner"], storage).n == 2, "the others can still be merged"
    with pytest.raises(FwvizError, match=message) as raised:
        pool.task_vectors(["colour", "shape"], storage)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("storage", ["resident", "streamed"])
def test_swapped_weights_are_noticed_by_their_hash(pool_copy: Any, storage: Any) -> None:
    edit_tensors(poison(0.123))(pool_copy.root)
    with pytest.raises(FwvizError, match=r"shape.*is not the file its pool card describes"):
        open_pool(pool_copy.root).task_vectors(["shape"], storage)


BASE: dict[str, tuple[Damage, str]] = {
    "NaN": (edit_tensors(poison(float("nan")), "base"), "base.*holds NaN or infinity"),
    "tensor missing": (edit_tensors(lambda t: t.pop(NAME), "base"), f"has no tensor '{NAME}'"),
    "hash": (lambda root: None, "not the file its pool card describes"),
}


@pytest.mark.parametrize("name", BASE)
def test_damaged_base_gives_one_sentence(name: str, pool_copy: Any) -> None:
    damage, message = BASE[name]
    damage(pool_copy.root)
    if name == "hash":
        pool_copy.edit(lambda card: card["base"].update(sha256="0" * 64))
    else:
        pool_copy.seal()
    with pytest.raises(FwvizError, match=message):
        open_pool(pool_copy.root).backbone()


def test_a_card_that_contradicts_the_base(pool_copy: Any) -> None:
    pool_copy.edit(lambda card: card["base"].update(image_size=32))
    with pytest.raises(FwvizError, match=r"base\.image_size is 32"):
        open_pool(pool_copy.root)
    pool_copy.edit(lambda card: (card["base"].update(image_size=16), card["merge"].update(include=["text_model."])))
    with pytest.raises(FwvizError, match="not in the encoder"):
        open_pool(pool_copy.root)
    pool_copy.edit(lambda card: card["merge"].update(include=["vision_modell."]))
    with pytest.raises(FwvizError, match="vision_modell"):
        open_pool(pool_copy.root)
