"""Opening pools: one shared, read-only :class:`Pool` per folder, its files read only when something needs them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fwviz.backbones.families import FAMILIES
from fwviz.backbones.family import Architecture, Backbone, Classifier, HeadMaker, MakesHeads, Model
from fwviz.backbones.folders import base_folder
from fwviz.backbones.open_clip import is_open_clip
from fwviz.backbones.sequence_classifier import read_class_names
from fwviz.cards import PoolCard, TaskCard
from fwviz.pools.adapters import AdapterFile, is_adapter
from fwviz.pools.card import check_sha256, load_card, weights_name
from fwviz.pools.places import find_pool, pool_folders
from fwviz.space.cache import ByteCache
from fwviz.space.files import CheckpointFile, ModelFiles, first_nonfinite
from fwviz.space.layout import build_layout, flatten, unflatten
from fwviz.space.lowrank import LowRankTaskVectors, Part
from fwviz.space.vectors import ResidentTaskVectors, StreamedTaskVectors
from fwviz.space.wide import minus
from fwviz.types import FwvizError, ParamLayout, TaskVectors

Storage = Literal["resident", "streamed"]

_OPEN_POOLS = 4
# Files up to this size are hashed whenever they are read; for larger ones that would cost more than the work itself,
# and verify() is there.
_HASH_LIMIT = 64 << 20
_MATRIX_CACHE = 256 << 20  # bytes of task vectors kept for the next run, per pool
_HALVES = {torch.float16, torch.bfloat16}
_KEPT_HEAD_MAKER = 8_000_000  # parameters of a head maker that stays in memory

_lock = threading.Lock()
_open: OrderedDict[tuple[Path, int, int], Pool] = OrderedDict()


def pool_ids() -> tuple[str, ...]:
    """The pools that can be opened by name: folders with a ``pool.yaml`` in ``FWVIZ_POOLS`` and in ``assets/pools``."""
    return tuple(pool_folders())


def first_pool() -> str:
    """The pool that is meant where none is named: the first by name that carries its own base, so that it opens here.

    Raises:
        FwvizError: there is no pool.
    """
    names = pool_ids()
    if not names:
        raise FwvizError("there is no pool of checkpoints here: set FWVIZ_POOLS to a folder that holds one.")
    return next((name for name in names if _carries_its_base(name)), names[0])


def pool_card(id_or_path: str | Path) -> PoolCard:
    """The card of a pool, whose base need not be on this machine; of a card of the Hub what of it is here."""
    listed = _on_the_hub(id_or_path)
    if listed is not None:
        return listed
    root = find_pool(id_or_path)
    try:
        stat = (root / "pool.yaml").stat()
    except OSError:
        return load_card(root)  # which says what is wrong
    return _read_card(root, stat.st_mtime_ns, stat.st_size)


def missing_base(card: PoolCard) -> str:
    """The sentence that says how to get the base of a pool; empty where it is on this machine."""
    try:
        base_folder(card)
    except FwvizError as error:
        return str(error)
    return ""


def open_pool(id_or_path: str | Path) -> Pool:
    """The pool of that name, or in that folder (a ``Path``, or a text that holds a path separator).

    It may be a card of the Hub, by id or ``.yaml`` file, as far as its files are in the Hub's cache. The same object
    for every caller until ``pool.yaml`` or the cache changes; the last few pools stay open. From any thread.

    Raises:
        FwvizError: there is no such pool, its card is wrong, or its base is damaged or does not fit the card.
    """
    listed = _on_the_hub(id_or_path)
    if listed is not None:
        root, key = listed.root, (listed.root / listed.id, hash(repr(listed)), 0)
    else:
        root = find_pool(id_or_path)
        try:
            stat = (root / "pool.yaml").stat()
        except OSError:
            raise FwvizError(f"{root} holds no pool.yaml: give the folder of a pool.") from None
        key = (root.resolve(), stat.st_mtime_ns, stat.st_size)
    with _lock:
        if key not in _open:
            _open[key] = Pool(listed or load_card(root))
        _open.move_to_end(key)
        while len(_open) > _OPEN_POOLS:
            _open.popitem(last=False)
        return _open[key]


def close_pools(root: Path) -> None:
    """Forget the opened pools of a folder, or in it; who works with one keeps it to the end."""
    with _lock:
        for key in [key for key in _open if key[0].is_relative_to(root.resolve())]:
            del _open[key]


def _on_the_hub(id_or_path: str | Path) -> PoolCard | None:
    """What is on this machine of a card of the Hub; None for a pool of this machine and for what is neither."""
    from fwviz.pools.hub import hub_card_ids, load_hub_card
    from fwviz.pools.hub_pool import hub_pool_card

    name = str(id_or_path)
    if name.endswith(".yaml") and Path(name).is_file():
        return hub_pool_card(load_hub_card(Path(name)))
    if isinstance(id_or_path, Path) or name in pool_ids() or name not in hub_card_ids():
        return None
    return hub_pool_card(load_hub_card(name))


@lru_cache(maxsize=64)
def _read_card(root: Path, changed: int, size: int) -> PoolCard:
    """A card, read again when the file changes: pages list every pool."""
    return load_card(root)


def _carries_its_base(name: str) -> bool:
    try:
        return "path" in pool_card(name).base
    except FwvizError:
        return False


class Pool:
    """A base, checkpoints and tasks, opened. Shared by all jobs: nothing in it changes once it is read."""

    def __init__(self, card: PoolCard) -> None:
        """Reads the base's header and configuration only."""
        self.card = card
        self.base_dir = base_folder(card)
        self._lock = threading.RLock()
        self._encoder: dict[str, Tensor] | None = None
        self._base: Tensor | None = None
        self._heads: dict[str, Tensor | Classifier] = {}
        self._head_maker: HeadMaker | None = None
        self._matrices: ByteCache[Tensor] = ByteCache(_MATRIX_CACHE)
        self._checked: set[str] = set()

        self._family = FAMILIES[card.family]
        self.architecture: Architecture = self._family.read(self.base_dir, card.base)
        file = self._base_file()
        shapes = {name: info.shape for name, info in file.tensors.items()}
        file.close()
        self._shapes = shapes
        adapters = [c.id for c in card.checkpoints if is_adapter(card.root / c.path)]
        self.all_adapters = len(adapters) == len(card.checkpoints)
        changed = frozenset().union(*(self.adapter(name).changes for name in adapters)) if self.all_adapters else None
        # A tied tensor is merged once, whatever names it is saved under, and what is no weight, such as a mask, never.
        single = self.architecture.tensors if self._family.heads == "words" else shapes
        self.layout: ParamLayout = build_layout(single, card.include, card.exclude, changed)
        for name in self.layout.names:
            if name not in self.architecture.tensors:
                raise FwvizError(f"pool {card.id!r}: merge.include takes in {name!r}, which is not in the encoder.")

    @property
    def checkpoint_ids(self) -> tuple[str, ...]:
        return tuple(c.id for c in self.card.checkpoints)

    @property
    def task_ids(self) -> tuple[str, ...]:
        return tuple(t.id for t in self.card.tasks)

    @property
    def base(self) -> Tensor:
        """θ₀ as a flat (P,) vector: in half precision if all of it was saved so, else float32. Never write to it."""
        self._read_base()
        assert self._base is not None
        return self._base

    @property
    def base_name(self) -> str:
        """What others call the base: its id on the Hub, else its folder."""
        path = Path(self.card.base.get("path", ""))
        return str(self.card.base.get("hub") or (path.name if path.is_absolute() else path))

    def base_tensors(self) -> dict[str, Tensor]:
        """Every tensor of the base, merged or not, in its saved dtype; read anew."""
        file = self._base_file()
        try:
            return {name: file.read(name) for name in file.tensors}
        finally:
            file.close()

    def model(self, device: torch.device | str = "cpu") -> Model:
        """A new model at the base's weights, bound to the pool's layout; one per job."""
        model = self.architecture.backbone(self._read_base(), device)
        model.bind(self.layout)
        return model

    def backbone(self, device: torch.device | str = "cpu") -> Backbone:
        """The same for a pool whose model makes features; FwvizError where it answers in words."""
        model = self.model(device)
        if not isinstance(model, Backbone):
            raise FwvizError(f"the model of pool {self.card.id!r} answers in words, so it has no features to look at.")
        return model

    def heads(self, task_ids: Sequence[str]) -> dict[str, Tensor | Classifier]:
        """Task → its head, float32 on the CPU, read-only; made or read once.

        Unit class embeddings (C, D) made by the base, or the classifier of the task's own checkpoint. Empty for a model
        that answers in words. Raises FwvizError if a task has no checkpoint with a classifier that fits its classes.
        """
        tasks = [self.card.task(task_id) for task_id in task_ids]
        if self._family.heads == "words":
            return {}
        with self._lock:
            missing = [task for task in tasks if task.id not in self._heads]
            if missing:
                own = self._family.own_head is not None
                self._heads |= {t.id: self._own_head(t) for t in missing} if own else self._made_heads(missing)
            return {task.id: self._heads[task.id] for task in tasks}

    def task_vectors(
        self,
        checkpoints: Sequence[str],
        storage: Storage = "resident",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> TaskVectors:
        """Task vectors of some checkpoints, in the order given.

        Args:
            storage: ``resident`` holds them in memory as ``dtype`` on ``device``; ``streamed`` reads them from disk at
                every use, to be worked on in float32 on ``device``. A pool of adapters keeps their factors in memory in
                either case.

        Raises:
            FwvizError: a checkpoint is unknown, listed twice, damaged, of another architecture or not finite.
        """
        ids = tuple(checkpoints)
        for name in ids:
            self.card.checkpoint(name)
            if ids.count(name) > 1:
                raise FwvizError(f"checkpoint {name!r} is listed twice: list each one once.")
        if not ids:
            raise FwvizError("there is no checkpoint to merge: choose at least one.")
        where = torch.device(device)
        if self.all_adapters:
            return self._low_rank(ids, dtype, where)
        if storage == "streamed":
            if self.lean_storage(ids) != "streamed":
                raise FwvizError("adapters beside whole checkpoints cannot be streamed: set storage to resident.")
            files = [self._checkpoint(name) for name in ids]
            for name, file in zip(ids, files, strict=True):
                self._require_finite(name, file)
            return StreamedTaskVectors(self.layout, ids, self.base.to(where), files)
        matrix = self._matrices.get((ids, dtype, where), lambda: self._matrix(ids, dtype, where), _bytes)
        return ResidentTaskVectors(self.layout, ids, self.base.to(where), matrix)

    def lean_storage(self, checkpoints: Sequence[str]) -> Storage:
        """The storage that holds least of some checkpoints in memory: ``streamed`` unless there is an adapter."""
        return "resident" if any(is_adapter(self._folder(name)) for name in checkpoints) else "streamed"

    # --- files ------------------------------------------------------------------------------------

    def _made_heads(self, tasks: Sequence[TaskCard]) -> dict[str, Tensor]:
        """Heads the base makes of class names and prompts."""
        assert isinstance(self.architecture, MakesHeads)
        maker = self._head_maker or self.architecture.head_maker()
        # A small one waits for the next choice of tasks; a large one is not worth its memory.
        self._head_maker = maker if maker.parameters <= _KEPT_HEAD_MAKER else None
        heads = {task.id: maker.heads(task.classes, task.prompts) for task in tasks}
        for task, head in heads.items():
            if not head.isfinite().all():
                raise FwvizError(f"the base of pool {self.card.id!r} makes no finite head for {task!r}.")
        return heads

    def _own_head(self, task: TaskCard) -> Classifier:
        """The classifier of the task's own checkpoint, its rows in the order of the task's classes."""
        assert self._family.own_head is not None
        owners = sorted((c for c in self.card.checkpoints if c.task == task.id), key=lambda c: c.kind != "own")
        owners = [self.card.checkpoint(task.head)] if task.head else owners
        if not owners:
            raise FwvizError(f"task {task.id!r} has no checkpoint in pool {self.card.id!r} that brings its classifier.")
        folder = self._folder(owners[0].id)
        self._check_hash(folder, owners[0].sha256)
        head = self._family.own_head(folder, self.base_dir)
        width = next(iter(self.architecture.tensors.values()))[-1]
        if head.dense_weight.shape[1] != width or head.bias.shape[0] != max(len(task.classes), 1):
            raise FwvizError(
                f"the classifier of checkpoint {owners[0].id!r} gives {head.bias.shape[0]} outputs for width "
                f"{head.dense_weight.shape[1]}, but task {task.id!r} has {len(task.classes)} classes and the base "
                f"width {width}: correct the card's classes or the checkpoint."
            )
        order = matching_order(read_class_names(folder), task.classes)
        return head if order is None else replace(head, weight=head.weight[order], bias=head.bias[order])

    def _base_file(self) -> ModelFiles:
        return ModelFiles(self.base_dir)

    def _read_base(self) -> dict[str, Tensor]:
        """The encoder's tensors, all float32 but the merged ones, which are views of ``base``."""
        with self._lock:
            if self._encoder is None:
                self._check_hash(self.base_dir, self.card.base["sha256"])
                file = self._base_file()
                tensors = {name: file.read(name) for name in self.architecture.tensors}
                file.close()
                for name, tensor in tensors.items():
                    if not tensor.float().isfinite().all():  # float64 may hold what is infinite in float32
                        raise FwvizError(f"{file.path}: tensor {name!r} holds NaN or infinity: restore the pool.")
                # Half the memory, and no digit less, where the file has no more.
                found = {tensors[name].dtype for name in self.layout.names}
                saved = found.pop() if len(found) == 1 and found <= _HALVES else torch.float32
                self._base = flatten(self.layout, tensors, saved)
                merged = unflatten(self.layout, self._base)
                self._encoder = {n: merged[n] if n in merged else tensor.float() for n, tensor in tensors.items()}
            return self._encoder

    def _folder(self, name: str) -> Path:
        return self.card.root / self.card.checkpoint(name).path

    def adapter(self, name: str) -> AdapterFile:
        """Open one adapter and compare it with the base."""
        self._check_hash(self._folder(name), self.card.checkpoint(name).sha256)
        try:
            return AdapterFile(self._folder(name), self._shapes)
        except FwvizError as error:
            raise FwvizError(f"checkpoint {name!r}: {error}") from None

    def _parts(self, name: str, dtype: torch.dtype) -> dict[str, Part]:
        """What an adapter adds to the merged tensors."""
        file = self.adapter(name)
        try:
            return file.read(unflatten(self.layout, self.base), dtype)
        except FwvizError as error:
            raise FwvizError(f"checkpoint {name!r}: {error}") from None
        finally:
            file.file.close()

    def _low_rank(self, ids: Sequence[str], dtype: torch.dtype, device: torch.device) -> LowRankTaskVectors:
        if device.type == "mps":
            raise FwvizError("adapters are added up in float64, which mps does not have: set device to cpu.")
        return LowRankTaskVectors(self.layout, ids, self.base.to(device), [self._parts(name, dtype) for name in ids])

    def _checkpoint(self, name: str) -> CheckpointFile:
        """Open one checkpoint and compare it with the base: hash, architecture, tensors."""
        folder = self._folder(name)
        self._check_hash(folder, self.card.checkpoint(name).sha256)
        own = self._family.facts(folder)
        for key, value in self.architecture.facts.items():
            if own.get(key) != value:
                raise FwvizError(
                    f"checkpoint {name!r} is of another architecture: its {key} is {own.get(key)}, the base's {value}."
                )
        file = self._family.checkpoint(folder, self.layout)
        # open_clip's names are compared when they are read; heads and second names are no part of the merge.
        whole = self._family.heads == "texts" and not is_open_clip(folder)
        extra = [
            tensor
            for tensor in (file.tensors if whole else ())
            if tensor not in self._shapes and not tensor.endswith(".position_ids")
        ]
        if extra:
            raise FwvizError(
                f"checkpoint {name!r} has a tensor {extra[0]!r} that the base lacks: it is of another model."
            )
        return file

    def _check_hash(self, folder: Path, sha256: str) -> None:
        path = folder / weights_name(folder)
        key = str(path)
        if key not in self._checked and path.is_file() and path.stat().st_size <= _HASH_LIMIT:
            check_sha256(path, sha256)
            self._checked.add(key)

    def _require_finite(self, name: str, file: CheckpointFile) -> None:
        key = f"{file.path}: finite"
        if key not in self._checked:
            bad = file.first_nonfinite()
            if bad is not None:
                raise _not_finite(name, bad)
            self._checked.add(key)

    def _matrix(self, ids: Sequence[str], dtype: torch.dtype, device: torch.device) -> Tensor:
        """(n, P) task vectors, read one checkpoint at a time."""
        matrix = torch.empty(len(ids), self.layout.size, dtype=dtype, device=device)
        row = torch.empty(self.layout.size)
        for i, name in enumerate(ids):
            if is_adapter(self._folder(name)):
                parts = [self._parts(name, torch.float32)]
                matrix[i] = LowRankTaskVectors(self.layout, [name], self.base, parts).vector(0)
                continue
            file = self._checkpoint(name)
            raw = torch.empty(self.layout.size * file.itemsize, dtype=torch.uint8)
            file.read_flat(0, self.layout.size, row, raw)
            bad = first_nonfinite(self.layout, row)
            if bad is not None:
                raise _not_finite(name, bad)
            matrix[i] = minus(row, self.base, row)
        return matrix


def _not_finite(checkpoint: str, tensor: str) -> FwvizError:
    return FwvizError(f"checkpoint {checkpoint!r} holds NaN or infinity in {tensor!r}: leave it out or restore it.")


def matching_order(own: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """Where each wanted name stands among a checkpoint's own, if these are the same names; None to keep their order.

    Names are compared without regard to case, spaces and signs: ``NOT_ENTAILMENT`` is ``not entailment``.
    """
    own, wanted = (["".join(filter(str.isalnum, name.casefold())) for name in names] for names in (own, wanted))
    if sorted(own) != sorted(wanted) or len(set(own)) < len(own) or own == wanted:
        return None
    return [own.index(name) for name in wanted]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
