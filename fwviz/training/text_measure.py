"""What the text pool shows, measured through the product itself: accuracies, and the card's list of phenomena."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fwviz.pools.open import open_pool
from fwviz.runs.assemble import Assembly, assemble, default_fingerprint
from fwviz.runs.recipe import Recipe
from fwviz.types import FwvizError, Split

SCALES = (0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
HELD_OUT: tuple[Split, ...] = ("validation", "test")


def _assembly(folder: Path, checkpoints: Sequence[str], tasks: Sequence[str]) -> Assembly:
    card = open_pool(str(folder)).card
    values = {"pool": str(folder), "checkpoints": tuple(checkpoints), "tasks": tuple(tasks), "method": "weight_average"}
    return assemble(Recipe.from_dict(values, card))


def accuracies(folder: Path, card: dict[str, Any]) -> None:
    """Fill in the base's accuracy on every task and every checkpoint's on its own, on validation and test."""
    names = [entry["id"] for entry in card["checkpoints"]]
    made = _assembly(folder, names, [task["id"] for task in card["tasks"]])
    vectors = made.problem.vectors
    base = {split: made.evaluator.full(vectors.base, split=split) for split in HELD_OUT}
    for task in card["tasks"]:
        task["accuracy"]["base"] = {split: round(base[split][task["id"]].accuracy, 4) for split in HELD_OUT}
    for i, entry in enumerate(card["checkpoints"]):
        judge = _assembly(folder, [entry["id"]], [entry["task"]])
        theta = vectors.base + vectors.vector(i)
        scores = {split: judge.evaluator.full(theta, split=split)[entry["task"]] for split in HELD_OUT}
        entry["accuracy"] = {split: round(score.accuracy, 4) for split, score in scores.items()}
        if entry["kind"] == "own":
            task = next(task for task in card["tasks"] if task["id"] == entry["task"])
            task["accuracy"]["individual"] = dict(entry["accuracy"])


def phenomena(folder: Path, tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Whether the pool shows what the papers report, with the numbers that say so."""
    card = open_pool(str(folder)).card
    order = [*tasks, *(c.id for c in card.checkpoints if c.id not in tasks)]
    made = _assembly(folder, order, tasks)
    vectors, evaluator = made.problem.vectors, made.evaluator
    groups = made.problem.groups("model")

    def mean(coefficients: Sequence[float], split: Split) -> float:
        theta = vectors.combine(torch.tensor([list(coefficients)]), groups)
        return float(np.mean([score.accuracy for score in evaluator.full(theta, split=split).values()]))

    def equal(size: int, value: float) -> list[float]:
        return [value] * size + [0.0] * (vectors.n - size)

    four = len(tasks)
    by_scale = {scale: mean(equal(four, scale), "validation") for scale in SCALES}
    scale = max(by_scale, key=lambda s: (by_scale[s], -s))
    zero, merged = mean(equal(four, 0.0), "test"), mean(equal(four, scale), "test")
    individual = float(np.mean([card.task(task).accuracy["individual"]["test"] for task in tasks]))
    recovered = (merged - zero) / (individual - zero)
    sizes = [four, vectors.n]
    averaged = [mean(equal(size, 1 / size), "test") for size in sizes]
    added = [mean(equal(size, 0.3), "test") for size in sizes]
    gain = individual - zero
    first = _own_first(folder, order)
    own = len(card.tasks)
    vector = torch.stack([vectors.vector(i) for i in range(vectors.n)])
    unit = torch.nn.functional.normalize(vector, dim=1)
    cosines = (unit @ unit.T)[~torch.eye(vectors.n, dtype=torch.bool)]
    return [
        _entry(
            "Task arithmetic recovers most of what the single checkpoints gained", "Ilharco et al. 2023",
            recovered, 0.6, 0.4,
            f"share of (individual - base) on the default tasks, test: {recovered:.2f}; base {zero:.3f}, merged "
            f"{merged:.3f} at scale {scale}, individual {individual:.3f}",
        ),
        _entry(
            "Averaging falls as irrelevant checkpoints join", "FW-Merging, figure 1",
            (averaged[0] - averaged[-1]) / gain, 0.25, 0.1, _numbers("averaged", sizes, averaged),
        ),
        _entry(
            "Task arithmetic at scale 0.3 falls as irrelevant checkpoints join", "FW-Merging, figure 1",
            (added[0] - added[-1]) / gain, 0.25, 0.1, _numbers("added", sizes, added),
        ),
        _entry(
            "The linear minimisation oracle picks the task's own checkpoint", "FW-Merging, section 4",
            first / own, 0.9, 0.6,
            f"at the base, on calibration rows: own checkpoint first in {first} of {own} tasks, out of {vectors.n}",
        ),
        _entry(
            "Task vectors are nearly orthogonal", "Ilharco et al. 2023, figure 5",
            1 - float(cosines.abs().mean()), 0.85, 0.7,
            f"mean |cosine| {cosines.abs().mean():.3f}, largest {cosines.max():.3f}",
        ),
    ]  # fmt: skip


