"""What the objective measures inside the model, against Hugging Face's model and plain autograd class by class."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fwviz.pools.open import Pool
from fwviz.space.layout import unflatten
from fwviz.tasks.data import load_split
from fwviz.tasks.objectives import CalibrationObjective
from fwviz.types import FwvizError, Probe, Problem

TASKS = ("colour", "stripes")


@pytest.fixture(scope="module")
def theta(tiny_pool: Pool) -> Tensor:
    vectors = tiny_pool.task_vectors(tiny_pool.checkpoint_ids)
    return vectors.combine(torch.full((1, vectors.n), 0.2), tiny_pool.layout.groups("model"))


def make_objective(pool: Pool, keep: int = 48, **options: Any) -> CalibrationObjective:
    splits = {task: load_split(pool.card, pool.card.task(task), "calibration") for task in TASKS}
    data = {
        task: replace(split, inputs=split.inputs[:keep], labels=split.labels[:keep]) for task, split in splits.items()
    }
    return CalibrationObjective(pool.backbone(), data, pool.heads(TASKS), **options)


@pytest.fixture(scope="module")
def objective(tiny_pool: Pool) -> CalibrationObjective:
    card = tiny_pool.card
    return make_objective(tiny_pool, unlabelled={t: load_split(card, card.task(t), "test").inputs for t in TASKS})


@pytest.fixture(scope="module")
def clip(tiny_pool: Pool, theta: Tensor) -> Any:
    """Hugging Face's model at the same weights."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(tiny_pool.card.root / "base", dtype=torch.float32, local_files_only=True).eval()
    model.load_state_dict(unflatten(tiny_pool.layout, theta), strict=False)
    return model


def images_of(pool: Pool, task: str, split: Any = "calibration") -> Tensor:
    return (load_split(pool.card, pool.card.task(task), split).inputs.float() / 255 - 0.5) / 0.5


def features_of(clip: Any, pixels: Tensor) -> Tensor:
    return F.normalize(clip.get_image_features(pixel_values=pixels, return_dict=True).pooler_output, dim=-1)


def test_it_is_a_probe(tiny_pool: Pool, objective: CalibrationObjective) -> None:
    assert isinstance(objective, Probe)
    assert Problem(tiny_pool.task_vectors(tiny_pool.checkpoint_ids), objective).probe() is objective


def test_features_are_those_of_the_model(
    tiny_pool: Pool, objective: CalibrationObjective, clip: Any, theta: Tensor
) -> None:
    with torch.no_grad():
        torch.testing.assert_close(
            objective.features(theta, "stripes"), features_of(clip, images_of(tiny_pool, "stripes")), atol=1e-5, rtol=0
        )
        unlabelled = features_of(clip, images_of(tiny_pool, "stripes", "test"))
    torch.testing.assert_close(objective.features(theta, "stripes", unlabelled=True), unlabelled, atol=1e-5, rtol=0)
    drawn = objective.features(theta, "stripes", unlabelled=True, count=7, generator=torch.Generator().manual_seed(3))
    rows = torch.randperm(len(unlabelled), generator=torch.Generator().manual_seed(3))[:7]
    torch.testing.assert_close(drawn, unlabelled[rows], atol=1e-5, rtol=0)


def test_heads_and_labels_make_the_loss(objective: CalibrationObjective, theta: Tensor) -> None:
    for task, loss in zip(TASKS, objective.losses(theta), strict=True):
        logits = objective.features(theta, task) @ objective.head(task).T
        torch.testing.assert_close(F.cross_entropy(logits, objective.labels(task)), loss)


