"""A card of the Hub as a pool that can be merged: what of it is in the Hub's cache, its data sets cut into our splits.

Nothing is downloaded here. Models stay where the cache has them; of each data set some rows are drawn once, by a fixed
seed, and written in the format of a pool's own splits to ``FWVIZ_PREPARED`` (``~/.cache/fwviz/prepared``).
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fwviz.backbones.clip_config import read_vision_shape
from fwviz.backbones.families import FAMILIES
from fwviz.backbones.folders import base_folder, cached_snapshot
from fwviz.cards import CheckpointCard, FileCard, PoolCard, TaskCard
from fwviz.pools.card import weights_name
from fwviz.pools.hub import HubCard, HubTask
from fwviz.pools.making import making
from fwviz.space.files import ModelFiles
from fwviz.types import SPLITS, FwvizError, Split

_FORMAT = 1  # of prepared splits; they are made anew when it changes
_SEED = 0
_MAX_PIXELS = 64_000_000
_PICTURES = ("PNG", "JPEG", "WEBP", "BMP")
_BATCH = 64  # rows read at once
_BLOB = re.compile(r"[0-9a-f]{64}")


def hub_pool_card(card: HubCard) -> PoolCard:
    """The pool of what is on this machine: the base, and every checkpoint and task whose files are in the cache.

    Data sets are prepared where they have not been. Raises FwvizError if the base, all checkpoints or all tasks are
    missing, with the command that fetches them, or if a data set does not hold what the card says.
    """
    base = _base(card)
    folders = {c.id: _model_folder(c.hub) for c in card.checkpoints}
    found_sets = {task.id: cached_snapshot(task.data["hub"], "dataset") for task in card.tasks}
    sets = {task: folder for task, folder in found_sets.items() if folder and any(folder.rglob("*.parquet"))}
    here = [c for c in card.checkpoints if folders[c.id] is not None]
    for found, what in ((here, "checkpoints"), (sets, "data sets")):
        if not found:
            raise FwvizError(
                f"none of the {what} of card {card.id!r} is on this machine: run `fwviz pools fetch {card.id}`."
            )
    tasks = tuple(_task(card, task, sets[task.id], base) for task in card.tasks if task.id in sets)
    checkpoints = tuple(_checkpoint(c.id, c.task, folders[c.id]) for c in here)
    missing = [c.hub for c in card.checkpoints if c not in here]
    missing += [task.data["hub"] for task in card.tasks if task.id not in sets]
    known = {task.id for task in tasks}
    default = next((s for s in card.subsets.values() if set(s) <= known), tuple(task.id for task in tasks))
    return PoolCard(
        root=prepared_folder(),
        id=card.id,
        title=card.title,
        summary=card.summary + (f" Not on this machine: {', '.join(missing)}." if missing else ""),
        family=card.family,
        base=base,
        include=card.include,
        exclude=card.exclude,
        checkpoints=checkpoints,
        tasks=tasks,
        default_tasks=default,
        default_checkpoints=tuple(c.id for c in checkpoints if c.task in default) or tuple(c.id for c in checkpoints),
    )


def prepared_folder() -> Path:
    """Where prepared splits are kept."""
    return Path(os.environ.get("FWVIZ_PREPARED") or "~/.cache/fwviz/prepared").expanduser()


# --- models -------------------------------------------------------------------------------------


def _base(card: HubCard) -> dict[str, Any]:
    """What a pool's card says of its base, read from its files."""
    place: dict[str, Any] = {"hub": card.base}
    folder = base_folder(PoolCard(Path(), card.id, "", "", card.family, place, (), (), (), (), (), ()))
    files = ModelFiles(folder)
    count = sum(math.prod(info.shape) for info in files.tensors.values())
    files.close()
    place |= {"sha256": _sha256(folder / weights_name(folder)), "parameters": count, "licence": "other"}
    family = FAMILIES[card.family]
    if family.inputs == "images":
        return place | {"image_size": read_vision_shape(folder / "config.json").image_size}
    place["tokens"] = card.tokens
    if family.heads == "texts":
        place["scale"] = card.scale
    if family.heads == "words":
        place["answer_tokens"] = card.answer_tokens
    return place


def _model_folder(hub: str) -> Path | None:
    """The folder of a checkpoint in the Hub's cache, if its weights are there."""
    folder = cached_snapshot(hub)
    return folder if folder is not None and (folder / weights_name(folder)).is_file() else None


def _checkpoint(name: str, task: str, folder: Path | None) -> CheckpointCard:
    assert folder is not None
    return CheckpointCard(name, name, str(folder), _sha256(folder / weights_name(folder)), task, "own")


