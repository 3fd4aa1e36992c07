"""What a table says about a task or a checkpoint beyond its id."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from fwviz.cards import PoolCard


def task_titles(tasks: Sequence[str], card: PoolCard | None) -> dict[str, str]:
    """Task → title; the id itself without a card."""
    known = {task.id: task.title for task in card.tasks} if card else {}
    return {task: known.get(task, task) for task in tasks}


def checkpoint_titles(checkpoints: Sequence[str], card: PoolCard | None) -> dict[str, str]:
    """Checkpoint → title; the id itself without a card."""
    known = {checkpoint.id: checkpoint.title for checkpoint in card.checkpoints} if card else {}
    return {name: known.get(name, name) for name in checkpoints}


def own_task(checkpoints: Sequence[str], tasks: Sequence[str], card: PoolCard | None) -> dict[str, str | None]:
    """Checkpoint → the task it was fine-tuned on if that is one of ``tasks``, else None.

    Without a card a checkpoint named like a task is taken for its own.
    """
    known = {checkpoint.id: checkpoint.task for checkpoint in card.checkpoints} if card else {}
    trained = {name: known.get(name, name) for name in checkpoints}
    return {name: task if task in tasks else None for name, task in trained.items()}


def kinds(checkpoints: Sequence[str], card: PoolCard | None) -> dict[str, str]:
    """Checkpoint → own, weak, half_classes, noisy_labels or foreign_base; empty without a card."""
    known = {checkpoint.id: checkpoint.kind for checkpoint in card.checkpoints} if card else {}
    return {name: known.get(name, "") for name in checkpoints}


def individual_accuracy(tasks: Sequence[str], card: PoolCard) -> dict[str, float]:
    """Task → validation accuracy of the model fine-tuned on it alone, 0 where the pool card does not say."""
    known = {task: card.task(task).accuracy.get("individual", {}) for task in tasks}
    return {task: values.get("validation", 0.0) for task, values in known.items()}


def ordered(values: pd.Series, order: Sequence[str]) -> pd.Series:
    """A column as a categorical in a fixed order, so that a table sorts and colours as the recipe says."""
    return values.astype(pd.CategoricalDtype(list(order), ordered=False))
