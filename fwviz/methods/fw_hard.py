"""FW-Merging with the hard oracle: one vertex per group and iteration."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypedDict

import torch
from torch import Tensor

from fwviz.methods._frank_wolfe import (
    EPSILON_HELP,
    EXTRA_HELP,
    EXTRA_VERTICES,
    HULL_HELP,
    INIT_UPDATES_HELP,
    INITS,
    SCORE_HELP,
    SCORES,
    Hull,
    Measurement,
    initial_solution,
    measure,
    percent,
    tally,
)
from fwviz.registry import merge_method, setting
from fwviz.space import simplex
from fwviz.space.sparsify import trim
from fwviz.space.wide import minus
from fwviz.types import GRANULARITIES, FwvizError, Granularity, LossName, Problem, Status, Step


class _State(TypedDict, total=False):
    """The part of a Step that gives the weights."""

    coefficients: Tensor
    delta: Tensor


STEP_RULES = ("line_search", "open_loop", "short_step", "official")


@dataclass(frozen=True)
class Settings:
    """Settings of FW-hard; the defaults follow the paper's layer-wise oracle."""

    max_steps: int = setting(
        10, "Frank–Wolfe iterations at most (paper: 10 for language, 3 for vision).", low=1, high=100
    )
    init: str = setting(
        "base",
        "Where the path starts; also a vertex of the hull. The paper starts from task arithmetic for language, which "
        "with many vision checkpoints is worse than the base (its figure 4a), and from AdaMerging's result for vision.",
        choices=INITS,
    )
    init_scale: float = setting(
        0.3,
        "Coefficient of every task vector at the start.",
        low=0.0,
        high=2.0,
        applies={"init": ("task_arithmetic",)},
    )
    init_updates: int = setting(500, INIT_UPDATES_HELP, low=1, high=5000, applies={"init": ("adamerging",)})
    granularity: Granularity = setting(
        "layer", "What chooses its own vertex: the whole model, each layer or each tensor.", choices=GRANULARITIES
    )
    step_rule: str = setting(
        "line_search",
        "How far to move: to the lowest calibration loss on the way (eq. 3), 2/(t+2), to the minimum of a quadratic "
        "bound, or 2/(t+2) times a small constant as in the released code.",
        choices=STEP_RULES,
    )
    trials: int = setting(
        8, "Losses measured per line search.", low=2, high=40, applies={"step_rule": ("line_search", "short_step")}
    )
    official_scale: float = setting(
        0.03,
        "The released code's factor on 2/(t+2): 0.1·0.3 for vision, 0.29 for NLU.",
        low=0.0,
        high=1.0,
        applies={"step_rule": ("official",)},
    )
    merge_fn: str = setting(
        "convex",
        "How θ moves towards the vertex: along the segment (eq. 8), or along the move trimmed to its largest "
        "entries as TIES does, which can leave the hull.",
        choices=("convex", "ties"),
    )
    density: float = setting(
        0.2, "Share of the move that TIES keeps.", low=0.0, high=1.0, applies={"merge_fn": ("ties",)}
    )
    score: str = setting("inner_product", SCORE_HELP, choices=SCORES)
    skip_uphill: bool = setting(
        True,
        "Leave a group where it is when even its best score is not negative. The released language code moves it "
        "to zeros, the released vision code to the best vertex anyway.",
    )
    extra_vertices: str = setting("base_initial", EXTRA_HELP, choices=EXTRA_VERTICES)
    loss: LossName = setting(
        "cross_entropy",
        "Calibration loss: cross-entropy with labels, or entropy of the predictions on unlabelled inputs.",
        choices=("cross_entropy", "entropy"),
    )
    task_scores: bool = setting(
        True, "Measure the oracle's scores for each task too: one pass over the checkpoints per task instead of one."
    )
    epsilon: float = setting(0.001, EPSILON_HELP, low=0.0, high=10.0)
    hull_scale: float = setting(1.0, HULL_HELP, low=1.0, high=5.0)

    def __post_init__(self) -> None:
        if self.merge_fn == "ties" and self.step_rule == "short_step":
            raise FwvizError("step_rule 'short_step' needs merge_fn 'convex': choose another step rule for 'ties'.")


