"""How each method fares as more checkpoints join the pool: the shape of Fig. 1 of FW-Merging.

Validation picks, test reports. For each seed the pool grows from the evaluation tasks' own checkpoints by adding the
others in a random order; the same order for every method. Each cell is a run in a store of its own, found again by the
fingerprints of its recipe and of the pool, so that a bench that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from fwviz.cards import PoolCard
from fwviz.lenses.lmo import lmo
from fwviz.pools.open import open_pool
from fwviz.runs.assemble import assemble
from fwviz.runs.growing import Cells, Variant, grow, mean, own_checkpoint
from fwviz.runs.recipe import Recipe
from fwviz.runs.store import RunStore, default_root
from fwviz.runs.trace import Frame, Trace
from fwviz.types import FwvizError

SCALES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)


VARIANTS = (
    Variant("weight average", "weight_average", ({},)),
    Variant("task arithmetic 0.3", "task_arithmetic", ({"scale": 0.3},)),
    Variant("task arithmetic, best scale", "task_arithmetic", tuple({"scale": scale} for scale in SCALES)),
    Variant("FW-hard", "fw_hard", ({},)),
    Variant("FW-soft, simplex", "fw_soft", ({"inner": "simplex"},)),
    # The paper's three iterations for vision: at 500 updates each, fifteen would take most of the bench's time.
    Variant("FW-soft, official", "fw_soft", ({"inner": "official", "max_steps": 3},)),
    Variant("FW-soft, hull_scale 1.5", "fw_soft", ({"hull_scale": 1.5},)),
    Variant("FW-soft, hull_scale 2", "fw_soft", ({"hull_scale": 2.0},)),
    Variant("FW-soft, hull_scale 3", "fw_soft", ({"hull_scale": 3.0},)),
)


def run(
    pool: str,
    tasks: Sequence[str],
    counts: Sequence[int],
    seeds: Sequence[int],
    *,
    draw: int = 0,
    variants: Sequence[Variant] = VARIANTS,
    store: RunStore | None = None,
    fresh: bool = False,
) -> pd.DataFrame:
    """One row per seed × count × variant × task, plus the rows base and individual of the pool card.

    ``draw`` > 0 replaces ``tasks`` by that many drawn anew for each seed. Columns: seed, count, variant, task,
    accuracy (test, in [0, 1]), validation (mean over tasks, what picked), settings, status, steps, seconds, run.
    """
    card = open_pool(pool).card
    cells = Cells(
        card,
        store or RunStore(default_root() / "scaling", max_runs=100_000),
        fresh=fresh,
        say=lambda t: print(_line(t), flush=True),
    )
    chosen = {seed: _drawn_tasks(card, draw, seed) if draw else tuple(tasks) for seed in seeds}
    rows: list[dict[str, Any]] = []
    for growth in grow(card, {"pool": pool}, chosen, counts, variants, cells):
        rows = growth.rows
    return pd.DataFrame(rows).drop(columns=["joined", "method", "reused"], errors="ignore")


def table(results: pd.DataFrame) -> pd.DataFrame:
    """Variant × count: mean test accuracy over tasks and seeds in %, ± standard deviation over seeds."""
    per_seed = results.groupby(["variant", "count", "seed"], sort=False)["accuracy"].mean().mul(100)
    grouped = per_seed.groupby(["variant", "count"], sort=False)
    cells = grouped.mean().map("{:.1f}".format)
    if results["seed"].nunique() > 1:
        cells = cells + " ± " + grouped.std().map("{:.1f}".format)
    return cells.unstack("count").loc[list(dict.fromkeys(results["variant"]))]


def first_choices(pool: str, store: RunStore, results: pd.DataFrame) -> pd.DataFrame:
    """How often the task's own checkpoint is the oracle's first choice.

    Row "base": every task of the pool against every checkpoint. Rows "<variant>, t": each iterate of the runs with the
    most checkpoints that record scores per task. Columns: where, own (times), same_task (times that any checkpoint of
    the same task is first), of.
    """
    card = open_pool(pool).card
    tasks = [task.id for task in card.tasks if any(c.task == task.id and c.kind == "own" for c in card.checkpoints)]
    everything = [checkpoint.id for checkpoint in card.checkpoints]
    recipe = {"pool": pool, "checkpoints": everything, "tasks": tasks, "method": "weight_average"}
    wanted = lmo(assemble(Recipe.from_dict(recipe, card)))
    first = wanted[wanted.chosen][["task", "checkpoint"]].itertuples(index=False)
    counts = {("base", 0): [_choice(card, task, name) for task, name in first]}
    if "run" in results:
        largest = results[results["count"] == results["count"].max()].dropna(subset=["run"])
        for variant, run_id in largest[["variant", "run"]].drop_duplicates().itertuples(index=False):
            trace = store.load(run_id)
            for frame in trace.iterates():
                found = [_choice(card, task, name) for task, name in _first_of_frame(trace, frame)]
                if found:
                    counts.setdefault((f"{variant}, step to t = {frame.t}", frame.t), []).extend(found)
    rows = [(where, *map(sum, zip(*found, strict=True)), len(found)) for (where, _), found in counts.items()]
    return pd.DataFrame(rows, columns=["where", "own", "same_task", "of"])


def main(argv: Sequence[str]) -> int:
    """``fwviz bench scaling``."""
    parser = argparse.ArgumentParser(prog="fwviz bench scaling", description=__doc__, allow_abbrev=False)
    parser.add_argument("--pool", default="vision", help="id or folder (vision)")
    parser.add_argument("--tasks", nargs="+", help="evaluation tasks (the first four of the pool's default)")
    parser.add_argument("--draw", type=int, default=0, help="draw that many tasks anew for each seed instead")
    parser.add_argument("--counts", default="4,8,12,all", help="checkpoints in the pool (4,8,12,all)")
    parser.add_argument("--seeds", default="0,1,2", help="(0,1,2)")
    parser.add_argument("--max-steps", type=int, help="Frank-Wolfe iterations of every variant (its own default)")
    parser.add_argument("--variants", nargs="+", help=f"some of: {'; '.join(v.name for v in VARIANTS)}")
    parser.add_argument("--runs", type=Path, help="folder of the cells (scaling/ in the run store)")
    parser.add_argument("--fresh", action="store_true", help="run every cell again, as after a change of a method")
    parser.add_argument("--out", type=Path, default=Path("scaling.csv"), help="all numbers (scaling.csv)")
    options = parser.parse_args(argv)
    card = open_pool(options.pool).card
    tasks = options.tasks or card.default_tasks[:4]
    for task in tasks:
        card.task(task)
    names = options.variants or [variant.name for variant in VARIANTS]
    unknown = [name for name in names if name not in [variant.name for variant in VARIANTS]]
    if unknown:
        raise FwvizError(f"there is no variant {unknown[0]!r}: choose from {'; '.join(v.name for v in VARIANTS)}.")
    counts = _counts(options.counts, len(card.checkpoints), options.draw or len(tasks))
    store = RunStore(options.runs or default_root() / "scaling", max_runs=100_000)
    results = run(
        options.pool,
        tasks,
        counts,
        [_whole("--seeds", word) for word in options.seeds.split(",")],
        draw=options.draw,
        variants=[_limited(variant, options.max_steps) for variant in VARIANTS if variant.name in names],
        store=store,
        fresh=options.fresh,
    )
    results.to_csv(options.out, index=False)
    print(f"Mean test accuracy in %, {options.draw or len(tasks)} tasks, by the number of checkpoints in the pool\n")
    print(markdown(table(results)))
    print("\nThe oracle's first choice is the checkpoint of the task itself\n")
    print(markdown(first_choices(options.pool, store, results).set_index("where")))
    print(f"\nall numbers: {options.out}")
    return 0


def markdown(frame: pd.DataFrame) -> str:
    """A DataFrame as a Markdown table, its index first."""
    rows = [[str(frame.index.name), *map(str, frame.columns)], ["---"] * (1 + len(frame.columns))]
    rows += [[str(label), *map(str, row)] for label, row in zip(frame.index, frame.to_numpy().tolist(), strict=True)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _limited(variant: Variant, max_steps: int | None) -> Variant:
    if max_steps is None or not variant.method.startswith("fw_"):
        return variant
    return replace(variant, grid=tuple({**settings, "max_steps": max_steps} for settings in variant.grid))


def _line(trace: Trace) -> str:
    """What is printed of a cell when it is done."""
    line = f"{trace.recipe.method} {trace.recipe.changed_settings()} on {len(trace.checkpoints)} checkpoints"
    return f"{line}: {100 * mean(trace, 'test'):.1f} in {trace.cost.seconds:.1f} s"


def _drawn_tasks(card: PoolCard, count: int, seed: int) -> tuple[str, ...]:
    own = {checkpoint.task for checkpoint in card.checkpoints if checkpoint.kind == "own"}
    able = [task.id for task in card.tasks if task.id in own]
    if count > len(able):
        raise FwvizError(f"pool {card.id!r} has {len(able)} tasks with a checkpoint of their own, fewer than {count}.")
    return tuple(random.Random(1_000 + seed).sample(able, count))


def _first_of_frame(trace: Trace, frame: Frame) -> Iterator[tuple[str, str]]:
    for task, matrix in frame.task_scores.items():
        totals = [sum(column) for column in zip(*matrix, strict=True)]
        yield task, trace.checkpoints[min(range(len(totals)), key=totals.__getitem__)]


def _choice(card: PoolCard, task: str, name: str) -> tuple[bool, bool]:
    return name == own_checkpoint(card, task), card.checkpoint(name).task == task


def _counts(text: str, everything: int, least: int) -> list[int]:
    counts = [everything if word == "all" else _whole("--counts", word) for word in text.split(",")]
    wrong = next((count for count in counts if not least <= count <= everything), None)
    if wrong is not None:
        raise FwvizError(f"--counts names {wrong}, but must lie between {least} (own checkpoints) and {everything}.")
    return list(dict.fromkeys(counts))


def _whole(flag: str, word: str) -> int:
    if not word.strip().isdecimal():
        raise FwvizError(f"{flag} holds {word!r}, which is not a whole number.")
    return int(word)
