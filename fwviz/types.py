"""Frozen records and interfaces shared by every layer.

This module imports nothing of fwviz. It says what the layers exchange; the layers say how.

Shapes used throughout: ``P`` mergeable parameters of one model, laid out flat; ``n`` checkpoints;
``G`` groups of parameters; ``K`` evaluation tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

Granularity = Literal["model", "layer", "tensor"]
Split = Literal["calibration", "validation", "test"]
LossName = Literal["cross_entropy", "entropy"]
MetricName = Literal[
    "accuracy", "matthews", "pearson", "spearman", "pearson_spearman", "exact_match", "rouge", "pass@1"
]
Status = Literal["running", "converged", "max_steps", "stopped", "failed"]

GRANULARITIES: tuple[Granularity, ...] = ("model", "layer", "tensor")
SPLITS: tuple[Split, ...] = ("calibration", "validation", "test")
METRICS: tuple[MetricName, ...] = get_args(MetricName)


class FwvizError(Exception):
    """A mistake in what was given to us. ``str(error)`` is one sentence: what was wrong and what to do."""


# --- the flat parameter space -------------------------------------------------------------------


@dataclass(frozen=True)
class Groups:
    """A partition of the flat parameter vector into ``G`` contiguous ranges.

    ``bounds`` has G + 1 ascending offsets; group g is ``[bounds[g], bounds[g + 1])``. Ranges can be
    contiguous at every granularity because :class:`ParamLayout` orders tensors by layer.
    """

    granularity: Granularity
    names: tuple[str, ...]
    bounds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """The (start, stop) of each group, in order."""
        return zip(self.bounds[:-1], self.bounds[1:], strict=True)


@dataclass(frozen=True)
class ParamLayout:
    """Names, shapes and offsets of the mergeable tensors of one architecture, in layer order.

    ``layers[j]`` is the layer (stem, block.0, …, head) tensor j belongs to. ``excluded`` maps the name of
    every tensor that stays at the base to the reason. Offsets are in elements; ``offsets`` has one more
    entry than ``names`` and ends at P.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]
    layers: tuple[str, ...]
    excluded: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """P, the number of mergeable parameters."""
        return self.offsets[-1]

    def groups(self, granularity: Granularity) -> Groups:
        """Partition at one granularity: one group, one per layer, or one per tensor."""
        if granularity == "model":
            return Groups("model", ("model",), (0, self.size))
        if granularity == "tensor":
            return Groups("tensor", self.names, self.offsets)
        starts = [j for j, layer in enumerate(self.layers) if j == 0 or layer != self.layers[j - 1]]
        bounds = (*(self.offsets[j] for j in starts), self.size)
        return Groups("layer", tuple(self.layers[j] for j in starts), bounds)

    def view(self, flat: Tensor, name: str) -> Tensor:
        """The tensor ``name`` as a view of a flat (P,) vector."""
        j = self.names.index(name)
        return flat[self.offsets[j] : self.offsets[j + 1]].view(self.shapes[j])


@runtime_checkable
class TaskVectors(Protocol):
    """n task vectors τᵢ = θᵢ − θ₀ over one layout, wherever they are stored.

    Results of every storage agree to floating-point rounding. ``bytes_read`` counts the bytes of
    checkpoint data read so far. ``base`` is θ₀ (P,) in the dtype it was saved in: a vector made like it names its own,
    and sums of whole vectors with it go by :mod:`fwviz.space.wide`, which widens none as a whole.
    """

    layout: ParamLayout
    names: tuple[str, ...]
    base: Tensor

    @property
    def bytes_read(self) -> int: ...

    @property
    def n(self) -> int: ...

    def scores(self, gradient: Tensor, groups: Groups) -> Tensor:
        """S[g, i] = ⟨gradient_g, τᵢ,g⟩. gradient (P,) → (G, n) float32 on the CPU."""
        ...

    def cosines(self, gradient: Tensor, groups: Groups) -> Tensor:
        """C[g, i] = Σ over the tensors p of group g of cos(gradient_p, θᵢ,p), 0 where a norm is 0.

        θᵢ are raw checkpoint weights: the released FW-Merging code ranks by this.

        gradient (P,) → (G, n) float32 on the CPU.
        """
        ...

    def gram(self, groups: Groups) -> Tensor:
        """K[g, i, j] = ⟨τᵢ,g, τⱼ,g⟩, every checkpoint read once: (G, n, n) float64 on the CPU."""
        ...

    def combine(self, coefficients: Tensor, groups: Groups, out: Tensor | None = None) -> Tensor:
        """θ₀ + Σᵢ λ[g, i]·τᵢ,g. coefficients (G, n) → flat (P,), written to ``out`` if given.

        Columns that are zero everywhere are not read.
        """
        ...

    def vector(self, i: int) -> Tensor:
        """τᵢ as a new flat (P,) float32 tensor."""
        ...

    def block(self, start: int, stop: int, rows: Sequence[int] | None = None) -> Tensor:
        """τᵢ in [start, stop) of some checkpoints, all if None: a new (len(rows), stop − start) float32 tensor."""
        ...

    def subset(self, indices: Sequence[int]) -> TaskVectors:
        """The same storage restricted to some checkpoints, in the order given."""
        ...


