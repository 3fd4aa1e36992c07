"""Where a base is found: beside the pool, among local models, in the Hub's cache, in a package; and when it is not."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from fwviz.backbones.folders import base_folder, cached_snapshot
from fwviz.pools.card import load_card, verify
from fwviz.pools.open import open_pool
from fwviz.types import FwvizError

REPO = "someone/tiny-encoder"


@pytest.fixture
def moved(text_pool_copy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Path]:
    """A pool whose base is a model of the Hub, and the folder of that model, which is nowhere to be found yet."""
    shutil.move(text_pool_copy.root / "base", tmp_path / "model")

    def change(card: dict[str, Any]) -> None:
        card["base"].pop("path")
        package = {"name": "tiny-carrier", "module": "tiny_carrier_of_tests", "folder": "model"}
        card["base"] |= {"hub": REPO, "package": package}

    text_pool_copy.edit(change)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FWVIZ_MODELS", raising=False)
    return text_pool_copy, tmp_path / "model"


def test_a_missing_base_says_how_to_get_it(moved: tuple[Any, Path]) -> None:
    with pytest.raises(
        FwvizError, match=r"someone/tiny-encoder .*`fwviz pools fetch tiny_text` or `pip install tiny-car"
    ):
        open_pool(moved[0].root)


def test_it_is_found_in_the_hubs_cache(moved: tuple[Any, Path], tmp_path: Path) -> None:
    pool, model = moved
    root = tmp_path / "cache" / "models--someone--tiny-encoder"
    (root / "refs").mkdir(parents=True)
    assert cached_snapshot(REPO) is None
    (root / "refs" / "main").write_text("../../..")
    assert cached_snapshot(REPO) is None, "a damaged cache must not lead elsewhere"
    (root / "refs" / "main").write_text("abc123")
    shutil.copytree(model, root / "snapshots" / "abc123")
    opened = open_pool(pool.root)
    assert opened.base_dir == root / "snapshots" / "abc123"
    assert opened.task_vectors(["food"]).n == 1
    assert opened.heads(["food"])["food"].shape == (3, 32)
    assert verify(opened.card) == []


def test_it_is_found_among_local_models(
    moved: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(moved[1], tmp_path / "models" / "tiny-encoder")
    monkeypatch.setenv("FWVIZ_MODELS", str(tmp_path / "models"))
    assert base_folder(load_card(moved[0].root)) == tmp_path / "models" / "tiny-encoder"


def test_it_is_found_in_a_package_that_is_not_run(
    moved: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "tiny_carrier_of_tests"
    shutil.copytree(moved[1], package / "model")
    (package / "__init__.py").write_text("raise SystemExit('it was run')")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "site")])
    assert base_folder(load_card(moved[0].root)) == package / "model"


@pytest.mark.parametrize("value", ["a/b/c", "../x", "a/..", "a--b/c", "", 3, "/etc", "https://x/y"])
def test_an_id_is_no_path(moved: tuple[Any, Path], value: Any) -> None:
    moved[0].edit(lambda card: card["base"].update(hub=value))
    with pytest.raises(FwvizError, match=r"base\.hub is .* owner/name"):
        load_card(moved[0].root)
