"""What each task vector alone does to every task, with its coarse part and without."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd

from fwviz.lenses import _names as names
from fwviz.registry import lens
from fwviz.runs.assemble import Assembly
from fwviz.runs.growing import Cells
from fwviz.runs.recipe import Recipe
from fwviz.runs.store import RunStore
from fwviz.types import FwvizError, Split

COLUMNS = (
    "checkpoint",
    "checkpoint_title",
    "task",
    "task_title",
    "own",
    "accuracy",
    "filtered",
    "difference",
    "base",
    "cutoff",
    "scale",
    "split",
    "run",
    "run_filtered",
    "reused",
)


@lens("Generalisation", question="What does one task vector do to the other tasks, with its coarse part and without?")
def generalisation(
    assembly: Assembly,
    *,
    cutoff: float = 0.1,
    scale: float = 1.0,
    split: Split = "test",
    store: RunStore | None = None,
) -> Iterator[pd.DataFrame]:
    """Accuracy of θ₀ + scale·τᵢ and of θ₀ + scale·G(τᵢ) on every task; G is the high-pass of eq. 1–2.

    The filter acts on the matrices of attention and MLP, as FR-Merging's does; the other tensors move alike in both.

    Args:
        assembly: the opened recipe: its checkpoints are the rows, its tasks the columns.
        cutoff: radial frequency in [0, 1] below which the filter takes everything out.
        scale: coefficient of the one task vector; 1 is the checkpoint itself.
        split: test, or validation, to choose a cutoff by.
        store: where the two runs of every checkpoint are kept and found again; None keeps none beyond this call.

    Yields a table after every checkpoint, with ``attrs`` as in :mod:`fwviz.lenses._field`. One row per checkpoint ×
    task: ``checkpoint``, ``checkpoint_title``, ``task``, ``task_title``, ``own`` (fine-tuned on it), ``accuracy`` and
    ``filtered`` in [0, 1], ``difference`` = filtered − accuracy, ``base`` (of the pool card), ``cutoff``, ``scale``,
    ``split``, ``run`` and ``run_filtered`` (ids), ``reused`` (found, not run).
    Source: FREE-Merging, Fig. 3 and 9d. Raises FwvizError for a cutoff or scale out of range.
    """
    if not 0.0 <= cutoff <= 1.0:
        raise FwvizError(f"cutoff is {cutoff:g}, but must lie between 0 and 1.")
    if not 0.0 < scale <= 2.0:
        raise FwvizError(f"scale is {scale:g}, but must be above 0 and at most 2.")
    if split not in ("validation", "test"):
        raise FwvizError(f"split is {split!r}, but runs are judged on validation and on test: choose one of the two.")
    recipe, card = assembly.recipe, assembly.pool.card
    cells = Cells(card, store)
    shared = {name: value for name, value in recipe.to_dict().items() if name in ("pool", "device", "dtype", "storage")}
    plain = {"method": "task_arithmetic", "settings": {"scale": scale}}
    kept = {"cutoff": cutoff, "scale": scale, "weights": "uniform", "others": "merged", "filter_tensors": "blocks"}
    filtered = {"method": "fr_merging", "settings": kept}
    titles = names.checkpoint_titles(recipe.checkpoints, card)
    task_titles = names.task_titles(recipe.tasks, card)
    own = names.own_task(recipe.checkpoints, recipe.tasks, card)
    base = {task: card.task(task).accuracy.get("base", {}).get(split, math.nan) for task in recipe.tasks}
    rows: list[dict[str, object]] = []
    total = 2 * len(recipe.checkpoints)

    def table(done: int) -> pd.DataFrame:
        made = pd.DataFrame(rows, columns=list(COLUMNS))
        made.attrs = {"done": done, "total": total, "what": "models"}
        return made

    for i, name in enumerate(recipe.checkpoints):
        fields = {**shared, "checkpoints": (name,), "tasks": recipe.tasks}
        whole, found = cells.made(Recipe.from_dict({**fields, **plain}, card))
        yield table(2 * i + 1)
        fine, found_fine = cells.made(Recipe.from_dict({**fields, **filtered}, card))
        for task in recipe.tasks:
            before, after = (trace.final[split][task].accuracy for trace in (whole, fine))
            rows.append(
                {
                    "checkpoint": name,
                    "checkpoint_title": titles[name],
                    "task": task,
                    "task_title": task_titles[task],
                    "own": own[name] == task,
                    "accuracy": before,
                    "filtered": after,
                    "difference": after - before,
                    "base": base[task],
                    "cutoff": cutoff,
                    "scale": scale,
                    "split": split,
                    "run": whole.id,
                    "run_filtered": fine.id,
                    "reused": found and found_fine,
                }
            )
        yield table(2 * i + 2)