# --- what judges a merge ------------------------------------------------------------------------


@runtime_checkable
class Objective(Protocol):
    """What a method may see: losses and flat gradients on calibration (labelled) or unlabelled inputs.

    The joint loss is the mean over tasks of each task's mean loss. Models run in eval mode.
    ``batch_size`` draws that many samples per task with ``generator`` (all samples if None).
    """

    tasks: tuple[str, ...]

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
        ...

    def gradient(
        self,
        theta: Tensor,
        *,
        tasks: Sequence[str] | None = None,
        loss: LossName = "cross_entropy",
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Losses (K,) and the flat gradient (P,) of their mean. The gradient is borrowed: valid until the next call."""
        ...


@runtime_checkable
class Lender(Protocol):
    """An objective that lends the weights of its own model, so that θ need not be built elsewhere and copied there."""

    @property
    def place(self) -> Tensor:
        """(P,): what is given as θ to losses and gradients may be this tensor itself."""
        ...


@dataclass(frozen=True)
class Score:
    """Accuracy in [0, 1] and mean cross-entropy in nats of one model on one task, over ``count`` samples.

    Where a task's card names another metric, ``accuracy`` is that one, 1 at best; correlations may be negative. The
    loss of a task whose answers are numbers is the mean squared error.
    """

    accuracy: float
    loss: float
    count: int


@runtime_checkable
class Probe(Protocol):
    """What a method may measure inside the model at some weights, beyond losses: on the objective's own inputs.

    Inputs are the calibration samples of one task, or with ``unlabelled`` those that methods without labels see.
    ``count`` takes that many of them, drawn with ``generator`` (all if None). θ is (P,).
    """

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
        ...

    def labels(self, task: str) -> Tensor:
        """Labels of the calibration samples: (N,) int64."""
        ...

    def head(self, task: str) -> Tensor:
        """(C, D) with the logit scale inside: logits = features @ headᵀ."""
        ...

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

        Exact, or with about ``passes`` backward passes over all samples an estimate that is right in the mean.
        """
        ...

    def input_grams(
        self, theta: Tensor, task: str, *, count: int | None = None, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Σ xᵀx over all tokens of the samples, x the inputs of each linear weight: name → (in, in) float32.

        Weights that read the same input share one tensor.
        """
        ...


# --- merges that are more than one weight vector ------------------------------------------------


@runtime_checkable
class Expert(Protocol):
    """What turns the backbone θ_b into the weights θ_e meant for one task. It keeps only what is stored for it."""

    @property
    def kind(self) -> str: ...

    @property
    def size(self) -> int:
        """P, the number of parameters of the backbone it belongs to."""
        ...

    def add_to(self, theta: Tensor, backbone: Tensor, share: float = 1.0) -> None:
        """Add share·(θ_e − θ_b) to ``theta`` (P,), which is not ``backbone`` (P,) itself."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is stored, by name; ``from_tensors`` of the class makes the same expert of it."""
        ...


@runtime_checkable
class FeatureMap(Protocol):
    """What turns unit features (N, D) of the backbone into the unit features one task's head reads."""

    @property
    def kind(self) -> str: ...

    def __call__(self, features: Tensor) -> Tensor: ...

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is stored, by name."""
        ...


@runtime_checkable
class Router(Protocol):
    """Says for every input how much of which task's expert it gets. ``reads_features`` is False if it need not look."""

    @property
    def kind(self) -> str: ...

    @property
    def tasks(self) -> tuple[str, ...]: ...

    @property
    def reads_features(self) -> bool: ...

    def shares(self, features: Tensor, task: str) -> Tensor:
        """Unit features of the backbone (N, D) → shares (N, len(tasks)) ≥ 0 on the CPU, each row of sum 1.

        ``task`` is the task whose head will answer; only a router that is told it may use it. Without
        ``reads_features`` only the number N counts.
        """
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is stored, by name."""
        ...


@dataclass(frozen=True)
class Extension:
    """What a merge consists of beside its backbone θ: experts, feature maps and the router that picks among them.

    An input with shares w is encoded by θ + Σ_k w_k·(θ_k − θ), the sum over the tasks that have an expert, and its
    features pass the map, if there is one, of the task whose head answers.
    """

    router: Router
    experts: dict[str, Expert] = field(default_factory=dict)
    maps: dict[str, FeatureMap] = field(default_factory=dict)


# --- methods ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coefficients:
    """Coefficients λ of a linear merge as plain data: a row per group of ``granularity``, a column per checkpoint."""

    granularity: Granularity
    values: tuple[tuple[float, ...], ...]

    def tensor(self) -> Tensor:
        """(G, n) float32."""
        return torch.tensor(self.values, dtype=torch.float32)


@dataclass(frozen=True)
class Problem:
    """All a merge method receives. It holds no evaluator, so that test data cannot leak into a merge.

    ``owners`` has for each checkpoint the id of the task it was fine-tuned on, "" where that is unknown; the task need
    not be one of the objective's. ``given`` are coefficients that the recipe brings along, if it does.
    """

    vectors: TaskVectors
    objective: Objective
    seed: int = 0
    owners: tuple[str, ...] = ()
    given: Coefficients | None = None

    def owner(self, i: int) -> str:
        """The task checkpoint i was fine-tuned on if the objective has it, else ""."""
        task = self.owners[i] if self.owners else ""
        return task if task in self.objective.tasks else ""

    def probe(self) -> Probe:
        """The objective as a :class:`Probe`; FwvizError if it cannot look inside the model."""
        if not isinstance(self.objective, Probe):
            raise FwvizError(
                "this method looks inside the model, which this kind of pool does not offer: choose another."
            )
        return self.objective

    def groups(self, granularity: Granularity) -> Groups:
        return self.vectors.layout.groups(granularity)

    def room(self) -> Tensor:
        """A float32 vector (P,) beside the base in which θ may be built: the objective's own, if it lends one.

        What it holds lasts until the method yields: whoever looks at a step may build other weights there.
        """
        base = self.vectors.base
        if isinstance(self.objective, Lender):
            place = self.objective.place
            if (place.dtype, place.device, place.shape) == (torch.float32, base.device, base.shape):
                return place
        return torch.empty(base.shape, device=base.device)

    def generator(self, stream: int = 0) -> torch.Generator:
        """A CPU random generator of its own for each ``stream``, fixed by the problem's seed."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + stream)


@dataclass(frozen=True)
class Step:
    """One state of a running merge.

    A linear merge is given by ``coefficients`` (G, n) at ``granularity``: θ = θ₀ + Σᵢ λ[g,i]·τᵢ,g. Any other merge
    is given by ``delta`` (P,) = θ − θ₀, borrowed until the generator is advanced. With an ``extension`` these are the
    weights of the backbone only, and the merge is judged and kept as both; a loss given is the backbone's.

    ``t`` counts iterations; ``inner`` counts the updates inside one, 0 for the completed iterate. A ``landmark`` is an
    inner update that belongs to the record: it is kept and judged whether or not anybody looks. A ``rejected`` one is a
    trial whose loss is not finite: it is shown, but neither judged nor what a run ends with. ``scores`` (G, n) is
    the linear approximation ⟨∇ℓ(θ_t), s_i − θ_t⟩ the oracle compared *before* this iterate was made, ``task_scores``
    the same per task. ``vertices`` are the chosen checkpoints, per group for a layer-wise oracle.
    """

    t: int
    granularity: Granularity = "model"
    coefficients: Tensor | None = None
    delta: Tensor | None = None
    extension: Extension | None = None
    inner: int = 0
    loss: float | None = None
    gap: float | None = None
    step_size: float | None = None
    vertices: tuple[tuple[str, ...], ...] = ()
    scores: Tensor | None = None
    task_scores: dict[str, Tensor] = field(default_factory=dict)
    in_hull: bool | None = None
    status: Status = "running"
    note: str = ""
    landmark: bool = False
    rejected: bool = False
