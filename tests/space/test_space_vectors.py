"""Task vectors: both storages against explicit float64 sums, autograd and algebra."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fwviz.space.binding import bind
from fwviz.space.files import CheckpointFile
from fwviz.space.layout import build_layout, flatten, unflatten
from fwviz.space.vectors import ResidentTaskVectors, StreamedTaskVectors
from fwviz.types import GRANULARITIES, FwvizError, Granularity, Groups, ParamLayout, TaskVectors

# A stem, two blocks and a head with tensors smaller and larger than the blocks of small_blocks().
LAYOUT = build_layout(
    {
        "vision_model.embeddings.class_embedding": (5,),
        "vision_model.encoder.layers.0.mlp.fc1.weight": (4, 5),
        "vision_model.encoder.layers.0.mlp.fc1.bias": (4,),
        "vision_model.encoder.layers.1.mlp.fc1.weight": (3, 3),
        "vision_model.encoder.layers.1.mlp.fc1.bias": (1,),
        "visual_projection.weight": (2, 8),
        "logit_scale": (),
    }
)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@contextlib.contextmanager
def small_blocks(rows: int = 2, columns: int = 7, threads: int = 1) -> Iterator[None]:
    """Blocks so small that every boundary occurs, on some threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with mock.patch.multiple("fwviz.space.vectors", _ROWS=rows, _COLUMNS=columns):
            yield
    finally:
        torch.set_num_threads(before)


def write_checkpoint(path: Path, layout: ParamLayout, flat: Tensor, dtype: torch.dtype) -> CheckpointFile:
    """Save a flat vector as a checkpoint, beside a tensor that takes no part."""
    tensors = {name: view.to(dtype).contiguous() for name, view in unflatten(layout, flat).items()}
    save_file({**tensors, "vision_model.embeddings.position_ids": torch.arange(3)}, path)
    return CheckpointFile(path, layout)


def make_storages(folder: Path, n: int, seed: int, dtypes: tuple[torch.dtype, ...]) -> tuple[list[TaskVectors], Tensor]:
    """The same pool resident and streamed, and its task vectors (n, P) in float64."""
    random = torch.Generator().manual_seed(seed)
    base = torch.randn(LAYOUT.size, generator=random).half().float()
    names = [f"c{i}" for i in range(n)]
    files, rows = [], []
    for i in range(n):
        dtype = dtypes[i % len(dtypes)]
        theta = (base + 0.1 * torch.randn(LAYOUT.size, generator=random)).to(dtype)
        rows.append(theta.double() - base.double())
        files.append(write_checkpoint(folder / f"{i}.safetensors", LAYOUT, theta, dtype))
    tau = torch.stack(rows)
    streamed = StreamedTaskVectors(LAYOUT, names, base, files)
    held = ResidentTaskVectors(LAYOUT, names, base, tau.float())
    return [streamed, held, streamed.resident(), StreamedTaskVectors(LAYOUT, names, base.half(), files)], tau


def reference_scores(gradient: Tensor, tau: Tensor, groups: Groups) -> Tensor:
    return torch.stack([tau[:, a:b] @ gradient[a:b].double() for a, b in groups.ranges()])


def reference_cosines(gradient: Tensor, base: Tensor, tau: Tensor, groups: Groups) -> Tensor:
    total = torch.zeros(len(groups), len(tau), dtype=torch.float64)
    for start, stop in LAYOUT.groups("tensor").ranges():
        g = next(k for k, (a, b) in enumerate(groups.ranges()) if a <= start < b)
        theta = base.double()[start:stop] + tau[:, start:stop]
        total[g] += torch.nn.functional.cosine_similarity(theta, gradient[None, start:stop].double(), dim=1)
    return total