def bench_phenomena(folder: Path, csv: Path) -> list[dict[str, Any]]:
    """What ``fwviz bench language`` found on the pool in ``folder``, as entries of its card; differences in points.

    Raises:
        FwvizError: the table is of another pool, or lacks a row.
    """
    import pandas as pd

    rows = pd.read_csv(csv)
    rows = rows[rows["pool"] == default_fingerprint(open_pool(str(folder)).card)]
    scores = rows.groupby(["variant", "samples"])["normalised"].mean().mul(100)

    def score(label: str, samples: int = 100) -> float:
        if (label, samples) not in scores.index:
            raise FwvizError(
                f"{csv} has no row {label!r} of {samples} samples for this pool: run fwviz bench language."
            )
        return float(scores[label, samples])

    hard, wise = "FW-hard, layer-wise", "FW-hard, model-wise"
    arithmetic, ties, ada = score("task arithmetic"), score("TIES"), score("AdaMerging")
    searched = score("task arithmetic, scale searched")
    curve = [(int(n), float(value)) for n, value in scores[hard].sort_index().items()]
    best = score(hard)
    said = "normalised score, 8 checkpoints on 4 tasks, 100 samples per task"
    return [
        _entry(
            "Layer-wise FW-hard from task arithmetic is above task arithmetic (paper: by 4.6 points)",
            "FW-Merging, table 1", best - arithmetic, 2.0, 0.5,
            f"{said}: {best:.1f} against {arithmetic:.1f} at scale 0.3 and {searched:.1f} at the scale that fits best",
        ),
        _entry(
            "Task arithmetic is above TIES on language (paper: by 16.5 points)", "FW-Merging, table 1",
            arithmetic - ties, 2.0, 0.5, f"{said}: {arithmetic:.1f} against {ties:.1f}, both with their default scales",
        ),
        _entry(
            "FW-hard is above AdaMerging (paper: by 5.9 points)", "FW-Merging, table 4",
            best - ada, 2.0, 0.5, f"{said}: {best:.1f} against {ada:.1f}",
        ),
        _entry(
            "Choosing per layer is better than for the whole model (paper: by 7.2 points)", "FW-Merging, table 5",
            best - score(wise), 2.0, 0.5, f"{said}: {best:.1f} against {score(wise):.1f}",
        ),
        _entry(
            "FW-hard needs few samples: 25 per task do what 100 do", "FW-Merging, supplement, figure 1",
            score(hard, 25) - best, -1.5, -3.0,
            "normalised score of layer-wise FW-hard by samples per task: "
            + ", ".join(f"{n}: {value:.1f}" for n, value in curve),
        ),
    ]  # fmt: skip


def _own_first(folder: Path, order: Sequence[str]) -> int:
    """For how many tasks the task's own checkpoint has the lowest score at the base."""
    card = open_pool(str(folder)).card
    made = _assembly(folder, order, [task.id for task in card.tasks])
    vectors, groups = made.problem.vectors, made.problem.groups("model")
    first = 0
    for task in card.tasks:
        _, gradient = made.problem.objective.gradient(vectors.base, tasks=[task.id])
        best = vectors.names[int(vectors.scores(gradient, groups)[0].argmin())]
        first += card.checkpoint(best).kind == "own" and card.checkpoint(best).task == task.id
    return first


def _numbers(what: str, sizes: Sequence[int], values: Sequence[float]) -> str:
    numbers = ", ".join(f"{size}: {value:.3f}" for size, value in zip(sizes, values, strict=True))
    return f"mean test accuracy on the default tasks by number {what}: {numbers}"


def _entry(name: str, paper: str, value: float, seen: float, partly: float, evidence: str) -> dict[str, Any]:
    verdict = True if value >= seen else ("partly" if value >= partly else False)
    return {"name": name, "paper": paper, "seen": verdict, "evidence": evidence}
