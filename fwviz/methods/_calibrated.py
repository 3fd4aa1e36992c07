"""What methods share that measure every checkpoint on inputs of its own task: which inputs, and how many."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
from torch import Tensor

from fwviz.types import Probe, Problem

SAMPLES_HELP = (
    "Calibration inputs per checkpoint, all there are if fewer: of its own task, or in equal shares of all chosen "
    "tasks if its own is not among them."
)

# (θᵢ, task, count, generator) → what is measured there, to be multiplied by the count for a sum.
Measure = Callable[[Tensor, str, int, torch.Generator], None]


def measure(problem: Problem, i: int, samples: int, take: Measure) -> int:
    """Call ``take`` for each task whose inputs tell of checkpoint i; returns how many inputs that was in all.

    The draws depend on the problem's seed and on the checkpoint's name, not on its place.
    """
    vectors, probe = problem.vectors, problem.probe()
    one = torch.zeros(1, vectors.n)
    one[0, i] = 1.0
    theta = vectors.combine(one, problem.groups("model"))
    generator = problem.generator(stream=zlib.crc32(vectors.names[i].encode()))
    tasks = tasks_of(problem, i)
    total = 0
    for task in tasks:
        count = min(max(samples // len(tasks), 1), available(probe, task))
        take(theta, task, count, generator)
        total += count
    return total


def tasks_of(problem: Problem, i: int) -> tuple[str, ...]:
    """The task checkpoint i was fine-tuned on, or all of the objective's if that is not among them."""
    owner = problem.owner(i)
    return (owner,) if owner else problem.objective.tasks


def available(probe: Probe, task: str) -> int:
    """Calibration inputs of a task."""
    return len(probe.labels(task))


def strangers(problem: Problem) -> str:
    """A clause for notes on checkpoints whose own task is not among the chosen ones; empty if there are none."""
    count = sum(1 for i in range(problem.vectors.n) if not problem.owner(i))
    if not count:
        return ""
    whose = "checkpoint's own task is" if count == 1 else "checkpoints' own tasks are"
    return f"; {count} {whose} not among the chosen, so all their inputs stand in"
