"""Concrete subspace learning: one mask over all parameters, learnt so that the task vectors disturb each other less."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fwviz import solver
from fwviz.methods._answers import Answers
from fwviz.methods._learning import BATCH_HELP, ITERATES, Rule, as_deltas, learn
from fwviz.registry import merge_method, setting
from fwviz.space.transformed import masked
from fwviz.space.wide import minus, plus
from fwviz.types import GRANULARITIES, Granularity, LossName, ParamLayout, Problem, Status, Step

_MASK_STREAM, _FINAL_STREAM = 2, 3  # of random numbers: masks while learning, and the one that is kept


@dataclass(frozen=True)
class Settings:
    """Settings of Concrete; temperature, logits, rates and scale are those of the released code."""

    form: str = setting(
        "adamerging",
        "What the mask is learnt for: task arithmetic, whose coefficients are given, or AdaMerging, whose coefficients "
        "take one step before each update of the mask and are learnt once it is fixed.",
        choices=("adamerging", "task_arithmetic"),
    )
    granularity: Granularity = setting(
        "tensor", "What gets its own coefficients.", choices=GRANULARITIES, applies={"form": ("adamerging",)}
    )
    loss: LossName = setting(
        "entropy",
        "Entropy of the predictions on unlabelled test inputs as in the paper, or cross-entropy on calibration labels.",
        choices=("entropy", "cross_entropy"),
    )
    init_scale: float = setting(0.3, "Coefficient of every task vector, at the start or for good.", low=0.0, high=1.0)
    mask_updates: int = setting(
        200, "Updates of the mask; the released code takes 2000, for AdaMerging 1000.", low=1, high=5000
    )
    mask_rate: float = setting(0.001, "Largest change of a logit of the mask per update.", low=1e-5, high=10.0)
    inner_rate: float = setting(
        1.0,
        "Largest change of a coefficient in the one step before an update of the mask.",
        low=0.0,
        high=10.0,
        applies={"form": ("adamerging",)},
    )
    temperature: float = setting(0.5, "Of the relaxed mask: lower is closer to 0 and 1.", low=0.05, high=5.0)
    initial_logit: float = setting(0.0, "Of every parameter at the start: 0 keeps half of them.", low=-5.0, high=5.0)
    final_mask: str = setting(
        "sampled",
        "The mask that is kept: one draw of the relaxed mask, as in the released code, or its probabilities.",
        choices=("sampled", "expected"),
    )
    updates: int = setting(
        200,
        "Updates of the coefficients once the mask is fixed; the released code takes 1000.",
        low=1,
        high=5000,
        applies={"form": ("adamerging",)},
    )
    learning_rate: float = setting(
        0.001, "Largest change of a coefficient per update.", low=1e-5, high=1.0, applies={"form": ("adamerging",)}
    )
    batch_size: int = setting(16, BATCH_HELP, low=0, high=1024)


@merge_method(
    "Concrete subspace learning",
    Settings,
    data="inputs",
    paper="Concrete Subspace Learning",
    reference="Tang et al., 2023, arXiv:2312.06173",
)
def concrete(problem: Problem, settings: Settings) -> Iterator[Step]:
    """Learn a mask that all task vectors share: θ = θ₀ + m ⊙ Σᵢ λᵢ·τᵢ.

    m is a relaxed Bernoulli mask r = σ((z + ln u − ln(1 − u)) / T), u uniform, over its mean in each tensor. Its
    logits z (P,) follow Adam on the entropy; with a = ∇_θ ℓ ⊙ Σᵢ λᵢ·τᵢ their gradient, in a tensor of N entries with
    mean μ, is ∂ℓ/∂z = (a − Σ a⊙m / N) ⊙ r ⊙ (1 − r) / (μ·T): no graph over the task vectors.
    In the AdaMerging form λ takes one step of Adam from its initial value before each update of the mask, and is learnt
    by AdaMerging's updates, without its box, once the mask is fixed.

    Args: ``problem``, ``settings``. Yields t = 0 before (inner = 1) and after its loss, then every tenth update
    (inner > 0) and the iterates with the mask that would be kept, their loss over all inputs. Memory: six vectors (P,).
    Deviation from the released code: its step of λ takes the gradient at the coefficients of the update before, ours at
    the initial ones, as the paper's algorithm says. There the mask is unconstrained as here.
    Reference: Tang et al. (2023), Concrete Subspace Learning, arXiv:2312.06173, algorithms 1 and 2; the released code.
    """
    vectors, objective, loss = problem.vectors, problem.objective, settings.loss
    layout, base = vectors.layout, vectors.base
    adaptive = settings.form == "adamerging"
    groups = problem.groups(settings.granularity if adaptive else "model")
    start = torch.full((len(groups), vectors.n), settings.init_scale, dtype=torch.float64)
    mask = Mask(layout, settings.temperature, settings.initial_logit, base.device)
    noise, batches = problem.generator(_MASK_STREAM), problem.generator()
    theta, total = (torch.empty_like(base, dtype=torch.float32) for _ in range(2))

    def place(rows: Tensor) -> Tensor:
        """θ₀ + m ⊙ Στλ in ``theta``, with Στλ in ``total``."""
        minus(vectors.combine(rows.float(), groups, out=total), base, total)
        return theta.copy_(base).addcmul_(mask.values, total)

    def gradient() -> tuple[float, Tensor]:
        losses, slope = objective.gradient(theta, loss=loss, batch_size=settings.batch_size or None, generator=batches)
        return float(losses.mean()), slope

    def keep() -> float:
        """The mask that would be kept now, θ at the initial coefficients under it, and its loss over all inputs."""
        mask.fix(settings.final_mask, problem.generator(_FINAL_STREAM))
        return float(objective.losses(place(start), loss=loss).mean())

    note = f"initial solution: {settings.init_scale:g} of every task vector"
    mask.values.fill_(1.0)
    yield Step(t=0, inner=1, delta=minus(place(start), base, theta), note=note)
    value = float(objective.losses(place(start), loss=loss).mean())
    answers = Answers(problem, theta) if loss == "entropy" else None
    yield Step(t=0, delta=minus(theta, base, theta), loss=value, note=f"{note}; {_name(loss)} {value:.3f}")

    iterates = min(ITERATES, settings.mask_updates)
    t, done = 1, 0
    moments = solver.Moments(start)
    for update in range(1, settings.mask_updates + 1):
        mask.draw(noise)
        rows = start
        place(rows)
        if adaptive:
            products = vectors.scores(torch.mul(gradient()[1], mask.values, out=theta), groups).double()
            rows = start - settings.inner_rate * moments.direction(products)
            place(rows)
        value, slope = gradient()
        mask.update(torch.mul(slope, total, out=theta), settings.mask_rate)
        last = update == t * settings.mask_updates // iterates
        if (update - done) % 10 == 1:
            yield Step(
                t=t,
                inner=update - done,
                delta=minus(place(start), base, theta),
                loss=value,
                note=f"mask update {update} of {settings.mask_updates}: {_name(loss)} of the batch {value:.3f}",
            )
        if last:
            value = keep()
            words = f"{update} mask updates: {_name(loss)} {value:.3f}, {mask.words()}"
            words += answers.warning(theta) if answers else ""
            status: Status = "max_steps" if t == iterates and not adaptive else "running"
            yield Step(t=t, delta=minus(theta, base, theta), loss=value, note=words, status=status)
            t, done = t + 1, update
    if not adaptive:
        return

    hidden = masked(vectors, mask.values)
    family = solver.Affine.free(len(groups), vectors.n)
    landscape = solver.Landscape(family, hidden, groups, objective, loss, theta)
    rule = Rule(settings.updates, settings.learning_rate, settings.batch_size)
    for step in as_deltas(learn(landscape, start, rule, batches, vectors.names), hidden, total):
        words = f"mask fixed, {step.note}"
        if answers is not None and step.inner == 0 and step.delta is not None:
            words += answers.warning(plus(base, step.delta, theta))
        yield replace(step, t=step.t + t - 1, note=words)


class Mask:
    """A relaxed Bernoulli mask over a layout: logits z, Adam's moments for them, and the last mask drawn.

    ``values`` (P,) is m = r / μ with μ the mean of r in each tensor.
    """

    def __init__(self, layout: ParamLayout, temperature: float, logit: float, device: torch.device) -> None:
        self._ranges = list(layout.groups("tensor").ranges())
        self._temperature = temperature
        self.logits = torch.full((layout.size,), logit, device=device)
        self.values = torch.ones_like(self.logits)
        self._means = [1.0] * len(self._ranges)
        self._moments = [solver.Moments(self.logits[a:b]) for a, b in self._ranges]

    def draw(self, generator: torch.Generator) -> None:
        """r = σ((z + ln u − ln(1 − u)) / T) with fresh uniform u, tensor by tensor."""
        edge = torch.finfo(torch.float32).eps
        for j, (a, b) in enumerate(self._ranges):
            uniform = torch.rand(b - a, generator=generator).clamp_(edge, 1 - edge).to(self.logits.device)
            relaxed = uniform.logit_().add_(self.logits[a:b]).div_(self._temperature).sigmoid_()
            self._set(j, relaxed)

    def fix(self, kind: str, generator: torch.Generator) -> None:
        """The mask that is kept: ``sampled``, or ``expected``, the probabilities σ(z)."""
        if kind == "sampled":
            self.draw(generator)
            return
        for j, (a, b) in enumerate(self._ranges):
            self._set(j, self.logits[a:b].sigmoid())

    def update(self, slope: Tensor, rate: float) -> None:
        """One step of Adam on z from ``slope`` (P,) = ∂ℓ/∂m at the mask drawn last; ``slope`` is overwritten."""
        for j, (a, b) in enumerate(self._ranges):
            inside = slope[a:b]
            inside.sub_(torch.dot(inside, self.values[a:b]) / (b - a))
            relaxed = self.values[a:b] * self._means[j]
            inside.mul_(relaxed).mul_(1.0 - relaxed).div_(self._means[j] * self._temperature)
            self.logits[a:b].sub_(self._moments[j].direction(inside), alpha=rate)

    def words(self) -> str:
        """How far the mask has left its start."""
        spread = float(self.logits.sigmoid().std())
        return f"probabilities of the mask spread by ±{spread:.2g}"

    def _set(self, j: int, relaxed: Tensor) -> None:
        a, b = self._ranges[j]
        self._means[j] = max(float(relaxed.mean()), torch.finfo(torch.float32).tiny)  # nothing is kept: the mask is 0
        torch.div(relaxed, self._means[j], out=self.values[a:b])


def _name(loss: LossName) -> str:
    return "entropy" if loss == "entropy" else "calibration loss"
