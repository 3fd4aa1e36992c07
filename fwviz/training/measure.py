"""What the pool shows: accuracies, how much a merge recovers, and the card's list of phenomena, seen or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fwviz.training import model
from fwviz.training.finetune import TRAINED, accuracy, merge, to_pixels, vision_state
from fwviz.training.tasks import Split

SCALES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
State = dict[str, Tensor]

NEVER_MOVED = (
    "visual_projection.",
    "vision_model.embeddings.",
    "vision_model.pre_layrnorm.",
    "vision_model.post_layernorm.",
)
"""Tensors that fine-tuning leaves at the base's values, as prefixes."""


class Judge:
    """Accuracy of any tower on any task and split, with the base's frozen heads."""

    def __init__(self, clip: Any, heads: dict[str, Tensor], drawn: dict[str, dict[str, Split]]) -> None:
        self.clip, self.heads, self.drawn = clip, heads, drawn

    def accuracy(self, state: State | None, task: str, split: str) -> float:
        rows = self.drawn[task][split]
        return accuracy(self.clip, state, self.heads[task], rows.images, rows.labels)

    def mean(self, state: State | None, tasks: Sequence[str], split: str) -> float:
        return float(np.mean([self.accuracy(state, task, split) for task in tasks]))

    def gradient(self, task: str, split: str = "calibration") -> Tensor:
        """Flat gradient of the task's loss at the base, over the matrices that fine-tuning moves."""
        rows = self.drawn[task][split]
        logits = model.encode_images(self.clip, to_pixels(rows.images)) @ self.heads[task].T
        loss = F.cross_entropy(self.clip.logit_scale.detach().exp() * logits, torch.from_numpy(rows.labels).long())
        moved = [p for name, p in self.clip.named_parameters() if name in moved_names(vision_state(self.clip))]
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, moved)])


def moved_names(state: State) -> list[str]:
    """Names of the tensors that fine-tuning moves, in order."""
    return [name for name in state if name.endswith(TRAINED)]


def task_vector(base: State, state: State) -> Tensor:
    """Flat difference over the moved tensors."""
    return torch.cat([(state[name].float() - base[name].float()).reshape(-1) for name in moved_names(base)])


def recovery(judge: Judge, base: State, states: Sequence[State], tasks: Sequence[str]) -> dict[str, float]:
    """Task arithmetic on the tasks' own checkpoints: best scale by validation, scores on test, share of the gain.

    Args:
        states: one per task, in the order of ``tasks``.
    """
    by_scale = {scale: judge.mean(merge(base, states, [scale] * len(states)), tasks, "validation") for scale in SCALES}
    scale = max(by_scale, key=lambda s: (by_scale[s], -s))
    merged = merge(base, states, [scale] * len(states))
    zero_shot, test = judge.mean(None, tasks, "test"), judge.mean(merged, tasks, "test")
    individual = float(np.mean([judge.accuracy(s, task, "test") for s, task in zip(states, tasks, strict=True)]))
    average = judge.mean(merge(base, states, [1 / len(states)] * len(states)), tasks, "test")
    return {
        "scale": scale,
        "zero_shot": zero_shot,
        "merged": test,
        "individual": individual,
        "average": average,
        "recovered": (test - zero_shot) / (individual - zero_shot),
    }


