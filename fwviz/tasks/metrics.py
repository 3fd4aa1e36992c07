"""Metrics: what one number says of many answers. Exact, without a dependency; each is tested against known values."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fwviz.tasks.sandbox import can_cut_off, passes
from fwviz.types import METRICS, FwvizError, MetricName

# What a metric compares: class indices, numbers, or texts.
Kind = Literal["classes", "numbers", "texts"]

# Set to 1 by who accepts that generated programs are run, cut off from the network; to WITH_NETWORK by who accepts it
# where a machine cannot cut them off.
RUN_CODE, WITH_NETWORK = "FWVIZ_RUN_CODE", "with-network"
_WORD = re.compile(r"[a-z0-9]+")
_NO_NUMBER = -1.0  # what an answer that is no number counts as


@dataclass(frozen=True)
class Metric:
    """``compute`` takes answers and references of ``kind``; ``low`` is the least it can be, the best is 1."""

    kind: Kind
    low: float
    compute: Callable[[Any, Any], float]


def metric(name: MetricName) -> Metric:
    """The metric of that name; FwvizError lists the choices."""
    if name not in _METRICS:
        raise FwvizError(f"there is no metric {name!r}: choose from {', '.join(METRICS)}.")
    return _METRICS[name]


# --- of classes ---------------------------------------------------------------------------------


def accuracy(answers: Tensor, labels: Tensor) -> float:
    """Share of equal entries: (N,), (N,) → [0, 1]."""
    _paired(len(answers), len(labels))
    return int((answers == labels).sum()) / len(labels)


def matthews(answers: Tensor, labels: Tensor) -> float:
    """Matthews' correlation of two labellings, of any number of classes: (N,), (N,) int64 → [−1, 1].

    R = (c·s − Σ pₖtₖ) / √((s² − Σ pₖ²)(s² − Σ tₖ²)) with c equal entries of s, pₖ answers and tₖ labels of class k; 0
    where either has one class only. Gorodkin (2004).
    """
    _paired(len(answers), len(labels))
    classes = int(max(answers.max(), labels.max())) + 1
    given, true = (torch.bincount(x, minlength=classes).double() for x in (answers, labels))
    total, equal = float(len(labels)), float((answers == labels).sum())
    spread = (total**2 - float(given @ given)) * (total**2 - float(true @ true))
    return (equal * total - float(given @ true)) / math.sqrt(spread) if spread > 0 else 0.0


# --- of numbers ---------------------------------------------------------------------------------


def pearson(answers: Tensor, values: Tensor) -> float:
    """Pearson's correlation: (N,), (N,) → [−1, 1]; 0 where either side is constant."""
    _paired(len(answers), len(values))
    a, b = (x.double() - x.double().mean() for x in (answers, values))
    # What is left of a constant is rounding.
    if any(
        float(x.abs().max()) <= 1e-12 * max(float(y.double().abs().max()), 1e-300)
        for x, y in ((a, answers), (b, values))
    ):
        return 0.0
    a, b = a / a.norm(), b / b.norm()
    return min(max(float(a @ b), -1.0), 1.0)


def spearman(answers: Tensor, values: Tensor) -> float:
    """Spearman's correlation: Pearson's of the ranks, equal values sharing their mean rank."""
    return pearson(ranks(answers), ranks(values))


def pearson_spearman(answers: Tensor, values: Tensor) -> float:
    """The mean of Pearson's and Spearman's correlation, as GLUE scores STS-B."""
    return (pearson(answers, values) + spearman(answers, values)) / 2


