"""Merges by other implementations, for ``fwviz bench speed``; run by an interpreter that has them, but not fwviz.

    PEER_PYTHON fwviz/bench/_peers.py NAME FOLDER COUNT THREADS

reads base.safetensors and checkpoint-0 … from a folder, merges them and prints one line of JSON: seconds and the peak
of memory above what was held before, in bytes.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Tensors = dict[str, Any]
Merge = Callable[[Tensors, list[Tensors]], object]

STATUS = Path("/proc/self/status")


def mergekit_ties() -> Merge:
    """mergekit's TIES tensor by tensor, density 0.2."""
    from mergekit.merge_methods.api import merge_tensors

    parameters = {"weight": 1.0, "density": 0.2}

    def merge(base: Tensors, models: list[Tensors]) -> object:
        return {
            name: merge_tensors([value, *(m[name] for m in models)], "ties", parameters=parameters, base_index=0)
            for name, value in base.items()
        }

    return merge


def fusion_bench_tsv_m() -> Merge:
    """FusionBench's task singular vectors, with the subtraction and addition of the base around it."""
    from fusion_bench.method.task_singular_vector.utils.TSVM_utils import compute_and_sum_svd_mem_reduction

    def merge(base: Tensors, models: list[Tensors]) -> object:
        deltas = [{name: model[name] - base[name] for name in base} for model in models]
        merged = compute_and_sum_svd_mem_reduction(deltas, accelerator="cpu")
        return {name: base[name] + merged[name] for name in base}

    return merge


# Each imports its package and returns the merge, so that imports are not timed.
PEERS: dict[str, Callable[[], Merge]] = {"mergekit TIES": mergekit_ties, "FusionBench TSV-M": fusion_bench_tsv_m}


def held(field: str) -> int:
    """A line of Linux's account of this process, in bytes; 0 elsewhere."""
    if not STATUS.exists():
        return 0
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(field)) * 1024


def measured(work: Callable[[], object]) -> dict[str, float]:
    """Seconds and extra peak bytes of one call, after the high-water mark was reset."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")
    before = held("VmRSS")
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    peak = held("VmHWM")
    del result
    return {"seconds": seconds, "extra_bytes": max(peak - before, 0)}


def main(name: str, folder: Path, count: int, threads: int) -> None:
    """Print the measurement of one peer."""
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(threads)
    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():  # they print progress
        merge = PEERS[name]()
        base = _float(load_file(folder / "base.safetensors"))
        models = [_float(load_file(folder / f"checkpoint-{i}.safetensors")) for i in range(count)]
        found = measured(lambda: merge(base, models))
    print(json.dumps(found))


def _float(tensors: Tensors) -> Tensors:
    return {name: value.float() for name, value in tensors.items()}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
