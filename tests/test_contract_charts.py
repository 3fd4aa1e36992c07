"""Every chart on odd inputs: nothing, one row, 20 × 200, NaN, infinity, long and hostile names, both themes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from fwviz import registry
from fwviz.charts._style import THEMES
from fwviz.types import FwvizError
from tests.charts.feeds import CHARTS, FEEDS
from tests.charts.tables_runs import LARGE, ODD, PLAIN, Names


def some_nan(table: pd.DataFrame, columns: tuple[str, ...], value: float = math.nan) -> pd.DataFrame:
    spoilt = table.copy()
    for column in columns:
        spoilt.loc[spoilt.index[::3], column] = value
    return spoilt


INPUTS: dict[str, Callable[[Callable[[Names], pd.DataFrame], tuple[str, ...]], pd.DataFrame]] = {
    "nothing": lambda make, columns: pd.DataFrame(),
    "no rows": lambda make, columns: make(PLAIN).iloc[:0],
    "one row": lambda make, columns: make(PLAIN).iloc[:1],
    "usual": lambda make, columns: make(PLAIN),
    "large": lambda make, columns: make(LARGE),
    "odd names": lambda make, columns: make(ODD),
    "some NaN": lambda make, columns: some_nan(make(PLAIN), columns),
    "some infinite": lambda make, columns: some_nan(make(PLAIN), columns, -math.inf),
    "all NaN": lambda make, columns: make(PLAIN).assign(**dict.fromkeys(columns, math.nan)),
    "all zero": lambda make, columns: make(PLAIN).assign(**dict.fromkeys(columns, 0.0)),
    "tiny": lambda make, columns: make(PLAIN).assign(**{c: make(PLAIN)[c] * 1e-9 for c in columns}),
    "twice": lambda make, columns: pd.concat([make(PLAIN), make(PLAIN)]),
    "shuffled index": lambda make, columns: make(PLAIN).set_index(np.arange(len(make(PLAIN)))[::-1] * 7),
}


def test_every_chart_is_fed() -> None:
    assert set(FEEDS) == set(CHARTS), "give the new chart a table in FEEDS"


@pytest.mark.parametrize("name", CHARTS)
@pytest.mark.parametrize("kind", INPUTS)
def test_chart_draws_odd_inputs(name: str, kind: str) -> None:
    make, columns = FEEDS[name]
    entry = registry.entry("charts", name)
    data = INPUTS[kind](make, columns)
    before = data.copy(deep=True)
    every = [(theme, narrow) for theme in THEMES for narrow in (False, True)]
    for theme, narrow in every if kind in ("usual", "odd names") else every[::3]:
        figure = entry.run(data, theme=theme, narrow=narrow)
        pd.testing.assert_frame_equal(data, before)  # charts never write to their table
        check(figure, entry.facts["reading"], kind)


def check(figure: go.Figure, reading: str, kind: str) -> None:
    text = figure.to_json()
    go.Figure(json.loads(text))  # plotly refuses properties and values it does not know
    drawn = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} in the figure's JSON"))
    shape = drawn["layout"]
    assert shape["paper_bgcolor"] == shape["plot_bgcolor"] == "rgba(0,0,0,0)"
    assert "title" not in shape
    assert "template" not in shape or not shape["template"]
    assert isinstance(shape["height"], int)
    assert 60 <= shape["height"] <= 1600
    assert shape["meta"]["reading"] == reading
    summary = shape["meta"]["summary"]
    assert summary
    assert summary[-1] == "."
    words = json.dumps([shape["meta"], shape.get("annotations", []), [t.get("hovertext") for t in drawn["data"]]])
    assert not re.search(r"\b(nan|inf|None)\b", words), words
    # Without numbers there is a sentence instead of an empty plot.
    if kind in ("nothing", "no rows", "all NaN"):
        assert not drawn["data"]
        assert shape["annotations"][0]["text"]
    else:
        assert drawn["data"]
    if kind == "odd names":
        assert "<img" not in text.replace(json.dumps(summary), "")
        assert "<script" not in text.replace(json.dumps(summary), "")
        assert all("%{x} " not in str(trace.get("name")) for trace in drawn["data"])
    for trace in drawn["data"]:
        for axis in ("x", "y", "z"):
            assert not isinstance(trace.get(axis), list) or len(trace[axis]) < 5 or isinstance(trace[axis][0], str), (
                "numbers go as typed arrays"
            )


@pytest.mark.parametrize("name", CHARTS)
def test_chart_names_the_missing_column(name: str) -> None:
    make, columns = FEEDS[name]
    run = registry.entry("charts", name).run
    with pytest.raises(FwvizError, match=columns[0]):
        run(make(PLAIN).drop(columns=columns[0]))
    with pytest.raises(FwvizError, match="theme"):
        run(make(PLAIN), theme="sepia")
