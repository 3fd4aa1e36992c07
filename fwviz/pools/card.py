"""``pool.yaml`` read as untrusted input: every value is checked once, here, with a message that names file and key."""

from __future__ import annotations

import datetime
import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from fwviz.backbones import open_clip
from fwviz.backbones.families import FAMILIES
from fwviz.backbones.family import Family, Heads
from fwviz.backbones.folders import base_folder
from fwviz.cards import CheckpointCard, FileCard, PoolCard, TaskCard
from fwviz.pools.adapters import WEIGHTS, is_adapter
from fwviz.pools.places import find_pool, is_id
from fwviz.types import METRICS, SPLITS, FwvizError

KINDS = ("own", "weak", "half_classes", "noisy_labels", "foreign_base", "brought")
ROWS = ("base", "individual")
MORE_ROWS = ("mtl",)  # one model trained on all tasks: a card may lack it
SCORED: tuple[str, ...] = ("validation", "test")

_MAX_BYTES = 4 << 20  # of pool.yaml
_MAX_DEPTH = 24
_MAX_CHECKPOINTS, _MAX_TASKS, _MAX_CLASSES, _MAX_PROMPTS = 1024, 1024, 10_000, 256
_MAX_ROWS = 1_000_000
_MAX_PARENTS = 8
REPOSITORY = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/)?[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# libyaml's where PyYAML was built with it: ten times faster.
_SAFE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SAFE):
    """Builds plain data only, and refuses a key that occurs twice instead of keeping the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key.value, str) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} occurs twice", key.start_mark)
            seen.add(str(key.value))
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def load_card(root: Path | str) -> PoolCard:
    """Read and validate ``root/pool.yaml``. No other file is opened; paths are checked to lie inside ``root``.

    A card that ``extends`` another pool, by its name or absolute folder, has that pool's base and rules of merging,
    and its checkpoints and tasks before its own; the paths of what it takes over are absolute.

    Raises:
        FwvizError: the file is missing, too large, no YAML, uses aliases, or a value is missing or out of range.
    """
    return _load(Path(root), 0)


def _load(root: Path, parents: int) -> PoolCard:
    file = root / "pool.yaml"
    top = Node(str(file), "", read_yaml(file))
    if top.count("format", 1, 1_000_000) != 1:
        raise FwvizError(f"{file} has format {top.value['format']}, but this version reads format 1: update fwviz.")
    parent = _parent(top, parents) if "extends" in top.value else None
    family = top.choice("family", tuple(FAMILIES)) if parent is None else parent.family
    heads = FAMILIES[family].heads
    own_checkpoints = top.nodes("checkpoints", _MAX_CHECKPOINTS, optional=parent is not None)
    own_tasks = top.nodes("tasks", _MAX_TASKS, optional=parent is not None)
    checkpoints = tuple(_checkpoint(node, root, heads) for node in own_checkpoints)
    tasks = tuple(_task(node, root, heads) for node in own_tasks)
    if parent is not None:
        checkpoints, tasks = (*parent.checkpoints, *checkpoints), (*parent.tasks, *tasks)
    checkpoint_ids = top.unique("checkpoints", [c.id for c in checkpoints])
    task_ids = top.unique("tasks", [t.id for t in tasks])
    for checkpoint in checkpoints:
        if checkpoint.task not in task_ids and not (checkpoint.kind == "brought" and not checkpoint.task):
            raise FwvizError(f"{file}: checkpoint {checkpoint.id!r} is of the unlisted task {checkpoint.task!r}.")
    for task in tasks:
        if task.head and task.head not in checkpoint_ids:
            raise FwvizError(f"{file}: task {task.id!r} is read by the unlisted checkpoint {task.head!r}.")
    default = top.node("default")
    if parent is None:
        merge, base = top.node("merge"), _base(top.node("base"), root, FAMILIES[family])
        include, exclude = merge.texts("include", 64, 200), merge.texts("exclude", 1024, 200, least=0)
    else:
        base, include, exclude = parent.base, parent.include, parent.exclude
    return PoolCard(
        root=root,
        id=top.identifier("id"),
        title=top.text("title", 200),
        summary=top.text("summary", 4000),
        family=family,
        base=base,
        include=include,
        exclude=exclude,
        checkpoints=checkpoints,
        tasks=tasks,
        default_tasks=default.choices("tasks", task_ids),
        default_checkpoints=default.choices("checkpoints", checkpoint_ids),
        sources=tuple(node.plain() for node in top.nodes("sources", 10_000, optional=True)),
        training=top.node("training").plain() if "training" in top.value else {},
        phenomena=tuple(node.plain() for node in top.nodes("phenomena", 1000, optional=True)),
    )


def _parent(top: Node, parents: int) -> PoolCard:
    """The card of the pool that is extended, with absolute paths."""
    name = top.text("extends", 1000)
    if parents == _MAX_PARENTS:
        raise FwvizError(f"{top.file}: pools extend each other {parents} times over: extend the first of them.")
    if not is_id(name) and not Path(name).is_absolute():
        raise top.wrong("extends", name, "the name or the absolute folder of a pool")
    root = find_pool(name).resolve()
    card = _load(root, parents + 1)
    base = card.base | ({"path": str(root / card.base["path"])} if "path" in card.base else {})
    return replace(
        card,
        base=base,
        checkpoints=tuple(replace(c, path=str(root / c.path)) for c in card.checkpoints),
        tasks=tuple(
            replace(t, splits={split: replace(file, path=str(root / file.path)) for split, file in t.splits.items()})
            for t in card.tasks
        ),
    )


def verify(card: PoolCard) -> list[str]:
    """Read every file of the pool and compare its SHA-256 with the card: one sentence per problem."""
    base = base_folder(card)
    expected = [(base / weights_name(base), card.base["sha256"])]
    expected += [(card.root / c.path / weights_name(card.root / c.path), c.sha256) for c in card.checkpoints]
    expected += [(card.root / file.path, file.sha256) for task in card.tasks for file in task.splits.values()]
    problems = []
    for path, sha256 in expected:
        try:
            check_sha256(path, sha256)
        except FwvizError as error:
            problems.append(str(error))
    return problems


def weights_name(folder: Path) -> str:
    """The file whose SHA-256 a card gives for a checkpoint: the weights, an adapter's, or the index of shards."""
    if is_adapter(folder):
        return WEIGHTS
    others = (open_clip.WEIGHTS, "model.safetensors.index.json")
    return next((name for name in ("model.safetensors", *others) if (folder / name).is_file()), "model.safetensors")


