"""Cosines of task vectors, and groups of the similar by average linkage."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from fwviz.space.similarity import cosine, linear_cka, similar_groups
from tests.toy import toy_vectors


def test_cosines_are_those_of_the_vectors() -> None:
    vectors = toy_vectors()
    found = cosine(vectors.gram(vectors.layout.groups("model"))[0])
    matrix = vectors.matrix.double()
    for i, j in itertools.product(range(5), repeat=2):
        expected = torch.nn.functional.cosine_similarity(matrix[i], matrix[j], dim=0)
        assert float(found[i, j]) == pytest.approx(float(expected), abs=1e-6)


def test_a_zero_vector_is_similar_to_nothing() -> None:
    found = cosine(torch.tensor([[4.0, 0.0], [0.0, 0.0]]))
    assert found.tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_the_most_similar_join_first_and_no_group_grows_too_large() -> None:
    similarity = torch.tensor(
        [
            [1.0, 0.1, 0.9, 0.0, 0.3],
            [0.1, 1.0, 0.0, 0.8, 0.2],
            [0.9, 0.0, 1.0, 0.2, 0.7],
            [0.0, 0.8, 0.2, 1.0, 0.1],
            [0.3, 0.2, 0.7, 0.1, 1.0],
        ]
    )
    assert similar_groups(similarity, 1) == [[0], [1], [2], [3], [4]]
    assert similar_groups(similarity, 2) == [[0, 2], [1, 3], [4]]
    assert similar_groups(similarity, 3) == [[0, 2, 4], [1, 3]]
    assert similar_groups(similarity, 5) == [[0, 1, 2, 3, 4]]
    assert similar_groups(torch.ones(1, 1), 4) == [[0]]


def test_linkage_is_the_average() -> None:
    """{0, 1} joins 3, whose mean similarity to it is larger, not 2, whose best one is."""
    similarity = torch.eye(4)
    for i, j, value in ((0, 1, 0.9), (0, 2, 0.8), (1, 2, 0.1), (0, 3, 0.5), (1, 3, 0.5), (2, 3, 0.0)):
        similarity[i, j] = similarity[j, i] = value
    assert similar_groups(similarity, 3) == [[0, 1, 3], [2]]


def by_definition(similarity: Tensor, size: int) -> list[list[int]]:
    """Average linkage with every mean taken over the original similarities."""
    groups = [[i] for i in range(len(similarity))]
    while True:
        pairs = [(a, b) for a, b in itertools.combinations(groups, 2) if len(a) + len(b) <= size]
        if not pairs:
            return sorted(sorted(group) for group in groups)
        a, b = max(pairs, key=lambda pair: float(similarity[pair[0]][:, pair[1]].mean()))
        groups = [group for group in groups if group not in (a, b)] + [a + b]


@pytest.mark.parametrize("size", [2, 3, 4, 9])
def test_groups_are_those_of_the_definition(size: int) -> None:
    for seed in range(4):
        points = torch.randn(9, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        similarity = cosine(points @ points.T)
        assert similar_groups(similarity, size) == by_definition(similarity, size)


# --- linear CKA -----------------------------------------------------------------------------------


def features(seed: int, width: int) -> Tensor:
    drawn = torch.Generator().manual_seed(seed)
    return torch.randn(40, width, generator=drawn, dtype=torch.float64) + 3.0


def test_cka_is_the_quotient_of_independence_criteria() -> None:
    """HSIC(K, L) = tr(K·H·L·H) with the kernels' matrices and the centring matrix: no cross-covariance in it."""
    x, y = features(0, 5), features(1, 7)
    y[:, :2] += 2 * x[:, :2]
    centre = torch.eye(40, dtype=torch.float64) - 1 / 40

    def hsic(a: Tensor, b: Tensor) -> float:
        return float((a @ a.T @ centre @ b @ b.T @ centre).trace())

    expected = hsic(x, y) / (hsic(x, x) * hsic(y, y)) ** 0.5
    assert 0.1 < expected < 0.9
    assert linear_cka(x, y) == pytest.approx(expected, rel=1e-12)
    assert linear_cka(y, x) == pytest.approx(expected, rel=1e-12)


def test_cka_sees_neither_rotation_nor_scale_nor_shift() -> None:
    x, y = features(0, 6), features(1, 6)
    y += x
    turn = torch.linalg.qr(features(2, 6)[:6]).Q
    assert linear_cka(x, x) == pytest.approx(1.0, abs=1e-12)
    assert linear_cka(x, -4.0 * x @ turn + 1.0) == pytest.approx(1.0, abs=1e-12)
    assert linear_cka(x @ turn, y) == pytest.approx(linear_cka(x, y), abs=1e-12)
    assert linear_cka(x, 0.01 * y - 5.0) == pytest.approx(linear_cka(x, y), abs=1e-12)
    # A stretch along one axis is no rotation.
    assert linear_cka(x, x * torch.tensor([9.0, 1, 1, 1, 1, 1])) < 0.9


def test_cka_of_unrelated_features_is_zero() -> None:
    whole = torch.linalg.qr(torch.cat([torch.ones(40, 1, dtype=torch.float64), features(3, 8)], dim=1)).Q[:, 1:]
    assert linear_cka(whole[:, :4], whole[:, 4:]) == pytest.approx(0.0, abs=1e-12)
    assert linear_cka(whole, torch.full((40, 3), 0.25, dtype=torch.float64)) == 0.0
    with pytest.raises(ValueError, match="40 and of 39"):
        linear_cka(whole, whole[:39])
