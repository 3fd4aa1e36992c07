"""Spectra of many checkpoints: waves peak where they belong, and every sum agrees with a plain loop."""

from __future__ import annotations

import math

import pytest
import torch

from fwviz.space import spectra as module
from fwviz.space.layout import build_layout
from fwviz.space.spectra import amplitude_products, matrices, rings, subset_interference
from fwviz.space.spectrum import amplitude, half_weights, high_pass, radial_profile, variance_between
from fwviz.space.vectors import ResidentTaskVectors
from fwviz.types import FwvizError

SHAPES = {
    "vision_model.encoder.layers.0.mlp.fc1.weight": (16, 12),
    "vision_model.encoder.layers.0.mlp.fc1.bias": (16,),
    "vision_model.encoder.layers.1.mlp.fc1.weight": (9, 15),
    "vision_model.embeddings.class_embedding": (7,),
}


def vectors_of(n: int = 5, seed: int = 0, make: torch.Tensor | None = None) -> ResidentTaskVectors:
    layout = build_layout(SHAPES)
    matrix = torch.randn(n, layout.size, generator=torch.Generator().manual_seed(seed)) if make is None else make
    return ResidentTaskVectors(layout, [f"c{i}" for i in range(n)], torch.zeros(layout.size), matrix)


def whole(vectors: ResidentTaskVectors) -> list[module.Matrix]:
    return matrices(vectors.layout, 0, vectors.layout.size)


def named(vectors: ResidentTaskVectors, i: int) -> dict[str, torch.Tensor]:
    return {m.name: vectors.vector(i)[m.start : m.stop].view(m.shape) for m in whole(vectors)}


def test_only_matrices_have_a_spectrum() -> None:
    vectors = vectors_of()
    assert [m.shape for m in whole(vectors)] == [(16, 12), (9, 15)]
    with pytest.raises(FwvizError, match="no weight matrix"):
        matrices(vectors.layout, 0, 7)


@pytest.mark.parametrize(("fy", "fx"), [(1, 0), (0, 3), (4, 2), (8, 6)])
def test_a_wave_peaks_in_its_ring(fy: int, fx: int) -> None:
    vectors = vectors_of(n=2)
    vectors.matrix.zero_()
    m = whole(vectors)[0]
    y, x = torch.arange(16)[:, None], torch.arange(12)[None, :]
    wave = torch.cos(2 * math.pi * (fy * y / 16 + fx * x / 12))
    vectors.matrix[0, m.start : m.stop] = wave.flatten()
    rho = math.sqrt(((fy / 8) ** 2 + (fx / 6) ** 2) / 2)
    made = rings(vectors, [m], bins=20, cutoff=rho)
    expected = min(int(rho * 20 + 1e-9), 19)
    assert int(made.energy[0].argmax()) == expected
    assert float(made.energy[0, expected]) == pytest.approx(float(wave.square().sum()), rel=1e-4)
    assert float(made.energy_kept[0]) == pytest.approx(1.0, abs=1e-6)
    assert float(rings(vectors, [m], bins=20, cutoff=min(rho + 0.02, 1.01)).energy_kept[0]) == pytest.approx(
        0, abs=1e-6
    )
    # One moves and the other does not: variance (a/2)² at the two mirror frequencies.
    assert int(made.variance.nan_to_num().argmax()) == expected


@pytest.mark.parametrize("elements", [1 << 24, 400, 1])
def test_rings_agree_with_one_model_after_the_other(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STACK_ELEMENTS", elements)
    vectors = vectors_of()
    made = rings(vectors, whole(vectors), bins=8, cutoff=0.4)
    for i in range(vectors.n):
        profiles = [radial_profile(amplitude(m), m.shape[1], 8) for m in named(vectors, i).values()]
        counts = sum(p.counts for p in profiles)
        torch.testing.assert_close(made.counts, counts)
        torch.testing.assert_close(made.energy[i], sum(p.energy for p in profiles), rtol=1e-5, atol=1e-6)
        means = sum((p.mean.nan_to_num() * p.counts for p in profiles), torch.zeros(8, dtype=torch.float64)) / counts
        torch.testing.assert_close(made.amplitude[i], means, rtol=1e-5, atol=1e-6, equal_nan=True)
    before = variance_between(named(vectors, i) for i in range(vectors.n))
    assert made.interference == pytest.approx(sum(before.values()) / len(before), rel=1e-5)
    after = variance_between(
        {name: high_pass(m, 0.4) for name, m in named(vectors, i).items()} for i in range(vectors.n)
    )
    assert made.kept == pytest.approx(sum(after.values()) / len(after), rel=1e-4)
    assert float(torch.nansum(made.variance * made.counts)) == pytest.approx(
        sum(value * math.prod(m.shape) for value, m in zip(before.values(), whole(vectors), strict=True)), rel=1e-5
    )


def test_copies_do_not_interfere() -> None:
    row = torch.randn(1, vectors_of().layout.size, generator=torch.Generator().manual_seed(3))
    vectors = vectors_of(n=4, make=row.expand(4, -1).clone())
    assert rings(vectors, whole(vectors)).interference == pytest.approx(0.0, abs=1e-10)
    products = amplitude_products(vectors, whole(vectors))
    assert subset_interference(products, [0, 2, 3]) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("elements", [1 << 24, 400])
def test_products_hold_the_interference_of_every_subset(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STACK_ELEMENTS", elements)
    vectors = vectors_of()
    products = amplitude_products(vectors, whole(vectors))
    for rows in ([0, 1], [4, 2, 1], [0, 1, 2, 3, 4]):
        expected = rings(vectors.subset(rows), whole(vectors)).interference
        assert subset_interference(products, rows) == pytest.approx(expected, rel=1e-4)
    m = whole(vectors)[1]
    flat = amplitude(vectors.block(m.start, m.stop).view(-1, *m.shape)).flatten(1).double()
    weights = half_weights(m.shape[1]).expand(m.shape[0], -1).flatten()
    expected_products = (flat * weights) @ flat.t() / (m.shape[0] * m.shape[1])
    torch.testing.assert_close(amplitude_products(vectors, [m]), expected_products, rtol=1e-5, atol=1e-6)
