"""Weight matrices as two-dimensional signals: frequencies, filters, spectra (FREE-Merging, 2024, §4 and eq. 1–2).

Real matrices have symmetric spectra, F[−k] = conj F[k], so everything works on the half (H, W // 2 + 1) that rfft2
returns. The columns left out are counted by weights: 2 for a column whose mirror image is missing, 1 for the others.
Functions of matrices take stacks (…, H, W) as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fwviz.space.wide import home
from fwviz.types import FwvizError


class RadialProfile(NamedTuple):
    """A spectrum by distance from frequency zero, in ``bins`` rings of equal width over ρ in [0, 1].

    ``edges`` (bins + 1,); ``counts`` (bins,) coefficients of the full spectrum in each ring; ``mean`` (bins,) their
    mean amplitude, NaN in an empty ring; ``energy`` (bins,) the sum of their squares, whose total is Σ x².
    """

    edges: Tensor
    counts: Tensor
    mean: Tensor
    energy: Tensor


# --- frequencies --------------------------------------------------------------------------------


def radial_frequency(height: int, width: int, *, half: bool = True, device: torch.device | str = "cpu") -> Tensor:
    """ρ = √(f_y² + f_x²) / √2 with f in [0, 1] of the Nyquist frequency, in the order of rfft2 (or fft2).

    The same ρ means the same fineness whatever the shape: 0 is the mean of the matrix, 1 the checkerboard, reached only
    where both sides are even.

    Returns: (H, W // 2 + 1) float64, or (H, W) unless ``half``.
    """
    return _square_frequency(height, width, half=half, device=device).mul_(0.5).sqrt_()


def half_weights(width: int, *, device: torch.device | str = "cpu") -> Tensor:
    """How many columns of the full spectrum each column of the half spectrum stands for: (W // 2 + 1,) float64."""
    weights = torch.full((width // 2 + 1,), 2.0, dtype=torch.float64, device=device)
    weights[0] = 1.0
    if width % 2 == 0:
        weights[-1] = 1.0
    return weights


def _square_frequency(height: int, width: int, *, half: bool, device: torch.device | str) -> Tensor:
    """f_y² + f_x², exact where f is a short fraction, so that a cutoff of 0.5 is met by f = (0.5, 0.5)."""
    rows = torch.fft.fftfreq(height, 0.5, dtype=torch.float64, device=device)
    columns = torch.fft.rfftfreq if half else torch.fft.fftfreq
    return rows.square()[:, None] + columns(width, 0.5, dtype=torch.float64, device=device).square()


# --- filters ------------------------------------------------------------------------------------


def high_pass(matrix: Tensor, cutoff: float) -> Tensor:
    """F⁻¹{1[ρ ≥ cutoff] · F{matrix}}: what is at least as fine as the cutoff; everything at cutoff 0.

    matrix (…, H, W) real → a new one of its shape and dtype. FREE-Merging, eq. 1–2.
    """
    return band_pass(matrix, cutoff, math.inf)


def low_pass(matrix: Tensor, cutoff: float) -> Tensor:
    """F⁻¹{1[ρ < cutoff] · F{matrix}}: the rest of :func:`high_pass`, so that low + high = matrix."""
    return band_pass(matrix, 0.0, cutoff)


def band_pass(matrix: Tensor, low: float, high: float) -> Tensor:
    """F⁻¹{1[low ≤ ρ < high] · F{matrix}}, between :func:`low_pass` of ``low`` and :func:`high_pass` of ``high``."""
    if low <= 0 and high > 1:
        return matrix.clone()
    spectrum = torch.fft.rfft2(_real(matrix))
    square = _square_frequency(*matrix.shape[-2:], half=True, device=home(matrix.device))
    spectrum.masked_fill_(((square < 2 * low * low) | (square >= 2 * high * high)).to(matrix.device), 0.0)
    return torch.fft.irfft2(spectrum, s=matrix.shape[-2:]).to(matrix.dtype)


def official_high_pass(matrix: Tensor, ratio: float, *, side: str = "min") -> Tensor:
    """The "high-pass" filter of the released FREE-Merging code: the sum of its low and its band component.

    F⁻¹{M · F{matrix}}, real part, where the spectrum is *not* shifted, d is the distance of the index (y, x) from
    (H // 2, W // 2), and M = 1[d ≤ r] + 1[r ≤ d ≤ R] with r = min(H, W) // 10 and R = ratio · min(H, W) (or max).
    Its quirks, kept: the centre of an unshifted spectrum is the highest frequency, so that it is indeed high
    frequencies that stay; R is measured in indices, so that square matrices keep nearly everything and long ones lose
    most of their longer axis; the ring d = r counts twice.

    Args:
        matrix: (…, H, W), real.
        ratio: 0.7 for vision, 0.6 of the longer side for RoBERTa, 0.9 for language models.
        side: "min" or "max", the side that ``ratio`` is a share of.
    """
    height, width = matrix.shape[-2:]
    y = torch.arange(height, device=home(matrix.device)) - height // 2
    x = torch.arange(width, device=home(matrix.device)) - width // 2
    square = (y.square()[:, None] + x.square()).to(torch.float64)
    inner = min(height, width) // 10
    outer = ratio * (min(height, width) if side == "min" else max(height, width))
    near, far = square <= inner * inner, square <= outer * outer
    mask = near.to(torch.float64) + (far & (square >= inner * inner))
    # The real part of a filtered real signal is that of the filter averaged with its mirror image M[−k], which differs
    # from M where a side is odd. The average is symmetric, so that half a spectrum is enough.
    mirrored = mask.flip(0, 1).roll((1, 1), (0, 1))
    half = (0.5 * (mask + mirrored))[:, : width // 2 + 1].to(matrix)
    spectrum = torch.fft.rfft2(_real(matrix)).mul_(half)
    return torch.fft.irfft2(spectrum, s=(height, width)).to(matrix.dtype)


def _real(matrix: Tensor) -> Tensor:
    """In a precision there is a transform for."""
    return matrix if matrix.dtype in (torch.float32, torch.float64) else matrix.float()


# --- spectra ------------------------------------------------------------------------------------


def amplitude(matrix: Tensor) -> Tensor:
    """|rfft2(matrix)| / √(HW): (…, H, W) → (…, H, W // 2 + 1). Its weighted sum of squares is Σ x² (Parseval)."""
    return torch.fft.rfft2(_real(matrix), norm="ortho").abs()


def amplitude_map(matrix: Tensor, size: int = 128) -> Tensor:
    """log₁₀ of the amplitude over the full plane, frequency zero in the middle, for the eye.

    Sides beyond ``size`` are reduced by averaging amplitudes over even patches before the logarithm. Amplitudes below
    1e-12 of the largest are raised to it.

    matrix (H, W) → (min(H, size), min(W, size)).
    """
    full = torch.fft.fftshift(torch.fft.fft2(_real(matrix), norm="ortho").abs())
    small = F.adaptive_avg_pool2d(full[None], (min(full.shape[0], size), min(full.shape[1], size)))[0]
    floor = max(1e-12 * float(small.max()), torch.finfo(small.dtype).tiny)
    return small.clamp(min=floor).log10()


def radial_profile(amplitude: Tensor, width: int, bins: int = 32) -> RadialProfile:
    """Mean amplitude and energy of a spectrum in rings of equal width.

    Args:
        amplitude: half spectrum (H, W // 2 + 1), see :func:`amplitude`.
        width: W, whose parity the half spectrum does not tell.
        bins: rings over ρ in [0, 1]; ring b is [b / bins, (b + 1) / bins), the last one closed.
    """
    rho, weights = _half_plane(amplitude, width)
    ring = rho.mul(bins).floor_().clamp_(max=bins - 1).long().flatten()

    def total(values: Tensor) -> Tensor:
        return torch.zeros(bins, dtype=torch.float64, device=ring.device).index_add_(0, ring, values.flatten())

    values = amplitude.double()
    counts = total(weights)
    return RadialProfile(
        edges=torch.linspace(0.0, 1.0, bins + 1, dtype=torch.float64),
        counts=counts,
        mean=total(weights * values) / counts,
        energy=total(weights * values.square()),
    )


def energy_share_below(amplitude: Tensor, width: int, cutoffs: Tensor) -> Tensor:
    """Share of Σ x² at ρ < cutoff: what :func:`low_pass` keeps of it, 0 for a spectrum of zeros.

    Args: amplitude (H, W // 2 + 1); width W; cutoffs (C,). Returns: (C,) float64 in [0, 1].
    """
    rho, weights = _half_plane(amplitude, width)
    order = rho.flatten().argsort()
    energy = (weights * amplitude.double().square()).flatten()[order].cumsum(0)
    below = torch.searchsorted(rho.flatten()[order], cutoffs.to(rho.device, torch.float64))
    padded = torch.cat([energy.new_zeros(1), energy])
    return padded[below] / energy[-1].clamp(min=torch.finfo(torch.float64).tiny)


def _half_plane(amplitude: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """ρ and weights of every coefficient of a half spectrum, both (H, W // 2 + 1)."""
    if amplitude.dim() != 2 or amplitude.shape[1] != width // 2 + 1:
        raise ValueError(f"{tuple(amplitude.shape)} is not the half spectrum of a matrix of width {width}")
    rho = radial_frequency(amplitude.shape[0], width, device=amplitude.device)
    return rho, half_weights(width, device=amplitude.device).expand_as(rho)


# --- how much models differ ---------------------------------------------------------------------


def variance_between(models: Iterable[Mapping[str, Tensor]]) -> dict[str, float]:
    """How much the amplitude spectra of several models differ, per matrix: the quantity of FREE-Merging's Table 1.

    For every matrix, A_k = |rfft2(τ_k)| / √(HW); the variance (÷ K) of A_k over the models k at each frequency; its
    mean over the frequencies of the full plane. The mean over matrices is the table's number. No code for it was
    released: compare by ratio.

    Models are read one after the other, so a generator bounds memory to one model beside a running mean and variance.

    Args:
        models: for each model, name → matrix (H, W) of its task vector; the same names in each.

    Raises:
        FwvizError: fewer than two models.
    """
    means: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    count = 0
    for count, model in enumerate(models, 1):
        if count == 1:
            for name, matrix in model.items():
                means[name] = torch.zeros_like(amplitude(matrix))
                squares[name] = torch.zeros_like(means[name])
                weights[name] = half_weights(matrix.shape[-1], device=matrix.device)
        for name, mean in means.items():
            # Welford's update: no difference of large sums.
            spectrum = amplitude(model[name])
            before = spectrum - mean
            mean.add_(before, alpha=1 / count)
            squares[name].addcmul_(before, spectrum.sub_(mean))
    if count < 2:
        raise FwvizError("the variance between models needs at least two of them: choose more checkpoints.")
    return {
        name: float(
            (squares[name].double() * weights[name]).sum() / (weights[name].sum() * means[name].shape[0] * count)
        )
        for name in means
    }
