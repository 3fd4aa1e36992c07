"""What every merge method must keep, whatever it does: one test matrix over the registry."""

from __future__ import annotations

import ast
import copy
import dataclasses
import inspect
import pkgutil
import re
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import fwviz.methods
from fwviz.registry import Entry, describe_settings, entries, parse_settings
from fwviz.runs.extension import load_extension, save_extension
from fwviz.space.vectors import ResidentTaskVectors
from fwviz.tasks.extended import load_mixture, pack, stored_bytes
from fwviz.types import GRANULARITIES, LossName, Problem, Step
from tests.toy import odd_problem, toy_problem

NAMES = list(entries("methods"))
# Enough of each method to exercise it; a value is used only where the method has such a setting.
SHORT: dict[str, Any] = {
    "max_steps": 2,
    "inner_updates": 3,
    "official_updates": 3,
    "trials": 4,
    "scale_points": 3,
    "updates": 4,
    "mask_updates": 3,
    "samples": 8,
    "passes": 8,
    "init_updates": 3,
}


@pytest.fixture(params=NAMES)
def method(request: pytest.FixtureRequest) -> Entry:
    return entries("methods")[request.param]


@pytest.fixture
def tiny_problem(tiny_pool: Any) -> Problem:
    """Four checkpoints and a foreign one of a really fine-tuned pool, judged by all its tasks."""
    from fwviz.tasks.data import load_split
    from fwviz.tasks.objectives import CalibrationObjective

    card, tasks = tiny_pool.card, tiny_pool.task_ids
    data = {task: load_split(card, card.task(task), "calibration") for task in tasks}
    objective = CalibrationObjective(tiny_pool.backbone(), data, tiny_pool.heads(tasks))
    return Problem(tiny_pool.task_vectors(tiny_pool.checkpoint_ids), objective, seed=1)


@pytest.fixture(params=["toy", "tiny"])
def problem(request: pytest.FixtureRequest) -> Problem:
    if request.param == "toy":
        return toy_problem(noise=0.5)
    found: Problem = request.getfixturevalue("tiny_problem")
    return found


def short(method: Entry, **values: Any) -> Any:
    """The method's default settings, cut short."""
    assert method.settings is not None
    names = {spec.name for spec in describe_settings(method.settings)}
    return parse_settings(method.settings, {k: v for k, v in {**SHORT, **values}.items() if k in names})


def judged_by(method: Entry) -> LossName:
    """The loss a method reports with its default settings."""
    found: LossName = getattr(short(method), "loss", "cross_entropy")
    return found


def copied(steps: Iterator[Step]) -> list[Step]:
    """All steps, with what they only lend copied."""
    return [dataclasses.replace(s, delta=None if s.delta is None else s.delta.clone()) for s in steps]


def theta_of(problem: Problem, step: Step) -> Tensor:
    if step.coefficients is None:
        assert step.delta is not None
        return problem.vectors.base + step.delta
    return problem.vectors.combine(step.coefficients, problem.groups(step.granularity))


def parts_of(step: Step) -> dict[str, Tensor]:
    """Every tensor of a merge beside its backbone."""
    if step.extension is None:
        return {}
    tensors, router, facts = pack(step.extension)
    assert facts["experts"] or facts["maps"]
    return tensors | {f"router/{name}": tensor for name, tensor in router.items()}


def assert_same_parts(a: Step, b: Step) -> None:
    one, two = parts_of(a), parts_of(b)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(two[name], tensor), name


def experts_of(problem: Problem, step: Step) -> dict[str, Tensor]:
    """Task → the weights of its expert, or what its map makes of some features."""
    if step.extension is None:
        return {}
    tasks, theta = step.extension.router.tasks, theta_of(problem, step)
    made = {}
    for k, task in enumerate(tasks):
        made[task] = torch.empty_like(theta)
        load_mixture(made[task], theta, step.extension, [float(j == k) for j in range(len(tasks))])
    for task, part in step.extension.maps.items():
        width = part.tensors()["down"].shape[1]
        made[f"map {task}"] = part(torch.eye(width))
    return made


