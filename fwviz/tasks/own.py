"""A task of a person's own: labelled pictures or texts they have, split and written as a pool keeps its tasks."""

from __future__ import annotations

import hashlib
import io
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fwviz.cards import FileCard
from fwviz.tasks.archive import read_archive
from fwviz.tasks.pictures import Framing, to_png
from fwviz.tasks.table import read_table
from fwviz.types import SPLITS, FwvizError, Split

LEAST = 5  # different examples a class needs: two to learn from, one to choose by, two to report
MAX_CLASSES = 100
MAX_PROMPTS = 16
MAX_NAME = 100  # characters of a class name or a prompt
_MAX_PIXELS = 2_000_000_000  # of all pictures together: bounds the time it takes
_SHARES = {"calibration": 0.4, "validation": 0.2}  # of a class; the rest is test
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_MOST = 400  # examples of one of these two splits, over all classes


@dataclass(frozen=True)
class Examples:
    """What was found in a file: inputs (PNG bytes or texts) with labels into ``classes`` and where each came from.

    Every input is there once: ``repeated`` counts those left out because they are equal to another. ``aside`` are files
    beside the class folders.
    """

    file: str
    classes: tuple[str, ...]
    inputs: tuple[bytes | str, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]
    repeated: int = 0
    aside: tuple[str, ...] = ()

    @property
    def things(self) -> str:
        """What they are, in the plural."""
        return "texts" if isinstance(self.inputs[0], str) else "pictures"

    def sentence(self, splits: Mapping[Split, Sequence[int]]) -> str:
        """What was found and how it was split."""
        shown = ", ".join(self.classes[:6]) + (f" and {len(self.classes) - 6} more" if len(self.classes) > 6 else "")
        said = f"{len(self.inputs)} {self.things} of {len(self.classes)} classes ({shown}): "
        said += f"{len(splits['calibration'])} to learn from, {len(splits['validation'])} to choose by, "
        said += f"{len(splits['test'])} to report."
        if self.repeated:
            said += f" {self.repeated} that {'was' if self.repeated == 1 else 'were'} there twice count once."
        return said


def read_examples(path: Path, framing: Framing | None) -> Examples:
    """Read a zip of class folders (with the ``framing`` of its pictures) or else a CSV of texts.

    Equal inputs count once, compared as the model sees them, so that no example can stand in two splits.

    Raises:
        FwvizError: the file is damaged or too large, an example cannot be read, two classes share one, there is one
            class only, or a class has fewer than :data:`LEAST` different examples.
    """
    rows: list[tuple[str, str, bytes | str]] = []
    seen: dict[str, tuple[str, str]] = {}
    repeated = pixels = 0

    def keep(label: str, name: str, content: bytes | str, key: str) -> None:
        nonlocal repeated
        before = seen.setdefault(key, (label, name))
        if before[0] != label:
            raise FwvizError(
                f"{before[1]} and {name} are the same, but of the classes {before[0]!r} and {label!r}: keep one."
            )
        if before[1] != name:
            repeated += 1
        else:
            rows.append((label, name, content))

    def take_picture(label: str, name: str, content: bytes) -> None:
        nonlocal pixels
        assert framing is not None
        png, count = to_png(content, framing, name)
        pixels += count
        if pixels > _MAX_PIXELS:
            raise FwvizError(f"the pictures of {path.name} have too many pixels together: make them smaller.")
        keep(label, name, png, hashlib.sha256(png).hexdigest())

    def take_text(label: str, name: str, text: str) -> None:
        plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
        keep(label, name, text, hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest())

    aside: tuple[str, ...] = ()
    if framing is not None:
        aside = read_archive(path, take_picture)
    else:
        _refuse_archive(path)
        read_table(path, take_text)
    classes = tuple(sorted({label for label, _, _ in rows}, key=_natural))
    _check_classes(
        path.name, classes, Counter(label for label, _, _ in rows), "texts" if framing is None else "pictures"
    )
    place = {label: index for index, label in enumerate(classes)}
    return Examples(
        file=path.name,
        classes=classes,
        inputs=tuple(content for _, _, content in rows),
        labels=tuple(place[label] for label, _, _ in rows),
        names=tuple(name for _, name, _ in rows),
        repeated=repeated,
        aside=aside,
    )


