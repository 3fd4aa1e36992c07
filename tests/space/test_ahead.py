"""Reading ahead: the same results bit for bit, bounded, and no thread left behind whatever happens."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file

from fwviz.bench.synthetic import random_base, vit_layout, write_pool
from fwviz.space.ahead import ReadAhead
from fwviz.space.files import CheckpointFile
from fwviz.space.layout import build_layout
from fwviz.space.vectors import _STAGES, StreamedTaskVectors
from fwviz.types import GRANULARITIES, FwvizError, Granularity

CPU = torch.device("cpu")
LAYOUT = vit_layout(width=24, blocks=1, patch=8, image=16)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "fwviz-ahead"]


@pytest.fixture
def small_blocks() -> Iterator[None]:
    with mock.patch.multiple("fwviz.space.vectors", _ROWS=2, _COLUMNS=1000, _STAGED_COLUMNS=700):
        yield


def both(folder: Path, dtype: torch.dtype, base: torch.Tensor) -> list[StreamedTaskVectors]:
    files = list(write_pool(folder, LAYOUT, 5, dtype))
    return [StreamedTaskVectors(LAYOUT, "abcde", base, files, ahead=ahead) for ahead in (False, True)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_everything_is_the_same_bit_for_bit(
    small_blocks: None, tmp_path: Path, dtype: torch.dtype, granularity: Granularity
) -> None:
    plain, ahead = both(tmp_path, dtype, random_base(LAYOUT).half())
    groups = LAYOUT.groups(granularity)
    random = torch.Generator().manual_seed(0)
    gradient = torch.randn(LAYOUT.size, generator=random)
    coefficients = torch.randn(len(groups), 5, generator=random) * (torch.rand(len(groups), 5, generator=random) > 0.5)
    for one, other in (
        (plain.scores(gradient, groups), ahead.scores(gradient, groups)),
        (plain.cosines(gradient, groups), ahead.cosines(gradient, groups)),
        (plain.gram(groups), ahead.gram(groups)),
        (plain.combine(coefficients, groups), ahead.combine(coefficients, groups)),
        (plain.subset([3, 1]).vector(1), ahead.subset([3, 1]).vector(1)),
        (plain.resident().matrix, ahead.resident().matrix),
    ):
        assert torch.equal(one, other)
        assert bool(one.ne(0).any())
    assert plain.bytes_read == ahead.bytes_read > 0


def test_sweeps_do_read_ahead_where_one_thread_works(small_blocks: None, tmp_path: Path) -> None:
    plain, ahead = both(tmp_path, torch.float16, random_base(LAYOUT))
    readers: dict[bool, set[str]] = {}
    for vectors in (plain, ahead):
        names = readers.setdefault(vectors.ahead, set())
        read = CheckpointFile.read_flat

        def seen(self: CheckpointFile, *arguments: int, names: set[str] = names, read: object = read) -> int:
            names.add(threading.current_thread().name)
            return read(self, *arguments)  # type: ignore[operator, no-any-return]

        with mock.patch.object(CheckpointFile, "read_flat", seen):
            vectors.scores(torch.ones(LAYOUT.size), LAYOUT.groups("model"))
    assert readers[True] == {"fwviz-ahead"}
    assert "fwviz-ahead" not in readers[False]


@pytest.mark.parametrize(("cores", "reads_ahead"), [(1, False), (2, True)])
def test_a_machine_of_one_core_does_not(small_blocks: None, tmp_path: Path, cores: int, reads_ahead: bool) -> None:
    """The thread would only take turns with the arithmetic."""
    vectors = StreamedTaskVectors(LAYOUT, "ab", random_base(LAYOUT), list(write_pool(tmp_path, LAYOUT, 2)))
    with (
        mock.patch("fwviz.space.vectors.cores", return_value=cores),
        mock.patch("fwviz.space.vectors.ReadAhead", side_effect=ZeroDivisionError) as reader,
        contextlib.suppress(ZeroDivisionError),
    ):
        vectors.subset([1]).scores(torch.ones(LAYOUT.size), LAYOUT.groups("model"))
    assert reader.called == reads_ahead


def test_the_next_is_loaded_while_one_is_used_and_no_more_than_there_is_room_for() -> None:
    """The user holds the first; the thread goes on until the stages are full, and waits."""
    loaded: list[int] = []
    enough = threading.Event()

    def load(item: int, stage: list[int]) -> list[int]:
        stage[:] = [item]
        loaded.append(item)
        if len(loaded) == _STAGES:
            enough.set()
        return stage

    with ReadAhead(load, range(9), [[] for _ in range(_STAGES)], CPU) as results:
        assert next(results) == [0]
        assert enough.wait(10), "nothing was loaded meanwhile"
        time.sleep(0.02)
        assert loaded == [0, 1, 2]
        for expected in range(1, 9):
            found = next(results)
            time.sleep(0.001)
            assert found == [expected], "a result was written over while it was in use"
            assert loaded[-1] < expected + _STAGES
        with pytest.raises(StopIteration):
            next(results)


def test_disk_and_arithmetic_overlap() -> None:
    """Ten waits of 10 ms in the thread and ten in the user take the time of eleven or so, not of twenty."""

    def load(item: int, stage: list[int]) -> int:
        time.sleep(0.01)
        return item

    start = time.perf_counter()
    with ReadAhead(load, range(10), [[], [], []], CPU) as results:
        for _ in results:
            time.sleep(0.01)
    assert time.perf_counter() - start < 0.17


@pytest.mark.parametrize("taken", [0, 1, 4])
def test_what_is_abandoned_ends(taken: int) -> None:
    loaded: list[int] = []

    def load(item: int, stage: list[int]) -> int:
        loaded.append(item)
        return item

    def take() -> None:
        with ReadAhead(load, range(1000), [[], []], CPU) as results:
            for _ in range(taken):
                next(results)
            raise KeyError

    with pytest.raises(KeyError):
        take()
    assert len(loaded) <= taken + 2


@pytest.mark.parametrize("where", [0, 3, 9])
def test_an_error_comes_where_its_result_is_asked_for(where: int) -> None:
    def load(item: int, stage: list[int]) -> int:
        if item == where:
            raise FwvizError(f"item {item} cannot be read.")
        return item

    found: list[int] = []

    def take() -> None:
        with ReadAhead(load, range(10), [[], []], CPU) as results:
            found.extend(results)

    with pytest.raises(FwvizError, match=rf"^item {where} cannot be read\.$"):
        take()
    assert found == list(range(where))


def test_running_out_of_memory_in_the_thread_is_still_that() -> None:
    def load(item: int, stage: list[int]) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError), ReadAhead(load, range(3), [[]], CPU) as results:
        next(results)


class Stream:
    """A stream of a GPU that does nothing but keep account: ``seen`` has the operations of each it comes after."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen = {name: 0}

    def wait_event(self, event: Event) -> None:
        self.seen |= {name: max(count, self.seen.get(name, 0)) for name, count in event.seen.items()}

    def wait_stream(self, other: Stream) -> None:
        event = Event(self)
        event.record(other)
        self.wait_event(event)

    def use(self, memory: dict[str, int]) -> list[str]:
        """Write to memory, which has what was last done to it by each stream; who else may still be at it."""
        late = [f"{self.name} does not wait for {name}" for name, at in memory.items() if self.seen.get(name, 0) < at]
        self.seen[self.name] += 1
        memory |= {self.name: self.seen[self.name]}
        return late