def test_steps_are_well_formed(method: Entry, problem: Problem) -> None:
    steps = copied(method.run(problem, short(method)))
    n = problem.vectors.n
    assert steps[0].t == 0
    assert next(step for step in steps if step.inner == 0).t == 0
    order = [(step.t, step.inner == 0, step.inner) for step in steps]
    assert order == sorted(order)
    assert steps[-1].status in ("converged", "max_steps")
    assert steps[-1].inner == 0
    assert all(step.status == "running" for step in steps[:-1])
    for step in steps:
        assert step.granularity in GRANULARITIES
        assert (step.coefficients is None) != (step.delta is None)
        groups = problem.groups(step.granularity)
        if step.coefficients is not None:
            assert step.coefficients.shape == (len(groups), n)
            assert step.coefficients.dtype == torch.float32
        assert theta_of(problem, step).isfinite().all()
        for scores in (step.scores, *step.task_scores.values()):
            assert scores is None or scores.shape == (len(groups), n)
        assert step.note
        assert set(step.task_scores) <= set(problem.objective.tasks)
        assert {name for row in step.vertices for name in row} <= {*problem.vectors.names, "base", "initial"}
    if method.facts["data"] != "none":
        whole = [step for step in steps if step.extension is None]  # a backbone's own loss says little of the merge
        assert all(step.loss is not None for step in whole if step.t > 0 or step.inner == 0)
        for step in steps:
            if step.inner == 0 and step.loss is not None:
                loss = float(problem.objective.losses(theta_of(problem, step), loss=judged_by(method)).mean())
                assert loss == pytest.approx(step.loss, rel=1e-4)


def test_the_same_seed_gives_the_same_result(method: Entry, problem: Problem) -> None:
    first, second = (copied(method.run(problem, short(method))) for _ in range(2))
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(theta_of(problem, a), theta_of(problem, b))
        assert (a.loss, a.gap, a.note) == (b.loss, b.gap, b.note)
        assert_same_parts(a, b)


def test_the_pool_is_untouched(method: Entry, problem: Problem) -> None:
    vectors: Any = problem.vectors
    base, matrix = vectors.base.clone(), vectors.matrix.clone()
    for _ in method.run(problem, short(method)):
        pass
    assert torch.equal(vectors.base, base)
    assert torch.equal(vectors.matrix, matrix)


def test_steps_that_were_handed_out_do_not_change(method: Entry, problem: Problem) -> None:
    """Whoever keeps a Step keeps its numbers: only delta is lent."""
    kept, then = [], []
    for step in method.run(problem, short(method)):
        kept.append(step)
        then.append(copy.deepcopy(step.coefficients))
    for step, value in zip(kept, then, strict=True):
        assert value is None or torch.equal(step.coefficients, value)  # type: ignore[arg-type]


def test_closing_stops_at_once(method: Entry, problem: Problem) -> None:
    steps: Any = method.run(problem, short(method, max_steps=50))
    next(steps)
    begin = time.perf_counter()
    steps.close()
    assert time.perf_counter() - begin < 0.2
    with pytest.raises(StopIteration):
        next(steps)


def test_permuting_the_pool_permutes_the_coefficients(method: Entry, problem: Problem) -> None:
    order = [3, 0, 4, 2, 1]
    shuffled = dataclasses.replace(problem, vectors=problem.vectors.subset(order))
    last = copied(method.run(problem, short(method)))[-1]
    permuted = copied(method.run(shuffled, short(method)))[-1]
    experts, again = experts_of(problem, last), experts_of(shuffled, permuted)
    assert experts.keys() == again.keys()
    for task, theta in experts.items():
        torch.testing.assert_close(again[task], theta, rtol=1e-3, atol=5e-4)  # float16 factors
    if last.coefficients is None:
        torch.testing.assert_close(theta_of(shuffled, permuted), theta_of(problem, last))
    else:
        assert permuted.coefficients is not None
        torch.testing.assert_close(permuted.coefficients, last.coefficients[:, order], rtol=1e-3, atol=1e-4)


