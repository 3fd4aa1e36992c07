"""Task vectors: the inner products and linear combinations every merge is made of.

Both storages walk the flat vector in blocks of a few rows and many columns that stay in cache. Worker threads take
whole blocks; the partial sums of the blocks are added in float64 on the CPU and in a fixed order, so results do not
depend on the number of threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import Lock

import torch
from torch import Tensor

from fwviz.space.ahead import ReadAhead
from fwviz.space.files import CheckpointFile
from fwviz.space.parallel import cores, workers
from fwviz.types import FwvizError, Groups, ParamLayout

# Rows × columns of a block, in elements, on the CPU. Blocks this large keep Python's share of the time at a few per
# cent and its lock free for other threads; larger ones fall out of the cache (measured by fwviz.bench.kernels).
_ROWS, _COLUMNS = 8, 1 << 17
# On another device: of what lies in its memory, and of what is read from disk and copied there.
_DEVICE_COLUMNS, _STAGED_COLUMNS = 1 << 22, 1 << 20
# Blocks a streamed sweep holds where it reads ahead: one in use, one ready and one being read.
_STAGES = 3

# One range of a block that lies in one group: start, stop, group, row of the partial sums.
_Piece = tuple[int, int, int, int]
_Block = Sequence[_Piece]
# What a block's work goes through: position of the first row, rows, their task vectors (len(rows), columns) float32.
_Loads = Iterator[tuple[int, list[int], Tensor]]
_Rows = Callable[[_Block], Sequence[int]]


class _Scratch:
    """The reusable buffers of one worker or stage: blocks of float32 rows, and raw file bytes on the CPU."""

    def __init__(self, columns: int, device: torch.device) -> None:
        self.columns = columns
        self.device = device
        self.bytes_read = 0
        self._buffers: dict[str, Tensor] = {}

    def get(self, use: str, rows: int) -> Tensor:
        """A (rows, columns) float32 buffer, made on first use."""
        if use not in self._buffers:
            self._buffers[use] = torch.empty(rows, self.columns, device=self.device)
        return self._buffers[use]

    def raw(self, rows: int, itemsize: int) -> Tensor:
        """A (rows, columns·itemsize) buffer of bytes on the CPU, pinned where that lets copies go on by themselves."""
        if "raw" not in self._buffers:
            pinned = self.device.type == "cuda"
            self._buffers["raw"] = torch.empty(rows, self.columns * itemsize, dtype=torch.uint8, pin_memory=pinned)
        return self._buffers["raw"]

    def lend(self, use: str, buffer: Tensor) -> None:
        """Use ``buffer`` instead of one of our own."""
        self._buffers[use] = buffer


_Work = Callable[[_Block, _Scratch, _Loads], None]


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
        partial = torch.zeros(len(owner), self.n, device=self.base.device)

        def work(block: _Block, scratch: _Scratch, loads: _Loads) -> None:
            start, stop = _span(block)
            slope = gradient[start:stop].float()
            for first, rows, tau in loads:
                columns = slice(first, first + len(rows))
                for a, b, _, p in block:
                    partial[p, columns] = torch.mv(tau[:, a - start : b - start], slope[a - start : b - start])

        self._run(work, blocks, self._all)
        return segment_sum(partial, owner, len(groups)).float()

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
        dot = torch.zeros(len(owner), self.n, device=self.base.device)
        square = torch.zeros_like(dot)
        slope_square = torch.zeros_like(dot[:, :1])

        def work(block: _Block, scratch: _Scratch, loads: _Loads) -> None:
            start, stop = _span(block)
            slope = gradient[start:stop].float()
            for a, b, _, p in block:
                slope_square[p] = torch.dot(slope[a - start : b - start], slope[a - start : b - start])
            for first, rows, theta in loads:
                columns = slice(first, first + len(rows))
                for a, b, _, p in block:
                    part = theta[:, a - start : b - start]
                    dot[p, columns] = torch.mv(part, slope[a - start : b - start])
                    for column, row in enumerate(part, first):
                        square[p, column] = torch.dot(row, row)

        self._run(work, blocks, self._all, weights=True)
        tensors = len(self.layout.names)
        norms = (segment_sum(square, owner, tensors) * segment_sum(slope_square, owner, tensors)).sqrt()
        cosine = torch.where(norms > 0, segment_sum(dot, owner, tensors) / norms, 0.0)
        group_of = [bisect_right(groups.bounds, offset) - 1 for offset in offsets[:-1]]
        return segment_sum(cosine, group_of, len(groups)).float()

    def gram(self, groups: Groups) -> Tensor:
        """K[g, i, j] = ⟨τᵢ,g, τⱼ,g⟩ in one sweep that reads every checkpoint once: (G, n, n) float64 on the CPU.

        The length of any linear merge follows without building it: ‖Σᵢ λ[g, i]·τᵢ,g‖² = Σ_g λ_gᵀ K_g λ_g.
        """
        self._check(None, groups)
        blocks, owner = self._blocks(groups.bounds)
        partial = torch.zeros(len(owner), self.n * self.n, device=self.base.device)

        def work(block: _Block, scratch: _Scratch, loads: _Loads) -> None:
            start, stop = _span(block)
            tau = scratch.get("all", self.n)[:, : stop - start]
            for first, rows, read in loads:
                tau[first : first + len(rows)] = read
            for a, b, _, p in block:
                part = tau[:, a - start : b - start]
                partial[p] = (part @ part.t()).flatten()

        self._run(work, blocks, self._all)
        return segment_sum(partial, owner, len(groups)).view(len(groups), self.n, self.n)

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

        def rows_of(block: _Block) -> Sequence[int]:
            here = slice(block[0][2], block[-1][2] + 1)
            chosen: list[int] = used[here].any(0).nonzero().flatten().tolist()
            return chosen

        def work(block: _Block, scratch: _Scratch, loads: _Loads) -> None:
            start, stop = _span(block)
            theta = target[start:stop] if direct else scratch.get("sum", 1)[0, : stop - start]
            theta.copy_(self.base[start:stop])
            for _, rows, tau in loads:
                shares = _columns_of(weights, rows)
                for a, b, g, _ in block:
                    theta[a - start : b - start].addmv_(tau[:, a - start : b - start].t(), shares[g])
            if not direct:
                target[start:stop].copy_(theta)

        self._run(work, blocks, rows_of)
        return out

    def vector(self, i: int) -> Tensor:
        """τᵢ as a new flat (P,) float32 tensor."""
        out = torch.empty(self.layout.size, device=self.base.device)
        blocks, _ = self._blocks((0, self.layout.size))

        def work(block: _Block, scratch: _Scratch, loads: _Loads) -> None:
            for _, _, tau in loads:
                out[block[0][0] : block[-1][1]] = tau[0]

        self._run(work, blocks, lambda block: [i])
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

    def _all(self, block: _Block) -> Sequence[int]:
        return range(self.n)

    @property
    def _columns(self) -> int:
        return min(self.layout.size, _COLUMNS if self.base.device.type == "cpu" else _DEVICE_COLUMNS)

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

    def _run(self, work: _Work, blocks: Sequence[_Block], rows_of: _Rows, weights: bool = False) -> None:
        """Do the work of every block on the rows it asks for, on as many threads as torch may use."""
        threads = min(torch.get_num_threads(), len(blocks)) if self.base.device.type == "cpu" else 1
        if threads == 1:
            self._meter.add(self._drain_alone(work, blocks, rows_of, weights))
        else:
            pending = iter(blocks)  # shared by the workers: each takes the next block
            pool = workers()
            done = [pool.submit(self._drain, work, pending, rows_of, weights) for _ in range(threads)]
            self._meter.add(sum([future.result() for future in done]))

    def _drain(self, work: _Work, blocks: Iterable[_Block], rows_of: _Rows, weights: bool) -> int:
        """Do the work of some blocks; returns the bytes read for it."""
        scratch = _Scratch(self._columns, self.base.device)
        for block in blocks:
            start, stop = _span(block)
            parts = _row_blocks(rows_of(block))
            work(block, scratch, ((i, rows, self._load(rows, start, stop, scratch, weights)) for i, rows in parts))
        return scratch.bytes_read

    def _drain_alone(self, work: _Work, blocks: Sequence[_Block], rows_of: _Rows, weights: bool) -> int:
        """The same for all blocks, where no other thread works."""
        return self._drain(work, blocks, rows_of, weights)


def _row_blocks(rows: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """(position of the first, rows) in blocks of at most ``_ROWS``."""
    for first in range(0, len(rows), _ROWS):
        yield first, list(rows[first : first + _ROWS])


def _columns_of(weights: Tensor, rows: Sequence[int]) -> Tensor:
    """weights (G, n) → (G, len(rows)). Neighbours are a view: a device would wait for the indices of any others."""
    near = slice(rows[0], rows[0] + len(rows))
    return weights[:, near] if list(rows) == list(range(near.start, near.stop)) else weights[:, list(rows)].contiguous()


def _span(block: _Block) -> tuple[int, int]:
    """Where a block starts and stops in the flat vector."""
    return block[0][0], block[-1][1]


def segment_sum(partial: Tensor, owner: Sequence[int], count: int) -> Tensor:
    """Add the rows of ``partial`` that have one owner: (len(owner), n) → (count, n) float64 on the CPU."""
    total = torch.zeros(count, partial.shape[1], dtype=torch.float64)
    return total.index_add_(0, torch.tensor(owner), partial.cpu().double())


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

    Memory beyond the base does not depend on the number of checkpoints. The base is held in any floating dtype: half
    precision halves its memory and is exact where the base was saved in it. Its device is where the arithmetic is done.

    A sweep on a device, or on one thread of a CPU with more cores, reads the next blocks while it works on one; several
    threads read and work in turns anyway. ``ahead`` says so for one thread whatever cores there are. Results are the
    same bit for bit.
    """

    def __init__(
        self,
        layout: ParamLayout,
        names: Sequence[str],
        base: Tensor,
        files: Sequence[CheckpointFile],
        *,
        ahead: bool | None = None,
        meter: Meter | None = None,
    ) -> None:
        super().__init__(layout, names, base, meter or Meter())
        self.files = tuple(files)
        self.ahead = ahead
        if len(self.files) != self.n:
            raise FwvizError(f"there are {self.n} checkpoint names, but {len(self.files)} files.")
        self._itemsize = max(file.itemsize for file in self.files)

    def subset(self, indices: Sequence[int]) -> StreamedTaskVectors:
        """The same storage restricted to some checkpoints, in the order given. Shares ``bytes_read``."""
        return StreamedTaskVectors(
            self.layout,
            [self.names[i] for i in indices],
            self.base,
            [self.files[i] for i in indices],
            ahead=self.ahead,
            meter=self._meter,
        )

    def resident(self, dtype: torch.dtype = torch.float32) -> ResidentTaskVectors:
        """Read all task vectors into the memory of the base's device: n·P elements of ``dtype``."""
        matrix = torch.empty(self.n, self.layout.size, dtype=dtype, device=self.base.device)
        blocks, _ = self._blocks((0, self.layout.size))

        def work(block: _Block, scratch: _Scratch, loads: _Loads) -> None:
            for first, rows, tau in loads:
                matrix[first : first + len(rows), block[0][0] : block[-1][1]] = tau

        self._run(work, blocks, self._all)
        return ResidentTaskVectors(self.layout, self.names, self.base, matrix)

    @property
    def _columns(self) -> int:
        return min(self.layout.size, _COLUMNS if self.base.device.type == "cpu" else _STAGED_COLUMNS)

    def _load(self, rows: Sequence[int], start: int, stop: int, scratch: _Scratch, weights: bool) -> Tensor:
        block = self._fetch(rows, start, stop, scratch)
        if block.is_cuda:
            torch.cuda.current_stream(block.device).synchronize()  # the raw bytes are written to again by the next load
        return self._finish(block, start, stop, weights)

    def _drain_alone(self, work: _Work, blocks: Sequence[_Block], rows_of: _Rows, weights: bool) -> int:
        plan = [(block, list(_row_blocks(rows_of(block)))) for block in blocks]
        parts = [(*_span(block), rows) for block, loads in plan for _, rows in loads]
        device = self.base.device
        ahead = (device.type != "cpu" or cores() > 1) if self.ahead is None else self.ahead
        if not ahead or len(parts) <= _STAGES:
            return super()._drain_alone(work, blocks, rows_of, weights)
        scratch, *stages = (_Scratch(self._columns, device) for _ in range(1 + _STAGES))
        for stage in stages:
            stage.get("block", _ROWS).zero_()  # all its pages from the start: the same memory for few rows and for many

        def fetch(part: tuple[int, int, list[int]], stage: _Scratch) -> Tensor:
            start, stop, rows = part
            return self._fetch(rows, start, stop, stage)

        with ReadAhead(fetch, parts, stages, device) as fetched:
            for block, loads in plan:
                ready = ((i, rows, self._finish(next(fetched), *_span(block), weights)) for i, rows in loads)
                work(block, scratch, ready)
        return sum(stage.bytes_read for stage in stages)

    def _fetch(self, rows: Sequence[int], start: int, stop: int, scratch: _Scratch) -> Tensor:
        """Weights of some checkpoints in [start, stop), read from disk and put on the device as float32."""
        block = scratch.get("block", _ROWS)[: len(rows), : stop - start]
        # On the CPU one row of bytes, which stays in the cache, serves all; copies to a device may still be under way.
        raw = scratch.raw(1 if block.device.type == "cpu" else _ROWS, self._itemsize)
        for k, row in enumerate(rows):
            scratch.bytes_read += self.files[row].read_flat(start, stop, block[k], raw[k % len(raw)])
        return block

    def _finish(self, block: Tensor, start: int, stop: int, weights: bool) -> Tensor:
        """What was fetched as task vectors, or as it is."""
        return block if weights else block.sub_(self.base[start:stop])
