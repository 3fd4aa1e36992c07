"""Merges of several parts: each input is encoded by the weights its shares say; packed parts come back the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from fwviz.runs.extension import load_extension, save_extension
from fwviz.space.experts import LowRankExpert, MaskExpert, SparseExpert, pack_bits
from fwviz.tasks.batches import Chunk
from fwviz.tasks.data import load_split
from fwviz.tasks.evaluators import Evaluator
from fwviz.tasks.extended import extended_features, load_mixture, pack, stored_bytes, unpack
from fwviz.tasks.router import OracleRouter, RandomRouter
from fwviz.tasks.surgery import SurgeryMap
from fwviz.types import Extension, FwvizError

TASKS = ("colour", "stripes", "shape")


@dataclass(frozen=True)
class Whole:
    """An expert that is another model's weights."""

    weights: Tensor
    kind: str = "whole"

    @property
    def size(self) -> int:
        return self.weights.numel()

    def add_to(self, theta: Tensor, backbone: Tensor, share: float = 1.0) -> None:
        theta.add_(self.weights - backbone, alpha=share)

    def tensors(self) -> dict[str, Tensor]:
        return {"weights": self.weights}


@dataclass(frozen=True)
class ByRow:
    """Shares as given, row by row."""

    tasks: tuple[str, ...]
    table: Tensor
    kind: str = "by_row"
    reads_features: bool = True

    def shares(self, features: Tensor, task: str) -> Tensor:
        return self.table

    def tensors(self) -> dict[str, Tensor]:
        return {}


def models(pool: Any) -> tuple[Tensor, dict[str, Tensor]]:
    vectors = pool.task_vectors(TASKS)
    return vectors.base, {task: vectors.base + vectors.vector(i) for i, task in enumerate(TASKS)}


def features_at(backbone: Any, theta: Tensor, images: Tensor) -> Tensor:
    backbone.flat.load(theta)
    with torch.no_grad():
        features: Tensor = backbone.encode(backbone.pixels(images))
    return features


def test_every_row_is_encoded_by_its_own_mixture(tiny_pool: Any) -> None:
    base, own = models(tiny_pool)
    backbone = tiny_pool.backbone()
    images = load_split(tiny_pool.card, tiny_pool.card.task("shape"), "test").inputs[:12]
    table = torch.zeros(12, 3)
    table[:4, 0] = 1
    table[4:8, 1], table[4:8, 2] = 0.25, 0.75
    table[8:, 1] = 1  # "stripes" gets no expert: the backbone answers
    router = ByRow(TASKS, table)
    extension = Extension(router, {task: Whole(own[task]) for task in ("colour", "shape")})
    got = extended_features(backbone, base, extension, {"shape": images}, chunk=Chunk(5))
    assert got is not None
    expected = torch.cat(
        [
            features_at(backbone, own["colour"], images[:4]),
            features_at(backbone, 0.25 * base + 0.75 * own["shape"], images[4:8]),
            features_at(backbone, base, images[8:]),
        ]
    )
    torch.testing.assert_close(got["shape"], expected, atol=1e-5, rtol=0)


def test_the_oracle_gives_each_task_its_own_models_score(tiny_pool: Any) -> None:
    base, own = models(tiny_pool)
    evaluator = Evaluator(tiny_pool.backbone(), tiny_pool.card, TASKS, tiny_pool.heads(TASKS), chunk=7)
    extension = Extension(OracleRouter(TASKS), {task: Whole(own[task]) for task in TASKS})
    quick = evaluator.quick(base, extension=extension)
    full = evaluator.full(base, split="test", extension=extension)
    for task in TASKS:
        assert quick[task].loss == pytest.approx(evaluator.quick(own[task])[task].loss, abs=1e-5)
        assert full[task].accuracy == evaluator.full(own[task])[task].accuracy
        assert full[task].loss == pytest.approx(evaluator.full(own[task])[task].loss, abs=1e-5)
    plain = evaluator.full(base)
    assert any(plain[task].accuracy != full[task].accuracy for task in TASKS)
    wrong = evaluator.full(base, extension=Extension(RandomRouter(TASKS, 0), extension.experts))
    assert sum(s.loss for s in wrong.values()) > sum(s.loss for s in full.values())


