"""Do checkpoints that differ more in frequency merge worse? Many random sub-pools."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import pandas as pd
import torch

from fwviz.lenses import _names as names
from fwviz.lenses._groups import span
from fwviz.registry import lens
from fwviz.runs.assemble import Assembly
from fwviz.space.spectra import amplitude_products, matrices, subset_interference
from fwviz.types import FwvizError


@lens("Interference and accuracy", question="Do checkpoints that differ more in frequency merge worse?")
def variance_accuracy(
    assembly: Assembly, *, count: int = 24, size: int = 3, scale: float = 0.3, seed: int = 0
) -> pd.DataFrame:
    """Random sub-pools of one size, merged by task arithmetic: their interference against what the merge achieves.

    Args:
        assembly: the opened recipe; sub-pools are drawn from its checkpoints.
        count: sub-pools at most; fewer where there are not so many.
        size: checkpoints in each. All have the same size, because larger pools differ and lose more for other reasons.
        scale: coefficient of every task vector.
        seed: of the draw.

    Costs one pass over the checkpoints, then one merge and one quick evaluation (validation) per sub-pool.

    Returns one row per sub-pool: ``subpool``, ``planned`` (how many there will be), ``checkpoints`` (ids with spaces
    between them), ``size``, ``variance`` (the interference of Table 1: variance of the amplitudes over the sub-pool,
    mean over frequencies and matrices, units of the weights squared), ``accuracy`` and ``normalised`` (by the
    individual accuracy), both means over the evaluated tasks that the sub-pool has a checkpoint of.

    Source: FREE-Merging, Fig. 2b and appendix D.1.
    """
    made = list(subpools(assembly, count=count, size=size, scale=scale, seed=seed))
    return pd.concat(made, ignore_index=True)


def subpools(
    assembly: Assembly, *, count: int = 24, size: int = 3, scale: float = 0.3, seed: int = 0
) -> Iterator[pd.DataFrame]:
    """The rows of :func:`variance_accuracy`, one at a time. Close it to stop."""
    problem = assembly.problem
    vectors = problem.vectors
    individual = names.individual_accuracy(assembly.recipe.tasks, assembly.pool.card)
    owners = [problem.owner(i) if individual.get(problem.owner(i)) else "" for i in range(vectors.n)]
    if not any(owners):
        raise FwvizError("no checkpoint belongs to an evaluated task of known individual accuracy: choose other tasks.")
    if not 2 <= size < vectors.n:
        raise FwvizError(f"sub-pools of {size} out of {vectors.n} checkpoints do not differ: choose from 2 to n − 1.")
    if not 1 <= count <= 1000:
        raise FwvizError(f"the number of sub-pools is {count}, but must be from 1 to 1000.")
    found = matrices(vectors.layout, *span(vectors.layout, "model"))
    products = amplitude_products(vectors, found)
    drawn = _drawn(owners, count, size, seed)
    groups = problem.groups("model")
    theta = torch.empty_like(vectors.base, dtype=torch.float32)
    for k, rows in enumerate(drawn):
        coefficients = torch.zeros(1, vectors.n)
        coefficients[0, rows] = scale
        scores = assembly.evaluator.quick(vectors.combine(coefficients, groups, out=theta))
        tasks = sorted({owners[i] for i in rows if owners[i]})
        accuracy = [scores[task].accuracy for task in tasks]
        yield pd.DataFrame(
            [
                {
                    "subpool": k,
                    "planned": len(drawn),
                    "checkpoints": " ".join(vectors.names[i] for i in rows),
                    "size": size,
                    "variance": subset_interference(products, rows),
                    "accuracy": sum(accuracy) / len(tasks),
                    "normalised": sum(a / individual[t] for a, t in zip(accuracy, tasks, strict=True)) / len(tasks),
                }
            ]
        )


def _drawn(owners: list[str], count: int, size: int, seed: int) -> list[list[int]]:
    """Different sets of rows, each with a checkpoint of an evaluated task, in an order fixed by the seed."""
    generator = random.Random(seed)
    useless = owners.count("")
    possible = math.comb(len(owners), size) - math.comb(useless, size)
    seen: dict[tuple[int, ...], None] = {}
    while len(seen) < min(count, possible):
        rows = tuple(sorted(generator.sample(range(len(owners)), size)))
        if any(owners[i] for i in rows):
            seen.setdefault(rows)
    return [list(rows) for rows in seen]
