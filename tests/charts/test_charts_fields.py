"""What the pictures of a loss draw, number by number."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from fwviz.charts import _field as field
from fwviz.charts import _style as style
from fwviz.charts.interpolation_curve import barrier, interpolation_curve
from fwviz.charts.landscape_contour import fill, landscape_contour
from fwviz.charts.landscape_surface import landscape_surface
from fwviz.charts.scaling_curves import scaling_curves
from fwviz.charts.simplex_triangle import finest, place, simplex_triangle


def traces(figure: go.Figure, kind: str, name: str | None = None) -> list[Any]:
    return [trace for trace in figure.data if trace.type == kind and (name is None or trace.name == name)]


# --- landscape ------------------------------------------------------------------------------------


def grid(points: list[tuple[int, int, int, float]]) -> pd.DataFrame:
    rows = [
        {
            "series": "grid",
            "column": c,
            "row": r,
            "stride": s,
            "x": 2.0 + c,
            "y": -1.0 + 0.5 * r,
            "task": "a",
            "loss": v,
        }
        for c, r, s, v in points
    ]
    return pd.DataFrame(rows)


COARSE = [(0, 0, 4, 1.0), (4, 0, 4, 2.0), (0, 4, 4, 3.0), (4, 4, 4, 4.0)]


def test_a_coarse_grid_is_drawn_in_blocks_that_finer_points_replace() -> None:
    x, y, z, level = fill(grid(COARSE), "loss")
    np.testing.assert_allclose(x, [2, 3, 4, 5, 6])
    np.testing.assert_allclose(y, [-1, -0.5, 0, 0.5, 1])
    assert not np.isnan(z).any()
    assert z[0, 4] == 2.0  # z[row, column]: right, below
    assert z[4, 0] == 3.0
    assert level == 4
    finer = [*COARSE, (2, 0, 2, 9.0)]
    _, _, z, level = fill(grid(finer), "loss")
    assert level == 4  # the next grid is not complete
    assert z[0, 2] == z[1, 1] == 9.0
    assert z[0, 0] == 1.0
    whole = [*COARSE, *((c, r, 2, 5.0) for c in (0, 2, 4) for r in (0, 2, 4) if c % 4 or r % 4)]
    assert fill(grid(whole), "loss")[3] == 2


def test_the_map_shows_each_value_where_it_was_measured() -> None:
    table = grid([(c, r, 1, 1.0 + c + 10 * r) for r in range(5) for c in range(5)])
    figure = landscape_contour(table)
    (heat,) = traces(figure, "heatmap")
    np.testing.assert_allclose(np.asarray(heat.z)[3], [31, 32, 33, 34, 35])
    np.testing.assert_allclose(heat.x, [2, 3, 4, 5, 6])
    assert len(traces(figure, "contour")) == 1
    assert figure.layout.yaxis.scaleanchor == "x"
    (relief,) = traces(landscape_surface(table), "surface")
    np.testing.assert_allclose(np.asarray(relief.z)[1], [11, 12, 13, 14, 15])


def test_the_name_of_a_model_at_the_edge_has_room_below_the_key() -> None:
    """While few points are measured the models themselves are the edge of the picture."""
    corners = [("base", 2.0, -1.0), ("a", 6.0, -1.0), ("b", 2.0, 1.0)]
    rows = [{"series": "corner", "model": m, "x": x, "y": y, "task": "a", "loss": 1.0} for m, x, y in corners]
    figure = landscape_contour(pd.concat([grid(COARSE), pd.DataFrame(rows)], ignore_index=True))
    assert figure.layout.yaxis.range[1] - 1.0 >= 0.06 * 4.0
    inside = landscape_contour(pd.concat([grid(COARSE), pd.DataFrame(rows[:2])], ignore_index=True))
    np.testing.assert_allclose(inside.layout.yaxis.range, [-1.06, 1.06])


def run(label: str, xs: list[float], share: float) -> pd.DataFrame:
    rows = [
        {"series": "path", "run": label, "label": label, "t": float(t), "x": v, "y": 0.25, "out_of_plane": share}
        | {"task": "joint", "loss": 0.5, "accuracy": 0.7}
        for t, v in enumerate(xs)
    ]
    return pd.DataFrame(rows)


def test_runs_are_drawn_up_to_an_iteration_with_their_share_outside() -> None:
    table = pd.concat([grid(COARSE), run("soft", [2.0, 3.0, 4.0], 0.42)], ignore_index=True)
    (path,) = traces(landscape_contour(table), "scatter", "soft")
    np.testing.assert_allclose(path.x, [2, 3, 4])
    assert [list(step) for step in path.customdata] == [[0.0], [1.0], [2.0]]
    assert "42 % outside" in path.hovertext[0]
    figure = landscape_contour(table, until=1)
    (path,) = traces(figure, "scatter", "soft")
    np.testing.assert_allclose(path.x, [2, 3])
    texts = [note.text for note in figure.layout.annotations]
    assert any(text == "42 % outside" for text in texts)


def test_a_run_stands_at_its_own_loss_above_the_relief() -> None:
    table = pd.concat([grid([(c, r, 1, 2.0) for c in range(5) for r in range(5)])], ignore_index=True)
    table.loc[0, "loss"] = 0.1
    table = pd.concat([table.assign(task="joint"), run("soft", [4.0], 0.5)], ignore_index=True)
    (path,) = traces(landscape_surface(table), "scatter3d", "soft")
    np.testing.assert_allclose(path.z, [0.5])
    stem = traces(landscape_surface(table), "scatter3d", "")[0]
    np.testing.assert_allclose(np.asarray(stem.z)[:2], [2.0, 0.5])  # from the plane to its own loss


def test_a_run_below_the_whole_plane_is_drawn_below_it() -> None:
    """The plane's lowest colour is not the lowest loss a run may have; above, the relief and the runs are cut off."""
    cells = [(c, r, 1, 2.0 + (c + r) / 4) for c in range(5) for r in range(5)]
    table = pd.concat([grid(cells).assign(task="joint"), run("soft", [4.0, 3.0], 0.5)], ignore_index=True)
    table.loc[table["series"] == "path", "loss"] = [0.25, 1e6]
    (path,) = traces(landscape_surface(table), "scatter3d", "soft")
    assert path.z[0] == pytest.approx(0.25)
    (relief,) = traces(landscape_surface(table), "surface")
    assert path.z[1] == pytest.approx(relief.cmax)
    assert relief.cmin >= 2.0


