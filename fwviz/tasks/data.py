"""Splits of labelled images or texts: parquet files, decoded once, with every byte distrusted."""

from __future__ import annotations

import hashlib
import io
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fwviz.backbones.families import FAMILIES
from fwviz.backbones.family import Heads, Tokeniser
from fwviz.backbones.folders import base_folder
from fwviz.cards import FileCard, PoolCard, TaskCard
from fwviz.space.cache import ByteCache
from fwviz.types import FwvizError, Split

_MAX_FILE = 256 << 20  # bytes of one parquet file
_MAX_DECODED = 2 << 30  # bytes of one split
_CACHE = 512 << 20  # bytes of decoded splits kept
_LONGEST_TEXT = 256 << 10  # bytes
_PNG = b"\x89PNG\r\n\x1a\n"
_BATCH = 16  # rows read from parquet at once: bounds what a file that expands wildly can take


@dataclass(frozen=True)
class TaskData:
    """One split: inputs (N, …) as the pool's family takes them, labels (N,), and where each came from.

    Images are uint8 (N, 3, H, W), texts token ids int32 (N, T) with −1 behind the end; a family may keep several rows
    per sample. Labels are classes int64, or numbers float32. ``references`` are the right answers in words, or the
    programs that test an answer, where the model answers in words. Shared: do not write.
    """

    task: str
    split: Split
    inputs: Tensor
    labels: Tensor
    source_keys: tuple[str, ...]
    references: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.labels.shape[0]


_cache: ByteCache[TaskData] = ByteCache(_CACHE)


def load_split(card: PoolCard, task: TaskCard, split: Split) -> TaskData:
    """Decode one split of a task; kept in a bounded cache that all threads share.

    Raises:
        FwvizError: the file is missing, is not the one the card describes, holds something that is no 8-bit PNG of the
            pool's size or no text, a label out of range, or labels of one class only.
    """
    file = task.splits[split]
    path = card.root / file.path
    try:
        stat = path.stat()
    except OSError as error:
        raise FwvizError(f"{path} cannot be read: {error.strerror}.") from None
    family = FAMILIES[card.family]
    parts: tuple[object, ...] = (path.resolve(), stat.st_mtime_ns, stat.st_size, file.sha256, len(task.classes))
    if family.tokenise is None:
        size = card.base["image_size"]
        return _cache.get((*parts, size), lambda: _load(path, file, task, split, size), _bytes)
    tokenise = family.tokenise(base_folder(card), card.base)
    wanted = _Texts(task, family.heads)
    key = (*parts, tokenise, task.classes, task.metric)
    return _cache.get(key, lambda: _load_texts(path, file, wanted, split, tokenise), _bytes)


def stratified_subset(labels: Tensor, count: int, seed: int) -> Tensor:
    """Indices of at most ``count`` samples, ascending, with each class in its share of the whole (largest remainder).

    Deterministic in (labels, count, seed). labels (N,) → indices (min(count, N),) int64.
    """
    total = labels.shape[0]
    if count >= total:
        return torch.arange(total)
    generator = torch.Generator().manual_seed(seed)
    members = [(labels == label).nonzero().flatten() for label in labels.unique().tolist()]
    shares = torch.tensor([len(rows) * count / total for rows in members], dtype=torch.float64)
    quota = shares.floor().long()
    # Of equal remainders the seed chooses, else the first classes would always win.
    order = torch.randperm(len(members), generator=generator)
    largest = order[(shares - quota)[order].sort(descending=True, stable=True).indices]
    quota[largest[: count - int(quota.sum())]] += 1
    chosen = [
        rows[torch.randperm(len(rows), generator=generator)[:take]]
        for rows, take in zip(members, quota.tolist(), strict=True)
    ]
    return torch.cat(chosen).sort().values


def _bytes(data: TaskData) -> int:
    return data.inputs.numel() * data.inputs.element_size() + 8 * data.labels.numel()


def _load(path: Path, file: FileCard, task: TaskCard, split: Split, size: int) -> TaskData:
    if file.rows * 3 * size * size > _MAX_DECODED:
        raise FwvizError(f"{path}: {file.rows} images of {size} x {size} pixels are too many: take a subset.")
    content = _read_file(path, file)
    encoded, labels, keys = _read_parquet(path, content, file.rows, longest=_longest(size))
    images = torch.empty(file.rows, 3, size, size, dtype=torch.uint8)
    for row, image in enumerate(encoded):
        if image is None:
            raise FwvizError(f"{path}: row {row} has no image: make the file again.")
        images[row] = _decode(image, size, path, row)
    return TaskData(task.id, split, images, _labels(path, labels, task, "images"), _names(keys))


