"""The row of a model trained on all tasks: read where a card has it, absent where it has not."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fwviz.lenses.accuracy import accuracy
from fwviz.lenses.comparison import comparison
from fwviz.lenses.results import results
from fwviz.pools.card import load_card
from fwviz.runs.assemble import assemble, describe
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import execute
from fwviz.types import FwvizError

ROW = {"validation": 0.7, "test": 0.6}


def give(row: Any) -> Any:
    """Write the row of the first task, "colour"."""

    def change(card: dict[str, Any]) -> None:
        card["tasks"][0]["accuracy"]["mtl"] = row

    return change


def recipe_of(card: Any, *tasks: str) -> Recipe:
    values = {"pool": str(card.root), "checkpoints": ["colour"], "method": "weight_average", "tasks": list(tasks)}
    return Recipe.from_dict(values, card)


def test_it_is_absent_where_the_card_lacks_it(pool_copy: Any) -> None:
    card = load_card(pool_copy.root)
    assert set(card.task("colour").accuracy) == {"base", "individual"}
    trace = execute(recipe_of(card, "colour"))
    assert set(trace.reference) == {"base", "individual"}
    assert "mtl" not in set(results(trace)["series"])
    assert comparison([trace])["mtl"].isna().all()


def test_it_goes_from_the_card_to_traces_and_lenses(pool_copy: Any) -> None:
    pool_copy.edit(give(ROW))
    card = load_card(pool_copy.root)
    assert card.task("colour").accuracy["mtl"] == ROW
    trace = execute(recipe_of(card, "colour", "shape"))
    assert trace.reference["mtl"] == {"validation": {"colour": 0.7}, "test": {"colour": 0.6}}
    shown = results(trace)
    assert shown[shown.series == "mtl"].set_index("task").accuracy.to_dict() == {"colour": 0.6}
    marks = accuracy(trace)
    assert marks[marks.series == "mtl"].accuracy.tolist() == [0.7]  # the split of the quick scores
    compared = comparison([trace]).set_index("task")["mtl"]
    assert compared["colour"] == 0.6
    assert math.isnan(compared["shape"])
    # Where none of the chosen tasks has it there is no row.
    assert "mtl" not in describe(assemble(recipe_of(card, "shape"))).reference


@pytest.mark.parametrize(
    ("row", "message"),
    [({"test": 0.6}, "accuracy.mtl.validation is missing"), (0.6, "mtl is 0.6"), ({**ROW, "test": 6}, "test is 6")],
)
def test_a_wrong_row_is_named(pool_copy: Any, row: Any, message: str) -> None:
    pool_copy.edit(give(row))
    with pytest.raises(FwvizError, match=message):
        load_card(pool_copy.root)
