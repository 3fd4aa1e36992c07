"""Seconds and extra memory of merge methods beside other implementations, on a pool of the size of CLIP ViT-B/32.

Every measurement has a process of its own: ours in this interpreter, a peer's in the one of ``--peer-python``, which
has the packages of requirements-peers.txt. Both hold base and checkpoints in memory as float32 when the clock starts,
and have as many threads. ``extra`` is the kernel's peak of resident memory above that, the result included. Peers and
ours run one after the other in one go, so that a slow machine slows both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from fwviz.bench import _peers
from fwviz.bench.memory import layout_from, plain_layout
from fwviz.bench.synthetic import random_base, random_tower, vit_layout, write_pool
from fwviz.space.wide import plus
from fwviz.types import FwvizError, ParamLayout

# Images per checkpoint and per pass, for the methods that look at data; random ones, as the weights are.
SAMPLES, BATCH, CLASSES, IMAGE = 8, 4, 10, 224

# Ours: a callable that is timed, made of the folder of the pool and the number of checkpoints.
Ours = Callable[[Path, int], Callable[[], object]]


@dataclass(frozen=True)
class Row:
    """One line of the table: a merge of ours, what it is set against, and the goals.

    ``ratio`` is the largest share of the peer's seconds, ``extra_mib`` the most extra memory, that was aimed at.
    """

    name: str
    ours: Ours
    peer: str
    ratio: float
    extra_mib: float | None = None


def method(name: str, *, looks: bool = False, **settings: Any) -> Ours:
    """A registered method on resident float32 task vectors: all its steps; with data if it ``looks`` at any."""

    def prepare(folder: Path, count: int) -> Callable[[], object]:
        from fwviz.registry import entry, parse_settings
        from fwviz.space.files import CheckpointFile
        from fwviz.space.vectors import StreamedTaskVectors
        from fwviz.types import Problem

        layout = _layout(folder)
        files = [CheckpointFile(folder / f"checkpoint-{i}.safetensors", layout) for i in range(count)]
        vectors = StreamedTaskVectors(layout, [f"c{i}" for i in range(count)], random_base(layout), files).resident()
        found = entry("methods", name)
        assert found.settings is not None
        chosen = parse_settings(found.settings, settings)
        objective = _looking(folder, layout, count) if looks else _NoObjective()
        problem = Problem(vectors, objective, owners=objective.tasks)

        def merge() -> object:
            theta = None
            for step in found.run(problem, chosen):
                if step.coefficients is not None:
                    theta = vectors.combine(step.coefficients, problem.groups(step.granularity))
                elif step.delta is not None and step.inner == 0:
                    theta = plus(vectors.base, step.delta, step.delta)
            return theta

        return merge

    return prepare


def _looking(folder: Path, layout: ParamLayout, count: int) -> Any:
    """The tower with the pool's images: one task for each checkpoint. The loss of the merge, which no peer computes,
    is left out."""
    from safetensors.torch import load_file

    from fwviz.tasks.data import TaskData
    from fwviz.tasks.objectives import CalibrationObjective

    class Looking(CalibrationObjective):
        def losses(self, *_: object, **__: object) -> torch.Tensor:
            return torch.zeros(len(self.tasks))

    given = load_file(folder / "inputs.safetensors")
    tower = random_tower(layout)
    labels, keys = torch.zeros(SAMPLES, dtype=torch.long), ("random",) * SAMPLES
    data = {f"t{i}": TaskData(f"t{i}", "calibration", given["images"][i], labels, keys) for i in range(count)}
    objective = Looking(tower, data, dict.fromkeys(data, given["head"]), chunk=BATCH)
    # The first backward pass of a process imports more of torch, which a peer's own imports have done by now.
    objective.gradient(random_base(layout), tasks=["t0"], batch_size=1, generator=torch.Generator())
    return objective


class _NoObjective:
    """For methods that see no data; asking it for anything is a mistake."""

    tasks: tuple[str, ...] = ()

    def losses(self, *_: object, **__: object) -> Any:
        raise AssertionError("this method was to see no data")

    gradient = losses


ROWS: tuple[Row, ...] = (
    Row("TIES", method("ties"), "mergekit TIES", 0.25, 1024),
    Row("TIES, per tensor", method("ties", trim_scope="tensor", zero_sign="plus"), "mergekit TIES", 0.25, 1024),
    Row("DARE", method("dare"), "mergekit TIES", 0.25, 1024),
    Row("DARE with TIES", method("dare", combine="ties"), "mergekit TIES", 0.25, 1024),
    Row("Breadcrumbs", method("breadcrumbs"), "mergekit TIES", 0.25, 1024),
    Row("DELLA", method("della"), "mergekit TIES", 0.25, 1024),
    Row("PCB", method("pcb"), "mergekit TIES", 0.25, 1024),
    Row("TSV-M", method("tsv_m"), "FusionBench TSV-M", 0.25),
    Row("RegMean", method("regmean", looks=True, samples=SAMPLES), "FusionBench RegMean", 1.0),
    # The peer makes one backward pass per batch.
    Row("Fisher", method("fisher", looks=True, samples=SAMPLES, passes=SAMPLES // BATCH), "FusionBench Fisher", 1.0),
)


def run(
    counts: Sequence[int] = (4, 8),
    rows: Sequence[Row] = ROWS,
    *,
    peer_python: Path | None = None,
    threads: int | None = None,
    layout: ParamLayout | None = None,
    folder: Path | None = None,
) -> pd.DataFrame:
    """One row per merge and number of checkpoints; the peer's columns are NaN without ``peer_python``.

    Columns: checkpoints, row, peer, seconds, peer_seconds, ratio, goal_ratio, extra_mib, peer_extra_mib, goal_mib.
    Every peer is measured once per number of checkpoints. MiB = 2²⁰ bytes.
    """
    layout = layout or vit_layout()
    threads = threads or torch.get_num_threads()
    found = []
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        place = Path(temporary)
        _write(place, layout, max(counts))
        for count in counts:
            peers: dict[str, dict[str, float]] = {}
            for row in rows:
                if peer_python is not None and row.peer not in peers:
                    command = [str(peer_python), _peers.__file__, row.peer, temporary, str(count), str(threads)]
                    peers[row.peer] = _measure(command, f"the peer {row.peer}", threads)
                command = [sys.executable, "-m", "fwviz.bench.speed", "--measure", row.name, temporary, str(count)]
                ours = _measure([*command, str(threads)], row.name, threads)
                theirs = peers.get(row.peer, {})
                found.append(
                    {
                        "checkpoints": count,
                        "row": row.name,
                        "peer": row.peer,
                        "seconds": ours["seconds"],
                        "peer_seconds": theirs.get("seconds", float("nan")),
                        "ratio": ours["seconds"] / theirs.get("seconds", float("nan")),
                        "goal_ratio": row.ratio,
                        "extra_mib": ours["extra_bytes"] / 2**20,
                        "peer_extra_mib": theirs.get("extra_bytes", float("nan")) / 2**20,
                        "goal_mib": row.extra_mib,
                    }
                )
    return pd.DataFrame(found)


def _write(folder: Path, layout: ParamLayout, count: int) -> None:
    """The pool as files: layout.json, base.safetensors, inputs.safetensors, checkpoint-0 …"""
    from safetensors.torch import save_file

    from fwviz.space.layout import unflatten

    (folder / "layout.json").write_text(json.dumps(plain_layout(layout)))
    base = unflatten(layout, random_base(layout))
    save_file({name: view.contiguous() for name, view in base.items()}, folder / "base.safetensors")
    random = torch.Generator().manual_seed(4)
    head = torch.randn(CLASSES, layout.shapes[layout.names.index("visual_projection.weight")][0], generator=random)
    inputs = {
        "images": torch.randint(256, (count, SAMPLES, 3, IMAGE, IMAGE), dtype=torch.uint8, generator=random),
        "head": torch.nn.functional.normalize(head, dim=-1),
        "batch": torch.tensor(BATCH),
    }
    save_file(inputs, folder / "inputs.safetensors")
    for _ in write_pool(folder, layout, count):
        pass


def _layout(folder: Path) -> ParamLayout:
    return layout_from(json.loads((folder / "layout.json").read_text()))


def _measure(command: Sequence[str], name: str, threads: int) -> dict[str, float]:
    """Run one measuring process and read what it printed."""
    limits = {key: str(threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **limits})
    except OSError as error:
        raise FwvizError(f"{command[0]} cannot be started ({error.strerror}): give the path of a Python.") from None
    if done.returncode:
        reason = (done.stderr.strip() or f"it ended with code {done.returncode}").splitlines()[-1]
        raise FwvizError(f"the measurement of {name} failed: {reason.rstrip('.')}.")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main(argv: Sequence[str]) -> int:
    """``fwviz bench speed``."""
    if argv[:1] == ["--measure"]:  # how the processes of this bench are started
        name, folder, count, threads = argv[1:]
        torch.set_num_threads(int(threads))
        row = next(row for row in ROWS if row.name == name)
        print(json.dumps(_peers.measured(row.ours(Path(folder), int(count)))))
        return 0
    parser = argparse.ArgumentParser(prog="fwviz bench speed", description=__doc__, allow_abbrev=False)
    parser.add_argument("--checkpoints", type=int, nargs="+", default=[4, 8], help="pool sizes (4 8)")
    parser.add_argument("--rows", nargs="+", help=f"some of: {'; '.join(row.name for row in ROWS)}")
    parser.add_argument("--peer-python", type=Path, help="interpreter with the packages of requirements-peers.txt")
    parser.add_argument("--threads", type=int, help="threads of every process (as many as torch takes)")
    parser.add_argument("--folder", type=Path, help="where the temporary pool goes (176 MB per checkpoint)")
    parser.add_argument("--out", type=Path, help="also write the table to this .csv file")
    options = parser.parse_args(argv)
    names = options.rows or [row.name for row in ROWS]
    unknown = [name for name in names if name not in [row.name for row in ROWS]]
    if unknown:
        raise FwvizError(f"there is no row {unknown[0]!r}: choose from {'; '.join(row.name for row in ROWS)}.")
    if min(options.checkpoints) < 1:
        raise FwvizError("--checkpoints must be at least 1.")
    if options.peer_python is None:
        print("Peers are left out: --peer-python names an interpreter with the packages of requirements-peers.txt.")
    table = run(
        options.checkpoints,
        [row for row in ROWS if row.name in names],
        peer_python=options.peer_python,
        threads=options.threads,
        folder=options.folder,
    )
    print(f"P = {vit_layout().size:,} parameters, float32 in memory; ratio = our seconds over the peer's")
    digits = {"seconds": 2, "peer_seconds": 1, "ratio": 3, "extra_mib": 0, "peer_extra_mib": 0}
    print(table.round(digits).to_string(index=False))
    if options.out is not None:
        table.to_csv(options.out, index=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
