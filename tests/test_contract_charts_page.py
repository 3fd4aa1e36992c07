"""What a page counts on in every chart: both themes, what its parts stand for, a zoom that stays, few bytes."""

from __future__ import annotations

import re
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest

from fwviz import registry
from fwviz.charts._style import PALETTES
from tests.charts.feeds import CHARTS, FEEDS
from tests.charts.tables_runs import LARGE, PLAIN


@pytest.mark.parametrize("name", CHARTS)
def test_dark_is_light_in_other_colours(name: str) -> None:
    """The page switches themes in the browser by exchanging colours, so nothing else may differ."""

    def flat(value: Any) -> list[str]:
        return [value] if isinstance(value, str) else [colour for item in value for colour in flat(item)]

    def start(colour: str) -> str:
        return f"rgba({','.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))},"

    light, dark = (flat(astuple(PALETTES[theme])) for theme in ("light", "dark"))
    assert len(set(light)) == len(light), "two roles share a colour in the light palette"
    to_dark = dict(zip(light, dark, strict=True))
    to_dark |= {start(a): start(b) for a, b in to_dark.items()}
    make, _ = FEEDS[name]
    run = registry.entry("charts", name).run
    swapped = re.sub(r"#[0-9a-f]{6}|rgba\(\d+,\d+,\d+,", lambda m: to_dark.get(m[0], m[0]), run(make(PLAIN)).to_json())
    assert swapped == run(make(PLAIN), theme="dark").to_json()


@pytest.mark.parametrize("name", CHARTS)
def test_chart_says_what_its_parts_stand_for(name: str) -> None:
    """A page can tell from ``meta`` alone which checkpoint, layer, … a point, a row or a trace is."""
    make, _ = FEEDS[name]
    figure = registry.entry("charts", name).run(make(PLAIN))
    linked = {"checkpoint": set(PLAIN[1]), "layer": {*PLAIN[2], "model"}}
    words = {"checkpoint", "layer", "t", "task", "run", "cell"}
    for trace in figure.data:
        meta = trace.meta or {}
        select = meta.get("select")
        assert select is None or select in words, select
        keys = meta.get("keys") or ([select] if select in linked else [])
        for point in trace.customdata if keys and trace.customdata is not None else ():
            ids = list(point) if isinstance(point, list | tuple | np.ndarray) else [point]
            for key, value in zip(keys, ids, strict=False):
                assert key not in linked or value in linked[key], (key, value)
        for end, axis in (("rows", 0), ("columns", 1)):
            for key, ids in (meta.get(end) or {}).items():
                assert key not in linked or set(ids) <= linked[key], (end, key, ids)
                assert len(ids) == np.asarray(trace.z).shape[axis], (end, len(ids))
        assert all(value in linked[key] for key, value in (meta.get("of") or {}).items() if key in linked)


@pytest.mark.parametrize("name", CHARTS)
def test_chart_keeps_its_zoom_while_data_arrive(name: str) -> None:
    make, _ = FEEDS[name]
    run = registry.entry("charts", name).run
    table = make(PLAIN)
    half = run(table.iloc[: len(table) * 9 // 10]).layout.uirevision
    assert half
    assert half == run(table).layout.uirevision


@pytest.mark.parametrize("name", CHARTS)
def test_chart_stays_small(name: str) -> None:
    make, _ = FEEDS[name]
    run = registry.entry("charts", name).run
    assert len(run(make(PLAIN)).to_json().encode()) < 32_000
    assert len(run(make(LARGE)).to_json().encode()) < 150_000
