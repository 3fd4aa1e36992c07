"""The spectrum of one weight matrix of one checkpoint, as a picture."""

from __future__ import annotations

import pandas as pd
import torch
from torch.nn import functional as F

from fwviz.lenses import _names as names
from fwviz.lenses._groups import span
from fwviz.registry import lens
from fwviz.runs.assemble import Assembly
from fwviz.space.layout import weight_type
from fwviz.space.spectra import matrices
from fwviz.space.spectrum import amplitude_map
from fwviz.types import FwvizError

LARGEST = 128


@lens("Spectrum of a weight matrix", question="At which frequencies did fine-tuning change this weight matrix?")
def spectrum_map(
    assembly: Assembly, *, checkpoint: str = "", tensor: str = "", cutoff: float = 0.3, size: int = 64
) -> pd.DataFrame:
    """log₁₀ |F{τ}| / √(HW) over the whole frequency plane, frequency zero in the middle.

    Args:
        assembly: the opened recipe.
        checkpoint: one of the recipe's; "" is the first.
        tensor: the name of a weight matrix; "" is the first of an MLP.
        cutoff: of the high-pass filter, a radial frequency ρ in [0, 1].
        size: cells along a side at most, up to 128; longer sides average neighbouring amplitudes.

    Returns one row per cell: ``tensor``, ``height``, ``width``, ``checkpoint``, ``checkpoint_title``, ``cutoff``,
    ``fy`` and ``fx`` (units of the Nyquist frequency, −1 to 1; rows and columns of the matrix), ``frequency``
    (ρ = √(fy² + fx²)/√2), ``amplitude`` (log₁₀, in units of the weights), ``kept`` (by the filter).

    Source: FREE-Merging, Fig. 2a and eq. 1.
    """
    vectors = assembly.problem.vectors
    if not 4 <= size <= LARGEST:
        raise FwvizError(f"size is {size}, but the map has between 4 and {LARGEST} cells along a side.")
    if not 0 <= cutoff <= 1:
        raise FwvizError(f"the cutoff is {cutoff}, but must lie between 0 and 1.")
    found = matrices(vectors.layout, *span(vectors.layout, tensor or "model"))
    chosen = next((m for m in found if weight_type(m.name) == "mlp"), found[0])
    name = checkpoint or vectors.names[0]
    if name not in vectors.names:
        raise FwvizError(f"checkpoint {name!r} is not merged here: choose from {', '.join(vectors.names)}.")
    one = vectors.subset([vectors.names.index(name)])
    picture = amplitude_map(one.block(chosen.start, chosen.stop).view(chosen.shape), size).cpu()
    fy, fx = (
        _centres(side, cells).repeat_interleave(repeat) if rows else _centres(side, cells).repeat(repeat)
        for side, cells, repeat, rows in (
            (chosen.shape[0], picture.shape[0], picture.shape[1], True),
            (chosen.shape[1], picture.shape[1], picture.shape[0], False),
        )
    )
    rho = ((fy.square() + fx.square()) / 2).sqrt()
    return pd.DataFrame(
        {
            "tensor": chosen.name,
            "height": chosen.shape[0],
            "width": chosen.shape[1],
            "checkpoint": name,
            "checkpoint_title": names.checkpoint_titles([name], assembly.pool.card)[name],
            "cutoff": cutoff,
            "fy": fy.numpy(),
            "fx": fx.numpy(),
            "frequency": rho.numpy(),
            "amplitude": picture.double().flatten().numpy(),
            "kept": (rho >= cutoff).numpy(),
        }
    )


def _centres(side: int, cells: int) -> torch.Tensor:
    """The mean frequency of each cell, over the same patches that its amplitude is averaged over."""
    frequencies = torch.fft.fftshift(torch.fft.fftfreq(side, 0.5, dtype=torch.float64))
    return F.adaptive_avg_pool1d(frequencies[None, None], cells)[0, 0]
