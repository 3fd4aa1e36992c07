"""Runs on a pool that grows: which checkpoints join when, and cells that are run once and found again.

A cell is one method on one pool. It is a run like any other, found by the fingerprints of its recipe and of the pool.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fwviz.cards import PoolCard
from fwviz.runs.assemble import REFERENCE_ROWS, pool_fingerprint
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import run
from fwviz.runs.store import RunStore
from fwviz.runs.trace import Frame, Trace
from fwviz.types import FwvizError, Split

OWN, RELEVANT, IRRELEVANT, NOISY = "own", "relevant", "irrelevant", "noisy"
ORDERS: dict[str, tuple[str, ...]] = {
    IRRELEVANT: (IRRELEVANT, RELEVANT, NOISY),
    RELEVANT: (RELEVANT, IRRELEVANT, NOISY),
    NOISY: (NOISY, RELEVANT, IRRELEVANT),
    "random": (),
}


@dataclass(frozen=True)
class Variant:
    """One curve: a method and the settings among which validation picks."""

    name: str
    method: str
    grid: tuple[dict[str, Any], ...]


# --- who joins when -------------------------------------------------------------------------------


def own_checkpoint(card: PoolCard, task: str) -> str:
    """The id of the checkpoint that was fine-tuned for a task in full. FwvizError if the pool has none."""
    for checkpoint in card.checkpoints:
        if checkpoint.task == task and checkpoint.kind == "own":
            return checkpoint.id
    raise FwvizError(f"pool {card.id!r} has no checkpoint of kind own for task {task!r}: choose other tasks.")


def relation(card: PoolCard, checkpoint: str, tasks: Sequence[str]) -> str:
    """What a checkpoint is to some tasks: own, relevant, irrelevant, or noisy.

    Own is the checkpoint fine-tuned for one of them in full. Noisy is any that was trained badly, on any task (few
    steps, half the classes, random labels, a foreign base). Of the others, one whose task shares a tag with one of
    ``tasks`` is relevant.
    """
    found = card.checkpoint(checkpoint)
    if found.kind != "own":
        return NOISY
    if found.task in tasks:
        return OWN
    tags = {task.id: set(task.tags) for task in card.tasks}
    wanted = set().union(*(tags.get(task, set()) for task in tasks))
    return RELEVANT if wanted & tags.get(found.task, set()) else IRRELEVANT


def growing_pool(card: PoolCard, tasks: Sequence[str], seed: int, order: str = "random") -> tuple[str, ...]:
    """All checkpoints, the tasks' own ones first, the others in an order drawn with ``seed``.

    With an ``order`` of :data:`ORDERS` whole kinds join one after the other, each in the order drawn.
    """
    if order not in ORDERS:
        raise FwvizError(f"order is {order!r}, but must be one of {', '.join(ORDERS)}.")
    own = [own_checkpoint(card, task) for task in tasks]
    others = [checkpoint.id for checkpoint in card.checkpoints if checkpoint.id not in own]
    random.Random(seed).shuffle(others)
    kinds = ORDERS[order]
    others.sort(key=lambda name: kinds.index(relation(card, name, tasks)) if kinds else 0)
    return (*own, *others)


# --- cells ----------------------------------------------------------------------------------------


class Cells:
    """Finished runs by fingerprint, run when they are missing."""

    def __init__(
        self,
        card: PoolCard,
        store: RunStore | None,
        *,
        fresh: bool = False,
        say: Callable[[Trace], None] | None = None,
    ) -> None:
        """``store`` keeps and finds runs, None keeps them in memory; ``fresh`` finds none; ``say`` hears of each."""
        self._store, self._say = store, say
        self._pool = pool_fingerprint(card)
        self._known: dict[str, str] = {}
        self._held: dict[str, Trace] = {}
        for summary in () if fresh or store is None else store.list():
            if summary.status in ("converged", "max_steps") and summary.pool_fingerprint == self._pool:
                self._known.setdefault(summary.recipe.fingerprint(), summary.id)

    def find(self, recipe: Recipe) -> Trace | None:
        """The finished run of a recipe, if there is one with scores."""
        key = recipe.fingerprint()
        if key in self._held:
            return self._held[key]
        if key in self._known and self._store is not None:
            with contextlib.suppress(FwvizError):  # deleted or damaged since: run it again
                trace = self._store.load(self._known[key])
                return trace if trace.final.get("test") and trace.final.get("validation") else None
        return None

    def made(self, recipe: Recipe) -> tuple[Trace, bool]:
        """The finished run of a recipe and whether it was found; else it is run. Raises FwvizError if it fails."""
        found = self.find(recipe)
        if found is not None:
            return found, True
        with contextlib.closing(self.frames(recipe)) as frames:
            while True:
                try:
                    next(frames)
                except StopIteration as end:
                    trace: Trace = end.value
                    return trace, False

    def frames(self, recipe: Recipe) -> Generator[Frame, None, Trace]:
        """Run a recipe, yielding its frames; closing the generator stops the run. Raises FwvizError if it fails."""
        writer = None if self._store is None else self._store.create(recipe)
        trace = yield from run(recipe, writer=writer, live=False)
        if trace.status == "failed":
            raise FwvizError(f"{recipe.cli_line()} failed: {trace.note}")
        if self._say is not None:
            self._say(trace)
        key = recipe.fingerprint()
        if self._store is None:
            self._held[key] = trace
            return trace
        self._known[key] = trace.id
        return self._store.load(trace.id)  # with the digits that a later call will find


def mean(trace: Trace, split: Split) -> float:
    """Accuracy of a finished run, averaged over its tasks."""
    scores = trace.final[split].values()
    return sum(score.accuracy for score in scores) / len(scores)


# --- the table ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Growth:
    """The rows so far, what is being run, and how many cells of how many are done."""

    rows: list[dict[str, Any]]
    running: str
    done: int
    total: int


def grow(
    card: PoolCard,
    shared: Mapping[str, Any],
    tasks: Mapping[int, Sequence[str]],
    counts: Sequence[int],
    variants: Sequence[Variant],
    cells: Cells,
    order: str = "random",
) -> Generator[Growth, None, None]:
    """Every variant at every size of the pool, for every seed; validation picks, test reports.

    Args:
        card: of the pool.
        shared: fields of every recipe, "pool" at least.
        tasks: seed → the tasks that judge.
        counts: sizes of the pool, in the order in which they are wanted.

    Yields after every cell, and while one is under way after every iterate. Each row has ``seed``, ``count``,
    ``joined`` (what the last checkpoint is to the tasks), ``variant`` ("base" and "individual" for the rows of the
    card), ``method``, ``task``, ``accuracy`` on test, ``validation`` (mean over tasks, what picked), ``settings``,
    ``status``, ``steps``, ``seconds``, ``run``, ``reused`` (nothing was run). Raises FwvizError if a cell fails.
    """
    rows: list[dict[str, Any]] = []
    total, done = len(tasks) * len(counts) * len(variants), 0
    for seed, chosen in tasks.items():
        pool = growing_pool(card, chosen, seed, order)
        joined = {count: relation(card, pool[count - 1], chosen) for count in counts}
        for name in REFERENCE_ROWS:
            for task in chosen:
                accuracy = card.task(task).accuracy.get(name, {}).get("test")
                row = {"seed": seed, "variant": name, "method": "", "task": task, "accuracy": accuracy}
                rows += [row | {"count": count, "joined": joined[count]} for count in counts]
        for count in counts:
            for variant in variants:
                traces, reused = [], True
                for settings in variant.grid:
                    fields = {"checkpoints": pool[:count], "tasks": tuple(chosen), "method": variant.method}
                    recipe = Recipe.from_dict({**shared, **fields, "settings": settings, "seed": seed}, card)
                    trace = cells.find(recipe)
                    if trace is None:
                        reused = False
                        frames = cells.frames(recipe)
                        with contextlib.closing(frames):
                            while trace is None:
                                try:
                                    next(frames)
                                except StopIteration as end:
                                    trace = end.value
                                else:
                                    yield Growth(rows, f"{variant.name}, {count} checkpoints", done, total)
                    traces.append(trace)
                best = max(traces, key=lambda trace: mean(trace, "validation"))
                result = {
                    "seed": seed,
                    "count": count,
                    "joined": joined[count],
                    "variant": variant.name,
                    "method": variant.method,
                    "validation": mean(best, "validation"),
                    "settings": str(best.recipe.changed_settings()),
                    "status": best.status,
                    "steps": len(best.iterates()) - 1,
                    "seconds": best.cost.seconds,
                    "run": best.id,
                    "reused": reused,
                }
                rows += [result | {"task": task, "accuracy": best.final["test"][task].accuracy} for task in chosen]
                done += 1
                yield Growth(rows, "", done, total)
