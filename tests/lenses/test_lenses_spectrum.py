"""The lenses of the Spectrum tab on the tiny pool, and on waves written into it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from fwviz import registry
from fwviz.lenses.filter_response import filter_response, responses
from fwviz.lenses.spectrum_map import spectrum_map
from fwviz.lenses.spectrum_profile import spectrum_profile
from fwviz.lenses.spectrum_variance import spectrum_variance
from fwviz.lenses.variance_accuracy import variance_accuracy
from fwviz.runs.assemble import Assembly
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import execute
from fwviz.space.spectra import Matrix, matrices
from fwviz.space.spectrum import amplitude as amplitude_of
from fwviz.space.spectrum import energy_share_below, high_pass, variance_between
from fwviz.space.vectors import ResidentTaskVectors
from fwviz.types import FwvizError

TENSOR = "vision_model.encoder.layers.0.mlp.fc1.weight"


@pytest.fixture
def wave(assembly: Assembly) -> tuple[Assembly, int, int, int, int]:
    """The assembly with one wave of 5 periods down and 3 across written into the first checkpoint's matrix."""
    vectors = assembly.problem.vectors
    shape = vectors.layout.shapes[vectors.layout.names.index(TENSOR)]
    start = vectors.layout.offsets[vectors.layout.names.index(TENSOR)]
    height, width = shape
    matrix = torch.zeros(vectors.n, vectors.layout.size)
    y, x = torch.arange(height)[:, None], torch.arange(width)[None, :]
    wave = torch.cos(2 * math.pi * (5 * y / height + 3 * x / width))
    matrix[0, start : start + height * width] = wave.flatten()
    made = ResidentTaskVectors(vectors.layout, vectors.names, vectors.base, matrix)
    return replace(assembly, problem=replace(assembly.problem, vectors=made)), height, width, 5, 3


def test_the_map_shows_a_wave_at_its_place_and_its_mirror(wave: tuple[Assembly, int, int, int, int]) -> None:
    assembly, height, width, down, across = wave
    table = spectrum_map(assembly, tensor=TENSOR, size=128)
    assert len(table) == min(height, 128) * min(width, 128)
    peaks = table[table["amplitude"] > table["amplitude"].max() - 1]
    fy, fx = 2 * down / height, 2 * across / width
    found = sorted(zip(peaks["fy"].round(6), peaks["fx"].round(6), strict=True))
    assert found == sorted([(round(fy, 6), round(fx, 6)), (round(-fy, 6), round(-fx, 6))])
    assert peaks["frequency"].to_numpy() == pytest.approx(math.sqrt((fy**2 + fx**2) / 2))
    assert 10 ** float(peaks["amplitude"].iloc[0]) == pytest.approx(math.sqrt(height * width) / 2, rel=1e-4)
    rho = float(peaks["frequency"].iloc[0])
    for cutoff, kept in ((rho - 0.01, True), (rho + 0.01, False)):
        table = spectrum_map(assembly, tensor=TENSOR, size=128, cutoff=cutoff)
        assert bool(table.loc[table["amplitude"].idxmax(), "kept"]) is kept


def test_a_bounded_map_keeps_the_place(wave: tuple[Assembly, int, int, int, int]) -> None:
    assembly, height, width, down, across = wave
    table = spectrum_map(assembly, tensor=TENSOR, size=8)
    assert len(table) == 64
    peak = table.loc[table["amplitude"].idxmax()]
    assert abs(abs(peak["fy"]) - 2 * down / height) <= 1 / 8 + 1e-9
    assert abs(abs(peak["fx"]) - 2 * across / width) <= 1 / 8 + 1e-9


def test_the_map_chooses_and_refuses(assembly: Assembly) -> None:
    table = spectrum_map(assembly)
    assert table["checkpoint"].iloc[0] == assembly.problem.vectors.names[0]
    assert "layers.0.mlp" in table["tensor"].iloc[0]
    for words, options in (
        ("nobody", {"checkpoint": "nobody"}),
        ("no weight matrix", {"tensor": TENSOR.replace("weight", "bias")}),
        ("no.such", {"tensor": "no.such"}),
        ("cutoff", {"cutoff": 1.5}),
        ("size", {"size": 1000}),
    ):
        with pytest.raises(FwvizError, match=words):
            spectrum_map(assembly, **options)  # type: ignore[arg-type]


def test_the_profile_adds_up_to_the_task_vector(assembly: Assembly) -> None:
    vectors = assembly.problem.vectors
    table = spectrum_profile(assembly, group="block.0", cutoff=0.4, bins=10)
    groups = vectors.layout.groups("layer")
    start, stop = list(groups.ranges())[groups.names.index("block.0")]
    found = matrices(vectors.layout, start, stop)
    assert set(table["matrices"]) == {len(found)}
    for i, name in enumerate(vectors.names):
        rows = table[table["checkpoint"] == name]
        tau = [vectors.vector(i)[m.start : m.stop].view(m.shape) for m in found]
        energies = [float(m.square().sum()) for m in tau]
        assert rows["energy"].sum() == pytest.approx(sum(energies), rel=1e-4)
        assert rows["share_below"].iloc[-1] == pytest.approx(1.0)
        assert (rows["share_below"].diff().dropna() >= 0).all()
        low = [
            float(energy_share_below(amplitude_of(m), m.shape[1], torch.tensor([0.4]))[0]) * e
            for m, e in zip(tau, energies, strict=True)
        ]
        assert rows["removed"].iloc[0] == pytest.approx(sum(low) / sum(energies), rel=1e-3, abs=1e-5)
    assert table["white"].max() == pytest.approx(1.0)
    assert list(table["task"].cat.categories) == list(assembly.recipe.tasks)


