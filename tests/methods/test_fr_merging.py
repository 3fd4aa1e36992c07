"""FR-Merging against plain numpy transforms, its weights against their formulas, and its limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fwviz.methods import _frequency
from fwviz.methods.fr_merging import Settings, fr_merging
from fwviz.space.layout import build_layout, unflatten
from fwviz.space.vectors import ResidentTaskVectors
from fwviz.types import Problem
from tests.toy import toy_problem

SHAPES = {
    "embeddings.position_embedding.weight": (9, 6),
    "encoder.layers.0.self_attn.q_proj.weight": (8, 8),
    "encoder.layers.0.mlp.fc1.weight": (24, 7),
    "encoder.layers.0.mlp.fc1.bias": (24,),
    "visual_projection.weight": (5, 8),
}
OUTSIDE = "visual_projection.weight"
INSIDE = ("encoder.layers.0.self_attn.q_proj.weight", "encoder.layers.0.mlp.fc1.weight")


@pytest.fixture
def problem() -> Problem:
    """Three task vectors of different sizes, whose matrices have slow and fast parts."""
    layout = build_layout(SHAPES)
    generator = torch.Generator().manual_seed(2)
    sizes = torch.tensor([1.0, 2.5, 0.4])[:, None]
    matrix = sizes * (torch.randn(3, layout.size, generator=generator) + 0.5)
    base = torch.randn(layout.size, generator=generator)
    return Problem(ResidentTaskVectors(layout, ("a", "b", "c"), base, matrix), toy_problem().objective)


def delta_of(problem: Problem, **values: Any) -> dict[str, Tensor]:
    (step,) = fr_merging(problem, Settings(**values))
    assert step.delta is not None
    return unflatten(problem.vectors.layout, step.delta)


def tensors_of(problem: Problem) -> dict[str, list[np.ndarray]]:
    """Name → the tensor of every task vector."""
    rows = [unflatten(problem.vectors.layout, problem.vectors.vector(i)) for i in range(problem.vectors.n)]
    return {name: [row[name].double().numpy() for row in rows] for name in SHAPES}


def masked(matrix: np.ndarray, keep: Callable[[float], bool]) -> np.ndarray:
    """The part of a matrix at the radial frequencies to keep."""
    height, width = matrix.shape
    rows, columns = (np.abs(np.fft.fftfreq(size)) * 2 for size in matrix.shape)
    mask = [[keep(float(np.hypot(rows[y], columns[x]) / np.sqrt(2))) for x in range(width)] for y in range(height)]
    return np.fft.ifft2(np.fft.fft2(matrix) * np.array(mask)).real


@pytest.mark.parametrize(
    ("values", "keep"),
    [
        ({"cutoff": 0.3}, lambda rho: rho >= 0.3),
        ({"cutoff": 0.3, "band": "low"}, lambda rho: rho < 0.3),
        ({"cutoff": 0.3, "band": "band", "upper_cutoff": 0.6}, lambda rho: 0.3 <= rho < 0.6),
    ],
)
def test_it_adds_what_passes_and_leaves_the_rest_at_the_base(problem: Problem, values: Any, keep: Any) -> None:
    found = delta_of(problem, weights="uniform", scale=0.7, others="base", **values)
    for name, parts in tensors_of(problem).items():
        expected = 0.7 * sum(masked(part, keep) for part in parts) if name in INSIDE else np.zeros(SHAPES[name])
        np.testing.assert_allclose(found[name], expected, atol=1e-5)


def test_all_matrices_and_the_rest_merged(problem: Problem) -> None:
    found = delta_of(problem, weights="uniform", scale=1.0, cutoff=0.3, filter_tensors="matrices", others="merged")
    for name, parts in tensors_of(problem).items():
        whole = np.asarray(sum(parts))
        expected = masked(whole, lambda rho: rho >= 0.3) if whole.ndim == 2 else whole
        np.testing.assert_allclose(found[name], expected, atol=1e-5)


def test_weights_follow_their_formulas(problem: Problem) -> None:
    tensors = tensors_of(problem)

    def filtered(name: str) -> list[np.ndarray]:
        return [masked(part, lambda rho: rho >= 0.25) for part in tensors[name]]

    found = delta_of(problem, weights="proportional", cutoff=0.25, scale=1.0)
    means = [np.concatenate([np.abs(tensors[name][i]).ravel() for name in INSIDE]).mean() for i in range(3)]
    for name in INSIDE:
        expected = sum(mean / sum(means) * part for mean, part in zip(means, filtered(name), strict=True))
        np.testing.assert_allclose(found[name], expected, atol=1e-5)
    for weights, level in (("equalised", max), ("balanced", np.median)):
        found = delta_of(problem, weights=weights, cutoff=0.25, scale=1.0)
        for name in INSIDE:
            parts = filtered(name)
            sizes = [np.abs(part).mean() for part in parts]
            expected = sum(level(sizes) / size * part for size, part in zip(sizes, parts, strict=True))
            np.testing.assert_allclose(found[name], expected, atol=1e-5)


def test_one_huge_checkpoint_moves_only_its_own_share_of_a_balanced_sum(problem: Problem) -> None:
    vectors = problem.vectors
    matrix = vectors.matrix.clone()
    matrix[0] *= 100
    louder = Problem(ResidentTaskVectors(vectors.layout, vectors.names, vectors.base, matrix), problem.objective)
    before, after = delta_of(problem, weights="balanced"), delta_of(louder, weights="balanced")
    raised = delta_of(louder, weights="equalised")
    size = {name: float(before[name].abs().mean()) for name in INSIDE}
    assert all(float(after[name].abs().mean()) < 3 * size[name] for name in INSIDE)
    assert all(float(raised[name].abs().mean()) > 10 * size[name] for name in INSIDE)


def test_without_a_filter_it_is_task_arithmetic(problem: Problem) -> None:
    (step,) = fr_merging(problem, Settings(cutoff=0.0, others="merged", weights="uniform", scale=0.3))
    vectors = problem.vectors
    expected = vectors.combine(torch.full((1, 3), 0.3), problem.groups("model")) - vectors.base
    torch.testing.assert_close(step.delta, expected)


def test_official_mode_is_the_released_filter_and_alignment(problem: Problem) -> None:
    """The released ViT script point by point: band plus disc around the middle of the unshifted spectrum, then every
    tensor raised to the largest mean magnitude, then 0.7 times the sum."""
    found = delta_of(problem, mode="official", weights="equalised", scale=0.7)
    for name, parts in tensors_of(problem).items():
        if name not in INSIDE:
            assert not found[name].any()
            continue
        height, width = SHAPES[name]
        y, x = np.mgrid[:height, :width]
        distance = np.hypot(y - height // 2, x - width // 2)
        inner = min(height, width) // 10
        keep = (distance <= inner) * 1.0 + ((distance >= inner) & (distance <= 0.7 * min(height, width)))
        passed = [np.fft.ifft2(np.fft.fft2(part) * keep).real for part in parts]
        sizes = [np.abs(part).mean() for part in passed]
        expected = 0.7 * sum(max(sizes) / size * part for size, part in zip(sizes, passed, strict=True))
        np.testing.assert_allclose(found[name], expected, atol=1e-5)


@pytest.mark.parametrize("weights", _frequency.WEIGHTS)
def test_a_checkpoint_equal_to_the_base_changes_nothing(problem: Problem, weights: str) -> None:
    vectors: Any = problem.vectors
    more = ResidentTaskVectors(
        vectors.layout, ("a", "b", "c", "d"), vectors.base, torch.cat([vectors.matrix, 0 * vectors.matrix[:1]])
    )
    (with_copy,) = fr_merging(Problem(more, problem.objective), Settings(weights=weights))
    (without,) = fr_merging(problem, Settings(weights=weights))
    torch.testing.assert_close(with_copy.delta, without.delta)


@pytest.mark.parametrize(
    ("names", "settings", "words"),
    [
        (list(SHAPES), {}, ""),
        (
            ["visual_projection.weight"],
            {"others": "base"},
            "no matrix inside a block to filter, so that this is the base",
        ),
        (
            ["visual_projection.weight"],
            {"others": "merged"},
            "inside a block to filter, so that all is merged as it is",
        ),
        (["visual_projection.weight"], {"filter_tensors": "matrices"}, ""),
        (["encoder.layers.0.mlp.fc1.bias"], {"filter_tensors": "matrices"}, "no matrix to filter, so that this is"),
    ],
)
def test_a_merge_in_which_nothing_is_filtered_says_so(names: list[str], settings: dict[str, Any], words: str) -> None:
    layout = build_layout({name: SHAPES[name] for name in names})
    matrix = torch.randn(3, layout.size, generator=torch.Generator().manual_seed(4))
    vectors = ResidentTaskVectors(layout, ("a", "b", "c"), torch.zeros(layout.size), matrix)
    (step,) = fr_merging(Problem(vectors, toy_problem().objective), Settings(**settings))
    assert step.delta is not None
    assert (words in step.note) if words else "to filter" not in step.note
    if "this is" in words:
        assert not step.delta.any()
