"""Planes in weight space, against explicit vectors."""

from __future__ import annotations

import math

import pytest
import torch

from fwviz.space.plane import Plane, Projector, plane_through, random_plane
from fwviz.space.vectors import ResidentTaskVectors
from fwviz.types import GRANULARITIES, FwvizError, Granularity
from tests.toy import toy_vectors

SPANS = [("base", "c1", "c3"), ("c4", "base", "c0"), ("c2", "c0", "c1")]


def theta_of(vectors: ResidentTaskVectors, name: str) -> torch.Tensor:
    return vectors.base + (0 if name == "base" else vectors.vector(vectors.names.index(name)))


@pytest.mark.parametrize("models", SPANS)
def test_the_plane_passes_through_its_models_and_keeps_distances(models: tuple[str, str, str]) -> None:
    vectors = toy_vectors()
    plane = plane_through(vectors, models)
    assert float(plane.u @ plane.v) == pytest.approx(0, abs=1e-5)
    assert float(plane.u.norm()) == pytest.approx(1, abs=1e-5)
    assert float(plane.v.norm()) == pytest.approx(1, abs=1e-5)
    assert list(plane.corners) == list(models)
    out = torch.empty_like(vectors.base)
    for name, (x, y) in plane.corners.items():
        torch.testing.assert_close(plane.point(x, y, out), theta_of(vectors, name), rtol=1e-4, atol=1e-5)
    apart = float((theta_of(vectors, models[1]) - theta_of(vectors, models[2])).norm())
    assert math.dist(plane.corners[models[1]], plane.corners[models[2]]) == pytest.approx(apart, rel=1e-5)
    assert plane.corners[models[0]] == (0.0, 0.0)
    assert plane.corners[models[1]][1] == 0.0


@pytest.mark.parametrize("models", SPANS)
def test_a_point_of_the_plane_has_nothing_outside_and_an_upright_one_everything(models: tuple[str, str, str]) -> None:
    vectors = toy_vectors()
    plane = plane_through(vectors, models)
    inside = plane.locate(plane.point(0.7, -1.3, torch.empty_like(vectors.base)))
    assert (inside.x, inside.y) == pytest.approx((0.7, -1.3), abs=1e-5)
    assert inside.distance == pytest.approx(math.hypot(0.7, 1.3), rel=1e-5)
    assert inside.share == pytest.approx(0, abs=1e-5)
    upright = torch.randn(vectors.base.shape, generator=torch.Generator().manual_seed(3))
    for axis in (plane.u, plane.v):
        upright -= (upright @ axis) * axis
    above = plane.locate(plane.origin + upright)
    assert (above.x, above.y) == pytest.approx((0, 0), abs=1e-5)
    assert above.share == pytest.approx(1, abs=1e-6)
    leaning = plane.locate(plane.origin + 2 * plane.v + 1.5 * upright / upright.norm())
    assert leaning.share == pytest.approx(1.5 / 2.5, abs=1e-5)  # 3-4-5
    assert plane.locate(plane.origin).share == 0.0


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("kind", [*SPANS, "random"])
def test_coefficients_place_a_merge_where_its_weights_do(kind: tuple[str, ...] | str, granularity: Granularity) -> None:
    vectors = toy_vectors()
    groups = vectors.layout.groups(granularity)
    generator = torch.Generator().manual_seed(1)
    plane = (
        random_plane(vectors.layout, theta_of(vectors, "c2") + 0.1, 0)
        if kind == "random"
        else plane_through(vectors, kind)
    )
    projector = Projector(plane, vectors)
    for _ in range(3):
        coefficients = torch.randn(len(groups), vectors.n, generator=generator)
        merged, known = projector.locate(coefficients, granularity), plane.locate(vectors.combine(coefficients, groups))
        for field in ("x", "y", "distance", "outside"):
            assert getattr(merged, field) == pytest.approx(getattr(known, field), rel=1e-4, abs=1e-4), field


def test_a_mixture_of_the_corners_lies_in_the_plane() -> None:
    vectors = toy_vectors()
    projector = Projector(plane_through(vectors, ("c4", "c1", "c0")), vectors)
    place = projector.locate(torch.tensor([[0.2, 0.5, 0.0, 0.0, 0.3]]), "model")
    assert place.share == pytest.approx(0, abs=1e-6)
    outside = projector.locate(torch.tensor([[0.2, 0.4, 0.0, 0.0, 0.3]]), "model")  # a sum below one leaves it
    assert outside.share > 0.05


def test_random_directions_have_the_models_filter_norms_and_leave_vectors_alone() -> None:
    vectors = toy_vectors()
    plane = random_plane(vectors.layout, vectors.base, 7)
    for name, shape in zip(vectors.layout.names, vectors.layout.shapes, strict=True):
        own, moved = vectors.layout.view(vectors.base, name), vectors.layout.view(plane.u, name)
        if len(shape) == 1:
            assert not moved.any()
        else:
            torch.testing.assert_close(moved.norm(dim=1) * plane.unit, own.norm(dim=1))
    assert float(plane.u @ plane.v) == pytest.approx(0, abs=1e-5)
    assert float(plane.v.norm()) == pytest.approx(1, abs=1e-5)
    again, other = (random_plane(vectors.layout, vectors.base, seed) for seed in (7, 8))
    assert torch.equal(again.u, plane.u)
    assert not torch.equal(other.u, plane.u)


def test_what_spans_no_plane_is_one_sentence() -> None:
    vectors = toy_vectors()
    line = ResidentTaskVectors(
        vectors.layout, ["a", "b", "c"], vectors.base, torch.stack([vectors.matrix[0], 2 * vectors.matrix[0]] * 2)[:3]
    )
    for pool, models, words in (
        (vectors, ("c0", "c1"), "three different"),
        (vectors, ("c0", "c1", "c0"), "three different"),
        (vectors, ("c0", "c1", "nobody"), "not merged here"),
        (line, ("base", "a", "b"), "one line"),
        (line, ("a", "c", "b"), "same model"),
    ):
        with pytest.raises(FwvizError, match=words):
            plane_through(pool, models)
    assert isinstance(plane_through(vectors, ("base", "c0", "c1")), Plane)
