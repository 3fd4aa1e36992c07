"""What ``pool.yaml`` says of a pool, its checkpoints and its tasks, as frozen records.

:mod:`fwviz.pools.card` reads and validates it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fwviz.types import FwvizError, MetricName, Split


@dataclass(frozen=True)
class FileCard:
    """A data file of a pool: path relative to the pool, its rows and the SHA-256 of its bytes."""

    path: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class CheckpointCard:
    """One checkpoint of a pool. ``accuracy`` maps split → accuracy on its own task when the pool was made."""

    id: str
    title: str
    path: str
    sha256: str
    task: str
    kind: str
    note: str = ""
    accuracy: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskCard:
    """One evaluation task of a pool. ``accuracy`` maps row → split → accuracy; a row nobody measured is absent.

    Rows: "base", "individual" (the task's own checkpoint), "mtl" (one model trained on all tasks of the pool).
    ``classes`` is empty where answers are numbers or free texts; ``prompts`` where no head is made of texts. ``head``
    names the checkpoint whose classifier reads the task, where that is not a checkpoint of the task.
    """

    id: str
    title: str
    question: str
    classes: tuple[str, ...]
    prompts: tuple[str, ...]
    splits: dict[Split, FileCard]
    chance: float
    accuracy: dict[str, dict[str, float]]
    source: str
    licence: str
    tags: tuple[str, ...] = ()
    metric: MetricName = "accuracy"
    head: str = ""


@dataclass(frozen=True)
class PoolCard:
    """The validated content of ``pool.yaml``; ``root`` is the folder it lies in."""

    root: Path
    id: str
    title: str
    summary: str
    family: str
    base: dict[str, Any]
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    checkpoints: tuple[CheckpointCard, ...]
    tasks: tuple[TaskCard, ...]
    default_tasks: tuple[str, ...]
    default_checkpoints: tuple[str, ...]
    sources: tuple[dict[str, Any], ...] = ()
    training: dict[str, Any] = field(default_factory=dict)
    phenomena: tuple[dict[str, Any], ...] = ()

    def task(self, task_id: str) -> TaskCard:
        for task in self.tasks:
            if task.id == task_id:
                return task
        raise FwvizError(
            f"pool {self.id!r} has no task {task_id!r}: choose from {', '.join(t.id for t in self.tasks)}."
        )

    def checkpoint(self, checkpoint_id: str) -> CheckpointCard:
        for checkpoint in self.checkpoints:
            if checkpoint.id == checkpoint_id:
                return checkpoint
        known = ", ".join(c.id for c in self.checkpoints)
        raise FwvizError(f"pool {self.id!r} has no checkpoint {checkpoint_id!r}: choose from {known}.")
