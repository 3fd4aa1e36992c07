"""Frequencies, filters and spectra against plain numpy transforms of the full plane and their defining properties."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from torch import Tensor

from fwviz.space import spectrum
from fwviz.types import FwvizError

SHAPES = [(8, 8), (7, 12), (12, 7), (9, 5), (1, 6), (6, 1), (64, 16)]
CUTOFFS = [0.05, 0.25, 0.5, 0.9]


def matrix_of(shape: tuple[int, int], seed: int = 0) -> Tensor:
    # An offset and a ramp, so that low frequencies stand out as in a weight matrix.
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise + 0.7 + torch.linspace(-1, 1, shape[1], dtype=torch.float64)


def full_rho(height: int, width: int) -> np.ndarray:
    """ρ from its definition, frequency by frequency."""
    rho = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            f_y, f_x = 2 * min(y, height - y) / height, 2 * min(x, width - x) / width
            rho[y, x] = math.sqrt(f_y**2 + f_x**2) / math.sqrt(2)
    return rho


@pytest.mark.parametrize("shape", SHAPES)
def test_radial_frequency_is_the_distance_from_the_mean(shape: tuple[int, int]) -> None:
    expected = full_rho(*shape)
    np.testing.assert_allclose(spectrum.radial_frequency(*shape, half=False), expected, atol=1e-12)
    np.testing.assert_allclose(spectrum.radial_frequency(*shape), expected[:, : shape[1] // 2 + 1], atol=1e-12)


def test_radial_frequency_spans_zero_to_one() -> None:
    rho = spectrum.radial_frequency(16, 6, half=False)
    assert rho[0, 0] == 0.0
    assert rho[8, 3] == pytest.approx(1.0)
    assert rho[8, 0] == pytest.approx(rho[0, 3]) == pytest.approx(1 / math.sqrt(2))  # whatever the shape


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_filters_are_masks_of_the_full_plane(shape: tuple[int, int], cutoff: float) -> None:
    matrix = matrix_of(shape)
    transform = np.fft.fft2(matrix.numpy())
    keep = spectrum.radial_frequency(*shape, half=False).numpy() >= cutoff - 1e-12
    np.testing.assert_allclose(spectrum.high_pass(matrix, cutoff), np.fft.ifft2(transform * keep).real, atol=1e-12)
    np.testing.assert_allclose(spectrum.low_pass(matrix, cutoff), np.fft.ifft2(transform * ~keep).real, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_low_and_high_add_up_and_filtering_twice_changes_nothing(shape: tuple[int, int]) -> None:
    matrix = matrix_of(shape)
    for cutoff in CUTOFFS:
        low, high = spectrum.low_pass(matrix, cutoff), spectrum.high_pass(matrix, cutoff)
        torch.testing.assert_close(low + high, matrix)
        torch.testing.assert_close(spectrum.high_pass(high, cutoff), high)
        assert float((low * high).sum()) == pytest.approx(0.0, abs=1e-9)
    band = spectrum.band_pass(matrix, 0.25, 0.5)
    torch.testing.assert_close(spectrum.low_pass(matrix, 0.25) + band + spectrum.high_pass(matrix, 0.5), matrix)
    assert torch.equal(spectrum.high_pass(matrix, 0.0), matrix)
    assert float(spectrum.low_pass(matrix, 0.0).abs().max()) == 0.0
    assert torch.equal(spectrum.low_pass(matrix, 1.01), matrix)


def test_high_pass_takes_the_mean_and_leaves_the_checkerboard() -> None:
    checker = (torch.arange(8)[:, None] + torch.arange(6)).remainder(2).mul(2).sub(1).float()
    torch.testing.assert_close(spectrum.high_pass(checker + 3.0, 0.01), checker)
    torch.testing.assert_close(spectrum.high_pass(checker + 3.0, 1.0), checker)
    torch.testing.assert_close(spectrum.low_pass(checker + 3.0, 1.0), torch.full((8, 6), 3.0))


def test_a_frequency_on_the_cutoff_stays() -> None:
    wave = torch.cos(torch.arange(8) * math.pi / 2)[:, None] * torch.cos(torch.arange(12) * math.pi / 2)  # f = (½, ½)
    torch.testing.assert_close(spectrum.high_pass(wave, 0.5), wave)
    assert float(spectrum.high_pass(wave, 0.5001).abs().max()) < 1e-6


def test_stacks_and_narrow_types_are_filtered_alike() -> None:
    stack = torch.stack([matrix_of((9, 6), seed) for seed in range(3)]).float()
    expected = torch.stack([spectrum.high_pass(matrix, 0.3) for matrix in stack])
    torch.testing.assert_close(spectrum.high_pass(stack, 0.3), expected)
    narrow = spectrum.high_pass(stack.bfloat16(), 0.3)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), expected, atol=0.05, rtol=0.05)


# --- the released filter ------------------------------------------------------------------------


def released(matrix: np.ndarray, radius: float) -> np.ndarray:
    """What the released code says, point by point: low component plus band component, no shift, real parts."""
    height, width = matrix.shape
    inner = min(height, width) // 10
    weights = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            distance = math.sqrt((y - height // 2) ** 2 + (x - width // 2) ** 2)
            weights[y, x] = (distance <= inner) + (inner <= distance <= radius)
    return np.fft.ifft2(np.fft.fft2(matrix) * weights).real


@pytest.mark.parametrize("shape", [(20, 20), (21, 25), (24, 7), (11, 44), (30, 1)])
def test_official_filter_equals_the_released_one(shape: tuple[int, int]) -> None:
    matrix = matrix_of(shape)
    for ratio in (0.3, 0.7, 0.9):
        small, large = ratio * min(shape), ratio * max(shape)
        np.testing.assert_allclose(
            spectrum.official_high_pass(matrix, ratio), released(matrix.numpy(), small), atol=1e-12
        )
        np.testing.assert_allclose(
            spectrum.official_high_pass(matrix, ratio, side="max"), released(matrix.numpy(), large), atol=1e-12
        )


def test_official_filter_spares_squares_and_cuts_long_matrices() -> None:
    kept = []
    for shape in [(96, 96), (384, 96)]:
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        kept.append(float(spectrum.official_high_pass(matrix, 0.7).square().sum() / matrix.square().sum()))
    assert kept[0] > 0.95
    assert 0.2 < kept[1] < 0.5


# --- spectra ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bins", [1, 5, 16])
def test_profile_keeps_energy_and_counts_every_coefficient(shape: tuple[int, int], bins: int) -> None:
    matrix = matrix_of(shape)
    profile = spectrum.radial_profile(spectrum.amplitude(matrix), shape[1], bins)
    assert float(profile.energy.sum()) == pytest.approx(float(matrix.square().sum()))
    assert float(profile.counts.sum()) == shape[0] * shape[1]
    values = np.abs(np.fft.fft2(matrix.numpy())) / math.sqrt(matrix.numel())
    rho = spectrum.radial_frequency(*shape, half=False).numpy()
    for b in range(bins):
        inside = (rho >= b / bins) & ((rho < (b + 1) / bins) | (b == bins - 1))
        assert float(profile.counts[b]) == inside.sum()
        assert float(profile.energy[b]) == pytest.approx((values[inside] ** 2).sum())
        if inside.any():
            assert float(profile.mean[b]) == pytest.approx(values[inside].mean())
        else:
            assert math.isnan(float(profile.mean[b]))


@pytest.mark.parametrize("shape", SHAPES)
def test_energy_share_grows_and_is_that_of_the_low_pass(shape: tuple[int, int]) -> None:
    matrix = matrix_of(shape)
    cutoffs = torch.linspace(0, 1.01, 33, dtype=torch.float64)
    share = spectrum.energy_share_below(spectrum.amplitude(matrix), shape[1], cutoffs)
    assert float(share[0]) == 0.0
    assert float(share[-1]) == pytest.approx(1.0)
    assert bool((share.diff() >= 0).all())
    for c in (3, 11, 20):
        kept = spectrum.low_pass(matrix, float(cutoffs[c])).square().sum() / matrix.square().sum()
        assert float(share[c]) == pytest.approx(float(kept), abs=1e-12)
    assert float(spectrum.energy_share_below(torch.zeros(4, 3), 4, cutoffs).max()) == 0.0


def test_half_spectrum_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="width 9"):
        spectrum.radial_profile(spectrum.amplitude(matrix_of((4, 6))), 9)


def test_map_is_centred_symmetric_and_bounded() -> None:
    matrix = matrix_of((10, 12)) + 5.0
    shown = spectrum.amplitude_map(matrix)
    assert shown.shape == (10, 12)
    assert int(shown.argmax()) == 5 * 12 + 6  # the mean, in the middle
    values = np.fft.fftshift(np.abs(np.fft.fft2(matrix.numpy())) / math.sqrt(120))
    np.testing.assert_allclose(10.0 ** shown.numpy(), values, rtol=1e-9)
    small = spectrum.amplitude_map(matrix, size=6)
    # Ten rows become six overlapping patches; twelve columns become six pairs.
    rows = [values[5 * j // 3 : -(-5 * (j + 1) // 3)].mean(0) for j in range(6)]
    np.testing.assert_allclose(10.0 ** small.numpy(), np.stack(rows).reshape(6, 6, 2).mean(-1), rtol=1e-9)
    assert small.shape == (6, 6)
    assert bool(spectrum.amplitude_map(torch.zeros(3, 4)).isfinite().all())


# --- how much models differ ---------------------------------------------------------------------


def test_variance_between_models_is_that_of_full_spectra() -> None:
    models = [{"a": matrix_of((7, 10), k), "b": (k + 1) * matrix_of((4, 5), 9)} for k in range(4)]
    found = spectrum.variance_between(iter(models))
    assert list(found) == ["a", "b"]
    for name in ("a", "b"):
        stack = np.stack([model[name].numpy() for model in models])
        amplitudes = np.abs(np.fft.fft2(stack)) / math.sqrt(stack[0].size)
        assert found[name] == pytest.approx(amplitudes.var(axis=0).mean())


def test_variance_sees_amplitudes_not_signs_and_needs_two_models() -> None:
    matrix = matrix_of((6, 6))
    assert spectrum.variance_between([{"a": matrix}, {"a": -matrix}])["a"] == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(FwvizError, match="at least two"):
        spectrum.variance_between([{"a": matrix}])


def test_one_matrix_of_many_checkpoints_is_fast() -> None:
    stack = torch.randn(22, 192, 768)
    started = time.perf_counter()
    values = spectrum.amplitude(stack)
    for row in values:
        spectrum.radial_profile(row, 768)
    assert time.perf_counter() - started < 2.0  # 0.1 s on an idle core; the margin is for a busy one
