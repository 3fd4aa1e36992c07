"""Where in the spectrum the checkpoints differ: interference, and what a high-pass filter does to it."""

from __future__ import annotations

import pandas as pd

from fwviz.lenses._groups import span
from fwviz.lenses.spectrum_profile import check
from fwviz.registry import lens
from fwviz.runs.assemble import Assembly
from fwviz.space.spectra import matrices, rings
from fwviz.types import FwvizError


@lens("Interference by frequency", question="At which frequencies do the checkpoints get in each other's way?")
def spectrum_variance(assembly: Assembly, *, group: str = "model", cutoff: float = 0.3, bins: int = 32) -> pd.DataFrame:
    """Variance over the checkpoints of A_k = |F{τ_k}| / √(HW) at each frequency, and what a filter leaves of it.

    The interference is the mean of that variance over the frequencies of each matrix, then over the matrices. A
    high-pass filter sets the amplitudes below its cutoff to zero, and with them their variance.

    Args:
        assembly: the opened recipe, at least two checkpoints.
        group: "model", a layer or a weight matrix.
        cutoff: of the high-pass filter, in [0, 1].
        bins: rings over ρ in [0, 1].

    Returns one row per ring that holds a coefficient: ``group``, ``matrices``, ``checkpoints`` (how many), ``cutoff``,
    ``ring``, ``low``, ``high``, ``frequency`` (ρ), ``coefficients`` (how many), ``variance`` (mean over the ring, units
    of the weights squared), ``interference`` and ``interference_filtered`` (of the whole group), ``ratio`` (their
    quotient), ``energy_kept`` (mean share of a task vector's energy that the filter leaves).

    Source: FREE-Merging, Table 1 (for which no code was released).
    """
    check(bins, cutoff)
    vectors = assembly.problem.vectors
    if vectors.n < 2:
        raise FwvizError("the variance between checkpoints needs at least two of them: choose more.")
    found = matrices(vectors.layout, *span(vectors.layout, group))
    made = rings(vectors, found, bins=bins, cutoff=cutoff)
    rows = [
        {
            "group": group,
            "matrices": len(found),
            "checkpoints": vectors.n,
            "cutoff": cutoff,
            "ring": ring,
            "low": ring / bins,
            "high": (ring + 1) / bins,
            "frequency": (ring + 0.5) / bins,
            "coefficients": int(made.counts[ring]),
            "variance": float(made.variance[ring]),
            "interference": made.interference,
            "interference_filtered": made.kept,
            "ratio": made.kept / made.interference if made.interference > 0 else 1.0,
            "energy_kept": float(made.energy_kept.mean()),
        }
        for ring in range(bins)
        if made.counts[ring] > 0
    ]
    return pd.DataFrame(rows)
