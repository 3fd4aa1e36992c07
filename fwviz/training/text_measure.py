"""What the text pool shows, measured through the product itself: accuracies, and the card's list of phenomena."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fwviz.pools.open import open_pool
from fwviz.runs.assemble import Assembly, assemble, default_fingerprint, pool_fingerprint
from fwviz.runs.recipe import Recipe
from fwviz.types import Split

log = logging.getLogger(__name__)

SCALES = (0.3, 0.5, 0.7, 1.0)
HELD_OUT: tuple[Split, ...] = ("validation", "test")


def _assembly(folder: Path, checkpoints: Sequence[str], tasks: Sequence[str]) -> Assembly:
    card = open_pool(str(folder)).card
    values = {"pool": str(folder), "checkpoints": tuple(checkpoints), "tasks": tuple(tasks), "method": "weight_average"}
    return assemble(Recipe.from_dict(values, card))


def accuracies(folder: Path, card: dict[str, Any], cache: Path) -> None:
    """Fill in the base's accuracy on every task and every checkpoint's on its own, on validation and test.

    ``cache`` is a JSON file of what was measured before, by the hashes of weights and data.
    """
    tasks = {task["id"]: task for task in card["tasks"]}

    def measured(checkpoint: dict[str, Any], task: dict[str, Any], share: float) -> dict[str, float]:
        weights = checkpoint["sha256"] if share else card["base"]["sha256"]
        key = ":".join([weights, *(task["splits"][split]["sha256"] for split in HELD_OUT)])

        def measure() -> dict[str, float]:
            made = _assembly(folder, [checkpoint["id"]], [task["id"]])
            theta = made.problem.vectors.base + share * made.problem.vectors.vector(0)
            scores = {split: made.evaluator.full(theta, split=split)[task["id"]] for split in HELD_OUT}
            found: dict[str, float] = {split: round(score.accuracy, 4) for split, score in scores.items()}
            log.info("%s on %s: %s", checkpoint["id"] if share else "base", task["id"], found)
            return found

        return dict(_remembered(cache, key, measure))

    for entry in card["checkpoints"]:
        task = tasks[entry["task"]]
        entry["accuracy"] = measured(entry, task, 1.0)
        if entry["kind"] == "own":
            task["accuracy"] = {"base": measured(entry, task, 0.0), "individual": dict(entry["accuracy"])}


def phenomena(folder: Path, tasks: Sequence[str], cache: Path) -> list[dict[str, Any]]:
    """Whether the pool shows what the papers report, with the numbers that say so; ``cache`` as for accuracies."""
    key = f"phenomena:{pool_fingerprint(open_pool(str(folder)).card)}"
    found: list[dict[str, Any]] = _remembered(cache, key, lambda: _phenomena(folder, tasks))
    return found


def _remembered(cache: Path, key: str, measure: Callable[[], Any]) -> Any:
    known = json.loads(cache.read_text()) if cache.is_file() else {}
    if key not in known:
        known[key] = measure()
        cache.write_text(json.dumps(known))
    return known[key]


def _phenomena(folder: Path, tasks: Sequence[str]) -> list[dict[str, Any]]:
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


HARD = ("FW-hard, layer-wise, official steps", 100)
# A claim, where it stands, the rows (label, samples per task) it compares, and the points it is seen, or partly, from.
CLAIMS: tuple[tuple[str, str, tuple[str, int], tuple[str, int], float, float], ...] = (
    ("Layer-wise FW-hard from task arithmetic is above task arithmetic (paper: by 4.6 points)", "FW-Merging, table 1",
     HARD, ("task arithmetic", 100), 2.0, 0.5),
    ("Task arithmetic is above TIES on language (paper: by 16.5 points)", "FW-Merging, table 1",
     ("task arithmetic", 100), ("TIES", 100), 2.0, 0.5),
    ("FW-hard is above TIES (paper: by 21.1 points)", "FW-Merging, table 1", HARD, ("TIES", 100), 2.0, 0.5),
    ("FW-hard is above AdaMerging (paper: by 5.9 points)", "FW-Merging, table 4", HARD, ("AdaMerging", 100), 2.0, 0.5),
    ("Choosing per layer is better than for the whole model (paper: by 7.2 points)", "FW-Merging, table 5",
     HARD, ("FW-hard, model-wise, official steps", 100), 2.0, 0.5),
    ("FW-hard needs few samples: 25 per task do what 100 do", "FW-Merging, supplement, figure 1",
     ("FW-hard, layer-wise, official steps", 25), HARD, -1.5, -3.0),
)  # fmt: skip


def bench_phenomena(folder: Path, csv: Path) -> list[dict[str, Any]]:
    """What ``fwviz bench language`` found on the pool in ``folder``: an entry of its card per claim it has rows for."""
    import pandas as pd

    rows = pd.read_csv(csv)
    rows = rows[rows["pool"] == default_fingerprint(open_pool(str(folder)).card)]
    scores = rows.groupby(["variant", "samples"])["normalised"].mean().mul(100).to_dict()
    steps = rows.groupby(["variant", "samples"])["steps"].max().to_dict()

    def said(row: tuple[str, int]) -> str:
        taken = f", {steps[row]} steps" if steps[row] else ""
        return f"{row[0]} {scores[row]:.1f} ({row[1]} samples per task{taken})"

    return [
        _entry(
            claim, paper, scores[first] - scores[second], seen, partly,
            f"normalised score in %, default checkpoints on default tasks: {said(first)}, {said(second)}",
        )
        for claim, paper, first, second, seen, partly in CLAIMS
        if first in scores and second in scores
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
