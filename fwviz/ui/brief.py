"""A figure without what the page can work out itself: ranks, entries of another trace, digits that no pixel shows.

A chart says what that is in the ``meta`` of a trace (see :func:`fwviz.charts._style.names`):

* ``ranks``: the array that holds the ranks of x, 1 for the lowest, the first of equals before the second;
* ``signs``: array of texts → [a, b]: in each a word for the sign of its x, ``a`` below zero and ``b`` elsewhere;
* ``picks``: array → [trace, places]: the x of an earlier trace at these places, 0 where a place is None;
* ``words``: array of texts → [trace, places]: the same, written as :func:`fwviz.charts._style.number` does;
* ``halved``: arrays of which half precision, three digits, is enough.

assets/web/page.js fills them in again (fwviz.filled).
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

# Half precision has three digits between these sizes; what is ten thousand times smaller beside them has fewer.
SMALLEST, LARGEST = 0.01, 6e4
SIGN = "\ue000"  # stands in a text for the word that its sign chooses; no font has it


def brief(figure: dict[str, Any]) -> dict[str, Any]:
    """A figure as plain data, as it is sent. ``figure`` stays as it is."""
    return {**figure, "data": [_trace(trace) for trace in figure["data"]]}


def _trace(trace: dict[str, Any]) -> dict[str, Any]:
    meta = trace.get("meta", {})
    left_out = {meta.get("ranks"), *meta.get("picks", {}), *meta.get("words", {})}
    made = {key: value for key, value in trace.items() if key not in left_out}
    for name, words in meta.get("signs", {}).items():
        signs = (_numbers(trace["x"]) >= 0).tolist()
        made[name] = [text.replace(words[sign], SIGN, 1) for text, sign in zip(made[name], signs, strict=True)]
    for name in meta.get("halved", ()):
        made[name] = _halved(made[name])
    return made


def _halved(array: dict[str, Any]) -> dict[str, Any]:
    values = _numbers(array)
    size = np.abs(values[np.isfinite(values)])
    if not SMALLEST <= size.max(initial=0.0) <= LARGEST:
        return array
    return {**array, "dtype": "f2", "bdata": base64.b64encode(values.astype("<f2").tobytes()).decode()}


def _numbers(array: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(array["bdata"]), array["dtype"])