@merge_method(
    "FW-Merging, hard",
    Settings,
    data="labels",
    paper="FW-Merging",
    reference="Chen et al., ICCV 2025, arXiv:2503.12649, algorithm 1",
    presets={"As in the paper": {}, "Hull stretched by 2 (ours)": {"hull_scale": 2.0}},
)
def fw_hard(problem: Problem, settings: Settings) -> Iterator[Step]:
    """Frank–Wolfe over the hull of base, checkpoints and initial solution, one vertex per group and iteration.

    s_t,g = argmin_v ⟨∇_g ℓ(θ_t), s_v⟩ (eq. 7, layer-wise eq. 10), θ_{t+1} = (1 − γ)·θ_t + γ·s_t (eq. 8), with one γ
    for all groups and ℓ the mean over tasks of the calibration loss. Stops when the gap Σ_g max_v ⟨−∇_g ℓ, s_v − θ_t⟩
    ≤ epsilon, when no trial of the line search is below ℓ(θ_t), or after ``max_steps``. A trial whose loss is not
    finite is rejected like one whose loss is too high.

    The state is λ (G, n); every iterate and trial is rebuilt in one place (P,), so memory does not grow with n. With
    ``merge_fn = ties`` the state is θ itself, Steps carry ``delta`` and the gap certifies nothing.

    Args: ``problem``, ``settings``. Yields t = 0 before (inner > 0) and after its gradients, then each trial of a line
    search (inner > 0) and each iterate.
    Deviations from the released code, all by setting: inner products instead of tensor cosines, base and initial
    solution as vertices, eval mode, a line search, all calibration samples. Its layer rule works per tensor
    (``granularity = tensor``) and its language version sends a tensor whose best cosine is ≥ 0 to zero, which would
    erase weights: ``skip_uphill`` leaves the group unmoved.
    Reference: Chen et al. (2025), FW-Merging, arXiv:2503.12649, algorithm 1, eq. 3–8 and 10.
    """
    vectors, groups = problem.vectors, problem.groups(settings.granularity)
    initial, shown = yield from initial_solution(
        problem, groups, settings.init, settings.init_scale, settings.init_updates
    )
    hull = Hull.build(vectors, groups, initial, settings.hull_scale, settings.extra_vertices)
    certified = settings.merge_fn == "convex" and settings.extra_vertices != "none"
    tasks = problem.objective.tasks if settings.task_scores else None

    def look(at: Tensor, rows: Tensor | None) -> Measurement:
        return measure(hull, problem.objective, at, rows, loss=settings.loss, score=settings.score, tasks=tasks)

    coefficients: Tensor | None = initial
    theta = buffer = problem.room()
    if settings.merge_fn == "ties":  # θ and the deltas of Steps must last
        theta, buffer = torch.empty_like(buffer), torch.empty_like(buffer)
    start = Step(
        t=0,
        inner=shown + 1,
        granularity=settings.granularity,
        coefficients=initial.float(),
        in_hull=hull.holds(initial),
        note=f"initial solution: {settings.init.replace('_', ' ')}",
    )
    yield start  # before its gradients, which take longer than anyone wants to look at an empty chart
    vectors.combine(initial.float(), groups, out=theta)
    now = look(theta, coefficients)
    gap = simplex.fw_gap(now.slopes)
    done = certified and gap <= settings.epsilon
    yield replace(
        start,
        inner=0,
        loss=now.loss,
        gap=gap,
        status="converged" if done else "running",
        note=f"{start.note}, calibration loss {now.loss:.3f}",
    )

    gamma, smoothness = 1.0, 0.0
    for t in range(settings.max_steps):
        if done:
            return
        # Choose a vertex for each group; a group whose best vertex points uphill stays where it is.
        choice = simplex.lmo(now.ranks)
        best = now.ranks.gather(1, choice[:, None])[:, 0]
        moving = best < 0 if settings.skip_uphill else torch.ones_like(best, dtype=torch.bool)
        path = _Path.build(hull, settings, theta, coefficients, choice, moving, buffer)
        slope = float(now.slopes.gather(1, choice[:, None])[moving].sum())

        # Decide how far to go, showing every point that is tried.
        searching = settings.step_rule in ("line_search", "short_step") and bool(moving.any())
        trials = [(0.0, now.loss)]
        for tried, value in _search(path, problem, settings, slope, now.loss, gamma, smoothness) if searching else ():
            finite = math.isfinite(value)
            trials.append((tried, value if finite else math.inf))
            found = f"calibration loss {value:.3f}" if finite else "rejected, the calibration loss there is not finite"
            yield Step(
                t=t + 1,
                inner=len(trials) - 1,
                granularity=settings.granularity,
                **_state(path.coefficients(tried), buffer, vectors.base, buffer),
                loss=value if finite else None,
                step_size=tried,
                note=f"trying {percent(tried)} of the way: {found}",
                rejected=not finite,
            )
        if searching or not bool(moving.any()):
            gamma = min(trials, key=lambda trial: trial[1])[0]
        elif settings.step_rule == "official":
            gamma = simplex.official(t, settings.official_scale)
        else:
            gamma = simplex.open_loop(t)
        if settings.step_rule == "short_step" and gamma > 0.0:
            smoothness = -slope / (gamma * path.squared_length())

        # Go there, measure, and say what happened.
        before = now
        coefficients = path.coefficients(gamma)
        theta.copy_(path.point(gamma))
        now = look(theta, coefficients)
        gap = simplex.fw_gap(now.slopes)
        stuck = gamma == 0.0
        done = stuck or (certified and gap <= settings.epsilon)
        status: Status = "converged" if done else "max_steps" if t + 1 == settings.max_steps else "running"
        picks = [(hull.names[v],) if go else () for v, go in zip(choice.tolist(), moving.tolist(), strict=True)]
        words = tally([name for pick in picks for name in pick], len(groups), settings.granularity)
        lower = "finite" if len(trials) > 1 and all(math.isinf(value) for _, value in trials[1:]) else "lower"
        yield Step(
            t=t + 1,
            granularity=settings.granularity,
            **_state(coefficients, theta, vectors.base, buffer),
            loss=now.loss,
            gap=gap,
            step_size=gamma,
            vertices=tuple(picks),
            scores=before.scores(vectors.n),
            task_scores=before.task_scores(vectors.n),
            in_hull=coefficients is not None and hull.holds(coefficients),
            status=status,
            note=f"no {lower} calibration loss on the way to {words}: stopped here"
            if stuck
            else f"moved {percent(gamma)} towards {words}; calibration loss {before.loss:.3f} → {now.loss:.3f}",
        )


