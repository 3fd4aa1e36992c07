"""How methods fare as more checkpoints join: the shape of Fig. 1 of FW-Merging."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing

import pandas as pd

from fwviz.lenses import _field as field
from fwviz.lenses import _names as names
from fwviz.registry import entry, lens
from fwviz.runs.assemble import Assembly
from fwviz.runs.growing import IRRELEVANT, Cells, Growth, Variant, grow, growing_pool
from fwviz.runs.store import RunStore
from fwviz.types import FwvizError

# Short enough to watch: Frank–Wolfe does most of its work in the first iterations.
VARIANTS = (
    Variant("Weight average", "weight_average", ({},)),
    Variant("Task arithmetic 0.3", "task_arithmetic", ({"scale": 0.3},)),
    Variant("FW-hard", "fw_hard", ({"max_steps": 5},)),
    Variant("FW-soft", "fw_soft", ({"max_steps": 3},)),
)
COLUMNS = (
    "order",
    "seed",
    "count",
    "joined",
    "newest",
    "variant",
    "method",
    "task",
    "task_title",
    "accuracy",
    "validation",
    "settings",
    "status",
    "steps",
    "seconds",
    "run",
    "reused",
)


@lens("Growing pool", question="Which method keeps its accuracy when more checkpoints join?")
def scaling(
    assembly: Assembly,
    *,
    order: str = IRRELEVANT,
    counts: str = "",
    methods: str = "",
    seeds: int = 1,
    variants: Sequence[Variant] = VARIANTS,
    store: RunStore | None = None,
) -> Iterator[pd.DataFrame]:
    """Test accuracy on the recipe's tasks of every method, as checkpoints of the whole pool join the tasks' own ones.

    Args:
        assembly: the opened recipe: its pool, tasks, seed, device, dtype and storage are taken, not its checkpoints.
        order: who joins first: irrelevant (of tasks that share no tag with the recipe's), relevant, noisy (badly
            trained), or random.
        counts: sizes of the pool, comma between them, "all" for everything; "" is every second size.
        methods: methods with their default settings, comma between them, in place of ``variants``.
        seeds: how many orders are drawn, from the recipe's seed on.
        variants: the curves.
        store: where finished cells are kept and found again; None keeps none beyond this call.

    Yields a table after every cell, smallest and largest pool first, and every now and then while one runs
    (``table.attrs["running"]`` says which); closing the generator stops the run under way. One row per seed × count ×
    variant × task: ``order``, ``seed``, ``count``, ``joined`` (own, irrelevant, relevant or noisy: the last to join),
    ``newest`` (its title), ``variant`` ("base", "individual" and, where there is one, "mtl" are the card's rows),
    ``method``, ``task``, ``task_title``, ``accuracy`` on test in [0, 1], ``validation`` (mean over tasks, by which
    ``settings`` were picked), ``status``, ``steps``, ``seconds``, ``run`` (id), ``reused`` (found, not run).
    Source: FW-Merging, Fig. 1. Raises FwvizError if a task has no checkpoint of its own or a cell fails.
    """
    recipe, card = assembly.recipe, assembly.pool.card
    if not 1 <= seeds <= 20:
        raise FwvizError(f"seeds is {seeds}, but must lie between 1 and 20.")
    pools = {recipe.seed + k: growing_pool(card, recipe.tasks, recipe.seed + k, order) for k in range(seeds)}
    sizes = _spread_out(_sizes(counts, len(recipe.tasks), len(card.checkpoints)))
    curves = tuple(variants)
    if methods:
        chosen = [entry("methods", name.strip()) for name in methods.split(",")]
        curves = tuple(Variant(method.title, method.name, ({},)) for method in chosen)
    same = ("pool", "device", "dtype", "storage", "precision")
    shared = {name: value for name, value in recipe.to_dict().items() if name in same}
    cells = Cells(card, store)
    titles = names.checkpoint_titles([c.id for c in card.checkpoints], card)
    task_titles = names.task_titles(recipe.tasks, card)

    def table(growth: Growth) -> pd.DataFrame:
        rows = [
            row
            | {
                "order": order,
                "newest": titles[pools[row["seed"]][row["count"] - 1]],
                "task_title": task_titles[row["task"]],
            }
            for row in growth.rows
        ]
        made = pd.DataFrame(rows, columns=list(COLUMNS)).sort_values("count", kind="stable", ignore_index=True)
        made.attrs = {"done": growth.done, "total": growth.total, "running": growth.running}
        return made

    shown = 0.0
    growing = grow(card, shared, dict.fromkeys(pools, recipe.tasks), sizes, curves, cells, order)
    with closing(growing):
        for growth in growing:
            if not growth.running or time.perf_counter() - shown >= field.EVERY:
                yield table(growth)
                shown = time.perf_counter()


def _sizes(text: str, least: int, most: int) -> list[int]:
    if not text:
        return sorted({*range(least, most + 1, 2), most})
    found = []
    for word in text.split(","):
        size = most if word.strip() == "all" else int(word) if word.strip().isdecimal() else -1
        if not least <= size <= most:
            raise FwvizError(
                f"counts holds {word.strip()!r}, but must lie between {least} (own checkpoints) and {most}."
            )
        found.append(size)
    return sorted(set(found))


def _spread_out(sizes: Sequence[int]) -> list[int]:
    """First the ends, then always the size that lies furthest from those before: a curve has its shape early."""
    order = [sizes[0]]
    while len(order) < len(sizes):
        order.append(max((s for s in sizes if s not in order), key=lambda s: min(abs(s - o) for o in order)))
    return order
