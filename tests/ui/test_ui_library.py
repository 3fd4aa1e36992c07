"""The traces a page can look at: which recording stands for a pool before anything was run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fwviz.pools.open import open_pool
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import execute
from fwviz.runs.store import RunStore
from fwviz.ui import views
from fwviz.ui.desk import Desk
from fwviz.ui.jobs import JobBoard
from fwviz.ui.library import Library
from fwviz.ui.state import Opening, Session, View, parse_opening
from tests.ui.test_ui_desk import finish, recipe_for, said


def test_a_pool_is_shown_by_its_own_recording(
    tiny_pool_path: Path, tiny_text_pool_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one a page begins with by the first page, another when it is chosen or named in a link; a run stays."""
    pool_id, text = tiny_pool_path.name, tiny_text_pool_path.name
    monkeypatch.setenv("FWVIZ_POOLS", os.pathsep.join([str(tiny_pool_path), str(tiny_text_pool_path)]))
    store = RunStore(tmp_path / "traces")
    recipes = [recipe_for(pool_id, method="weight_average", settings={}), recipe_for(pool_id)]
    recipes += [Recipe.from_dict({"pool": text, "method": "weight_average"}, open_pool(text).card)]
    written = [execute(recipe, writer=store.create(recipe)).id for recipe in recipes]
    _, soft, sentences = (View("rec", run_id) for run_id in written)
    board = JobBoard(RunStore(tmp_path / "runs"))
    desk = Desk(board, Library(board, store))

    session = Session()
    desk.open(session, Opening())
    assert session.view == soft, "the newest is of another pool"
    desk.choose_pool(session, {"pool": pool_id})
    assert session.view == soft
    messages = desk.choose_pool(session, {"pool": text})
    assert session.view == sentences
    assert session.compare == (sentences,)
    assert said(messages, "scrubber")["pool"] == said(messages, "form")["pool"]["id"] == text
    notes = [row["note"] for row in said(messages, "history")["rows"]]
    assert notes == ["Tiny sentences, recording", *["Tiny patterns, recording"] * 2]
    assert set(views.charts_of("relevance")) <= set(messages)
    linked = Session()
    desk.open(linked, parse_opening(json.dumps({"query": {"pool": text}})))
    assert linked.view == sentences

    with monkeypatch.context() as elsewhere:  # where the pool a page begins with has no recording: the widest
        elsewhere.setattr("fwviz.ui.library.first_pool", lambda: "another")
        assert desk.library.first() == soft
    assert desk.library.first("another") is None

    average = recipe_for(pool_id, method="weight_average", settings={})
    desk.start(session, "somebody", {"recipe": average.to_json()}, paused=False)
    finish(desk, session)
    own = session.view
    assert own is not None
    assert own.kind == "run"
    messages = desk.choose_pool(session, {"pool": text})
    assert session.view == own, "a run of one's own is not put away"
    assert "scrubber" not in messages
    board.close()