def reference_combine(coefficients: Tensor, base: Tensor, tau: Tensor, groups: Groups) -> Tensor:
    parts = [coefficients[g].double() @ tau[:, a:b] for g, (a, b) in enumerate(groups.ranges())]
    return base.double() + torch.cat(parts)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(1, 5),
    seed=st.integers(0, 2**31),
    granularity=st.sampled_from(GRANULARITIES),
    rows=st.integers(1, 4),
    columns=st.integers(1, 70),
    threads=st.integers(1, 3),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=3).map(tuple),
    data=st.data(),
)
def test_storages_agree_with_float64_sums(
    tmp_path: Path,
    n: int,
    seed: int,
    granularity: Granularity,
    rows: int,
    columns: int,
    threads: int,
    dtypes: tuple[torch.dtype, ...],
    data: st.DataObject,
) -> None:
    storages, tau = make_storages(tmp_path, n, seed, dtypes)
    groups = LAYOUT.groups(granularity)
    random = torch.Generator().manual_seed(seed)
    gradient = torch.randn(LAYOUT.size, generator=random)
    coefficients = torch.randn(len(groups), n, generator=random) * (torch.rand(len(groups), n, generator=random) > 0.4)
    order = data.draw(st.permutations(range(n)))
    chosen = order[: data.draw(st.integers(1, n))]
    close = {"rtol": 1e-5, "atol": 1e-5}
    with small_blocks(rows, columns, threads):
        for vectors in storages:
            base = vectors.base.float()
            assert isinstance(vectors, TaskVectors)
            scores = vectors.scores(gradient, groups)
            assert (scores.dtype, scores.device.type) == (torch.float32, "cpu")
            torch.testing.assert_close(scores.double(), reference_scores(gradient, tau, groups), **close)
            cosines = vectors.cosines(gradient, groups)
            torch.testing.assert_close(cosines.double(), reference_cosines(gradient, base, tau, groups), **close)
            merged = vectors.combine(coefficients, groups)
            torch.testing.assert_close(merged.double(), reference_combine(coefficients, base, tau, groups), **close)
            torch.testing.assert_close(vectors.vector(n - 1).double(), tau[n - 1], **close)

            gram = vectors.gram(groups)
            expected = torch.stack([tau[:, a:b] @ tau[:, a:b].T for a, b in groups.ranges()])
            torch.testing.assert_close(gram, expected, **close)

            part = vectors.subset(chosen)
            torch.testing.assert_close(part.gram(groups), gram[:, chosen][:, :, chosen], **close)
            assert part.names == tuple(f"c{i}" for i in chosen)
            torch.testing.assert_close(part.scores(gradient, groups), scores[:, chosen], **close)
            torch.testing.assert_close(part.cosines(gradient, groups), cosines[:, chosen], **close)
            again = part.subset([0])
            torch.testing.assert_close(again.vector(0).double(), tau[chosen[0]], **close)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_matrices_are_summed_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    base, matrix = torch.randn(LAYOUT.size), (0.1 * torch.randn(3, LAYOUT.size)).to(dtype)
    vectors = ResidentTaskVectors(LAYOUT, "abc", base, matrix)
    groups, gradient = LAYOUT.groups("layer"), torch.randn(LAYOUT.size)
    with small_blocks():
        expected = reference_scores(gradient, matrix.double(), groups)
        torch.testing.assert_close(vectors.scores(gradient, groups).double(), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            vectors.subset([2, 0]).scores(gradient, groups).double(), expected[:, [2, 0]], rtol=1e-5, atol=1e-5
        )


