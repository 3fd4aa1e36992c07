"""What the oracle wanted, iteration by iteration."""

from __future__ import annotations

import math

import pandas as pd

from fwviz.cards import PoolCard
from fwviz.lenses import _names as names
from fwviz.registry import lens
from fwviz.runs.trace import Trace


@lens("Relevance along the run", question="What did the oracle want, iteration by iteration?")
def lmo_history(trace: Trace, card: PoolCard | None = None) -> pd.DataFrame:
    """The recorded scores ⟨∇ℓ(θ_{t−1}), s_i − θ_{t−1}⟩ that iteration t compared, joint and per task.

    Args:
        trace: a recorded run of a method with an oracle; other methods give no rows.
        card: of the pool, for titles and own checkpoints.

    Returns one row per iteration × scope × checkpoint: ``t`` (from 1), ``scope`` ("joint", then each task),
    ``checkpoint``, ``checkpoint_title``, ``own`` (fine-tuned on this scope's task, or on any task for "joint"),
    ``score`` (summed over groups: nats for a full step, or a sum of cosines where the recipe says
    ``score = tensor_cosine``), ``chosen`` (in any group), ``share`` of the groups that chose it. Vertices that are no
    checkpoints (base, initial) appear in "joint" once they are chosen, their score NaN.
    """
    checkpoints, tasks = trace.checkpoints, trace.tasks
    own = names.own_task(checkpoints, tasks, card)
    titles = names.checkpoint_titles(checkpoints, card)
    frames = [frame for frame in trace.iterates() if frame.scores is not None]
    extras = dict.fromkeys(v for frame in frames for group in frame.vertices for v in group if v not in checkpoints)
    rows = []
    for frame in frames:
        assert frame.scores is not None
        for scope, matrix in [("joint", frame.scores), *((t, m) for t, m in frame.task_scores.items() if t in tasks)]:
            totals = [math.fsum(column) for column in zip(*matrix, strict=True)]
            scored = dict(zip(checkpoints, totals, strict=True))
            if scope == "joint":
                scored |= dict.fromkeys(extras, math.nan)
            for name, score in scored.items():
                picks = sum(name in group for group in frame.vertices)
                rows.append(
                    {
                        "t": frame.t,
                        "scope": scope,
                        "checkpoint": name,
                        "checkpoint_title": titles.get(name, name),
                        "own": own.get(name) is not None if scope == "joint" else own.get(name) == scope,
                        "score": score,
                        "chosen": picks > 0,
                        "share": picks / max(len(frame.vertices), 1),
                    }
                )
    columns = ["t", "scope", "checkpoint", "checkpoint_title", "own", "score", "chosen", "share"]
    return pd.DataFrame(rows, columns=columns)
