"""Adapters kept as factors against the same task vectors written out: every operation, to rounding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fwviz.space.layout import build_layout, flatten
from fwviz.space.lowrank import Dense, LowRank, LowRankTaskVectors, Part, Rescaled, truncate
from fwviz.space.vectors import ResidentTaskVectors
from fwviz.types import FwvizError, Granularity, TaskVectors

SHAPES = {
    "embed.weight": (7, 6),
    "layers.0.query.weight": (6, 6),
    "layers.0.fc.weight": (10, 6),
    "layers.0.fc.bias": (10,),
    "layers.1.query.weight": (6, 6),
    "layers.1.fc.weight": (10, 6),
    "scale": (),
}
LAYOUT = build_layout(SHAPES)


def make(seed: int = 0) -> tuple[LowRankTaskVectors, ResidentTaskVectors, list[dict[str, Part]]]:
    """Three adapters of other ranks, places and kinds, and the matrix of what they add, computed entry by entry."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    base = {name: draw(*shape) for name, shape in SHAPES.items()}
    adapters: list[dict[str, Part]] = [
        {
            "layers.0.query.weight": LowRank(draw(6, 2), draw(2, 6)),
            "layers.1.fc.weight": LowRank(draw(10, 1), draw(1, 6)),
        },
        {
            "layers.0.query.weight": LowRank(draw(6, 3), draw(3, 6)),
            "embed.weight": LowRank(draw(7, 2), draw(2, 6)),
            "layers.0.fc.bias": Dense(draw(10)),
            "scale": Dense(draw()),
        },
        {
            "layers.0.query.weight": Rescaled(draw(6), "rows"),
            "layers.0.fc.weight": Rescaled(draw(6), "columns"),
            "layers.1.query.weight": LowRank(draw(6, 4), draw(4, 6)),
        },
    ]
    rows = []
    for adapter in adapters:
        row = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
        for name, part in adapter.items():
            if isinstance(part, LowRank):
                row[name] = torch.einsum("ar,rb->ab", part.up, part.down)
            elif isinstance(part, Rescaled):
                row[name] = base[name] * (part.factor[:, None] if part.along == "rows" else part.factor[None, :])
            else:
                row[name] = part.delta
        rows.append(flatten(LAYOUT, row))
    flat, names = flatten(LAYOUT, base), ("a", "b", "c")
    matrix = torch.stack(rows)
    return LowRankTaskVectors(LAYOUT, names, flat, adapters), ResidentTaskVectors(LAYOUT, names, flat, matrix), adapters


LOW, FULL, ADAPTERS = make()


def gradient(seed: int = 1) -> Tensor:
    return torch.randn(LAYOUT.size, generator=torch.Generator().manual_seed(seed))


def test_it_is_a_storage_of_task_vectors() -> None:
    assert isinstance(LOW, TaskVectors)
    assert LOW.n == 3
    torch.testing.assert_close(torch.stack([LOW.vector(i) for i in range(3)]), FULL.matrix)


@pytest.mark.parametrize("granularity", ["model", "layer", "tensor"])
def test_scores_cosines_and_combinations_equal_the_matrix(granularity: Granularity) -> None:
    groups = LAYOUT.groups(granularity)
    slope = gradient()
    torch.testing.assert_close(LOW.scores(slope, groups), FULL.scores(slope, groups), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(LOW.cosines(slope, groups), FULL.cosines(slope, groups), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(LOW.gram(groups), FULL.gram(groups), atol=1e-4, rtol=1e-5)
    coefficients = torch.randn(len(groups), 3, generator=torch.Generator().manual_seed(2))
    coefficients[0, 1] = 0.0
    torch.testing.assert_close(LOW.combine(coefficients, groups), FULL.combine(coefficients, groups))


def test_cosine_of_nothing_is_zero() -> None:
    groups = LAYOUT.groups("tensor")
    assert torch.equal(LOW.cosines(torch.zeros(LAYOUT.size), groups), torch.zeros(len(groups), 3))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_block_of_any_rows(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, LAYOUT.size - 1))
    stop = data.draw(st.integers(start + 1, LAYOUT.size))
    rows = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=3))
    torch.testing.assert_close(LOW.block(start, stop, rows), FULL.matrix[rows, start:stop])


