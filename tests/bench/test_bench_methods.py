"""The bench of methods on the tiny pool."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fwviz.bench import methods
from fwviz.bench.methods import Variant, main, problems, run, table, variants
from fwviz.pools.card import load_card
from fwviz.registry import describe_settings, entries, parse_settings
from fwviz.runs.store import RunStore
from fwviz.types import FwvizError

ROWS = (
    Variant("average", "weight_average"),
    Variant("arithmetic", "task_arithmetic", {"scale": 0.3}),
    Variant("nothing", "task_arithmetic", {"scale": 0.0}),
    Variant("impossible", "task_arithmetic", {"scale": -1.0}),
)
TASKS = ("colour", "shape")


def test_rows_are_runs_and_a_second_call_runs_nothing(tiny_pool_path: Path, tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    arguments: Any = (str(tiny_pool_path), TASKS, ("colour", "shape", "stripes"), ROWS)
    results = run(*arguments, store=store)
    assert len(store.ids()) == 3
    card = load_card(tiny_pool_path)
    for row in results[results.variant == "arithmetic"].itertuples():
        trace = store.load(str(row.run))
        assert row.accuracy == trace.final["test"][row.task].accuracy
        own = card.task(str(row.task)).accuracy["individual"]["test"]
        assert row.normalised == pytest.approx(row.accuracy / own)
        assert row.seconds == pytest.approx(trace.cost.seconds - trace.cost.evaluation_seconds)
    base = results[results.variant == "base"].set_index("task").accuracy
    nothing = results[results.variant == "nothing"].set_index("task").accuracy
    assert nothing.to_dict() == pytest.approx(base.to_dict(), abs=1e-4)  # what is merged with scale 0 is the base
    assert problems(results).keys() == {"impossible"}
    assert "must lie between" in problems(results)["impossible"]
    pd.testing.assert_frame_equal(run(*arguments, store=store), results)
    assert len(store.ids()) == 3


def test_the_table_ranks_methods_and_keeps_references_apart() -> None:
    accuracy = {
        "base": (0.1, 0.2),
        "individual": (0.8, 0.5),
        "low": (0.2, 0.3),
        "high": (0.6, 0.3),
        "failed": (math.nan, math.nan),
    }
    rows = [
        {"variant": name, "task": task, "accuracy": value, "normalised": value / own, "seconds": 2.0}
        | {"peak_memory_bytes": 3 << 20, "stored_bytes": 1 << 19}
        for name, values in accuracy.items()
        for task, value, own in zip(("a", "b"), values, accuracy["individual"], strict=True)
    ]
    shown = table(pd.DataFrame(rows))
    assert list(shown.index) == ["base", "individual", "high", "low", "failed"]
    assert list(shown.columns)[:5] == ["average", "rank", "normalised", "a", "b"]
    assert shown.loc["high", "average"] == "45.0"
    # First and second on task a; equal on task b, where both have the place 1.5.
    assert shown["rank"].to_dict() == {"base": "", "individual": "", "high": "1.2", "low": "1.8", "failed": ""}
    assert shown.loc["high", "normalised"] == "67.5"
    assert shown.loc["individual", "normalised"] == "100.0"
    assert shown.loc["high", "peak MiB"] == "3"
    assert shown.loc["high", "stored MiB"] == "0.50"
    assert shown.loc["failed", "average"] == ""


def test_every_method_and_every_variant_has_a_row() -> None:
    found = variants()
    registered = entries("methods")
    assert {variant.method for variant in found} == set(registered) - set(methods.LEFT_OUT)
    assert len({variant.label for variant in found}) == len(found)
    assert [v.label for v in variants(["task_arithmetic"])] == ["Task arithmetic", "task arithmetic, scale searched"]
    for variant in found:
        settings = registered[variant.method].settings
        assert settings is not None
        parsed = parse_settings(settings, variant.settings)
        defaults = {spec.name: spec.default for spec in describe_settings(settings)}
        assert all(getattr(parsed, name) != defaults[name] for name in variant.settings), variant.label
    with pytest.raises(FwvizError, match="no method 'magic'"):
        variants(["magic"])


def test_the_command_prints_a_table_and_writes_a_csv(
    tiny_pool_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--pool", str(tiny_pool_path), "--tasks", *TASKS, "--methods", "weight_average", "--runs"]
    assert main([*words, str(tmp_path / "runs"), "--csv", str(tmp_path / "all.csv")]) == 0
    out = capsys.readouterr().out
    assert "| method | average | rank | normalised | colour | shape | seconds | peak MiB | stored MiB |" in out
    assert len(pd.read_csv(tmp_path / "all.csv")) == 3 * 2
    for wrong in (["--tasks", "nothing"], ["--checkpoints", "nothing"]):
        with pytest.raises(FwvizError):
            main(["--pool", str(tiny_pool_path), *wrong])
