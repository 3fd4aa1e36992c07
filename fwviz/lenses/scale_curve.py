"""What runs that searched their scale found at each scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from fwviz.registry import entry, lens
from fwviz.runs.trace import Trace

COLUMNS = ["run", "label", "method", "scale", "loss", "accuracy", "chosen"]


@lens("Scale searched", question="How far should the merged task vector reach?")
def scale_curve(traces: Sequence[Trace], *, labels: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Calibration loss and quick validation accuracy over the scale, for each run that searched it.

    Args:
        traces: recorded runs; those whose ``scale_search`` is off are left out.
        labels: run id → what to call it; else the title of its method.

    Returns one row per run × scale, in the order tried: ``run`` (id, else the fingerprint of the recipe), ``label``,
    ``method``, ``scale``, ``loss`` (nats, on the calibration samples: what the search goes by), ``accuracy`` (mean over
    the tasks on the quick part of the validation split, NaN where not judged), ``chosen`` (True for the scale taken).
    """
    rows = []
    for trace in traces:
        if getattr(trace.recipe.method_settings(), "scale_search", "off") == "off":
            continue
        taken = [frame.step_size for frame in trace.iterates()]
        rows += [
            {
                "run": trace.id or trace.recipe.fingerprint(),
                "label": (labels or {}).get(trace.id) or entry("methods", trace.recipe.method).title,
                "method": trace.recipe.method,
                "scale": frame.step_size,
                "loss": frame.loss,
                "accuracy": frame.mean_accuracy,
                "chosen": frame.step_size in taken,
            }
            for frame in trace.frames
            if frame.inner
        ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.astype({"scale": "float64", "loss": "float64", "accuracy": "float64", "chosen": "bool"})
