"""How fast merging runs on one device, with everything in its memory: on a GPU, or on this CPU for comparison.

A synthetic pool of CLIP towers and a pool of LoRA adapters on matrices of a language model, both of random numbers.
``scores`` and ``combine`` stand beside the device's own copy of a tensor as large (bytes read and written, over
seconds): a kernel that reads as fast as the device copies has a share of 1. An update is one gradient over 16 images
per task, scored against all checkpoints, and the new coefficients put together; an iteration of FW-soft is what the
paper calls one: the gradient of each task over all its images, the oracle's choice, its updates and their loss. Both
are measured in each precision. ``--streamed`` also scores checkpoints from disk (in the page cache), plainly and
reading ahead.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from fwviz.backbones.precision import PRECISIONS, require_precision
from fwviz.bench.synthetic import (
    lora_vectors,
    random_base,
    random_objective,
    random_vectors,
    vit_layout,
    write_pool,
)
from fwviz.registry import entry, parse_settings
from fwviz.runs.assemble import require_device
from fwviz.runs.cost import MemoryWatch, device_name
from fwviz.space.vectors import StreamedTaskVectors
from fwviz.types import FwvizError, ParamLayout, Problem, Step, TaskVectors

MODELS: dict[str, Callable[[], ParamLayout]] = {
    "tiny": partial(vit_layout, width=24, blocks=2, patch=8, image=16),
    "vit-b-32": vit_layout,
    "vit-l-14": partial(vit_layout, width=1024, blocks=24, patch=14, projection=768),
}
# Width and blocks of language models whose query, key, value and output matrices are adapted.
ADAPTED = {"tiny": (32, 2), "1b": (2048, 22), "7b": (4096, 32)}
RANK = 16
DTYPES = ("float32", "bfloat16")
TASKS, BATCH, CLASSES = 8, 16, 10
METHODS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("FW-soft", "fw_soft", {"max_steps": 2, "epsilon": 0.0, "init": "average", "batch_size": BATCH}),
    ("AdaMerging", "adamerging", {"updates": 30, "batch_size": BATCH}),
)
_LARGEST_COPY = 1 << 30  # bytes


class Measured(NamedTuple):
    """One row: best or median seconds, what is read and written in them, and the peak above the pool itself."""

    what: str
    seconds: float
    gigabytes: float = float("nan")
    peak_gb: float = float("nan")


def run(
    device: str = "cuda",
    model: str = "vit-b-32",
    checkpoints: int = 8,
    dtype: str = "float32",
    adapted: str | None = None,
    adapters: int = 16,
    samples: int = 32,
    repeats: int = 5,
    precisions: Sequence[str] = PRECISIONS,
    streamed: bool = False,
    folder: Path | None = None,
) -> pd.DataFrame:
    """One row per kernel, and per method and precision; without ``adapted`` no low-rank row.

    Columns: what, seconds, per_second, gb_per_s, copy_share (gb_per_s over that of the copy), peak_gb (of the device's
    memory, 10⁹ bytes above the pool). ``samples`` are images per task.

    Raises:
        FwvizError: the machine has no such device, or it cannot compute in one of the precisions.
    """
    where, kind = require_device(device), getattr(torch, dtype)
    formats = [require_precision(name, where) for name in precisions]
    layout = MODELS[model]()
    vectors = random_vectors(layout, checkpoints, kind, where)
    rows = [_copy(min(vectors.matrix.numel() * vectors.matrix.element_size(), _LARGEST_COPY), where, repeats)]
    rows += _kernels(vectors, where, repeats)
    for precision, made in zip(precisions, formats, strict=True):
        objective = random_objective(layout, min(checkpoints, TASKS), samples, CLASSES, where, made)
        objective.gradient(vectors.base)  # what a first pass sets up is not measured
        for name, method, settings in METHODS:
            found = _method(name, method, settings, Problem(vectors, objective), where)
            end = "" if precision == "float32" else f", {precision}"
            rows += [row._replace(what=row.what + end) for row in found]
        del objective
    del vectors
    if streamed:
        rows += _streamed(layout, checkpoints, where, repeats, folder)
    if adapted is not None:
        width, blocks = ADAPTED[adapted]
        rows.append(_low_rank(lora_vectors(width, blocks, RANK, adapters, kind, where), where, repeats))
    table = pd.DataFrame(rows)
    table["per_second"] = 1 / table["seconds"]
    table["gb_per_s"] = table["gigabytes"] / table["seconds"]
    table["copy_share"] = table["gb_per_s"] / table["gb_per_s"].iloc[0]
    return table[["what", "seconds", "per_second", "gb_per_s", "copy_share", "peak_gb"]]


def _copy(size: int, where: torch.device, repeats: int) -> Measured:
    """The device copying ``size`` bytes inside its own memory."""
    source = torch.ones(size, dtype=torch.uint8, device=where)
    target = torch.empty_like(source)
    return Measured("copy", _best(lambda: target.copy_(source), where, repeats), 2 * size / 1e9)


def _kernels(vectors: TaskVectors, where: torch.device, repeats: int) -> list[Measured]:
    gradient = torch.randn_like(vectors.base, dtype=torch.float32)
    theta = torch.empty_like(gradient)
    model, tensor = vectors.layout.groups("model"), vectors.layout.groups("tensor")
    average = torch.full((1, vectors.n), 1 / vectors.n)
    kernels: tuple[tuple[str, Callable[[], object]], ...] = (
        ("scores, model", lambda: vectors.scores(gradient, model)),
        ("scores, tensor", lambda: vectors.scores(gradient, tensor)),
        ("combine", lambda: vectors.combine(average, model, theta)),
    )
    return [_kernel(name, work, vectors, where, repeats) for name, work in kernels]


def _streamed(
    layout: ParamLayout, count: int, where: torch.device, repeats: int, folder: Path | None
) -> list[Measured]:
    """Scores of float16 files, to be worked on by the device."""
    gradient, groups = torch.randn(layout.size, device=where), layout.groups("model")
    rows = []
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        files = list(write_pool(Path(temporary), layout, count))
        names, base = [file.path.stem for file in files], random_base(layout).to(where)
        for name, ahead in (("scores, streamed", False), ("scores, streamed ahead", True)):
            vectors = StreamedTaskVectors(layout, names, base, files, ahead=ahead)
            rows.append(_kernel(name, partial(vectors.scores, gradient, groups), vectors, where, repeats))
    return rows


def _low_rank(vectors: TaskVectors, where: torch.device, repeats: int) -> Measured:
    """Scores of adapters: the gradient is read once for all of them."""
    gradient, groups = torch.randn(vectors.layout.size, device=where), vectors.layout.groups("model")
    name = f"scores, {vectors.n} LoRA of {vectors.layout.size / 1e9:.1f}·10⁹"
    found = _kernel(name, lambda: vectors.scores(gradient, groups), vectors, where, repeats)
    return found._replace(gigabytes=found.gigabytes + gradient.numel() * 4 / 1e9)


def _kernel(name: str, work: Callable[[], object], vectors: TaskVectors, where: torch.device, repeats: int) -> Measured:
    counted = vectors.bytes_read
    with MemoryWatch(str(where)) as memory:
        work()  # once to warm up and to count
        gigabytes = (vectors.bytes_read - counted) / 1e9
        seconds = _best(work, where, repeats)
    return Measured(name, seconds, gigabytes, memory.peak_bytes / 1e9)


def _method(name: str, method: str, settings: dict[str, Any], problem: Problem, where: torch.device) -> list[Measured]:
    """Median seconds of an update, and of an iteration where it is more than updates."""
    found = entry("methods", method)
    assert found.settings is not None
    steps: list[tuple[Step, float]] = []
    with MemoryWatch(str(where)) as memory:
        for step in found.run(problem, parse_settings(found.settings, settings)):
            _wait(where)
            steps.append((step, time.perf_counter()))
    updates = [
        after - before
        for (first, before), (second, after) in pairwise(steps)
        if first.inner and second.inner == first.inner + 1 and first.t == second.t
    ]
    peak = memory.peak_bytes / 1e9
    rows = [Measured(f"{name}, update", statistics.median(updates), peak_gb=peak)]
    if method == "fw_soft":
        ends = [moment for step, moment in steps if step.inner == 0]
        rows.append(Measured(f"{name}, iteration", (ends[-1] - ends[0]) / (len(ends) - 1), peak_gb=peak))
    return rows


def _best(work: Callable[[], object], where: torch.device, repeats: int) -> float:
    """The best seconds of some repetitions, each until the device has done all of it."""
    seconds = []
    for _ in range(repeats):
        _wait(where)
        start = time.perf_counter()
        work()
        _wait(where)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _wait(where: torch.device) -> None:
    """Until the device has done everything it was told."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)
    elif where.type == "mps":
        torch.mps.synchronize()