def phenomena(
    judge: Judge,
    base: State,
    states: dict[tuple[str, int], State],
    tasks: Sequence[str],
    order: Sequence[str],
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """Measure what the papers report and say, with numbers, whether this pool shows it.

    Args:
        states: (checkpoint id, seed) → tower.
        tasks: the default evaluation tasks.
        order: checkpoint ids, in the order in which they join.
    """
    per_seed = [recovery(judge, base, [states[t, s] for t in tasks], tasks) for s in seeds if (tasks[0], s) in states]
    shares = [found["recovered"] for found in per_seed]
    found = per_seed[0]
    entries = [
        _entry(
            "Task arithmetic recovers most of what the single checkpoints gained",
            "Ilharco et al. 2023",
            float(np.mean(shares)) >= 0.6,
            float(np.mean(shares)) >= 0.4,
            "share of (individual - base) on the four default tasks, test, per seed: "
            + ", ".join(f"{share:.2f}" for share in shares)
            + f" (mean {np.mean(shares):.2f}, spread {np.ptp(shares):.2f}); seed {seeds[0]}: base "
            + f"{found['zero_shot']:.3f}, merged {found['merged']:.3f} at scale {found['scale']}, individual "
            + f"{found['individual']:.3f}",
        )
    ]
    joining = list(tasks) + [name for name in order if name not in tasks]
    sizes = [size for size in (4, 8, 12, 16) if size < len(joining)] + [len(joining)]
    averaged, added = [], []
    for size in sizes:
        members = [states[name, seeds[0]] for name in joining[:size]]
        averaged.append(judge.mean(merge(base, members, [1 / size] * size), tasks, "test"))
        added.append(judge.mean(merge(base, members, [0.3] * size), tasks, "test"))
    numbers = ", ".join(f"{size}: {value:.3f}" for size, value in zip(sizes, averaged, strict=True))
    gain = found["individual"] - found["zero_shot"]
    entries.append(
        _entry(
            "Averaging falls as irrelevant checkpoints join",
            "FW-Merging, figure 1",
            averaged[-1] < averaged[0] - 0.25 * gain,
            averaged[-1] < averaged[0] - 0.1 * gain,
            f"mean test accuracy on the four default tasks by number averaged: {numbers}",
        )
    )
    numbers = ", ".join(f"{size}: {value:.3f}" for size, value in zip(sizes, added, strict=True))
    entries.append(
        _entry(
            "Task arithmetic at scale 0.3 falls as irrelevant checkpoints join",
            "FW-Merging, figure 1",
            added[-1] < added[0] - 0.25 * gain,
            added[-1] < added[0] - 0.1 * gain,
            f"mean test accuracy on the four default tasks by number added: {numbers}",
        )
    )
    own = [name for name in order if name in judge.drawn]
    vectors = torch.stack([task_vector(base, states[name, seeds[0]]) for name in order])
    picks = {name: order[int((vectors @ judge.gradient(name)).argmin())] for name in own}
    first = sum(pick == name for name, pick in picks.items())
    same = sum(pick == name or pick.rpartition("_")[0] == name for name, pick in picks.items())
    entries.append(
        _entry(
            "The linear minimisation oracle picks the task's own checkpoint",
            "FW-Merging, section 4",
            first >= 0.9 * len(own),
            first >= 0.6 * len(own),
            f"at the base, on calibration rows: own checkpoint first in {first} of {len(own)} tasks (it or a second "
            f"checkpoint of the same task in {same}), out of {len(order)}",
        )
    )
    whole = torch.cat([base[name].reshape(-1) for name in moved_names(base)])
    unit = F.normalize(vectors[: len(own)], dim=1)
    cosines = (unit @ unit.T)[~torch.eye(len(own), dtype=torch.bool)]
    entries.append(
        _entry(
            "Task vectors are nearly orthogonal",
            "Ilharco et al. 2023, figure 5",
            float(cosines.abs().mean()) < 0.15,
            float(cosines.abs().mean()) < 0.3,
            f"mean |cosine| {cosines.abs().mean():.3f}, largest {cosines.max():.3f}; mean norm relative to the moved "
            f"tensors {vectors.norm(dim=1).mean() / whole.norm():.3f}",
        )
    )
    return entries


def _entry(name: str, paper: str, seen: bool, partly: bool, evidence: str) -> dict[str, Any]:
    verdict = True if seen else ("partly" if partly else False)
    return {"name": name, "paper": paper, "seen": verdict, "evidence": evidence}
