"""The maps of models × tasks: which cell says what, in which colour, and what is said above them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from fwviz.charts import _style as style
from fwviz.charts.cka import cka
from fwviz.charts.generalisation import generalisation
from fwviz.charts.left_out import left_out


def heat(figure: go.Figure) -> Any:
    return next(trace for trace in figure.data if trace.type == "heatmap")


def numbers(figure: go.Figure) -> dict[tuple[str, str], str]:
    texts = [trace for trace in figure.data if trace.name == "numbers"]
    return {(y, x): t for trace in texts for y, x, t in zip(trace.y, trace.x, trace.text, strict=True)}


VECTORS = pd.DataFrame(
    [
        {"checkpoint": "a", "task": "a", "own": True, "accuracy": 0.90, "filtered": 0.86, "base": 0.50},
        {"checkpoint": "a", "task": "b", "own": False, "accuracy": 0.40, "filtered": 0.42, "base": 0.45},
        {"checkpoint": "b", "task": "a", "own": False, "accuracy": 0.55, "filtered": 0.56, "base": 0.50},
        {"checkpoint": "b", "task": "b", "own": True, "accuracy": 0.80, "filtered": 0.80, "base": 0.45},
    ]
)


def test_the_difference_is_what_the_filter_gains_in_points() -> None:
    figure = generalisation(VECTORS.assign(cutoff=0.1))
    found = heat(figure)
    assert list(found.y) == ["a", "b"]  # a row is a task vector, a column a task
    assert list(found.x) == ["a", "b"]
    np.testing.assert_allclose(found.z, [[-4, 2], [1, 0]], atol=1e-5)
    assert numbers(figure) == {("a", "a"): "−4.0", ("a", "b"): "+2.0", ("b", "a"): "+1.0", ("b", "b"): "+0.0"}
    # High is good: the blue end of the scale is the upper one.
    assert found.colorscale[-1][1] == style.palette("light").diverging[0]
    assert found.zmax == -found.zmin == pytest.approx(4)
    assert "own tasks −2.0 points, others +1.5 points" in figure.layout.meta["summary"]
    framed = [(round(shape.x0 + shape.x1) / 2, round(shape.y0 + shape.y1) / 2) for shape in figure.layout.shapes]
    assert framed == [(0, 0), (1, 1)]


@pytest.mark.parametrize(("value", "column"), [("accuracy", "accuracy"), ("filtered", "filtered")])
def test_accuracies_are_coloured_by_their_distance_to_the_base(value: str, column: str) -> None:
    figure = generalisation(VECTORS, value=value)
    expected = 100 * (VECTORS[column] - VECTORS["base"]).to_numpy().reshape(2, 2)
    np.testing.assert_allclose(heat(figure).z, expected, atol=1e-4)
    assert numbers(figure)["a", "b"] == f"{VECTORS[column][1]:.0%}"
    # Without a base there is nothing to compare with, but the numbers stay.
    alone = generalisation(VECTORS.drop(columns="base"), value=value)
    np.testing.assert_allclose(heat(alone).z, 0)
    assert numbers(alone) == numbers(figure)


def test_a_merge_closer_than_the_base_is_blue_and_the_mean_is_last() -> None:
    rows = pd.DataFrame(
        [
            {"run": run, "label": run or "base", "task": task, "cka": value, "base": base}
            for run, values in (("", (0.5, 0.9)), ("one", (0.8, 0.7)))
            for task, value, base in zip("ab", values, (0.5, 0.9), strict=True)
        ]
    )
    figure = cka(rows)
    np.testing.assert_allclose(heat(figure).z, [[0, 0, 0], [0.3, -0.2, 0.05]], atol=1e-6)
    assert numbers(figure)["one", "all of them"] == "0.75"
    assert list(heat(figure).meta["rows"]["run"]) == ["", "one"]
    # A merge that was not compared on every task has no mean.
    figure = cka(rows.iloc[:3])
    assert np.isnan(heat(figure).z[1][2])
    assert ("one", "all of them") not in numbers(figure)


def test_what_was_forgotten_is_orange() -> None:
    rows = pd.DataFrame(
        {
            "run": ["x", "x", "y", "y"],
            "label": ["Some method · 8 checkpoints", "Some method · 8 checkpoints", "other", "other"],
            "task": ["a", "b", "a", "b"],
            "accuracy": [0.4, 0.6, 0.55, 0.65],
            "base": [0.5, 0.6, 0.5, 0.6],
        }
    )
    figure = left_out(rows)
    np.testing.assert_allclose(heat(figure).z, [[-10, 0, -5], [5, 5, 5]], atol=1e-4)
    assert "base 55.0 % on average" in figure.layout.annotations[0].text
    assert figure.layout.meta["summary"].index("other 60.0 %") < figure.layout.meta["summary"].index("50.0 %")
    # A run is named in two lines: the method, and what is particular to it.
    assert [text.count("<br>") for text in figure.layout.yaxis.ticktext] == [1, 0]


@pytest.mark.parametrize(
    ("narrow", "tasks", "fits"), [(False, 11, True), (False, 12, False), (True, 5, True), (True, 6, False)]
)
def test_a_map_too_full_for_numbers_says_where_they_are(narrow: bool, tasks: int, fits: bool) -> None:
    """The words above the map speak of the number: it stands in the cells, or it is said how to get it."""
    rows = [{"run": "x", "task": f"t{i}", "accuracy": 0.5, "base": 0.4} for i in range(tasks)]
    figure = left_out(pd.DataFrame(rows), narrow=narrow)
    assert bool(numbers(figure)) == fits
    assert any("a cell for its number" in note.text for note in figure.layout.annotations) != fits
