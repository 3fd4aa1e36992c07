"""The Frank-Wolfe gap and the calibration loss along a run."""

from __future__ import annotations

import pandas as pd

from fwviz.registry import lens
from fwviz.runs.trace import Trace


@lens("Gap and loss", question="How much could any checkpoint still give?")
def gap(trace: Trace) -> pd.DataFrame:
    """Gap g_t = max_s ⟨−∇ℓ(θ_t), s − θ_t⟩ and loss ℓ(θ_t) of every completed iterate.

    Returns one row per iterate: ``index`` (frame), ``t``, ``gap`` and ``loss`` (nats, NaN where the method gives none),
    ``step_size``, ``vertices`` (what was moved to, as text), ``in_hull`` (None if unknown: outside, the gap certifies
    nothing), ``seconds``.
    """
    rows = [
        {
            "index": frame.index,
            "t": frame.t,
            "gap": frame.gap,
            "loss": frame.loss,
            "step_size": frame.step_size,
            "vertices": ", ".join(dict.fromkeys(name for group in frame.vertices for name in group)),
            "in_hull": frame.in_hull,
            "seconds": frame.seconds,
        }
        for frame in trace.iterates()
    ]
    table = pd.DataFrame(rows, columns=["index", "t", "gap", "loss", "step_size", "vertices", "in_hull", "seconds"])
    return table.astype({"gap": "float64", "loss": "float64", "step_size": "float64", "in_hull": "object"})
