"""Worker threads that share out the parts of one large computation, each with torch on a single thread."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(work: Callable[[Item], Result], items: Sequence[Item], device: torch.device) -> list[Result]:
    """[work(item) for item in items], on as many threads as torch may use; each runs torch on one thread."""
    if device.type != "cpu" or min(torch.get_num_threads(), len(items)) <= 1:
        return [work(item) for item in items]
    return list(workers().map(work, items))


def workers() -> ThreadPoolExecutor:
    """As many threads as torch may use here, kept between calls."""
    return _workers(os.getpid(), torch.get_num_threads())


@lru_cache(maxsize=4)
def _workers(process: int, threads: int) -> ThreadPoolExecutor:
    """A pool whose threads run torch operations alone, without forking a team each; a fork starts its own."""
    started = Barrier(threads + 1)

    def begin() -> None:
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="fwviz-space", initializer=begin)
    for _ in range(threads):
        pool.submit(lambda: None)
    started.wait()
    # set_num_threads counts for the calling thread and for threads to come: give the latter their number back.
    torch.set_num_threads(threads)
    return pool


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
