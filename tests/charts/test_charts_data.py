"""What the charts draw, number by number: would they notice a flipped sign, a swapped axis, a wrong order?"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from fwviz.charts import _style as style
from fwviz.charts.accuracy_bars import accuracy_bars
from fwviz.charts.accuracy_live import accuracy_live, thin
from fwviz.charts.coefficients_bars import coefficients_bars
from fwviz.charts.comparison import comparison
from fwviz.charts.gap_curve import gap_curve
from fwviz.charts.lmo_bars import lmo_bars
from fwviz.charts.lmo_history import lmo_history
from fwviz.charts.lmo_layers import lmo_layers
from fwviz.charts.magnitudes import magnitudes
from fwviz.charts.promise_reality import promise_reality, trusted
from fwviz.charts.sign_conflict import sign_conflict
from fwviz.charts.similarity import similarity

LIGHT = style.palette("light")


def traces(figure: go.Figure, kind: str, name: str | None = None) -> list[Any]:
    return [trace for trace in figure.data if trace.type == kind and (name is None or trace.name == name)]


def told(trace: Any, i: int) -> str:
    """What the pointer tells at one point: the template with what stands in it, numbers as they are."""
    said: str = trace.hovertemplate
    for name in ("hovertext", "text", "x", "y"):
        said = re.sub(rf"%{{{name}(:[^}}]*)?}}", lambda _, name=name: str(trace[name][i]), said)
    return said


# --- relevance ------------------------------------------------------------------------------------


def scores(tasks: int = 2, checkpoints: int = 3) -> pd.DataFrame:
    """Task k wants checkpoint k most; checkpoint 2 hurts."""
    rows = [
        {
            "task": f"t{k}",
            "task_title": f"Task {k}",
            "checkpoint": f"c{i}",
            "score": -3.0 - k if i == k else 0.5 * i,
            "own": i == k,
            "chosen": i == k,
        }
        for k in range(tasks)
        for i in range(checkpoints)
    ]
    return pd.DataFrame(rows)


def test_lmo_bars_draw_each_score_in_its_task_and_row() -> None:
    figure = lmo_bars(scores())
    bars = traces(figure, "bar")
    styles = style.task_styles(["t0", "t1"], "light")
    for k, bar in enumerate(bars):
        expected = [-3.0 - k if i == k else 0.5 * i for i in range(3)]
        np.testing.assert_allclose(bar.x, expected)
        assert list(bar.y) == [0, 1, 2]
        assert list(bar.customdata) == ["c0", "c1", "c2"]
        assert bar.marker.color[k] == styles[f"t{k}"].colour
        assert bar.marker.color[2] == LIGHT.quiet
        axis = figure.layout[f"xaxis{k + 1}" if k else "xaxis"]
        assert axis.range[0] < expected[k] < 0 < axis.range[1]
        assert "promises a lower loss" in bar.hovertext[k]
        assert "rank 1 of 3" in told(bar, k)
        assert "promises a higher loss" in bar.hovertext[2]
        # The number beside a bar is the bar's, on the side of the zero line where it has room.
        numbers = traces(figure, "scatter", "numbers")[k]
        assert (list(numbers.text), list(numbers.y)) == ([f"−{3 + k}"], [k])
        assert (list(numbers.x), list(numbers.textposition)) == ([0.0], ["middle right"])
    marks = traces(figure, "scatter", "chosen vertex")
    assert [(m.x[0], m.y[0], m.customdata[0]) for m in marks] == [(-3.0, 0, "c0"), (-4.0, 1, "c1")]
    assert all(m.marker.symbol == "diamond" for m in marks)
    assert "2 of 2 tasks want their own checkpoint" in figure.layout.meta["summary"]


def test_lmo_bars_put_the_most_wanted_on_top() -> None:
    data = scores(tasks=1)
    data["score"] = [0.5, -2.0, -1.0]
    assert list(traces(lmo_bars(data), "bar")[0].y) == [0, 1, 2]
    bar = traces(lmo_bars(data, order="score"), "bar")[0]
    rows = dict(zip(bar.customdata, bar.y, strict=True))
    assert rows == {"c1": 0, "c2": 1, "c0": 2}


def test_lmo_bars_become_dots_when_there_are_many_tasks() -> None:
    figure = lmo_bars(scores(tasks=9, checkpoints=10))
    assert not traces(figure, "bar")
    dots = traces(figure, "scatter", "score")[0]
    assert len(dots.x) == 90
    cells = {
        (x, y): (s, c, r)
        for x, y, s, c, r in zip(dots.x, dots.y, dots.marker.symbol, dots.marker.color, dots.marker.size, strict=True)
    }
    assert cells[3, 3][:2] == ("circle", LIGHT.wanted)
    assert cells[3, 5][:2] == ("circle-open", LIGHT.unwanted)
    # Area follows the score within the task: 2.5 against −6 for task 3.
    assert (cells[3, 5][2] / cells[3, 3][2]) ** 2 == pytest.approx(2.5 / 6, rel=1e-3)


def test_lmo_bars_draw_the_cosine_on_request() -> None:
    data = scores(tasks=1).assign(cosine=[0.3, -0.2, 0.1])
    bar = traces(lmo_bars(data, value="cosine"), "bar")[0]
    np.testing.assert_allclose(bar.x, [0.3, -0.2, 0.1], rtol=1e-6)
    assert "nats" not in bar.hovertext[0]


def layered() -> pd.DataFrame:
    table = {"stem": [-1.0, 0.2, 0.4], "block.0": [0.1, -0.5, 0.3]}
    return pd.DataFrame(
        [
            {"group": g, "layer": g, "checkpoint": f"c{i}", "score": s, "chosen": s == min(row)}
            for g, row in table.items()
            for i, s in enumerate(row)
        ]
    )


def test_lmo_layers_put_depth_on_x_and_blue_on_negative() -> None:
    figure = lmo_layers(layered())
    heat = traces(figure, "heatmap")[0]
    np.testing.assert_allclose(heat.z, [[-1.0, 0.1], [0.2, -0.5], [0.4, 0.3]], rtol=1e-6)
    assert list(heat.x) == ["stem", "block.0"]
    assert list(heat.y) == ["c0", "c1", "c2"]
    assert heat.zmin == -heat.zmax == -1.0
    assert heat.colorscale[0][1] == LIGHT.diverging[0]
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]  # first checkpoint on top
    marks = traces(figure, "scatter")[0]
    assert list(zip(marks.x, marks.y, strict=True)) == [("stem", "c0"), ("block.0", "c1")]
    texts = [note.text for note in figure.layout.annotations]
    assert texts.count("1×") == 2


def test_lmo_layers_scale_each_layer_on_request() -> None:
    heat = traces(lmo_layers(layered(), scale="layer"), "heatmap")[0]
    np.testing.assert_allclose(np.abs(heat.z).max(axis=0), [1.0, 1.0])
    assert heat.z[1][1] == -1.0


def test_lmo_history_shows_one_scope_and_its_choices() -> None:
    data = pd.DataFrame(
        [
            {"t": t, "scope": s, "checkpoint": f"c{i}", "score": sign * (t + i), "chosen": i == t - 1, "share": 0.25}
            for t in (1, 2)
            for s, sign in (("joint", -1.0), ("flags", 1.0))
            for i in (0, 1)
        ]
    )
    figure = lmo_history(data)
    heat = traces(figure, "heatmap")[0]
    np.testing.assert_allclose(heat.z, [[-1.0, -2.0], [-2.0, -3.0]])
    assert list(heat.x) == [1, 2]
    marks = traces(figure, "scatter")[0]
    assert list(zip(marks.x, marks.y, strict=True)) == [(1, "c0"), (2, "c1")]
    assert "25 % of the groups" in marks.hovertext[0]
    assert told(marks, 1) == "Iteration 2 moves 25 % of the groups to <b>c1</b>:<br>-3.0 nats promised.<extra></extra>"
    assert figure.layout.meta["cursor"] == "x"
    np.testing.assert_allclose(traces(lmo_history(data, scope="flags"), "heatmap")[0].z, [[1.0, 2.0], [2.0, 3.0]])


# --- gap, promise ---------------------------------------------------------------------------------


def test_gap_curve_draws_gap_and_loss_on_their_own_axes() -> None:
    data = pd.DataFrame({"t": [0, 1, 2], "gap": [1.0, 0.5, math.nan], "loss": [2.0, 1.5, 1.25]})
    figure = gap_curve(data)
    gap, loss = traces(figure, "scatter", "gap")[0], traces(figure, "scatter", "loss")[0]
    np.testing.assert_allclose(gap.y, [1.0, 0.5])
    np.testing.assert_allclose(gap.x, [0, 1])
    np.testing.assert_allclose(loss.y, [2.0, 1.5, 1.25])
    assert gap.yaxis != loss.yaxis
    low, high = figure.layout.yaxis.range
    assert low <= 0 < 1.0 < high
    assert "gap from 1 to 0.5 nats" in figure.layout.meta["summary"]


def test_gap_curve_says_when_there_is_no_gap() -> None:
    data = pd.DataFrame({"t": [0], "gap": [math.nan], "loss": [2.0]})
    assert any("no gap" in note.text for note in gap_curve(data).layout.annotations)


def way(slope: float, curve: float, task: str = "joint") -> pd.DataFrame:
    gamma = np.linspace(0, 1, 11)
    return pd.DataFrame(
        {"task": task, "gamma": gamma, "promised": slope * gamma, "measured": slope * gamma + curve * gamma**2}
    )


def test_promise_reality_marks_the_best_point_and_shades_the_difference() -> None:
    tasks = [way(-1.0, 1.0), way(-2.0, 0.5, "flags"), way(0.0, 1.5, "letters")]
    figure = promise_reality(pd.concat(tasks).assign(vertex_title="Weather"))
    promised, measured, best = figure.data[:3]
    np.testing.assert_allclose(promised.y, -np.linspace(0, 1, 11), atol=1e-6)
    np.testing.assert_allclose(measured.y, [g * g - g for g in np.linspace(0, 1, 11)], atol=1e-6)
    assert measured.fill == "tonexty"
    assert best.x[0] == pytest.approx(0.5)
    assert best.y[0] == pytest.approx(-0.25)
    # The task's best point is the end of its way, in a panel and a colour of its own.
    small = figure.data[5]
    assert small.x[0] == pytest.approx(1.0)
    assert small.xaxis == "x2"
    assert small.marker.color == style.task_styles(["flags", "letters"], "light")["flags"].colour
    assert "best point is at 50 %" in figure.layout.meta["summary"]
    assert "Weather" in figure.layout.annotations[0].text
    alone = promise_reality(pd.concat(tasks[:1] + tasks[1:2]))
    assert len(alone.data) == 3  # the joint loss of one task is that task's


def test_trusted_is_where_the_promise_holds() -> None:
    # measured/promised = 1 − γ: within 25 % up to γ = 0.2 on this grid.
    assert trusted(way(-1.0, 1.0)) == pytest.approx(0.2)
    assert trusted(way(-1.0, 0.0)) == pytest.approx(1.0)
    assert trusted(way(-1.0, 10.0)) == 0.0


# --- accuracy -------------------------------------------------------------------------------------


def run_of(frames: int, tasks: int = 4, inner: int = 9, steps: float = 15.0) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for f in range(frames):
        x = f / (inner + 1)
        for k in range(tasks):
            value = min(0.95, 0.4 + 0.02 * x + 0.1 * k)
            rows.append(
                {
                    "series": "run",
                    "x": x,
                    "seconds": 2 * x,
                    "completed": f % (inner + 1) == 0,
                    "task": f"t{k}",
                    "accuracy": value,
                }
            )
    for series, value in (("base", 0.35), ("individual", 0.97)):
        rows += [{"series": series, "task": f"t{k}", "accuracy": value - 0.01 * k} for k in range(tasks)]
    return pd.DataFrame(rows).assign(steps=steps)


def test_accuracy_live_draws_tasks_and_their_average() -> None:
    data = run_of(31)
    figure = accuracy_live(data, max_points=100)
    line = next(t for t in figure.data if t.name == "t2")
    rows = data[(data["task"] == "t2") & (data["series"] == "run")]
    np.testing.assert_allclose(line.x, rows["x"], rtol=1e-6)
    np.testing.assert_allclose(line.y, rows["accuracy"], rtol=1e-6)
    mean = next(t for t in figure.data if t.name == "<b>average</b>")
    np.testing.assert_allclose(mean.y, data[data["series"] == "run"].groupby("x")["accuracy"].mean(), rtol=1e-6)
    iterates = next(t for t in figure.data if t.name == "iterate")
    np.testing.assert_allclose(iterates.x, [0, 1, 2, 3], atol=1e-6)
    np.testing.assert_allclose(
        next(t for t in accuracy_live(data, x="seconds", max_points=100).data if t.name == "t2").x,
        rows["seconds"],
        rtol=1e-6,
    )


def test_accuracy_live_shows_what_is_to_beat_per_task_and_on_average() -> None:
    figure = accuracy_live(run_of(11))
    base, own = (next(t for t in figure.data if t.name == name) for name in ("base", "individual"))
    np.testing.assert_allclose(base.y, [0.35, 0.34, 0.33, 0.32, 0.335], rtol=1e-6)
    np.testing.assert_allclose(own.y, [0.97, 0.96, 0.95, 0.94, 0.955], rtol=1e-6)
    assert "own checkpoints 95.5 %" in figure.layout.meta["summary"]


def test_accuracy_live_has_no_average_over_some_of_the_tasks() -> None:
    data = run_of(11)
    half = data[~((data["series"] == "run") & (data["task"] == "t1") & (data["x"] > 0.45))]
    mean = next(t for t in accuracy_live(half).data if t.name == "<b>average</b>")
    assert max(mean.x) == pytest.approx(0.4)


def test_accuracy_live_does_not_jump_while_it_grows() -> None:
    ranges = {
        (
            tuple(f.layout.xaxis.range),
            tuple(f.layout.yaxis.range),
            f.layout.height,
            f.layout.margin.r,
            f.layout.uirevision,
        )
        for f in (accuracy_live(run_of(n)) for n in (1, 8, 40, 151))
    }
    assert len(ranges) == 1


def test_accuracy_live_is_small_enough_to_stream() -> None:
    for narrow in (False, True):
        figure = accuracy_live(run_of(150).assign(task_title="Country flags"), narrow=narrow)
        assert len(figure.to_json(validate=False).encode()) <= 8192
        assert len(next(t for t in figure.data if t.name == "iterate").x) == 15  # thinning keeps every iterate


def test_labels_carry_the_present_value_and_do_not_overlap() -> None:
    figure = accuracy_live(run_of(151))
    labels = next(t for t in figure.data if t.mode == "text")
    assert sorted(labels.text) == sorted(["70% t0", "80% t1", "90% t2", "95% t3", "<b>84% average</b>"])
    order = np.sort(np.asarray(labels.y))
    pixels = np.diff(order) / (figure.layout.yaxis.range[1] - figure.layout.yaxis.range[0])
    assert (pixels * (figure.layout.height - 58) > 12).all()


def test_thin_keeps_iterates_ends_and_the_budget() -> None:
    done = np.zeros(1000, dtype=bool)
    done[::50] = True
    keep = thin(done, 44)
    assert keep[done].all()
    assert keep[[0, -1]].all()
    assert 25 <= keep.sum() <= 44
    assert thin(np.ones(1000, dtype=bool), 44).sum() <= 44
    assert thin(np.ones(1, dtype=bool), 44).all()


def test_accuracy_bars_lead_with_the_average() -> None:
    data = pd.DataFrame(
        [
            {"series": s, "task": f"t{k}", "accuracy": a - 0.2 * k}
            for s, a in (("merged", 0.8), ("base", 0.4), ("individual", 0.9))
            for k in (0, 1)
        ]
    )
    figure = accuracy_bars(data)
    bar = traces(figure, "bar")[0]
    np.testing.assert_allclose(bar.x, [0.7, 0.8, 0.6], rtol=1e-6)
    assert list(bar.customdata) == ["", "t0", "t1"]
    np.testing.assert_allclose(traces(figure, "scatter", "base")[0].x, [0.3, 0.4, 0.2], rtol=1e-6)
    np.testing.assert_allclose(traces(figure, "scatter", "own checkpoint")[0].x, [0.8, 0.9, 0.7], rtol=1e-6)
    assert "+40.0 points" in bar.hovertext[1]
    assert "−10.0 points" in bar.hovertext[1]


def test_accuracy_live_frames_low_values_and_counts_whole_iterations() -> None:
    data = run_of(81, steps=8.0)
    data["accuracy"] = data["accuracy"] * 0.3  # marks up to 29 %
    figure = accuracy_live(data)
    assert figure.layout.yaxis.range == (0.0, 0.4)
    assert figure.layout.xaxis.dtick == 1
    assert accuracy_live(run_of(1, steps=1.0)).layout.xaxis.dtick == 1


def test_whole_steps_of_iterations() -> None:
    assert [style.whole_step(reach, 12) for reach in (1, 8, 12, 15, 30, 100, 500)] == [1, 1, 1, 2, 5, 10, 50]


def test_comparison_puts_the_best_complete_run_first() -> None:
    rows = [
        {"run": r, "label": r, "task": t, "accuracy": a, "base": 0.2, "individual": 0.9, "seconds": 3.0}
        for r, values in (("low", (0.5, 0.6)), ("high", (0.7, 0.9)), ("partial", (0.99,)))
        for t, a in zip(("t0", "t1"), values, strict=False)
    ]
    figure = comparison(pd.DataFrame(rows))
    mean = traces(figure, "scatter", "average")[0]
    assert list(mean.customdata) == ["high", "low", "partial"]
    np.testing.assert_allclose(mean.x, [0.8, 0.55, 0.99], rtol=1e-6)
    assert list(figure.layout.yaxis.ticktext) == ["high", "low", "partial"]
    of_some = {n.y for n in figure.layout.annotations if "1 of 2 tasks" in n.text}
    assert of_some == {2}, "an average over fewer tasks says so, and no other"
    lines = sorted(shape.x0 for shape in figure.layout.shapes)
    assert lines == pytest.approx([0.2, 0.9])
    raised = [n.yshift for n in figure.layout.annotations if n.text.startswith("own checkpoints")]
    close = comparison(pd.DataFrame(rows).assign(base=0.85))
    assert raised < [n.yshift for n in close.layout.annotations if n.text.startswith("own checkpoints")]


def test_comparison_on_a_phone_cuts_nothing_off() -> None:
    tasks = ("digits", "letters", "clothes", "flags", "emoji")
    scores = {"whole": (0.5, 0.6, 0.7, 0.8, 0.9), "partial": (0.9, 0.9)}
    rows = [
        {"run": r, "label": r, "task": t, "accuracy": a, "seconds": 3.0}
        for r, values in scores.items()
        for t, a in zip(tasks, values, strict=False)
    ]
    phone, desk = (comparison(pd.DataFrame(rows), narrow=narrow) for narrow in (True, False))
    assert phone.layout.margin.r > 10 + style.text_width(["2 of 5 tasks"])
    for figure in (phone, desk):
        key = next(n.text for n in figure.layout.annotations if "●" in n.text)
        assert all(f"● {task}" in key for task in tasks), "each colour has its name"
    assert phone.layout.margin.b > desk.layout.margin.b, "a second line of names has room"


def test_comparison_says_what_is_kept_beside_the_model_and_what_one_trained_model_reaches() -> None:
    rows = pd.DataFrame(
        [
            {"run": r, "label": r, "task": t, "accuracy": a, "base": 0.2, "individual": 0.9, "mtl": m, "seconds": 3.0}
            | {"stored_bytes": kept}
            for r, a, kept in (("experts", 0.8, 4_130_000), ("plain", 0.6, 0))
            for t, m in (("t0", 0.7), ("t1", 0.8))
        ]
    )
    figure = comparison(rows)
    assert sorted(shape.x0 for shape in figure.layout.shapes) == pytest.approx([0.2, 0.75, 0.9])
    names = {n.text: n.yshift for n in figure.layout.annotations}
    assert names["multi-task 75 %"] != names["own checkpoints 90 %"], "names that touch stand one above the other"
    assert names["base 20 %"] == names["multi-task 75 %"]
    kept = [n.text for n in figure.layout.annotations if "4.1 MB" in n.text]
    assert len(kept) == 1, "what is nothing is not said"
    mean = traces(figure, "scatter", "average")[0]
    assert ["4.1 MB" in text for text in mean.hovertext] == [True, False]
    part = rows.assign(mtl=[0.7, math.nan, 0.7, math.nan])
    assert len(comparison(part).layout.shapes) == 2, "an average over some tasks is none"


def test_coefficients_are_weighted_by_parameters() -> None:
    rows = [
        {"group": g, "group_size": n, "checkpoint": c, "coefficient": v}
        for g, n, values in (("stem", 1, (1.0, 0.0)), ("head", 3, (0.0, -0.4)))
        for c, v in zip(("a", "b"), values, strict=True)
    ]
    figure = coefficients_bars(pd.DataFrame(rows))
    np.testing.assert_allclose(traces(figure, "bar")[0].x, [0.25, -0.3], rtol=1e-6)
    dots = traces(figure, "scatter", "layers")[0]
    assert len(dots.x) == 4
    assert figure.layout.xaxis.range[0] < -0.4
    assert "sum −0.05" in figure.layout.annotations[-1].text


def test_violins_are_as_wide_as_the_density_and_do_not_touch() -> None:
    rows = [
        {"group": g, "checkpoint": "all", "change": 10.0 ** (k - 4), "density": d, "median": 1e-3}
        | {"q05": 1e-4, "q25": 5e-4, "q75": 2e-3, "q95": 1e-2}
        for g, densities in (("stem", (0.1, 0.8, 0.2)), ("head", (0.4, 0.2, 0.0)))
        for k, d in enumerate(densities)
    ]
    rows += [
        {**rows[0], "group": g, "checkpoint": c, "change": m, "density": 0.3, "median": m}
        for g in ("stem", "head")
        for c, m in (("a", 2e-3), ("b", 4e-3))
    ]
    figure = magnitudes(pd.DataFrame(rows))
    (outline,) = traces(figure, "scatter", "all checkpoints")
    np.testing.assert_allclose(outline.x[:6], 0 + 0.44 * np.array([-0.1, -0.8, -0.2, 0.2, 0.8, 0.1]) / 0.8, atol=1e-6)
    np.testing.assert_allclose(outline.x[7:13], 1 + 0.44 * np.array([-0.4, -0.2, 0, 0, 0.2, 0.4]) / 0.8, atol=1e-6)
    np.testing.assert_allclose(outline.y[:6], [1e-4, 1e-3, 1e-2, 1e-2, 1e-3, 1e-4], rtol=1e-6)
    assert np.isnan([outline.x[6], outline.y[6]]).all(), "one violin ends before the next begins"
    assert outline.fill == "toself"
    (dots,) = traces(figure, "scatter", "one checkpoint")
    assert len(dots.y) == 4
    assert float(dots.x[0]) < 0 < float(dots.x[1])
    assert figure.layout.yaxis.type == "log"


def test_numbers_of_a_map_of_pairs_tell_neighbours_apart() -> None:
    def drawn(values: dict[str, float], chart: Any, column: str) -> list[str]:
        rows = [{"checkpoint": a, "other": b, column: v} for pair, v in values.items() for a, b in (pair, pair[::-1])]
        return [t for trace in chart(pd.DataFrame(rows)).data if trace.name == "numbers" for t in trace.text]

    near = drawn({"ab": 0.496, "ac": 0.454, "bc": 0.503}, sign_conflict, "conflict")
    assert set(near) == {"49.6", "45.4", "50.3"}
    assert set(drawn({"ab": 0.3, "ac": 0.7, "bc": 0.5}, sign_conflict, "conflict")) == {"30%", "70%", "50%"}
    assert set(drawn({"ab": -0.001, "ac": -0.17, "bc": 0.05}, similarity, "cosine")) == {"0.00", "−0.17", "0.05"}


def test_what_is_nearly_chance_is_nearly_white() -> None:
    """Cosines of a hundredth, half a per cent more conflicts than chance: neither helps nor undoes anything."""
    pairs = [{"checkpoint": a, "other": b, "cosine": -0.01, "conflict": 0.504} for a, b in ("ab", "ba")]
    for figure, middle in ((similarity(pd.DataFrame(pairs)), 0.0), (sign_conflict(pd.DataFrame(pairs)), 0.5)):
        heat = traces(figure, "heatmap")[0]
        assert heat.zmin + heat.zmax == pytest.approx(2 * middle)
        drawn = np.asarray(heat.z, dtype=float)
        assert np.nanmax(np.abs(drawn - middle)) <= 0.1 * (heat.zmax - middle) + 1e-6
    strong = traces(similarity(pd.DataFrame(pairs).assign(cosine=-0.6)), "heatmap")[0]
    assert (strong.zmin, strong.zmax) == pytest.approx((-0.6, 0.6))