@pytest.mark.parametrize("chosen", [[2], [2, 0], [1, 1], [0, 1, 2]])
def test_subsets_are_numbered_anew(chosen: list[int]) -> None:
    groups, slope = LAYOUT.groups("tensor"), gradient()
    low, full = LOW.subset(chosen), FULL.subset(chosen)
    assert low.names == full.names
    torch.testing.assert_close(low.scores(slope, groups), full.scores(slope, groups), atol=1e-4, rtol=1e-5)
    coefficients = torch.randn(len(groups), len(chosen), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(low.combine(coefficients, groups), full.combine(coefficients, groups))


def test_bytes_are_those_of_the_factors_and_shared_with_subsets() -> None:
    low, *_ = make()
    low.scores(gradient(), LAYOUT.groups("model"))
    count = 0
    for adapter in ADAPTERS:
        for part in adapter.values():
            count += sum(value.numel() for value in vars(part).values() if isinstance(value, Tensor))
    assert low.bytes_read == 4 * count
    low.subset([0]).combine(torch.ones(1, 1), LAYOUT.groups("model"))
    assert low.bytes_read == 4 * count + 4 * (6 * 4 + 10 + 6)


def test_out_of_another_dtype_and_never_the_base() -> None:
    groups, coefficients = LAYOUT.groups("model"), torch.ones(1, 3)
    out = torch.empty(LAYOUT.size, dtype=torch.float64)
    assert LOW.combine(coefficients, groups, out=out) is out
    torch.testing.assert_close(out.float(), FULL.combine(coefficients, groups))
    with pytest.raises(ValueError, match="another vector"):
        LOW.combine(coefficients, groups, out=LOW.base)


def test_half_precision_factors_cost_only_their_own_rounding() -> None:
    halves = [
        {n: LowRank(p.up.bfloat16(), p.down.bfloat16()) for n, p in ADAPTERS[0].items() if isinstance(p, LowRank)}
    ]
    low = LowRankTaskVectors(LAYOUT, ["a"], LOW.base, halves)
    assert (low.vector(0) - FULL.matrix[0]).norm() < 0.01 * FULL.matrix[0].norm()


def test_a_base_in_half_precision_changes_no_digit() -> None:
    saved = LOW.base.half()
    wide, half = (LowRankTaskVectors(LAYOUT, LOW.names, base, ADAPTERS) for base in (saved.float(), saved))
    groups, slope = LAYOUT.groups("tensor"), gradient()
    shares = torch.rand(len(groups), 3, generator=torch.Generator().manual_seed(2))
    for a, b in (
        (wide.scores(slope, groups), half.scores(slope, groups)),
        (wide.cosines(slope, groups), half.cosines(slope, groups)),
        (wide.gram(groups), half.gram(groups)),
        (wide.combine(shares, groups), half.combine(shares, groups)),
        (wide.vector(2), half.vector(2)),
        (wide.block(3, 40), half.block(3, 40)),
    ):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_factors_of_a_combination_are_exact() -> None:
    weights = torch.randn(len(LAYOUT.names), 3, generator=torch.Generator().manual_seed(4))
    weights[LAYOUT.names.index("layers.1.query.weight")] = 0.0
    found = LOW.factors(weights)
    assert found["layers.0.query.weight"] is None, "a rescaled part has full rank"
    assert "layers.1.query.weight" not in found
    part = found["layers.1.fc.weight"]
    assert isinstance(part, LowRank)
    assert part.up.shape == (10, 1)
    j = LAYOUT.names.index("layers.1.fc.weight")
    expected = LAYOUT.view(FULL.matrix[0], "layers.1.fc.weight") * weights[j, 0]
    torch.testing.assert_close(part.up @ part.down, expected)


def test_truncation_is_the_best_of_its_rank() -> None:
    matrix = torch.randn(9, 5, generator=torch.Generator().manual_seed(5))
    whole, none = truncate(matrix, 5)
    torch.testing.assert_close(whole.up @ whole.down, matrix, atol=1e-5, rtol=0)
    assert none < 1e-6
    part, error = truncate(matrix, 2)
    assert part.up.shape == (9, 2)
    assert error == pytest.approx(float((part.up @ part.down - matrix).norm() / matrix.norm()), rel=1e-4)
    assert 0 < error < 1
    assert truncate(torch.zeros(3, 3), 1)[1] == 0.0


def test_a_part_of_another_shape_is_refused() -> None:
    wrong = {"layers.0.fc.weight": LowRank(torch.zeros(6, 2), torch.zeros(2, 10))}
    with pytest.raises(FwvizError, match=r"'a', tensor 'layers.0.fc.weight' does not have the shape \(10, 6\)"):
        LowRankTaskVectors(LAYOUT, ["a"], LOW.base, [wrong])
