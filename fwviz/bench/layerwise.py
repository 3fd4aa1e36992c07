"""Layer-wise coefficients of ViT-B/32 checkpoints, learnt by us and by FusionBench: seconds and memory per update.

Both learn one coefficient per tensor and checkpoint by Adam on the entropy of K tasks, 16 random images each, K being
also the number of checkpoints: AdaMerging's layer-wise update. Each side has a process of its own. ``extra`` is the
peak, while it learns, of what the process allocated for itself, above what it held after its imports and the 4·P bytes
of one model. FusionBench keeps the checkpoints as models in memory and builds the merge inside autograd; ours streams
them from disk. Each side runs the tower it would run: transformers' there, ours here.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fwviz.bench.memory import OwnPeak, memory_now
from fwviz.bench.synthetic import random_base, random_objective, vit_layout, write_pool
from fwviz.methods.adamerging import Settings, adamerging
from fwviz.space.files import CheckpointFile
from fwviz.space.vectors import StreamedTaskVectors
from fwviz.types import FwvizError, Problem

BATCH, CLASSES = 16, 10


def run(checkpoints: Sequence[int] = (4, 8), updates: int = 5, peer: str | None = None) -> pd.DataFrame:
    """One row per number of checkpoints and side: seconds of the median update, extra memory in GiB, their ratios.

    What there is is printed after each number: the larger ones take minutes.

    ``peer`` is the Python of an environment with fusion-bench 0.2.33, without which only ours is measured.
    """
    rows: list[dict[str, Any]] = []
    layout = vit_layout()
    with tempfile.TemporaryDirectory() as folder:
        for _ in write_pool(Path(folder), layout, max(checkpoints)):
            pass
        for count in checkpoints:
            rows += layerwise_row(count, updates, peer, Path(folder))
            print(pd.DataFrame(rows).round(3).to_string(index=False), flush=True)
    return pd.DataFrame(rows)


def layerwise_row(count: int, updates: int, peer: str | None, folder: Path) -> list[dict[str, Any]]:
    """Ours, of the first ``count`` checkpoints in ``folder``, and FusionBench's if its Python ``peer`` is given."""
    request = {"checkpoints": count, "updates": updates, "folder": str(folder), "batch": BATCH, "classes": CLASSES}
    found = [_measure([sys.executable, "-m", "fwviz.bench.layerwise", "--measure"], request, "fwviz")]
    if peer is not None:
        script = Path(__file__).with_name("_peer_layerwise.py")
        theirs = _measure([peer, str(script)], request, "FusionBench")
        found.append(theirs)
        found[0]["time_ratio"] = found[0]["seconds_per_update"] / theirs["seconds_per_update"]
        found[0]["memory_ratio"] = found[0]["extra_gib"] / theirs["extra_gib"]
    return found


def measure_here(request: dict[str, Any]) -> dict[str, Any]:
    """Our side, in this process."""
    layout, count = vit_layout(), request["checkpoints"]
    start = memory_now()[1]
    base = random_base(layout)
    folder = Path(request["folder"])
    files = [CheckpointFile(folder / f"checkpoint-{i}.safetensors", layout) for i in range(count)]
    vectors = StreamedTaskVectors(layout, [f"c{i}" for i in range(count)], base, files)
    objective = random_objective(layout, count, request["batch"], request["classes"])
    trim_heap()
    with OwnPeak() as own:
        steps = adamerging(Problem(vectors, objective), Settings(updates=request["updates"], batch_size=0))
        seconds = []
        while True:
            begin = time.perf_counter()
            step = next(steps, None)
            if step is None:
                break
            if step.t > 0 and step.inner > 0:  # an update, not a measurement of an iterate
                seconds.append(time.perf_counter() - begin)
    return {
        "side": "fwviz",
        "checkpoints": count,
        "seconds_per_update": statistics.median(seconds),
        "extra_gib": (own.bytes - start - 4 * layout.size) / 2**30,
    }


def trim_heap() -> None:
    """Give freed memory back to the system (glibc), so that what set-up needed for a moment is not counted."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def _measure(command: Sequence[str], request: dict[str, Any], side: str) -> dict[str, Any]:
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or f"it ended with code {done.returncode}").splitlines()[-1]
        raise FwvizError(f"{side} failed on {request['checkpoints']} checkpoints: {reason.rstrip('.')}.")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(argv: Sequence[str]) -> int:
    """Print the table, anew after each number of checkpoints."""
    parser = argparse.ArgumentParser(prog="fwviz bench layerwise", description="ViT-B/32, layer-wise coefficients")
    parser.add_argument("--checkpoints", type=int, nargs="+", default=[4, 8], help="pool sizes (default 4 8)")
    parser.add_argument("--updates", type=int, default=5, help="updates measured (default 5)")
    parser.add_argument("--peer-python", help="interpreter with the packages of requirements-peers.txt")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        print(json.dumps(measure_here(json.load(sys.stdin))))
        return 0
    run(options.checkpoints, options.updates, options.peer_python)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
