"""How alike the features of merges are to those of the tasks' own checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import pandas as pd

from fwviz.lenses import _merged as merged
from fwviz.lenses import _names as names
from fwviz.registry import lens
from fwviz.runs.assemble import Assembly
from fwviz.runs.growing import own_checkpoint
from fwviz.runs.store import RunStore
from fwviz.runs.trace import Trace
from fwviz.space.similarity import linear_cka
from fwviz.types import FwvizError, Split

COLUMNS = ("run", "label", "method", "task", "task_title", "cka", "base", "samples", "split")


@lens("Features of the merges", question="Does a merge see a task's inputs as the task's own checkpoint does?")
def cka(
    assembly: Assembly,
    traces: Sequence[Trace] = (),
    *,
    split: Split = "validation",
    samples: int = 256,
    store: RunStore | None = None,
) -> Iterator[pd.DataFrame]:
    """Linear CKA = ‖YᵀX‖² / (‖XᵀX‖·‖YᵀY‖) of a merge's features X and an own checkpoint's Y, means taken out.

    Features are what a task's head reads of the task's own inputs; of a merge with experts, those of backbone, router
    and expert together.

    Args:
        assembly: the opened recipe; its tasks that have a checkpoint of their own are compared.
        traces: recorded runs of the same pool; those that did not finish are left out.
        split: validation, calibration or test.
        samples: at most that many of each task. CKA grows when there are fewer samples than features.
        store: where the experts of the runs are kept; without it methods that are not linear are run again.

    Yields a table after every model, with ``attrs`` as in :mod:`fwviz.lenses._field`. One row per merge × task, those
    of the base first: ``run`` (id, "" for the base), ``label``, ``method``, ``task``, ``task_title``, ``cka`` in
    [0, 1], ``base`` (that of the base), ``samples``, ``split``.
    Source: Kornblith et al. (2019), section 3; FREE-Merging, Table 12 (experts with and without their factor).
    Raises FwvizError if no task has a checkpoint of its own, or a run is of another pool.
    """
    card = assembly.pool.card
    whole = [task for task in assembly.recipe.tasks if _has_own(assembly, task)]
    if not whole:
        raise FwvizError("no task of this recipe has a checkpoint of its own to compare with: choose other tasks.")
    judge = assembly.evaluator.focused(whole, split=split, count=samples)
    runs = merged.finished(assembly, traces)
    total, done = len(whole) + 1 + len(runs), 0
    rows: list[dict[str, object]] = []

    def table() -> pd.DataFrame:
        made = pd.DataFrame(rows, columns=list(COLUMNS))
        made.attrs = {"done": done, "total": total, "what": "models"}
        return made

    wanted = {}
    for task in whole:
        alone = [own_checkpoint(card, task)]
        own = assembly.pool.task_vectors(alone, assembly.pool.lean_storage(alone))
        theta = own.vector(0).add_(own.base)
        wanted[task] = judge.focused([task], split=split, count=samples).features(theta)[task]
        done += 1
        yield table()
    titles = names.task_titles(whole, card)
    base: dict[str, float] = {}
    for model in chain([merged.base_of(assembly)], merged.rebuilt(runs, store)):
        features = judge.features(model.theta, extension=model.extension)
        found = {task: linear_cka(features[task], wanted[task]) for task in whole}
        base = base or found
        rows += [
            {
                "run": model.run,
                "label": model.label,
                "method": model.method,
                "task": task,
                "task_title": titles[task],
                "cka": found[task],
                "base": base[task],
                "samples": len(wanted[task]),
                "split": split,
            }
            for task in whole
        ]
        done += 1
        yield table()


def _has_own(assembly: Assembly, task: str) -> bool:
    return any(c.task == task and c.kind == "own" for c in assembly.pool.card.checkpoints)
