"""Experts: what is stored makes the weights it should, exactly, and takes the bytes it says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fwviz.space.experts import LowRankExpert, MaskExpert, SparseExpert, pack_bits, smallest_exact, unpack_bits
from fwviz.types import Expert, FwvizError


@given(st.sets(st.integers(0, 200_000), max_size=60), st.integers(0, 70_000))
def test_indices_come_back_whatever_their_distances(places: set[int], beyond: int) -> None:
    indices = torch.tensor(sorted(places), dtype=torch.int64)
    expert = SparseExpert.make(indices, torch.ones(len(places)), 200_001 + beyond)
    assert torch.equal(expert.indices, indices)
    assert torch.equal(SparseExpert.from_tensors(expert.tensors()).indices, indices)


@pytest.mark.parametrize(
    ("gap", "code"), [(1, "bits"), (2, "bits"), (20, "gaps8"), (254, "gaps8"), (255, "gaps8"), (1000, "gaps16")]
)
def test_the_smallest_code_is_chosen(gap: int, code: str) -> None:
    indices = torch.arange(0, 100_000, gap)
    expert = SparseExpert.make(indices, torch.ones(len(indices)), 100_000)
    assert expert.code == code
    assert torch.equal(expert.indices, indices)


def test_a_percent_of_the_parameters_takes_about_three_bytes_each() -> None:
    generator = torch.Generator().manual_seed(0)
    size = 200_000
    indices = torch.randperm(size, generator=generator)[: size // 100].sort().values
    expert = SparseExpert.make(indices, torch.randn(len(indices), generator=generator), size)
    count = sum(t.numel() * t.element_size() for t in expert.tensors().values())
    assert 3 * len(indices) < count < 3.2 * len(indices)


def test_a_sparse_expert_adds_its_share_where_it_says() -> None:
    indices, values = torch.tensor([1, 4, 7]), torch.tensor([3.0, -40.0, 0.5])
    expert = SparseExpert.make(indices, values, 9)
    backbone = torch.arange(9.0)
    theta = backbone.clone()
    expert.add_to(theta, backbone, 0.5)
    expected = backbone.clone()
    expected[indices] += 0.5 * values
    torch.testing.assert_close(theta, expected, rtol=1e-3, atol=0)
    assert torch.equal((theta != backbone).nonzero().flatten(), indices)


def test_tiny_and_huge_values_keep_their_digits() -> None:
    values = torch.tensor([1e-9, -3e-9, 2.5e-9])  # far below what float16 can hold
    expert = SparseExpert.make(torch.arange(3), values, 3)
    theta = torch.zeros(3)
    expert.add_to(theta, torch.zeros(3))
    torch.testing.assert_close(theta, values, rtol=1e-3, atol=0)


def test_damaged_sparse_experts_are_refused() -> None:
    good = SparseExpert.make(torch.tensor([0, 20, 40]), torch.ones(3), 41).tensors()
    with pytest.raises(FwvizError, match="do not fit"):
        SparseExpert.from_tensors({**good, "values": torch.ones(2, dtype=torch.float16)})
    with pytest.raises(FwvizError, match="do not fit"):
        SparseExpert.from_tensors({**good, "size": torch.tensor([40])})
    with pytest.raises(FwvizError, match="no indices"):
        SparseExpert.from_tensors({name: t for name, t in good.items() if name in ("values", "scale", "size")})


@pytest.mark.parametrize("size", [1, 7, 8, 9, 64, 1001])
def test_bits_come_back(size: int) -> None:
    mask = torch.rand(size, generator=torch.Generator().manual_seed(size)) > 0.3
    packed = pack_bits(mask)
    assert packed.numel() == -(-size // 8)
    assert torch.equal(unpack_bits(packed, 0, size), mask)
    if size > 16:
        assert torch.equal(unpack_bits(packed, 8, size - 3), mask[8 : size - 3])


def test_a_mask_expert_is_the_base_plus_the_masked_scaled_difference() -> None:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(30, generator=generator).half().float()
    backbone = base + torch.randn(30, generator=generator)
    mask = torch.rand(30, generator=generator) > 0.5
    expert = MaskExpert(pack_bits(mask), 0.7, smallest_exact(base))
    assert expert.base.dtype == torch.float16
    theta = backbone.clone()
    expert.add_to(theta, backbone)
    torch.testing.assert_close(theta, base + 0.7 * mask * (backbone - base))
    half = backbone.clone()
    expert.add_to(half, backbone, 0.25)
    torch.testing.assert_close(half, 0.75 * backbone + 0.25 * theta)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_smallest_exact_type_loses_nothing(dtype: torch.dtype) -> None:
    values = (1e-3 * torch.randn(50, generator=torch.Generator().manual_seed(2)) + 1e5 * (dtype != torch.float16)).to(
        dtype
    )
    stored = smallest_exact(values.float())
    assert stored.dtype == dtype
    assert torch.equal(stored.float(), values.float())


def test_a_low_rank_expert_adds_the_product_of_its_factors() -> None:
    generator = torch.Generator().manual_seed(3)
    left, right, bias = (torch.randn(*shape, generator=generator).half() for shape in ((4, 2), (2, 3), (5,)))
    expert = LowRankExpert.make(20, {3: (left.float(), right.float())}, {15: bias.float()})
    assert all(t.dtype == torch.float16 for name, t in expert.tensors().items() if name != "size")
    theta = torch.zeros(20)
    expert.add_to(theta, torch.zeros(20), 2.0)
    expected = torch.zeros(20)
    expected[3:15] = 2 * (left.float() @ right.float()).flatten()
    expected[15:20] = 2 * bias.float()
    torch.testing.assert_close(theta, expected)
    again = LowRankExpert.from_tensors(expert.tensors())
    theta.zero_()
    again.add_to(theta, torch.zeros(20), 2.0)
    torch.testing.assert_close(theta, expected)
    with pytest.raises(FwvizError, match="do not fit together"):
        LowRankExpert.from_tensors({**expert.tensors(), "size": torch.tensor([19])})


def test_all_of_them_are_experts() -> None:
    sparse = SparseExpert.make(torch.tensor([0]), torch.ones(1), 2)
    mask = MaskExpert(pack_bits(torch.ones(2, dtype=torch.bool)), 1.0, torch.zeros(2))
    for expert in (sparse, mask, LowRankExpert.make(2, {}, {0: torch.ones(2)})):
        assert isinstance(expert, Expert)
        assert expert.size == 2
