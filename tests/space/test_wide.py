"""Sums in float64: no digits lost, piece by piece, and on the CPU for devices that have no float64."""

from __future__ import annotations

import pytest
import torch

from fwviz.space import wide


@pytest.mark.parametrize("piece", [7, 1 << 22])
def test_digits_that_float32_loses_are_kept(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "_PIECE", piece)
    a = torch.tensor([3e7, 1.0, -3e7, 0.25] * 5)
    b = torch.tensor([1.0, 1.0, 1.0, 2.0] * 5)
    assert wide.total(a) == 5 * 1.25
    assert wide.dot(a, b) == 5 * 1.5
    assert wide.dot(a[:10], b[:10]) == wide.dot(b[:10], a[:10]) == 2 * 1.5 + 3e7 + 1
    assert (wide.total(a[:0]), wide.dot(a[:0], b[:0])) == (0.0, 0.0)


@pytest.mark.parametrize("piece", [3, 1 << 22])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_base_of_any_precision_is_added_and_taken_away(
    dtype: torch.dtype, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wide, "_PIECE", piece)
    random = torch.Generator().manual_seed(0)
    base, delta = (torch.randn(10, generator=random) for _ in range(2))
    base = base.to(dtype)
    theta = wide.plus(base, delta, share=0.3)
    assert theta.dtype == torch.float32
    assert torch.equal(theta, torch.add(base.float(), delta, alpha=0.3))
    out = torch.full((10,), torch.nan)
    assert wide.plus(base, delta, out) is out
    assert torch.equal(out, base.float() + delta)
    expected = theta - base.float()
    assert torch.equal(wide.minus(theta, base, out), expected)
    assert torch.equal(wide.minus(theta, base, theta), expected)  # in place
    assert torch.equal(wide.plus(base, delta, delta, share=0.3), expected + base.float())
    with pytest.raises((ValueError, RuntimeError)):
        wide.minus(theta, base[:4], out)


def test_where_it_is_computed() -> None:
    assert wide.home(torch.device("mps")) == torch.device("cpu")
    for device in ("cpu", "cuda:1"):
        assert wide.home(torch.device(device)) == torch.device(device)