def _search(
    path: _Path, problem: Problem, settings: Settings, slope: float, loss: float, last: float, smoothness: float
) -> Iterator[tuple[float, float]]:
    """The trials (γ, ℓ) of the step rule. ``last`` is the previous γ, ``smoothness`` the previous estimate of L."""

    def loss_at(gamma: float) -> float:
        return float(problem.objective.losses(path.point(gamma), loss=settings.loss).mean())

    if settings.step_rule == "short_step":
        curvature = 0.5 * smoothness * path.squared_length()  # halved, so that the estimate can shrink again
        return simplex.short_steps(loss_at, loss, slope, curvature, settings.trials)
    known = slope if path.move is None else None
    return simplex.line_search(loss_at, loss, known, first=min(1.0, 2.0 * last), evaluations=settings.trials)


def _state(coefficients: Tensor | None, theta: Tensor, base: Tensor, buffer: Tensor) -> _State:
    """What a Step says about θ; ``buffer`` (P,) takes the difference to the base where θ is not linear."""
    if coefficients is not None:
        return {"coefficients": coefficients.float()}
    return {"delta": minus(theta, base, buffer)}


@dataclass(frozen=True)
class _Path:
    """The way from θ_t to the chosen vertices. Points on it are rebuilt into one ``buffer`` (P,).

    A convex move is known by the coefficients of its ends, a trimmed one by ``move`` (P,), which is added to ``theta``.
    """

    hull: Hull
    theta: Tensor
    start: Tensor | None
    end: Tensor
    move: Tensor | None
    buffer: Tensor

    @classmethod
    def build(
        cls,
        hull: Hull,
        settings: Settings,
        theta: Tensor,
        start: Tensor | None,
        choice: Tensor,
        moving: Tensor,
        buffer: Tensor,
    ) -> _Path:
        """From θ_t to vertex ``choice[g]`` of each group g that is ``moving``."""
        end = hull.vertex(choice)
        if settings.merge_fn == "convex":
            assert start is not None
            return cls(hull, theta, start, torch.where(moving[:, None], end, start), None, buffer)
        move = hull.vectors.combine(end.float(), hull.groups).sub_(theta)
        for (a, b), go in zip(hull.groups.ranges(), moving.tolist(), strict=True):
            if not go:
                move[a:b] = 0.0
        return cls(hull, theta, None, end, trim(move, settings.density), buffer)

    def coefficients(self, gamma: float) -> Tensor | None:
        """λ at the share γ of the way, None where the merge is not linear in the task vectors."""
        return None if self.start is None else (1.0 - gamma) * self.start + gamma * self.end

    def point(self, gamma: float) -> Tensor:
        """θ at the share γ of the way, borrowed: (P,)."""
        rows = self.coefficients(gamma)
        if rows is not None:
            return self.hull.vectors.combine(rows.float(), self.hull.groups, out=self.buffer)
        assert self.move is not None
        return torch.add(self.theta, self.move, alpha=gamma, out=self.buffer)

    def squared_length(self) -> float:
        """‖s_t − θ_t‖², by way of the buffer."""
        assert self.start is not None
        vectors, rows = self.hull.vectors, (self.end - self.start).float()
        there = vectors.combine(rows, self.hull.groups, out=self.buffer)
        return float(minus(there, vectors.base, there).square().sum())
