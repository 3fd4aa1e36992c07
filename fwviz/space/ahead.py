"""Reading ahead: one thread makes the next parts ready while the present one is worked on.

On a GPU three things then happen at once: a part is read from disk into pinned memory, the one before is copied to the
device on a stream of its own, and the one before that is multiplied. On the CPU reading overlaps with arithmetic.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch

Item = TypeVar("Item")
Buffers = TypeVar("Buffers")
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Stage(Generic[Buffers]):
    """What one part lies in, and on a GPU when it was ``copied`` there and when it was last ``used``."""

    buffers: Buffers
    copied: Any = None
    used: Any = None


@dataclass
class _Failure:
    """What went wrong in the thread."""

    error: BaseException


class ReadAhead(Generic[Item, Buffers, Result]):
    """``load(item, buffers)`` of each item, in order, made in a thread while earlier results are in use.

    A result lies in one of the ``stages`` and is valid until the next is asked for; never more than these are held, and
    the thread waits while all of them are. An error in the thread is raised where its result is asked for. Leaving the
    ``with`` block ends the thread, whether all results were taken or not.

    On a CUDA device ``load`` runs with a stream for copies as the current one: what it writes to the device from pinned
    memory without waiting is complete when the result is used on the stream of whoever asks. The stages' memory is
    that stream's.
    """

    def __init__(
        self,
        load: Callable[[Item, Buffers], Result],
        items: Iterable[Item],
        stages: Sequence[Buffers],
        device: torch.device,
    ) -> None:
        self._load, self._items, self._device = load, items, device
        self._copies = _copy_stream(device.index) if device.type == "cuda" else None
        self._free: SimpleQueue[_Stage[Buffers] | None] = SimpleQueue()
        self._ready: SimpleQueue[tuple[_Stage[Buffers], Result] | _Failure | None] = SimpleQueue()
        for buffers in stages:
            self._free.put(_Stage(buffers) if self._copies is None else _Stage(buffers, _event(), _event()))
        self._over = False
        self._thread = threading.Thread(target=self._read, name="fwviz-ahead", daemon=True)

    def __enter__(self) -> Iterator[Result]:
        if self._copies is not None:
            # Whoever asks may still be writing to the stages, or to what had their memory before.
            self._copies.wait_stream(torch.cuda.current_stream(self._device))
        self._thread.start()
        return self._results()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over = True
        self._free.put(None)
        self._thread.join()
        if self._copies is not None:
            # The stages' memory goes back to whoever asks: what is done next there waits for copies nobody took.
            torch.cuda.current_stream(self._device).wait_stream(self._copies)

    def _results(self) -> Iterator[Result]:
        while (found := self._ready.get()) is not None:
            if isinstance(found, _Failure):
                raise found.error
            stage, result = found
            if self._copies is None:
                yield result
            else:
                user = torch.cuda.current_stream(self._device)
                user.wait_event(stage.copied)
                yield result
                stage.used.record(user)
            self._free.put(stage)

    def _read(self) -> None:
        """The thread."""
        try:
            with contextlib.nullcontext() if self._copies is None else torch.cuda.stream(self._copies):
                for item in self._items:
                    stage = self._free.get()
                    if self._over or stage is None:
                        return
                    if self._copies is not None:
                        stage.copied.synchronize()  # only then may its pinned memory be written to
                        self._copies.wait_event(stage.used)
                    result = self._load(item, stage.buffers)
                    if self._copies is not None:
                        stage.copied.record(self._copies)
                    self._ready.put((stage, result))
            self._ready.put(None)
        except BaseException as error:  # whatever it is, who waits for a result must hear of it
            self._ready.put(_Failure(error))


def _event() -> Any:
    return torch.cuda.Event()


@lru_cache(maxsize=16)
def _copy_stream(index: int | None) -> Any:
    """One stream per device for all copies: the allocator keeps freed memory per stream."""
    return torch.cuda.Stream(index)
