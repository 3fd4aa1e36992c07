"""The data-free baselines against what other implementations computed (golden/, made by make_golden_baselines.py)."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fwviz.registry import entry, parse_settings
from fwviz.space.sparsify import disjoint_merge, drop_and_rescale, elect_sign, ranked_drop
from fwviz.space.vectors import ResidentTaskVectors
from fwviz.types import ParamLayout, Problem
from tests.equality import largest_difference
from tests.toy import toy_problem

GOLDEN = Path(__file__).parent / "golden" / "baselines.npz"
TOLERANCE = 1e-6  # entries are of size 0.1 to 1; everybody adds float32 numbers in another order
SVD_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def golden() -> Mapping[str, np.ndarray]:
    return dict(np.load(GOLDEN))


@pytest.fixture
def problem(golden: Mapping[str, np.ndarray]) -> Problem:
    """The golden models as a problem; its tensors keep their order, so the layout is written out."""
    shapes = tuple(tuple(int(x) for x in str(text).split(",")) for text in golden["shapes"])
    offsets = tuple(int(x) for x in np.cumsum([0, *(np.prod(shape) for shape in shapes)]))
    names = tuple(str(name) for name in golden["names"])
    layout = ParamLayout(names, shapes, offsets, names)
    base, checkpoints = torch.from_numpy(golden["base"]), torch.from_numpy(golden["checkpoints"])
    vectors = ResidentTaskVectors(layout, tuple("wxyz"), base, checkpoints - base)
    return Problem(vectors, toy_problem().objective)


def merged(problem: Problem, method: str, **settings: Any) -> Tensor:
    """The weights a method gives."""
    found = entry("methods", method)
    assert found.settings is not None
    step = list(found.run(problem, parse_settings(found.settings, settings)))[-1]
    if step.delta is None:
        assert step.coefficients is not None
        return problem.vectors.combine(step.coefficients, problem.groups(step.granularity))
    return problem.vectors.base + step.delta


SUM = {"merge": "sum", "scale": 1.0}
TENSOR = {"trim_scope": "tensor", "zero_sign": "plus", "scale": 1.0}

# Method, settings, oracle; whether the oracle gives the delta or the weights.
EQUAL: list[tuple[str, dict[str, Any], str, bool]] = [
    ("ties", {"density": 0.2}, "fusion_bench/ties_20_mean", True),
    ("ties", {"density": 0.2, **SUM}, "fusion_bench/ties_20_sum", True),
    ("ties", {"density": 0.45}, "fusion_bench/ties_45_mean", True),
    ("ties", {"density": 0.45, **SUM}, "fusion_bench/ties_45_sum", True),
    ("ties", {"density": 0.2, **TENSOR}, "mergekit/ties_20", False),
    ("ties", {"density": 0.5, **TENSOR, "merge": "sum"}, "mergekit/ties_50_sum", False),
    ("task_arithmetic", {"scale": 0.3}, "fusion_bench/task_arithmetic", False),
    ("task_arithmetic", {"scale": 0.3}, "mergekit/task_arithmetic", False),
    ("task_arithmetic", {"scale": 0.3}, "peft/task_arithmetic", True),
    ("weight_average", {}, "fusion_bench/simple_average", False),
    ("weight_average", {}, "mergekit/linear", False),
    (
        "breadcrumbs",
        {"density": 0.6, "outliers": 0.1, "mask_scope": "tensor", "scale": 1.0},
        "mergekit/breadcrumbs",
        False,
    ),
    ("breadcrumbs", {"density": 0.6, "outliers": 0.15, "scale": 1.0}, "released/breadcrumbs", True),
    ("pcb", {"density": 0.1, "scale": 1.0}, "released/pcb_0.1", True),
    ("pcb", {"density": 0.4, "scale": 1.0}, "released/pcb_0.4", True),
    ("tsv_m", {}, "fusion_bench/tsv_m", True),
]


@pytest.mark.parametrize(("method", "settings", "oracle", "delta"), EQUAL, ids=[f"{m}-{o}" for m, _, o, _ in EQUAL])
def test_equals_the_oracle(
    method: str,
    settings: dict[str, Any],
    oracle: str,
    delta: bool,
    golden: Mapping[str, np.ndarray],
    problem: Problem,
) -> None:
    expected = torch.from_numpy(golden[oracle])
    found = merged(problem, method, **settings) - (problem.vectors.base if delta else 0.0)
    largest = largest_difference(method, oracle, found, expected)
    assert float(expected.abs().max()) > 0.05
    assert largest < (SVD_TOLERANCE if method == "tsv_m" else TOLERANCE), largest


def test_ties_over_the_whole_vector_equals_peft_up_to_its_count(
    golden: Mapping[str, np.ndarray], problem: Problem
) -> None:
    """PEFT trims each vector it is given, here the flat one, and keeps one entry less than the released code."""
    vectors: Any = problem.vectors
    size = vectors.layout.size
    whole = ParamLayout(("all",), ((size,),), (0, size), ("all",))
    one = Problem(ResidentTaskVectors(whole, vectors.names, vectors.base, vectors.matrix), problem.objective)
    found = merged(one, "ties", density=0.2, trim_scope="tensor", zero_sign="plus") - vectors.base
    largest_difference("ties", "peft/ties_20", found, golden["peft/ties_20"])
    torch.testing.assert_close(found, torch.from_numpy(golden["peft/ties_20"]), atol=TOLERANCE, rtol=0)


def test_dropped_and_rescaled_as_in_peft(golden: Mapping[str, np.ndarray], problem: Problem) -> None:
    """With the masks PEFT drew, its sum and its election of signs are ours."""
    vectors: Any = problem.vectors
    for method in ("dare_linear", "dare_ties"):
        kept = torch.from_numpy(golden[f"peft/{method}_masks"])
        draws = torch.where(kept, 0.9, 0.1)
        block = drop_and_rescale(vectors.matrix.clone(), 0.7, draws)
        found = block.sum(dim=0) if method == "dare_linear" else disjoint_merge(block, elect_sign(block), "mean")
        expected = torch.from_numpy(golden[f"peft/{method}"])
        largest_difference("dare", f"peft/{method}", found, expected)
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=1e-6)


def test_entries_are_kept_as_often_as_in_mergekit(golden: Mapping[str, np.ndarray]) -> None:
    """Within five standard errors of as many draws of ours, entry by entry."""
    row, count = torch.from_numpy(golden["mergekit/row"]), int(golden["mergekit/draws"])
    random = torch.Generator().manual_seed(0)
    draws = torch.rand(count, len(row), generator=random)
    della = ranked_drop(row.expand(count, -1).clone(), 0.6, 0.2, draws).ne(0).sum(dim=0)
    dare = drop_and_rescale(row.expand(count, -1).clone(), 0.4, draws).ne(0).sum(dim=0)
    noise = 5 * sqrt(2 * count * 0.25)
    for method, ours, oracle in (("della", della, "della_linear"), ("dare", dare, "dare_linear")):
        theirs = torch.from_numpy(golden[f"mergekit/{oracle}_kept"])
        largest = largest_difference(f"{method}, draws kept of {count}", f"mergekit/{oracle}", ours, theirs)
        assert largest < noise
    assert float(della.max() - della.min()) > 3 * noise  # so that a reversed rank would fail
