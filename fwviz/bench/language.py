"""FW-Merging on sentences: the shape of the paper's tables 1, 4 and 5, and of figure 1 of its supplement.

The pool's default checkpoints, judged on its default tasks by the normalised score: the mean over tasks of the merge's
test accuracy over that of the task's own checkpoint. FW-hard starts from task arithmetic and takes ten iterations on a
hundred labelled samples per task. Rows that the CSV file already has are not run again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from fwviz.bench.scaling import markdown
from fwviz.pools.open import open_pool
from fwviz.registry import entry, parse_settings
from fwviz.runs.assemble import Assembly, assemble, default_fingerprint
from fwviz.runs.recipe import Recipe
from fwviz.space.wide import plus
from fwviz.tasks.data import TaskData, load_split, stratified_subset
from fwviz.tasks.objectives import CalibrationObjective
from fwviz.types import FwvizError, Problem, Step

SAMPLES = 100
SWEEP = (10, 25, 50)
"""Samples per task beside ``SAMPLES`` for which FW-hard is run."""


@dataclass(frozen=True)
class Row:
    """One line of the table: what it is called, what is run, and what the paper reports of RoBERTa on GLUE, in %."""

    label: str
    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    paper: float | None = None


_FW = {"init": "task_arithmetic", "max_steps": 10}
# Ten iterations of the released code's steps for language, which take no line search.
_OFFICIAL = {**_FW, "step_rule": "official", "official_scale": 0.29}
FW = "FW-hard, layer-wise, official steps"
"""The row that is nearest to the paper's, and cheapest."""
ROWS = (
    Row("task arithmetic", "task_arithmetic", {}, 80.8),
    Row("task arithmetic, scale searched", "task_arithmetic", {"scale_search": "calibration"}),
    Row("task arithmetic with DARE", "dare", {}, 77.3),
    Row("TIES", "ties", {}, 64.3),
    Row("TIES, scale searched", "ties", {"scale_search": "calibration"}),
    Row("TIES with DARE", "dare", {"combine": "ties"}, 75.6),
    Row("AdaMerging", "adamerging", {}, 79.5),
    Row(FW, "fw_hard", {**_OFFICIAL, "granularity": "layer"}, 85.4),
    Row("FW-hard, model-wise, official steps", "fw_hard", {**_OFFICIAL, "granularity": "model"}, 78.2),
    Row("FW-hard, layer-wise, line search", "fw_hard", {**_FW, "granularity": "layer"}, 85.4),
    Row("FW-hard, model-wise, line search", "fw_hard", {**_FW, "granularity": "model"}, 78.2),
    Row("FW-hard, layer-wise, line search from the base", "fw_hard", {**_FW, "init": "base", "granularity": "layer"}),
)
REFERENCES = (Row("base", paper=49.6), Row("individual", paper=100.0))


def run(
    pool: str,
    rows: Sequence[Row] = ROWS,
    *,
    samples: Sequence[int] = (SAMPLES,),
    seeds: Sequence[int] = (0,),
    csv: Path | None = None,
) -> pd.DataFrame:
    """One line per row × samples × seed × task, those of the ``csv`` file first, and those of the pool card.

    Columns: pool (fingerprint of what is merged and judged), variant, samples per task, seed, task, accuracy (test, in
    [0, 1]), normalised, steps, seconds (of this process' cores, without judging).
    """
    card = open_pool(pool).card
    known = pd.read_csv(csv) if csv is not None and csv.is_file() else pd.DataFrame(columns=["pool", "variant"])
    fingerprint = default_fingerprint(card)
    found = [part for part in (known[known["pool"] == fingerprint],) if len(part)]
    have = {(r.variant, r.samples, r.seed) for part in found for r in part.itertuples()}
    for row in rows:
        for count in samples:
            for seed in seeds:
                if (row.label, count, seed) in have:
                    continue
                made = _run_row(_assembly(pool, seed), row, count)
                made.insert(0, "pool", fingerprint)
                found.append(made)
                print(f"{row.label}, {count} samples: {100 * made['normalised'].mean():.1f}", flush=True)
                if csv is not None:
                    pd.concat(found).to_csv(csv, index=False)
    references = []
    for row in REFERENCES:
        for task in card.default_tasks:
            accuracy = card.task(task).accuracy
            own = accuracy["individual"]["test"]
            value = accuracy[row.label]["test"]
            references.append({"variant": row.label, "task": task, "accuracy": value, "normalised": value / own})
    return pd.concat([pd.DataFrame(references), *found], ignore_index=True)


def table(results: pd.DataFrame, samples: int = SAMPLES) -> pd.DataFrame:
    """Variant → accuracies, their mean, the normalised score, the paper's, all in %, and seconds; means over seeds."""
    paper = {row.label: row.paper for row in (*REFERENCES, *ROWS)}
    shown = results[results["samples"].isna() | (results["samples"] == samples)]
    order = list(dict.fromkeys(shown["variant"]))
    wide = shown.pivot_table(index="variant", columns="task", values="accuracy", sort=False).loc[order]
    wide = wide[list(dict.fromkeys(shown["task"]))].mul(100)
    grouped = shown.groupby("variant", sort=False)
    cells = wide.map("{:.1f}".format)
    cells["average"] = wide.mean(axis=1).map("{:.1f}".format)
    cells["normalised"] = grouped["normalised"].mean().mul(100).map("{:.1f}".format)
    cells["paper"] = ["" if paper.get(label) is None else f"{paper[label]:.1f}" for label in order]
    cells["CPU s"] = grouped["seconds"].mean().map(lambda value: "" if pd.isna(value) else f"{value:.1f}")
    cells.index.name = "method"
    return cells


