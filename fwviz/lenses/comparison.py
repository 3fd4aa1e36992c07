"""Several runs in one table: accuracy, normalised accuracy and cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from fwviz.cards import PoolCard
from fwviz.lenses import _names as names
from fwviz.registry import lens
from fwviz.runs.trace import Trace
from fwviz.types import Split


@lens("Runs compared", question="Which method merges best, and at what cost?")
def comparison(
    traces: Sequence[Trace],
    card: PoolCard | None = None,
    labels: Mapping[str, str] | None = None,
    *,
    split: Split = "test",
) -> pd.DataFrame:
    """Full scores of finished runs side by side.

    Args:
        traces: recorded runs, of one pool or several; runs without full scores of ``split`` are left out.
        labels: run id → what to call it; else the method's title, what was changed and the number of checkpoints.

    Returns one row per run × task: ``run`` (id, else the fingerprint of the recipe), ``label``, ``method``,
    ``checkpoints`` (how many were merged), ``task``, ``task_title``, ``accuracy`` in [0, 1], ``normalised`` (÷ the
    task's own checkpoint's), ``base``, ``individual`` and ``mtl`` accuracy, ``mean`` (of the run over its tasks),
    ``rank`` (among these runs on the task, 1 is the best, equal ones share the mean; SuperMerge, Table 3),
    ``seconds``, ``peak_memory_bytes``, ``bytes_read``, ``stored_bytes`` (kept beside one model: experts, feature maps,
    router).
    """
    rows = []
    for trace in traces:
        scores = trace.final.get(split, {})
        tasks = [task for task in trace.tasks if task in scores]
        titles = names.task_titles(tasks, card)
        base, own, mtl = (trace.reference.get(row, {}).get(split, {}) for row in ("base", "individual", "mtl"))
        for task in tasks:
            rows.append(
                {
                    "run": trace.id or trace.recipe.fingerprint(),  # an unsaved run has no id
                    "label": (labels or {}).get(trace.id) or describe(trace),
                    "method": trace.recipe.method,
                    "checkpoints": len(trace.checkpoints),
                    "task": task,
                    "task_title": titles[task],
                    "accuracy": scores[task].accuracy,
                    "normalised": scores[task].accuracy / own[task] if own.get(task) else math.nan,
                    "base": base.get(task, math.nan),
                    "individual": own.get(task, math.nan),
                    "mtl": mtl.get(task, math.nan),
                    "mean": math.fsum(scores[t].accuracy for t in tasks) / len(tasks),
                    "seconds": trace.cost.seconds,
                    "peak_memory_bytes": trace.cost.peak_memory_bytes,
                    "bytes_read": trace.cost.bytes_read,
                    "stored_bytes": trace.cost.stored_bytes,
                }
            )
    columns = ["run", "label", "method", "checkpoints", "task", "task_title", "accuracy", "normalised"]
    columns += ["base", "individual", "mtl", "mean", "rank"]
    columns += ["seconds", "peak_memory_bytes", "bytes_read", "stored_bytes"]
    table = pd.DataFrame(rows)
    if len(table):
        table["rank"] = table.groupby("task")["accuracy"].rank(ascending=False)
    return table.reindex(columns=columns)


def describe(trace: Trace) -> str:
    """A run in a few words: "FW-Merging, soft · 8 checkpoints · top k 2"."""
    recipe = trace.recipe
    changed = [f"{name.replace('_', ' ')} {value}" for name, value in recipe.changed_settings().items()]
    return " · ".join([recipe.title, f"{len(recipe.checkpoints)} checkpoints", *changed[:3]])
