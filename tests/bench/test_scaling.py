"""The scaling bench on the tiny pool."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from fwviz.bench.scaling import first_choices, main, markdown, run, table
from fwviz.pools.card import load_card
from fwviz.runs.growing import Variant, growing_pool
from fwviz.runs.store import RunStore
from fwviz.types import FwvizError

VARIANTS = (
    Variant("average", "weight_average", ({},)),
    Variant("arithmetic", "task_arithmetic", ({"scale": 0.0}, {"scale": 0.5})),
    Variant("soft", "fw_soft", ({"max_steps": 1},)),
)


def test_the_pool_grows_from_the_tasks_own_checkpoints(tiny_pool_path: Path) -> None:
    card = load_card(tiny_pool_path)
    order = growing_pool(card, ("shape", "colour"), 0)
    assert order[:2] == ("shape", "colour")  # not shape_foreign
    assert sorted(order) == sorted(c.id for c in card.checkpoints)
    assert growing_pool(card, ("shape", "colour"), 0) == order
    assert len({growing_pool(card, ("shape", "colour"), seed) for seed in range(8)}) > 1


def test_cells_are_runs_validation_picks_and_a_second_call_runs_nothing(
    tiny_pool_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = RunStore(tmp_path)
    arguments = (str(tiny_pool_path), ("colour", "stripes"), (2, 5), (0,))
    results = run(*arguments, variants=VARIANTS, store=store)
    runs = store.ids()
    assert len(runs) == 2 * 4
    picked = results[results.variant == "arithmetic"]
    for run_id, rows in picked.groupby("run"):
        chosen = store.load(str(run_id))
        rivals = [
            t
            for t in map(store.load, runs)
            if t.recipe.method == "task_arithmetic" and t.checkpoints == chosen.checkpoints
        ]
        means = [sum(s.accuracy for s in t.final["validation"].values()) / 2 for t in rivals]
        assert rows.validation.iloc[0] == pytest.approx(max(means))
        for row in rows.itertuples():
            assert row.accuracy == chosen.final["test"][row.task].accuracy
    card = load_card(tiny_pool_path)
    individual = results[(results.variant == "individual") & (results["count"] == 2)]
    expected = [card.task(task).accuracy["individual"]["test"] for task in ("colour", "stripes")]
    assert individual.accuracy.tolist() == expected

    pd.testing.assert_frame_equal(run(*arguments, variants=VARIANTS, store=store), results)
    assert store.ids() == runs

    shown = table(results)
    assert list(shown.index) == ["base", "individual", "mtl", "average", "arithmetic", "soft"]
    assert list(shown.columns) == [2, 5]
    mean = 100 * results[(results.variant == "soft") & (results["count"] == 5)].accuracy.mean()
    assert shown.loc["soft", 5] == f"{mean:.1f}"
    assert markdown(shown).splitlines()[0] == "| variant | 2 | 5 |"

    choices = first_choices(str(tiny_pool_path), store, results).set_index("where")
    assert choices.loc["base", "of"] == 4
    assert choices.loc["base", "own"] <= choices.loc["base", "same_task"]
    assert any(where.startswith("soft") for where in choices.index)


def test_the_command_prints_a_table_and_writes_a_csv(
    tiny_pool_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--pool", str(tiny_pool_path), "--draw", "2", "--counts", "2,all", "--seeds", "0,1"]
    words += ["--variants", "weight average", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "all.csv")]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "| variant | 2 | 5 |" in out
    assert " ± " in out
    written = pd.read_csv(tmp_path / "all.csv")
    assert set(written.seed) == {0, 1}
    assert len(written) == 2 * 2 * 4 * 2  # seeds, counts, the method with three reference rows, tasks


@pytest.mark.parametrize(
    "words", [["--counts", "1"], ["--counts", "99"], ["--seeds", "x"], ["--variants", "none"], ["--draw", "77"]]
)
def test_wrong_numbers_are_one_sentence(tiny_pool_path: Path, tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(FwvizError):
        main(["--pool", str(tiny_pool_path), "--tasks", "colour", "shape", "--runs", str(tmp_path), *words])