class Event:
    def __init__(self, host: Stream) -> None:
        self.seen: dict[str, int] = {}
        self._host = host

    def record(self, stream: Stream) -> None:
        self.seen = dict(stream.seen)

    def synchronize(self) -> None:
        self._host.wait_event(self)


@pytest.mark.parametrize("taken", [0, 1, 4, 9])
def test_on_a_gpu_copies_and_arithmetic_wait_for_each_other(taken: int) -> None:
    """Whatever was done to a stage comes before what is done next: first use, reuse, and memory given to others."""
    user, copies, host = Stream("arithmetic"), Stream("copies"), Stream("reading")
    stages: list[dict[str, int]] = [{} for _ in range(_STAGES)]
    late: list[str] = []

    def load(item: int, stage: tuple[int, dict[str, int]]) -> int:
        number, pinned = stage
        late.extend(host.use(pinned))
        copies.seen |= {host.name: host.seen[host.name]}  # a copy comes after what its thread did before
        late.extend(copies.use(pinned) + copies.use(stages[number]))
        return number

    with (
        mock.patch("torch.cuda.current_stream", return_value=user),
        mock.patch("torch.cuda.stream", side_effect=contextlib.nullcontext),
        mock.patch("fwviz.space.ahead._copy_stream", return_value=copies),
        mock.patch("fwviz.space.ahead._event", side_effect=lambda: Event(host)),
    ):
        for _ in range(2):  # the second finds what the first left
            late += [word for stage in stages for word in user.use(stage)]
            with ReadAhead(load, range(9), [(k, {}) for k in range(_STAGES)], torch.device("cuda")) as results:
                for _, number in zip(range(taken), results, strict=False):
                    late.extend(user.use(stages[number]))
        late += [word for stage in stages for word in user.use(stage)]
    assert late == []


