"""The lenses that measure, against finite differences and plain loops on the tiny pool."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fwviz.lenses.lmo import lmo
from fwviz.lenses.lmo_layers import lmo_layers
from fwviz.lenses.promise import promise
from fwviz.runs.assemble import Assembly
from fwviz.types import FwvizError


@pytest.fixture(scope="module")
def theta(assembly: Assembly) -> Tensor:
    """A point that is neither the base nor a checkpoint, nor even a linear merge."""
    vectors = assembly.problem.vectors
    noise = torch.randn(vectors.base.shape, generator=torch.Generator().manual_seed(0))
    return vectors.base + 0.3 * vectors.vector(0) + 0.2 * vectors.vector(2) + 1e-3 * noise


def slope(assembly: Assembly, theta: Tensor, target: Tensor, task: str, step: float = 2e-3) -> float:
    """The derivative of one task's loss along θ → target, by central differences."""
    ends = [theta + sign * step * (target - theta) for sign in (1.0, -1.0)]
    plus, minus = (float(assembly.problem.objective.losses(end, tasks=[task])[0]) for end in ends)
    return (plus - minus) / (2 * step)


def test_scores_are_derivatives_towards_each_vertex(assembly: Assembly, theta: Tensor) -> None:
    table = lmo(assembly, theta)
    vectors = assembly.problem.vectors
    targets = {name: vectors.base + vectors.vector(i) for i, name in enumerate(vectors.names)} | {"base": vectors.base}
    assert len(table) == len(assembly.recipe.tasks) * len(targets)
    for row in table[table["task"] == "stripes"].itertuples():
        expected = slope(assembly, theta, targets[row.checkpoint], row.task)
        assert row.score == pytest.approx(expected, rel=0.02, abs=2e-3), row.checkpoint


def test_at_the_base_the_base_is_no_vertex_and_own_checkpoints_lead(assembly: Assembly) -> None:
    table = lmo(assembly)
    assert set(table["checkpoint"]) == set(assembly.problem.vectors.names)
    first = table[table["rank"] == 1]
    assert first["chosen"].all()
    assert (first["score"] < 0).all()
    assert list(first["task"]) == list(assembly.recipe.tasks)
    # The tiny pool shows what Fig. 3 of the paper shows.
    assert list(first["checkpoint"]) == list(assembly.recipe.tasks)
    assert table.groupby("task")["chosen"].sum().eq(1).all()
    foreign = table[(table["checkpoint"] == "shape_foreign")].set_index("task")
    assert foreign["own"].to_dict() == {"colour": False, "stripes": False, "shape": True}
    assert set(foreign["kind"]) == {"foreign_base"}


def test_cosine_is_the_released_codes_sum_over_tensors(assembly: Assembly, theta: Tensor) -> None:
    table = lmo(assembly, theta).set_index(["task", "checkpoint"])
    vectors, layout = assembly.problem.vectors, assembly.problem.vectors.layout
    _, gradient = assembly.problem.objective.gradient(theta, tasks=["shape"])
    weights = vectors.base + vectors.vector(1)
    total = 0.0
    for a, b in zip(layout.offsets[:-1], layout.offsets[1:], strict=True):
        g, w = gradient[a:b], weights[a:b]
        total += float(g @ w / (g.norm() * w.norm()))
    assert table.loc[("shape", "stripes"), "cosine"] == pytest.approx(total, rel=1e-4, abs=1e-5)
    assert math.isnan(table.loc[("shape", "base"), "cosine"])


@pytest.mark.parametrize("granularity", ["layer", "tensor"])
def test_layers_add_up_to_the_model(assembly: Assembly, theta: Tensor, granularity: str) -> None:
    layers = lmo_layers(assembly, theta, granularity=granularity)  # type: ignore[arg-type]
    whole = lmo(assembly, theta)
    joint = whole[whole["checkpoint"] != "base"].groupby("checkpoint")["score"].mean()
    summed = layers.groupby("checkpoint")["score"].sum()
    for name, value in joint.items():
        assert summed[name] == pytest.approx(value, rel=1e-4, abs=1e-5)
    groups = assembly.problem.groups(granularity)  # type: ignore[arg-type]
    assert list(dict.fromkeys(layers["group"])) == list(groups.names)
    best = layers.loc[layers.groupby("group_index")["score"].idxmin()]
    assert best["chosen"].all()
    assert layers["chosen"].sum() == len(groups)
    assert layers.drop_duplicates("group")["size"].sum() == assembly.problem.vectors.layout.size
    if granularity == "tensor":
        layout = assembly.problem.vectors.layout
        assert dict(zip(layers["group"], layers["layer"], strict=True)) == dict(
            zip(layout.names, layout.layers, strict=True)
        )


