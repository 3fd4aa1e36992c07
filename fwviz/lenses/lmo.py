"""What the gradient of each task wants: the linear approximation towards every checkpoint."""

from __future__ import annotations

import pandas as pd
from torch import Tensor

from fwviz.lenses import _names as names
from fwviz.lenses._slopes import point, slopes
from fwviz.registry import lens
from fwviz.runs.assemble import Assembly
from fwviz.types import LossName


@lens("Relevance of every checkpoint", question="Which checkpoints does the gradient of each task want?")
def lmo(assembly: Assembly, theta: Tensor | None = None, *, loss: LossName = "cross_entropy") -> pd.DataFrame:
    """⟨∇ℓ_task(θ), θ_i − θ⟩ for every task and vertex, at any θ. One backward pass per task.

    Args:
        assembly: the opened recipe; its tasks and checkpoints are the rows.
        theta: the merged weights (P,); None is the base.
        loss: calibration loss whose gradient is taken.

    Returns one row per task × vertex: ``task``, ``task_title``, ``checkpoint`` ("base" for the base, listed only
    where θ is not the base), ``checkpoint_title``, ``kind``, ``own`` (fine-tuned on this task), ``score`` (nats for
    a full step), ``cosine`` (the released code's score: sum over tensors of cos(∇_p, θ_i,p) with raw weights; NaN for
    the base), ``rank`` (1 = most wanted), ``chosen`` (rank 1 and negative), ``loss`` (the task's loss at θ, nats).

    Source: FW-Merging, eq. 7 and Fig. 3.
    """
    problem, card, tasks = assembly.problem, assembly.pool.card, assembly.recipe.tasks
    checkpoints = problem.vectors.names
    at, groups = point(problem, theta), problem.groups("model")
    task_titles, titles = names.task_titles(tasks, card), names.checkpoint_titles(checkpoints, card)
    own, kinds = names.own_task(checkpoints, tasks, card), names.kinds(checkpoints, card)
    rows = []
    for task in tasks:
        losses, gradient = problem.objective.gradient(at, tasks=[task], loss=loss)
        scores, base = slopes(problem, gradient, at, groups)
        cosines = problem.vectors.cosines(gradient, groups)[0].tolist()
        shared = {"task": task, "task_title": task_titles[task], "loss": float(losses[0])}
        for name, score, cosine in zip(checkpoints, scores[0].tolist(), cosines, strict=True):
            mine = {"checkpoint": name, "checkpoint_title": titles[name], "kind": kinds[name], "own": own[name] == task}
            rows.append(shared | mine | {"score": score, "cosine": cosine})
        if theta is not None:
            vertex = {"checkpoint": "base", "checkpoint_title": "base", "kind": "base", "own": False}
            rows.append(shared | vertex | {"score": float(base[0]), "cosine": float("nan")})
    table = pd.DataFrame(rows)
    table["rank"] = table.groupby("task", sort=False)["score"].rank(method="first").astype(int)
    table["chosen"] = (table["rank"] == 1) & (table["score"] < 0)
    columns = [
        "task",
        "task_title",
        "checkpoint",
        "checkpoint_title",
        "kind",
        "own",
        "score",
        "cosine",
        "rank",
        "chosen",
        "loss",
    ]
    return table[columns]