def test_parts_are_saved_as_they_are_counted(method: Entry, problem: Problem, tmp_path: Path) -> None:
    """An extension has bytes, all of them in its files, and is the same when it comes back."""
    last = copied(method.run(problem, short(method)))[-1]
    assert (last.extension is not None) == method.facts["extends"]
    if last.extension is None:
        pytest.skip("the merge is one model")
    save_extension(tmp_path, last.extension)
    again = load_extension(tmp_path, problem.vectors.layout.size)
    assert_same_parts(last, dataclasses.replace(last, extension=again))
    held = [load_file(path) for path in tmp_path.glob("*.safetensors")]
    count = sum(tensor.numel() * tensor.element_size() for tensors in held for tensor in tensors.values())
    assert count == stored_bytes(last.extension) > 0
    theta, loaded = theta_of(problem, last), dataclasses.replace(last, extension=again)
    made, again_made = experts_of(problem, last), experts_of(problem, loaded)
    assert all(torch.equal(again_made[task], expert) for task, expert in made.items())
    assert all(expert.isfinite().all() for expert in made.values())
    assert any(not torch.equal(expert, theta) for expert in made.values())


def test_copies_of_one_checkpoint_merge_to_its_segment(method: Entry) -> None:
    if not method.facts["convex"]:
        pytest.skip("the method does not claim convexity")
    toy = toy_problem(n=1, tasks=1)
    matrix = toy.vectors.vector(0).expand(4, -1).clone()
    vectors = ResidentTaskVectors(toy.vectors.layout, ("a", "b", "c", "d"), toy.vectors.base, matrix)
    last = copied(method.run(Problem(vectors, toy.objective), short(method)))[-1]
    assert last.coefficients is not None
    total = last.coefficients.sum(dim=1)
    assert (total >= -1e-6).all()
    assert (total <= 1 + 1e-5).all()
    assert (total > 0.1).any()


def test_one_checkpoint_and_one_task_are_enough(method: Entry) -> None:
    last = copied(method.run(toy_problem(n=1, tasks=1), short(method)))[-1]
    assert last.coefficients is None or last.coefficients.shape[1] == 1


@pytest.mark.parametrize("stays", [False, True], ids=["some moved", "none moved"])
def test_tensors_and_checkpoints_of_every_kind_merge(method: Entry, stays: bool) -> None:
    """Single numbers, rows, columns and frozen matrices; a copy of the base, two equal checkpoints, or all unmoved."""
    problem = odd_problem()
    vectors: Any = problem.vectors
    if stays:
        vectors.matrix.zero_()
    last = copied(method.run(problem, short(method)))[-1]
    theta = theta_of(problem, last)
    assert theta.isfinite().all()
    frozen = "vision_model.encoder.layers.1.mlp.frozen.weight"
    moved = theta - problem.vectors.base
    assert not vectors.layout.view(moved, frozen).any()
    assert not (stays and moved.any())
    for expert in experts_of(problem, last).values():
        assert expert.isfinite().all()


