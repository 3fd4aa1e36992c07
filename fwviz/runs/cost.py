"""What a run costs: active seconds, memory above the start, and the machine it ran on."""

from __future__ import annotations

import os
import platform
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType

import torch

_STATM = Path("/proc/self/statm")


class MemoryWatch:
    """Peak memory in bytes above the level at ``__enter__``, sampled 20 times a second.

    On cuda: the allocator's own peak. Else: resident memory of the process from /proc (0 where there is none), so it
    also sees what other threads allocate.
    """

    def __init__(self, device: str) -> None:
        where = torch.device(device)
        present = where.type == "cuda" and (where.index or 0) < torch.cuda.device_count()
        self._cuda = where if present else None
        self._start = self._peak = 0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> MemoryWatch:
        if self._cuda is not None:
            torch.cuda.init()  # before anything was done there its allocator knows no device
            torch.cuda.reset_peak_memory_stats(self._cuda)
        self._start = self._peak = self._now()
        if self._cuda is None and self._start:
            self._thread = threading.Thread(target=self._sample, name="fwviz-memory", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def peak_bytes(self) -> int:
        """Bytes above the start, at most so far."""
        self._peak = max(self._peak, self._now())
        return self._peak - self._start

    def _now(self) -> int:
        if self._cuda is not None:
            return torch.cuda.max_memory_allocated(self._cuda)
        try:
            return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            return 0

    def _sample(self) -> None:
        while not self._over.wait(0.05):
            self._peak = max(self._peak, self._now())


class Clock:
    """Seconds since it was made, less the seconds it was told to leave out."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def __call__(self) -> float:
        return time.perf_counter() - self._start

    def leave_out(self, seconds: float) -> None:
        self._start += seconds


def device_name(device: torch.device) -> str:
    """The device in words, e.g. "cpu, 2 threads (x86_64)"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' * (threads != 1)} ({platform.machine()})"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for name in ("fwviz", "torch", "transformers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
