"""Pools that extend a pool, and folders that have a name for a while."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fwviz.pools.card import load_card
from fwviz.pools.open import open_pool, pool_ids
from fwviz.pools.places import find_pool, lend, take_back
from fwviz.types import FwvizError


def extending(root: Path, parent: str, **more: object) -> Path:
    plain = {"format": 1, "id": root.name, "extends": parent, "title": "mine", "summary": "s"}
    plain |= {"default": {"tasks": ["shape"], "checkpoints": ["shape"]}, **more}
    root.mkdir(exist_ok=True)
    (root / "pool.yaml").write_text(yaml.safe_dump(plain))
    return root


def test_a_pool_that_extends_one_has_all_of_it(tiny_pool_path: Path, tmp_path: Path) -> None:
    pool = open_pool(extending(tmp_path / "mine", str(tiny_pool_path)))
    whole = open_pool(tiny_pool_path)
    assert (pool.checkpoint_ids, pool.task_ids) == (whole.checkpoint_ids, whole.task_ids)
    assert pool.card.default_tasks == ("shape",)
    assert pool.task_vectors(["shape"]).vector(0).equal(whole.task_vectors(["shape"]).vector(0))
    twice = open_pool(extending(tmp_path / "again", str(tmp_path / "mine")))
    assert twice.base.equal(whole.base)
    assert twice.base_name == whole.base_name


def test_a_pool_cannot_extend_itself_or_a_relative_folder(tiny_pool_path: Path, tmp_path: Path) -> None:
    with pytest.raises(FwvizError, match="extend each other"):
        load_card(extending(tmp_path / "a", str(tmp_path / "a")))
    with pytest.raises(FwvizError, match=r"extends is '\.\./tiny', but must be the name or the absolute folder"):
        load_card(extending(tmp_path / "b", "../tiny"))
    with pytest.raises(FwvizError, match="there is no pool 'nowhere'"):
        load_card(extending(tmp_path / "c", "nowhere"))
    task = {"id": "shape"}
    with pytest.raises(FwvizError, match=r"tasks\[0\].splits is missing"):
        load_card(extending(tmp_path / "d", str(tiny_pool_path), tasks=[task]))


def test_a_lent_name_is_found_but_never_listed(tiny_pool_path: Path) -> None:
    lend("own-secret", tiny_pool_path)
    try:
        assert find_pool("own-secret") == tiny_pool_path
        assert open_pool("own-secret").card.id == "tiny"
        assert "own-secret" not in pool_ids()
        with pytest.raises(FwvizError) as caught:
            open_pool("other")
        assert "own-secret" not in str(caught.value)
    finally:
        take_back("own-secret")
    with pytest.raises(FwvizError, match="there is no pool"):
        find_pool("own-secret")
