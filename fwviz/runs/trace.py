"""The record of a run: its frames, its reference rows and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from fwviz.registry import entry
from fwviz.runs.recipe import Recipe
from fwviz.types import FwvizError, Granularity, ParamLayout, Score, Split, Status, TaskVectors

FORMAT = 1

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Frame:
    """One recorded state of a run, all plain data.

    ``t`` counts completed iterates, ``inner`` the updates inside one (0 = completed). ``coefficients`` is (G, n) at
    ``granularity``, None when the merge is not linear. ``scores`` (G, n) and ``task_scores`` (per task) are the linear
    approximations the oracle compared before this iterate, on completed iterates only. ``accuracy`` in [0, 1] and
    ``task_loss`` in nats are measured on the quick subset of the validation split, empty when not evaluated.
    ``seconds`` since the start, pauses excluded; ``bytes_read`` of checkpoints since the start; ``stored_bytes`` of
    experts, feature maps and router that belong to the merge beside its weights.

    The last frame of a finished run repeats the last iterate, with the final ``status`` and, unless the run was told
    to stop at once, ``final``: split → task → full score.
    """

    index: int
    t: int
    inner: int = 0
    granularity: Granularity = "model"
    coefficients: Matrix | None = None
    loss: float | None = None
    gap: float | None = None
    step_size: float | None = None
    vertices: tuple[tuple[str, ...], ...] = ()
    in_hull: bool | None = None
    scores: Matrix | None = None
    task_scores: dict[str, Matrix] = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)
    task_loss: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    bytes_read: int = 0
    peak_memory_bytes: int = 0
    stored_bytes: int = 0
    status: Status = "running"
    note: str = ""
    final: dict[Split, dict[str, Score]] = field(default_factory=dict)

    @property
    def completed(self) -> bool:
        """True for an iterate of the method (neither an inner update nor the closing frame)."""
        return self.inner == 0 and self.status == "running"

    @property
    def mean_accuracy(self) -> float | None:
        return sum(self.accuracy.values()) / len(self.accuracy) if self.accuracy else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data with every float rounded to 6 significant digits; fields at their default are left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["final"] = {split: {task: asdict(s) for task, s in row.items()} for split, row in self.final.items()}
        defaults = Frame(index=-1, t=-1)
        return {name: _rounded(value) for name, value in values.items() if value != getattr(defaults, name)}

    def to_update(self) -> dict[str, Any]:
        """What a live view needs of this frame, ≤ 2 KB at 16 tasks and 20 checkpoints.

        Leaves out the score matrices; coefficients of several groups become their mean over groups.
        """
        update = self.to_dict()
        for name in ("scores", "task_scores", "final", "vertices"):
            update.pop(name, None)
        update["vertices"] = sorted({name for group in self.vertices for name in group})
        if self.coefficients is not None:
            columns = zip(*self.coefficients, strict=True)
            update["coefficients"] = [_digits(sum(column) / len(self.coefficients), 4) for column in columns]
        for name in ("accuracy", "task_loss"):
            update[name] = {task: _digits(value, 4) for task, value in getattr(self, name).items()}
        return update

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Frame:
        """The frame :meth:`to_dict` wrote. Raises FwvizError if it is not one."""
        try:
            plain = dict(values)
            for name in ("coefficients", "scores"):
                if plain.get(name) is not None:
                    plain[name] = _matrix(plain[name])
            plain["task_scores"] = {task: _matrix(rows) for task, rows in plain.get("task_scores", {}).items()}
            plain["vertices"] = tuple(tuple(group) for group in plain.get("vertices", ()))
            plain["final"] = {
                split: {task: Score(**score) for task, score in row.items()}
                for split, row in plain.get("final", {}).items()
            }
            return cls(**plain)
        except (TypeError, ValueError, AttributeError) as error:
            raise FwvizError(f"a frame of the run cannot be read ({error}).") from None


@dataclass(frozen=True)
class Cost:
    """What a run cost: wall seconds (pauses excluded), of these seconds spent judging, bytes of checkpoints read.

    ``peak_memory_bytes`` is the highest memory above that at the start: allocated memory on cuda, else resident
    memory of the whole process (so runs beside each other count into one another). ``stored_bytes`` is what the merge
    keeps beside one model's weights: experts, feature maps and router.
    """

    seconds: float = 0.0
    evaluation_seconds: float = 0.0
    bytes_read: int = 0
    peak_memory_bytes: int = 0
    stored_bytes: int = 0


@dataclass(frozen=True)
class Trace:
    """A recorded run, finished or not.

    ``groups`` maps granularity → group names, ``group_sizes`` → parameters per group. ``reference`` maps
    row ("base", "individual", and "mtl" where the card has it) → split → task → accuracy. ``status`` is "running"
    while the run is under way and "failed" if it was cut off.
    """

    id: str
    recipe: Recipe
    pool_title: str
    pool_fingerprint: str
    groups: dict[Granularity, tuple[str, ...]]
    group_sizes: dict[Granularity, tuple[int, ...]]
    reference: dict[str, dict[Split, dict[str, float]]]
    frames: tuple[Frame, ...] = ()
    status: Status = "running"
    note: str = ""
    cost: Cost = field(default_factory=Cost)
    created: str = ""
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def has_parts(self) -> bool:
        """Whether the merge is more than its weights: experts, masks or maps stand beside a backbone."""
        return bool(entry("methods", self.recipe.method).facts["extends"])

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Names of the columns of every (G, n) matrix."""
        return self.recipe.checkpoints

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.recipe.tasks

    @property
    def finished(self) -> bool:
        return self.status != "running"

    @property
    def final(self) -> dict[Split, dict[str, Score]]:
        """Full scores of the last iterate per split and task; empty if the run was cut off."""
        return self.frames[-1].final if self.frames else {}

    def iterates(self) -> tuple[Frame, ...]:
        """The completed iterates, t = 0 first."""
        return tuple(frame for frame in self.frames if frame.completed)

    def frame(self, index: int) -> Frame:
        """Frame ``index`` (negative counts from the end)."""
        if not -len(self.frames) <= index < len(self.frames):
            raise FwvizError(f"the run has {len(self.frames)} frames, so there is no frame {index}.")
        return self.frames[index]

    def coefficients(self, index: int) -> Tensor:
        """The (G, n) coefficients of one frame; FwvizError if that merge is not linear."""
        frame = self.frame(index)
        if frame.coefficients is None:
            raise FwvizError(f"frame {index} is not a linear merge of task vectors, so it has no coefficients.")
        return torch.tensor(frame.coefficients, dtype=torch.float32)

    def theta(self, index: int, vectors: TaskVectors) -> Tensor:
        """The merged weights θ (P,) of one frame of a linear merge, θ₀ + Σᵢ λ[g,i]·τᵢ,g.

        ``vectors`` are those of the recipe (see :func:`fwviz.runs.assemble.assemble`). Coefficients are recorded with
        6 significant digits. For a merge that is not linear use :func:`fwviz.runs.export.merged_weights`.
        """
        if tuple(vectors.names) != self.checkpoints:
            raise FwvizError("the task vectors given are not those of the run: they differ in names or order.")
        coefficients = self.coefficients(index)
        return vectors.combine(coefficients, vectors.layout.groups(self.frame(index).granularity))

    def table(self) -> pd.DataFrame:
        """One row per frame: index, t, inner, seconds, loss, gap, step_size, status, mean accuracy, accuracy per task.

        Accuracy columns are named ``accuracy/<task>`` and ``task_loss/<task>``, NaN where a frame was not evaluated.
        """
        columns = ["index", "t", "inner", "seconds", "loss", "gap", "step_size", "bytes_read", "peak_memory_bytes"]
        columns += ["stored_bytes"]
        rows = []
        for frame in self.frames:
            row: dict[str, Any] = {name: getattr(frame, name) for name in columns}
            row |= {"status": frame.status, "vertices": " ".join(sorted({v for g in frame.vertices for v in g}))}
            row["accuracy"] = frame.mean_accuracy
            row |= {f"accuracy/{task}": frame.accuracy.get(task) for task in self.tasks}
            row |= {f"task_loss/{task}": frame.task_loss.get(task) for task in self.tasks}
            rows.append(row)
        names = [*columns, "status", "vertices", "accuracy"]
        names += [f"{kind}/{task}" for kind in ("accuracy", "task_loss") for task in self.tasks]
        table = pd.DataFrame(rows, columns=names)
        numeric = [name for name in names if name not in ("status", "vertices")]
        return table.astype({name: "float64" for name in numeric if name not in ("index", "t", "inner")})

    def results(self, split: Split = "test") -> pd.DataFrame:
        """One row per task: base, individual and merged accuracy in [0, 1] (NaN where unknown)."""
        scores = self.final.get(split, {})
        rows = [
            {
                "task": task,
                "base": self.reference.get("base", {}).get(split, {}).get(task),
                "individual": self.reference.get("individual", {}).get(split, {}).get(task),
                "merged": scores[task].accuracy if task in scores else None,
            }
            for task in self.tasks
        ]
        return pd.DataFrame(rows).astype({"base": "float64", "individual": "float64", "merged": "float64"})


def group_names(layout: ParamLayout) -> tuple[dict[Granularity, tuple[str, ...]], dict[Granularity, tuple[int, ...]]]:
    """Names and sizes of the groups of a layout at every granularity, as a trace records them."""
    names: dict[Granularity, tuple[str, ...]] = {}
    sizes: dict[Granularity, tuple[int, ...]] = {}
    for granularity in ("model", "layer", "tensor"):
        groups = layout.groups(granularity)
        names[granularity] = groups.names
        sizes[granularity] = tuple(stop - start for start, stop in groups.ranges())
    return names, sizes


def matrix(values: Tensor) -> Matrix:
    """A (G, n) tensor as plain numbers with 6 significant digits."""
    return tuple(tuple(_digits(x, 6) for x in row) for row in values.detach().to("cpu", torch.float64).tolist())


def _matrix(rows: Any) -> Matrix:
    return tuple(tuple(float(x) for x in row) for row in rows)


def _digits(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return _digits(value, 6)
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_rounded(item) for item in value]
    return value
