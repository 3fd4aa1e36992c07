"""A figure without what the page can work out itself: ranks, entries of another trace, digits that no pixel shows.

A chart says what that is in the ``meta`` of a trace (see :func:`fwviz.charts._style.names`):

* ``ranks``: the array that holds the ranks of x, 1 for the lowest, the first of equals before the second;
* ``signs``: array of texts → [a, b]: in each a word for the sign of its x, ``a`` below zero and ``b`` elsewhere;
* ``picks``: array → [trace, places]: the x of an earlier trace at these places;
* ``like``: an earlier trace that has the same x;
* ``beside``: [bars, places]: numbers beside these bars, by :func:`fwviz.charts.lmo_bars.beside`;
* ``reach``: an x axis whose range lies around these bars and zero, by :func:`fwviz.charts.lmo_bars.ends`;
* ``cells``: marks on cells of an earlier map, which say at ``y`` and ``x`` which: what they stand for (``customdata``)
  and their ``text``, the z of the cell, are those of the map;
* ``told``: of marks, each row's hover text;
* ``tally``: of marks, the annotation that counts those in the first row of the map; the other rows' follow, the last;
* ``last``: the annotation at the last point, which says its y;
* ``halved``: arrays of which half precision, three digits, is enough. Those of one dimension are sent as one.

assets/web/page.js fills them in again (fwviz.filled).
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

# Half precision has three digits between these sizes; what is ten thousand times smaller beside them has fewer.
SMALLEST, LARGEST = 0.01, 6e4
SIGN = "\ue000"  # stands in a text for the word that its sign chooses; no font has it
BESIDE = ("x", "text", "textposition")
CELLS = ("text", "customdata")
LAST = ("x", "y", "text")


def brief(figure: dict[str, Any]) -> dict[str, Any]:
    """A figure as plain data, as it is sent. ``figure`` stays as it is."""
    halves: list[np.ndarray] = []
    data = [_trace(trace, halves) for trace in figure["data"]]
    made = {**figure, "data": data, "layout": _layout(figure["layout"], [trace.get("meta", {}) for trace in data])}
    return made | {"halves": _text(np.concatenate(halves))} if halves else made


def _trace(trace: dict[str, Any], halves: list[np.ndarray]) -> dict[str, Any]:
    meta = trace.get("meta", {})
    left_out = {
        meta.get("ranks"),
        *meta.get("picks", {}),
        *BESIDE * ("beside" in meta),
        *CELLS * ("cells" in meta),
        *["x"] * ("like" in meta),
        *["hovertext"] * ("told" in meta),
    }
    made = {key: value for key, value in trace.items() if key not in left_out}
    for name, words in meta.get("signs", {}).items():
        signs = (_numbers(trace["x"]) >= 0).tolist()
        made[name] = [text.replace(words[sign], SIGN, 1) for text, sign in zip(made[name], signs, strict=True)]
    for name in {*meta.get("halved", ())} - left_out:
        made[name] = _halved(made[name], halves)
    if "columns" in meta:
        columns = {key: "x" if _same(ids, trace["x"]) else ids for key, ids in meta["columns"].items()}
        made["meta"] = {**meta, "columns": columns}
    return made


def _layout(layout: dict[str, Any], metas: list[dict[str, Any]]) -> dict[str, Any]:
    """The layout without the ranges and the annotations that follow from the traces."""
    made = dict(layout)
    notes = [*layout.get("annotations", ())]
    for meta in metas:
        if "reach" in meta:
            made[meta["reach"]] = {key: value for key, value in made[meta["reach"]].items() if key != "range"}
        if "last" in meta:
            notes[meta["last"]] = _without(notes[meta["last"]], LAST)
        if "tally" in meta:
            notes[meta["tally"] :] = [_without(notes[meta["tally"]], ("text", "y"))]
    return made | ({"annotations": notes} if notes else {})


def _without(record: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in names}


def _halved(array: dict[str, Any], halves: list[np.ndarray]) -> dict[str, Any]:
    """The array at half precision; one without a shape as its place in ``halves``."""
    values = _numbers(array)
    size = np.abs(values[np.isfinite(values)])
    if not SMALLEST <= size.max(initial=0.0) <= LARGEST:
        return array
    if "shape" in array:
        return {**array, "dtype": "f2", "bdata": _text(values)}
    start = sum(map(len, halves))
    halves.append(values)
    return {"dtype": "f2", "part": [start, start + len(values)]}


def _text(values: np.ndarray) -> str:
    return base64.b64encode(values.astype("<f2").tobytes()).decode()


def _same(ids: list[Any], array: Any) -> bool:
    return isinstance(array, dict) and _numbers(array).tolist() == ids


def _numbers(array: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(array["bdata"]), array["dtype"])