@dataclass(frozen=True)
class _Texts:
    """What the file of a text task holds beside ``text``, by the task and by where its answers come from."""

    task: TaskCard
    heads: Heads

    @property
    def label(self) -> str | None:
        """The type of the column ``label``: classes, or numbers; None where answers are free texts."""
        if self.task.classes:
            return "int64"
        return "double" if self.heads == "own" else None

    @property
    def words(self) -> tuple[str, ...]:
        """The columns of words: the answer, and what tests it."""
        if self.label is not None:
            return ()
        return ("answer", "test") if self.task.metric == "pass@1" else ("answer",)


def _load_texts(path: Path, file: FileCard, wanted: _Texts, split: Split, tokenise: Tokeniser) -> TaskData:
    task = wanted.task
    columns = _read_text_parquet(path, _read_file(path, file), file.rows, wanted)
    for name in ("text", *wanted.words):
        for row, text in enumerate(columns[name]):
            if text is None or not text.strip():
                raise FwvizError(f"{path}: row {row} has no {name}: make the file again.")
    texts: list[Any] = columns["text"]
    if "text_pair" in columns:
        texts = [text if pair is None else (text, pair) for text, pair in zip(texts, columns["text_pair"], strict=True)]
    keys = _names(columns.get("source_key", [None] * file.rows))
    if wanted.label is None:
        inputs = tokenise(texts, [(answer,) for answer in columns["answer"]])
        labels = torch.zeros(file.rows, dtype=torch.int64)
        return TaskData(task.id, split, inputs, labels, keys, tuple(columns[wanted.words[-1]]))
    if wanted.label == "double":
        return TaskData(task.id, split, tokenise(texts), _numbers(path, columns["label"]), keys)
    labels = _labels(path, columns["label"], task, "texts")
    if wanted.heads == "words":
        references = tuple(task.classes[label] for label in labels.tolist())
        return TaskData(task.id, split, tokenise(texts, [task.classes] * file.rows), labels, keys, references)
    return TaskData(task.id, split, tokenise(texts), labels, keys)


def _numbers(path: Path, values: Sequence[float | None]) -> Tensor:
    for row, value in enumerate(values):
        if value is None or not math.isfinite(value):
            raise FwvizError(f"{path}: row {row} has label {value}, but the task needs a number: make the file again.")
    if len(set(values)) < 2:
        raise FwvizError(f"{path} has one number as label of all its rows: a task needs at least two.")
    return torch.tensor(values, dtype=torch.float32)


def _read_file(path: Path, file: FileCard) -> bytes:
    """The bytes of a split, which must be those its card describes."""
    if path.stat().st_size > _MAX_FILE:
        raise FwvizError(f"{path} has more than {_MAX_FILE >> 20} MiB: split the task.")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise FwvizError(f"{path} is not the file its pool card describes (SHA-256 {found[:12]}…): restore the pool.")
    return content


def _labels(path: Path, labels: Sequence[int | None], task: TaskCard, things: str) -> Tensor:
    for row, label in enumerate(labels):
        if label is None:
            raise FwvizError(f"{path}: row {row} has no label: make the file again.")
        if not 0 <= label < len(task.classes):
            raise FwvizError(f"{path}: row {row} has label {label}, but the task has {len(task.classes)} classes.")
    if len(set(labels)) < 2:
        raise FwvizError(f"{path} has {things} of one class only: a task needs at least two.")
    return torch.tensor(labels, dtype=torch.int64)


def _names(keys: Sequence[str | None]) -> tuple[str, ...]:
    return tuple("" if key is None else key for key in keys)


def _longest(size: int) -> int:
    """More bytes than any sensible PNG of size x size pixels has."""
    return (64 << 10) + 8 * size * size


