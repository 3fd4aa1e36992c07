"""Held-out scores. Methods never receive an :class:`Evaluator`, so no test label can leak into a merge."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, overload

import torch
from torch import Tensor

from fwviz.backbones.family import Backbone, Classifier, Model
from fwviz.backbones.precision import in_float32
from fwviz.cards import PoolCard
from fwviz.tasks.batches import Chunk, passes
from fwviz.tasks.data import TaskData, load_split, stratified_subset
from fwviz.tasks.extended import extended_features
from fwviz.tasks.heads import Head
from fwviz.tasks.judges import Batch, FeatureJudge, Judged, judge_of
from fwviz.tasks.metrics import metric, read_numbers
from fwviz.tasks.router import OracleRouter
from fwviz.types import Extension, FwvizError, Score, Split

QUICK_SPLIT: Split = "validation"
QUICK_COUNT = 64


class Samples(NamedTuple):
    """Held-out samples of one task: inputs (N, …), labels (N,) and the right answers in words, where it has them."""

    inputs: Tensor
    labels: Tensor
    references: tuple[str, ...]


class Evaluator:
    """Accuracy, or what metric the card names, and loss of θ on held-out samples of some tasks.

    Splits are decoded when they are first needed. ``should_stop`` is asked before every pass (a fraction of a second
    apart); once it says yes the result is None.
    """

    def __init__(
        self,
        backbone: Model,
        card: PoolCard,
        tasks: Sequence[str],
        heads: Mapping[str, Tensor | Classifier],
        *,
        quick_count: int = QUICK_COUNT,
        seed: int = 0,
        chunk: int | None = None,
    ) -> None:
        """
        Args:
            backbone: a bound model; may be the one of the job's objective, whose gradient stays untouched.
            heads: task → unit class embeddings (C, D), or a classifier; none for a model that answers in words.
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
        self._judge = judge_of(backbone, heads, self._cards)
        self._quick: dict[str, Samples] | None = None
        self._quick_count, self._seed, self._quick_split = quick_count, seed, QUICK_SPLIT
        self._chunk = Chunk(backbone.chunk if chunk is None else chunk)

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
        """Task → score of θ (P,), or of backbone θ, router and experts together, on a whole split.

        In float32, whatever the model computes in meanwhile: the weights are judged, and numbers of all runs compare.
        """
        scores: dict[str, Score] = {}
        with in_float32(self._backbone):
            if extension is None:
                self._load(theta)
            # One task at a time, so that a stop also comes between two splits that must be decoded.
            for task, card in self._cards.items():
                if should_stop is not None and should_stop():
                    return None
                data = load_split(self._card, card, split)
                samples = {task: Samples(data.inputs, data.labels, data.references)}
                if extension is None:
                    part = self._scores(samples, should_stop)
                else:
                    part = self._extended_scores(theta, extension, samples, should_stop)
                if part is None:
                    return None
                scores |= part
        return scores

    @torch.no_grad()
    def features(self, theta: Tensor, *, extension: Extension | None = None) -> dict[str, Tensor]:
        """Task → what its head reads of the samples that ``quick`` takes: (N, D) float32 on the CPU.

        Of θ (P,), or of backbone θ, router and experts together. Raises FwvizError for a model that answers in words.
        """
        if not isinstance(self._backbone, Backbone):
            raise FwvizError("this model answers in words and has no features that a head reads: choose another pool.")
        if self._quick is None:
            self._quick = {task: self._subset(task) for task in self.tasks}
        inputs = {task: samples.inputs for task, samples in self._quick.items()}
        parts = Extension(OracleRouter(self.tasks)) if extension is None else extension
        with self._backbone.lock:
            made = extended_features(self._backbone, theta, parts, inputs, chunk=self._chunk)
        assert made is not None  # nobody was asked whether to stop
        return made

    def _subset(self, task: str) -> Samples:
        data: TaskData = load_split(self._card, self._cards[task], self._quick_split)
        rows = stratified_subset(data.labels, self._quick_count, self._seed)
        references = tuple(data.references[row] for row in rows.tolist()) if data.references else ()
        return Samples(data.inputs[rows], data.labels[rows], references)

    def _load(self, theta: Tensor) -> None:
        if theta.shape != self._flat.theta.shape:
            raise ValueError(f"theta has shape {tuple(theta.shape)}, not {tuple(self._flat.theta.shape)}")
        with torch.no_grad():
            self._flat.load(theta)

    @torch.no_grad()
    def _scores(
        self, samples: Mapping[str, Samples], should_stop: Callable[[], bool] | None
    ) -> dict[str, Score] | None:
        """Scores at the weights the model holds."""
        names = tuple(samples)
        counts = [len(samples[name].labels) for name in names]

        def attempt(chunk: int) -> dict[str, list[Judged]] | None:
            judged: dict[str, list[Judged]] = {name: [] for name in names}
            for pieces in passes(counts, chunk):
                if should_stop is not None and should_stop():
                    return None
                batches = [self._batch(names[k], samples[names[k]], start, stop) for k, start, stop in pieces]
                for batch, found in zip(batches, self._judge.judge(batches), strict=True):
                    judged[batch.task].append(found)
            return judged

        judged = self._chunk.fit(sum(counts), attempt)
        if judged is None:
            return None
        return {name: self._score(name, samples[name], judged[name]) for name in names}

    def _batch(self, task: str, samples: Samples, start: int, stop: int) -> Batch:
        labels = samples.labels[start:stop].to(self._backbone.device)
        return Batch(task, samples.inputs[start:stop], labels)

    def _score(self, task: str, samples: Samples, judged: Sequence[Judged]) -> Score:
        """The metric of the task's card over all answers, and the mean loss."""
        wanted = metric(self._cards[task].metric)
        count, loss = len(samples.labels), sum(part.loss for part in judged)
        texts = [text for part in judged if isinstance(part.answers, list) for text in part.answers]
        numbers = [part.answers for part in judged if isinstance(part.answers, Tensor)]
        if wanted.kind == "texts":
            value = wanted.compute(texts, samples.references)
        elif numbers:
            value = wanted.compute(torch.cat(numbers), samples.labels)
        else:
            value = wanted.compute(read_numbers(texts), read_numbers(samples.references))
        return Score(value, loss / count, count)

    @torch.no_grad()
    def _extended_scores(
        self,
        theta: Tensor,
        extension: Extension,
        samples: Mapping[str, Samples],
        should_stop: Callable[[], bool] | None,
    ) -> dict[str, Score] | None:
        """Scores of a merge of several parts; an input may be routed to the expert of any task."""
        if not isinstance(self._judge, FeatureJudge) or not isinstance(self._backbone, Backbone):
            raise FwvizError(
                "a merge with experts or a router needs a model that makes features: choose another method."
            )
        judge = self._judge
        if extension.maps and not all(isinstance(head, Head) for head in judge.heads.values()):
            raise FwvizError("a map of features needs heads made of texts, not classifiers: choose another method.")
        inputs = {task: part.inputs for task, part in samples.items()}
        features = extended_features(
            self._backbone, theta, extension, inputs, chunk=self._chunk, should_stop=should_stop
        )
        if features is None:
            return None
        device = self._backbone.device
        return {
            task: self._score(task, part, [judge.read(task, features[task].to(device), part.labels.to(device))])
            for task, part in samples.items()
        }