def test_the_lowest_loss_and_the_highest_accuracy_have_the_same_colour() -> None:
    best = style.palette("light").sequential[0]
    loss = field.Ramp.of("loss", np.array([0.1, 1.0, 10.0]))
    assert loss.scale("light")[0][1] == best
    assert loss.even(np.array([0.1, 1.0, 10.0, 99.0])) == pytest.approx([0, 0.5, 1, 1])
    middle = loss.scale("light")[3]
    assert middle[0] == pytest.approx((1.0 - 0.1) / 9.9)  # half of the colours lie below the geometric middle
    accuracy = field.Ramp.of("accuracy", np.array([0.2, 0.9]))
    assert accuracy.scale("light")[-1][1] == best
    assert field.Ramp.of("loss", np.array([1.0, 2.0]), (0.5, 4.0)).high == 4.0


# --- triangle -------------------------------------------------------------------------------------


def triangle(steps: int, stride: int) -> pd.DataFrame:
    rows = [
        {"series": "grid", "column": i, "row": j, "stride": stride, "task": "a", "loss": 1.0 + i + 10 * j}
        | {"lambda_1": (steps - i - j) / steps, "lambda_2": i / steps, "lambda_3": j / steps}
        for i in range(0, steps + 1, stride)
        for j in range(0, steps + 1 - i, stride)
    ]
    return pd.DataFrame(rows)


def test_corners_of_the_triangle_are_where_they_are_named() -> None:
    x, y = place(pd.DataFrame({"lambda_1": [1.0, 0, 0], "lambda_2": [0, 1.0, 0], "lambda_3": [0, 0, 1.0]}))
    np.testing.assert_allclose(x, [0, 1, 0.5])
    np.testing.assert_allclose(y, [0, 0, math.sqrt(3) / 2])
    assert finest(triangle(4, 2)) == (4, 2)
    assert finest(pd.concat([triangle(4, 4), triangle(4, 1).iloc[1:3]])) == (4, 4)


def test_cells_have_the_size_of_their_level_and_the_colour_of_their_value() -> None:
    (cells,) = traces(simplex_triangle(triangle(4, 2)), "scatter", "loss")
    (fine,) = traces(simplex_triangle(triangle(4, 1)), "scatter", "loss")
    assert cells.marker.size[0] == pytest.approx(2 * fine.marker.size[0], rel=1e-5)
    assert len(fine.x) == 15
    for shares, value, x in zip(fine.customdata, fine.marker.color, fine.x, strict=True):
        assert value == pytest.approx(1 + 4 * shares[1] + 40 * shares[2], rel=1e-5)
        assert x == pytest.approx(shares[1] + shares[2] / 2, abs=1e-6)


# --- the way between two, and the growing pool ----------------------------------------------------


def test_the_barrier_is_measured_from_the_chord() -> None:
    gamma = np.linspace(0, 1, 11)
    hill = pd.DataFrame({"gamma": gamma, "loss": 1 + gamma + 2 * gamma * (1 - gamma)})
    assert barrier(hill) == pytest.approx((0.5, 0.5, 1.5))
    valley = pd.DataFrame({"gamma": gamma, "loss": 1 + gamma - 2 * gamma * (1 - gamma)})
    assert barrier(valley)[0] == 0.0
    texts = [n.text for n in interpolation_curve(hill.assign(task="joint", accuracy=0.5)).layout.annotations]
    assert any("barrier 0.5 nats" in text for text in texts)
    texts = [n.text for n in interpolation_curve(valley.assign(task="joint", accuracy=0.5)).layout.annotations]
    assert any("no barrier" in text for text in texts)


def test_curves_average_tasks_then_seeds() -> None:
    rows = [
        {"seed": s, "count": c, "variant": v, "task": t, "accuracy": 0.5 + 0.1 * s + 0.01 * c + 0.2 * (t == "b")}
        for s in (0, 1)
        for c in (4, 2)
        for v in ("base", "mtl", "soft")
        for t in ("a", "b")
    ]
    figure = scaling_curves(pd.DataFrame(rows))
    (curve,) = traces(figure, "scatter", "soft")
    np.testing.assert_allclose(curve.x, [2, 4])
    np.testing.assert_allclose(curve.y, [0.67, 0.69], rtol=1e-6)
    band = traces(figure, "scatter", "")[0]
    assert band.y[0] == pytest.approx(0.67 + np.std([0.62, 0.72], ddof=1), rel=1e-5)
    assert list(figure.layout.xaxis.tickvals) == [2, 4]  # sizes that were measured, and no others
    assert not traces(figure, "scatter", "base")
    assert not traces(figure, "scatter", "mtl"), "the multi-task model is a line of reference, no method"
    assert any(note.text.startswith("multi-task") for note in figure.layout.annotations)
