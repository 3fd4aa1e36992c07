"""EMR-Merging against fusion-bench 0.2.33, and against its own formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fwviz.methods.emr import Settings, elect, emr, rescaler
from fwviz.space.blocks import Blocks
from fwviz.space.experts import unpack_bits
from fwviz.space.layout import build_layout
from fwviz.space.vectors import ResidentTaskVectors
from fwviz.tasks.extended import load_mixture
from tests.equality import largest_difference
from tests.toy import toy_problem

GOLDEN = np.load(Path(__file__).parent / "golden" / "emr.npz")


def golden_vectors() -> ResidentTaskVectors:
    layout = build_layout({"a.weight": (6, 4), "a.bias": (6,), "b.weight": (3, 5)})
    # The layout has its own order of tensors; the golden file has bias after weight, as here.
    starts = {"a.weight": 0, "a.bias": 24, "b.weight": 30}
    columns = torch.cat([torch.arange(starts[n], starts[n] + torch.Size(s).numel()) for n, s in layout_items(layout)])
    matrix = torch.from_numpy(GOLDEN["task_vectors"])[:, columns]
    vectors = ResidentTaskVectors(layout, tuple("abcd"), torch.zeros(layout.size), matrix)
    vectors.columns = columns  # type: ignore[attr-defined]
    return vectors


def layout_items(layout):  # type: ignore[no-untyped-def]
    return zip(layout.names, layout.shapes, strict=True)


def test_it_is_fusion_bench_to_rounding() -> None:
    vectors = golden_vectors()
    columns = vectors.columns.numpy()  # type: ignore[attr-defined]
    unified = elect(Blocks(vectors))
    largest_difference("emr, elected vector", "fusion_bench", unified, GOLDEN["unified"][columns])
    np.testing.assert_allclose(unified.numpy(), GOLDEN["unified"][columns], rtol=1e-6)
    for k in range(4):
        tau = vectors.vector(k)
        mask = tau * unified > 0
        # Where the elected entry is 0 fusion-bench's mask may be set: it multiplies 0.
        theirs = GOLDEN["masks"][k][columns] & (unified.numpy() != 0)
        assert np.array_equal(mask.numpy(), theirs)
        factor = rescaler(tau, mask, unified, vectors.layout, "official")
        largest_difference(f"emr, mask {k}", "fusion_bench", mask, theirs)
        largest_difference(f"emr, factor {k}", "fusion_bench", factor, float(GOLDEN["rescalers"][k]))
        assert factor == pytest.approx(float(GOLDEN["rescalers"][k]), rel=1e-5)


def test_experts_are_the_masked_scaled_elected_vector() -> None:
    problem = toy_problem(n=4, tasks=3)
    (step,) = emr(problem, Settings())
    assert step.extension is not None
    assert step.delta is not None
    matrix = np.stack([problem.vectors.vector(i).numpy() for i in range(4)]).astype(np.float64)
    sign = np.sign(matrix.sum(axis=0))
    unified = sign * np.where(matrix * sign > 0, np.abs(matrix), 0).max(axis=0)
    np.testing.assert_allclose(step.delta.numpy(), unified, rtol=1e-6)
    theta = problem.vectors.base + step.delta
    for k, task in enumerate(problem.objective.tasks):
        own = matrix[k]  # toy task k is solved best near checkpoint k
        mask = own * unified > 0
        expert = step.extension.experts[task]
        assert np.array_equal(unpack_bits(expert.bits, 0, len(mask)).numpy(), mask)  # type: ignore[attr-defined]
        scale = np.abs(own).sum() / np.abs(unified * mask).sum()
        made = torch.empty_like(theta)
        load_mixture(made, theta, step.extension, [float(j == k) for j in range(3)])
        np.testing.assert_allclose(made.numpy(), problem.vectors.base.numpy() + scale * mask * unified, atol=1e-5)
        assert np.abs(made.numpy() - problem.vectors.base.numpy()).sum() == pytest.approx(np.abs(own).sum(), rel=1e-4)


def test_one_checkpoint_alone_comes_back_whole() -> None:
    problem = toy_problem(n=1, tasks=1)
    (step,) = emr(problem, Settings())
    assert step.extension is not None
    theta = problem.vectors.base + step.delta
    made = torch.empty_like(theta)
    load_mixture(made, theta, step.extension, [1.0])
    torch.testing.assert_close(made, problem.vectors.base + problem.vectors.vector(0))