def test_scores_are_the_derivative_of_a_linear_merge(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    layout = build_layout({name: tuple(p.shape) for name, p in module.named_parameters()})
    base = flatten(layout, dict(module.named_parameters()))
    tau = 0.3 * torch.randn(4, layout.size)
    inputs, labels = torch.randn(20, 6).double(), torch.randint(3, (20,))
    groups = layout.groups("tensor")
    point = 0.2 * torch.rand(len(groups), 4)

    # Autograd straight through the merge formula, a graph over all task vectors.
    coefficients = point.double().requires_grad_()
    parts = [coefficients[g] @ tau[:, a:b].double() for g, (a, b) in enumerate(groups.ranges())]
    merged = unflatten(layout, base.double() + torch.cat(parts))
    loss = nn.functional.cross_entropy(torch.func.functional_call(module, merged, (inputs,)), labels)
    (expected,) = torch.autograd.grad(loss, coefficients)

    flat = bind(module, layout)
    files = [write_checkpoint(tmp_path / f"{i}", layout, base + tau[i], torch.float64) for i in range(4)]
    for vectors in (ResidentTaskVectors(layout, "abcd", base, tau), StreamedTaskVectors(layout, "abcd", base, files)):
        flat.load(vectors.combine(point, groups))
        flat.zero_gradient()
        nn.functional.cross_entropy(module(inputs), labels).backward()
        torch.testing.assert_close(vectors.scores(flat.gradient, groups).double(), expected, rtol=1e-4, atol=1e-6)


def test_scores_keep_their_digits(tmp_path: Path) -> None:
    """Weights of size 1 that moved by 1e-4: ⟨g, θᵢ⟩ − ⟨g, θ₀⟩ in float32 loses the score, the difference keeps it."""
    torch.manual_seed(0)
    layout = build_layout({"w": (400_000,)})
    base = 1 + torch.rand(layout.size)
    theta = base + 1e-4 * torch.randn(layout.size)
    gradient = torch.randn(layout.size)
    exact = (theta.double() - base.double()) @ gradient.double()
    streamed = StreamedTaskVectors(layout, "a", base, [write_checkpoint(tmp_path / "a", layout, theta, torch.float32)])
    ours = streamed.scores(gradient, layout.groups("model")).double().item()
    naive = (torch.dot(theta, gradient) - torch.dot(base, gradient)).double().item()
    assert abs(ours - exact) < 2e-5 * abs(exact)
    assert abs(naive - exact) > 20 * abs(ours - exact)


def test_cosines_are_zero_where_a_norm_is_zero() -> None:
    base = torch.ones(LAYOUT.size)
    matrix = torch.stack([torch.ones(LAYOUT.size), -base])  # the second checkpoint is all zeros
    vectors = ResidentTaskVectors(LAYOUT, "ab", base, matrix)
    gradient = torch.ones(LAYOUT.size)
    LAYOUT.view(gradient, "logit_scale").zero_()
    cosines = vectors.cosines(gradient, LAYOUT.groups("model"))
    torch.testing.assert_close(cosines, torch.tensor([[6.0, 0.0]]))
    with pytest.raises(ValueError, match="whole tensors"):
        vectors.cosines(gradient, Groups("layer", ("a", "b"), (0, 6, LAYOUT.size)))


def test_combine_reaches_base_and_checkpoints_and_is_linear(tmp_path: Path) -> None:
    storages, tau = make_storages(tmp_path, 3, 1, (torch.float16,))
    groups = LAYOUT.groups("layer")
    a, b = torch.randn(len(groups), 3), torch.randn(len(groups), 3)
    for vectors in storages:
        base = vectors.base.float()
        with small_blocks():
            assert torch.equal(vectors.combine(torch.zeros(len(groups), 3), groups), base)
            vertex = torch.zeros(len(groups), 3).index_fill_(1, torch.tensor(1), 1.0)
            torch.testing.assert_close(vectors.combine(vertex, groups).double(), base + tau[1], rtol=0, atol=1e-6)
            both = vectors.combine(a + 2 * b, groups) - base
            apart = vectors.combine(a, groups) - base + 2 * (vectors.combine(b, groups) - base)
            torch.testing.assert_close(both, apart, rtol=1e-5, atol=1e-5)


def test_combine_writes_into_out(tmp_path: Path) -> None:
    (streamed, resident, *_), _ = make_storages(tmp_path, 3, 2, (torch.float16,))
    groups = LAYOUT.groups("tensor")
    coefficients = torch.randn(len(groups), 3)
    for vectors in (streamed, resident):
        with small_blocks():
            expected = vectors.combine(coefficients, groups)
            out = torch.full((LAYOUT.size,), torch.nan)
            assert vectors.combine(coefficients, groups, out) is out
            assert torch.equal(out, expected)
            half = torch.full((LAYOUT.size,), torch.nan, dtype=torch.bfloat16)
            vectors.combine(coefficients, groups, half)
            assert torch.equal(half, expected.bfloat16())
        with pytest.raises(ValueError, match="another vector"):
            vectors.combine(coefficients, groups, vectors.base)
        with pytest.raises(ValueError, match="coefficients have shape"):
            vectors.combine(coefficients[:-1], groups)
        with pytest.raises(ValueError, match="gradient has shape"):
            vectors.scores(torch.zeros(3), groups)


def test_the_pool_is_not_touched(tmp_path: Path) -> None:
    (_, resident, *_), _ = make_storages(tmp_path, 3, 3, (torch.float32,))
    assert isinstance(resident, ResidentTaskVectors)
    base, matrix = resident.base.clone(), resident.matrix.clone()
    groups, gradient = LAYOUT.groups("layer"), torch.randn(LAYOUT.size)
    for vectors in (resident, resident.subset([2, 0])):
        vectors.scores(gradient, groups)
        vectors.cosines(gradient, groups)
        vectors.combine(torch.ones(len(groups), vectors.n), groups)
        vectors.vector(0).fill_(9.0)
    assert torch.equal(resident.base, base)
    assert torch.equal(resident.matrix, matrix)


def test_results_do_not_depend_on_threads_or_calls(tmp_path: Path) -> None:
    storages, _ = make_storages(tmp_path, 5, 4, (torch.float16, torch.float32))
    groups, gradient = LAYOUT.groups("layer"), torch.randn(LAYOUT.size)
    coefficients = torch.randn(len(groups), 5)
    for vectors in storages:
        with small_blocks():
            alone = vectors.scores(gradient, groups), vectors.combine(coefficients, groups)
        with small_blocks(threads=3):
            results: list[tuple[Tensor, Tensor]] = []

            def call(vectors: TaskVectors = vectors, results: list[tuple[Tensor, Tensor]] = results) -> None:
                results.append((vectors.scores(gradient, groups), vectors.combine(coefficients, groups)))

            callers = [threading.Thread(target=call) for _ in range(4)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
        assert len(results) == 4
        assert all(torch.equal(alone[0], scores) and torch.equal(alone[1], theta) for scores, theta in results)


def test_workers_leave_the_number_of_threads_alone(tmp_path: Path) -> None:
    storages, _ = make_storages(tmp_path, 2, 5, (torch.float32,))
    seen: list[int] = []
    with small_blocks(threads=3):
        storages[0].scores(torch.ones(LAYOUT.size), LAYOUT.groups("model"))
        assert torch.get_num_threads() == 3
        later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        later.start()
        later.join()
    assert seen == [3]


def test_bytes_are_counted_where_they_are_read(tmp_path: Path) -> None:
    storages, _ = make_storages(tmp_path, 4, 6, (torch.float16,))
    streamed, resident = storages[0], storages[1]
    groups = LAYOUT.groups("layer")
    with small_blocks(columns=5):  # the stem is a block of its own
        before = streamed.bytes_read
        streamed.scores(torch.ones(LAYOUT.size), groups)
        assert streamed.bytes_read - before == 4 * LAYOUT.size * 2
        resident.scores(torch.ones(LAYOUT.size), groups)
        assert resident.bytes_read == 4 * LAYOUT.size * 4

        before = streamed.bytes_read
        part = streamed.subset([3, 1])
        part.vector(0)
        assert streamed.bytes_read == part.bytes_read == before + LAYOUT.size * 2

        before = streamed.bytes_read
        coefficients = torch.zeros(len(groups), 4)
        streamed.combine(coefficients, groups)
        assert streamed.bytes_read == before  # nothing but the base is needed
        coefficients[0, 2] = 1.0
        streamed.combine(coefficients, groups)
        assert streamed.bytes_read == before + 5 * 2  # the stem of one checkpoint


def test_an_error_in_a_worker_reaches_the_caller(tmp_path: Path) -> None:
    storages, _ = make_storages(tmp_path, 3, 7, (torch.float32,))
    path = tmp_path / "1.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 60)
    for threads in (1, 3):
        with small_blocks(threads=threads), pytest.raises(FwvizError, match=r"1\.safetensors became shorter"):
            storages[0].scores(torch.ones(LAYOUT.size), LAYOUT.groups("model"))


def test_storages_refuse_what_does_not_fit() -> None:
    base, matrix = torch.zeros(LAYOUT.size), torch.zeros(2, LAYOUT.size)
    with pytest.raises(FwvizError, match="base has shape"):
        ResidentTaskVectors(LAYOUT, "ab", base[1:], matrix)
    with pytest.raises(FwvizError, match="matrix has shape"):
        ResidentTaskVectors(LAYOUT, "abc", base, matrix)
    with pytest.raises(FwvizError, match=r"cannot be held as torch\.int8"):
        ResidentTaskVectors(LAYOUT, "ab", base, matrix.to(torch.int8))
    with pytest.raises(FwvizError, match="no checkpoint"):
        StreamedTaskVectors(LAYOUT, [], base, [])
    with pytest.raises(FwvizError, match="2 checkpoint names, but 0 files"):
        StreamedTaskVectors(LAYOUT, "ab", base, [])


class Indexing(TorchDispatchMode):
    """Counts how often tensors are picked from by a list, which a device copies and waits for."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten.index.Tensor
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("zero", "picked"), [((), 0), ((0,), 0), ((3,), 0), ((1,), 1)])
def test_groups_share_what_picks_their_coefficients(tmp_path: Path, zero: tuple[int, ...], picked: int) -> None:
    (_, resident, *_), _ = make_storages(tmp_path, 4, 8, (torch.float32,))
    groups = LAYOUT.groups("tensor")
    coefficients = torch.randn(len(groups), 4).abs_().add_(0.1)
    coefficients[:, zero] = 0.0
    with Indexing() as seen:
        merged = resident.combine(coefficients, groups)
    assert seen.count == picked
    parts = [row[None] @ resident.matrix[:, a:b] for row, (a, b) in zip(coefficients, groups.ranges(), strict=True)]
    torch.testing.assert_close(merged, resident.base + torch.cat(parts, dim=1)[0])


@pytest.mark.gpu
def test_resident_on_the_gpu_agrees(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    (_, resident, *_), tau = make_storages(tmp_path, 4, 8, (torch.float32,))
    groups, gradient = LAYOUT.groups("layer"), torch.randn(LAYOUT.size)
    for dtype in (torch.float32, torch.bfloat16):
        moved = ResidentTaskVectors(LAYOUT, "abcd", resident.base.cuda(), tau.to("cuda", dtype))
        here = ResidentTaskVectors(LAYOUT, "abcd", resident.base, tau.to(dtype))
        coefficients = torch.randn(len(groups), 4)
        coefficients[0, 1] = coefficients[-1] = 0.0
        torch.testing.assert_close(moved.scores(gradient, groups), here.scores(gradient, groups), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(moved.cosines(gradient, groups), here.cosines(gradient, groups))
        merged = moved.combine(coefficients, groups)
        torch.testing.assert_close(merged.cpu(), here.combine(coefficients, groups), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(moved.gram(groups), here.gram(groups), rtol=1e-4, atol=1e-5)
        assert torch.equal(moved.block(3, 50, [2, 0]).cpu(), here.block(3, 50, [2, 0]))