def ranks(values: Tensor) -> Tensor:
    """Ranks from 1 on, equal values sharing their mean rank: (N,) → (N,) float64."""
    _, place, counts = torch.unique(values.double(), return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[place]


def read_numbers(texts: Sequence[str]) -> Tensor:
    """The numbers texts write out, −1 for what is none: (N,) float64. Raffel et al. (2020) count such answers so."""
    found = []
    for text in texts:
        try:
            value = float(text.strip())
        except ValueError:
            value = _NO_NUMBER
        found.append(value if math.isfinite(value) else _NO_NUMBER)
    return torch.tensor(found, dtype=torch.float64)


# --- of texts -----------------------------------------------------------------------------------


def exact_match(answers: Sequence[str], references: Sequence[str]) -> float:
    """Share of answers that say the reference, letter case and white space aside: [0, 1]."""
    _paired(len(answers), len(references))
    return sum(_plain(a) == _plain(b) for a, b in zip(answers, references, strict=True)) / len(references)


def rouge_l(answers: Sequence[str], references: Sequence[str]) -> float:
    """ROUGE-L: mean over pairs of F = 2PR / (P + R), P and R the longest common subsequence of words over the lengths.

    Words are runs of letters a–z and digits of the text in lower case, not stemmed. Lin (2004).
    """
    _paired(len(answers), len(references))
    total = 0.0
    for answer, reference in zip(answers, references, strict=True):
        a, b = _WORD.findall(answer.lower()), _WORD.findall(reference.lower())
        total += 2 * _common(a, b) / (len(a) + len(b)) if a and b else 0.0
    return total / len(references)


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, a bit per word of ``a``. Hyyrö (2004)."""
    places: dict[str, int] = {}
    for j, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << j
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        match = row & places.get(word, 0)
        row = ((row + match) | (row - match)) & full
    return len(a) - row.bit_count()


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


# --- of programs --------------------------------------------------------------------------------


def pass_at_1(programs: Sequence[str], tests: Sequence[str]) -> float:
    """Share of programs that run through their tests, each once: [0, 1].

    A program is Python, its test is run behind it. Each runs in a process of its own with limits on time, memory and
    files, in an empty folder, without the environment and without a network (:mod:`fwviz.tasks.sandbox`). That keeps
    accidents in, not attackers: it is done only where ``FWVIZ_RUN_CODE=1`` says so, in a container for instance, and
    where a machine cannot cut programs off from the network only with ``FWVIZ_RUN_CODE=with-network``. Raises
    FwvizError elsewhere.
    """
    _paired(len(programs), len(tests))
    allowed = os.environ.get(RUN_CODE)
    if allowed not in ("1", WITH_NETWORK):
        raise FwvizError(
            f"pass@1 runs programs a model wrote: set {RUN_CODE}=1 to allow that, in a container for instance, or "
            f"choose a task with another metric."
        )
    cut_off = can_cut_off()
    if not cut_off and allowed != WITH_NETWORK:
        raise FwvizError(
            f"pass@1 cannot cut the programs a model wrote off from the network on this machine, which allows no user "
            f"namespaces: set {RUN_CODE}={WITH_NETWORK} to run them nevertheless, or choose another metric."
        )
    found = [passes(f"{p}\n{t}\n", cut_off=cut_off) for p, t in zip(programs, tests, strict=True)]
    return sum(found) / len(found)


# --- of merges ----------------------------------------------------------------------------------


def normalised(merged: Mapping[str, float], individual: Mapping[str, float]) -> float:
    """Mean over tasks of the merged model's score as a share of the task's own checkpoint's.

    Tasks whose own checkpoint is unknown or scores nothing are left out. Raises FwvizError if none is left.
    """
    shares = [merged[task] / individual[task] for task in merged if individual.get(task, 0.0) > 0]
    if not shares:
        raise FwvizError("no task has a score of its own checkpoint to normalise by: measure the checkpoints first.")
    return sum(shares) / len(shares)


def _paired(answers: int, references: int) -> None:
    if answers != references or not references:
        raise ValueError(f"{answers} answers for {references} references")


_METRICS: dict[str, Metric] = {
    "accuracy": Metric("classes", 0.0, accuracy),
    "matthews": Metric("classes", -1.0, matthews),
    "pearson": Metric("numbers", -1.0, pearson),
    "spearman": Metric("numbers", -1.0, spearman),
    "pearson_spearman": Metric("numbers", -1.0, pearson_spearman),
    "exact_match": Metric("texts", 0.0, exact_match),
    "rouge": Metric("texts", 0.0, rouge_l),
    "pass@1": Metric("texts", 0.0, pass_at_1),
}
