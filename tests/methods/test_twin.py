"""Twin-Merging: truncated factors against numpy, and what full rank must give back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fwviz.methods.twin import Settings, low_rank, twin
from fwviz.tasks.extended import load_mixture
from fwviz.types import Problem, Step
from tests.equality import largest_difference
from tests.toy import toy_layout, toy_problem


def expert(problem: Problem, step: Step, k: int) -> Tensor:
    assert step.extension is not None
    assert step.coefficients is not None
    theta = problem.vectors.combine(step.coefficients, problem.groups("model"))
    made = torch.empty_like(theta)
    load_mixture(made, theta, step.extension, [float(j == k) for j in range(3)])
    return made


def test_matrices_keep_their_leading_triplets_and_vectors_everything() -> None:
    layout = toy_layout()
    delta = torch.randn(layout.size, generator=torch.Generator().manual_seed(0))
    kept = low_rank(delta, layout, 0.5)
    got = torch.zeros(layout.size)
    kept.add_to(got, got)
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        part = layout.view(delta, name).numpy().astype(np.float64)
        if len(shape) == 2:
            u, s, vh = np.linalg.svd(part, full_matrices=False)
            rank = max(1, round(0.5 * min(shape)))
            part = (u[:, :rank] * s[:rank]) @ vh[:rank]
            assert np.linalg.matrix_rank(layout.view(got, name).numpy(), tol=1e-2) == rank
        largest_difference("twin, kept in half precision", "numpy.linalg.svd", layout.view(got, name), part)
        np.testing.assert_allclose(layout.view(got, name).numpy(), part, atol=5e-3)


def test_full_rank_gives_each_checkpoint_back() -> None:
    problem = toy_problem(n=4, tasks=3)
    (step,) = twin(problem, Settings(rank=1.0, router="oracle", backbone_scale=1.6))
    for k in range(3):
        own = problem.vectors.base + problem.vectors.vector(k)
        torch.testing.assert_close(expert(problem, step, k), own, atol=5e-3, rtol=0)


def test_a_truncated_expert_lies_between_the_shared_model_and_its_checkpoint() -> None:
    problem = toy_problem(n=4, tasks=3)
    (step,) = twin(problem, Settings(rank=0.25, router="oracle"))
    assert step.coefficients is not None
    shared = problem.vectors.combine(step.coefficients, problem.groups("model"))
    torch.testing.assert_close(shared, problem.vectors.base + problem.vectors.matrix.mean(0))  # type: ignore[attr-defined]
    for k in range(3):
        own = problem.vectors.base + problem.vectors.vector(k)
        assert 0.05 * (shared - own).norm() < (expert(problem, step, k) - own).norm() < 0.95 * (shared - own).norm()
