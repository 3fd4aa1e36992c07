"""FREE-Merging: what experts keep, both factors against an independent computation, add and replace, storage."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fwviz.methods import _frequency
from fwviz.methods.free_merging import Settings, free_merging, largest, official_factor, paper_factor
from fwviz.space.experts import SparseExpert
from fwviz.tasks.extended import load_mixture, stored_bytes
from fwviz.types import Problem, Step
from tests.equality import largest_difference
from tests.toy import toy_layout, toy_problem


def expert(problem: Problem, step: Step, k: int) -> Tensor:
    assert step.extension is not None
    theta = problem.vectors.base + step.delta
    made = torch.empty_like(theta)
    load_mixture(made, theta, step.extension, [float(j == k) for j in range(3)])
    return made


def kept(tau: np.ndarray, density: float) -> np.ndarray:
    """M(τ, d) by sorting."""
    count = max(1, int(density * tau.size))
    places = np.argsort(-np.abs(tau))[:count]
    found = np.zeros_like(tau)
    found[places] = tau[places]
    return found


@pytest.mark.parametrize("density", [0.001, 0.1, 0.5, 1.0])
def test_the_largest_changes_of_the_whole_vector_are_kept(density: float) -> None:
    layout = toy_layout()
    tau = torch.randn(layout.size, generator=torch.Generator().manual_seed(0))
    indices = largest(tau, layout, density, "vector")
    assert np.array_equal(indices.numpy(), np.flatnonzero(kept(tau.numpy(), density)))


@pytest.mark.parametrize("top", ["vector", "row"])
def test_what_did_not_change_is_never_kept(top: str) -> None:
    """A checkpoint with frozen layers has fewer changes than the density asks for: its zeros tie."""
    layout = toy_layout()
    tau = torch.zeros(layout.size)
    assert largest(tau, layout, 0.1, top).numel() == 0
    tau[3], tau[60] = 1.0, -2.0
    assert largest(tau, layout, 0.1, top).tolist() == [3, 60]
    assert largest(tau, layout, 1.0, top).tolist() == list(range(layout.size)), "an expert of everything"
    expert = SparseExpert.make(torch.empty(0, dtype=torch.int64), torch.empty(0), layout.size)
    assert SparseExpert.from_tensors(expert.tensors()).indices.numel() == 0


def test_rows_keep_their_own_largest() -> None:
    layout = toy_layout()
    tau = torch.randn(layout.size, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(layout.size)
    mask[largest(tau, layout, 0.5, "row")] = 1
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        rows = layout.view(mask, name).view(shape[0] if len(shape) > 1 else 1, -1)
        size = layout.view(tau, name).view(rows.shape).abs()
        assert (rows.sum(1) == max(1, rows.shape[1] // 2)).all()
        assert (size.masked_fill(rows == 0, torch.inf).amin(1) > size.masked_fill(rows == 1, 0).amax(1)).all()


def test_the_papers_factor() -> None:
    tau = torch.randn(500, generator=torch.Generator().manual_seed(2))
    sparse = kept(tau.numpy().astype(np.float64), 0.1)
    expected = -np.abs(sparse).mean() * np.log(0.1) / (0.25 * np.abs(tau.numpy()).mean())
    got = paper_factor(tau, torch.from_numpy(np.flatnonzero(sparse)), 0.1, 0.25)
    largest_difference("free_merging, factor of the paper", "numpy", got, expected)
    assert got == pytest.approx(expected, rel=1e-5)
    assert paper_factor(torch.zeros(5), torch.tensor([0]), 0.1, 0.25) == 0


def test_the_released_factor() -> None:
    layout = toy_layout()
    tau = torch.randn(layout.size, generator=torch.Generator().manual_seed(3))
    passing = _frequency.Filter(cutoff=0.3)
    chosen = _frequency.filtered_tensors(layout, "blocks")
    indices = largest(tau, layout, 0.2, "row")
    # As released: a mean per tensor, the mean of these over tensors, the expert's divided by what is kept; the share of
    # a checkpoint in all means times their sum is its own mean.
    sparse = np.zeros(layout.size)
    sparse[indices.numpy()] = tau.numpy()[indices.numpy()]
    filtered, experts = [], []
    for j in chosen:
        start, stop = layout.offsets[j : j + 2]
        matrix = tau[start:stop].view(layout.shapes[j]).numpy().astype(np.float64)
        y = np.abs(np.fft.fftfreq(matrix.shape[0])) * 2
        x = np.abs(np.fft.fftfreq(matrix.shape[1])) * 2
        rho = np.sqrt((y[:, None] ** 2 + x[None] ** 2) / 2)
        filtered.append(np.abs(np.fft.ifft2(np.fft.fft2(matrix) * (rho >= 0.3)).real).mean())
        experts.append(np.abs(sparse[start:stop]).mean())
    means = np.array([np.mean(filtered), 0.7])  # beside another checkpoint
    normalised = means / means.sum()
    expected = (np.mean(experts) / 0.2) * np.log10(0.2) / (-normalised[0] * means.sum())
    got = official_factor(tau, indices, 0.2, layout, passing, chosen)
    largest_difference("free_merging, released factor", "numpy", got, expected)
    assert got == pytest.approx(expected, rel=1e-4)


def test_an_added_expert_is_the_backbone_plus_its_scaled_largest_changes() -> None:
    problem = toy_problem(n=4, tasks=3)
    (step,) = free_merging(problem, Settings(density=0.1, rescale="constant", constant=2.5, router="oracle"))
    assert step.delta is not None
    theta = (problem.vectors.base + step.delta).numpy()
    for k in range(3):
        sparse = kept(problem.vectors.vector(k).numpy(), 0.1)
        np.testing.assert_allclose(expert(problem, step, k).numpy(), theta + 2.5 * sparse, atol=3e-3)


def test_an_expert_that_replaces_leaves_nothing_of_the_backbone_where_it_is() -> None:
    problem = toy_problem(n=4, tasks=3)
    settings = Settings(density=0.1, rescale="constant", constant=2.5, router="oracle", combine="replace")
    (step,) = free_merging(problem, settings)
    assert step.delta is not None
    theta, base = (problem.vectors.base + step.delta).numpy(), problem.vectors.base.numpy()
    for k in range(3):
        sparse = kept(problem.vectors.vector(k).numpy(), 0.1)
        expected = np.where(sparse != 0, base + 2.5 * sparse, theta)
        np.testing.assert_allclose(expert(problem, step, k).numpy(), expected, atol=3e-3)


@pytest.mark.parametrize("weights", ["uniform", "proportional"])
def test_weights_sum_to_the_scale(weights: str) -> None:
    """Copies of one filtered task vector give it back, times the scale, whatever shares them out."""
    problem = toy_problem(n=1, tasks=1)
    one = problem.vectors.vector(0)
    (step,) = free_merging(problem, Settings(cutoff=0.0, weights=weights, backbone_scale=0.5, router="oracle"))
    torch.testing.assert_close(step.delta, 0.5 * one)


def test_at_the_papers_density_an_expert_is_about_a_percent_of_a_checkpoint() -> None:
    size = 1 << 18
    tau = torch.randn(size, generator=torch.Generator().manual_seed(4))
    bound = tau.abs().kthvalue(size - size // 100 + 1).values
    indices = (tau.abs() >= bound).nonzero().flatten()
    stored = SparseExpert.make(indices, tau[indices], size)
    count = sum(t.numel() * t.element_size() for t in stored.tensors().values())
    assert 0.0074 < count / (4 * size) < 0.0080  # of float32: values in two bytes, places in little more than one
    problem = toy_problem(n=4, tasks=3)
    (step,) = free_merging(problem, Settings(router="oracle"))
    assert step.extension is not None
    assert f"{stored_bytes(step.extension):,} bytes" in step.note