def class_names(examples: Examples, given: Mapping[str, str], *, plain: bool = False) -> tuple[str, ...]:
    """What each class is called: as given, else as its folder or label, with spaces for _ and - unless ``plain``.

    Where all classes are digits, 0 is called "digit zero": text towers know the word better than the sign. ``plain`` is
    for what is no prompt: the answers of a model, and the labels of a classifier.
    """
    for folder in given:
        if folder not in examples.classes:
            listed = ", ".join(examples.classes[:10])
            raise FwvizError(f"{examples.file} has no class {folder!r} to rename: its classes are {listed}.")
    digits = {str(i): f"digit {word}" for i, word in enumerate(_DIGITS)}
    known = digits if set(examples.classes) <= set(digits) else {}
    words = {label: known.get(label) or label.replace("_", " ").replace("-", " ") for label in examples.classes}
    words = {label: label for label in examples.classes} if plain else words
    names = tuple(" ".join(given.get(label, words[label]).split()) for label in examples.classes)
    for label, name in zip(examples.classes, names, strict=True):
        if not name or len(name) > MAX_NAME or not name.isprintable():
            raise FwvizError(f"class {label!r} has no name a prompt could hold: call it by 1 to {MAX_NAME} characters.")
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise FwvizError(f"two classes are called {twice!r}: give each a name of its own.")
    return names


def check_prompts(prompts: Sequence[str]) -> tuple[str, ...]:
    """The prompts, each with the place ``{}`` of the class name; FwvizError for what is none."""
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise FwvizError(f"there are {len(prompts)} prompts, but 1 to {MAX_PROMPTS} make a head.")
    for prompt in prompts:
        if "{}" not in prompt or len(prompt) > MAX_NAME or not prompt.isprintable():
            raise FwvizError(
                f"the prompt {prompt[:60]!r} is none: write a short text with {{}} where the class name goes."
            )
    return tuple(prompts)


def split_examples(examples: Examples, seed: int) -> dict[Split, tuple[int, ...]]:
    """Rows of each split, ascending: of every class 40 % calibration, 20 % validation, the rest test.

    At least two, one and two; of many examples no more than a few hundred go to the first two. Deterministic in
    (labels, seed).
    """
    labels = torch.tensor(examples.labels)
    generator = torch.Generator().manual_seed(seed)
    most = max(2, _MOST // len(examples.classes))
    rows: dict[Split, list[int]] = {split: [] for split in SPLITS}
    for label in range(len(examples.classes)):
        members = (labels == label).nonzero().flatten()
        drawn = members[torch.randperm(len(members), generator=generator)].tolist()
        learn = min(max(2, round(_SHARES["calibration"] * len(drawn))), most)
        choose = min(max(1, round(_SHARES["validation"] * len(drawn))), most)
        rows["calibration"] += drawn[:learn]
        rows["validation"] += drawn[learn : learn + choose]
        rows["test"] += drawn[learn + choose :]
    return {split: tuple(sorted(found)) for split, found in rows.items()}


def write_splits(
    root: Path, task_id: str, examples: Examples, splits: Mapping[Split, Sequence[int]]
) -> dict[Split, FileCard]:
    """Write ``tasks/<id>/<split>.parquet`` under ``root`` as :func:`fwviz.tasks.data.load_split` reads it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    cards: dict[Split, FileCard] = {}
    for split, rows in splits.items():
        if isinstance(examples.inputs[0], str):
            inputs = {"text": pa.array([examples.inputs[row] for row in rows], pa.string())}
        else:
            kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            inputs = {"image": pa.array([{"bytes": examples.inputs[row], "path": None} for row in rows], kind)}
        table = pa.table(
            inputs
            | {
                "label": pa.array([examples.labels[row] for row in rows], pa.int64()),
                "source_key": pa.array([examples.names[row] for row in rows], pa.string()),
            }
        )
        memory = io.BytesIO()
        pq.write_table(table, memory)
        content = memory.getvalue()
        path = f"tasks/{task_id}/{split}.parquet"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
        cards[split] = FileCard(path, len(rows), hashlib.sha256(content).hexdigest())
    return cards


def _refuse_archive(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise FwvizError(f"{path.name} cannot be read: {error.strerror}.") from None
    if head.startswith((b"PK", b"\x1f\x8b", b"Rar!", b"7z\xbc\xaf")):
        raise FwvizError(
            f"{path.name} is an archive, but this pool reads texts: give a CSV with the columns text and label."
        )


def _check_classes(title: str, classes: Sequence[str], counts: Mapping[str, int], things: str) -> None:
    if len(classes) == 1:
        raise FwvizError(f"{title} has {things} of one class only ({classes[0][:60]!r}): a task needs at least two.")
    if len(classes) > MAX_CLASSES:
        raise FwvizError(
            f"{title} has {len(classes)} classes, but a task of your own may have {MAX_CLASSES}: take fewer."
        )
    few = min(classes, key=lambda label: counts[label])
    if counts[few] < LEAST:
        raise FwvizError(
            f"class {few[:60]!r} of {title} has {counts[few]} different {things}, but each class needs {LEAST}: add "
            f"some or leave the class out."
        )


def _natural(label: str) -> tuple[int, int, str]:
    """Order of classes: numbers by value, before the others by letters."""
    return (0, int(label), label) if label.isascii() and label.isdigit() and len(label) < 10 else (1, 0, label)
