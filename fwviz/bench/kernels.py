"""How fast scores and combinations run beside a plain read of the same bytes, in the same run.

A kernel that only read its checkpoints would have a share of 1. Files are warm (in the page cache), so the streamed
rows measure the code and not the disk. Each number is the best of some repetitions, kernel and plain read in turn.
"""

from __future__ import annotations

import argparse
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
from fwviz.types import ParamLayout, TaskVectors

_CHUNK = 1 << 20  # bytes of one plain read

Work = Callable[[], object]


def run(
    checkpoints: int = 8,
    repeats: int = 3,
    threads: Sequence[int] = (),
    layout: ParamLayout | None = None,
    folder: Path | None = None,
) -> pd.DataFrame:
    """One row per kernel, storage, dtype, granularity and number of threads (1 and torch's own if empty).

    Columns: kernel, storage, dtype, granularity, threads, gigabytes (of checkpoint data), seconds, gb_per_s,
    read_gb_per_s, share (= gb_per_s / read_gb_per_s).
    """
    layout = layout or vit_layout()
    before = torch.get_num_threads()
    counts = sorted(set(threads or (1, before)))
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        files = list(write_pool(Path(temporary), layout, checkpoints))
        streamed = StreamedTaskVectors(layout, [file.path.stem for file in files], random_base(layout), files)
        try:
            rows += _measure(streamed, "streamed", "float16", counts, repeats)
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                rows += _measure(
                    streamed.resident(dtype), "resident", str(dtype).removeprefix("torch."), counts, repeats
                )
        finally:
            torch.set_num_threads(before)
    return pd.DataFrame(rows)


def _measure(
    vectors: ResidentTaskVectors | StreamedTaskVectors, storage: str, dtype: str, counts: Sequence[int], repeats: int
) -> Iterator[dict[str, object]]:
    """All kernels on one storage."""
    for count in counts:
        torch.set_num_threads(count)
        if isinstance(vectors, StreamedTaskVectors):
            read = _read_files(vectors.files, count)
        else:
            read = _read_memory(vectors.matrix)
        for kernel, granularity, work in _kernels(vectors):
            counted = vectors.bytes_read
            work()  # once to warm up and to count
            gigabytes = (vectors.bytes_read - counted) / 1e9
            seconds, plain = _best_in_turn(work, read, repeats)
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


def _best_in_turn(first: Work, second: Work, repeats: int) -> tuple[float, float]:
    """The best seconds of each, measured alternately so that a busy machine disturbs both alike."""
    best = [float("inf"), float("inf")]
    for _ in range(repeats):
        for j, work in enumerate((first, second)):
            start = time.perf_counter()
            work()
            best[j] = min(best[j], time.perf_counter() - start)
    return best[0], best[1]


def main(argv: Sequence[str]) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="fwviz bench kernels", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--checkpoints", type=int, default=8, help="pool size (default 8)")
    parser.add_argument("--repeats", type=int, default=3, help="best of this many (default 3)")
    parser.add_argument("--threads", type=int, nargs="*", default=[], help="numbers of threads (default 1 and all)")
    parser.add_argument("--folder", type=Path, help="where the temporary pool goes (176 MB per checkpoint)")
    options = parser.parse_args(argv)
    table = run(options.checkpoints, options.repeats, options.threads, folder=options.folder)
    print(f"{options.checkpoints} checkpoints of P = {vit_layout().size:,}; share = speed over that of a plain read")
    print(
        table.round({"gigabytes": 2, "seconds": 3, "gb_per_s": 1, "read_gb_per_s": 1, "share": 2}).to_string(
            index=False
        )
    )
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
