"""The command line that a chart names is one that the CLI reads, for every chart of every tab."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fwviz import cli
from fwviz.pools.open import open_pool
from fwviz.registry import entries, entry
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import execute
from fwviz.runs.store import RunStore
from fwviz.ui.controls import values_of
from fwviz.ui.pictures import Call, Picture, Shown, Tab
from fwviz.ui.tabs import PICTURES, TABS


@pytest.fixture(scope="module")
def shown(tiny_pool_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FWVIZ_POOLS", str(tiny_pool_path.parent))
        root = tmp_path_factory.mktemp("runs")
        patch.setenv("FWVIZ_RUNS", str(root))
        card = open_pool(tiny_pool_path.name).card
        recipe = Recipe.from_dict({"pool": tiny_pool_path.name, "method": "weight_average"}, card)
        store = RunStore(root)
        trace = execute(recipe, writer=store.create(recipe))
        name = store.ids()[0]
        yield Shown(f"run:{name}", replace(trace, id=name), 0, False, None, None, (), card, False)


@pytest.mark.parametrize(("tab", "picture"), [(t, p) for t in TABS.values() for p in t.pictures], ids=[*PICTURES])
def test_the_command_of_a_chart_asks_for_what_the_page_shows(
    shown: Shown, tab: Tab, picture: Picture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for _ in range(2):
        shown = replace(shown, values=values_of(tab.controls(shown), {}))
    shown = replace(shown, compared=((shown.key, shown.trace),))
    call = picture.call(shown)
    lens = entry("lenses", call.lens)
    asked: list[dict[str, Any]] = []

    def measure(*args: Any, **options: Any) -> pd.DataFrame:
        asked.append(options)
        return pd.DataFrame()

    measure.__signature__ = inspect.signature(lens.run)  # type: ignore[attr-defined]
    monkeypatch.setitem(entries("lenses"), call.lens, replace(lens, run=measure))
    words = shlex.split(call.cli_line(shown, picture.chart))
    assert words[:3] == ["fwviz", "lens", call.lens]
    monkeypatch.chdir(tmp_path)
    assert cli.main(words[1:]) == 0
    assert Path(f"{picture.chart}.html").exists()
    plain = {name: value for name, value in call.options.items() if isinstance(value, bool | int | float | str)}
    assert {name: asked[0][name] for name in plain} == plain
    assert plain == dict(call.options), "an option that no flag can carry"
    assert ("theta" in asked[0]) == (call.at == "frame")
    assert entry("charts", picture.chart).facts["lens"] == call.lens


def test_runs_of_another_pool_stand_beside_no_run(shown: Shown) -> None:
    """Their weights and planes are of another model; what they reached may still be compared."""
    other = replace(shown.trace, id="other", pool_fingerprint="0" * 16)
    same = replace(shown.trace, id="same")
    both = replace(shown, compared=(("run:other", other), ("run:same", same), (shown.key, shown.trace)))
    assert Call("weights_map", "beside").traces(both) == [shown.trace, same]
    assert Call("cka", "runs").traces(both) == [shown.trace, same]
    assert "other" not in Call("cka", "runs").cli_line(both, "cka")
    assert Call("comparison", "compared").traces(both) == [other, same, shown.trace]
