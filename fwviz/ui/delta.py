"""The difference of two figures as plain data: what a live chart is sent after its first picture.

Figures keep their shape while data arrive: a curve grows, cells of a map are filled. Arrays travel as base64 text, so a
difference of text is a difference of numbers. assets/web/chart.js applies what is made here.
"""

from __future__ import annotations

from typing import Any

Operation = list[Any]

NEAR = 12  # runs of changes closer than this are sent as one
RUNS = 64  # more of them, and the whole text is cheaper


def changes(old: Any, new: Any) -> list[Operation]:
    """Operations that turn ``old`` into ``new``, both plain JSON data.

    Each is [path, "set", value], [path, "drop"], [path, "tail", start, text or items] (what follows ``start`` is
    replaced) or [path, "runs", [[start, text], …]] (written over a text of the same length). A path is a list of keys.
    """
    found: list[Operation] = []
    _compare(old, new, [], found)
    return found


def apply(old: Any, operations: list[Operation]) -> Any:
    """The new value; ``old`` stays as it is. The page does the same in JavaScript."""
    for path, what, *rest in operations:
        old = _changed(old, path, what, rest)
    return old


def _compare(old: Any, new: Any, path: list[Any], found: list[Operation]) -> None:
    if isinstance(old, dict) and isinstance(new, dict):
        found += [[[*path, key], "drop"] for key in old if key not in new]
        for key, value in new.items():
            if key in old:
                _compare(old[key], value, [*path, key], found)
            else:
                found.append([[*path, key], "set", value])
    elif isinstance(old, list) and isinstance(new, list):
        common = min(len(old), len(new))
        parts: list[Operation] = []
        for i in range(common):
            _compare(old[i], new[i], [*path, i], parts)
        if len(old) != len(new):
            parts.append([path, "tail", common, new[common:]])
        # A list of numbers that all changed is shorter as a whole.
        found += parts if sum(map(_size, parts)) < _size(new) + 16 else [[path, "set", new]]
    elif isinstance(old, str) and isinstance(new, str):
        if old != new:
            found.append([path, *_text(old, new)])
    elif type(old) is not type(new) or old != new:
        found.append([path, "set", new])


def _text(old: str, new: str) -> Operation:
    start = _common(old, new)
    if len(old) != len(new):
        return ["tail", start, new[start:]] if start > NEAR else ["set", new]
    runs: list[list[Any]] = []
    at = start
    while at < len(new):
        end = at + 1
        same = 0
        while end < len(new) and same < NEAR:
            same = same + 1 if old[end] == new[end] else 0
            end += 1
        runs.append([at, new[at : end - same]])
        at = end + _common(old[end:], new[end:]) if end < len(new) else end
        if len(runs) > RUNS:
            return ["set", new]
    return ["runs", runs] if sum(len(text) + 8 for _, text in runs) < len(new) else ["set", new]


def _common(old: str, new: str) -> int:
    """Length of the common beginning, by halving: comparing slices is fast, comparing characters is not."""
    low, high = 0, min(len(old), len(new))
    while low < high:
        middle = (low + high + 1) // 2
        if old[low:middle] == new[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _size(value: Any) -> int:
    """About how many bytes a value takes as JSON."""
    if isinstance(value, dict):
        return sum(len(key) + 3 + _size(item) for key, item in value.items()) + 2
    if isinstance(value, list):
        return sum(_size(item) + 1 for item in value) + 2
    return len(value) + 2 if isinstance(value, str) else 8


def _changed(old: Any, path: list[Any], what: str, rest: list[Any]) -> Any:
    if path:
        copy = dict(old) if isinstance(old, dict) else list(old)
        key = path[0]
        if len(path) == 1 and what == "drop":
            del copy[key]
        else:
            copy[key] = _changed(copy[key] if isinstance(copy, list) else copy.get(key), path[1:], what, rest)
        return copy
    if what == "set":
        return rest[0]
    if what == "tail":
        return old[: rest[0]] + rest[1]
    for start, text in rest[0]:
        old = old[:start] + text + old[start + len(text) :]
    return old
