"""Binding: a module's parameters and gradients become views of two flat vectors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fwviz.space.binding import bind
from fwviz.space.layout import build_layout, flatten, unflatten
from fwviz.types import FwvizError, ParamLayout


def make_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)).eval()


def layout_of(module: nn.Module, prefix: str = "", exclude: tuple[str, ...] = ()) -> ParamLayout:
    return build_layout({prefix + name: tuple(p.shape) for name, p in module.named_parameters()}, exclude=exclude)


def test_values_survive_and_both_vectors_are_views() -> None:
    module, inputs = make_module(), torch.randn(5, 3)
    before = module(inputs)
    layout = layout_of(module)
    flat = bind(module, layout)
    assert torch.equal(module(inputs), before)

    expected = torch.autograd.grad(module(inputs).square().sum(), list(module.parameters()))
    for _ in range(2):  # the second pass adds to the same memory
        module(inputs).square().sum().backward()
    by_name = dict(zip((name for name, _ in module.named_parameters()), expected, strict=True))
    torch.testing.assert_close(flat.gradient, 2 * flatten(layout, by_name))

    flat.load(torch.zeros(layout.size, dtype=torch.float64))
    assert not module(inputs).any()


def test_zero_gradient_restores_views_that_an_optimiser_dropped() -> None:
    module = make_module()
    flat = bind(module, layout_of(module))
    module.zero_grad(set_to_none=True)
    flat.gradient.fill_(7.0)
    flat.zero_gradient()
    module(torch.ones(1, 3)).sum().backward()
    assert flat.gradient.any()
    assert torch.equal(unflatten(flat.layout, flat.gradient)["2.bias"], torch.ones(2))


def test_excluded_parameters_stay_where_they_are() -> None:
    module = make_module()
    flat = bind(module, layout_of(module, exclude=("2.",)))
    assert [p.requires_grad for p in module.parameters()] == [True, True, False, False]
    head = module[2].weight.clone()
    flat.load(torch.zeros_like(flat.theta))
    assert torch.equal(module[2].weight, head)


def test_rename_maps_module_prefixes_to_layout_prefixes() -> None:
    module = make_module()
    layout = layout_of(module, prefix="vision_model.")
    with pytest.raises(FwvizError, match=r"no parameter 'vision_model\.0\.bias'.*give a rename"):
        bind(module, layout)
    flat = bind(module, layout, {"": "vision_model."})
    assert torch.equal(layout.view(flat.theta, "vision_model.2.weight"), module[2].weight)

    module = make_module()  # the longest prefix counts
    swapped = build_layout({"a.weight": (4, 3), "b.2.weight": (2, 4)})
    flat = bind(module, swapped, {"": "b.", "0.": "a."})
    assert torch.equal(swapped.view(flat.theta, "a.weight"), module[0].weight)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 3)
        self.lm_head = nn.Linear(3, 6, bias=False)
        self.lm_head.weight = self.embed.weight


@pytest.mark.parametrize("name", ["embed.weight", "lm_head.weight"])
def test_a_tied_weight_follows_under_either_name(name: str) -> None:
    module = Tied()
    flat = bind(module, build_layout({name: (6, 3)}))
    flat.load(torch.ones_like(flat.theta))
    assert module.lm_head.weight is module.embed.weight
    assert module.lm_head(torch.ones(3)).tolist() == [3.0] * 6
    module.lm_head(module.embed(torch.tensor([0]))).sum().backward()
    assert flat.gradient.view(6, 3)[1].tolist() == [1.0] * 3  # both uses count: row 0 has more
    assert flat.gradient.view(6, 3)[0].tolist() == [7.0] * 3


def test_what_cannot_be_bound_is_refused() -> None:
    both = build_layout({"embed.weight": (6, 3), "lm_head.weight": (6, 3)})
    with pytest.raises(FwvizError, match=r"'embed\.weight' and 'lm_head\.weight' are one tied tensor"):
        bind(Tied(), both)

    shared = Tied()
    shared.lm_head.weight = nn.Parameter(shared.embed.weight.data)
    with pytest.raises(FwvizError, match="share memory"):
        bind(shared, both)

    module = make_module()
    layout = layout_of(module)
    module[0].weight.data = torch.randn(3, 4).t()
    with pytest.raises(FwvizError, match=r"'0\.weight' is not contiguous"):
        bind(module, layout)
    module = make_module()
    module[2].half()
    with pytest.raises(FwvizError, match=r"'2\.bias' is torch.float16 on cpu, but '0\.bias' is torch.float32"):
        bind(module, layout)
    with pytest.raises(FwvizError, match=r"'0\.weight' has shape \(4, 3\), but the layout has \(3, 4\)"):
        bind(make_module(), build_layout({"0.weight": (3, 4)}))
    with pytest.raises(FwvizError, match=r"two parameters of the model are both called 'x\.weight'"):
        bind(make_module(), build_layout({"x.weight": (4, 3)}), {"0.": "x.", "2.": "x."})
