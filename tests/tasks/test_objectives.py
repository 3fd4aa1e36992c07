"""The objective and the evaluator on a really trained pool: gradients are gradients, means are means, stop stops."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fwviz.pools.open import Pool
from fwviz.tasks.data import load_split
from fwviz.tasks.evaluators import QUICK_COUNT, Evaluator
from fwviz.tasks.objectives import CalibrationObjective
from fwviz.types import FwvizError, LossName, Objective

LOSSES: list[LossName] = ["cross_entropy", "entropy"]


def make_objective(pool: Pool, tasks: tuple[str, ...] | None = None, **options: Any) -> CalibrationObjective:
    names = tasks or pool.task_ids
    data = {task: load_split(pool.card, pool.card.task(task), "calibration") for task in names}
    return CalibrationObjective(pool.backbone(), data, pool.heads(names), **options)


def make_evaluator(pool: Pool, **options: Any) -> Evaluator:
    return Evaluator(pool.backbone(), pool.card, pool.task_ids, pool.heads(pool.task_ids), **options)


@pytest.fixture(scope="module")
def objective(tiny_pool: Pool) -> CalibrationObjective:
    return make_objective(tiny_pool)


@pytest.fixture(scope="module")
def merged(tiny_pool: Pool) -> Tensor:
    """Weights away from the base, where nothing is special."""
    vectors = tiny_pool.task_vectors(tiny_pool.checkpoint_ids)
    return vectors.combine(torch.full((1, vectors.n), 0.2), tiny_pool.layout.groups("model"))


def reference_logits(pool: Pool, theta: Tensor, task: str, split: Any) -> tuple[Tensor, Tensor]:
    """Logits by Hugging Face's model with merged weights put in, and the labels."""
    from transformers import CLIPModel

    from fwviz.space.layout import unflatten

    model = CLIPModel.from_pretrained(pool.card.root / "base", dtype=torch.float32, local_files_only=True).eval()
    model.load_state_dict(unflatten(pool.layout, theta), strict=False)
    data = load_split(pool.card, pool.card.task(task), split)
    pixels = (data.inputs.float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        features = F.normalize(model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output, dim=-1)
        return model.logit_scale.exp() * features @ pool.heads([task])[task].T, data.labels


# --- the objective ------------------------------------------------------------------------------


def test_it_is_an_objective(objective: CalibrationObjective) -> None:
    assert isinstance(objective, Objective)
    assert objective.tasks == ("colour", "stripes", "shape", "corner")


def test_losses_are_those_of_clip_model(tiny_pool: Pool, objective: CalibrationObjective, merged: Tensor) -> None:
    for task in ("colour", "corner"):
        logits, labels = reference_logits(tiny_pool, merged, task, "calibration")
        expected = torch.stack(
            [F.cross_entropy(logits, labels), torch.distributions.Categorical(logits=logits).entropy().mean()]
        )
        found = torch.stack([objective.losses(merged, tasks=[task], loss=loss)[0] for loss in LOSSES])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_matches_finite_differences(objective: CalibrationObjective, merged: Tensor, loss: LossName) -> None:
    """Along directions inside single layers and across all, with the step where rounding and curvature balance."""
    losses, gradient = objective.gradient(merged, loss=loss)
    gradient = gradient.clone()
    torch.testing.assert_close(losses, objective.losses(merged, loss=loss))
    generator = torch.Generator().manual_seed(0)
    size = merged.numel()
    for start, stop in [(0, size), (0, size // 8), (size // 2, size // 2 + 1000), (size - 500, size)]:
        direction = torch.zeros(size)
        direction[start:stop] = torch.randn(stop - start, generator=generator)
        # Tilted towards the gradient, so that the slope stands out of float32 rounding.
        direction[start:stop] += 3 * gradient[start:stop] / gradient[start:stop].norm() * (stop - start) ** 0.5
        direction /= direction.norm()
        step = 0.02
        ahead, behind = (
            objective.losses(merged + sign * step * direction, loss=loss).double().mean() for sign in (1, -1)
        )
        slope = float((ahead - behind) / (2 * step))
        assert float(gradient @ direction) == pytest.approx(slope, rel=0.03, abs=2e-4)
        assert abs(slope) > 1e-3


@pytest.mark.parametrize("loss", LOSSES)
def test_task_gradients_average_to_the_joint_one(
    objective: CalibrationObjective, merged: Tensor, loss: LossName
) -> None:
    losses, gradient = objective.gradient(merged, loss=loss)
    joint = gradient.clone()
    single = [
        (row, slope.clone())
        for row, slope in (objective.gradient(merged, tasks=[t], loss=loss) for t in objective.tasks)
    ]
    torch.testing.assert_close(torch.cat([row for row, _ in single]), losses)
    mean = torch.stack([slope for _, slope in single]).mean(0)
    assert (mean - joint).norm() < 1e-4 * joint.norm()
    assert all((slope - joint).norm() > 0.1 * joint.norm() for _, slope in single)


def test_tasks_of_unequal_size_weigh_the_same(tiny_pool: Pool, objective: CalibrationObjective, merged: Tensor) -> None:
    """A mean of task means, not a mean over samples."""
    data = {task: load_split(tiny_pool.card, tiny_pool.card.task(task), "test") for task in ("colour", "corner")}
    calibration = load_split(tiny_pool.card, tiny_pool.card.task("colour"), "calibration")
    both = CalibrationObjective(
        tiny_pool.backbone(), {"colour": calibration, "corner": data["corner"]}, tiny_pool.heads(list(data))
    )
    assert len(calibration) != len(data["corner"])
    _, joint = both.gradient(merged)
    parts = []
    for task in both.tasks:
        other = CalibrationObjective(
            tiny_pool.backbone(),
            {task: calibration if task == "colour" else data["corner"]},
            tiny_pool.heads([task]),
        )
        parts.append(other.gradient(merged)[1].clone())
    assert (torch.stack(parts).mean(0) - joint).norm() < 1e-4 * joint.norm()


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_passes_do_not_change_the_result(tiny_pool: Pool, merged: Tensor, chunk: int) -> None:
    def measure(chunk: int) -> tuple[Tensor, Tensor]:
        """Nine samples of each task, so that passes end inside tasks and span them."""
        objective, generator = make_objective(tiny_pool, ("colour", "shape"), chunk=chunk), torch.Generator()
        losses, gradient = objective.gradient(merged, batch_size=9, generator=generator.manual_seed(0))
        return losses, gradient

    losses, gradient = measure(18)
    found, slope = measure(chunk)
    torch.testing.assert_close(found, losses)
    assert (slope - gradient).norm() < 1e-4 * gradient.norm()


def test_order_and_choice_of_tasks(objective: CalibrationObjective, merged: Tensor) -> None:
    losses = objective.losses(merged)
    torch.testing.assert_close(objective.losses(merged, tasks=["corner", "colour"]), losses[[3, 0]])
    with pytest.raises(FwvizError, match="no task 'other'"):
        objective.losses(merged, tasks=["other"])


def test_batches_follow_their_generator(objective: CalibrationObjective, merged: Tensor) -> None:
    def draw(seed: int) -> Tensor:
        return objective.losses(merged, batch_size=8, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    generator = torch.Generator().manual_seed(0)
    first = objective.losses(merged, batch_size=8, generator=generator)
    assert not torch.equal(first, objective.losses(merged, batch_size=8, generator=generator)), "each call draws anew"
    whole = objective.losses(merged, batch_size=48, generator=generator)
    torch.testing.assert_close(whole, objective.losses(merged))  # without replacement


def test_batch_gradients_are_unbiased(objective: CalibrationObjective, merged: Tensor) -> None:
    _, gradient = objective.gradient(merged, tasks=["colour"])
    exact, generator = gradient.clone(), torch.Generator().manual_seed(0)
    total = torch.zeros_like(exact)
    for _ in range(60):
        total += objective.gradient(merged, tasks=["colour"], batch_size=12, generator=generator)[1]
    assert (total / 60 - exact).norm() < 0.25 * exact.norm()


def test_entropy_needs_no_labels_and_takes_other_inputs(tiny_pool: Pool, merged: Tensor) -> None:
    test = {task: load_split(tiny_pool.card, tiny_pool.card.task(task), "test") for task in ("colour",)}
    objective = make_objective(tiny_pool, ("colour",), unlabelled={"colour": test["colour"].inputs})
    logits, _ = reference_logits(tiny_pool, merged, "colour", "test")
    expected = torch.distributions.Categorical(logits=logits).entropy().mean()
    torch.testing.assert_close(objective.losses(merged, loss="entropy")[0], expected, atol=1e-5, rtol=1e-5)
    plain = make_objective(tiny_pool, ("colour",))
    assert torch.equal(objective.losses(merged), plain.losses(merged)), "labelled losses stay on calibration samples"
    assert not torch.equal(objective.losses(merged, loss="entropy"), plain.losses(merged, loss="entropy"))


def test_theta_is_read_not_kept(tiny_pool: Pool, objective: CalibrationObjective, merged: Tensor) -> None:
    before = merged.clone()
    _, gradient = objective.gradient(merged)
    first = gradient.clone()
    assert torch.equal(merged, before)
    _, again = objective.gradient(tiny_pool.base)
    assert again.data_ptr() == gradient.data_ptr(), "one buffer, borrowed"
    assert not torch.equal(again, first)
    assert torch.equal(objective.gradient(merged)[1], first), "nothing is left over from the last call"


def test_check_ends_a_long_gradient(tiny_pool: Pool, merged: Tensor) -> None:
    class Halt(Exception):
        pass

    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Halt

    objective = make_objective(tiny_pool, chunk=10, check=check)
    with pytest.raises(Halt):
        objective.gradient(merged)
    assert len(calls) == 3
    objective.check = lambda: None
    _, gradient = objective.gradient(merged)
    _, expected = make_objective(tiny_pool, chunk=10).gradient(merged)
    assert torch.equal(gradient, expected), "half a gradient does not leak into the next"


def test_jobs_in_threads_do_not_disturb_each_other(tiny_pool: Pool, merged: Tensor) -> None:
    thetas = [tiny_pool.base, merged, 0.5 * (merged + tiny_pool.base)]
    expected = [make_objective(tiny_pool).gradient(theta)[1].clone() for theta in thetas]
    results: dict[int, list[Tensor]] = {}
    scores: dict[int, Any] = {}

    def job(k: int) -> None:
        objective, evaluator = make_objective(tiny_pool), make_evaluator(tiny_pool)
        results[k] = []
        for _ in range(3):
            results[k].append(objective.gradient(thetas[k])[1].clone())
            scores[k] = evaluator.quick(thetas[k])

    threads = [threading.Thread(target=job, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(3):
        assert len(results[k]) == 3
        assert all((slope - expected[k]).norm() < 1e-5 * expected[k].norm() for slope in results[k])
        assert scores[k] == make_evaluator(tiny_pool).quick(thetas[k])


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"batch_size": 4}, {"tasks": []}, {"tasks": ["colour", "colour"]}]
)
def test_misuse_is_refused(objective: CalibrationObjective, merged: Tensor, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        objective.losses(merged, **options)


def test_no_task_is_refused(tiny_pool: Pool) -> None:
    with pytest.raises(FwvizError, match="no task"):
        CalibrationObjective(tiny_pool.backbone(), {}, {})
    with pytest.raises(FwvizError, match="no task"):
        Evaluator(tiny_pool.backbone(), tiny_pool.card, (), {})


def test_head_of_another_task_is_refused(tiny_pool: Pool) -> None:
    data = {"colour": load_split(tiny_pool.card, tiny_pool.card.task("colour"), "calibration")}
    with pytest.raises(FwvizError, match="labels beyond the 3 classes"):
        CalibrationObjective(tiny_pool.backbone(), data, {"colour": tiny_pool.heads(["shape"])["shape"]})
    with pytest.raises(FwvizError, match=r"must be \(C, 24\)"):
        CalibrationObjective(tiny_pool.backbone(), data, {"colour": torch.zeros(4, 8)})


# --- the oracle's premise -----------------------------------------------------------------------


def test_own_checkpoint_is_the_steepest_descent(tiny_pool: Pool, objective: CalibrationObjective) -> None:
    """Fig. 3 of FW-Merging: per task, the most negative ⟨∇ℓ_task(θ₀), τ⟩ belongs to the checkpoint trained on it."""
    vectors = tiny_pool.task_vectors(tiny_pool.checkpoint_ids)
    for task in objective.tasks:
        _, gradient = objective.gradient(tiny_pool.base, tasks=[task])
        scores = vectors.scores(gradient, tiny_pool.layout.groups("model"))[0]
        chosen = vectors.names[int(scores.argmin())]
        assert tiny_pool.card.checkpoint(chosen).task == task
        assert scores.min() < 0


# --- the evaluator ------------------------------------------------------------------------------


def test_full_scores_are_those_on_the_card(tiny_pool: Pool) -> None:
    """The fixture measured them with Hugging Face's model before anything of fwviz touched the files."""
    evaluator = make_evaluator(tiny_pool)
    vectors = tiny_pool.task_vectors(tiny_pool.checkpoint_ids)
    for split in ("validation", "test"):
        base = evaluator.full(tiny_pool.base, split)
        for task in tiny_pool.card.tasks:
            assert base[task.id].accuracy == pytest.approx(task.accuracy["base"][split], abs=1e-4)
            assert base[task.id].count == task.splits[split].rows
    for i, checkpoint in enumerate(tiny_pool.card.checkpoints):
        found = evaluator.full(tiny_pool.base + vectors.vector(i))[checkpoint.task]
        assert found.accuracy == pytest.approx(checkpoint.accuracy["test"], abs=1e-4)


def test_scores_are_those_of_clip_model(tiny_pool: Pool, merged: Tensor) -> None:
    scores = make_evaluator(tiny_pool, chunk=13).full(merged)
    for task in ("stripes", "shape"):
        logits, labels = reference_logits(tiny_pool, merged, task, "test")
        assert scores[task].accuracy == pytest.approx(float((logits.argmax(-1) == labels).float().mean()))
        assert scores[task].loss == pytest.approx(float(F.cross_entropy(logits, labels)), abs=1e-5)


def test_quick_scores_are_a_subset_of_validation(tiny_pool: Pool, merged: Tensor) -> None:
    evaluator = make_evaluator(tiny_pool, quick_count=12)
    quick = evaluator.quick(merged)
    assert all(score.count == 12 for score in quick.values())
    assert quick == evaluator.quick(merged)
    assert list(quick) == list(tiny_pool.task_ids)
    everything = make_evaluator(tiny_pool, quick_count=QUICK_COUNT)
    full = everything.full(merged, "validation")
    for task, score in everything.quick(merged).items():
        assert (score.accuracy, score.count) == (full[task].accuracy, full[task].count)
        assert score.loss == pytest.approx(full[task].loss, abs=1e-5)


def test_stop_comes_between_passes(tiny_pool: Pool) -> None:
    evaluator = make_evaluator(tiny_pool, chunk=16)
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) > 4

    assert evaluator.full(tiny_pool.base, should_stop=should_stop) is None
    assert len(asked) == 5
    assert evaluator.quick(tiny_pool.base, should_stop=lambda: True) is None
    assert evaluator.quick(tiny_pool.base, should_stop=lambda: False) == evaluator.quick(tiny_pool.base)


def test_evaluation_leaves_the_borrowed_gradient_alone(tiny_pool: Pool, merged: Tensor) -> None:
    """Objective and evaluator of a job share one tower."""
    backbone = tiny_pool.backbone()
    heads = tiny_pool.heads(tiny_pool.task_ids)
    data = {task: load_split(tiny_pool.card, tiny_pool.card.task(task), "calibration") for task in tiny_pool.task_ids}
    objective = CalibrationObjective(backbone, data, heads)
    evaluator = Evaluator(backbone, tiny_pool.card, tiny_pool.task_ids, heads)
    _, gradient = objective.gradient(merged)
    before = gradient.clone()
    evaluator.quick(tiny_pool.base)
    assert torch.equal(gradient, before)
    assert torch.equal(objective.gradient(merged)[1], before)


def test_weights_of_another_size_are_refused(tiny_pool: Pool, objective: CalibrationObjective) -> None:
    for call in (objective.losses, objective.gradient, make_evaluator(tiny_pool).quick, make_evaluator(tiny_pool).full):
        with pytest.raises(ValueError, match="theta has shape"):
            call(tiny_pool.base[:-1])