def _sha256(path: Path) -> str:
    """Of a file's bytes; the Hub's cache names large files by it."""
    name = path.resolve().name
    if path.is_symlink() and _BLOB.fullmatch(name):
        return name
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- data sets ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """The parquet files of one split of a data set, and the columns a task reads."""

    task: HubTask
    files: tuple[Path, ...]

    def rows(self, chosen: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """The rows with these numbers, counted over all files, in the order given."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        wanted = sorted(chosen)
        found: dict[int, dict[str, Any]] = {}
        start = 0
        for file in self.files:
            with self.reading(file):
                table = pq.ParquetFile(file)
                names = set(table.schema_arrow.names)
                for column in columns:
                    if column.partition(".")[0] not in names:
                        raise FwvizError(
                            f"{file} has no column {column!r}: correct the task {self.task.id!r} of the card."
                        )
                heads = list(dict.fromkeys(column.partition(".")[0] for column in columns))
                for batch in table.iter_batches(batch_size=_BATCH, columns=heads, use_threads=False):
                    inside = [row - start for row in wanted if start <= row < start + batch.num_rows]
                    taken = pa.Table.from_batches([batch]).take(inside).to_pylist() if inside else []
                    for row, values in zip(inside, taken, strict=True):
                        found[start + row] = {column: _inner(values, column) for column in columns}
                    start += batch.num_rows
                    if wanted and start > wanted[-1]:
                        return [found[row] for row in chosen]
        return [found[row] for row in chosen]

    def labelled(self, chosen: Sequence[int], columns: Sequence[str], label: str) -> dict[int, dict[str, Any]]:
        """Number → row of those that have a label; −1 and nothing stand for none. At least two, or FwvizError."""
        rows = dict(zip(chosen, self.rows(chosen, columns), strict=True))
        found = {number: row for number, row in rows.items() if row[label] is not None and row[label] != -1}
        if len(found) < 2:
            raise FwvizError(
                f"the data set {self.task.data['hub']} has no labels in {self.files[0]}: correct the card."
            )
        return found

    @property
    def count(self) -> int:
        """Rows of all files."""
        import pyarrow.parquet as pq

        total = 0
        for file in self.files:
            with self.reading(file):
                total += int(pq.ParquetFile(file).metadata.num_rows)
        return total

    def class_names(self) -> tuple[str, ...]:
        """The names the data set's own features give the label's classes; none where they name none."""
        import pyarrow.parquet as pq

        with self.reading(self.files[0]):
            metadata = pq.ParquetFile(self.files[0]).schema_arrow.metadata or {}
        try:
            features = json.loads(metadata[b"huggingface"])["info"]["features"]
            names = features[str(self.task.data["label"])]["names"]
        except (KeyError, TypeError, ValueError):
            return ()
        return tuple(str(name) for name in names) if isinstance(names, list) else ()

    def reading(self, file: Path) -> _Reading:
        return _Reading(file)


class _Reading:
    """Turns the ways a parquet file can be damaged into one sentence."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        import pyarrow as pa

        if isinstance(error, (pa.ArrowException, OSError, ValueError)):
            reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
            raise FwvizError(f"{self._file} is damaged or no parquet file ({reason}): fetch it again.") from None


def _task(card: HubCard, task: HubTask, folder: Path, base: Mapping[str, Any]) -> TaskCard:
    """A task with its three splits, prepared if they are not there."""
    size = base.get("image_size")
    said = {
        "format": _FORMAT, "data": task.data, "classes": task.classes, "prompt": task.prompt, "metric": task.metric,
        "rows": card.rows, "size": size, "heads": FAMILIES[card.family].heads, "commit": folder.name,
        "files": _listing(folder),
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]
    target = prepared_folder() / f"{task.id}-{key}"
    if not (target / "facts.json").is_file():
        _prepare(card, task, folder, size, target)
    facts = json.loads((target / "facts.json").read_text(encoding="utf-8"))
    classes = tuple(facts["classes"])
    return TaskCard(
        id=task.id,
        title=task.title,
        question=task.title,
        classes=classes,
        prompts=task.prompts,
        splits={s: FileCard(str(target / f"{s}.parquet"), *facts["splits"][s]) for s in SPLITS},
        chance=1 / len(classes) if classes and task.metric == "accuracy" else 0.0,
        accuracy={},
        source=task.data["hub"],
        licence=task.data["licence"] or "see the Hub",
        metric=task.metric,
    )


def _listing(folder: Path) -> list[tuple[str, int]]:
    """Names and sizes of a data set's files: a set that changed is prepared anew."""
    return [(str(file.relative_to(folder)), file.stat().st_size) for file in sorted(folder.rglob("*.parquet"))]


def _prepare(card: HubCard, task: HubTask, folder: Path, size: int | None, target: Path) -> None:
    """Draw the rows of all splits and write them; the folder appears in one step."""
    sources = {split: _source(task, folder, split) for split in SPLITS}
    parts = _parts({split: source.files for split, source in sources.items()}, sources, card.rows)
    write = _pictures(task, size) if size is not None else _texts(task, FAMILIES[card.family].heads)
    classes = task.classes or sources["test"].class_names()
    with making(target.parent) as place:
        work = place / target.name
        work.mkdir()
        splits: dict[str, tuple[int, str]] = {}
        for split, rows in parts.items():
            columns, classes = write(sources[split], rows, classes)
            splits[split] = _write(work / f"{split}.parquet", columns)
        (work / "facts.json").write_text(json.dumps({"classes": classes, "splits": splits}), encoding="utf-8")
        try:
            work.rename(target)
        except OSError:  # another process was quicker
            if not (target / "facts.json").is_file():
                raise


def _source(task: HubTask, folder: Path, split: Split) -> _Source:
    """The files of the data set's split that ours is drawn from: ours may be named, else validation is as calibration.

    ``<config>/<split>-00000-of-00001.parquet``, ``data/<split>-….parquet`` and ``<config>/<split>/0000.parquet`` are
    the Hub's ways to lay them out.
    """
    named = task.data["splits"]
    wanted = named.get(split) or named.get("calibration")
    if wanted is None:
        raise FwvizError(f"task {task.id!r} of the card names no split to draw {split} from: add data.splits.{split}.")
    config = task.data.get("config")
    found = []
    for file in sorted(folder.rglob("*.parquet")):
        *above, name = file.relative_to(folder).parts
        stem = re.split(r"[-.]", name)[0]
        if (config is None or config in above) and (stem == wanted or wanted in above):
            found.append(file)
    if not found:
        where = f" and the configuration {config!r}" if config else ""
        raise FwvizError(
            f"the data set {task.data['hub']} has no parquet file of the split {wanted!r}{where} in {folder}: correct "
            f"the card or fetch it again."
        )
    return _Source(task, tuple(found))


def _parts(
    files: Mapping[Split, tuple[Path, ...]], sources: Mapping[Split, _Source], rows: Mapping[Split, int]
) -> dict[Split, list[int]]:
    """Which rows each of our splits takes: at random, and none twice where they are drawn from the same files."""
    taken: dict[tuple[Path, ...], int] = {}
    found: dict[Split, list[int]] = {}
    sharing = {split: [other for other in SPLITS if files[other] == files[split]] for split in SPLITS}
    for split in SPLITS:
        total = sources[split].count
        # A small data set is shared out in the proportions asked for.
        asked = sum(rows[other] for other in sharing[split])
        share = rows[split] if asked <= total else rows[split] * total // asked
        if share < 2:
            raise FwvizError(
                f"the data set {sources[split].task.data['hub']} has only {total} rows for {len(sharing[split])} "
                f"splits: a task needs at least two in each."
            )
        order = np.random.default_rng(_SEED).permutation(total)
        start = taken.get(files[split], 0)
        taken[files[split]] = start + share
        found[split] = [int(row) for row in order[start : start + share]]
    return found


Columns = dict[str, Any]
Writer = Callable[[_Source, Sequence[int], tuple[str, ...]], tuple[Columns, tuple[str, ...]]]


def _pictures(task: HubTask, size: int) -> Writer:
    """Pictures of any size as PNGs of the model's, and their labels."""

    def write(source: _Source, rows: Sequence[int], classes: tuple[str, ...]) -> tuple[Columns, tuple[str, ...]]:
        import pyarrow as pa

        column, label = str(task.data["inputs"]), str(task.data["label"])
        values = source.labelled(rows, (column, label), label)
        named = _named(task, classes)
        pictures = [
            {"bytes": _fit(row[column], size, f"{task.data['hub']}, row {number}"), "path": f"{number}.png"}
            for number, row in values.items()
        ]
        labels = [_class(row[label], named, task) for row in values.values()]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns = {"image": pa.array(pictures, kind), "label": pa.array(labels, pa.int64())}
        return columns | {"source_key": pa.array([str(row) for row in values], pa.string())}, named

    return write


def _fit(picture: Any, size: int, where: str) -> bytes:
    """The shorter side to ``size`` pixels (bicubic), the middle cut out: what CLIP's image processor does. As PNG."""
    from PIL import Image

    content = picture.get("bytes") if isinstance(picture, dict) else picture
    if not isinstance(content, bytes):
        raise FwvizError(f"{where} holds no picture: correct the column of the card.")
    try:
        with Image.open(io.BytesIO(content), formats=_PICTURES) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise FwvizError(f"{where} is a picture of {image.width} x {image.height} pixels: that is too large.")
            colour = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        raise FwvizError(f"{where} holds a picture that cannot be decoded: fetch the data set again.") from None
    short, long = sorted(colour.size)
    wanted = (size, int(size * long / short)) if colour.width <= colour.height else (int(size * long / short), size)
    if colour.size != wanted:
        colour = colour.resize(wanted, Image.Resampling.BICUBIC)
    left, top = (colour.width - size) // 2, (colour.height - size) // 2
    target = io.BytesIO()
    colour.crop((left, top, left + size, top + size)).save(target, format="PNG")
    return target.getvalue()


def _texts(task: HubTask, heads: str) -> Writer:
    """Texts, pairs of them or prompts, and classes, numbers or answers in words, by what the family reads."""

    def write(source: _Source, rows: Sequence[int], classes: tuple[str, ...]) -> tuple[Columns, tuple[str, ...]]:
        import pyarrow as pa

        inputs = [part.strip() for part in str(task.data["inputs"]).split(",")]
        label = str(task.data["label"])
        found = source.labelled(rows, (*inputs, label), label)
        columns: Columns = {"source_key": pa.array([str(row) for row in found], pa.string())}
        values = list(found.values())
        if heads == "words":
            columns["text"] = pa.array([_prompted(task, inputs, row) for row in values], pa.string())
        elif len(inputs) > 2:
            raise FwvizError(f"task {task.id!r} of the card reads {len(inputs)} texts, but the model at most a pair.")
        else:
            for name, column in zip(("text", "text_pair"), inputs, strict=False):
                columns[name] = pa.array([_text(row[column], column) for row in values], pa.string())
        given = [row[label] for row in values]
        numbers = all(isinstance(value, float) for value in given)
        if numbers and heads == "own":
            return columns | {"label": pa.array(given, pa.float64())}, ()
        if heads == "words" and (numbers or not task.classes):
            said = [f"{value:.1f}" if isinstance(value, float) else _text(value, label) for value in given]
            return columns | {"answer": pa.array(said, pa.string())}, ()
        named = _named(task, classes)
        return columns | {"label": pa.array([_class(value, named, task) for value in given], pa.int64())}, named

    return write


def _prompted(task: HubTask, inputs: Sequence[str], row: Mapping[str, Any]) -> str:
    """The card's prompt with the row's texts in it, or the texts under each other."""
    texts = {column: _text(row[column], column) for column in inputs}
    if not task.prompt:
        return "\n".join(texts.values())
    # In one pass, so that no text that looks like a place is filled again.
    return re.sub(r"\{([^{}]*)\}", lambda m: texts.get(m[1], m[0]), task.prompt)


def _text(value: Any, column: str) -> str:
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "\n".join(value)
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    raise FwvizError(f"the column {column!r} holds {type(value).__name__}, not text: name a field of it with a dot.")


def _named(task: HubTask, classes: tuple[str, ...]) -> tuple[str, ...]:
    if len(classes) < 2:
        raise FwvizError(
            f"neither the card nor the data set {task.data['hub']} names the classes of {task.id!r}: add them."
        )
    return classes


def _class(value: Any, classes: tuple[str, ...], task: HubTask) -> int:
    if isinstance(value, str) and value in classes:
        return classes.index(value)
    if type(value) is int and 0 <= value < len(classes):
        return value
    raise FwvizError(
        f"the data set {task.data['hub']} has the label {str(value)[:40]!r}, but task {task.id!r} has {len(classes)} "
        f"classes: correct the card's classes or split."
    )


def _inner(values: Mapping[str, Any], column: str) -> Any:
    """A column's value, or the field of it that a dot names."""
    found: Any = values
    for part in column.split("."):
        if not isinstance(found, dict) or part not in found:
            raise FwvizError(f"the data set has no field {column!r}: correct the card.")
        found = found[part]
    return found


def _write(path: Path, columns: Columns) -> tuple[int, str]:
    """Write a split; its rows and SHA-256."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(columns)
    pq.write_table(table, path)
    return table.num_rows, hashlib.sha256(path.read_bytes()).hexdigest()