def test_layers_of_one_task(assembly: Assembly) -> None:
    whole = lmo(assembly).set_index(["task", "checkpoint"])["score"]
    layers = lmo_layers(assembly, task="colour")
    assert layers.groupby("checkpoint")["score"].sum()["shape"] == pytest.approx(
        whole["colour", "shape"], rel=1e-4, abs=1e-5
    )
    with pytest.raises(FwvizError, match="'corner'"):
        lmo_layers(assembly, task="corner")


def test_promise_is_tangent_to_reality_and_reality_is_measured(assembly: Assembly, theta: Tensor) -> None:
    vectors, objective = assembly.problem.vectors, assembly.problem.objective
    table = promise(assembly, theta, vertex="corner", gammas=(0.01, 0.5, 1.0))
    assert list(dict.fromkeys(table["task"])) == ["joint", *assembly.recipe.tasks]
    there = vectors.base + vectors.vector(3)
    for k, task in enumerate(assembly.recipe.tasks):
        rows = table[table["task"] == task].set_index("gamma")
        assert rows.loc[1.0, "loss"] == pytest.approx(float(objective.losses(there)[k]), rel=1e-4)
        assert rows.loc[0.0, "loss"] == pytest.approx(float(objective.losses(theta)[k]), rel=1e-4)
        assert rows.loc[0.0, "measured"] == rows.loc[0.0, "promised"] == 0.0
        assert rows.loc[0.01, "promised"] == pytest.approx(
            0.01 * slope(assembly, theta, there, task), rel=0.02, abs=1e-4
        )
        assert rows.loc[1.0, "promised"] == pytest.approx(100 * rows.loc[0.01, "promised"])
        np.testing.assert_allclose(rows["difference"], rows["measured"] - rows["promised"])
    per_task = table[table["task"] != "joint"].groupby("gamma")[["promised", "measured", "loss"]].mean()
    joint = table[table["task"] == "joint"].set_index("gamma")[["promised", "measured", "loss"]]
    np.testing.assert_allclose(joint, per_task, rtol=1e-6, atol=1e-9)


def test_promise_without_a_vertex_takes_the_most_wanted(assembly: Assembly) -> None:
    scores = lmo(assembly).groupby("checkpoint", sort=False)["score"].mean()
    table = promise(assembly, gammas=(1.0,))
    assert set(table["vertex"]) == {scores.idxmin()}
    assert table[(table["task"] == "joint") & (table["gamma"] == 1.0)]["promised"].iloc[0] == pytest.approx(
        scores.min(), rel=1e-4
    )


def test_promise_towards_base_and_stretched_vertex(assembly: Assembly, theta: Tensor) -> None:
    vectors, objective = assembly.problem.vectors, assembly.problem.objective
    back = promise(assembly, theta, vertex="base", gammas=(1.0,))
    joint = back[(back["task"] == "joint") & (back["gamma"] == 1.0)]
    assert joint["loss"].iloc[0] == pytest.approx(float(objective.losses(vectors.base).mean()), rel=1e-4)
    far = promise(assembly, vertex="shape", stretch=1.5, gammas=(1.0,))
    joint = far[(far["task"] == "joint") & (far["gamma"] == 1.0)]
    assert joint["loss"].iloc[0] == pytest.approx(
        float(objective.losses(vectors.base + 1.5 * vectors.vector(2)).mean()), rel=1e-4
    )
    with pytest.raises(FwvizError, match="'nobody'"):
        promise(assembly, vertex="nobody")


def test_nothing_is_chosen_where_nothing_promises_a_lower_loss(assembly: Assembly) -> None:
    vectors, layout = assembly.problem.vectors, assembly.problem.vectors.layout
    # Far beyond a checkpoint some tensors want nothing any more.
    table = lmo_layers(assembly, vectors.base + 3.0 * vectors.vector(0), granularity="tensor")
    best = table.groupby("group_index")["score"].min()
    assert 0 < (best >= 0).sum() < len(layout.names)
    picked = table[table["chosen"]]
    assert (picked["score"] < 0).all()
    assert len(picked) == (best < 0).sum()


def test_the_pool_and_theta_are_left_as_they_were(assembly: Assembly, theta: Tensor) -> None:
    base, given = assembly.problem.vectors.base.clone(), theta.clone()
    promise(assembly, theta, vertex="base", gammas=(0.5,))
    promise(assembly, gammas=(0.5,))
    lmo(assembly, theta)
    assert torch.equal(assembly.problem.vectors.base, base)
    assert torch.equal(theta, given)


def test_wrong_length_of_theta_is_named(assembly: Assembly) -> None:
    with pytest.raises(FwvizError, match="shape"):
        lmo(assembly, torch.zeros(3))