def test_a_map_corrects_the_task_whose_head_answers(tiny_pool: Any) -> None:
    base, _ = models(tiny_pool)
    backbone = tiny_pool.backbone()
    down, up = torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(0))
    extension = Extension(OracleRouter(TASKS), maps={"shape": SurgeryMap(down, up.T.contiguous())})
    images = load_split(tiny_pool.card, tiny_pool.card.task("shape"), "test").inputs[:5]
    got = extended_features(backbone, base, extension, {"shape": images, "colour": images}, chunk=Chunk(4))
    assert got is not None
    plain = features_at(backbone, base, images)
    expected = F.normalize(plain - torch.relu(plain @ down.T) @ up, dim=-1)
    torch.testing.assert_close(got["shape"], expected)
    torch.testing.assert_close(got["colour"], plain)


def test_a_stop_comes_between_passes(tiny_pool: Any) -> None:
    base, own = models(tiny_pool)
    evaluator = Evaluator(tiny_pool.backbone(), tiny_pool.card, TASKS, tiny_pool.heads(TASKS), chunk=16)
    extension = Extension(OracleRouter(TASKS), {task: Whole(own[task]) for task in TASKS})
    asked = []
    assert evaluator.full(base, extension=extension, should_stop=lambda: asked.append(1) or len(asked) > 3) is None
    assert len(asked) == 4


def example(size: int = 40) -> Extension:
    base = torch.linspace(-1, 1, size).half()
    return Extension(
        RandomRouter(("a", "b", "c", "d"), 5),
        {
            "a": SparseExpert.make(torch.tensor([3, 8]), torch.tensor([1.0, -2.0]), size),
            "b": MaskExpert(pack_bits(torch.arange(size) % 3 == 0), 1.5, base),
            "c": MaskExpert(pack_bits(torch.arange(size) % 2 == 0), 0.5, base),
            "d": LowRankExpert.make(size, {4: (torch.ones(3, 1), torch.ones(1, 2))}, {30: torch.ones(4)}),
        },
        {"a": SurgeryMap(torch.ones(2, 6), torch.ones(6, 2))},
    )


def test_what_was_saved_is_what_was_counted_and_comes_back(tmp_path: Any) -> None:
    extension = example()
    save_extension(tmp_path, extension)
    again = load_extension(tmp_path, 40)
    assert again is not None
    theta = torch.randn(40, generator=torch.Generator().manual_seed(0))
    for k in range(4):
        shares = [0.0] * 4
        shares[k] = 1.0
        one, two = torch.empty(40), torch.empty(40)
        load_mixture(one, theta, extension, shares)
        load_mixture(two, theta, again, shares)
        assert not torch.equal(one, theta)
        assert torch.equal(one, two)
    features = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again.maps["a"](features), extension.maps["a"](features))
    held = [load_file(tmp_path / name) for name in ("experts.safetensors", "router.safetensors")]
    count = sum(t.numel() * t.element_size() for tensors in held for t in tensors.values())
    assert count == stored_bytes(extension)
    assert stored_bytes(None) == 0


def test_a_shared_base_is_stored_once() -> None:
    tensors, _, facts = pack(example())
    assert facts["experts"]["b"]["tensors"]["base"] == facts["experts"]["c"]["tensors"]["base"]
    assert sum(t.numel() == 40 for t in tensors.values()) == 1


def test_what_does_not_fit_is_refused(tmp_path: Any) -> None:
    assert load_extension(tmp_path, 40) is None
    extension = example()
    tensors, router, facts = pack(extension)
    with pytest.raises(FwvizError, match="another architecture"):
        unpack(tensors, router, facts, 41)
    with pytest.raises(FwvizError, match="cannot be read"):
        unpack({}, router, facts, 40)
    with pytest.raises(FwvizError, match="cannot be read"):
        unpack(tensors, router, {**facts, "router": {"kind": "__class__", "tasks": []}}, 40)
    save_extension(tmp_path, extension)
    (tmp_path / "experts.safetensors").write_bytes(b"short")
    with pytest.raises(FwvizError, match="damaged"):
        load_extension(tmp_path, 40)
    (tmp_path / "extension.json").write_text("[1]")
    with pytest.raises(FwvizError, match="another version"):
        load_extension(tmp_path, 40)
