"""A growing pool: who joins when, cells that are found again, curves that grow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fwviz.lenses.scaling import scaling
from fwviz.pools.open import Pool
from fwviz.runs.assemble import Assembly, assemble
from fwviz.runs.growing import Cells, Variant, growing_pool, relation
from fwviz.runs.recipe import Recipe
from fwviz.runs.store import RunStore
from fwviz.types import FwvizError

VARIANTS = (
    Variant("average", "weight_average", ({},)),
    Variant("hard", "fw_hard", ({"max_steps": 2},)),
)


@pytest.fixture(scope="module")
def two(tiny_pool_path: Path) -> Assembly:
    values = {"pool": str(tiny_pool_path), "checkpoints": ["shape"], "tasks": ["colour", "stripes"]}
    return assemble(Recipe.from_dict(values | {"method": "weight_average"}))


def test_relations_and_orders(tiny_pool: Pool) -> None:
    tags = {"colour": ("a",), "stripes": ("b",), "shape": ("a", "c"), "corner": ("d",)}
    card = replace(tiny_pool.card, tasks=tuple(replace(t, tags=tags[t.id]) for t in tiny_pool.card.tasks))
    tasks = ("colour", "stripes")
    known = {c.id: relation(card, c.id, tasks) for c in card.checkpoints}
    assert known == {
        "colour": "own",
        "stripes": "own",
        "shape": "relevant",
        "corner": "irrelevant",
        "shape_foreign": "noisy",
    }
    for seed in range(4):
        assert growing_pool(card, tasks, seed, "irrelevant")[2:] == ("corner", "shape", "shape_foreign")
        assert growing_pool(card, tasks, seed, "relevant")[2:] == ("shape", "corner", "shape_foreign")
        assert growing_pool(card, tasks, seed, "noisy")[2:] == ("shape_foreign", "shape", "corner")
    with pytest.raises(FwvizError, match="order"):
        growing_pool(card, tasks, 0, "sideways")


def test_curves_grow_and_cells_are_found_again(two: Assembly, tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    tables = list(scaling(two, order="noisy", counts="2,3,all", variants=VARIANTS, store=store))
    finished = [table for table in tables if not table.attrs["running"]]
    assert [table.attrs["done"] for table in finished] == [1, 2, 3, 4, 5, 6]
    assert {table.attrs["total"] for table in tables} == {6}
    ends = set(finished[3][finished[3]["variant"] == "hard"]["count"])
    assert ends == {2, 5}  # the ends of the curve first
    last = finished[-1]
    ids = store.ids()
    assert len(ids) == 6
    for row in last[last["variant"] == "hard"].itertuples():
        trace = store.load(row.run)
        assert trace.recipe.method == "fw_hard"
        assert len(trace.checkpoints) == row.count
        assert row.accuracy == trace.final["test"][row.task].accuracy
    assert set(last[last["count"] == 3]["joined"]) == {"noisy"}
    card = two.pool.card
    individual = last[(last["variant"] == "individual") & (last["count"] == 5)].set_index("task")["accuracy"]
    assert individual["stripes"] == card.task("stripes").accuracy["individual"]["test"]

    again = list(scaling(two, order="noisy", counts="2,3,all", variants=VARIANTS, store=store))[-1]
    assert store.ids() == ids
    measured = again["run"].notna()
    assert again[measured]["reused"].all()
    assert not last[measured]["reused"].any()
    assert again.drop(columns="reused").equals(last.drop(columns="reused"))


def test_a_cell_of_other_settings_or_another_pool_is_not_the_same(two: Assembly, tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    list(scaling(two, counts="2", variants=VARIANTS[1:], store=store))
    more = (Variant("hard", "fw_hard", ({"max_steps": 3},)),)
    table = list(scaling(two, counts="2", variants=more, store=store))[-1]
    assert not table["reused"].dropna().any()
    card = two.pool.card
    recipe = store.load(store.ids()[0]).recipe
    assert Cells(card, store).find(recipe) is not None
    other = replace(card, base={**card.base, "sha256": "0" * 64})
    assert Cells(other, store).find(recipe) is None
    assert Cells(card, store, fresh=True).find(recipe) is None


def test_closing_stops_the_run_under_way(two: Assembly, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fwviz.lenses._field.EVERY", 0.0)
    store = RunStore(tmp_path)
    tables = scaling(two, counts="2", variants=VARIANTS[1:], store=store)
    first = next(tables)
    assert first.attrs["running"] == "hard, 2 checkpoints"
    tables.close()
    assert [summary.status for summary in store.list()] == ["stopped"]
    done = list(scaling(two, counts="2", variants=VARIANTS[1:], store=store))[-1]  # a stopped run is no cell
    assert not done["reused"].dropna().any()


def test_methods_by_name_and_wrong_questions(two: Assembly) -> None:
    table = list(scaling(two, counts="2", methods="weight_average"))[-1]
    assert set(table["method"]) == {"", "weight_average"}
    for options, words in (
        ({"counts": "1"}, "counts holds '1'"),
        ({"counts": "x"}, "counts holds 'x'"),
        ({"methods": "nobody"}, "no method 'nobody'"),
        ({"seeds": 0}, "seeds"),
        ({"order": "sideways"}, "order"),
    ):
        with pytest.raises(FwvizError, match=words):
            next(scaling(two, **options))  # type: ignore[arg-type]
