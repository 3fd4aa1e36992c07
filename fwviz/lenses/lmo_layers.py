"""What the gradient wants in every layer: the table behind the layer-wise oracle."""

from __future__ import annotations

import pandas as pd
from torch import Tensor

from fwviz.lenses import _names as names
from fwviz.lenses._slopes import point, slopes
from fwviz.registry import lens
from fwviz.runs.assemble import Assembly
from fwviz.types import FwvizError, Granularity, LossName


@lens("Relevance layer by layer", question="Does every layer want the same checkpoint?")
def lmo_layers(
    assembly: Assembly,
    theta: Tensor | None = None,
    *,
    granularity: Granularity = "layer",
    task: str = "joint",
    loss: LossName = "cross_entropy",
) -> pd.DataFrame:
    """⟨∇_g ℓ(θ), θ_i,g − θ_g⟩ for every group and checkpoint, of the joint loss or of one task. One backward pass.

    Args:
        assembly: the opened recipe.
        theta: the merged weights (P,); None is the base.
        granularity: groups are layers or tensors (or the whole model).
        task: "joint" is the mean over the recipe's tasks, else one of them.

    Returns one row per group × checkpoint: ``task``, ``group``, ``group_index`` (input to output), ``layer`` the group
    lies in, ``size`` (parameters), ``checkpoint``, ``checkpoint_title``, ``score`` (nats for a full step of this group
    alone; the scores of a checkpoint sum to its model-wise score), ``cosine`` (the released code's), ``chosen`` (the
    lowest score of the group, if it is negative: where nothing promises a lower loss, nothing is chosen).

    Source: FW-Merging, eq. 10.
    """
    problem, tasks = assembly.problem, assembly.recipe.tasks
    if task != "joint" and task not in tasks:
        raise FwvizError(f"task {task!r} is not evaluated here: choose joint or one of {', '.join(tasks)}.")
    at, groups = point(problem, theta), problem.groups(granularity)
    titles = names.checkpoint_titles(problem.vectors.names, assembly.pool.card)
    chosen_tasks = tasks if task == "joint" else [task]
    _, gradient = problem.objective.gradient(at, tasks=chosen_tasks, loss=loss)
    scores, _ = slopes(problem, gradient, at, groups)
    cosines = problem.vectors.cosines(gradient, groups)
    best = scores.argmin(dim=1).tolist()
    layers = dict(zip(problem.vectors.layout.offsets, problem.vectors.layout.layers, strict=False))
    rows = [
        {
            "task": task,
            "group": group,
            "group_index": g,
            "layer": layers[start] if granularity != "model" else "model",
            "size": stop - start,
            "checkpoint": name,
            "checkpoint_title": titles[name],
            "score": float(scores[g, i]),
            "cosine": float(cosines[g, i]),
            "chosen": best[g] == i and float(scores[g, i]) < 0,
        }
        for g, (group, (start, stop)) in enumerate(zip(groups.names, groups.ranges(), strict=True))
        for i, name in enumerate(problem.vectors.names)
    ]
    return pd.DataFrame(rows)
