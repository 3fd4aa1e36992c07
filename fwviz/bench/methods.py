"""Every merge method with its default settings, and named variants, on one pool: accuracy, rank, time and memory.

Each cell is a run in a store of its own, found again by the fingerprints of its recipe and of the pool, so that a
bench that was interrupted goes on where it was. A method that fails has a row that says why.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from fwviz.bench.scaling import markdown
from fwviz.cards import PoolCard
from fwviz.pools.open import open_pool
from fwviz.registry import entries
from fwviz.runs.growing import Cells, mean
from fwviz.runs.recipe import Recipe
from fwviz.runs.store import RunStore, default_root
from fwviz.runs.trace import Trace
from fwviz.types import FwvizError

REFERENCES = {"base": "base", "individual": "individual", "mtl": "traditional MTL"}
# Not a method to choose: without coefficients of one's own it is the average.
LEFT_OUT = ("given_coefficients",)


@dataclass(frozen=True)
class Variant:
    """A row beside the defaults: what it is called, the method and the settings that differ."""

    label: str
    method: str
    settings: dict[str, Any] = field(default_factory=dict)


VARIANTS = (
    Variant("task arithmetic, scale searched", "task_arithmetic", {"scale_search": "calibration"}),
    Variant("TIES, scale searched", "ties", {"scale_search": "calibration"}),
    Variant("DARE, scale searched", "dare", {"scale_search": "calibration"}),
    Variant("DELLA, scale searched", "della", {"scale_search": "calibration"}),
    Variant("Breadcrumbs, scale searched", "breadcrumbs", {"scale_search": "calibration"}),
    Variant("PCB, scale searched", "pcb", {"scale_search": "calibration"}),
    Variant("TSV-M, scale searched", "tsv_m", {"scale_search": "calibration"}),
    Variant("TIES behind a high-pass, scale searched", "ties", {"scale_search": "calibration", "high_pass": 0.1}),
    Variant("FR-Merging, scale searched", "fr_merging", {"scale_search": "calibration"}),
    Variant("FR-Merging without filter, scale searched", "fr_merging", {"scale_search": "calibration", "cutoff": 0.0}),
    Variant("FR-Merging, official", "fr_merging", {"mode": "official", "scale": 0.7}),
    Variant("FW-soft, official", "fw_soft", {"inner": "official", "max_steps": 3}),
    Variant("FW-soft, hull_scale 2", "fw_soft", {"hull_scale": 2.0}),
    Variant("AdaMerging, task-wise", "adamerging", {"granularity": "model"}),
    Variant("AdaMerging++", "adamerging", {"plus_plus": True}),
    Variant("SuperMerge, no tanh", "supermerge", {"tanh": False}),
    Variant("SuperMerge, from 0.3", "supermerge", {"init": "task_arithmetic"}),
    Variant("Fisher, exact", "fisher", {"passes": 0}),
    Variant("EMR, router", "emr", {"router": "trained"}),
    Variant("FREE-Merging, oracle router", "free_merging", {"router": "oracle"}),
    Variant("FREE-Merging, random router", "free_merging", {"router": "random"}),
    Variant("FREE-Merging, 1 % experts", "free_merging", {"density": 0.01, "constant": 4.0}),
)


def variants(methods: Sequence[str] | None = None) -> tuple[Variant, ...]:
    """The defaults of all methods (or of some) under their titles, each followed by its named variants."""
    known = {name: entry for name, entry in entries("methods").items() if name not in LEFT_OUT}
    for name in methods or ():
        if name not in known:
            raise FwvizError(f"there is no method {name!r} to bench: choose from {', '.join(known)}.")
    return tuple(
        variant
        for name in methods or known
        for variant in (Variant(known[name].title, name), *(v for v in VARIANTS if v.method == name))
    )


def run(
    pool: str,
    tasks: Sequence[str],
    checkpoints: Sequence[str],
    rows: Sequence[Variant],
    *,
    seed: int = 0,
    store: RunStore | None = None,
    fresh: bool = False,
) -> pd.DataFrame:
    """One row per variant × task, plus the reference rows of the pool card.

    Columns: variant, method, settings, task, accuracy (test, in [0, 1]), normalised (÷ the task's own checkpoint's),
    seconds (of merging, without judging), peak_memory_bytes, stored_bytes, run, and problem: why there is no accuracy.
    """
    card = open_pool(pool).card
    cells = Cells(
        card,
        store or RunStore(default_root() / "methods", max_runs=100_000),
        fresh=fresh,
        say=lambda trace: print(_line(trace), flush=True),
    )
    own = {task: card.task(task).accuracy["individual"]["test"] for task in tasks}
    found = [
        {"variant": title, "task": task, "accuracy": card.task(task).accuracy[row]["test"]}
        for row, title in REFERENCES.items()
        if all(row in card.task(task).accuracy for task in tasks)
        for task in tasks
    ]
    for variant in rows:
        facts: dict[str, Any] = {"variant": variant.label, "method": variant.method, "settings": str(variant.settings)}
        accuracy = dict.fromkeys(tasks, math.nan)
        try:
            trace = _trace(cells, _recipe(card, pool, tasks, checkpoints, variant, seed))
        except FwvizError as error:
            facts["problem"] = str(error)
        else:
            accuracy = {task: score.accuracy for task, score in trace.final["test"].items()}
            facts |= {
                "seconds": trace.cost.seconds - trace.cost.evaluation_seconds,
                "peak_memory_bytes": trace.cost.peak_memory_bytes,
                "stored_bytes": trace.cost.stored_bytes,
                "run": trace.id,
            }
        found += [{**facts, "task": task, "accuracy": accuracy[task]} for task in tasks]
    columns = ["variant", "method", "settings", "task", "accuracy", "normalised", "seconds", "peak_memory_bytes"]
    results = pd.DataFrame(found, columns=[*columns, "stored_bytes", "run", "problem"])
    results["normalised"] = results["accuracy"] / results["task"].map(own)
    return results


def table(results: pd.DataFrame) -> pd.DataFrame:
    """One row per variant, best average first among the methods: accuracies in %, then what it took.

    The rank is the mean over tasks of the place among the methods, reference rows apart; of equals each has the mean
    of their places.
    """
    order = list(dict.fromkeys(results["variant"]))
    tasks = list(dict.fromkeys(results["task"]))
    wide = results.pivot(index="variant", columns="task", values="accuracy").loc[order, tasks]
    merged = wide.drop(index=[title for title in REFERENCES.values() if title in order]).dropna()
    rank = merged.rank(ascending=False).mean(axis=1)
    facts = results.drop_duplicates("variant").set_index("variant")
    score = results.groupby("variant")["normalised"].mean()
    shown = wide.mul(100).map(_number)
    shown.insert(0, "average", wide.mean(axis=1, skipna=False).mul(100).map(_number))
    shown.insert(1, "rank", rank.reindex(order).map(_number))
    shown.insert(2, "normalised", score.reindex(order).mul(100).map(_number))
    shown["seconds"] = facts["seconds"].map(_number)
    shown["peak MiB"] = facts["peak_memory_bytes"].div(1 << 20).map(lambda v: _number(v, 0))
    shown["stored MiB"] = facts["stored_bytes"].div(1 << 20).map(lambda v: _number(v, 2))
    first = [label for label in order if label in REFERENCES.values()]
    best = [*merged.mean(axis=1).sort_values(ascending=False, kind="stable").index]
    failed = [label for label in order if label not in first and label not in best]
    shown.index.name = "method"
    return shown.loc[[*first, *best, *failed]]


def problems(results: pd.DataFrame) -> dict[str, str]:
    """Variant → the sentence it failed with."""
    failed = results.dropna(subset=["problem"]).drop_duplicates("variant")
    return dict(zip(failed["variant"], failed["problem"], strict=True))


def main(argv: Sequence[str]) -> int:
    """``fwviz bench methods``."""
    parser = argparse.ArgumentParser(prog="fwviz bench methods", description=__doc__, allow_abbrev=False)
    parser.add_argument("--pool", default="vision", help="id or folder (vision)")
    parser.add_argument("--tasks", nargs="+", help="evaluation tasks (all of the pool)")
    parser.add_argument("--checkpoints", nargs="+", help="what is merged (all of the pool)")
    parser.add_argument("--methods", nargs="+", help="some methods, with their variants (all)")
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    parser.add_argument("--runs", type=Path, help="folder of the cells (methods/ in the run store)")
    parser.add_argument("--fresh", action="store_true", help="run every cell again, as after a change of a method")
    parser.add_argument("--csv", type=Path, default=Path("methods.csv"), help="all numbers (methods.csv)")
    options = parser.parse_args(argv)
    card = open_pool(options.pool).card
    tasks = options.tasks or [task.id for task in card.tasks]
    checkpoints = options.checkpoints or [checkpoint.id for checkpoint in card.checkpoints]
    for task in tasks:
        card.task(task)
    for checkpoint in checkpoints:
        card.checkpoint(checkpoint)
    results = run(
        options.pool,
        tasks,
        checkpoints,
        variants(options.methods),
        seed=options.seed,
        store=RunStore(options.runs or default_root() / "methods", max_runs=100_000),
        fresh=options.fresh,
    )
    results.to_csv(options.csv, index=False)
    print(f"Test accuracy in %, {len(tasks)} tasks, {len(checkpoints)} checkpoints\n")
    print(markdown(table(results)))
    for label, sentence in problems(results).items():
        print(f"\n{label}: {sentence}")
    print(f"\nall numbers: {options.csv}")
    return 0


def _recipe(
    card: PoolCard, pool: str, tasks: Sequence[str], checkpoints: Sequence[str], variant: Variant, seed: int
) -> Recipe:
    values = {"pool": pool, "checkpoints": list(checkpoints), "tasks": list(tasks), "method": variant.method}
    return Recipe.from_dict({**values, "settings": variant.settings, "seed": seed}, card)


def _trace(cells: Cells, recipe: Recipe) -> Trace:
    """The finished run of a recipe, run now if there is none."""
    known = cells.find(recipe)
    frames = cells.frames(recipe)
    while known is None:
        try:
            next(frames)
        except StopIteration as end:
            known = end.value
    return known


def _line(trace: Trace) -> str:
    what = f"{trace.recipe.method} {trace.recipe.changed_settings()}"
    return f"{what}: {100 * mean(trace, 'test'):.1f} in {trace.cost.seconds:.1f} s"


def _number(value: float, digits: int = 1) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"
