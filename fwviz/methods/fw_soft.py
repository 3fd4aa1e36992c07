"""FW-Merging with the soft oracle: several vertices per iteration, their coefficients optimised."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fwviz import solver
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
)
from fwviz.registry import merge_method, setting
from fwviz.space import simplex
from fwviz.types import GRANULARITIES, Granularity, Groups, LossName, Problem, Status, Step

INNER = ("simplex", "official", "none")


@dataclass(frozen=True)
class Settings:
    """Settings of FW-soft; the defaults follow the paper: model-wise oracle, layer-wise coefficients, from the base."""

    max_steps: int = setting(
        10, "Frank–Wolfe iterations at most (paper: 15; the first ones do most of the work).", low=1, high=100
    )
    init: str = setting("base", "Where the path starts; also a vertex of the hull.", choices=INITS)
    init_scale: float = setting(
        0.3,
        "Coefficient of every task vector at the start.",
        low=0.0,
        high=2.0,
        applies={"init": ("task_arithmetic",)},
    )
    init_updates: int = setting(500, INIT_UPDATES_HELP, low=1, high=5000, applies={"init": ("adamerging",)})
    granularity: Granularity = setting(
        "model", "What chooses its own vertices: the whole model, each layer or each tensor.", choices=GRANULARITIES
    )
    coefficient_granularity: Granularity = setting(
        "layer", "What gets its own coefficients: the whole model, each layer or each tensor.", choices=GRANULARITIES
    )
    task_wise: bool = setting(
        True,
        "Each task picks its own vertices by its own gradient, skipping those already picked in this iteration; "
        "otherwise the joint gradient picks them all.",
    )
    top_k: int = setting(1, "Vertices picked per task, or in all when the joint gradient picks.", low=1, high=50)
    joint_vertex: bool = setting(
        False,
        "Beside the tasks' own vertices offer the vertex of the joint gradient, per group of coefficients. Our "
        "extension: it lets the gap shrink further, because that vertex is the one the gap is measured by.",
        applies={"task_wise": (True,)},
    )
    inner: str = setting(
        "simplex",
        "How coefficients are found: projected onto {λ ≥ 0, Σλ ≤ 1} so that θ_t is one more vertex; unprojected Adam "
        "as in the released code; or none, a fixed step towards all vertices.",
        choices=INNER,
    )
    inner_updates: int = setting(
        25, "Updates of the coefficients per iteration.", low=1, high=500, applies={"inner": ("simplex",)}
    )
    batch_size: int = setting(
        16,
        "Samples per task and update; 0 takes all of them with a deterministic projected gradient.",
        low=0,
        high=1024,
        applies={"inner": ("simplex", "official")},
    )
    learning_rate: float = setting(
        0.1,
        "Largest change of a coefficient per update, at first.",
        low=1e-4,
        high=1.0,
        applies={"inner": ("simplex",)},
    )
    official_updates: int = setting(
        500, "Adam updates per iteration of the released code.", low=1, high=2000, applies={"inner": ("official",)}
    )
    official_rate: float = setting(
        0.001, "Learning rate of the released code.", low=1e-6, high=1.0, applies={"inner": ("official",)}
    )
    score: str = setting("inner_product", SCORE_HELP, choices=SCORES)
    extra_vertices: str = setting("base_initial", EXTRA_HELP, choices=EXTRA_VERTICES)
    loss: LossName = setting(
        "cross_entropy",
        "Calibration loss: cross-entropy with labels, or entropy of the predictions on unlabelled inputs.",
        choices=("cross_entropy", "entropy"),
    )
    epsilon: float = setting(0.001, EPSILON_HELP, low=0.0, high=10.0)
    hull_scale: float = setting(1.0, HULL_HELP, low=1.0, high=5.0)


@merge_method(
    "FW-Merging, soft",
    Settings,
    data="labels",
    paper="FW-Merging",
    reference="Chen et al., ICCV 2025, arXiv:2503.12649, eq. 9",
    convex=True,
    presets={"As in the paper": {}, "Hull stretched by 2 (ours)": {"hull_scale": 2.0}},
)
def fw_soft(problem: Problem, settings: Settings) -> Iterator[Step]:
    """Frank–Wolfe with the soft oracle: the best vertices of each task, and the best way to combine them.

    θ_{t+1,g} = θ_t,g + Σ_j λ[g,j]·(s_j − θ_t)_g (eq. 9) with λ = argmin ℓ over {λ ≥ 0, Σ_j λ[g,j] ≤ 1} for every
    group g of coefficients. The paper's Σλ = 1 would forget θ_t; with ≤ 1 it is one more vertex, as its proposition
    needs. The vertices s_j are the ``top_k`` lowest ⟨∇ℓ_task(θ_t), s⟩ of each task, none twice.

    The inner problem runs on :mod:`fwviz.solver`. An iterate is never worse than θ_t on the calibration loss: else, and
    where that is not finite, it is pulled back towards θ_t by halves. The state is λ (G, n) over the finer of both
    granularities; memory is O(P).
    The gap is that of the set searched, which with layer-wise coefficients is the product of the layers' hulls. It can
    stall above zero: the tasks' picks need not contain the vertex it is measured by, which ``joint_vertex`` adds.

    Args: ``problem``, ``settings``. Yields t = 0 before (inner > 0) and after its gradients, then each update
    (inner > 0) and each iterate. ``scores`` have the rows of the coefficients; a model-wise oracle compares their sums.
    ``step_size`` is the mean over groups of Σ_j λ.
    ``inner = official`` is the released code: Adam 1e-3, 500 updates, λ = 0.3 at first and 1e-8 later, no projection
    (its simplex function is never called), coefficients per tensor. ``inner = none`` is its unoptimised variant
    θ + 0.3·step·Σ_j(s_j − θ), step 1 at first, then 0.1·2/(t + 2). Both can leave the hull and raise the loss. The
    released code also trains in train mode on fresh samples; here dropout is off and the calibration set is fixed.
    Reference: Chen et al. (2025), FW-Merging, arXiv:2503.12649, section 3.3 and eq. 9.
    """
    vectors, objective = problem.vectors, problem.objective
    chooser, mixer = problem.groups(settings.granularity), problem.groups(settings.coefficient_granularity)
    groups = chooser if len(chooser) >= len(mixer) else mixer
    initial, shown = yield from initial_solution(
        problem, groups, settings.init, settings.init_scale, settings.init_updates
    )
    hull = Hull.build(vectors, groups, initial, settings.hull_scale, settings.extra_vertices)
    generator = problem.generator()

    def look(at: Tensor, rows: Tensor) -> Measurement:
        return measure(hull, objective, at, rows, loss=settings.loss, score=settings.score, tasks=objective.tasks)

    def certified(rows: Tensor) -> bool:
        return settings.extra_vertices != "none" and hull.holds(rows, hull.stretch)

    coefficients = initial
    start = Step(
        t=0,
        inner=shown + 1,
        granularity=groups.granularity,
        coefficients=initial.float(),
        in_hull=hull.holds(initial),
        note=f"initial solution: {settings.init.replace('_', ' ')}",
    )
    yield start  # before its gradients, which take longer than anyone wants to look at an empty chart
    theta = vectors.combine(initial.float(), groups, out=problem.room())
    now = look(theta, coefficients)
    gap = simplex.fw_gap(now.slopes)
    done = certified(coefficients) and gap <= settings.epsilon
    yield replace(
        start,
        inner=0,
        loss=now.loss,
        gap=gap,
        status="converged" if done else "running",
        note=f"{start.note}, calibration loss {now.loss:.3f}",
    )

    failures = 0
    for t in range(settings.max_steps):
        if done:
            return
        chosen = _choose(hull, now, chooser, mixer, settings)
        family = _family(hull, coefficients, chosen, mixer)
        landscape = solver.Landscape(family, vectors, groups, objective, settings.loss, theta)
        weights = _start(family, settings, t)
        for progress in _updates(landscape, weights, settings, generator, 0.5**failures):
            weights = progress.weights
            rows = family.coefficients(weights)
            yield Step(
                t=t + 1,
                inner=progress.update,
                granularity=groups.granularity,
                coefficients=rows.float(),
                loss=progress.loss,
                in_hull=hull.holds(rows),
                note=f"finding coefficients, update {progress.update}: loss {progress.loss:.3f}"
                + ("; rejected a trial whose loss is not finite" if progress.rejected else ""),
            )

        before = now
        weights, now, found = _accept(landscape, weights, before, look, settings)
        coefficients = family.coefficients(weights)
        gap = simplex.fw_gap(now.slopes)
        failures = 0 if bool(weights.any()) else failures + 1
        # Another draw of batches and smaller updates may succeed; all samples would only repeat themselves.
        stuck = failures >= (3 if settings.batch_size else 1)
        done = stuck or (certified(coefficients) and gap <= settings.epsilon)
        status: Status = "converged" if done else "max_steps" if t + 1 == settings.max_steps else "running"
        yield Step(
            t=t + 1,
            granularity=groups.granularity,
            coefficients=coefficients.float(),
            loss=now.loss,
            gap=gap,
            step_size=float(weights.sum(dim=1).mean()),
            vertices=_names(hull, chosen, chooser),
            scores=before.scores(vectors.n),
            task_scores=before.task_scores(vectors.n),
            in_hull=hull.holds(coefficients),
            status=status,
            note=_note(hull, chosen, weights, family, found, f"calibration loss {before.loss:.3f} → {now.loss:.3f}"),
        )


def _choose(hull: Hull, now: Measurement, chooser: Groups, mixer: Groups, settings: Settings) -> Tensor:
    """The vertices of each group, (G, m) over the groups of the state."""
    parent = simplex.parents(hull.groups, chooser)

    def best(ranks: Tensor, taken: Tensor | None = None) -> Tensor:
        return simplex.top_k(simplex.sum_groups(ranks, parent, len(chooser)), settings.top_k, taken)

    if not settings.task_wise:
        return best(now.ranks)[parent]
    taken = torch.zeros(len(chooser), len(hull.names), dtype=torch.bool)
    picks = []
    for ranks in now.per_task.values():
        picks.append(best(ranks, taken))
        taken.scatter_(1, picks[-1], True)
    chosen = torch.cat(picks, dim=1)[parent]
    if settings.joint_vertex:
        own = simplex.parents(hull.groups, mixer)
        chosen = torch.cat([chosen, simplex.lmo(simplex.sum_groups(now.ranks, own, len(mixer)))[own][:, None]], dim=1)
    return chosen


def _family(hull: Hull, coefficients: Tensor, chosen: Tensor, mixer: Groups) -> solver.Affine:
    """λ(w) = λ_t + Σ_j w[g, j]·(s_j − λ_t) for the chosen vertices (G, m)."""
    targets = torch.stack([hull.vertex(column) for column in chosen.T])
    return solver.Affine(coefficients, targets - coefficients, simplex.parents(hull.groups, mixer), len(mixer))


def _start(family: solver.Affine, settings: Settings, t: int) -> Tensor:
    """The first weights of the inner problem."""
    if settings.inner == "official":
        value = 0.3 if t == 0 else 1e-8
    elif settings.inner == "none":
        value = 0.3 if t == 0 else 0.3 * 0.1 * simplex.open_loop(t)
    else:
        value = 0.0
    return torch.full((family.rows, family.directions.shape[0]), value, dtype=torch.float64)


def _updates(
    landscape: solver.Landscape, start: Tensor, settings: Settings, generator: torch.Generator, care: float
) -> Iterator[solver.Progress]:
    """The inner problem of one iteration; ``care`` scales the learning rate."""
    if settings.inner == "none":
        return iter(())
    if settings.inner == "official":
        return solver.adam(
            landscape,
            start,
            lambda weights: weights,
            updates=settings.official_updates,
            rate=settings.official_rate,
            batch_size=settings.batch_size or None,
            generator=generator,
            decay=False,
        )
    if settings.batch_size == 0:
        return solver.projected_gradient(
            landscape, start, simplex.project_capped_simplex, updates=settings.inner_updates
        )
    return solver.adam(
        landscape,
        start,
        simplex.project_capped_simplex,
        updates=settings.inner_updates,
        rate=settings.learning_rate * care,
        batch_size=settings.batch_size,
        generator=generator,
        decay=True,
    )


def _accept(
    landscape: solver.Landscape,
    weights: Tensor,
    before: Measurement,
    look: Callable[[Tensor, Tensor], Measurement],
    settings: Settings,
) -> tuple[Tensor, Measurement, float]:
    """The weights to keep and the measurement there: pulled back by halves while the loss is above that of θ_t.

    The released variants are taken as they come out. Also returns the loss that was found before any pulling back.
    """
    candidate = look(landscape.point(weights), landscape.family.coefficients(weights))
    if settings.inner != "simplex" or candidate.loss <= before.loss:
        return weights, candidate, candidate.loss
    for _ in range(6):
        weights = 0.5 * weights
        if landscape.value(weights) <= before.loss:
            kept = look(landscape.point(weights), landscape.family.coefficients(weights))
            return weights, kept, candidate.loss
    return torch.zeros_like(weights), before, candidate.loss


def _note(hull: Hull, chosen: Tensor, weights: Tensor, family: solver.Affine, found: float, words: str) -> str:
    """Plain words: the mean share moved towards each vertex, and the group that moved most.

    ``found`` is the loss of the mixture before it was pulled back.
    """
    finite = math.isfinite(found)
    moves = weights[family.parent]
    named = [hull.names[v] for v in dict.fromkeys(chosen.flatten().tolist())][:4]
    if not bool(moves.any()):
        why = "would raise the calibration loss" if finite else "has no finite calibration loss"
        return f"stayed: the mixture found for {', '.join(named)} {why}"
    share = torch.zeros(len(hull.names), dtype=moves.dtype).index_add_(0, chosen.flatten(), moves.flatten())
    share /= len(hull.groups)
    order = [v for v in share.argsort(descending=True).tolist() if share[v] > 0][:4]
    text = "moved " + ", ".join(f"{percent(float(share[v]))} towards {hull.names[v]}" for v in order)
    if len(hull.groups) > 1:
        group, slot = divmod(int(moves.argmax()), moves.shape[1])
        text += f" on average; most in {hull.groups.names[group]}, {percent(float(moves[group, slot]))} towards "
        text += hull.names[int(chosen[group, slot])]
    rejected = "" if finite else "; pulled back, the mixture found has no finite calibration loss"
    return f"{text}; {words}{rejected}"


def _names(hull: Hull, chosen: Tensor, chooser: Groups) -> tuple[tuple[str, ...], ...]:
    """The chosen vertices of each group of the oracle, in the order they were picked."""
    parent = simplex.parents(hull.groups, chooser)
    rows = [chosen[parent == g].T.flatten().tolist() for g in range(len(chooser))]
    return tuple(tuple(dict.fromkeys(hull.names[v] for v in row)) for row in rows)
