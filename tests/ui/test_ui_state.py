"""The parser of everything a browser sends: hostile input ends in one sentence, never in another exception."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fwviz.types import FwvizError
from fwviz.ui import state
from fwviz.ui.controls import choice, number, parse, switch, values_of

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40)
ANYTHING = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)
ASKED = ["gap_curve", "rec:a", 0, None, None, [], {}, []]
CONTROLS = (
    choice("colour", "Colour", [("red", "red"), ("blue", "blue")]),
    number("cutoff", "Cutoff", 0.5, 0, 1, 0.01),
    number("size", "Size", 5, 3, 21, 1),
    switch("on", "On", False),
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
    lambda value: state.parse_question(json.dumps([value, *ASKED[1:]], default=str), ("gap_curve",)),
    lambda value: state.parse_question(json.dumps([*ASKED[:3], value, *ASKED[4:]], default=str), ("gap_curve",)),
    lambda value: state.parse_question(json.dumps([*ASKED[:6], value, []], default=str), ("gap_curve",)),
    lambda value: state.parse_question(json.dumps([*ASKED[:7], value], default=str), ("gap_curve",)),
    state.parse_values,
    state.parse_edits,
    lambda value: state.parse_name(value, "layer"),
    state.parse_control_name,
    state.parse_scalar,
    *(lambda value, control=control: parse(control, value) for control in CONTROLS),
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(ANYTHING)
def test_every_parser_returns_or_says_one_sentence(value: object) -> None:
    for parser in PARSERS:
        try:
            parser(value)
        except FwvizError as error:
            text = str(error)
            assert text
            assert len(text) < 400
            assert "\n" not in text
            assert "Traceback" not in text


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
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


def test_a_control_takes_what_it_offers_and_nothing_else() -> None:
    colour, cutoff, size, on = CONTROLS
    assert [parse(colour, "blue"), parse(cutoff, "0.25"), parse(size, "7"), parse(on, "true")] == [
        "blue",
        0.25,
        7,
        True,
    ]
    for control, value in ((colour, "green"), (cutoff, 1.01), (cutoff, "nan"), (size, 22), (on, 1), (cutoff, True)):
        with pytest.raises(FwvizError):
            parse(control, value)
    # A link from elsewhere may name what is no longer there: that control then stands at its default.
    assert values_of(CONTROLS, {"colour": "green", "cutoff": 0.3}) == {
        "colour": "red",
        "cutoff": 0.3,
        "size": 5,
        "on": False,
    }


def test_edits_survive_the_way_through_a_link() -> None:
    edits = (("block.0", "colour", 0.25), ("", "shape", -1.5))
    opening = state.parse_opening(json.dumps({"query": {"edits": state.edits_link(edits)}}))
    assert opening.edits == edits
    assert state.parse_edits([["block.0", "a", 1], ["block.0", "a", 2]]) == (("block.0", "a", 2.0),)
    for bad in ([["block.0", "a", 11]], [["", "", 1]], [["a/b", "a", 1]], [["a", "b", math.nan]], [["", "a", 0]] * 201):
        with pytest.raises(FwvizError):
            state.parse_edits(bad)


def test_opening_reads_a_whole_link() -> None:
    query = {
        "pool": "vision",
        "method": "fw_soft",
        "t": "7",
        "tab": "merge",
        "pin": "mnist",
        "layer": "block.1",
        "compare": "rec:a,run:b",
        "spectrum.cutoff": "0.3",
        "nowhere.cutoff": "0.3",
        "job": "20261121-2330-fw_soft-ab12cd",
        "__theme": "dark",
    }
    opening = state.parse_opening(json.dumps({"query": query, "width": 1440, "runs": ["a", "a", "../b", 3, "c"]}))
    assert opening.recipe_query == {"pool": "vision", "method": "fw_soft"}
    assert opening.job == state.View("run", "20261121-2330-fw_soft-ab12cd")
    assert (opening.index, opening.tab, opening.narrow) == (7, "merge", False)
    assert opening.runs == ("a", "c")
    assert (opening.checkpoint, opening.layer) == ("mnist", "block.1")
    assert [str(view) for view in opening.compare] == ["rec:a", "run:b"]
    assert opening.values == {"spectrum": {"cutoff": "0.3"}}
    damaged = state.parse_opening(json.dumps({"query": {"pin": "../x", "edits": "a:b", "compare": "no"}}))
    assert (damaged.checkpoint, damaged.edits, damaged.compare) == (None, (), ())


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
    with pytest.raises(FwvizError, match="no recipe"):
        state.parse_recipe("pool: vision", ("vision",))


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
