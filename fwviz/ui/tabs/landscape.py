"""Tab "Landscape": the loss between models, the triangle of three checkpoints, the way from one to another."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from fwviz.types import FwvizError
from fwviz.ui.controls import Control, choice, number, switch
from fwviz.ui.measured import Measurements
from fwviz.ui.pictures import Call, Picture, Shown, Tab

_MEASURE = ("Measure", "Measure point by point, coarse first; Stop keeps what there is")


def _controls(shown: Shown) -> tuple[Control, ...]:
    cards = {c.id: c.title for c in shown.card.checkpoints} if shown.card else {}
    names = [(name, cards.get(name, name)) for name in shown.trace.checkpoints]
    tasks = {t.id: t.title for t in shown.card.tasks} if shown.card else {}
    own = [name for name, _ in names if name in shown.trace.tasks] + [name for name, _ in names]
    wanted = list(dict.fromkeys(own))[:3]
    merge = "the backbone of the merge" if shown.trace.has_parts else "the merge shown"
    models = [
        choice(name, label, names, wanted[i] if i < len(wanted) else None, help)
        for i, (name, label, help) in enumerate(
            (
                ("first", "Models: A", "The corners of the plane and of the triangle."),
                ("second", "B", ""),
                ("third", "C", ""),
            )
        )
    ]
    return (
        *models,
        choice(
            "plane",
            "Plane through",
            [("base", "base, A, B"), ("three", "A, B, C"), ("random", "random directions")],
            help="A plane through real models, or one along two filter-normalised random directions from the base.",
        ),
        choice("value", "Colour", [("loss", "loss"), ("accuracy", "accuracy")]),
        choice(
            "task",
            "of",
            [("", "all tasks together"), *((task, tasks.get(task, task)) for task in shown.trace.tasks)],
        ),
        choice(
            "filter",
            "Task vectors",
            [("0", "as they are"), ("0.1", "without the coarse part")],
            help="A high-pass filter at radial frequency 0.1 on every matrix of the task vectors of the plane.",
        ),
        switch("relief", "3-D relief", False, "Raise the map into the third dimension."),
        choice("start", "Way from", [("base", "base"), *names]),
        choice(
            "end",
            "to",
            [("merge", merge), *names],
        ),
        number("resolution", "Points a side", 21, 5, 41, 2, "More points take longer: the time grows with the square."),
    )


def _measured(shown: Shown) -> dict[str, Any]:
    task = shown.text("task")
    return {"task": task} if task else {}


def _plane(shown: Shown) -> dict[str, Any]:
    first, second, third = (shown.text(name) for name in ("first", "second", "third"))
    models = {"base": f"base,{first},{second}", "three": f"{first},{second},{third}", "random": "random"}
    return {"models": models[shown.text("plane")]}


def _landscape(shown: Shown) -> Call:
    cutoff = float(shown.text("filter"))
    filtered = {"high_pass": cutoff} if cutoff and shown.text("plane") != "random" else {}
    return Call(
        "landscape",
        "pool",
        _plane(shown) | _measured(shown) | filtered | {"resolution": int(shown.number("resolution"))},
    )


def _simplex(shown: Shown) -> Call:
    models = ",".join(shown.text(name) for name in ("first", "second", "third"))
    return Call("simplex", "pool", {"models": models} | _measured(shown) | {"steps": _steps(shown)})


def _steps(shown: Shown) -> int:
    """About as many points along a side of the triangle as half a side of the map has."""
    return max(4, 4 * round((shown.number("resolution") - 1) / 8))


def _interpolation(shown: Shown) -> Call:
    start, end = shown.text("start"), shown.text("end")
    return Call("interpolation", "frame" if end == "merge" else "pool", {"start": start, "end": end} | _measured(shown))


def _with_runs(grid: Call, points: Call, shown: Shown, measured: Measurements, ask: str) -> pd.DataFrame:
    """The points measured so far, and the runs on top of them."""
    table = measured.grown(grid, shown, ask)
    try:
        return pd.concat([table, measured.call(points, shown)], ignore_index=True) if not shown.live else table
    except FwvizError:
        return table  # runs of another pool have no place in this picture


def _distinct(*names: str) -> Any:
    def problem(shown: Shown) -> str:
        used = [shown.text(name) for name in names]
        return "" if len(set(used)) == len(used) else "Choose different models above: two of them are the same."

    return problem


def _plane_problem(shown: Shown) -> str:
    if shown.text("plane") == "random":
        return ""
    return str(_distinct("first", "second", *(("third",) if shown.text("plane") == "three" else ()))(shown))


def _relief_problem(shown: Shown) -> str:
    wanted = bool(shown.values["relief"])
    return (
        _plane_problem(shown) if wanted else "Switch on “3-D relief” above to raise the map into the third dimension."
    )


def _on_plane(shown: Shown, measured: Measurements) -> pd.DataFrame:
    return _with_runs(_landscape(shown), Call("landscape_points", "runs", _plane(shown)), shown, measured, _ASK)


def _until(shown: Shown) -> float:
    """Runs are drawn up to the iteration of the frame shown; at its end, whole."""
    frames = shown.trace.frames
    return math.inf if not frames or shown.index >= len(frames) - 1 else float(frames[shown.index].t)


def _look(shown: Shown) -> dict[str, Any]:
    return {"value": shown.text("value"), "until": _until(shown)}


_ASK = "Press Measure: the picture grows point by point, and Stop keeps what there is."
_PLANE_NEEDS = ("frame", "compared", "first", "second", "third", "plane", "value", "task", "filter", "resolution")

LANDSCAPE = Tab(
    id="landscape",
    title="Landscape",
    lead="Every model is a point. Here is the loss on <b>a flat cut through real models</b>, measured point by point, "
    "with the paths of the merges projected onto it. A cut of two dimensions through very many: the share "
    "of each point that the picture cannot show is written beside it.",
    controls=_controls,
    pictures=(
        Picture(
            "landscape_contour",
            _landscape,
            _PLANE_NEEDS,
            table=_on_plane,
            options=_look,
            long=True,
            auto=True,
            action=_MEASURE,
            unless=_plane_problem,
        ),
        Picture(
            "simplex_triangle",
            _simplex,
            ("frame", "compared", "first", "second", "third", "value", "task", "resolution"),
            table=lambda s, m: _with_runs(
                _simplex(s), Call("simplex_paths", "runs", {"models": _simplex(s).options["models"]}), s, m, _ASK
            ),
            options=_look,
            long=True,
            action=_MEASURE,
            unless=_distinct("first", "second", "third"),
        ),
        Picture(
            "landscape_surface",
            _landscape,
            (*_PLANE_NEEDS, "relief"),
            table=_on_plane,
            options=_look,
            long=True,
            unless=_relief_problem,
        ),
        Picture(
            "interpolation_curve",
            _interpolation,
            ("frame", "start", "end", "task"),
            long=True,
            action=_MEASURE,
            unless=_distinct("start", "end"),
        ),
    ),
)
