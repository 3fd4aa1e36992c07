"""Fixtures shared by all tests."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.command import Run, runner

# Two test processes on two cores must not fight over threads, and one thread makes results repeatable.
torch.set_num_threads(1)


def _made_by(recipe: str, pytestconfig: pytest.Config, target: Path) -> Path:
    """A copy at ``target`` of what ``make_<recipe>`` of ``tests/<recipe>.py`` writes.

    Training takes seconds, so pytest's cache keeps it until its recipe or torch changes; tests see a copy.
    """
    file = Path(__file__).parent / f"{recipe}.py"
    cache = getattr(pytestconfig, "cache", None)  # absent with -p no:cacheprovider
    key = hashlib.sha256(file.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    kept = (cache.mkdir(recipe) if cache else target.parent / "cache" / recipe) / key
    if not kept.exists():
        spec = importlib.util.spec_from_file_location(f"fwviz_tests_{recipe}", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        made: Path = getattr(module, f"make_{recipe}")(target.parent / "made")
        # Moved into place in one step: several sessions may want it at once, and one may be killed midway.
        unique = Path(shutil.copytree(made, kept.with_name(f"{key}.{os.getpid()}")))
        try:
            unique.rename(kept)
        except OSError:
            shutil.rmtree(unique)
    return Path(shutil.copytree(kept, target))


@pytest.fixture(scope="session")
def tiny_pool_path(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """A really fine-tuned pool in the format of assets/pools, small enough to merge in a second."""
    return _made_by("tiny_pool", pytestconfig, tmp_path_factory.mktemp("pools") / "tiny")


@pytest.fixture(scope="session")
def tiny_text_pool_path(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """A tiny sentence encoder and a really trained PEFT adapter for each of four word tasks."""
    return _made_by("tiny_text_pool", pytestconfig, tmp_path_factory.mktemp("text_pools") / "tiny_text")


@pytest.fixture(scope="session")
def tiny_text_pool(tiny_text_pool_path: Path):  # type: ignore[no-untyped-def]
    """The tiny text pool, opened."""
    from fwviz.pools.open import open_pool

    return open_pool(str(tiny_text_pool_path))


@pytest.fixture(scope="session")
def tiny_pool(tiny_pool_path: Path):  # type: ignore[no-untyped-def]
    """The tiny pool, opened."""
    from fwviz.pools.open import open_pool

    return open_pool(str(tiny_pool_path))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line, called in this process."""
    return runner(capsys)


@dataclass(frozen=True)
class PoolCopy:
    """A pool of a test's own, to be damaged."""

    root: Path

    def edit(self, change: Callable[[dict[str, Any]], Any]) -> None:
        """Change the card through its parsed form."""
        file = self.root / "pool.yaml"
        card = yaml.safe_load(file.read_text(encoding="utf-8"))
        change(card)
        file.write_text(yaml.safe_dump(card, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def seal(self) -> None:
        """Write the true hashes of base, checkpoints and splits into the card, as an attacker would."""

        def digest(path: str) -> str:
            return hashlib.sha256((self.root / path).read_bytes()).hexdigest()

        def change(card: dict[str, Any]) -> None:
            for part in [card["base"], *card["checkpoints"]]:
                adapter = f"{part['path']}/adapter_model.safetensors"
                weights = adapter if (self.root / adapter).exists() else f"{part['path']}/model.safetensors"
                part["sha256"] = digest(weights)
            for task in card["tasks"]:
                for split in task["splits"].values():
                    split["sha256"] = digest(split["path"])

        self.edit(change)


@pytest.fixture
def pool_copy(tiny_pool_path: Path, tmp_path: Path) -> PoolCopy:
    """A copy of the tiny pool that the test may damage."""
    return PoolCopy(Path(shutil.copytree(tiny_pool_path, tmp_path / "tiny")))


@pytest.fixture
def text_pool_copy(tiny_text_pool_path: Path, tmp_path: Path) -> PoolCopy:
    """A copy of the tiny text pool that the test may damage."""
    return PoolCopy(Path(shutil.copytree(tiny_text_pool_path, tmp_path / "tiny_text")))