def main(argv: Sequence[str]) -> int:
    """``fwviz bench device``."""
    parser = argparse.ArgumentParser(prog="fwviz bench device", description=__doc__, allow_abbrev=False)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, mps or cpu (cuda)")
    parser.add_argument("--model", choices=tuple(MODELS), default="vit-b-32", help="shapes of the pool (vit-b-32)")
    parser.add_argument("--checkpoints", type=int, default=8, help="pool size (8)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the task vectors (float32)")
    parser.add_argument("--adapted", choices=tuple(ADAPTED), help="also score LoRA adapters of a model of this size")
    parser.add_argument("--adapters", type=int, default=16, help="how many, of rank 16 (16)")
    parser.add_argument("--samples", type=int, default=32, help="images per task, up to eight tasks (32)")
    parser.add_argument("--repeats", type=int, default=5, help="best of this many, for the kernels (5)")
    parser.add_argument(
        "--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="of the model's products (both)"
    )
    parser.add_argument("--streamed", action="store_true", help="also score float16 files of the same pool")
    parser.add_argument("--folder", type=Path, help="where these go for the time (2 bytes per parameter)")
    parser.add_argument("--out", type=Path, help="also write the table to this .csv file")
    options = parser.parse_args(argv)
    for flag in ("checkpoints", "adapters", "samples", "repeats"):
        if getattr(options, flag) < 1:
            raise FwvizError(f"--{flag} must be at least 1.")
    layout = MODELS[options.model]()
    where = require_device(options.device)
    table = run(
        options.device,
        options.model,
        options.checkpoints,
        options.dtype,
        options.adapted,
        options.adapters,
        options.samples,
        options.repeats,
        options.precision,
        options.streamed,
        options.folder,
    )
    size = options.checkpoints * layout.size * getattr(torch, options.dtype).itemsize / 1e9
    print(f"{device_name(where)}: {options.checkpoints} × P = {layout.size:,} in {options.dtype}, {size:.2f} GB")
    digits = {"seconds": 5, "per_second": 2, "gb_per_s": 1, "copy_share": 2, "peak_gb": 2}
    print(table.round(digits).to_string(index=False, na_rep=""))
    if options.out is not None:
        table.to_csv(options.out, index=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
