"""The difference of two messages as plain data: what a part of a live page is sent after its first message.

Messages keep their shape while data arrive: a curve grows, cells of a map are filled, a sentence gets other numbers.
Arrays travel as base64 text, so a difference of text is a difference of numbers. assets/web/page.js applies what is
made here.

A difference is one of

* a number, a text, true, false or null: the new value;
* an object: what differs by key or index, and of a list under "+" also [start, items]: ``items`` replace what follows,
  or [start, [], places]: what stands at these places follows once more, or [start, [], [], differences]: items follow,
  each with what turns the one before into it;
* a list: [] if the value is gone; [value] if it is new as a whole; [skip, drop, text, …] of a text, which is read from
  its beginning: ``skip`` characters stay, ``drop`` are left out, and ``text`` stands there; [shape, text] of an array
  whose rows grow, like a map over time: the new columns.
"""

from __future__ import annotations

import base64
import json
import re
from difflib import SequenceMatcher
from itertools import accumulate, chain, pairwise
from typing import Any

Difference = Any

NEAR = 5  # runs of changes closer than this are sent as one
RUNS = 64  # more of them, and the whole text is cheaper
MOST_WORDS = 200  # of a text that is compared word by word
ENDED = "+"
_AFTER_SPACE = re.compile("(?<= )")