def check_sha256(path: Path, sha256: str) -> None:
    """Raise FwvizError if the file is missing or its bytes have another SHA-256."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FwvizError(f"{path} cannot be read: {error.strerror}.") from None
    if found != sha256:
        raise FwvizError(f"{path} is not the file its pool card describes (SHA-256 {found[:12]}…): restore the pool.")


# --- parts of the card --------------------------------------------------------------------------


def _base(node: Node, root: Path, family: Family) -> dict[str, Any]:
    base: dict[str, Any] = _place(node, root) | {
        "sha256": node.sha256("sha256"),
        "parameters": node.count("parameters", 1, 10**12),
        "licence": node.text("licence", 200),
    }
    if family.inputs == "images":
        return base | {"image_size": node.count("image_size", 1, 4096)}
    base["tokens"] = node.count("tokens", 2, 1 << 16)  # at which texts are cut
    if family.heads == "texts":  # logits are so many times the cosine of text and class
        base["scale"] = node.number("scale", 1, 1000)
    if family.heads == "words":  # at which answers are cut
        base["answer_tokens"] = node.count("answer_tokens", 1, 4096)
    return base


def _place(node: Node, root: Path) -> dict[str, Any]:
    """Where the base lies: ``path`` in the pool, or ``hub`` with, at will, the ``package`` that carries it."""
    if "hub" not in node.value:
        return {"path": node.path("path", root)}
    place: dict[str, Any] = {"hub": node.repository("hub")}
    if "package" in node.value:
        package = node.node("package")
        module = package.text("module", 100)
        if not module.isidentifier():
            raise package.wrong("module", module, "the name of a Python package")
        place["package"] = {
            "name": package.identifier("name"),
            "module": module,
            "folder": package.path("folder", root),
        }
    return place


def _checkpoint(node: Node, root: Path, heads: Heads) -> CheckpointCard:
    kind = node.choice("kind", KINDS)
    # Of a checkpoint that a person brought it is not known what it was made for, nor how good it is at that.
    known = kind != "brought"
    low = 0.0 if heads == "texts" else -1.0
    return CheckpointCard(
        id=node.identifier("id"),
        title=node.text("title", 200),
        path=node.path("path", root),
        sha256=node.sha256("sha256"),
        task=node.identifier("task") if known or "task" in node.value else "",
        kind=kind,
        note=node.text("note", 2000, optional=True),
        accuracy=node.node("accuracy").accuracy(low) if known or "accuracy" in node.value else {},
    )


def _task(node: Node, root: Path, heads: Heads) -> TaskCard:
    splits, accuracy = node.node("splits"), node.node("accuracy")
    metric = next(m for m in METRICS if m == node.choice("metric", METRICS)) if "metric" in node.value else "accuracy"
    low = -1.0 if heads != "texts" else 0.0  # a correlation may be negative
    # Without classes a classifier predicts a number and a model that writes gives a free answer.
    free = heads != "texts" and "classes" not in node.value
    return TaskCard(
        id=node.identifier("id"),
        title=node.text("title", 200),
        question=node.text("question", 500),
        classes=() if free else node.unique("classes", node.texts("classes", _MAX_CLASSES, 300, least=2)),
        prompts=_prompts(node) if heads == "texts" else (),
        splits={split: _file(splits.node(split), root) for split in SPLITS},
        chance=node.fraction("chance"),
        accuracy={
            row: accuracy.node(row).accuracy(low) for row in (*ROWS, *MORE_ROWS) if row in ROWS or row in accuracy.value
        },
        source=node.text("source", 2000),
        licence=node.text("licence", 500),
        tags=node.texts("tags", 64, 100, least=0) if "tags" in node.value else (),
        metric=metric,
        head=node.text("head", 64, optional=True),
    )


def _file(node: Node, root: Path) -> FileCard:
    return FileCard(node.path("path", root), node.count("rows", 1, _MAX_ROWS), node.sha256("sha256"))


def _prompts(node: Node) -> tuple[str, ...]:
    prompts = node.texts("prompts", _MAX_PROMPTS, 300)
    for prompt in prompts:
        if "{}" not in prompt:
            raise node.wrong("prompts", prompt, "a text with {} where the class name goes")
    return prompts


@dataclass(frozen=True)
class Node:
    """A mapping of the card and where it stands, for messages."""

    file: str
    place: str
    value: Mapping[str, Any]

    def wrong(self, key: str, value: Any, wanted: str) -> FwvizError:
        return FwvizError(f"{self.file}: {self._at(key)} is {_short(value)}, but must be {wanted}.")

    def get(self, key: str) -> Any:
        if key not in self.value:
            raise FwvizError(f"{self.file}: {self._at(key)} is missing.")
        return self.value[key]

    def node(self, key: str) -> Node:
        return self._child(key, self.get(key))

    def nodes(self, key: str, most: int, *, optional: bool = False) -> tuple[Node, ...]:
        if optional and key not in self.value:
            return ()
        values = self._list(key, most, 0 if optional else 1)
        return tuple(self._child(f"{key}[{i}]", value) for i, value in enumerate(values))

    def text(self, key: str, longest: int, *, optional: bool = False) -> str:
        if optional and key not in self.value:
            return ""
        return self._text(key, self.get(key), longest, least=0 if optional else 1)

    def texts(self, key: str, most: int, longest: int, *, least: int = 1) -> tuple[str, ...]:
        return tuple(
            self._text(f"{key}[{i}]", value, longest, least=1) for i, value in enumerate(self._list(key, most, least))
        )

    def choice(self, key: str, known: tuple[str, ...]) -> str:
        value = self.get(key)
        if not isinstance(value, str) or value not in known:
            raise self.wrong(key, value, f"one of {', '.join(known)}")
        return value

    def choices(self, key: str, known: tuple[str, ...]) -> tuple[str, ...]:
        values = self.unique(key, self.texts(key, len(known), 64))
        for value in values:
            if value not in known:
                raise FwvizError(f"{self.file}: {self._at(key)} names {value!r}, which the card does not list.")
        return values

    def unique(self, key: str, values: list[str] | tuple[str, ...]) -> tuple[str, ...]:
        seen: set[str] = set()
        for value in values:
            if value in seen:
                raise FwvizError(f"{self.file}: {self._at(key)} lists {value!r} twice.")
            seen.add(value)
        return tuple(values)

    def identifier(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str) or not is_id(value):
            raise self.wrong(key, value, "an id of letters, digits and _ . + - (64 at most)")
        return value

    def repository(self, key: str) -> str:
        """The id of a repository on the Hub."""
        value = self.get(key)
        self.check_repository(key, value)
        return str(value)

    def check_repository(self, key: str, value: Any) -> None:
        """Raise FwvizError unless ``value`` is the id of a repository on the Hub."""
        if not isinstance(value, str) or not REPOSITORY.fullmatch(value) or ".." in value or "--" in value:
            raise self.wrong(key, value, "the id of a repository on the Hub, owner/name")

    def sha256(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str) or not _SHA256.fullmatch(value):
            raise self.wrong(key, value, "a SHA-256 of 64 lower-case hex digits")
        return value

    def count(self, key: str, low: int, high: int) -> int:
        value = self.get(key)
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(key, value, f"a whole number from {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float) -> float:
        value = self.get(key)
        if type(value) not in (int, float) or not (math.isfinite(value) and low <= value <= high):
            raise self.wrong(key, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def fraction(self, key: str) -> float:
        return self.number(key, 0, 1)

    def accuracy(self, low: float = 0.0) -> dict[str, float]:
        """Split → score, of at least ``low``."""
        return {split: self.number(split, low, 1) for split in SCORED}

    def path(self, key: str, root: Path) -> str:
        """A relative path in POSIX form that stays inside ``root``, symbolic links followed."""
        value = self.text(key, 500)
        parts = value.split("/")
        if "\\" in value or ":" in value or any(part in ("", ".", "..") for part in parts):
            raise self.wrong(key, value, "a relative path with / inside the pool's folder")
        if not (root / value).resolve().is_relative_to(root.resolve()):
            raise FwvizError(
                f"{self.file}: {self._at(key)} leads out of the pool's folder by a link: copy the file in."
            )
        return value

    def plain(self) -> dict[str, Any]:
        """The mapping as plain JSON data, for parts the card only reports."""
        return {key: self._plain(key, value) for key, value in self.value.items()}

    def _plain(self, key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {inner: self._plain(f"{key}.{inner}", item) for inner, item in self._child(key, value).value.items()}
        if isinstance(value, list):
            return [self._plain(f"{key}[{i}]", item) for i, item in enumerate(value)]
        if isinstance(value, datetime.date):  # datetime is one too
            return value.isoformat()
        if isinstance(value, float) and not math.isfinite(value):
            raise self.wrong(key, value, "finite")
        if value is None or isinstance(value, (str, bool, int, float)):
            return value
        raise self.wrong(key, value, "plain text, a number, a list or a mapping")

    def _at(self, key: str) -> str:
        return f"{self.place}.{key}" if self.place else key

    def _child(self, key: str, value: Any) -> Node:
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise self.wrong(key, value, "a mapping with text keys")
        return Node(self.file, self._at(key), value)

    def _list(self, key: str, most: int, least: int) -> list[Any]:
        value = self.get(key)
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise self.wrong(key, value, f"a list of {least} to {most} entries")
        return value

    def _text(self, key: str, value: Any, longest: int, least: int) -> str:
        if not isinstance(value, str):
            raise self.wrong(key, value, "text: put it in quotes")
        if not least <= len(value.strip()) or len(value) > longest:
            raise self.wrong(key, value, f"a text of {least} to {longest} characters")
        if any(ord(letter) < 32 and letter not in "\n\t" for letter in value):
            raise self.wrong(key, value, "free of control characters")
        return value


def _short(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)} entries"
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "…"


# --- YAML ---------------------------------------------------------------------------------------


def read_yaml(file: Path) -> dict[str, Any]:
    """Parse one mapping. Aliases are refused: with them a short file becomes a huge one ("billion laughs")."""
    try:
        size = file.stat().st_size
        if size > _MAX_BYTES:
            raise FwvizError(f"{file} has {size >> 20} MiB, but a pool card has at most {_MAX_BYTES >> 20} MiB.")
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FwvizError(f"{file} is missing: {file.parent} is no pool.") from None
    except OSError as error:
        raise FwvizError(f"{file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise FwvizError(f"{file} is not UTF-8 text: save it again.") from None
    try:
        for event, depth in _events(text):
            if isinstance(event, yaml.AliasEvent):
                raise FwvizError(
                    f"{file}: line {event.start_mark.line + 1} uses a YAML alias, which cards may not: write it out."
                )
            if depth > _MAX_DEPTH:
                raise FwvizError(f"{file}: line {event.start_mark.line + 1} is nested deeper than {_MAX_DEPTH} levels.")
        value = yaml.load(text, Loader=_Loader)
    except FwvizError:
        raise
    # PyYAML's constructors leak KeyError, IndexError, AttributeError … on values such as "!!bool x".
    except Exception as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark is not None else ""
        what = " ".join(str(getattr(error, "problem", None) or type(error).__name__).split())[:100]
        raise FwvizError(f"{file} is no valid YAML{where}: {what}.") from None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise FwvizError(f"{file} holds no mapping with text keys: it is no pool card.")
    return value


def _events(text: str) -> Iterator[tuple[yaml.Event, int]]:
    """The parser's events with their depth; nothing is built from them."""
    depth = 0
    for event in yaml.parse(text, Loader=_SAFE):
        depth += isinstance(event, yaml.CollectionStartEvent)
        yield event, depth
        depth -= isinstance(event, yaml.CollectionEndEvent)
