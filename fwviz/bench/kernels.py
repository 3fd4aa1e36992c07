"""How fast scores and combinations run beside a plain read of the same bytes, in the same run.

A kernel that only read its checkpoints would have a share of 1. Files are warm (in the page cache), so the streamed
rows measure the code and not the disk; ``--cold`` has the system forget them before every pass, so that the disk takes
part. ``ahead`` is the same kernel with the next blocks read in a thread of its own, which several threads do not need.
Each number is the best of some repetitions, kernel, reading ahead and plain read in turn.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from fwviz.bench.synthetic import random_base, vit_layout, write_pool
from fwviz.space.files import CheckpointFile
from fwviz.space.vectors import ResidentTaskVectors, StreamedTaskVectors
from fwviz.types import FwvizError, ParamLayout, TaskVectors

_CHUNK = 1 << 20  # bytes of one plain read

Work = Callable[[], object]


def run(
    checkpoints: int = 8,
    repeats: int = 3,
    threads: Sequence[int] = (),
    layout: ParamLayout | None = None,
    folder: Path | None = None,
    cold: bool = False,
    resident: bool = True,
) -> pd.DataFrame:
    """One row per kernel, storage, dtype, granularity and number of threads (1 and torch's own if empty).

    Columns: kernel, storage, dtype, granularity, threads, gigabytes (of checkpoint data), seconds, gb_per_s,
    read_gb_per_s, share (= gb_per_s / read_gb_per_s), ahead_gb_per_s, ahead_share (streamed on one thread only).

    Raises:
        FwvizError: ``cold`` on a system that cannot be told to forget a file.
    """
    layout = layout or vit_layout()
    before = torch.get_num_threads()
    counts = sorted(set(threads or (1, before)))
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        files = list(write_pool(Path(temporary), layout, checkpoints))
        names, base = [file.path.stem for file in files], random_base(layout)
        streamed, ahead = (StreamedTaskVectors(layout, names, base, files, ahead=on) for on in (False, True))
        try:
            rows += _measure(streamed, "streamed", "float16", counts, repeats, ahead, _forget(files) if cold else None)
            for dtype in (torch.float32, torch.bfloat16, torch.float16) if resident else ():
                rows += _measure(
                    streamed.resident(dtype), "resident", str(dtype).removeprefix("torch."), counts, repeats
                )
        finally:
            torch.set_num_threads(before)
    return pd.DataFrame(rows)


def _measure(
    vectors: ResidentTaskVectors | StreamedTaskVectors,
    storage: str,
    dtype: str,
    counts: Sequence[int],
    repeats: int,
    ahead: StreamedTaskVectors | None = None,
    before: Work | None = None,
) -> Iterator[dict[str, object]]:
    """All kernels on one storage, and on the same that reads ``ahead``; ``before`` is done before each pass."""
    for count in counts:
        torch.set_num_threads(count)
        if isinstance(vectors, StreamedTaskVectors):
            read = _read_files(vectors.files, count)
        else:
            read = _read_memory(vectors.matrix)
        others = list(_kernels(ahead)) if ahead is not None and count == 1 else []
        for place, (kernel, granularity, work) in enumerate(_kernels(vectors)):
            counted = vectors.bytes_read
            work()  # once to warm up and to count
            gigabytes = (vectors.bytes_read - counted) / 1e9
            reading_ahead = [others[place][2]] if others else []
            seconds, plain, *more = _best_in_turn((work, read, *reading_ahead), repeats, before)
            yield {
                "kernel": kernel,
                "storage": storage,
                "dtype": dtype,
                "granularity": granularity,
                "threads": count,
                "gigabytes": gigabytes,
                "seconds": seconds,
                "gb_per_s": gigabytes / seconds,
                "read_gb_per_s": gigabytes / plain,
                "share": plain / seconds,
                "ahead_gb_per_s": gigabytes / more[0] if more else math.nan,
                "ahead_share": plain / more[0] if more else math.nan,
            }


def _kernels(vectors: TaskVectors) -> Iterator[tuple[str, str, Work]]:
    gradient = torch.randn(vectors.layout.size, generator=torch.Generator().manual_seed(2))
    out = torch.empty_like(gradient)
    model, tensor = vectors.layout.groups("model"), vectors.layout.groups("tensor")
    average = torch.full((1, vectors.n), 1 / vectors.n)
    yield "scores", "model", lambda: vectors.scores(gradient, model)
    yield "scores", "tensor", lambda: vectors.scores(gradient, tensor)
    yield "cosines", "model", lambda: vectors.cosines(gradient, model)
    yield "combine", "model", lambda: vectors.combine(average, model, out)


def _read_memory(matrix: Tensor) -> Work:
    """The fastest pass torch has over the same bytes: a float32 sum."""
    flat = matrix.view(-1)
    flat = flat[: flat.numel() // 2 * 2].view(torch.float32)
    return lambda: flat.sum()


def _read_files(files: Sequence[CheckpointFile], threads: int) -> Work:
    """Read the same files into one small buffer per thread."""

    def drain(pending: Iterator[tuple[CheckpointFile, int, int]]) -> None:
        buffer = torch.empty(_CHUNK, dtype=torch.uint8)
        for file, offset, size in pending:
            file.files[0].read_at(offset, buffer[:size])

    def read() -> None:
        pieces: list[tuple[CheckpointFile, int, int]] = []
        for file in files:
            stop = file.path.stat().st_size
            pieces += [(file, offset, min(_CHUNK, stop - offset)) for offset in range(0, stop, _CHUNK)]
        pending = iter(pieces)
        with ThreadPoolExecutor(threads) as pool:
            for future in [pool.submit(drain, pending) for _ in range(threads)]:
                future.result()

    return read


def _forget(files: Sequence[CheckpointFile]) -> Work:
    """Have the system drop what it keeps of the files in memory."""
    if not hasattr(os, "posix_fadvise"):
        raise FwvizError("this system cannot be told to forget files: measure without --cold.")

    def forget() -> None:
        for file in files:
            with file.path.open("rb") as opened:
                os.fsync(opened.fileno())  # what is not yet on the disk cannot be dropped
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    return forget


def _best_in_turn(works: Sequence[Work], repeats: int, before: Work | None) -> list[float]:
    """The best seconds of each, measured alternately so that a busy machine disturbs all alike."""
    best = [math.inf] * len(works)
    for _ in range(repeats):
        for j, work in enumerate(works):
            if before is not None:
                before()
            start = time.perf_counter()
            work()
            best[j] = min(best[j], time.perf_counter() - start)
    return best


def main(argv: Sequence[str]) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="fwviz bench kernels", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--checkpoints", type=int, default=8, help="pool size (default 8)")
    parser.add_argument("--repeats", type=int, default=3, help="best of this many (default 3)")
    parser.add_argument("--threads", type=int, nargs="*", default=[], help="numbers of threads (default 1 and all)")
    parser.add_argument("--folder", type=Path, help="where the temporary pool goes (176 MB per checkpoint)")
    parser.add_argument("--cold", action="store_true", help="have the system forget the files before every pass")
    parser.add_argument("--streamed", action="store_true", help="only the checkpoints on disk, none in memory")
    options = parser.parse_args(argv)
    table = run(
        options.checkpoints,
        options.repeats,
        options.threads,
        folder=options.folder,
        cold=options.cold,
        resident=not options.streamed,
    )
    print(f"{options.checkpoints} checkpoints of P = {vit_layout().size:,}; share = speed over that of a plain read")
    digits = {"gigabytes": 2, "seconds": 3, "share": 2, "ahead_share": 2}
    digits |= dict.fromkeys(("gb_per_s", "read_gb_per_s", "ahead_gb_per_s"), 1 if not options.cold else 2)
    print(table.round(digits).to_string(index=False, na_rep=""))
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
