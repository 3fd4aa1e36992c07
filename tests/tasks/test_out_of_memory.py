"""A pass that does not fit into memory becomes smaller, and what it had added up so far leaves no trace."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fwviz.pools.open import Pool
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import execute
from fwviz.tasks.batches import Chunk, out_of_memory
from fwviz.tasks.data import load_split
from fwviz.tasks.evaluators import Evaluator
from fwviz.tasks.objectives import CalibrationObjective
from fwviz.tasks.router import OracleRouter
from fwviz.types import Extension, FwvizError

TASKS = ("colour", "shape")
ERRORS: tuple[Callable[[], Exception], ...] = (
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    lambda: RuntimeError("MPS backend out of memory"),
    lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError,
)


class Narrow:
    """A real tower that has no memory for more than ``limit`` samples, from its ``after``-th pass on.

    ``backwards`` lets it run out on the way back, when all layers but the first have got their share of the gradient.
    """

    def __init__(
        self, pool: Pool, limit: int, error: Callable[[], Exception], after: int = 0, backwards: bool = False
    ) -> None:
        self.backbone: Any = pool.backbone()
        self.sizes: list[int] = []
        whole, first = self.backbone.features, self.backbone.flat.parameters[0]

        def features(parts: Sequence[Tensor], **options: Any) -> Tensor:
            self.sizes.append(sum(map(len, parts)))
            found: Tensor = whole(parts, **options)
            if not backwards:
                check()
            return found

        def check(gradient: Tensor | None = None) -> None:
            if self.sizes[-1] > limit and len(self.sizes) > after:
                raise error()

        self.backbone.features = features
        if backwards:
            first.register_hook(check)


def make_objective(pool: Pool, backbone: Any, chunk: int = 16) -> CalibrationObjective:
    data = {task: load_split(pool.card, pool.card.task(task), "calibration") for task in TASKS}
    return CalibrationObjective(backbone, data, pool.heads(TASKS), chunk=chunk)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("error", ERRORS)
def test_the_gradient_is_that_of_passes_that_fit(
    tiny_pool: Pool, error: Callable[[], Exception], after: int, backwards: bool
) -> None:
    """Exactly: nothing of the two passes that went well before, nor of half a pass, is left in it."""
    narrow = Narrow(tiny_pool, 5, error, after, backwards)
    objective = make_objective(tiny_pool, narrow.backbone)
    found = [part.clone() for part in objective.gradient(tiny_pool.base)]
    expected = make_objective(tiny_pool, tiny_pool.backbone(), chunk=4).gradient(tiny_pool.base)
    whole = make_objective(tiny_pool, tiny_pool.backbone(), chunk=1000).gradient(tiny_pool.base)
    for part, same, close in zip(found, expected, whole, strict=True):
        assert torch.equal(part, same)
        assert (part - close).norm() < 1e-4 * close.norm()
    assert narrow.sizes[: after + 3] == [16] * (after or 1) + ([16, 8, 4] if after else [8, 4])
    narrow.sizes.clear()
    objective.losses(tiny_pool.base)
    assert max(narrow.sizes) == 4, "what did not fit once is not tried again"


def test_the_samples_drawn_stay_the_same(tiny_pool: Pool) -> None:
    def draw(backbone: Any, chunk: int) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        objective = make_objective(tiny_pool, backbone, chunk)
        return objective.gradient(tiny_pool.base, batch_size=9, generator=generator)[1]

    narrow = Narrow(tiny_pool, 5, ERRORS[0])
    # 18 samples in all: 9 is the first half of what a pass of 1000 really held.
    assert torch.equal(draw(narrow.backbone, 1000), draw(tiny_pool.backbone(), 4))
    assert narrow.sizes[:3] == [18, 9, 4]


def test_everything_measured_in_passes_shrinks(tiny_pool: Pool) -> None:
    """Features, input products and Fisher information of the objective; scores of the evaluator, with experts too."""
    narrow = Narrow(tiny_pool, 3, ERRORS[1], after=1)
    tower, plain = narrow.backbone, make_objective(tiny_pool, tiny_pool.backbone())
    base, fresh = tiny_pool.base, lambda: make_objective(tiny_pool, tower)
    torch.testing.assert_close(fresh().features(base, "shape"), plain.features(base, "shape"))
    expected = plain.input_grams(base, "shape")
    for name, gram in fresh().input_grams(base, "shape").items():
        torch.testing.assert_close(gram, expected[name], rtol=1e-4, atol=1e-4)
    count = {"count": 8, "generator": torch.Generator().manual_seed(0)}
    assert fresh().squared_gradients(base, "shape", passes=1, **count).isfinite().all()
    heads = tiny_pool.heads(TASKS)
    squeezed = Evaluator(tower, tiny_pool.card, TASKS, heads, quick_count=12, chunk=16)
    roomy = Evaluator(tiny_pool.backbone(), tiny_pool.card, TASKS, heads, quick_count=12, chunk=16)
    for extension in (None, Extension(OracleRouter(TASKS))):
        found, right = (evaluator.quick(base, extension=extension) for evaluator in (squeezed, roomy))
        for task in TASKS:
            assert found[task].accuracy == right[task].accuracy
            assert found[task].loss == pytest.approx(right[task].loss, abs=1e-5)


def test_one_sample_that_does_not_fit_ends_it_with_a_sentence(tiny_pool: Pool) -> None:
    narrow = Narrow(tiny_pool, 0, ERRORS[0])
    with pytest.raises(
        FwvizError, match=r"^the device has no memory left for one sample .*storage to streamed"
    ) as info:
        make_objective(tiny_pool, narrow.backbone).gradient(tiny_pool.base)
    assert narrow.sizes == [16, 8, 4, 2, 1]
    assert info.value.__cause__ is None
    assert str(info.value).count(".") == 1


def test_other_errors_are_not_mistaken_for_it(tiny_pool: Pool) -> None:
    narrow = Narrow(tiny_pool, 5, lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        make_objective(tiny_pool, narrow.backbone).gradient(tiny_pool.base)
    assert narrow.sizes == [16]
    assert not out_of_memory(FwvizError("the file is out of memory lane"))


def test_what_the_failed_pass_held_is_let_go_before_the_next() -> None:
    """Otherwise half a pass would find no more memory than a whole one."""
    held: list[weakref.ref[Tensor]] = []

    def work(size: int) -> int:
        assert all(old() is None for old in held)
        activations = torch.zeros(size)
        held.append(weakref.ref(activations))
        if size > 3:
            raise torch.OutOfMemoryError
        return size

    chunk = Chunk(100)
    assert (chunk.fit(24, work), chunk.size, len(held)) == (3, 3, 4)


def test_a_run_goes_on_with_smaller_passes(tiny_pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.from_dict(
        {
            "pool": str(tiny_pool.card.root),
            "checkpoints": ["colour", "shape"],
            "tasks": list(TASKS),
            "method": "fw_hard",
            "settings": {"max_steps": 2},
        }
    )
    expected = execute(recipe)
    narrow, hopeless = Narrow(tiny_pool, 5, ERRORS[0], after=3), Narrow(tiny_pool, 0, ERRORS[0])
    monkeypatch.setattr(Pool, "model", lambda self, device: narrow.backbone)
    found = execute(recipe)
    assert max(narrow.sizes[:4]) > 5 >= narrow.sizes[-1]
    assert (found.status, found.note) == (expected.status, expected.note)
    for mine, theirs in zip(found.frames, expected.frames, strict=True):
        torch.testing.assert_close(torch.tensor(mine.coefficients), torch.tensor(theirs.coefficients))
        assert mine.accuracy == theirs.accuracy
    monkeypatch.setattr(Pool, "model", lambda self, device: hopeless.backbone)
    failed = execute(recipe)
    assert failed.status == "failed"
    assert failed.note.startswith("the device has no memory left for one sample")
