"""The classifiers that checkpoints bring along, and which of them can read a task of a person's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fwviz.backbones.folders import base_folder
from fwviz.backbones.sequence_classifier import read_class_names, read_head
from fwviz.cards import PoolCard
from fwviz.pools.adapters import is_adapter
from fwviz.types import FwvizError

_SHOWN = 6


@dataclass(frozen=True)
class Reader:
    """A checkpoint's classifier: how many classes it tells apart, and what its configuration calls them, if it does."""

    checkpoint: str
    outputs: int
    names: tuple[str, ...]

    @property
    def said(self) -> str:
        """What it answers, in words."""
        if self.outputs == 1:
            return "a number"
        more = f" and {self.outputs - _SHOWN} more" if self.outputs > _SHOWN else ""
        return ", ".join(self.names[:_SHOWN]) + more if self.names else f"{self.outputs} classes without names"

    def classes(self, labels: Sequence[str]) -> tuple[str, ...]:
        """What the labels of a file mean to it, in their order; empty if they are not its own.

        They are its names, without regard to case, spaces and signs, or the numbers 0, 1, … of its outputs.
        """
        if len(labels) != self.outputs:
            return ()
        if list(labels) == [str(i) for i in range(self.outputs)]:
            return self.names or tuple(labels)
        plain = [["".join(filter(str.isalnum, name.casefold())) for name in names] for names in (labels, self.names)]
        return tuple(labels) if sorted(plain[0]) == sorted(plain[1]) and len(set(plain[0])) == len(labels) else ()


def read_reader(checkpoint: str, place: Path, base: Path) -> Reader | None:
    """The classifier in a checkpoint's folder or file; None if it has none that can be read.

    An adapter that does not say what its outputs are called calls them as the base it was trained on does.
    """
    try:
        head = read_head(place, base)
        names = read_class_names(place) or (read_class_names(base) if is_adapter(place) else ())
    except FwvizError:
        return None
    outputs = head.bias.shape[0]
    return Reader(checkpoint, outputs, names if len(names) == outputs else ())


def readers_of(card: PoolCard) -> tuple[Reader, ...]:
    """The classifiers of all checkpoints of a pool."""
    base = base_folder(card)
    found = (read_reader(c.id, card.root / c.path, base) for c in card.checkpoints)
    return tuple(reader for reader in found if reader is not None)


def choose_readers(readers: Iterable[Reader], labels: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """Checkpoint → what it calls the labels, for those whose classifier can read a task with these labels.

    Raises:
        FwvizError: there is none; the sentence says which labels there may be.
    """
    known = list(readers)
    found = {reader.checkpoint: reader.classes(labels) for reader in known}
    fitting = {name: classes for name, classes in found.items() if classes}
    if not fitting:
        theirs = "; ".join(f"{reader.checkpoint}: {reader.said}" for reader in known[:_SHOWN]) or "there are none"
        shown = ", ".join(labels[:_SHOWN]) + (f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else "")
        raise FwvizError(
            f"no checkpoint brings a classifier for the labels {shown} ({theirs}): call them as one of these "
            f"classifiers does, or 0, 1, … in its order."
        )
    return fitting
