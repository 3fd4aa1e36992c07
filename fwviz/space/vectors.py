"""Task vectors: the inner products and linear combinations every merge is made of.

Both storages walk the flat vector in blocks of a few rows and many columns that stay in cache. Worker threads take
whole blocks; the partial sums of a block are kept in float64 and added in a fixed order, so results do not depend on
the number of threads.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier, Lock
from typing import TypeVar

import torch
from torch import Tensor

from fwviz.space.files import CheckpointFile
from fwviz.types import FwvizError, Groups, ParamLayout

# Rows × columns of a block, in elements, on the CPU. Blocks this large keep Python's share of the time at a few per
# cent and its lock free for other threads; larger ones fall out of the cache (measured by fwviz.bench.kernels).
_ROWS, _COLUMNS = 8, 1 << 17
_CUDA_COLUMNS = 1 << 22

Item = TypeVar("Item")
Result = TypeVar("Result")

# One range of a block that lies in one group: start, stop, group, row of the partial sums.
_Piece = tuple[int, int, int, int]


class _Scratch:
    """The reusable buffers of one worker: a block of float32 rows, one row of the base, one row of raw file bytes."""

    def __init__(self, columns: int, device: torch.device) -> None:
        self.columns = columns
        self.device = device
        self.bytes_read = 0
        self._buffers: dict[str, Tensor] = {}

    def get(self, use: str, rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A (rows, columns) buffer, made on first use."""
        if use not in self._buffers:
            self._buffers[use] = torch.empty(rows, self.columns, dtype=dtype, device=self.device)
        return self._buffers[use]

    def lend(self, use: str, buffer: Tensor) -> None:
        """Use ``buffer`` instead of one of our own."""
        self._buffers[use] = buffer


class Meter:
    """Bytes of checkpoint data read, shared by a storage and its subsets."""

    def __init__(self) -> None:
        self.bytes = 0
        self._lock = Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self.bytes += count


def check_base(layout: ParamLayout, names: Sequence[str], base: Tensor) -> None:
    """FwvizError unless the base fits the layout and there is something to merge with it."""
    if base.shape != (layout.size,):
        raise FwvizError(f"the base has shape {tuple(base.shape)}, but the layout has {layout.size} parameters.")
    if not names:
        raise FwvizError("there is no checkpoint to merge: choose at least one.")


def room_for(coefficients: Tensor, shape: tuple[int, int], base: Tensor, out: Tensor | None) -> Tensor:
    """Where a combination is written: ``out`` if it will do, else a new float32 vector beside the base."""
    if coefficients.shape != shape:
        raise ValueError(f"coefficients have shape {tuple(coefficients.shape)}, not {shape}")
    if out is None:
        return torch.empty(base.shape, device=base.device)
    if out.shape != base.shape or out.data_ptr() == base.data_ptr():
        raise ValueError("out must be another vector of the base's size")
    return out