def test_the_interference_is_that_of_the_filtered_task_vectors(assembly: Assembly) -> None:
    vectors = assembly.problem.vectors
    found = matrices(vectors.layout, 0, vectors.layout.size)
    table = spectrum_variance(assembly, cutoff=0.35)

    def measured(cutoff: float) -> float:
        models = (
            {m.name: high_pass(vectors.vector(i)[m.start : m.stop].view(m.shape), cutoff) for m in found}
            for i in range(vectors.n)
        )
        values = variance_between(models)
        return sum(values.values()) / len(values)

    assert table["interference"].iloc[0] == pytest.approx(measured(0.0), rel=1e-4)
    assert table["interference_filtered"].iloc[0] == pytest.approx(measured(0.35), rel=1e-3)
    assert 0 < table["ratio"].iloc[0] < 1
    assert 0 < table["energy_kept"].iloc[0] < 1
    np.testing.assert_allclose(table["frequency"], (table["low"] + table["high"]) / 2)
    assert spectrum_variance(assembly, cutoff=0.0)["ratio"].iloc[0] == 1.0
    one = replace(assembly, problem=replace(assembly.problem, vectors=vectors.subset([0])))
    with pytest.raises(FwvizError, match="at least two"):
        spectrum_variance(one)


def test_subpools_are_scored_like_any_merge(assembly: Assembly) -> None:
    vectors = assembly.problem.vectors
    table = variance_accuracy(assembly, count=4, size=3, scale=0.4)
    assert len(table) == 4
    assert table["checkpoints"].nunique() == 4
    assert set(table["planned"]) == {4}
    for row in table.itertuples():
        rows = [vectors.names.index(name) for name in row.checkpoints.split()]
        assert len(rows) == row.size == 3
        models = (
            {m.name: vectors.vector(i)[m.start : m.stop].view(m.shape) for m in whole_model(assembly)} for i in rows
        )
        spread = variance_between(models)
        assert row.variance == pytest.approx(sum(spread.values()) / len(spread), rel=1e-3)
        theta = vectors.base + 0.4 * sum(vectors.vector(i) for i in rows)
        scores = assembly.evaluator.quick(theta)
        tasks = {assembly.problem.owner(i) for i in rows} - {""}
        assert row.accuracy == pytest.approx(np.mean([scores[task].accuracy for task in tasks]))
        card = assembly.pool.card
        shares = [scores[t].accuracy / card.task(t).accuracy["individual"]["validation"] for t in tasks]
        assert row.normalised == pytest.approx(np.mean(shares))
    again = variance_accuracy(assembly, count=4, size=3, scale=0.4)
    assert again.equals(table)
    assert len(variance_accuracy(assembly, count=1000, size=4)) == 5


def whole_model(assembly: Assembly) -> list[Matrix]:
    layout = assembly.problem.vectors.layout
    return matrices(layout, 0, layout.size)


def test_subpools_must_differ_and_have_a_task(assembly: Assembly) -> None:
    with pytest.raises(FwvizError, match="do not differ"):
        variance_accuracy(assembly, size=5)
    foreign = replace(assembly, problem=replace(assembly.problem, owners=("",) * 5))
    with pytest.raises(FwvizError, match="no checkpoint belongs"):
        variance_accuracy(foreign)


def test_the_chart_tells_the_sign_of_the_correlation() -> None:
    x = np.linspace(1, 2, 12)
    for sign in (1, -1):
        table = pd.DataFrame({"variance": x, "normalised": sign * x**3})
        figure = registry.entry("charts", "variance_accuracy").run(table)
        trend = figure.data[0]
        assert np.sign(trend.y[1] - trend.y[0]) == sign
        assert ("−" in figure.layout.meta["summary"]) == (sign < 0)
        assert "1" in figure.layout.meta["summary"]


def test_the_filter_response_is_fr_merging_at_each_cutoff(assembly: Assembly) -> None:
    table = filter_response(assembly, bands="high,low,band", cutoffs=(0.0, 0.5))
    assert list(dict.fromkeys(table["band"])) == ["high", "low", "band"]
    settings = {"cutoff": 0.5, "band": "low"}
    values = assembly.recipe.to_dict() | {"method": "fr_merging", "settings": settings}
    expected = execute(Recipe.from_dict(values)).frames[0].accuracy
    rows = table[(table["band"] == "low") & (table["cutoff"] == 0.5)].set_index("task")
    for task, accuracy in expected.items():
        assert rows.loc[task, "accuracy"] == pytest.approx(accuracy)
    assert rows.loc["joint", "accuracy"] == pytest.approx(np.mean(list(expected.values())))
    # Nothing lies below frequency zero, and everything above it.
    base = assembly.evaluator.quick(assembly.problem.vectors.base)
    none = table[(table["band"] == "low") & (table["cutoff"] == 0.0)].set_index("task")
    assert none.loc["shape", "loss"] == pytest.approx(base["shape"].loss, rel=1e-4)
    whole = table[(table["band"] == "high") & (table["cutoff"] == 0.0)]
    assert list(whole["accuracy"]) == list(whole["unfiltered"])
    for words, options in (("'wide'", {"bands": "wide"}), ("cutoffs", {"cutoffs": (2.0,)})):
        with pytest.raises(FwvizError, match=words):
            filter_response(assembly, **options)  # type: ignore[arg-type]


def test_a_sweep_grows_and_stops(assembly: Assembly) -> None:
    steps = responses(assembly, bands="high", cutoffs=(0.0, 0.2, 0.4))
    first = next(steps)
    assert set(first["cutoff"]) == {0.0}
    assert set(next(steps)["cutoff"]) == {0.0, 0.2}
    steps.close()