KERNELS: dict[str, Callable[[StreamedTaskVectors], object]] = {
    "scores": lambda vectors: vectors.scores(torch.ones(LAYOUT.size), LAYOUT.groups("layer")),
    "combine": lambda vectors: vectors.combine(torch.ones(1, 5), LAYOUT.groups("model")),
    "vector": lambda vectors: vectors.vector(1),
    "gram": lambda vectors: vectors.gram(LAYOUT.groups("model")),
    "resident": lambda vectors: vectors.resident(),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_file_that_shrinks_gives_the_same_sentence(small_blocks: None, tmp_path: Path, kernel: str) -> None:
    plain, ahead = both(tmp_path, torch.float16, random_base(LAYOUT))
    path = tmp_path / "checkpoint-1.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 60)
    with pytest.raises(FwvizError, match=r"checkpoint-1\.safetensors became shorter") as one:
        KERNELS[kernel](plain)
    with pytest.raises(FwvizError) as other:
        KERNELS[kernel](ahead)
    assert str(one.value) == str(other.value)


def test_an_error_of_the_arithmetic_ends_the_thread(small_blocks: None, tmp_path: Path) -> None:
    _, ahead = both(tmp_path, torch.float16, random_base(LAYOUT))
    with mock.patch("torch.mv", side_effect=MemoryError), pytest.raises(MemoryError):
        ahead.scores(torch.ones(LAYOUT.size), LAYOUT.groups("model"))


def test_files_of_mixed_formats_keep_their_ranges_apart(tmp_path: Path) -> None:
    """Wide elements before narrow ones in one block: neither's bytes lie over the other's."""
    layout = build_layout({"a": (300,), "b": (500,), "c": (200,)})
    random = torch.Generator().manual_seed(0)
    kinds = (torch.float64, torch.float16, torch.bfloat16)
    tensors = {
        name: torch.randn(shape, generator=random).to(kind)
        for name, shape, kind in zip(layout.names, layout.shapes, kinds, strict=True)
    }
    save_file(tensors, tmp_path / "x.safetensors")
    file = CheckpointFile(tmp_path / "x.safetensors", layout)
    out, raw = torch.empty(layout.size), torch.zeros(layout.size * file.itemsize, dtype=torch.uint8)
    file.read_flat(0, layout.size, out, raw)
    assert torch.equal(out, torch.cat([tensors[name].float() for name in layout.names]))
    again = [
        raw[at * 8 : at * 8 + count * kind.itemsize].view(kind).float()
        for at, count, kind in zip((0, 300, 800), (300, 500, 200), kinds, strict=True)
    ]
    assert torch.equal(torch.cat(again), out), "what a device may still be copying was written over"


@pytest.mark.parametrize("ahead", [False, True])
def test_streamed_vectors_can_lie_on_another_device(small_blocks: None, tmp_path: Path, ahead: bool) -> None:
    """Without a GPU: on torch's device that has shapes but no numbers. All is read, and nothing mixes devices."""
    files = list(write_pool(tmp_path, LAYOUT, 5, torch.float16))
    base = random_base(LAYOUT).to("meta")
    vectors = StreamedTaskVectors(LAYOUT, "abcde", base, files, ahead=ahead)
    groups = LAYOUT.groups("layer")
    merged = vectors.combine(torch.ones(len(groups), 5), groups)
    assert (merged.device.type, merged.shape, merged.dtype) == ("meta", base.shape, torch.float32)
    assert vectors.bytes_read == 5 * LAYOUT.size * 2
    assert vectors.vector(2).device.type == "meta"
    assert vectors.block(3, 50, [4, 0, 1]).shape == (3, 47)
    assert vectors.resident(torch.bfloat16).matrix.device.type == "meta"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_gpu_reads_ahead_too(small_blocks: None, tmp_path: Path, dtype: torch.dtype) -> None:
    """Many small blocks, so that a stage written to too early would show; then the numbers of the CPU."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    base = random_base(LAYOUT)
    plain, ahead = both(tmp_path, dtype, base.cuda())
    here, _ = both(tmp_path, dtype, base)
    groups = LAYOUT.groups("tensor")
    gradient = torch.randn(LAYOUT.size)
    coefficients = torch.randn(len(groups), 5)
    for _ in range(5):
        assert torch.equal(plain.scores(gradient, groups), ahead.scores(gradient, groups))
        merged = ahead.combine(coefficients, groups)
        assert torch.equal(plain.combine(coefficients, groups), merged)
        torch.testing.assert_close(merged.cpu(), here.combine(coefficients, groups), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ahead.scores(gradient, groups), here.scores(gradient, groups), rtol=1e-4, atol=1e-5)
        assert ahead.resident().matrix.is_cuda
