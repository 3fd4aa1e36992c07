"""The spectra of all checkpoints, from coarse to fine."""

from __future__ import annotations

import pandas as pd

from fwviz.lenses import _names as names
from fwviz.lenses._groups import span
from fwviz.registry import lens
from fwviz.runs.assemble import Assembly
from fwviz.space.spectra import matrices, rings
from fwviz.types import FwvizError


@lens("Radial spectra", question="How do the spectra of the checkpoints differ, from coarse to fine?")
def spectrum_profile(assembly: Assembly, *, group: str = "model", cutoff: float = 0.3, bins: int = 32) -> pd.DataFrame:
    """Mean amplitude and energy of every task vector in rings of equal radial frequency ρ.

    Args:
        assembly: the opened recipe.
        group: "model", a layer or a weight matrix; several matrices count by their coefficients.
        cutoff: of the high-pass filter, in [0, 1].
        bins: rings over ρ in [0, 1].

    Returns one row per checkpoint × ring that holds a coefficient: ``group``, ``matrices`` (how many), ``checkpoint``,
    ``checkpoint_title``, ``task`` (its own, if evaluated; categorical), ``cutoff``, ``ring``, ``low``, ``high`` and
    ``frequency`` (the ring's bounds and middle, ρ), ``amplitude`` (mean, in units of the weights), ``energy`` (Σ of the
    squares), ``share_below`` (share of the checkpoint's energy at ρ < ``high``), ``white`` (the
    same of random numbers), ``removed`` (share of its energy that the filter takes away).

    Source: FREE-Merging, Fig. 2a.
    """
    check(bins, cutoff)
    vectors, card = assembly.problem.vectors, assembly.pool.card
    found = matrices(vectors.layout, *span(vectors.layout, group))
    made = rings(vectors, found, bins=bins, cutoff=cutoff)
    titles = names.checkpoint_titles(vectors.names, card)
    own = names.own_task(vectors.names, assembly.recipe.tasks, card)
    below = made.energy.cumsum(dim=1) / made.energy.sum(dim=1, keepdim=True).clamp(min=1e-300)
    white = made.counts.cumsum(dim=0) / made.counts.sum()
    rows = [
        {
            "group": group,
            "matrices": len(found),
            "checkpoint": name,
            "checkpoint_title": titles[name],
            "task": own[name],
            "cutoff": cutoff,
            "ring": ring,
            "low": ring / bins,
            "high": (ring + 1) / bins,
            "frequency": (ring + 0.5) / bins,
            "amplitude": float(made.amplitude[i, ring]),
            "energy": float(made.energy[i, ring]),
            "share_below": float(below[i, ring]),
            "white": float(white[ring]),
            "removed": 1.0 - float(made.energy_kept[i]),
        }
        for i, name in enumerate(vectors.names)
        for ring in range(bins)
        if made.counts[ring] > 0
    ]
    table = pd.DataFrame(rows)
    return table.assign(task=names.ordered(table["task"], assembly.recipe.tasks))


def check(bins: int, cutoff: float) -> None:
    """Raise FwvizError for a number of rings or a cutoff that means nothing."""
    if not 2 <= bins <= 256:
        raise FwvizError(f"bins is {bins}, but a profile has between 2 and 256 rings.")
    if not 0 <= cutoff <= 1:
        raise FwvizError(f"the cutoff is {cutoff}, but must lie between 0 and 1.")
