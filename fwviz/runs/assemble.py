"""From a recipe to the objects a run works on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from fwviz.backbones.family import Backbone
from fwviz.backbones.precision import require_precision
from fwviz.cards import PoolCard
from fwviz.pools.open import Pool, open_pool
from fwviz.registry import entry
from fwviz.runs.cost import device_name, versions
from fwviz.runs.recipe import Recipe
from fwviz.runs.trace import Trace, group_names
from fwviz.tasks.data import load_split
from fwviz.tasks.evaluators import Evaluator
from fwviz.tasks.judges import judge_of
from fwviz.tasks.objectives import CalibrationObjective, LabelledObjective
from fwviz.types import FwvizError, ParamLayout, Problem, Split

REFERENCE_ROWS = ("base", "individual", "mtl")


@dataclass(frozen=True)
class Assembly:
    """A recipe with everything it names opened: what a run, a lens or an export works on.

    ``problem`` is all a merge method receives; ``evaluator`` judges and never reaches a method.
    """

    recipe: Recipe
    pool: Pool
    problem: Problem
    evaluator: Evaluator


def assemble(recipe: Recipe, *, check: Callable[[], None] | None = None) -> Assembly:
    """Open the pool of a recipe and build its problem and evaluator, each its own (nothing mutable is shared).

    ``check`` is called a few times a second inside losses and gradients; what it raises ends them. Raises FwvizError
    for an unknown pool, checkpoint or task, an absent device, one that cannot compute in the precision, or a checkpoint
    that does not fit.
    """
    device = require_device(recipe.device)
    precision = require_precision(recipe.precision, device)
    pool = open_pool(recipe.pool)
    recipe.check(pool.card)
    vectors = pool.task_vectors(recipe.checkpoints, recipe.storage, getattr(torch, recipe.dtype), device)
    cards = {task: pool.card.task(task) for task in recipe.tasks}
    heads = pool.heads(recipe.tasks)
    model = pool.model(device)
    model.precision = precision
    _check_groups(recipe, vectors.layout)
    data = {task: load_split(pool.card, card, "calibration") for task, card in cards.items()}
    # As in the papers, methods without labels see the test inputs; decoded only for those that ask.
    wanted = _wants_inputs(recipe)
    unlabelled = {t: load_split(pool.card, card, "test").inputs for t, card in cards.items()} if wanted else None
    objective = (
        CalibrationObjective(model, data, heads, unlabelled=unlabelled)
        if isinstance(model, Backbone)
        else LabelledObjective(model, judge_of(model, heads, cards), data, unlabelled=unlabelled)
    )
    if check is not None:
        objective.check = check
    return Assembly(
        recipe=recipe,
        pool=pool,
        problem=Problem(
            vectors,
            objective,
            recipe.seed,
            tuple(pool.card.checkpoint(name).task for name in recipe.checkpoints),
            recipe.coefficients,
        ),
        evaluator=Evaluator(model, pool.card, recipe.tasks, heads),
    )


def _check_groups(recipe: Recipe, layout: ParamLayout) -> None:
    """Raise FwvizError if the recipe brings coefficients for a model of another shape."""
    given = recipe.coefficients
    if given is None:
        return
    count = len(layout.groups(given.granularity))
    if len(given.values) != count:
        raise FwvizError(
            f"the recipe gives coefficients for {len(given.values)} groups, but the model of pool {recipe.pool!r} has "
            f"{count} at granularity {given.granularity}: give one row per group."
        )


def _wants_inputs(recipe: Recipe) -> bool:
    settings = recipe.method_settings()
    starts_without_labels = getattr(settings, "init", "") == "adamerging"
    return starts_without_labels or entry("methods", recipe.method).data_for(settings) == "inputs"


def pool_fingerprint(card: PoolCard) -> str:
    """16 hex digits over the hashes of base, checkpoints and data: equal for pools that hold the same bytes."""
    digest = hashlib.sha256()
    parts = [str(card.base.get("sha256", "")), *(f"{c.id}:{c.sha256}" for c in card.checkpoints)]
    parts += [f"{t.id}:{split}:{t.splits[split].sha256}" for t in card.tasks for split in sorted(t.splits)]
    digest.update("\n".join(parts).encode())
    return digest.hexdigest()[:16]


def default_fingerprint(card: PoolCard) -> str:
    """16 hex digits over base, default checkpoints and data of default tasks, whatever else the pool holds."""
    parts = [str(card.base.get("sha256", "")), *(card.checkpoint(name).sha256 for name in card.default_checkpoints)]
    parts += [file.sha256 for task in card.default_tasks for _, file in sorted(card.task(task).splits.items())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def describe(assembly: Assembly) -> Trace:
    """The trace of a run that has not begun: names of groups, reference rows of the pool card, machine and versions."""
    card = assembly.pool.card
    names, sizes = group_names(assembly.problem.vectors.layout)
    reference: dict[str, dict[Split, dict[str, float]]] = {row: {} for row in REFERENCE_ROWS}
    for row in REFERENCE_ROWS:
        for split in ("validation", "test"):
            known = {task: card.task(task).accuracy.get(row, {}) for task in assembly.recipe.tasks}
            reference[row][split] = {task: values[split] for task, values in known.items() if split in values}
    if not any(reference["mtl"].values()):
        del reference["mtl"]
    return Trace(
        id="",
        recipe=assembly.recipe,
        pool_title=card.title,
        pool_fingerprint=pool_fingerprint(card),
        groups=names,
        group_sizes=sizes,
        reference=reference,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        device=device_name(torch.device(assembly.recipe.device))
        + ("" if assembly.recipe.precision == "float32" else f" in {assembly.recipe.precision}"),
        versions=versions(),
    )


def require_device(name: str) -> torch.device:
    """The torch device of a recipe, FwvizError if this machine lacks it."""
    device = torch.device(name)
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[device.type]
    if device.type == "cuda" and present:
        present = (device.index or 0) < torch.cuda.device_count()
    if not present:
        raise FwvizError(f"this machine has no device {name!r}: set device to cpu.")
    return device
