"""Checkpoints read from safetensors files in bounded pieces, with every header distrusted.

Plain reads into reused buffers, not a memory map: mapped pages would count as the process's memory, and a file that
shrinks under a map kills the process instead of raising an error.
"""

from __future__ import annotations

import json
import math
import os
import weakref
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fwviz.types import FwvizError, ParamLayout

_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_MERGEABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MAX_HEADER = 100 << 20  # bytes; the limit of the format's own library
_CHUNK = 1 << 20  # elements


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: ``start`` and ``stop`` are byte offsets in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile:
    """An open safetensors file: its header is checked, its tensors are read on demand, from any thread.

    Raises:
        FwvizError: the file is missing, cut off, or its header contradicts the file or itself.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self._fd = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise FwvizError(f"{self.path} cannot be opened: {error.strerror}.") from None
        self._close = weakref.finalize(self, os.close, self._fd)
        try:
            self.tensors: dict[str, TensorInfo] = self._read_header()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; it also closes by itself when the last reference goes."""
        self._close()

    def read_at(self, offset: int, buffer: Tensor) -> None:
        """Fill a contiguous CPU tensor with the file's bytes from ``offset`` on."""
        view = buffer.view(torch.uint8).numpy().data
        while view:
            try:
                count = os.preadv(self._fd, [view], offset)
            except OSError as error:
                raise FwvizError(f"{self.path} cannot be read: {error.strerror}.") from None
            if count == 0:
                raise FwvizError(f"{self.path} became shorter while it was read: save or download it again.")
            view = view[count:]
            offset += count

    def read_into(self, name: str, buffer: Tensor, start: int = 0, count: int | None = None) -> Tensor:
        """Read ``count`` elements from ``start`` on (row-major; None: to the end) into a flat buffer of its dtype.

        Returns the filled part of the buffer.
        """
        info = self.info(name)
        size = math.prod(info.shape)
        count = size - start if count is None else count
        if not 0 <= start <= start + count <= size or buffer.numel() < count or buffer.dtype != info.dtype:
            raise ValueError(f"{name!r} has {size} × {info.dtype}: [{start}, {start + count}) does not fit this buffer")
        part = buffer[:count]
        self.read_at(info.start + start * info.dtype.itemsize, part)
        return part

    def read(self, name: str) -> Tensor:
        """A whole tensor in its own dtype and shape."""
        info = self.info(name)
        return self.read_into(name, torch.empty(math.prod(info.shape), dtype=info.dtype)).view(info.shape)

    def info(self, name: str) -> TensorInfo:
        """Dtype, shape and place of a tensor; a FwvizError if the file has none of that name."""
        if name not in self.tensors:
            raise FwvizError(f"{self.path} has no tensor {name!r}: it is not a checkpoint of this architecture.")
        return self.tensors[name]

    def _damaged(self, what: str) -> FwvizError:
        return FwvizError(f"{self.path} is damaged or no safetensors file: {what}; save or download it again.")

    def _read_header(self) -> dict[str, TensorInfo]:
        size = os.fstat(self._fd).st_size
        if size < 8:
            raise self._damaged(f"it has only {size} bytes")
        prefix = torch.empty(8, dtype=torch.uint8)
        self.read_at(0, prefix)
        length = int.from_bytes(prefix.numpy().tobytes(), "little")
        if length > min(size - 8, _MAX_HEADER):
            raise self._damaged(f"its header claims {length} bytes, but the file has {size}")
        raw = torch.empty(length, dtype=torch.uint8)
        self.read_at(8, raw)
        try:
            header = json.loads(raw.numpy().tobytes(), object_pairs_hook=_unique)
        except (ValueError, RecursionError):
            raise self._damaged("its header is no valid JSON") from None
        if not isinstance(header, dict):
            raise self._damaged("its header is no table of tensors")
        header.pop("__metadata__", None)
        data = size - 8 - length
        tensors = {name: self._parse(name, entry, 8 + length, data) for name, entry in header.items()}
        end, last = 8 + length, "the header"
        for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
            if info.start != end:
                what = "overlaps" if info.start < end else "leaves a gap after"
                raise self._damaged(f"tensor {name!r} {what} {last!r}")
            end, last = info.stop, name
        if end != size:
            raise self._damaged(f"its tensors end at byte {end}, but the file at {size}")
        return tensors

    def _parse(self, name: str, entry: Any, origin: int, data: int) -> TensorInfo:
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise self._damaged(f"the entry of tensor {name!r} is not made of dtype, shape and data_offsets")
        code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(code, str) or code not in _DTYPES:
            raise FwvizError(f"{self.path}: tensor {name!r} has the unknown dtype {code!r}: save it as F16 or F32.")
        if not _is_counts(shape) or not _is_counts(offsets) or len(offsets) != 2:
            raise self._damaged(f"shape {shape!r} or offsets {offsets!r} of tensor {name!r} are not counts")
        if not offsets[0] <= offsets[1] <= data:
            raise self._damaged(f"tensor {name!r} reaches to byte {offsets[1]} of {data}: the file is cut off")
        expected = math.prod(shape) * _DTYPES[code].itemsize
        if offsets[1] - offsets[0] != expected:
            raise self._damaged(f"tensor {name!r} needs {expected} bytes, but has {offsets[1] - offsets[0]}")
        return TensorInfo(_DTYPES[code], tuple(shape), origin + offsets[0], origin + offsets[1])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table


