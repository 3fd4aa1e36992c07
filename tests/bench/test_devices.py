"""No operation mixes devices, checked where there is no GPU: on tensors that have a device, but no numbers.

What such tensors cannot do, backward passes and sizes that depend on numbers, needs a real one (``-m gpu``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fwviz.bench.synthetic import random_vectors, vit_layout
from fwviz.space.spectrum import high_pass, low_pass, official_high_pass
from fwviz.space.wide import double
from fwviz.types import Granularity

fake = pytest.importorskip("torch._subclasses.fake_tensor")

LAYOUT = vit_layout(width=24, blocks=1, patch=8, image=16)


@pytest.fixture
def no_numbers() -> Iterator[None]:
    with fake.FakeTensorMode(allow_non_fake_inputs=True):
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("granularity", ["model", "tensor"])
@pytest.mark.parametrize("source", ["cpu", "cuda"])
def test_task_vectors_stay_on_their_device(
    no_numbers: None, dtype: torch.dtype, granularity: Granularity, source: str
) -> None:
    """Whatever device the gradient comes from; what is small comes back on the CPU."""
    vectors, groups = random_vectors(LAYOUT, 3, dtype, "cuda"), LAYOUT.groups(granularity)
    gradient = torch.randn(LAYOUT.size, device=source)
    for found, shape in (
        (vectors.scores(gradient, groups), (len(groups), 3)),
        (vectors.cosines(gradient, groups), (len(groups), 3)),
        (vectors.gram(groups), (len(groups), 3, 3)),
    ):
        assert (found.device.type, tuple(found.shape)) == ("cpu", shape)
    assert vectors.vector(1).device.type == "cuda"
    assert vectors.base.device.type == "cuda"


class WithoutFloat64(TorchDispatchMode):
    """A device like Apple's, which torch cannot even pretend to have elsewhere: nothing there may be float64."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and (found.device.type, found.dtype) == ("cuda", torch.float64):
            raise TypeError("this device has no float64")
        return found


def test_task_vectors_need_no_float64_on_the_device(no_numbers: None) -> None:
    vectors, groups = random_vectors(LAYOUT, 3, torch.float32, "cuda"), LAYOUT.groups("layer")
    gradient = torch.randn(LAYOUT.size, device="cuda")
    with WithoutFloat64():
        assert vectors.scores(gradient, groups).device.type == "cpu"
        assert vectors.cosines(gradient, groups).dtype == torch.float32
        assert vectors.gram(groups).dtype == torch.float64
        with pytest.raises(TypeError, match="float64"):
            gradient.double()


def test_filters_need_no_float64_on_the_device_either(no_numbers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fwviz.space.wide._WITHOUT", ("cuda",))
    matrix = torch.randn(6, 9, device="cuda")
    with WithoutFloat64():
        for filtered in (high_pass(matrix, 0.3), low_pass(matrix, 0.3), official_high_pass(matrix, 0.7)):
            assert (filtered.device.type, filtered.dtype, filtered.shape) == ("cuda", torch.float32, matrix.shape)
        assert (double(matrix).device.type, double(matrix).dtype) == ("cpu", torch.float64)


def test_the_check_itself_can_fail(no_numbers: None) -> None:
    with pytest.raises(RuntimeError, match="device"):
        torch.zeros(3, device="cuda") + torch.zeros(3)
