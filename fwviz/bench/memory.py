"""Peak memory of a run over streamed checkpoints, for pools of growing size.

FW-Merging claims memory that does not grow with the number of checkpoints; the code released with it loads them all.
Every run has a process of its own. ``extra`` is the peak above what the process held when everything was set up: base,
objective and open files. The objective is a quadratic per task with its minimum at a checkpoint, or (``--model``) the
cross-entropy of the CLIP ViT-B/32 tower merges run on, with random weights on random images. Then ``models`` is all
that was held at the peak, base, weights and gradient included, in vectors of P float32 numbers: beyond the libraries
the process began with, and beyond what the first gradient took for activations and workspaces.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from fwviz.bench.synthetic import SHIFT, random_base, random_move, random_objective, vit_layout, write_pool
from fwviz.space.files import CheckpointFile
from fwviz.space.vectors import StreamedTaskVectors
from fwviz.types import FwvizError, LossName, Objective, ParamLayout, Problem

TASKS = ("a", "b")
SAMPLES, CLASSES = 4, 10
METHODS: dict[str, dict[str, Any]] = {
    # Enough to pass every allocation: line search, inner updates, the step to the next iterate.
    "fw_hard": {"max_steps": 2, "trials": 2, "init": "average", "task_scores": False},
    "fw_soft": {"max_steps": 1, "inner_updates": 2, "init": "average"},
    "supermerge": {"updates": 2},
    "supermerge_hierarchical": {"updates": 2},
    "adamerging": {"updates": 2, "plus_plus": True},
    "concrete": {"mask_updates": 2, "updates": 2},
}
_CHUNK = 1 << 18
_STATUS = Path("/proc/self/status")


@dataclass
class QuadraticObjective:
    """ℓ_k(θ) = ½·‖θ − θ₀ − τ_k‖² for checkpoint k of the synthetic pool, in bounded chunks; ``move`` is τ₀."""

    base: Tensor
    move: Tensor
    buffer: Tensor
    tasks: tuple[str, ...] = TASKS

    def losses(
        self,
        theta: Tensor,
        *,
        tasks: Sequence[str] | None = None,
        loss: LossName = "cross_entropy",
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean loss per task (K,)."""
        return self._sweep(theta, tasks, None)

    def gradient(
        self,
        theta: Tensor,
        *,
        tasks: Sequence[str] | None = None,
        loss: LossName = "cross_entropy",
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Losses and the gradient of their mean."""
        return self._sweep(theta, tasks, self.buffer), self.buffer

    def _sweep(self, theta: Tensor, tasks: Sequence[str] | None, gradient: Tensor | None) -> Tensor:
        chosen = self.tasks if tasks is None else tuple(tasks)
        total = torch.zeros(len(chosen), dtype=torch.float64)
        for start in range(0, theta.numel(), _CHUNK):
            stop = min(start + _CHUNK, theta.numel())
            slope = torch.zeros(stop - start)
            for k, task in enumerate(chosen):
                rest = theta[start:stop] - self.base[start:stop] - self._target(task, start, stop)
                total[k] += 0.5 * torch.dot(rest, rest)
                slope.add_(rest, alpha=1 / len(chosen))
            if gradient is not None:
                gradient[start:stop] = slope
        return total.float()

    def _target(self, task: str, start: int, stop: int) -> Tensor:
        """τ_k in [start, stop)."""
        size = self.move.numel()
        first = (start - self.tasks.index(task) * SHIFT) % size
        part = self.move[first : first + stop - start]
        return torch.cat([part, self.move[: stop - start - part.numel()]])


class OwnPeak:
    """The largest memory this process allocated for itself while the block runs, sampled 200 times a second."""

    def __enter__(self) -> OwnPeak:
        self.bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.bytes = max(self.bytes, memory_now()[1])


def memory_now() -> tuple[int, int]:
    """Bytes of resident memory, and of it what the process allocated (RssAnon; elsewhere than on Linux, USS).

    The difference is mostly pages of torch's libraries, tens of MB of which come and go as the system pleases.
    """
    if _STATUS.exists():
        return _status("VmRSS"), _status("RssAnon")
    import psutil

    info = psutil.Process().memory_full_info()
    return info.rss, info.uss


def _status(field: str) -> int:
    """One line of Linux's account of this process, in bytes."""
    return next(int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith(field)) * 1024


def peak_rss() -> int:
    """The kernel's high-water mark of resident memory, in bytes.

    Linux keeps one per address space (VmHWM), which can be reset; ru_maxrss would include the parent's, by vfork.
    """
    if _STATUS.exists():
        return _status("VmHWM")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak() -> None:
    """Let the high-water mark start again from what is held now, where the system can (Linux)."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")


def measure_here(method: str, folder: Path, count: int, model: bool, layout: ParamLayout) -> dict[str, Any]:
    """Run a method on the first ``count`` checkpoints in ``folder``, in this process, and report its memory."""
    from fwviz.registry import entry, parse_settings

    run_method = entry("methods", method)
    assert run_method.settings is not None
    settings = parse_settings(run_method.settings, METHODS[method])
    bare = memory_now()[1]
    base = random_base(layout)
    objective: Objective = (
        random_objective(layout, len(TASKS), SAMPLES, CLASSES)
        if model
        else QuadraticObjective(base, random_move(layout), torch.empty_like(base, dtype=torch.float32))
    )
    files = [CheckpointFile(folder / f"checkpoint-{i}.safetensors", layout) for i in range(count)]
    vectors = StreamedTaskVectors(layout, [f"c{i}" for i in range(count)], base, files)
    held = memory_now()[1]
    with OwnPeak() as passing:
        # What the first pass allocates once (thread pools, library workspaces) is set-up, the same for every pool.
        objective.gradient(base)
    activations = passing.bytes - held

    forget_peak()
    start_rss, start_own = memory_now()
    begin = time.perf_counter()
    steps = 0
    with OwnPeak() as own:
        for _ in run_method.run(Problem(vectors, objective), settings):
            steps += 1
    return {
        "method": method,
        "objective": "ViT-B/32" if model else "quadratic",
        "checkpoints": count,
        "setup_mb": start_rss / 1e6,
        "extra_mb": (peak_rss() - start_rss) / 1e6,
        "extra_own_mb": (own.bytes - start_own) / 1e6,
        "activations_mb": activations / 1e6,
        "models": (own.bytes - bare - activations) / (4 * layout.size) if model else math.nan,
        "pool_gb": sum(file.path.stat().st_size for file in files) / 1e9,
        "read_gb": vectors.bytes_read / 1e9,
        "seconds": time.perf_counter() - begin,
        "steps": steps,
    }


def run(
    checkpoints: Sequence[int] = (4, 16),
    methods: Sequence[str] = tuple(METHODS),
    model: bool = False,
    layout: ParamLayout | None = None,
    folder: Path | None = None,
) -> pd.DataFrame:
    """One row per method and pool size. Columns ``extra_*_mb`` are peaks in 10⁶ bytes above ``setup_mb``.

    ``extra_mb`` is the kernel's peak of resident memory, ``extra_own_mb`` the sampled peak of what was allocated;
    ``growth`` is the latter over that of the smallest pool, minus one. ``activations_mb`` is what the first gradient
    takes while it is computed, ``models`` all of the process' own memory at the peak but for that, over 4·P bytes; it
    is there only where the model is real.
    """
    layout = layout or vit_layout()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for _ in write_pool(Path(temporary), layout, max(checkpoints)):
            pass
        for method in methods:
            for count in sorted(checkpoints):
                rows.append(_measure_apart(method, Path(temporary), count, model, layout))
    table = pd.DataFrame(rows)
    smallest = table.groupby("method")["extra_own_mb"].transform("first")
    table["growth"] = table["extra_own_mb"] / smallest - 1
    return table


def _measure_apart(method: str, folder: Path, count: int, model: bool, layout: ParamLayout) -> dict[str, Any]:
    """:func:`measure_here` in a new process."""
    request = {"method": method, "folder": str(folder), "count": count, "model": model, "layout": plain_layout(layout)}
    command = [sys.executable, "-m", "fwviz.bench.memory", "--measure"]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode:
        # A process that was killed, for memory say, leaves no message but the number of the signal, negative.
        reason = (done.stderr.strip() or f"it ended with code {done.returncode}").splitlines()[-1]
        raise FwvizError(f"the run of {method} on {count} checkpoints failed: {reason.rstrip('.')}.")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def plain_layout(layout: ParamLayout) -> dict[str, Any]:
    """A layout as plain data, for a process that is to be told of it."""
    return dataclasses.asdict(layout)


def layout_from(plain: dict[str, Any]) -> ParamLayout:
    """The layout that :func:`plain_layout` wrote."""
    shapes = tuple(tuple(shape) for shape in plain["shapes"])
    return ParamLayout(
        tuple(plain["names"]), shapes, tuple(plain["offsets"]), tuple(plain["layers"]), plain["excluded"]
    )


def main(argv: Sequence[str]) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="fwviz bench memory", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--checkpoints", type=int, nargs="+", default=[4, 16], help="pool sizes (default 4 16)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    parser.add_argument("--model", action="store_true", help="a real ViT-B/32 forward and backward pass (slower)")
    parser.add_argument("--folder", type=Path, help="where the temporary pool goes (176 MB per checkpoint)")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        request = json.load(sys.stdin)
        layout = layout_from(request["layout"])
        row = measure_here(request["method"], Path(request["folder"]), request["count"], request["model"], layout)
        print(json.dumps(row))
        return 0
    table = run(options.checkpoints, options.methods, options.model, folder=options.folder)
    size = vit_layout().size
    print(f"P = {size:,} parameters ({size * 4 / 1e6:.0f} MB in float32), checkpoints float16 on disk; MB = 10⁶ bytes")
    digits = {"pool_gb": 2, "read_gb": 1, "seconds": 1, "growth": 4, "models": 2}
    digits |= dict.fromkeys([name for name in table if name.endswith("_mb")], 1)
    print(table.round(digits).to_string(index=False, na_rep=""))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