def _read_parquet(
    path: Path, content: bytes, rows: int, longest: int
) -> tuple[list[bytes | None], list[int | None], list[str | None]]:
    """The columns image.bytes, label and source_key; no image of more than ``longest`` bytes becomes an object."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    encoded: list[bytes | None] = []
    labels: list[int | None] = []
    keys: list[str | None] = []
    try:
        table = pq.ParquetFile(pa.BufferReader(content))
        schema = table.schema_arrow
        _check_columns(path, schema)
        if table.metadata.num_rows != rows:
            raise FwvizError(f"{path} has {table.metadata.num_rows} rows, but its card says {rows}: restore the pool.")
        columns = ["image.bytes", "label", "source_key"]
        for batch in table.iter_batches(batch_size=_BATCH, columns=columns, use_threads=False):
            images = batch.column("image").field("bytes")
            lengths = pc.binary_length(images).to_pylist()
            if any(length is not None and length > longest for length in lengths):
                raise FwvizError(f"{path} has an image of more than {longest >> 10} KiB: make the file again.")
            encoded += images.to_pylist()
            labels += batch.column("label").to_pylist()
            keys += batch.column("source_key").to_pylist()
            if len(encoded) > rows:
                break
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise FwvizError(f"{path} is damaged or no parquet file ({_first_line(error)}): restore the pool.") from None
    if not len(encoded) == len(labels) == len(keys) == rows:
        raise FwvizError(f"{path} does not hold the {rows} rows it promises: restore the pool.")
    return encoded, labels, keys


def _read_text_parquet(path: Path, content: bytes, rows: int, wanted: _Texts) -> dict[str, list[Any]]:
    """Column → values: text, label or words, and where they are there text_pair and source_key."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    kinds = {"text": "string", **dict.fromkeys(wanted.words, "string")}
    kinds |= {} if wanted.label is None else {"label": wanted.label}
    try:
        table = pq.ParquetFile(pa.BufferReader(content))
        schema = table.schema_arrow
        for name, kind in kinds.items():
            _check_type(path, schema, name, {"string": pa.string(), "int64": pa.int64(), "double": pa.float64()}[kind])
        if table.metadata.num_rows != rows:
            raise FwvizError(f"{path} has {table.metadata.num_rows} rows, but its card says {rows}: restore the pool.")
        for name in ("text_pair", "source_key"):
            if name in schema.names and schema.field(name).type == pa.string():
                kinds[name] = "string"
        columns: dict[str, list[Any]] = {name: [] for name in kinds}
        for batch in table.iter_batches(batch_size=_BATCH, columns=list(kinds), use_threads=False):
            for name, kind in kinds.items():
                if kind == "string":
                    lengths = pc.binary_length(batch.column(name)).to_pylist()
                    if any(length is not None and length > _LONGEST_TEXT for length in lengths):
                        raise FwvizError(
                            f"{path} has a text of more than {_LONGEST_TEXT >> 10} KiB: make the file again."
                        )
                columns[name] += batch.column(name).to_pylist()
            if len(columns["text"]) > rows:
                break
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise FwvizError(f"{path} is damaged or no parquet file ({_first_line(error)}): restore the pool.") from None
    if any(len(values) != rows for values in columns.values()):
        raise FwvizError(f"{path} does not hold the {rows} rows it promises: restore the pool.")
    return columns


def _check_columns(path: Path, schema: object) -> None:
    import pyarrow as pa

    assert isinstance(schema, pa.Schema)
    _check_type(path, schema, "label", pa.int64())
    _check_type(path, schema, "source_key", pa.string())
    image = schema.field("image").type if "image" in schema.names else None
    fields = {f.name: f.type for f in image} if isinstance(image, pa.StructType) else {}
    if fields.get("bytes") != pa.binary():
        raise FwvizError(
            f"{path} has no column 'image' of the type struct{{bytes: binary, path: string}}: make the file again."
        )


def _check_type(path: Path, schema: Any, name: str, kind: object) -> None:
    if name not in schema.names or schema.field(name).type != kind:
        raise FwvizError(f"{path} has no column {name!r} of type {kind}: make the file again.")


def _decode(content: bytes, size: int, path: Path, row: int) -> Tensor:
    """One PNG → uint8 (3, size, size). Its size is read from the header before anything is decompressed."""
    import numpy as np
    from PIL import Image

    if len(content) < 33 or not content.startswith(_PNG) or content[12:16] != b"IHDR":
        raise FwvizError(f"{path}: row {row} holds no PNG image: make the file again.")
    width, height = struct.unpack(">II", content[16:24])
    if (width, height) != (size, size):
        raise FwvizError(
            f"{path}: row {row} is an image of {width} x {height} pixels, but the pool takes {size} x {size}."
        )
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            if image.size != (size, size):  # a second header inside the file
                raise ValueError
            array = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError):
        raise FwvizError(f"{path}: row {row} holds a PNG image that cannot be decoded: make the file again.") from None
    return torch.from_numpy(array).permute(2, 0, 1)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