def changes(old: Any, new: Any) -> Difference:
    """What turns ``old`` into ``new``, both plain JSON data; {} if they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        return _grown(old, new) or _keys(old, new)
    if isinstance(old, list) and isinstance(new, list):
        found = _items(old, new)
        # Ends of an axis come together: plotly writes those of a zoom into the list that it was given.
        ends = len(new) == 2 and all(isinstance(item, int | float) for item in new)
        return [new] if found and ends else _shorter(found, new)
    if isinstance(old, str) and isinstance(new, str):
        return {} if old == new else _shorter(_text(old, new), new)
    if type(old) is type(new) and old == new:
        return {}
    return [new] if isinstance(new, dict | list) else new


def apply(old: Any, difference: Difference) -> Any:
    """The new value; ``old`` stays as it is. The page does the same in JavaScript."""
    if isinstance(difference, dict):
        return _changed(old, difference) if difference else old
    if not isinstance(difference, list):
        return difference
    if len(difference) == 1:
        return difference[0]
    if len(difference) == 2:
        return {**old, "shape": difference[0], "bdata": _widened(old, *difference)}
    at, parts = 0, []
    for i in range(0, len(difference), 3):
        skip, drop, text = difference[i : i + 3]
        parts += [old[at : at + skip], text]
        at += skip + drop
    return "".join([*parts, old[at:]])


def _changed(old: Any, difference: dict[str, Any]) -> Any:
    if isinstance(old, list):
        items = list(old)
        for key, inner in difference.items():
            if key != ENDED:
                items[int(key)] = apply(items[int(key)], inner)
        start, more, again, grown = [*difference.get(ENDED, (len(items), [])), [], []][:4]
        made = items[:start] + more + [old[i] for i in again]
        for inner in grown:
            made.append(apply(made[-1], inner))
        return made
    changed = dict(old)
    for key, inner in difference.items():
        if inner == []:
            del changed[key]
        else:
            changed[key] = apply(changed.get(key), inner)
    return changed


def _keys(old: dict[str, Any], new: dict[str, Any]) -> Difference:
    found: dict[str, Any] = {key: [] for key in old if key not in new}
    for key, value in new.items():
        if key not in old:
            found[key] = [value] if isinstance(value, dict | list) else value
        elif (inner := changes(old[key], value)) != {}:
            found[key] = inner
    return found


def _items(old: list[Any], new: list[Any]) -> Difference:
    found: dict[str, Any] = {}
    for i, (before, value) in enumerate(zip(old, new, strict=False)):
        if (inner := changes(before, value)) != {}:
            found[str(i)] = inner
    if len(old) != len(new):
        common = min(len(old), len(new))
        found[ENDED] = _ended(old, new, common)
    return found


def _ended(old: list[Any], new: list[Any], common: int) -> list[Any]:
    """The items from ``common`` on: as they are; names that stood in the list before; or much like the one before."""
    more = new[common:]
    ways: list[Difference] = [[common, more]]
    places = {item: i for i, item in reversed(list(enumerate(old))) if isinstance(item, str)}
    if more and all(isinstance(item, str) and item in places for item in more):
        ways.append([common, [], [places[item] for item in more]])
    if more and common and all(isinstance(item, str | dict) and type(item) is type(new[0]) for item in new):
        ways.append([common, [], [], [changes(*pair) for pair in pairwise(new[common - 1 :])]])
    return min(ways, key=_size)


def _shorter(difference: Difference, new: Any) -> Difference:
    """A list of numbers that all changed, or another text, is shorter as a whole."""
    whole = [new] if isinstance(new, list) else new
    return difference if _size(difference) < _size(whole) else whole


def _size(value: Any) -> int:
    """About how many bytes a value takes as JSON: exact but for texts that need escapes."""
    if isinstance(value, dict):
        return sum(len(key) + 4 + _size(item) for key, item in value.items()) + 1
    if isinstance(value, list):
        return sum(_size(item) + 1 for item in value) + 1
    return len(value) + 2 if isinstance(value, str) else len(json.dumps(value))


# --- texts ------------------------------------------------------------------------------------------


def _text(old: str, new: str) -> Difference:
    """Pieces [skip, drop, text, …]: of texts of one length, of sentences, or the one between."""
    if not old.isascii() and max(old) > "\uffff":
        return new  # browsers count such a character twice
    ways = [_between(old, new, 0)]
    if len(old) == len(new):
        ways.append(_runs(old, new))
    before, after = (_AFTER_SPACE.split(text) for text in (old, new))
    if min(len(before), len(after)) > 1 and max(len(before), len(after)) <= MOST_WORDS:
        ways.append(_words(before, after))
    return min((_pieces(way) for way in ways if len(way) <= RUNS), key=_size)


Piece = tuple[int, int, str]  # where in the old text, how many of its characters are replaced, by what


def _between(old: str, new: str, at: int) -> list[Piece]:
    """What differs between a common beginning and a common end; ``at`` is where ``old`` begins in the whole text."""
    start = _common(old, new)
    tail = _common(old[start:][::-1], new[start:][::-1])
    return [(at + start, len(old) - start - tail, new[start : len(new) - tail])]


def _runs(old: str, new: str) -> list[Piece]:
    found: list[Piece] = []
    at = _common(old, new)
    while at < len(new) and len(found) <= RUNS:
        end, same = at + 1, 0
        while end < len(new) and same < NEAR:
            same = same + 1 if old[end] == new[end] else 0
            end += 1
        found.append((at, end - same - at, new[at : end - same]))
        at = end + _common(old[end:], new[end:])
    return found


def _words(old: list[str], new: list[str]) -> list[Piece]:
    """What differs between the words that both sentences have; word by word if they have as many."""
    places = [*accumulate(map(len, old), initial=0)]
    blocks = [(i, i + 1, i, i + 1) for i in range(len(old))]
    if len(old) != len(new):
        blocks = [block[1:] for block in SequenceMatcher(None, old, new, autojunk=False).get_opcodes()]
    found: list[Piece] = []
    for start, end, first, last in blocks:
        if old[start:end] != new[first:last]:
            found += _between("".join(old[start:end]), "".join(new[first:last]), places[start])
    return found


def _pieces(found: list[Piece]) -> Difference:
    ends = [0, *(start + count for start, count, _ in found)]
    return list(chain.from_iterable((s - end, count, text) for (s, count, text), end in zip(found, ends, strict=False)))


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


# --- arrays whose rows grow -------------------------------------------------------------------------


def _grown(old: dict[str, Any], new: dict[str, Any]) -> Difference:
    """The new columns of a plotly array in base64 whose other columns are as they were; None for anything else."""
    if old.keys() != new.keys() or not {"dtype", "bdata", "shape"} <= old.keys() or old["dtype"] != new["dtype"]:
        return None
    (rows, before), (same, now) = (_shape(array["shape"]) for array in (old, new))
    if rows != same or not 0 < before < now:
        return None
    bytes_before, bytes_now = base64.b64decode(old["bdata"]), base64.b64decode(new["bdata"])
    wide, wider = len(bytes_before) // rows, len(bytes_now) // rows
    more = []
    for i in range(rows):
        row = bytes_now[i * wider : (i + 1) * wider]
        if row[:wide] != bytes_before[i * wide : (i + 1) * wide]:
            return None
        more.append(row[wide:])
    return [new["shape"], base64.b64encode(b"".join(more)).decode()]


def _widened(old: dict[str, Any], shape: str, text: str) -> str:
    rows, _ = _shape(shape)
    narrow, more = base64.b64decode(old["bdata"]), base64.b64decode(text)
    a, b = len(narrow) // rows, len(more) // rows
    made = b"".join(narrow[i * a : (i + 1) * a] + more[i * b : (i + 1) * b] for i in range(rows))
    return base64.b64encode(made).decode()


def _shape(text: str) -> tuple[int, int]:
    """Rows and columns of "22, 7"; (0, 0) for any other shape."""
    sizes = [int(part) for part in text.split(",") if part.strip()]
    return (sizes[0], sizes[1]) if len(sizes) == 2 else (0, 0)
