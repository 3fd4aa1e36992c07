"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

# Two test processes on two cores must not fight over threads, and one thread makes results repeatable.
torch.set_num_threads(1)


def _make_tiny_pool(root: Path) -> Path:
    spec = importlib.util.spec_from_file_location("fwviz_tests_tiny_pool", Path(__file__).parent / "tiny_pool.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    path: Path = module.make_tiny_pool(root)
    return path


@pytest.fixture(scope="session")
def tiny_pool_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A really fine-tuned pool in the format of assets/pools, small enough to merge in a second."""
    return _make_tiny_pool(tmp_path_factory.mktemp("pools") / "tiny")


@pytest.fixture(scope="session")
def tiny_pool(tiny_pool_path: Path):  # type: ignore[no-untyped-def]
    """The tiny pool, opened."""
    from fwviz.pools.open import open_pool

    return open_pool(str(tiny_pool_path))