class _TaskVectors(ABC):
    """What both storages share. A storage says how one block is loaded."""

    def __init__(self, layout: ParamLayout, names: Sequence[str], base: Tensor, meter: Meter) -> None:
        check_base(layout, names, base)
        self.layout = layout
        self.names = tuple(names)
        self.base = base.detach()
        self._meter = meter

    @property
    def n(self) -> int:
        """The number of checkpoints."""
        return len(self.names)

    @property
    def bytes_read(self) -> int:
        """Bytes of checkpoint data read so far, by this object, what it was taken from, and its subsets."""
        return self._meter.bytes

    @abstractmethod
    def _load(self, rows: Sequence[int], start: int, stop: int, scratch: _Scratch, weights: bool) -> Tensor:
        """Task vectors (or checkpoint weights) of some rows in [start, stop): (len(rows), stop − start) float32.

        Adds the bytes of checkpoint data it took to ``scratch.bytes_read``.
        """

    def scores(self, gradient: Tensor, groups: Groups) -> Tensor:
        """S[g, i] = ⟨gradient_g, τᵢ,g⟩, accumulated over the differences θᵢ − θ₀ so that no digits cancel.

        gradient (P,) of any dtype and device → (G, n) float32 on the CPU.
        """
        self._check(gradient, groups)
        gradient = gradient.detach().to(self.base.device)
        blocks, owner = self._blocks(groups.bounds)
        partial = torch.zeros(len(owner), self.n, dtype=torch.float64, device=self.base.device)

        def work(block: Sequence[_Piece], scratch: _Scratch) -> None:
            start, stop = block[0][0], block[-1][1]
            slope = gradient[start:stop].float()
            for first, rows in _row_blocks(range(self.n)):
                tau = self._load(rows, start, stop, scratch, weights=False)
                columns = slice(first, first + len(rows))
                for a, b, _, p in block:
                    partial[p, columns] = torch.mv(tau[:, a - start : b - start], slope[a - start : b - start])

        self._run(work, blocks)
        return segment_sum(partial, owner, len(groups)).float().cpu()

    def cosines(self, gradient: Tensor, groups: Groups) -> Tensor:
        """C[g, i] = Σ over tensors p of group g of ⟨gradient_p, θᵢ,p⟩ / (‖gradient_p‖·‖θᵢ,p‖), 0 where a norm is 0.

        The ranking of the released FW-Merging code, on raw checkpoint weights. gradient (P,) → (G, n) float32, on the
        CPU.
        """
        self._check(gradient, groups)
        offsets = self.layout.offsets
        if not set(groups.bounds) <= set(offsets):
            raise ValueError("cosines need groups of whole tensors")
        gradient = gradient.detach().to(self.base.device)
        blocks, owner = self._blocks(offsets)
        dot = torch.zeros(len(owner), self.n, dtype=torch.float64, device=self.base.device)
        square = torch.zeros_like(dot)
        slope_square = torch.zeros_like(dot[:, :1])

        def work(block: Sequence[_Piece], scratch: _Scratch) -> None:
            start, stop = block[0][0], block[-1][1]
            slope = gradient[start:stop].float()
            for a, b, _, p in block:
                slope_square[p] = torch.dot(slope[a - start : b - start], slope[a - start : b - start])
            for first, rows in _row_blocks(range(self.n)):
                theta = self._load(rows, start, stop, scratch, weights=True)
                columns = slice(first, first + len(rows))
                for a, b, _, p in block:
                    part = theta[:, a - start : b - start]
                    dot[p, columns] = torch.mv(part, slope[a - start : b - start])
                    for column, row in enumerate(part, first):
                        square[p, column] = torch.dot(row, row)

        self._run(work, blocks)
        tensors = len(self.layout.names)
        norms = (segment_sum(square, owner, tensors) * segment_sum(slope_square, owner, tensors)).sqrt()
        cosine = torch.where(norms > 0, segment_sum(dot, owner, tensors) / norms, 0.0)
        group_of = [bisect_right(groups.bounds, offset) - 1 for offset in offsets[:-1]]
        return segment_sum(cosine, group_of, len(groups)).float().cpu()

    def gram(self, groups: Groups) -> Tensor:
        """K[g, i, j] = ⟨τᵢ,g, τⱼ,g⟩ in one sweep that reads every checkpoint once: (G, n, n) float64 on the CPU.

        The length of any linear merge follows without building it: ‖Σᵢ λ[g, i]·τᵢ,g‖² = Σ_g λ_gᵀ K_g λ_g.
        """
        self._check(None, groups)
        blocks, owner = self._blocks(groups.bounds)
        partial = torch.zeros(len(owner), self.n * self.n, dtype=torch.float64, device=self.base.device)

        def work(block: Sequence[_Piece], scratch: _Scratch) -> None:
            start, stop = block[0][0], block[-1][1]
            tau = scratch.get("all", self.n)[:, : stop - start]
            for first, rows in _row_blocks(range(self.n)):
                tau[first : first + len(rows)] = self._load(rows, start, stop, scratch, weights=False)
            for a, b, _, p in block:
                part = tau[:, a - start : b - start]
                partial[p] = (part @ part.t()).flatten()

        self._run(work, blocks)
        return segment_sum(partial, owner, len(groups)).view(len(groups), self.n, self.n).cpu()

    def combine(self, coefficients: Tensor, groups: Groups, out: Tensor | None = None) -> Tensor:
        """θ₀ + Σᵢ λ[g, i]·τᵢ,g. Checkpoints are read only where their coefficients are not zero.

        Args:
            coefficients: λ (G, n).
            out: (P,) of any dtype and device, overwritten; a new float32 vector beside the base if None.
        """
        self._check(None, groups)
        out = room_for(coefficients, (len(groups), self.n), self.base, out)
        target = out.detach()
        weights = coefficients.detach().to(self.base.device, torch.float32)
        used = coefficients.detach().ne(0).cpu()
        blocks, _ = self._blocks(groups.bounds)
        direct = target.dtype == torch.float32 and target.device == self.base.device

        def work(block: Sequence[_Piece], scratch: _Scratch) -> None:
            start, stop = block[0][0], block[-1][1]
            theta = target[start:stop] if direct else scratch.get("sum", 1)[0, : stop - start]
            theta.copy_(self.base[start:stop])
            groups_here = slice(block[0][2], block[-1][2] + 1)
            for _, rows in _row_blocks(used[groups_here].any(0).nonzero().flatten().tolist()):
                tau = self._load(rows, start, stop, scratch, weights=False)
                for a, b, g, _ in block:
                    theta[a - start : b - start].addmv_(tau[:, a - start : b - start].t(), weights[g, rows])
            if not direct:
                target[start:stop].copy_(theta)

        self._run(work, blocks)
        return out

    def vector(self, i: int) -> Tensor:
        """τᵢ as a new flat (P,) float32 tensor."""
        out = torch.empty(self.layout.size, device=self.base.device)
        blocks, _ = self._blocks((0, self.layout.size))

        def work(block: Sequence[_Piece], scratch: _Scratch) -> None:
            start, stop = block[0][0], block[-1][1]
            out[start:stop] = self._load([i], start, stop, scratch, weights=False)[0]

        self._run(work, blocks)
        return out

    def block(self, start: int, stop: int, rows: Sequence[int] | None = None) -> Tensor:
        """τᵢ in [start, stop) of some checkpoints, all if None: a new (len(rows), stop − start) float32 tensor.

        May be called from several threads at once.
        """
        if not 0 <= start <= stop <= self.layout.size:
            raise ValueError(f"[{start}, {stop}) does not lie in the {self.layout.size} parameters of the layout")
        chosen = range(self.n) if rows is None else rows
        out = torch.empty(len(chosen), stop - start, device=self.base.device)
        scratch = _Scratch(stop - start, self.base.device)
        for first, some in _row_blocks(chosen):
            part = out[first : first + len(some)]
            scratch.lend("block", part)  # so that most of what is loaded lies in its place already
            loaded = self._load(some, start, stop, scratch, weights=False)
            if loaded.data_ptr() != part.data_ptr():
                part.copy_(loaded)
        self._meter.add(scratch.bytes_read)
        return out

    # --- how a sweep over all blocks runs ---------------------------------------------------------

    def _check(self, gradient: Tensor | None, groups: Groups) -> None:
        if groups.bounds[0] != 0 or groups.bounds[-1] != self.layout.size:
            raise ValueError(f"groups end at {groups.bounds[-1]}, but the layout has {self.layout.size} parameters")
        if gradient is not None and gradient.shape != self.base.shape:
            raise ValueError(f"the gradient has shape {tuple(gradient.shape)}, but must have {tuple(self.base.shape)}")

    @property
    def _columns(self) -> int:
        return min(self.layout.size, _COLUMNS if self.base.device.type == "cpu" else _CUDA_COLUMNS)

    def _blocks(self, bounds: Sequence[int]) -> tuple[list[list[_Piece]], list[int]]:
        """Cut the flat vector into blocks, and each block where a group ends. Also the group of every piece."""
        blocks: list[list[_Piece]] = []
        owner: list[int] = []
        group = 0
        for start in range(0, self.layout.size, self._columns):
            stop = min(start + self._columns, self.layout.size)
            block: list[_Piece] = []
            while start < stop:
                while bounds[group + 1] <= start:
                    group += 1
                end = min(stop, bounds[group + 1])
                block.append((start, end, group, len(owner)))
                owner.append(group)
                start = end
            blocks.append(block)
        return blocks, owner

    def _run(self, work: Callable[[Sequence[_Piece], _Scratch], None], blocks: Sequence[Sequence[_Piece]]) -> None:
        """Do the work of every block, on as many threads as torch may use."""
        pending = iter(blocks)

        def drain() -> int:
            scratch = _Scratch(self._columns, self.base.device)
            for block in pending:  # shared by the workers: each takes the next block
                work(block, scratch)
            return scratch.bytes_read

        threads = min(torch.get_num_threads(), len(blocks)) if self.base.device.type == "cpu" else 1
        if threads == 1:
            self._meter.add(drain())
        else:
            pool = _workers(os.getpid(), torch.get_num_threads())
            self._meter.add(sum([future.result() for future in [pool.submit(drain) for _ in range(threads)]]))


