"""The bench of FW-Merging on sentences, on the tiny text pool."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from fwviz.bench import language
from fwviz.bench.language import FW, Row, main, run, sweep, table
from fwviz.pools.card import load_card
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import execute
from fwviz.types import FwvizError

ARITHMETIC = Row("task arithmetic", "task_arithmetic", {})
SHORT = Row(FW, "fw_hard", {"init": "task_arithmetic", "max_steps": 2})


def test_rows_are_what_a_run_gives_and_are_not_run_twice(tiny_text_pool_path: Path, tmp_path: Path) -> None:
    """With all calibration samples the bench's FW-hard is the run's; own checkpoints are what scores are shares of."""
    pool, csv = str(tiny_text_pool_path), tmp_path / "rows.csv"
    results = run(pool, (ARITHMETIC, SHORT), samples=(48,), csv=csv)
    card = load_card(tiny_text_pool_path)
    for label, method, settings in ((row.label, row.method, row.settings) for row in (ARITHMETIC, SHORT)):
        recipe = Recipe.from_dict({"pool": pool, "method": method, "settings": dict(settings)}, card)
        expected = execute(recipe).final["test"]
        found = results[results.variant == label].set_index("task")
        assert {task: score.accuracy for task, score in expected.items()} == found.accuracy.to_dict()
        for task, line in found.iterrows():
            own = card.task(str(task)).accuracy["individual"]["test"]
            assert line.normalised == pytest.approx(line.accuracy / own)
    assert set(results[results.variant == FW].steps) == {2}
    before = csv.read_bytes()
    again = run(pool, (ARITHMETIC, SHORT), samples=(48,), csv=csv)
    assert csv.read_bytes() == before
    pd.testing.assert_frame_equal(again, results, check_dtype=False)


def test_only_the_samples_asked_for_are_seen(tiny_text_pool_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    whole = language.CalibrationObjective

    def spy(backbone, data, heads, **options):  # type: ignore[no-untyped-def]
        seen.append({task: (len(samples), len(samples.source_keys)) for task, samples in data.items()})
        return whole(backbone, data, heads, **options)

    monkeypatch.setattr(language, "CalibrationObjective", spy)
    results = run(str(tiny_text_pool_path), (SHORT,), samples=(6, 12), seeds=(0, 1))
    assert seen == [{"food": (n, n), "mood": (n, n)} for n in (6, 6, 12, 12)]
    found = sweep(results)
    assert list(found.index) == [6, 12]
    for count in (6, 12):
        per_seed = results[results.samples == count].groupby("seed").normalised.mean().mul(100)
        row = found.loc[count].astype(float)
        assert row["normalised"] == pytest.approx(per_seed.mean(), abs=0.051)
        assert row["worst seed"] == pytest.approx(per_seed.min(), abs=0.051)
        assert row["best seed"] == pytest.approx(per_seed.max(), abs=0.051)


def test_the_table_has_the_papers_numbers_beside_ours() -> None:
    rows = [
        {"variant": "base", "task": task, "accuracy": 0.25, "normalised": 0.5} for task in ("a", "b")
    ] + [
        {"variant": FW, "task": task, "samples": count, "seed": 0, "accuracy": value, "normalised": 2 * value}
        | {"seconds": 3.0}
        for count, value in ((100, 0.5), (10, 0.1))
        for task in ("a", "b")
    ]  # fmt: skip
    shown = table(pd.DataFrame(rows))
    assert shown.loc["base", ["a", "average", "normalised", "paper", "CPU s"]].tolist() == [
        "25.0", "25.0", "50.0", "49.6", "",
    ]  # fmt: skip
    assert shown.loc[FW].tolist() == ["50.0", "50.0", "50.0", "100.0", "85.4", "3.0"]


def test_the_command_prints_both_tables(
    tiny_text_pool_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(language, "ROWS", (ARITHMETIC, SHORT))
    monkeypatch.setattr(language, "SWEEP", (6,))
    options = ["--pool", str(tiny_text_pool_path), "--samples", "12", "--csv", str(tmp_path / "rows.csv")]
    assert main([*options, "--sweep"]) == 0
    out = capsys.readouterr().out
    assert "| task arithmetic |" in out
    assert f"{FW}: normalised score by samples" in out
    with pytest.raises(FwvizError, match="there is no row 'nothing'"):
        main([*options, "--rows", "nothing"])
