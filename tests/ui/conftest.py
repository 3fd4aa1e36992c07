"""A desk that people bring things to: the tiny pools, and folders of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fwviz.runs.store import RunStore
from fwviz.ui.desk import Desk
from fwviz.ui.jobs import JobBoard
from fwviz.ui.library import Library


@pytest.fixture(scope="module")
def pool_id(tiny_pool_path: Path, tiny_text_pool_path: Path) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FWVIZ_POOLS", f"{tiny_pool_path.parent}:{tiny_text_pool_path.parent}")
        yield tiny_pool_path.name


@pytest.fixture
def desk(pool_id: str, tmp_path: Path) -> Iterator[Desk]:
    board = JobBoard(RunStore(tmp_path / "runs"))
    made = Desk(board, Library(board, RunStore(tmp_path / "traces")))
    made.shelf._root, made.shelf._patience = tmp_path / "shelf", 0.2
    yield made
    board.close()
    made.shelf.close()