def sweep(results: pd.DataFrame, label: str = FW) -> pd.DataFrame:
    """Samples per task → normalised score of one row in %, over seeds."""
    chosen = results[results["variant"] == label]
    per_seed = chosen.groupby(["samples", "seed"])["normalised"].mean().mul(100).groupby("samples")
    found = pd.DataFrame({"normalised": per_seed.mean(), "worst seed": per_seed.min(), "best seed": per_seed.max()})
    found.index = found.index.astype(int)
    found.index.name = "samples per task"
    return found.map("{:.1f}".format)


def main(argv: Sequence[str]) -> int:
    """``fwviz bench language``."""
    parser = argparse.ArgumentParser(prog="fwviz bench language", description=__doc__, allow_abbrev=False)
    parser.add_argument("--pool", default="text", help="id or folder (text)")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help=f"some of: {'; '.join(row.label for row in ROWS)}")
    parser.add_argument("--samples", type=int, nargs="+", default=[SAMPLES], help=f"labelled, per task ({SAMPLES})")
    parser.add_argument("--sweep", action="store_true", help=f"FW-hard also on {', '.join(map(str, SWEEP))} samples")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="which samples, and the methods' chance (0)")
    parser.add_argument("--updates", type=int, default=500, help="updates of AdaMerging (500)")
    parser.add_argument("--csv", type=Path, default=Path("language.csv"), help="all numbers, also read (language.csv)")
    options = parser.parse_args(argv)
    labels = [row.label for row in ROWS]
    unknown = [name for name in options.rows or () if name not in labels]
    if unknown:
        raise FwvizError(f"there is no row {unknown[0]!r}: choose from {'; '.join(labels)}.")
    rows = [_updated(row, options.updates) for row in ROWS if options.rows is None or row.label in options.rows]
    given: dict[str, Any] = {"seeds": options.seeds, "csv": options.csv}
    results = run(options.pool, rows, samples=options.samples, **given)
    if options.sweep:
        results = run(options.pool, [row for row in ROWS if row.label == FW], samples=SWEEP, **given)
    card = open_pool(options.pool).card
    print(
        f"\nTest accuracy in % of {len(card.default_checkpoints)} checkpoints merged for {len(card.default_tasks)} "
        f"tasks, {options.samples[-1]} labelled samples per task\n"
    )
    print(markdown(table(results, options.samples[-1])))
    if results.loc[results["variant"] == FW, "samples"].nunique() > 1:
        print(f"\n{FW}: normalised score by samples\n")
        print(markdown(sweep(results)))
    print(f"\nall numbers: {options.csv}")
    return 0


def _updated(row: Row, updates: int) -> Row:
    return replace(row, settings={**row.settings, "updates": updates}) if row.method == "adamerging" else row


def _assembly(pool: str, seed: int) -> Assembly:
    values = {"pool": pool, "method": "weight_average", "seed": seed}
    return assemble(Recipe.from_dict(values, open_pool(pool).card))


def _run_row(assembly: Assembly, row: Row, samples: int) -> pd.DataFrame:
    """Merge on ``samples`` calibration samples per task, then judge on the test split."""
    pool, recipe = assembly.pool, assembly.recipe
    cards = [pool.card.task(task) for task in recipe.tasks]
    objective = CalibrationObjective(
        pool.backbone(),
        {card.id: _some(load_split(pool.card, card, "calibration"), samples, recipe.seed) for card in cards},
        pool.heads(recipe.tasks),
        # As in AdaMerging's paper, what it learns from without labels are the test inputs.
        unlabelled={card.id: load_split(pool.card, card, "test").inputs for card in cards},
    )
    problem = Problem(assembly.problem.vectors, objective, recipe.seed, assembly.problem.owners)
    method = entry("methods", row.method)
    assert method.settings is not None
    begin = time.process_time()
    last: Step | None = None
    for step in method.run(problem, parse_settings(method.settings, row.settings)):
        last = step
    seconds = time.process_time() - begin
    assert last is not None
    if last.delta is not None:
        theta = plus(problem.vectors.base, last.delta)
    else:
        assert last.coefficients is not None
        theta = problem.vectors.combine(last.coefficients, problem.groups(last.granularity))
    scores = assembly.evaluator.full(theta, split="test")
    facts = {"variant": row.label, "samples": samples, "seed": recipe.seed, "steps": last.t, "seconds": seconds}
    own = {card.id: card.accuracy["individual"]["test"] for card in cards}
    return pd.DataFrame(
        [
            {**facts, "task": task, "accuracy": score.accuracy, "normalised": score.accuracy / own[task]}
            for task, score in scores.items()
        ]
    )


def _some(data: TaskData, count: int, seed: int) -> TaskData:
    rows = stratified_subset(data.labels, count, seed)
    keys = tuple(data.source_keys[row] for row in rows.tolist())
    return replace(data, inputs=data.inputs[rows], labels=data.labels[rows], source_keys=keys)
