"""Where merges and their paths lie on a landscape, and how much of the way there the picture cannot show."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from torch import Tensor

from fwviz.lenses import _field as field
from fwviz.lenses._places import locate_runs, with_checkpoints_of
from fwviz.lenses.landscape import plane_of
from fwviz.registry import lens
from fwviz.runs.assemble import Assembly
from fwviz.runs.trace import Trace

COLUMNS = (
    "series",
    "run",
    "label",
    "method",
    "t",
    "x",
    "y",
    "distance",
    "outside",
    "out_of_plane",
    "task",
    "loss",
    "accuracy",
    "final",
)


@lens("Merges on the landscape", question="Where do the merges lie, and what does the picture leave out?")
def landscape_points(
    assembly: Assembly,
    theta: Tensor | None = None,
    traces: Sequence[Trace] = (),
    *,
    models: str = "",
    draw: int = 0,
    rerun: bool = False,
) -> pd.DataFrame:
    """The foot of every iterate of some runs on the plane of ``landscape`` with the same ``models`` and ``draw``.

    Args:
        assembly: the opened recipe, whose pool the runs must be of.
        theta: as given to ``landscape``.
        traces: recorded runs, one-shot merges and paths alike, of any checkpoints of the pool.
        rerun: run a method again for the weights of a merge that is not linear; else such merges are left out.

    Linear merges are placed by inner products of task vectors, without building a weight.

    Returns the base and every checkpoint that is merged (``series`` "model"), and one row per iterate (``series``
    "path"): ``run`` (id), ``label``, ``method``, ``t``, ``x``, ``y`` (L2, as in ``landscape``), ``distance`` from the
    plane's origin, ``outside`` (distance from the plane), ``out_of_plane`` (their ratio in [0, 1]: 0 is in the
    plane; near 1 the colour under the point says little about it), ``task`` ("joint"), ``loss`` (nats) and
    ``accuracy`` (mean over the recipe's tasks of what was measured during the run on 64 validation samples a task; NaN
    if the run was not judged on all of them), ``final`` (the last iterate).
    """
    vectors = with_checkpoints_of(assembly, traces)
    plane = plane_of(assembly, theta, models, draw, vectors=vectors)
    places = locate_runs(assembly, plane, vectors, traces, rerun=rerun)
    titles = field.model_titles(assembly, vectors.names)
    rows = []
    for item in places:
        place = item.place
        shared = {
            "x": place.x,
            "y": place.y,
            "distance": place.distance,
            "outside": place.outside,
            "out_of_plane": place.share,
            "task": field.JOINT,
        }
        if item.frame is None:
            blank = {"series": "model", "run": "", "method": "", "t": math.nan, "loss": math.nan, "accuracy": math.nan}
            rows.append(blank | shared | {"label": titles[item.name], "final": False})
        else:
            rows.append(
                shared
                | {
                    "series": "path",
                    "run": item.trace_id,
                    "label": item.name,
                    "method": item.method,
                    "t": float(item.frame.t),
                    "loss": item.loss,
                    "accuracy": item.accuracy,
                    "final": item.final,
                }
            )
    return pd.DataFrame(rows, columns=list(COLUMNS))
