"""What a merge method may see: losses and flat gradients on calibration samples or unlabelled inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from fwviz.backbones.family import Backbone, Classifier, Model
from fwviz.tasks import probe
from fwviz.tasks.batches import Chunk, passes
from fwviz.tasks.data import TaskData
from fwviz.tasks.judges import Batch, FeatureJudge, Judge
from fwviz.types import FwvizError, LossName


def _go_on() -> None:
    """The check of an objective nobody wants to stop."""


class LabelledObjective:
    """The joint loss of some tasks, the mean over tasks of each task's mean loss, and its flat gradient.

    Satisfies :class:`fwviz.types.Objective`. The gradient is exact and does not depend on how samples are cut into
    passes; memory is bounded by one pass, and a pass that does not fit into it is made smaller.

    ``check`` is called before every pass (a fraction of a second apart); what it raises ends the call. It is how a run
    stops or pauses inside a long gradient, and may be replaced at any time.
    """

    def __init__(
        self,
        model: Model,
        judge: Judge,
        data: Mapping[str, TaskData],
        *,
        unlabelled: Mapping[str, Tensor] | None = None,
        chunk: int | None = None,
        check: Callable[[], None] = _go_on,
    ) -> None:
        """
        Args:
            model: a bound model of this job's own.
            judge: what turns its outputs into losses.
            data: task → labelled samples, in the order of ``tasks``.
            unlabelled: task → inputs (N, …) for ``loss="entropy"``; those of ``data`` if None.
            chunk: samples per pass, ``model.chunk`` if None.
        """
        if model.flat is None:
            raise ValueError("bind the model to a layout first")
        if not data:
            raise FwvizError("there is no task to merge for: choose at least one.")
        self.tasks = tuple(data)
        self.check = check
        self._model = model
        self._judge = judge
        self._flat = model.flat
        self._inputs = {task: samples.inputs for task, samples in data.items()}
        self._labels = {task: samples.labels.to(model.device) for task, samples in data.items()}
        self._unlabelled = self._inputs if unlabelled is None else {task: unlabelled[task] for task in data}
        self._chunk = Chunk(model.chunk if chunk is None else chunk)

    @property
    def place(self) -> Tensor:
        """The weights of the model: θ may be built here; see :meth:`fwviz.types.Problem.room`."""
        return self._flat.theta

    def losses(
        self,
        theta: Tensor,
        *,
        tasks: Sequence[str] | None = None,
        loss: LossName = "cross_entropy",
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean loss per task at θ: (P,) → (K,) float32 on the CPU."""
        return self._sweep(theta, tasks, loss, batch_size, generator, backward=False)

    def gradient(
        self,
        theta: Tensor,
        *,
        tasks: Sequence[str] | None = None,
        loss: LossName = "cross_entropy",
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Losses (K,) and the flat gradient (P,) of their mean.

        The gradient is the model's own buffer, on its device: valid until the next call, never to be written to.
        """
        losses = self._sweep(theta, tasks, loss, batch_size, generator, backward=True)
        return losses, self._flat.gradient

    def _known(self, task: str) -> None:
        if task not in self._labels:
            raise FwvizError(f"the objective has no task {task!r}: choose from {', '.join(self.tasks)}.")

    @contextmanager
    def _loaded(self, theta: Tensor) -> Iterator[None]:
        """The model, for oneself alone, at weights θ (P,)."""
        if theta.shape != self._flat.theta.shape:
            raise ValueError(f"theta has shape {tuple(theta.shape)}, not {tuple(self._flat.theta.shape)}")
        with self._model.lock:
            with torch.no_grad():
                self._flat.load(theta)
            yield

    def _sweep(
        self,
        theta: Tensor,
        tasks: Sequence[str] | None,
        loss: LossName,
        batch_size: int | None,
        generator: torch.Generator | None,
        *,
        backward: bool,
    ) -> Tensor:
        names = self.tasks if tasks is None else tuple(tasks)
        for name in names:
            self._known(name)
        if not names or len(set(names)) < len(names):
            raise ValueError(f"tasks must be distinct and at least one, not {names}")
        inputs = self._inputs if loss == "cross_entropy" else self._unlabelled
        rows = [_draw(inputs[name].shape[0], batch_size, generator) for name in names]
        counts = [len(r) for r in rows]

        def attempt(chunk: int) -> Tensor:
            """The sums of the losses (K,), and the gradient from zero on."""
            found: list[tuple[int, Tensor]] = []
            if backward:
                self._flat.zero_gradient()
            for pieces in passes(counts, chunk):
                self.check()
                batches = [self._batch(names[k], inputs, rows[k][start:stop], loss) for k, start, stop in pieces]
                mean = self._flat.theta.new_zeros(())
                for (k, _, _), total in zip(pieces, self._judge.loss_sums(batches, loss), strict=True):
                    found.append((k, total.detach()))
                    mean = mean + total / (len(rows[k]) * len(names))
                if backward:
                    mean.backward()
            # Added up on the CPU: not every device has float64.
            parts = torch.stack([total for _, total in found]).cpu().double()
            sums = torch.zeros(len(names), dtype=torch.float64)
            return sums.index_add_(0, torch.tensor([k for k, _ in found]), parts)

        with self._loaded(theta), torch.set_grad_enabled(backward):
            sums = self._chunk.fit(sum(counts), attempt)
        return (sums / torch.tensor(counts, dtype=torch.float64)).float()

    def _batch(self, task: str, inputs: Mapping[str, Tensor], rows: Tensor, loss: LossName) -> Batch:
        labels = self._labels[task][rows.to(self._model.device)] if loss == "cross_entropy" else None
        return Batch(task, inputs[task][rows], labels)


class CalibrationObjective(LabelledObjective):
    """The objective of a model with heads, which can also look inside it: satisfies :class:`fwviz.types.Probe` too."""

    def __init__(
        self,
        backbone: Backbone,
        data: Mapping[str, TaskData],
        heads: Mapping[str, Tensor | Classifier],
        *,
        unlabelled: Mapping[str, Tensor] | None = None,
        chunk: int | None = None,
        check: Callable[[], None] = _go_on,
    ) -> None:
        """
        Args:
            backbone: a bound model of this job's own.
            data: task → labelled samples, in the order of ``tasks``.
            heads: task → unit class embeddings (C, D), or a classifier.
            unlabelled: task → inputs (N, …) for ``loss="entropy"``; those of ``data`` if None.
            chunk: samples per pass, ``backbone.chunk`` if None.
        """
        judge = FeatureJudge(backbone, {task: heads[task] for task in data})
        super().__init__(backbone, judge, data, unlabelled=unlabelled, chunk=chunk, check=check)
        self._backbone = backbone
        self._heads = judge.heads
        for task, samples in data.items():
            head = self._heads[task]
            if not head.is_number and int(samples.labels.max()) >= head.classes:
                raise FwvizError(f"task {task!r} has labels beyond the {head.classes} classes of its head.")

    # --- looking inside -------------------------------------------------------------------------

    def features(
        self,
        theta: Tensor,
        task: str,
        *,
        unlabelled: bool = False,
        count: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """What the head's linear layer reads: (N, D) float32, CPU; in the order of ``labels`` when ``count`` is None.

        Of unit length where heads are made of texts.
        """
        inputs = self._drawn(task, count, generator, self._unlabelled if unlabelled else self._inputs)
        with self._loaded(theta):
            head = self._heads[task]
            return self._chunk.fit(
                len(inputs), lambda chunk: probe.features(self._backbone, head, inputs, chunk, self.check)
            )

    def labels(self, task: str) -> Tensor:
        """Labels of the calibration samples: (N,) int64, or float32 of numbers, CPU."""
        self._known(task)
        return self._labels[task].cpu()

    def head(self, task: str) -> Tensor:
        """(C, D), CPU, with the logit scale inside: logits = features @ headᵀ."""
        self._known(task)
        return self._heads[task].weight.cpu()

    def squared_gradients(
        self,
        theta: Tensor,
        task: str,
        *,
        count: int | None = None,
        passes: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Diagonal of the Fisher information, mean over samples of Σ_c p_c·(∂ log p_c / ∂θ)²: (P,) float32, CPU.

        Exact, or with about ``passes`` backward passes over all samples right in the mean. Ends what :meth:`gradient`
        lent.
        """
        inputs = self._drawn(task, count, generator, self._inputs)
        with self._loaded(theta):
            head = self._heads[task]
            return self._chunk.fit(
                1 if passes is None else -(-len(inputs) // passes),
                lambda chunk: probe.squared_gradients(
                    self._backbone, self._flat, head, inputs, passes, generator, chunk, self.check
                ),
            )

    def input_grams(
        self, theta: Tensor, task: str, *, count: int | None = None, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Σ xᵀx over all tokens of the samples, x the inputs of each linear weight: name → (in, in) float32, CPU.

        Weights that read the same input share one tensor.
        """
        inputs = self._drawn(task, count, generator, self._inputs)
        with self._loaded(theta):
            return self._chunk.fit(
                len(inputs), lambda chunk: probe.input_grams(self._backbone, self._flat, inputs, chunk, self.check)
            )

    def _drawn(
        self, task: str, count: int | None, generator: torch.Generator | None, inputs: Mapping[str, Tensor]
    ) -> Tensor:
        self._known(task)
        return inputs[task][_draw(len(inputs[task]), count, generator)]


def _draw(count: int, batch_size: int | None, generator: torch.Generator | None) -> Tensor:
    """Indices of all samples, or of ``batch_size`` drawn without replacement."""
    if batch_size is None:
        return torch.arange(count)
    if batch_size < 1 or generator is None:
        raise ValueError("a batch needs a size of at least 1 and a generator")
    return torch.randperm(count, generator=generator)[:batch_size]
