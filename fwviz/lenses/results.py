"""The final scores of a run, task by task, beside the rows to beat."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from fwviz.cards import PoolCard
from fwviz.lenses import _names as names
from fwviz.registry import lens
from fwviz.runs.trace import Trace
from fwviz.types import Split


@lens("Final accuracy", question="How good is the merged model, task by task?")
def results(
    trace: Trace,
    card: PoolCard | None = None,
    average: Mapping[str, float] | None = None,
    *,
    split: Split = "test",
) -> pd.DataFrame:
    """Full scores of the finished merge per task, with base, individual and (if given) average-merge accuracy.

    Args:
        trace: a recorded run; one that never finished has only reference rows.
        average: task → accuracy of the plain average of all checkpoints on the same split.

    Returns one row per series × task: ``series`` ("merged", "base", "individual", "average", and "mtl" where the card
    has one model trained on all tasks), ``task``, ``task_title``, ``accuracy`` in [0, 1], ``loss`` (nats, merged only),
    ``count`` (samples, merged only), ``normalised`` (accuracy ÷ the task's own checkpoint's), ``stored_bytes`` (what
    the merge keeps beside one model; merged only), ``split``.
    """
    titles = names.task_titles(trace.tasks, card)
    own = trace.reference.get("individual", {}).get(split, {})
    merged = trace.final.get(split, {})
    series = {"merged": {task: score.accuracy for task, score in merged.items()}}
    series |= {row: splits.get(split, {}) for row, splits in trace.reference.items()}
    series["average"] = dict(average or {})
    rows = [
        {
            "series": name,
            "task": task,
            "task_title": titles[task],
            "accuracy": values[task],
            "loss": merged[task].loss if name == "merged" else math.nan,
            "count": merged[task].count if name == "merged" else math.nan,
            "normalised": values[task] / own[task] if own.get(task) else math.nan,
            "stored_bytes": trace.cost.stored_bytes if name == "merged" else math.nan,
            "split": split,
        }
        for name, values in series.items()
        for task in trace.tasks
        if task in values
    ]
    columns = ["series", "task", "task_title", "accuracy", "loss", "count", "normalised", "stored_bytes", "split"]
    return pd.DataFrame(rows, columns=columns)
