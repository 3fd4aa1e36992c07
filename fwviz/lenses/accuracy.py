"""Accuracy per task along a run, with the rows to beat."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from fwviz.cards import PoolCard
from fwviz.lenses import _names as names
from fwviz.registry import describe_settings, entry, lens
from fwviz.runs.trace import Trace
from fwviz.types import Split

REFERENCE_SPLIT: Split = "validation"  # frames are judged on a part of it


@lens("Accuracy as it merges", question="Is the merged model getting better, and on which tasks?")
def accuracy(trace: Trace, card: PoolCard | None = None, average: Mapping[str, float] | None = None) -> pd.DataFrame:
    """Quick validation accuracy of every evaluated frame × task, and the reference rows.

    Args:
        trace: a recorded run, also one that is still under way.
        card: of the pool, for titles.
        average: task → validation accuracy of the plain average of all checkpoints, if known.

    Returns rows with ``series`` "run" (frames) or "base", "individual", "mtl", "average" (one row per task, the columns
    of frames empty): ``series``, ``index`` (frame), ``t``, ``inner``, ``x`` (iterations, see :func:`positions`),
    ``seconds``, ``completed`` (an iterate, not an inner update), ``task``, ``task_title``, ``accuracy`` in [0, 1],
    ``loss`` (nats), ``steps`` (iterations planned, NaN if unknown).
    """
    titles = names.task_titles(trace.tasks, card)
    planned = trace.recipe.settings.get("max_steps", math.nan)
    rows = []
    # The closing frame repeats the last iterate.
    frames = [(frame, x) for frame, x in zip(trace.frames, positions(trace), strict=True) if frame.status == "running"]
    for frame, x in frames:
        for task in trace.tasks:
            if task not in frame.accuracy:
                continue
            rows.append(
                {
                    "series": "run",
                    "index": frame.index,
                    "t": frame.t,
                    "inner": frame.inner,
                    "x": x,
                    "seconds": frame.seconds,
                    "completed": frame.completed,
                    "task": task,
                    "task_title": titles[task],
                    "accuracy": frame.accuracy[task],
                    "loss": frame.task_loss.get(task, math.nan),
                    "steps": planned,
                }
            )
    marks = {row: splits.get(REFERENCE_SPLIT, {}) for row, splits in trace.reference.items()}
    for series, values in (marks | {"average": dict(average or {})}).items():
        known = [task for task in trace.tasks if task in values]
        rows += [
            {"series": series, "task": task, "task_title": titles[task], "accuracy": values[task]} for task in known
        ]
    columns = [
        "series",
        "index",
        "t",
        "inner",
        "x",
        "seconds",
        "completed",
        "task",
        "task_title",
        "accuracy",
        "loss",
        "steps",
    ]
    table = pd.DataFrame(rows, columns=columns)
    numbers = ["index", "t", "inner", "x", "seconds", "accuracy", "loss", "steps"]
    return table.astype(dict.fromkeys(numbers, "float64"))


def positions(trace: Trace) -> list[float]:
    """The place of every frame in iterations: t for an iterate, t − 1 + inner/(planned inner updates + 1) on the way.

    The plan is the setting that counts inner updates, or the most that were seen, so that points stay where they are
    while a run goes on.
    """
    seen = max((frame.inner for frame in trace.frames), default=0)
    most = max(seen, _planned_inner(trace))
    return [
        float(frame.t) if frame.inner == 0 or frame.t == 0 else frame.t - 1 + frame.inner / (most + 1)
        for frame in trace.frames
    ]


def _planned_inner(trace: Trace) -> int:
    cls = entry("methods", trace.recipe.method).settings
    settings = trace.recipe.settings
    counts = [
        settings.get(spec.name, spec.default)
        for spec in (describe_settings(cls) if cls else ())
        if (spec.name == "trials" or spec.name.endswith("_updates"))
        and all(settings.get(other) in values for other, values in spec.applies.items())
    ]
    return max(counts, default=0)
