"""The parser of everything a browser sends: hostile input ends in one sentence, never in another exception."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwviz.types import FwvizError
from fwviz.ui import state

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40)
ANYTHING = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)
PARSERS = (
    state.parse_event,
    lambda value: state.parse_recipe(value, ("vision",)),
    state.parse_view,
    lambda value: state.parse_index(value, 10),
    state.parse_flag,
    state.parse_tab,
    state.parse_runs,
    state.parse_compared,
    lambda value: state.parse_id(value, ("a", "b"), "task"),
    lambda value: state.parse_question(value, ("gap_curve",)),
    lambda value: state.parse_question(json.dumps([value, "rec:a", 0, None, []], default=str), ("gap_curve",)),
    lambda value: state.parse_question(json.dumps(["gap_curve", "rec:a", 0, value, []], default=str), ("gap_curve",)),
)


@given(ANYTHING)
def test_every_parser_returns_or_says_one_sentence(value: object) -> None:
    for parse in PARSERS:
        try:
            parse(value)
        except FwvizError as error:
            text = str(error)
            assert text
            assert len(text) < 400
            assert "\n" not in text
            assert "Traceback" not in text


@given(ANYTHING)
def test_a_page_always_opens(message: object) -> None:
    opening = state.parse_opening(message)
    assert opening.tab in state.TABS
    try:
        text = json.dumps(message)
    except ValueError:
        return
    opening = state.parse_opening(text)
    assert opening.tab in state.TABS
    assert len(opening.runs) <= state.MAX_RUNS
    assert all(isinstance(value, str) for value in opening.recipe_query.values())


@given(st.dictionaries(st.sampled_from(["job", "view", "t", "tab", "pool", "set.top_k"]), st.text(max_size=30)))
def test_any_query_opens(query: dict[str, str]) -> None:
    opening = state.parse_opening(json.dumps({"query": query, "width": 390}))
    assert opening.narrow
    assert opening.index is None or opening.index >= 0
    assert set(opening.recipe_query) <= {"pool", "set.top_k"}


def test_opening_reads_a_whole_link() -> None:
    query = {
        "pool": "vision",
        "method": "fw_soft",
        "t": "7",
        "tab": "merge",
        "job": "20261121-2330-fw_soft-ab12cd",
        "__theme": "dark",
    }
    opening = state.parse_opening(json.dumps({"query": query, "width": 1440, "runs": ["a", "a", "../b", 3, "c"]}))
    assert opening.recipe_query == {"pool": "vision", "method": "fw_soft"}
    assert opening.job == state.View("run", "20261121-2330-fw_soft-ab12cd")
    assert (opening.index, opening.tab, opening.narrow) == (7, "merge", False)
    assert opening.runs == ("a", "c")


def test_a_path_is_no_run() -> None:
    assert state.parse_opening(json.dumps({"query": {"job": "../../etc/passwd"}})).problem
    for bad in ("run:../x", "run:", "rec:a/b", "job:a", "run:" + "a" * 200, "run:a\n", 7):
        with pytest.raises(FwvizError):
            state.parse_view(bad)


@pytest.mark.parametrize(("value", "expected"), [(3, 3), (3.0, 3), ("4", 4), (-5, 0), (10**6, 9), ("-1", 0)])
def test_index_is_clipped_to_the_run(value: object, expected: int) -> None:
    assert state.parse_index(value, 10) == expected


@pytest.mark.parametrize("value", [math.nan, math.inf, 2.5, True, None, "3.5", "", "9" * 40, [], 10**30])
def test_index_refuses_what_is_no_step(value: object) -> None:
    with pytest.raises(FwvizError):
        state.parse_index(value, 10)


def test_a_recipe_names_a_pool_by_its_id() -> None:
    fields = {"checkpoints": ["a"], "tasks": ["b"], "method": "task_arithmetic"}
    good = state.parse_recipe(json.dumps({"pool": "vision", **fields}), ("vision",))
    assert good.checkpoints == ("a",)
    with pytest.raises(FwvizError, match="no such pool"):
        state.parse_recipe(json.dumps({"pool": "/etc", **fields}), ("vision",))


def test_compared_runs_are_bounded_and_single() -> None:
    assert state.parse_compared(["rec:a", "rec:a", "run:b"]) == (state.View("rec", "a"), state.View("run", "b"))
    with pytest.raises(FwvizError, match="at most 8"):
        state.parse_compared([f"run:r{i}" for i in range(9)])


def test_sessions_are_independent_and_bounded() -> None:
    sessions = state.Sessions(limit=3)
    first = sessions.get("one")
    first.index = 5
    assert sessions.get("two").index is None
    assert sessions.get("one") is first
    for name in ("three", "four"):
        sessions.get(name)
    assert sessions.get("two") is not first
    assert sessions.get("two").index is None
    assert len(sessions._known) == 3