def test_squared_gradients_are_the_fisher_diagonal(
    tiny_pool: Pool, objective: CalibrationObjective, clip: Any, theta: Tensor
) -> None:
    """By definition: one backward pass per sample and class through Hugging Face's model."""
    pixels = images_of(tiny_pool, "colour")[:5]
    rows = torch.arange(5)
    head = tiny_pool.heads(["colour"])["colour"]
    parameters = dict(clip.named_parameters())
    expected = {
        name: torch.zeros(shape) for name, shape in zip(tiny_pool.layout.names, tiny_pool.layout.shapes, strict=True)
    }
    for row in rows:
        log_p = F.log_softmax(clip.logit_scale.exp() * features_of(clip, pixels[row : row + 1]) @ head.T, dim=-1)[0]
        for c in range(len(log_p)):
            gradients = torch.autograd.grad(log_p[c], [parameters[name] for name in expected], retain_graph=True)
            for total, gradient in zip(expected.values(), gradients, strict=True):
                total += log_p[c].exp().detach() * gradient.square() / len(rows)
    small = make_objective(tiny_pool, keep=5)
    found = unflatten(tiny_pool.layout, small.squared_gradients(theta, "colour"))
    scale = math.sqrt(sum(float(total.square().mean()) for total in expected.values()) / len(expected))
    for name, total in expected.items():
        torch.testing.assert_close(found[name], total, rtol=2e-3, atol=1e-4 * scale, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("passes", [2, 8, 16])
def test_fewer_passes_are_right_in_the_mean(tiny_pool: Pool, theta: Tensor, passes: int) -> None:
    """What shares a pass, of 8 samples with 3 directions each, is (Σ ε·a)², whose mean over signs ε is Σ a²."""
    objective = make_objective(tiny_pool, keep=8)
    generator = torch.Generator().manual_seed(0)

    def fisher(passes: int | None) -> Tensor:
        return objective.squared_gradients(theta, "colour", passes=passes, generator=generator)

    exact = fisher(None)
    torch.testing.assert_close(fisher(24), exact, rtol=1e-4, atol=1e-7)  # four classes: three directions are all
    estimates = torch.stack([fisher(passes) for _ in range(16)])
    rough = float((estimates - exact).norm(dim=1).mean() / exact.norm())
    assert rough > 0.01
    assert float((estimates.mean(0) - exact).norm() / exact.norm()) < 0.5 * rough
    assert float(estimates.sum() / 16 / exact.sum()) == pytest.approx(1.0, abs=0.25)


def test_more_classes_than_features_change_nothing(tiny_pool: Pool, theta: Tensor) -> None:
    """A class given twice splits its probability: log p_c then has the same gradients, so the Fisher is the same."""
    split = load_split(tiny_pool.card, tiny_pool.card.task("colour"), "calibration")
    data = {"colour": replace(split, inputs=split.inputs[:6], labels=split.labels[:6])}
    head = tiny_pool.heads(["colour"])["colour"]
    many = head.repeat(1 + head.shape[1] // head.shape[0], 1)
    few, lots = (CalibrationObjective(tiny_pool.backbone(), data, {"colour": h}) for h in (head, many))
    torch.testing.assert_close(
        lots.squared_gradients(theta, "colour"), few.squared_gradients(theta, "colour"), rtol=5e-3, atol=1e-6
    )


def test_input_grams_are_products_of_what_linear_modules_see(
    tiny_pool: Pool, objective: CalibrationObjective, clip: Any, theta: Tensor
) -> None:
    expected: dict[str, Tensor] = {}

    def record(name: str) -> Any:
        def hook(module: Any, inputs: Any) -> None:
            rows = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
            expected[name] = expected.get(name, 0) + rows.T @ rows

        return hook

    handles = [
        module.register_forward_pre_hook(record(f"{name}.weight"))
        for name, module in clip.named_modules()
        if isinstance(module, torch.nn.Linear) and f"{name}.weight" in tiny_pool.layout.names
    ]
    with torch.no_grad():
        clip.get_image_features(pixel_values=images_of(tiny_pool, "stripes"), return_dict=True)
    for handle in handles:
        handle.remove()
    found = objective.input_grams(theta, "stripes")
    assert found.keys() == expected.keys()
    assert len(found) >= 12
    for name, gram in expected.items():
        torch.testing.assert_close(found[name], gram, rtol=1e-4, atol=1e-4 * float(gram.diag().mean()))
        assert gram.shape == (tiny_pool.layout.shapes[tiny_pool.layout.names.index(name)][1],) * 2


def test_stop_reaches_into_a_probe(tiny_pool: Pool, theta: Tensor) -> None:
    objective = make_objective(tiny_pool)

    class Enough(Exception):
        pass

    def stop() -> None:
        raise Enough

    objective.check = stop
    for call in (objective.features, objective.squared_gradients, objective.input_grams):
        with pytest.raises(Enough):
            call(theta, "colour")
    with pytest.raises(FwvizError, match="no task 'nothing'"):
        objective.features(theta, "nothing")