def _is_counts(value: Any) -> bool:
    # A product of shape entries stays cheap: no real tensor has a count beyond 2⁶³.
    return isinstance(value, list) and len(value) <= 16 and all(type(v) is int and 0 <= v < 1 << 63 for v in value)


class ModelFiles:
    """All tensors of a model: of one safetensors file, or of a folder with ``model.safetensors`` or shards and index.

    Raises:
        FwvizError: a file is missing or damaged, or a tensor is in two of them.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._files = tuple(SafetensorsFile(part) for part in shards(self.path))
        self._home: dict[str, SafetensorsFile] = {}
        for file in self._files:
            for name in file.tensors:
                if self._home.setdefault(name, file) is not file:
                    raise FwvizError(f"{self.path}: tensor {name!r} is in two shards: save the model again.")
        if len(self._files) == 1:
            self.path = self._files[0].path

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Name → dtype, shape and place of every tensor."""
        return {name: info for file in self._files for name, info in file.tensors.items()}

    def read(self, name: str) -> Tensor:
        """A whole tensor in its own dtype and shape; FwvizError if there is none of that name."""
        return self._home.get(name, self._files[0]).read(name)

    def close(self) -> None:
        """Close all files."""
        for file in self._files:
            file.close()


@dataclass(frozen=True)
class Place:
    """Where a file keeps a tensor of the layout: as a tensor, as one of its equal parts along rows, or transposed."""

    name: str
    part: int = 0
    parts: int = 1
    transposed: bool = False

    def stored(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the file's tensor for a tensor of ``shape``."""
        return shape[::-1] if self.transposed else (shape[0] * self.parts, *shape[1:]) if self.parts > 1 else shape


@dataclass(frozen=True)
class _Run:
    """A range of the flat vector that is one stretch of bytes of one dtype in one file.

    A transposed matrix is no such stretch: its ``values`` are read once and kept.
    """

    start: int
    stop: int
    file: SafetensorsFile
    offset: int
    dtype: torch.dtype
    values: Tensor | None = None


class CheckpointFile:
    """One checkpoint on disk as a flat (P,) float32 vector that is read piece by piece.

    ``path`` is a safetensors file, or a folder with ``model.safetensors`` or with shards and their index. ``rename``
    maps prefixes of the layout's names to prefixes of the file's names, the longest match counts; ``place`` says for a
    file of another library where each tensor of the layout lies.

    Raises:
        FwvizError: a tensor of the layout is missing, has another shape or no floating dtype, or a file is damaged.
    """

    def __init__(
        self,
        path: Path | str,
        layout: ParamLayout,
        rename: Mapping[str, str] | None = None,
        place: Callable[[str], Place] = Place,
    ) -> None:
        self.path = Path(path)
        self.layout = layout
        self.files = tuple(SafetensorsFile(part) for part in shards(self.path))
        holder: dict[str, SafetensorsFile] = {}
        for file in self.files:
            for name in file.tensors:
                if holder.setdefault(name, file) is not file:
                    raise FwvizError(f"{self.path}: tensor {name!r} is in two shards: save the checkpoint again.")
        prefixes = sorted((rename or {}).items(), key=lambda item: -len(item[0]))
        runs: list[_Run] = []
        for j, name in enumerate(layout.names):
            where = place(next((new + name.removeprefix(old) for old, new in prefixes if name.startswith(old)), name))
            own = where.name
            if own not in holder:
                raise FwvizError(f"{self.path} has no tensor {own!r}: it is not a checkpoint of this architecture.")
            file = holder[own]
            info = file.tensors[own]
            if info.shape != where.stored(layout.shapes[j]):
                shape = where.stored(layout.shapes[j])
                raise FwvizError(f"{self.path}: tensor {own!r} has shape {info.shape}, but the base has {shape}.")
            if info.dtype not in _MERGEABLE:
                raise FwvizError(f"{self.path}: tensor {own!r} is {info.dtype}: a merge needs F16, BF16, F32 or F64.")
            start, stop = layout.offsets[j], layout.offsets[j + 1]
            if where.transposed:
                values = file.read(own).T.float().flatten()
                runs.append(_Run(start, stop, file, info.start, info.dtype, values))
                continue
            offset = info.start + where.part * (stop - start) * info.dtype.itemsize
            last = runs[-1] if runs else None
            # Neighbours on disk are read at once: in most files that is a whole transformer block.
            if (
                last
                and last.values is None
                and (last.file, last.dtype) == (file, info.dtype)
                and last.offset + (last.stop - last.start) * info.dtype.itemsize == offset
            ):
                runs[-1] = _Run(last.start, stop, last.file, last.offset, last.dtype)
            else:
                runs.append(_Run(start, stop, file, offset, info.dtype))
        self._runs = tuple(runs)
        self._starts = [run.start for run in runs]
        self.itemsize = max(run.dtype.itemsize for run in runs)  # bytes of the widest element to be read

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor of the checkpoint, merged or not."""
        return {name: info for file in self.files for name, info in file.tensors.items()}

    def read_flat(self, start: int, stop: int, out: Tensor, raw: Tensor) -> int:
        """Read [start, stop) of the flat vector into ``out`` (stop − start,) float32, on any device.

        ``raw`` is a uint8 buffer of (stop − start)·itemsize bytes on the CPU; if it is pinned, copies from it to a CUDA
        device may still be under way in the current stream. Returns the number of bytes read.
        """
        total = 0
        for run in self._runs[bisect_right(self._starts, start) - 1 :]:
            if run.start >= stop:
                break
            a, b = max(start, run.start), min(stop, run.stop)
            size = run.dtype.itemsize
            target = out[a - start : b - start]
            if run.values is not None:
                target.copy_(run.values[a - run.start : b - run.start])
            elif run.dtype == torch.float32 and target.device.type == "cpu":
                run.file.read_at(run.offset + (a - run.start) * size, target)
            else:
                # Every range keeps to its own bytes: those of the one before may still be on their way.
                at = (a - start) * self.itemsize
                part = raw[at : at + (b - a) * size].view(run.dtype)
                run.file.read_at(run.offset + (a - run.start) * size, part)
                target.copy_(part, non_blocking=target.is_cuda)  # then it is the device that converts
            total += (b - a) * size
        return total

    def first_nonfinite(self) -> str | None:
        """The name of the first merged tensor that holds NaN or infinity, None if all is finite. Reads everything."""
        columns = min(_CHUNK, self.layout.size)
        out = torch.empty(columns)
        raw = torch.empty(columns * self.itemsize, dtype=torch.uint8)
        for start in range(0, self.layout.size, columns):
            stop = min(start + columns, self.layout.size)
            self.read_flat(start, stop, out, raw)
            name = first_nonfinite(self.layout, out[: stop - start], start)
            if name is not None:
                return name
        return None


def first_nonfinite(layout: ParamLayout, flat: Tensor, start: int = 0) -> str | None:
    """The tensor in which a flat vector, or a part of it from ``start`` on, first holds NaN or infinity."""
    if bool(flat.sum(dtype=torch.float32).isfinite()):  # one pass without a mask; NaN and infinity survive a sum
        return None
    bad = flat.isfinite().logical_not_().nonzero()
    if not bad.numel():  # a sum of large finite values
        return None
    return layout.names[bisect_right(layout.offsets, start + int(bad[0])) - 1]


def shards(path: Path) -> Sequence[Path]:
    """The safetensors files of a checkpoint."""
    if not path.is_dir():
        return [path]
    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").exists() or not index.exists():
        return [path / "model.safetensors"]
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        inside = bool(names) and all(isinstance(name, str) and Path(name).name == name for name in names)
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        inside = False
    if not inside:
        raise FwvizError(f"{index} is no valid index of shards: save the checkpoint again.")
    return [path / name for name in names]
