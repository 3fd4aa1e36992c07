"""One global scale, given or searched: what every method θ = θ₀ + scale·δ shares.

The search tries the scales of a grid on the calibration cross-entropy, which is all that a method ever sees of the
data. Each trial is one inner Step, so the trace holds the whole curve of loss and accuracy over the scale. A scale
whose loss is not finite is rejected.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from fwviz.registry import setting
from fwviz.space.wide import plus
from fwviz.types import FwvizError, Problem, Step

SEARCHES = ("off", "calibration")


class ScaleSettings(Protocol):
    """The settings that a method with one global scale has."""

    @property
    def scale(self) -> float: ...

    @property
    def scale_search(self) -> str: ...

    @property
    def scale_points(self) -> int: ...

    @property
    def scale_most(self) -> float: ...


def scale_setting(default: float, help: str) -> Any:
    """The field ``scale``."""
    return setting(default, help, low=0.0, high=10.0, applies={"scale_search": ("off",)})


def search_setting() -> Any:
    """The field ``scale_search``."""
    return setting(
        "off",
        "Take the scale as given, or the best of a grid by the cross-entropy on the labelled calibration samples.",
        choices=SEARCHES,
    )


def points_setting() -> Any:
    """The field ``scale_points``."""
    return setting(10, "Scales the search tries.", low=2, high=100, applies={"scale_search": ("calibration",)})


def most_setting(default: float) -> Any:
    """The field ``scale_most``."""
    return setting(
        default,
        "Largest scale the search tries; the others divide it evenly.",
        low=0.01,
        high=10.0,
        applies={"scale_search": ("calibration",)},
    )


def grid(settings: ScaleSettings) -> list[float]:
    """scale_most·j/scale_points for j = 1, …, scale_points."""
    return [settings.scale_most * j / settings.scale_points for j in range(1, settings.scale_points + 1)]


def scaled_delta(problem: Problem, settings: ScaleSettings, delta: Tensor, note: str) -> Iterator[Step]:
    """The Steps of θ = θ₀ + scale·δ: one, or a trial per scale of the grid and then the best.

    Args: ``delta`` (P,) at scale 1, which is overwritten; ``note`` says what it is.
    """
    if settings.scale_search == "off":
        yield Step(0, delta=delta.mul_(settings.scale), status="converged", note=f"{note}, times {settings.scale:g}")
        return
    theta, shown = torch.empty_like(delta), torch.empty_like(delta)

    def trial(scale: float) -> tuple[Tensor, dict[str, Any]]:
        plus(problem.vectors.base, delta, theta, share=scale)
        return theta, {"delta": torch.mul(delta, scale, out=shown)}

    yield from _search(problem, settings, trial, note)


def scaled_sum(problem: Problem, settings: ScaleSettings, note: str) -> Iterator[Step]:
    """The same for δ = Σᵢ τᵢ, by its coefficients (1, n): every Step stays a linear merge."""
    vectors = problem.vectors
    groups = problem.groups("model")

    def linear(scale: float) -> dict[str, Any]:
        inside = scale * vectors.n <= 1.0 + 1e-6
        return {"coefficients": torch.full((1, vectors.n), scale), "in_hull": inside}

    if settings.scale_search == "off":
        yield Step(0, **linear(settings.scale), status="converged", note=f"{note} with coefficient {settings.scale:g}")
        return
    theta = torch.empty_like(vectors.base, dtype=torch.float32)

    def trial(scale: float) -> tuple[Tensor, dict[str, Any]]:
        fields = linear(scale)
        return vectors.combine(fields["coefficients"], groups, out=theta), fields

    yield from _search(problem, settings, trial, note)


def _search(problem: Problem, settings: ScaleSettings, trial: Any, note: str) -> Iterator[Step]:
    """An inner Step per scale of the grid, then the completed iterate at the best; the smaller scale wins a tie.

    Raises FwvizError if the loss is finite at no scale.
    """
    best: tuple[float, float] | None = None
    scales = grid(settings)
    for j, scale in enumerate(scales, 1):
        theta, fields = trial(scale)
        loss = float(problem.objective.losses(theta).mean())
        finite = math.isfinite(loss)
        if finite and (best is None or loss < best[0]):
            best = (loss, scale)
        words = f"calibration loss {loss:.4g}" if finite else "rejected, the calibration loss there is not finite"
        yield Step(
            0,
            inner=j,
            loss=loss if finite else None,
            step_size=scale,
            landmark=True,
            rejected=not finite,
            note=f"scale {scale:g}, trial {j} of {len(scales)}: {words}",
            **fields,
        )
    if best is None:
        raise FwvizError(f"the calibration loss is finite at no scale from {scales[0]:g} up: lower scale_most.")
    loss, scale = best
    _, fields = trial(scale)
    words = f"{note}, times {scale:g}, the best of {len(scales)} scales: calibration loss {loss:.4g}"
    yield Step(0, loss=loss, step_size=scale, status="converged", note=words, **fields)
