"""From a file of labelled examples to a task that can be merged for, beside the checkpoints of a pool or one's own."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from fwviz.backbones._texts import count_longer
from fwviz.backbones.families import FAMILIES
from fwviz.backbones.folders import MODEL_FILES, base_folder
from fwviz.cards import CheckpointCard, PoolCard, TaskCard
from fwviz.pools.adapters import is_adapter
from fwviz.pools.base import examine_base, place_of_base, read_base
from fwviz.pools.check import Finding
from fwviz.pools.classifiers import choose_readers, read_reader, readers_of
from fwviz.pools.making import making
from fwviz.pools.open import Pool, close_pools, pool_card
from fwviz.pools.own import Brought, bring_checkpoint, extend_pool, found_pool, free_id, link_or_copy
from fwviz.tasks.evaluators import Evaluator
from fwviz.tasks.own import check_prompts, class_names, read_examples, split_examples, write_splits
from fwviz.tasks.pictures import read_framing
from fwviz.types import SPLITS, FwvizError, Score, Split

PROMPTS = {"images": ("{}", "a picture of a {}"), "texts": ("{}", "this text is about {}")}
MAX_CHECKPOINTS = 64
SCORED: tuple[Split, ...] = ("validation", "test")  # what a card says of its tasks


@dataclass(frozen=True)
class Wish:
    """How a file of examples becomes a task: its title, other names of classes, prompts and the seed of the split."""

    title: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Base:
    """A base of a person's own in the place of a pool: its absolute folder, or its id in the Hub's cache.

    ``title`` is what it is called where its place says nothing.
    """

    place: str
    title: str = ""

    @property
    def called(self) -> str:
        """What it is called in sentences."""
        return self.title or Path(self.place).name


@dataclass(frozen=True)
class OwnPool:
    """A pool that was made: its folder, what was found in the examples, and how good each checkpoint is alone.

    ``labels`` are the classes as the examples call them, in the order of the task's classes; none where other words for
    them would change nothing.
    ``scores`` maps "base" and every checkpoint → split → score on the task; ``best`` is the checkpoint that is best on
    the examples that are not test; ``brought`` reports on the checkpoints a person gave, ``base`` on a base they gave.
    """

    root: Path
    card: PoolCard
    task: TaskCard | None
    said: str = ""
    labels: tuple[str, ...] = ()
    best: str = ""
    scores: dict[str, dict[Split, Score]] = field(default_factory=dict)
    brought: tuple[Brought, ...] = ()
    base: tuple[Finding, ...] = ()


def default_root() -> Path:
    """``FWVIZ_OWN`` or ``~/.cache/fwviz/own``: where the command line keeps what people bring."""
    return Path(os.environ.get("FWVIZ_OWN") or Path.home() / ".cache" / "fwviz" / "own")


def pool_name(parent: str | Base, files: Sequence[Path], wish: Wish) -> str:
    """A name that is the same for the same files and wishes."""
    whole = parent if isinstance(parent, str) else parent.place
    digest = hashlib.sha256(repr((whole, wish.title, sorted(wish.names.items()), wish.prompts, wish.seed)).encode())
    for path in files:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                with file.open("rb") as content:
                    digest.update(hashlib.file_digest(content, "sha256").digest())
    return f"{free_id(files[0].stem, ())[:30]}-{digest.hexdigest()[:10]}"


def own_pool(
    parent: str | Base,
    root: Path,
    *,
    examples: Path | None = None,
    wish: Wish | None = None,
    checkpoints: Sequence[tuple[str, Path]] = (),
    told: Callable[[int, int], None] = lambda done, total: None,
) -> OwnPool:
    """A pool in the new folder ``root`` that adds a task of one's own, or checkpoints, to the pool ``parent``.

    ``parent`` is the name of a pool, the absolute folder of one, or a base alone, which then needs both ``examples``
    and ``checkpoints`` (name, folder or file). ``told`` hears which of the checkpoints has been judged; what it raises
    ends the work. Until all is well there is nothing at ``root``.

    Raises:
        FwvizError: the base is none, the examples are none, no checkpoint fits the base, or there is nothing to add.
    """
    if examples is None and not checkpoints:
        raise FwvizError("there is nothing to add to the pool: give examples of a task, or checkpoints.")
    if len(checkpoints) > MAX_CHECKPOINTS:
        raise FwvizError(f"{len(checkpoints)} checkpoints were given, but {MAX_CHECKPOINTS} are the most: take fewer.")
    with _staged(root) as stage:
        start = _start(parent, stage, checkpoints if examples is not None else ())
        task, said = None, ""
        labels: tuple[str, ...] = ()
        if examples is not None:
            task, said, labels = _add_task(examples, start, stage, wish or Wish())
        brought: list[Brought] = []
        for name, source in checkpoints:
            taken = [*(c.id for c in start.card.checkpoints), *(b.card.id for b in brought if b.card is not None)]
            brought.append(bring_checkpoint(source, name, start.card, stage, taken))
        added = [b.card for b in brought if b.card is not None]
        if checkpoints and not added:
            raise FwvizError(brought[0].sentence())
        card = start.write(stage, () if task is None else (task,), added)
        if task is not None and FAMILIES[card.family].heads == "own":
            task, labels = _read_by_a_checkpoint(card, task, labels), ()
            card = start.write(stage, (task,), added)
            said += f" They are read by the classifier of {task.head}."
        scores: dict[str, dict[Split, Score]] = {}
        best = ""
        if task is None:
            pool = Pool(card)
            for name, folder in ((c.id, card.root / c.path) for c in added):  # which refuses what does not open
                pool.task_vectors([name], "resident" if is_adapter(folder) else "streamed")
        else:
            scores = _judge(card, task.id, told)
            best = max(card.default_checkpoints, key=lambda name: _merit(scores[name]))
            rows = {"base": scores["base"], "individual": scores[best]}
            task = replace(task, accuracy={row: _known(found) for row, found in rows.items()})
            card = start.write(stage, (task,), added, {"best_checkpoint": {task.id: best}})
    close_pools(root)
    return OwnPool(root, pool_card(root), task, said, labels, best, scores, tuple(brought), start.report)


def check_base(base: Base) -> tuple[Finding, ...]:
    """What is found in a base (see :func:`fwviz.pools.base.examine_base`); FwvizError if it can be none."""
    report = examine_base(place_of_base(base.place))
    if report[0].severity == "error":
        raise FwvizError(f"{base.called} cannot be a base: {report[0].text}")
    return report


@dataclass(frozen=True)
class _Start:
    """What is added to: a pool, or with a ``base`` a card that knows of the base only."""

    parent: str
    card: PoolCard
    base: Base | None = None
    report: tuple[Finding, ...] = ()

    def write(
        self,
        root: Path,
        tasks: Sequence[TaskCard],
        checkpoints: Sequence[CheckpointCard],
        training: Mapping[str, Any] | None = None,
    ) -> PoolCard:
        card = self.card
        if self.base is None:
            return extend_pool(self.parent, card, root, tasks=tasks, checkpoints=checkpoints, training=training)
        return found_pool(
            card.base, card.family, card.include, card.exclude, root, tasks=tasks, checkpoints=checkpoints,
            training=training, called=self.base.called,
        )  # fmt: skip


def _start(parent: str | Base, stage: Path, checkpoints: Sequence[tuple[str, Path]]) -> _Start:
    """Open what is added to. ``checkpoints`` come with a task; without both a base makes no pool."""
    if isinstance(parent, str):
        return _Start(parent, pool_card(parent))
    if not checkpoints:
        raise FwvizError("a base alone makes no pool: give checkpoints of it, and examples of a task to judge them.")
    report = check_base(parent)
    folder = place_of_base(parent.place)
    own = read_base(parent.place, classifiers=any(read_reader(name, at, folder) for name, at in checkpoints))
    if "path" in own.base:
        (stage / "base").mkdir(parents=True)
        for file in sorted(folder.iterdir()):
            if any(fnmatch(file.name, pattern) for pattern in MODEL_FILES):
                link_or_copy(file, stage / "base" / file.name)
    card = PoolCard(stage, "base", parent.called, "", own.family, own.base, own.include, own.exclude, (), (), (), ())
    return _Start(parent.place, card, parent, report)


def _add_task(path: Path, start: _Start, stage: Path, wish: Wish) -> tuple[TaskCard, str, tuple[str, ...]]:
    """Read and split the examples and write them; the task's card lacks its accuracies and whose classifier reads it.

    Returns the card, what is said of the examples, and their classes.
    """
    card = start.card
    heads, inputs = FAMILIES[card.family].heads, FAMILIES[card.family].inputs
    framing = read_framing(base_folder(card), card.base["image_size"]) if inputs == "images" else None
    examples = read_examples(path, framing)
    names = class_names(examples, wish.names, plain=heads != "texts")
    prompts = check_prompts(wish.prompts or PROMPTS[inputs]) if heads == "texts" else ()
    splits = split_examples(examples, wish.seed)
    title = " ".join((wish.title or path.stem.replace("_", " ").replace("-", " ")).split())[:80]
    if not title or not title.isprintable():
        raise FwvizError(f"{wish.title[:40]!r} cannot be the title of a task: use letters.")
    chosen = free_id(title, [task.id for task in card.tasks])
    chance = 1 / len(names)
    unknown: dict[str, dict[str, float]] = {row: dict.fromkeys(SCORED, 0.0) for row in ("base", "individual")}
    task = TaskCard(
        id=chosen,
        title=title,
        question=f"Which of {len(names)} classes is it?",
        classes=names,
        prompts=prompts,
        splits=write_splits(stage, chosen, examples, splits),
        chance=round(chance, 6),
        accuracy=unknown,
        source=f"{path.name}, brought by a person; split with seed {wish.seed}",
        licence="not said",
        tags=("own",),
    )
    said = examples.sentence(splits)
    if inputs == "texts":
        said += _cut(card, [text for text in examples.inputs if isinstance(text, str)], names)
    return task, said, examples.classes


def _cut(card: PoolCard, texts: Sequence[str], answers: Sequence[str]) -> str:
    """What is said of texts, and of answers in words, that are longer than what is read of them; often nothing."""
    file, longest = base_folder(card) / "tokenizer.json", card.base["tokens"]
    said = ""
    if more := count_longer(file, texts, longest):
        end = "the beginning" if card.family == "causal_lm" else "the end"
        those = f"{more} of them is" if more == 1 else f"{more} of them are"
        said = f" {those} longer than the {longest} tokens that are read of a text: {end} is cut off."
    if FAMILIES[card.family].heads == "words":
        longest = card.base["answer_tokens"] - 1  # and the end mark
        if more := count_longer(file, answers, longest, special=False):
            those = "1 class has a name" if more == 1 else f"{more} classes have names"
            said += f" {those} of more than {longest} tokens, of which the first {longest} are compared."
    return said


def _read_by_a_checkpoint(card: PoolCard, task: TaskCard, labels: Sequence[str]) -> TaskCard:
    """The task with the checkpoint whose classifier reads it, and the classes as that calls them.

    Of several classifiers that know the labels it is that of the checkpoint which is best alone with its own, on what
    is not the test.
    """
    known = choose_readers(readers_of(card), labels)
    tasks = {name: replace(task, classes=classes, head=name) for name, classes in known.items()}
    if len(tasks) == 1:
        return next(iter(tasks.values()))
    merits = {name: _merit(_alone(replace(card, tasks=(tasks[name],)), task.id, name)) for name in tasks}
    return tasks[max(merits, key=lambda name: merits[name])]


def _alone(card: PoolCard, task: str, name: str) -> dict[Split, Score]:
    """Scores of one checkpoint."""
    pool = Pool(card)
    evaluator = Evaluator(pool.model(), card, [task], pool.heads([task]))
    theta = pool.base + pool.task_vectors([name]).vector(0)
    return {split: evaluator.full(theta, split)[task] for split in SPLITS}


def _judge(card: PoolCard, task: str, told: Callable[[int, int], None]) -> dict[str, dict[Split, Score]]:
    """Scores on every split of the base ("base") and of each checkpoint, one in memory at a time."""
    pool = Pool(card)
    evaluator = Evaluator(pool.model(), card, [task], pool.heads([task]))
    names = ("base", *card.default_checkpoints)
    found: dict[str, dict[Split, Score]] = {}
    for done, name in enumerate(names):
        told(done, len(names))
        theta = pool.base if name == "base" else pool.base + pool.task_vectors([name]).vector(0)
        found[name] = {split: evaluator.full(theta, split)[task] for split in SPLITS}
        if not all(math.isfinite(score.loss) for score in found[name].values()):
            raise FwvizError(f"{name!r} answers with not-a-number on these examples: leave it out.")
    told(len(names), len(names))
    return found


def _known(scores: Mapping[Split, Score]) -> dict[str, float]:
    """What a card says of them."""
    return {split: round(scores[split].accuracy, 6) for split in SCORED}


def _merit(scores: Mapping[Split, Score]) -> tuple[int, float]:
    """How many of the examples for learning and choosing it gets right, then how small its loss on them is."""
    kept = [scores["calibration"], scores["validation"]]
    return sum(round(s.accuracy * s.count) for s in kept), -sum(s.loss * s.count for s in kept)


@contextlib.contextmanager
def _staged(root: Path) -> Iterator[Path]:
    """A folder of the same name to work in, which becomes ``root`` if all goes well and else is gone."""
    with contextlib.ExitStack() as work:
        try:
            stage = work.enter_context(making(root.parent)) / root.name
            stage.mkdir()
        except OSError as error:
            raise FwvizError(f"{root.parent} cannot be written: {error.strerror}.") from None
        yield stage
        if root.exists():
            shutil.rmtree(root)
        stage.rename(root)
