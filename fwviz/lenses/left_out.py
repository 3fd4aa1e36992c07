"""What merges do on tasks of the pool that they were neither made of nor tuned on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain

import pandas as pd
import torch

from fwviz.lenses import _merged as merged
from fwviz.lenses import _names as names
from fwviz.registry import lens
from fwviz.runs.assemble import Assembly
from fwviz.runs.store import RunStore
from fwviz.runs.trace import Trace
from fwviz.tasks.evaluators import Evaluator
from fwviz.types import Extension, FwvizError, Split

COLUMNS = ("run", "label", "method", "task", "task_title", "accuracy", "base", "individual", "rank", "split")


@lens("Tasks left out", question="What does a merge do on tasks that nobody asked it for?")
def left_out(
    assembly: Assembly, traces: Sequence[Trace] = (), *, split: Split = "test", store: RunStore | None = None
) -> Iterator[pd.DataFrame]:
    """Accuracy of merges on the tasks of the pool that none of them had a checkpoint of or was judged or tuned on.

    The classes of a new task are told by their names alone, as at the base. An expert is picked by a trained router,
    which may pick a wrong one; who has to be told the task finds no expert, and the backbone answers.

    Args:
        assembly: an opened recipe of the pool.
        traces: recorded runs of the same pool; those that did not finish are left out.
        split: the whole of it is judged.
        store: where the experts of the runs are kept; without it methods that are not linear are run again.

    Yields a table after every model, with ``attrs`` as in :mod:`fwviz.lenses._field`. One row per merge × task, those
    of the base first: ``run`` (id, "" for the base), ``label``, ``method``, ``task``, ``task_title``, ``accuracy`` in
    [0, 1], ``base`` (that of the base), ``individual`` (of the pool card), ``rank`` (among the runs on the task, 1 is
    the best, equal ones share the mean; none for the base), ``split``.
    Source: SuperMerge, Tables 2 and 6. Raises FwvizError if no task of the pool is left out by all runs, or a run is
    of another pool.
    """
    card = assembly.pool.card
    runs = merged.finished(assembly, traces)
    owners = {checkpoint.id: checkpoint.task for checkpoint in card.checkpoints}
    used = {task for trace in runs for task in (*trace.tasks, *(owners[name] for name in trace.checkpoints))}
    unseen = [task.id for task in card.tasks if task.id not in used]
    if not unseen:
        raise FwvizError("these runs together use every task of the pool: compare runs that merge fewer checkpoints.")
    device = torch.device(assembly.recipe.device)
    judge = Evaluator(assembly.pool.model(device), card, unseen, assembly.pool.heads(unseen))
    titles = names.task_titles(unseen, card)
    own = {task: card.task(task).accuracy.get("individual", {}).get(split, math.nan) for task in unseen}
    base: dict[str, float] = {}
    rows: list[dict[str, object]] = []
    for done, model in enumerate(chain([merged.base_of(assembly)], merged.rebuilt(runs, store)), 1):
        scores = judge.full(model.theta, split, extension=_untold(model.extension))
        base = base or {task: score.accuracy for task, score in scores.items()}
        rows += [
            {
                "run": model.run,
                "label": model.label,
                "method": model.method,
                "task": task,
                "task_title": titles[task],
                "accuracy": scores[task].accuracy,
                "base": base[task],
                "individual": own[task],
                "split": split,
            }
            for task in unseen
        ]
        table = pd.DataFrame(rows)
        table["rank"] = table[table["run"] != ""].groupby("task")["accuracy"].rank(ascending=False)
        table = table[list(COLUMNS)]
        table.attrs = {"done": done, "total": len(runs) + 1, "what": "models"}
        yield table


def _untold(extension: Extension | None) -> Extension | None:
    """What is left of an extension where nobody tells the task."""
    return extension if extension is not None and extension.router.reads_features else None