def test_few_checkpoints_are_ever_held_whole(method: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory must not grow with n: of the task vectors a method asks for whole, two at most are alive at a time."""
    problem = toy_problem()
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    whole = ResidentTaskVectors.vector

    def counted(self: ResidentTaskVectors, i: int) -> Tensor:
        found = whole(self, i)
        alive.add(found)
        assert len(alive) <= 2
        return found

    monkeypatch.setattr(ResidentTaskVectors, "vector", counted)
    assert copied(method.run(problem, short(method)))


def test_settings_have_help_and_range(method: Entry) -> None:
    assert method.settings is not None
    assert dataclasses.is_dataclass(method.settings)
    assert method.settings.__dataclass_params__.frozen  # type: ignore[attr-defined]
    for spec in describe_settings(method.settings):
        assert len(spec.help) > 15, spec.name
        assert spec.help[0].isupper(), spec.name
        assert spec.help.endswith("."), spec.name
        assert spec.kind in (int, float, str, bool), spec.name
        if spec.kind in (int, float):
            assert spec.low is not None, spec.name
            assert spec.high is not None, spec.name
            assert spec.low <= spec.default <= spec.high, spec.name
        if spec.kind is str:
            assert spec.default in spec.choices, spec.name
        for other, values in spec.applies.items():
            target = {s.name: s for s in describe_settings(method.settings)}[other]
            assert set(values) <= set(target.choices or (True, False)), spec.name
    defaults = {spec.name: spec.default for spec in describe_settings(method.settings)}
    assert parse_settings(method.settings, defaults) == method.settings()


def test_every_choice_runs(method: Entry) -> None:
    """Each value of each choice, alone, on the toy: finite and with the status of a finished run."""
    assert method.settings is not None
    problem = toy_problem(noise=0.5)
    for spec in describe_settings(method.settings):
        for value in spec.choices or ((False, True) if spec.kind is bool else ()):
            last = copied(method.run(problem, short(method, **{spec.name: value})))[-1]
            assert theta_of(problem, last).isfinite().all(), (spec.name, value)
            assert last.status in ("converged", "max_steps"), (spec.name, value)


def on_base(problem: Problem, dtype: torch.dtype) -> Problem:
    """The same problem on a base of float16 numbers, held in ``dtype``, with its task vectors in memory."""
    vectors = problem.vectors
    matrix = torch.stack([vectors.vector(i) for i in range(vectors.n)])
    base = vectors.base.half().to(dtype)
    return dataclasses.replace(problem, vectors=ResidentTaskVectors(vectors.layout, vectors.names, base, matrix))


def assert_same_on_a_half_base(problem: Problem, method: Entry, **values: Any) -> None:
    wide, half = (on_base(problem, dtype) for dtype in (torch.float32, torch.float16))
    first, second = (copied(method.run(one, short(method, **values))) for one in (wide, half))
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert (a.loss, a.gap, a.note) == (b.loss, b.gap, b.note), values
        for one, other in ((a.delta, b.delta), (a.coefficients, b.coefficients)):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                assert other.dtype == torch.float32, values
                assert torch.equal(one, other), values
        assert_same_parts(a, b)


def test_a_base_in_half_precision_changes_no_digit(method: Entry, problem: Problem) -> None:
    """A pool holds its base as it was saved; a buffer made like it, or a sum with it, would lose digits."""
    assert_same_on_a_half_base(problem, method)


def test_no_choice_loses_digits_on_a_half_base(method: Entry) -> None:
    assert method.settings is not None
    problem = toy_problem(noise=0.5)
    for spec in describe_settings(method.settings):
        for value in spec.choices or ((False, True) if spec.kind is bool else ()):
            assert_same_on_a_half_base(problem, method, **{spec.name: value})


def test_docstrings_give_equation_and_source(method: Entry) -> None:
    assert method.doc.splitlines()[0].endswith((".", "."))
    assert "θ" in method.doc
    assert "=" in method.doc
    assert re.search(r"arXiv:\d{4}\.\d{5}", method.doc), "name the paper by its arXiv number"
    assert method.facts["reference"]
    assert method.facts["paper"]
    assert method.facts["data"] in ("none", "labels", "inputs")
    for title, changes in method.facts["presets"].items():
        assert title
        parse_settings(method.settings, changes)


def test_each_file_registers_one_method_named_like_it() -> None:
    files = [m.name for m in pkgutil.iter_modules(fwviz.methods.__path__) if not m.name.startswith("_")]
    assert sorted(files) == sorted(NAMES)
    for name in files:
        source = (Path(fwviz.methods.__path__[0]) / f"{name}.py").read_text()
        functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
        marked = [f.name for f in functions if any("merge_method" in ast.unparse(d) for d in f.decorator_list)]
        assert marked == [name]
        assert inspect.isgeneratorfunction(entries("methods")[name].run)


def test_a_searched_scale_is_the_best_of_its_curve(method: Entry, problem: Problem) -> None:
    assert method.settings is not None
    names = {spec.name for spec in describe_settings(method.settings)}
    if "scale_search" not in names:
        pytest.skip("the method searches no scale")
    settings = short(method, scale_search="calibration")
    assert method.data_for(settings) == "labels"
    *trials, last = copied(method.run(problem, settings))
    assert [step.inner for step in trials] == [1, 2, 3]
    assert all(step.landmark for step in trials)
    for step in (*trials, last):
        loss = float(problem.objective.losses(theta_of(problem, step)).mean())
        assert loss == pytest.approx(step.loss, rel=1e-4)
    assert last.loss == min(step.loss for step in trials if step.loss is not None)
    assert last.step_size in [step.step_size for step in trials if step.loss == last.loss]
    given = copied(method.run(problem, short(method, scale=last.step_size)))[-1]
    torch.testing.assert_close(theta_of(problem, given), theta_of(problem, last))
    assert (given.coefficients is None) == (last.coefficients is None)


def test_data_free_methods_never_look_at_data(method: Entry) -> None:
    if method.facts["data"] != "none":
        pytest.skip("the method uses data")
    problem = toy_problem()
    list(method.run(problem, short(method)))
    assert problem.objective.calls == 0  # type: ignore[attr-defined]
