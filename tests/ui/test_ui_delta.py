"""Differences of figures: what is sent instead of a whole picture must make exactly that picture, and be short."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fwviz.ui.delta import apply, changes

LEAF = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text("abc é−𝄞", max_size=60)
PLAIN = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3)
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(PLAIN, PLAIN)
def test_a_difference_makes_the_new_from_the_old(old: Any, new: Any) -> None:
    before = json.dumps(old)
    operations = json.loads(json.dumps(changes(old, new)))
    made = apply(old, operations)
    assert json.dumps(made, sort_keys=True) == json.dumps(new, sort_keys=True)
    assert json.dumps(old) == before, "the old figure was touched"


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.text("ab", min_size=200, max_size=400), st.lists(st.tuples(st.integers(0, 199), st.sampled_from("xy"))))
def test_changes_inside_a_long_text(text: str, edits: list[tuple[int, str]]) -> None:
    new = text
    for at, character in edits:
        new = new[:at] + character + new[at + 1 :]
    assert apply(text, changes(text, new)) == new
    longer = new + "ab" * 20
    assert apply(text, changes(text, longer)) == longer


def packed(values: np.ndarray) -> dict[str, str]:
    return {"dtype": "f4", "bdata": base64.b64encode(values.astype("<f4").tobytes()).decode()}


def size(old: Any, new: Any) -> int:
    return len(json.dumps(changes(old, new)))


def test_a_curve_that_grows_costs_its_new_points() -> None:
    x = np.linspace(0, 1, 200)
    assert size(packed(x), packed(np.append(x, 1.1))) < 120


def test_cells_that_are_filled_cost_their_cells() -> None:
    grid = np.full((21, 21), np.nan)
    later = grid.copy()
    later[4, ::4] = np.arange(6)
    assert size({"z": packed(grid)}, {"z": packed(later)}) < 400
    assert size({"z": packed(grid)}, {"z": packed(grid)}) == 2


def test_when_everything_changes_the_whole_is_sent_once() -> None:
    r = np.random.default_rng(0)
    a, b = packed(r.normal(size=400)), packed(r.normal(size=400))
    assert size(a, b) < len(b["bdata"]) + 60
    assert size(list(range(100)), list(range(1, 101))) < 500


def test_another_number_in_a_sentence_costs_its_digits() -> None:
    before = "At iteration 3.8 the average accuracy is 92.1 % (base 79.2 %): Colour 94 %, Stripes 90 %."
    after = "At iteration 4 the average accuracy is 92.3 % (base 79.2 %): Colour 95 %, Stripes 90 %."
    assert size(before, after) < 40
    assert apply(before, changes(before, after)) == after


def test_words_that_come_and_go_cost_themselves() -> None:
    before = "2 iterations; chosen most often: Flags (2 times). Before iteration 2 the gradient wants Flags most."
    after = (
        "3 iterations; chosen most often: Flags (3 times). Before iteration 3 the gradient wants Coarse digits most."
    )
    assert size(before, after) < 60
    assert apply(before, changes(before, after)) == after


def test_what_follows_in_a_list_costs_what_is_new_of_it() -> None:
    notes = [{"text": f"{i}×", "showarrow": False, "xref": "paper", "yref": "y", "x": 1, "y": i} for i in range(9)]
    old, new = notes[:4], [*notes[:4], notes[7], notes[8]]
    assert size(old, new) < 90
    assert apply(old, changes(old, new)) == new
    told = [f"moved to mnist, uci_digits, street_digits<br>step size {x}" for x in (0.9, 0.5, 0.25)]
    assert size(told[:2], told) < 50
    assert apply(told[:2], changes(told[:2], told)) == told


def test_a_map_that_gets_a_column_costs_the_column() -> None:
    grid = np.random.default_rng(0).normal(size=(22, 30)).astype("<f4")
    old, new = ({**packed(np.ascontiguousarray(g)), "shape": f"22, {g.shape[1]}"} for g in (grid[:, :29], grid))
    assert size(old, new) < 160
    assert apply(old, changes(old, new)) == new
    other = {**new, "bdata": packed(np.flipud(grid).copy())["bdata"]}
    assert apply(old, changes(old, other)) == other
