"""Held-out scores. Methods never receive an :class:`Evaluator`, so no test label can leak into a merge."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import overload

import torch
from torch import Tensor
from torch.nn import functional as F

from fwviz.backbones.family import Backbone
from fwviz.tasks.batches import passes
from fwviz.tasks.data import load_split, stratified_subset
from fwviz.tasks.extended import extended_features
from fwviz.tasks.heads import scaled_heads
from fwviz.types import Extension, FwvizError, PoolCard, Score, Split

QUICK_SPLIT: Split = "validation"
QUICK_COUNT = 64


class Evaluator:
    """Accuracy and cross-entropy of θ on held-out samples of some tasks.

    Splits are decoded when they are first needed. ``should_stop`` is asked before every pass (a fraction of a second
    apart); once it says yes the result is None.
    """

    def __init__(
        self,
        backbone: Backbone,
        card: PoolCard,
        tasks: Sequence[str],
        heads: Mapping[str, Tensor],
        *,
        quick_count: int = QUICK_COUNT,
        seed: int = 0,
        chunk: int | None = None,
    ) -> None:
        """
        Args:
            backbone: a bound model; may be the one of the job's objective, whose gradient stays untouched.
            heads: task → unit class embeddings (C, D).
            quick_count: samples per task of the quick score, a stratified subset of the validation split.
            seed: which subset.
            chunk: samples per pass, ``backbone.chunk`` if None.
        """
        if backbone.flat is None:
            raise ValueError("bind the backbone to a layout first")
        if not tasks:
            raise FwvizError("there is no task to evaluate: choose at least one.")
        self.tasks = tuple(tasks)
        self._backbone = backbone
        self._flat = backbone.flat
        self._card = card
        self._cards = {task: card.task(task) for task in self.tasks}
        self._heads = scaled_heads(backbone, {task: heads[task] for task in self.tasks})
        self._quick: dict[str, tuple[Tensor, Tensor]] | None = None
        self._quick_count, self._seed, self._quick_split = quick_count, seed, QUICK_SPLIT
        self._chunk = backbone.chunk if chunk is None else chunk

    def focused(self, tasks: Sequence[str], *, split: Split = QUICK_SPLIT, count: int = QUICK_COUNT) -> Evaluator:
        """The same tower judging some of the tasks, ``quick`` on ``count`` samples of a split: for many points.

        On the same number of samples of the validation split its quick scores are those of the evaluator itself.
        """
        for task in tasks:
            if task not in self._cards:
                raise FwvizError(f"there is no task {task!r} to evaluate: choose from {', '.join(self.tasks)}.")
        if count < 1:
            raise FwvizError(f"a score needs at least one sample, not {count}.")
        other = copy.copy(self)
        other.tasks = tuple(tasks)
        other._cards = {task: self._cards[task] for task in tasks}
        other._quick, other._quick_split, other._quick_count = None, split, count
        return other

    @overload
    def quick(
        self, theta: Tensor, *, extension: Extension | None = None, should_stop: None = None
    ) -> dict[str, Score]: ...

    @overload
    def quick(
        self, theta: Tensor, *, extension: Extension | None = None, should_stop: Callable[[], bool]
    ) -> dict[str, Score] | None: ...

    def quick(
        self, theta: Tensor, *, extension: Extension | None = None, should_stop: Callable[[], bool] | None = None
    ) -> dict[str, Score] | None:
        """Task → score of θ (P,) on the quick subset of the validation split, for every live step.

        With an ``extension`` it is the score of backbone θ, router and experts together.
        """
        if self._quick is None:
            self._quick = {task: self._subset(task) for task in self.tasks}
        with self._backbone.lock:
            if extension is not None:
                return self._extended_scores(theta, extension, self._quick, should_stop)
            self._load(theta)
            return self._scores(self._quick, should_stop)

    @overload
    def full(
        self, theta: Tensor, split: Split = "test", *, extension: Extension | None = None, should_stop: None = None
    ) -> dict[str, Score]: ...

    @overload
    def full(
        self,
        theta: Tensor,
        split: Split = "test",
        *,
        extension: Extension | None = None,
        should_stop: Callable[[], bool],
    ) -> dict[str, Score] | None: ...

    def full(
        self,
        theta: Tensor,
        split: Split = "test",
        *,
        extension: Extension | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> dict[str, Score] | None:
        """Task → score of θ (P,), or of backbone θ, router and experts together, on a whole split."""
        scores: dict[str, Score] = {}
        with self._backbone.lock:
            if extension is None:
                self._load(theta)
            # One task at a time, so that a stop also comes between two splits that must be decoded.
            for task, card in self._cards.items():
                if should_stop is not None and should_stop():
                    return None
                data = load_split(self._card, card, split)
                samples = {task: (data.inputs, data.labels)}
                if extension is None:
                    part = self._scores(samples, should_stop)
                else:
                    part = self._extended_scores(theta, extension, samples, should_stop)
                if part is None:
                    return None
                scores |= part
        return scores

    def _subset(self, task: str) -> tuple[Tensor, Tensor]:
        data = load_split(self._card, self._cards[task], self._quick_split)
        rows = stratified_subset(data.labels, self._quick_count, self._seed)
        return data.inputs[rows], data.labels[rows]

    def _load(self, theta: Tensor) -> None:
        if theta.shape != self._flat.theta.shape:
            raise ValueError(f"theta has shape {tuple(theta.shape)}, not {tuple(self._flat.theta.shape)}")
        with torch.no_grad():
            self._flat.load(theta)

    @torch.no_grad()
    def _scores(
        self, samples: Mapping[str, tuple[Tensor, Tensor]], should_stop: Callable[[], bool] | None
    ) -> dict[str, Score] | None:
        """Scores at the weights the backbone holds."""
        names = tuple(samples)
        counts = [samples[name][1].shape[0] for name in names]
        correct = torch.zeros(len(names), dtype=torch.int64)
        losses = torch.zeros(len(names), dtype=torch.float64)
        for pieces in passes(counts, self._chunk):
            if should_stop is not None and should_stop():
                return None
            features = self._backbone.features([samples[names[k]][0][start:stop] for k, start, stop in pieces])
            parts = features.split([stop - start for _, start, stop in pieces])
            for (k, start, stop), part in zip(pieces, parts, strict=True):
                logits = self._heads[names[k]].logits(part)
                labels = samples[names[k]][1][start:stop].to(logits.device)
                correct[k] += int((logits.argmax(dim=-1) == labels).sum())
                losses[k] += float(F.cross_entropy(logits, labels, reduction="sum"))
        return {
            name: Score(correct[k].item() / count, losses[k].item() / count, count)
            for k, (name, count) in enumerate(zip(names, counts, strict=True))
        }

    @torch.no_grad()
    def _extended_scores(
        self,
        theta: Tensor,
        extension: Extension,
        samples: Mapping[str, tuple[Tensor, Tensor]],
        should_stop: Callable[[], bool] | None,
    ) -> dict[str, Score] | None:
        """Scores of a merge of several parts; an input may be routed to the expert of any task."""
        inputs = {task: part for task, (part, _) in samples.items()}
        features = extended_features(
            self._backbone, theta, extension, inputs, chunk=self._chunk, should_stop=should_stop
        )
        if features is None:
            return None
        scores = {}
        for task, (_, labels) in samples.items():
            logits = self._heads[task].logits(features[task].to(self._backbone.device)).cpu()
            correct = int((logits.argmax(dim=-1) == labels).sum())
            loss = float(F.cross_entropy(logits, labels, reduction="sum"))
            scores[task] = Score(correct / len(labels), loss / len(labels), len(labels))
        return scores