def in_parallel(work: Callable[[Item], Result], items: Sequence[Item], device: torch.device) -> list[Result]:
    """[work(item) for item in items], on as many threads as torch may use; each runs torch on one thread."""
    if device.type != "cpu" or min(torch.get_num_threads(), len(items)) <= 1:
        return [work(item) for item in items]
    return list(_workers(os.getpid(), torch.get_num_threads()).map(work, items))


@lru_cache(maxsize=4)
def _workers(process: int, threads: int) -> ThreadPoolExecutor:
    """A pool whose threads run torch operations alone, without forking a team each; a fork starts its own."""
    started = Barrier(threads + 1)

    def begin() -> None:
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="fwviz-space", initializer=begin)
    for _ in range(threads):
        pool.submit(lambda: None)
    started.wait()
    # set_num_threads counts for the calling thread and for threads to come: give the latter their number back.
    torch.set_num_threads(threads)
    return pool


def _row_blocks(rows: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """(position of the first, rows) in blocks of at most ``_ROWS``."""
    for first in range(0, len(rows), _ROWS):
        yield first, list(rows[first : first + _ROWS])


def segment_sum(partial: Tensor, owner: Sequence[int], count: int) -> Tensor:
    """Add the rows of ``partial`` that have one owner: (len(owner), n) → (count, n)."""
    total = torch.zeros(count, partial.shape[1], dtype=partial.dtype, device=partial.device)
    return total.index_add_(0, torch.tensor(owner, device=partial.device), partial)


class ResidentTaskVectors(_TaskVectors):
    """Task vectors held in memory as an (n, P) matrix of float32, bfloat16 or float16, on any device.

    Half the bytes cost digits: a bfloat16 matrix keeps 8 bits of each difference, whatever the checkpoints keep.
    """

    def __init__(
        self,
        layout: ParamLayout,
        names: Sequence[str],
        base: Tensor,
        matrix: Tensor,
        *,
        rows: Sequence[int] | None = None,
        meter: Meter | None = None,
    ) -> None:
        """``rows`` of the matrix take part, all if None (this is how a subset shares memory)."""
        super().__init__(layout, names, base, meter or Meter())
        self.matrix = matrix.detach()
        self._rows = tuple(range(matrix.shape[0])) if rows is None else tuple(rows)
        if matrix.dim() != 2 or (len(self._rows), matrix.shape[1]) != (self.n, layout.size):
            raise FwvizError(f"the matrix has shape {tuple(matrix.shape)}, but must have {(self.n, layout.size)}.")
        if matrix.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise FwvizError(f"task vectors cannot be held as {matrix.dtype}: use float32, bfloat16 or float16.")
        if matrix.device != base.device:
            raise FwvizError(f"the task vectors are on {matrix.device}, but the base is on {base.device}: move one.")

    def subset(self, indices: Sequence[int]) -> ResidentTaskVectors:
        """The same storage restricted to some checkpoints, in the order given. Shares memory and ``bytes_read``."""
        return ResidentTaskVectors(
            self.layout,
            [self.names[i] for i in indices],
            self.base,
            self.matrix,
            rows=[self._rows[i] for i in indices],
            meter=self._meter,
        )

    def _load(self, rows: Sequence[int], start: int, stop: int, scratch: _Scratch, weights: bool) -> Tensor:
        scratch.bytes_read += len(rows) * (stop - start) * self.matrix.element_size()
        own = [self._rows[row] for row in rows]
        in_place = own == list(range(own[0], own[0] + len(own)))
        if in_place and not weights and self.matrix.dtype == torch.float32:
            return self.matrix[own[0] : own[0] + len(own), start:stop]
        block = scratch.get("block", _ROWS)[: len(own), : stop - start]
        if in_place:
            block.copy_(self.matrix[own[0] : own[0] + len(own), start:stop])
        else:
            for row, i in zip(block, own, strict=True):
                row.copy_(self.matrix[i, start:stop])
        return block.add_(self.base[start:stop]) if weights else block


class StreamedTaskVectors(_TaskVectors):
    """Task vectors that stay on disk: every call reads the checkpoints once, in blocks of bounded size.

    Memory beyond the base does not depend on the number of checkpoints. The base is held on the CPU in any floating
    dtype: half precision halves its memory and is exact where the base was saved in it.
    """

    def __init__(
        self,
        layout: ParamLayout,
        names: Sequence[str],
        base: Tensor,
        files: Sequence[CheckpointFile],
        *,
        meter: Meter | None = None,
    ) -> None:
        super().__init__(layout, names, base, meter or Meter())
        self.files = tuple(files)
        if len(self.files) != self.n:
            raise FwvizError(f"there are {self.n} checkpoint names, but {len(self.files)} files.")
        if base.device.type != "cpu":
            raise FwvizError(f"streamed task vectors need their base on the CPU, but it is on {base.device}: move it.")

    def subset(self, indices: Sequence[int]) -> StreamedTaskVectors:
        """The same storage restricted to some checkpoints, in the order given. Shares ``bytes_read``."""
        return StreamedTaskVectors(
            self.layout,
            [self.names[i] for i in indices],
            self.base,
            [self.files[i] for i in indices],
            meter=self._meter,
        )

    def resident(self, dtype: torch.dtype = torch.float32) -> ResidentTaskVectors:
        """Read all task vectors into memory: n·P elements of ``dtype``."""
        matrix = torch.empty(self.n, self.layout.size, dtype=dtype)
        blocks, _ = self._blocks((0, self.layout.size))

        def work(block: Sequence[_Piece], scratch: _Scratch) -> None:
            start, stop = block[0][0], block[-1][1]
            for first, rows in _row_blocks(range(self.n)):
                matrix[first : first + len(rows), start:stop] = self._load(rows, start, stop, scratch, weights=False)

        self._run(work, blocks)
        return ResidentTaskVectors(self.layout, self.names, self.base, matrix)

    def _load(self, rows: Sequence[int], start: int, stop: int, scratch: _Scratch, weights: bool) -> Tensor:
        block = scratch.get("block", _ROWS)[: len(rows), : stop - start]
        raw = scratch.get("raw", max(file.itemsize for file in self.files), torch.uint8).view(-1)
        for out, row in zip(block, rows, strict=True):
            scratch.bytes_read += self.files[row].read_flat(start, stop, out, raw)
        return block if weights else block.sub_(self.base[start:stop])
