"""The lenses of the Weights tab, against the recorded coefficients and plain loops over the tiny pool."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fwviz.lenses.magnitudes import magnitudes
from fwviz.lenses.sign_conflict import sign_conflict
from fwviz.lenses.similarity import similarity
from fwviz.lenses.weights_by_type import weights_by_type
from fwviz.lenses.weights_map import weights_map
from fwviz.runs.assemble import Assembly
from fwviz.runs.trace import Trace
from fwviz.types import FwvizError


def test_coarse_coefficients_hold_for_all_their_tensors(average: Trace, hard: Trace) -> None:
    table = weights_map([hard, average])
    assert table["label"].nunique() == 2
    layers, frame = hard.groups["layer"], hard.frames[-1]
    assert frame.granularity == "layer"
    own = table[table["run"] == table["run"].iloc[0]]
    assert list(dict.fromkeys(own["group"])) == list(hard.groups["tensor"])
    for row in own.itertuples():
        expected = frame.coefficients[layers.index(row.layer)][hard.checkpoints.index(row.checkpoint)]  # type: ignore[index]
        assert row.coefficient == pytest.approx(expected, abs=1e-9)
    other = table[table["run"] != table["run"].iloc[0]]
    assert len(other) == len(own)
    assert average.frames[-1].granularity == "model"
    assert other["coefficient"].to_numpy() == pytest.approx(1 / len(average.checkpoints), rel=1e-5)


def test_fine_coefficients_are_averaged_by_size(hard: Trace) -> None:
    table = weights_map([hard], granularity="model").set_index("checkpoint")
    sizes = np.array(hard.group_sizes["layer"], dtype=float)
    expected = sizes @ np.array(hard.frames[-1].coefficients) / sizes.sum()
    np.testing.assert_allclose([table.loc[c, "coefficient"] for c in hard.checkpoints], expected, rtol=1e-9)


def test_the_moment_is_the_last_frame_of_the_iteration(soft: Trace) -> None:
    start = weights_map([soft], t=0)
    assert set(start["t"]) == {0}
    first = next(f for f in reversed(soft.frames) if f.t <= 1)
    rows = weights_map([soft], t=1).drop_duplicates("checkpoint").set_index("checkpoint")["coefficient"]
    assert [rows[c] for c in soft.checkpoints] == pytest.approx(list(first.coefficients[0]))  # type: ignore[index]


def test_runs_of_one_method_are_told_apart_and_others_left_out(hard: Trace) -> None:
    twice = weights_map([hard, replace(hard, id="again")])
    assert twice["label"].nunique() == twice["run"].nunique() == 2
    dense = replace(hard, frames=tuple(replace(f, coefficients=None) for f in hard.frames))
    assert len(weights_map([dense])) == 0
    assert len(weights_by_type([dense])) == 0


def test_types_average_their_tensors(hard: Trace) -> None:
    table = weights_by_type([hard]).set_index("weight_type")
    frame, layers = hard.frames[-1], hard.groups["layer"]
    for kind, word in (("attention query", ".q_proj."), ("norms", "norm")):
        chosen = [name for name in hard.groups["tensor"] if word in name]
        assert table.loc[kind, "tensors"] == len(chosen)
        where = weights_map([hard])
        rows = [frame.coefficients[layers.index(where[where["group"] == n]["layer"].iloc[0])] for n in chosen]  # type: ignore[index]
        assert table.loc[kind, "mean"] == pytest.approx(float(np.mean(rows)))
        assert table.loc[kind, "low"] == pytest.approx(float(np.quantile(rows, 0.1)))
        assert table.loc[kind, "high"] == pytest.approx(float(np.quantile(rows, 0.9)))


@pytest.mark.parametrize("group", ["model", "block.0", "vision_model.encoder.layers.0.mlp.fc1.weight"])
def test_pairs_of_a_group(assembly: Assembly, group: str) -> None:
    vectors = assembly.problem.vectors
    tau = torch.stack([vectors.vector(i) for i in range(vectors.n)])
    if group != "model":
        groups = vectors.layout.groups("layer" if group.startswith("block") else "tensor")
        start, stop = list(groups.ranges())[groups.names.index(group)]
        tau = tau[:, start:stop]
    cosine = similarity(assembly, group=group).set_index(["checkpoint", "other"])
    conflict = sign_conflict(assembly, group=group).set_index(["checkpoint", "other"])
    weighted = sign_conflict(assembly, group=group, weighted=True).set_index(["checkpoint", "other"])
    for i, a in enumerate(vectors.names):
        assert cosine.loc[(a, a), "norm"] == pytest.approx(float(tau[i].norm()), rel=1e-4)
        assert conflict.loc[(a, a), "conflict"] == 0.0
        for j, b in enumerate(vectors.names):
            expected = float(torch.cosine_similarity(tau[i].double(), tau[j].double(), dim=0))
            assert cosine.loc[(a, b), "cosine"] == pytest.approx(expected, abs=1e-5)
            product = (tau[i] * tau[j]).double()
            assert conflict.loc[(a, b), "conflict"] == pytest.approx(
                float((product < 0).sum() / (product != 0).sum()), abs=1e-6
            )
            assert weighted.loc[(a, b), "conflict"] == pytest.approx(
                float(-product[product < 0].sum() / product.abs().sum()), abs=1e-4
            )


def test_an_unknown_group_is_named(assembly: Assembly) -> None:
    with pytest.raises(FwvizError, match=r"block\.9"):
        similarity(assembly, group="block.9")


def test_magnitudes_are_quantiles_of_the_changes(assembly: Assembly) -> None:
    vectors = assembly.problem.vectors
    table = magnitudes(assembly)
    groups = vectors.layout.groups("layer")
    assert list(dict.fromkeys(table["group"])) == list(groups.names)
    assert list(dict.fromkeys(table["checkpoint"])) == ["all", *vectors.names]
    for g, (start, stop) in enumerate(groups.ranges()):
        here = table[table["group_index"] == g]
        rows = here.drop_duplicates("checkpoint").set_index("checkpoint")
        tau = vectors.block(start, stop).abs()
        for i, name in enumerate(vectors.names):
            assert rows.loc[name, "median"] == pytest.approx(float(tau[i].median()), rel=0.07)
            assert rows.loc[name, "largest"] == pytest.approx(float(tau[i].max()), rel=0.14)
        assert rows.loc["all", "q95"] == pytest.approx(float(tau.flatten().quantile(0.95)), rel=0.07)
        assert rows.loc["all", "q05"] == pytest.approx(float(tau.flatten().quantile(0.05)), rel=0.07)
        outline = here[here["checkpoint"] == "all"]
        assert outline["change"].is_monotonic_increasing
        area = np.trapezoid(outline["density"], np.log10(outline["change"]))
        assert area == pytest.approx(0.985, abs=0.03)  # all but the lowest percent, and what the kernel smears out
        assert here[here["checkpoint"] != "all"]["change"].tolist() == rows["median"][1:].tolist()
