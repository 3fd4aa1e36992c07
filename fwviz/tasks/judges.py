"""Judges: what losses and answers are made of, for models with heads and for models that answer in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from fwviz.backbones.family import Backbone, Classifier, LanguageModel, Model
from fwviz.cards import TaskCard
from fwviz.tasks.heads import scaled_heads
from fwviz.tasks.metrics import metric
from fwviz.types import FwvizError, LossName


class Batch(NamedTuple):
    """Samples of one task: inputs (B, …) as the family takes them, labels (B,) on the model's device if there are."""

    task: str
    inputs: Tensor
    labels: Tensor | None


class Judged(NamedTuple):
    """What a model says to a batch: a class or number per sample (B,), or texts; and the sum of its losses in nats."""

    answers: Tensor | list[str]
    loss: float


class Judge(Protocol):
    """A bound model with what turns its outputs into losses and answers."""

    def loss_sums(self, batches: Sequence[Batch], loss: LossName) -> list[Tensor]:
        """The sum of the losses of each batch, differentiable: one pass."""
        ...

    def judge(self, batches: Sequence[Batch]) -> list[Judged]:
        """Answers and losses of each labelled batch."""
        ...


class FeatureJudge:
    """A backbone and a head per task; the batches of several tasks share a pass."""

    def __init__(self, backbone: Backbone, heads: Mapping[str, Tensor | Classifier]) -> None:
        self.heads = scaled_heads(backbone, heads)
        self._backbone = backbone

    def loss_sums(self, batches: Sequence[Batch], loss: LossName) -> list[Tensor]:
        """See :class:`Judge`."""
        return [
            self.heads[batch.task].loss_sum(part, batch.labels, loss)
            for batch, part in zip(batches, self._features(batches), strict=True)
        ]

    def judge(self, batches: Sequence[Batch]) -> list[Judged]:
        """See :class:`Judge`."""
        return [
            self.read(batch.task, part, batch.labels)
            for batch, part in zip(batches, self._features(batches), strict=True)
        ]

    def read(self, task: str, features: Tensor, labels: Tensor | None) -> Judged:
        """Answers and loss of features (B, D) that are there already."""
        head = self.heads[task]
        loss = head.loss_sum(features, labels, "cross_entropy")
        return Judged(head.answers(head.logits(features)).cpu(), float(loss))

    def _features(self, batches: Sequence[Batch]) -> Sequence[Tensor]:
        features = self._backbone.features([batch.inputs for batch in batches])
        return features.split([len(batch.inputs) for batch in batches])


class WordJudge:
    """A model that answers in words, and how each task reads them."""

    def __init__(self, model: LanguageModel, cards: Mapping[str, TaskCard]) -> None:
        self._model = model
        self._cards = dict(cards)

    def loss_sums(self, batches: Sequence[Batch], loss: LossName) -> list[Tensor]:
        """Cross-entropy: −ln p of the right answer, the mean over its tokens (teacher forcing). Entropy: of the choice
        among a task's classes, p_c ∝ p(answer c); of a free answer that of its first token.
        """
        return [self._loss(batch, loss) for batch in batches]

    def judge(self, batches: Sequence[Batch]) -> list[Judged]:
        """Classes by rank, the answer with the largest probability; where the metric reads texts or numbers what the
        model writes.
        """
        found = []
        for batch in batches:
            loss = float(self._loss(batch, "cross_entropy"))
            if metric(self._cards[batch.task].metric).kind == "classes":
                found.append(Judged(self._scores(batch.inputs).argmax(dim=-1).cpu(), loss))
            else:
                found.append(Judged(self._model.write(batch.inputs), loss))
        return found

    def _scores(self, inputs: Tensor) -> Tensor:
        """ln p of each answer: (B, C)."""
        return self._model.log_probs(inputs)[0].sum(dim=-1)

    def _loss(self, batch: Batch, loss: LossName) -> Tensor:
        if loss == "cross_entropy":
            if batch.labels is None:
                raise ValueError("cross_entropy needs labels")
            log_p, counts = self._model.log_probs(batch.inputs, batch.labels)
            return -(log_p.sum(dim=-1) / counts).sum()
        if self._cards[batch.task].classes:
            log_p = self._scores(batch.inputs).log_softmax(dim=-1)
        else:
            log_p = self._model.first(batch.inputs)
        return -(log_p.exp() * log_p).sum()


def judge_of(model: Model, heads: Mapping[str, Tensor | Classifier], cards: Mapping[str, TaskCard]) -> Judge:
    """The judge of a model's kind for some tasks; FwvizError if a metric does not fit the kind of answers."""
    if isinstance(model, LanguageModel):
        for task, card in cards.items():
            if not card.classes and metric(card.metric).kind == "classes":
                raise FwvizError(f"task {task!r} has no classes to take the {card.metric} of: correct the pool card.")
        return WordJudge(model, cards)
    if not isinstance(model, Backbone):
        raise TypeError(f"{type(model).__name__} neither makes features nor writes words")
    found = FeatureJudge(model, {task: heads[task] for task in cards})
    for task, card in cards.items():
        wanted = "numbers" if found.heads[task].is_number else "classes"
        if metric(card.metric).kind != wanted:
            raise FwvizError(
                f"task {task!r} is answered by {wanted}, which have no {card.metric}: correct its metric in the card."
            )
    return found
