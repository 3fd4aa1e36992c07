"""What filtering the task vectors does to the merge, cutoff by cutoff."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import pandas as pd
import torch

from fwviz.lenses import _names as names
from fwviz.registry import entry, lens, parse_settings
from fwviz.runs.assemble import Assembly
from fwviz.space.wide import plus
from fwviz.types import FwvizError, Score

METHOD = "fr_merging"
BANDS = ("high", "band", "low")
CUTOFFS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85)


@lens("Filter response", question="What does filtering the task vectors do to the merged model?")
def filter_response(assembly: Assembly, *, bands: str = "high,low", cutoffs: Sequence[float] = CUTOFFS) -> pd.DataFrame:
    """Quick scores of FR-Merging for a row of cutoffs, with frequencies above, in between or below them kept.

    Args:
        assembly: the opened recipe, of which the pool, checkpoints and tasks count. FR-Merging has its default
            settings, whatever the method of the recipe, so that one pool has one response.
        bands: some of high (ρ ≥ cutoff stays), low (ρ < cutoff stays) and band (from the cutoff to the upper cutoff),
            with commas between them.
        cutoffs: in [0, 1]; 0 leaves the task vectors as they are in the high band.

    Costs one merge and one quick evaluation (64 validation samples per task) per band and cutoff.

    Returns one row per band × cutoff × task, "joint" (the mean over tasks) first: ``band``, ``cutoff``, ``task``,
    ``task_title``, ``accuracy`` and ``normalised`` (by the individual accuracy of the pool card; NaN where unknown),
    ``loss`` (nats), ``unfiltered`` (accuracy without a filter).

    Source: FREE-Merging, Fig. 5a and Table 14.
    """
    made = list(responses(assembly, bands=bands, cutoffs=cutoffs))
    return made[-1]


def responses(
    assembly: Assembly, *, bands: str = "high,low", cutoffs: Sequence[float] = CUTOFFS
) -> Iterator[pd.DataFrame]:
    """The table of :func:`filter_response` as it grows: one more cutoff each time. Close it to stop."""
    chosen = tuple(dict.fromkeys(word.strip() for word in bands.split(",") if word.strip()))
    wrong = next((band for band in chosen if band not in BANDS), None)
    if wrong is not None or not chosen:
        raise FwvizError(f"band {wrong or bands!r} is not known: choose from {', '.join(BANDS)}.")
    if not cutoffs or not all(0 <= cutoff <= 1 for cutoff in cutoffs):
        raise FwvizError("the cutoffs must be numbers between 0 and 1, at least one.")
    titles = {"joint": "all tasks together"} | names.task_titles(assembly.recipe.tasks, assembly.pool.card)
    theta = torch.empty_like(assembly.problem.vectors.base, dtype=torch.float32)
    whole = _judged(assembly, "high", 0.0, theta)
    plain = _rows(assembly, whole, titles)
    unfiltered = {row["task"]: row["accuracy"] for row in plain}
    rows: list[dict[str, Any]] = []
    for band in chosen:
        for cutoff in sorted(set(cutoffs)):
            scores = whole if band == "high" and cutoff == 0.0 else _judged(assembly, band, cutoff, theta)
            rows += [
                {"band": band, "cutoff": cutoff, **row, "unfiltered": unfiltered[row["task"]]}
                for row in _rows(assembly, scores, titles)
            ]
            yield pd.DataFrame(rows)


def response(assembly: Assembly, cutoff: float) -> Iterator[pd.DataFrame]:
    """The rows of one cutoff with the fine part kept: first by themselves, then beside the merge without a filter."""
    titles = {"joint": "all tasks together"} | names.task_titles(assembly.recipe.tasks, assembly.pool.card)
    theta = torch.empty_like(assembly.problem.vectors.base, dtype=torch.float32)
    rows = _rows(assembly, _judged(assembly, "high", cutoff, theta), titles)
    table = pd.DataFrame([{"band": "high", "cutoff": cutoff, **row, "unfiltered": math.nan} for row in rows])
    if cutoff:
        yield table
        rows = _rows(assembly, _judged(assembly, "high", 0.0, theta), titles)
    yield table.assign(unfiltered=[row["accuracy"] for row in rows])


def _judged(assembly: Assembly, band: str, cutoff: float, theta: torch.Tensor) -> dict[str, Score]:
    """Merge with one filter and judge; ``theta`` is the buffer to merge in."""
    method = entry("methods", METHOD)
    assert method.settings is not None
    settings = parse_settings(method.settings, {"mode": "paper", "band": band, "cutoff": cutoff})
    with closing(method.run(assembly.problem, settings)) as steps:
        for step in steps:
            if step.inner == 0 and step.delta is not None:
                plus(assembly.problem.vectors.base, step.delta, theta)
    return assembly.evaluator.quick(theta)


def _rows(assembly: Assembly, scores: dict[str, Score], titles: dict[str, str]) -> list[dict[str, Any]]:
    individual = names.individual_accuracy(assembly.recipe.tasks, assembly.pool.card)
    measured = {
        task: (score.accuracy, score.accuracy / individual[task] if individual[task] else math.nan, score.loss)
        for task, score in scores.items()
    }
    joint = tuple(statistics.fmean(values) for values in zip(*measured.values(), strict=True))
    return [
        {"task": task, "task_title": titles[task], "accuracy": values[0], "normalised": values[1], "loss": values[2]}
        for task, values in {"joint": joint, **measured}.items()
    ]
