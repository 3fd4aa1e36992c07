"""Runs on disk, one folder each.

::

    <id>/header.json     recipe, group names, reference rows, device, versions   (written first)
    <id>/frames.jsonl    one frame a line, flushed as they come
    <id>/extension.json  experts and router of a merge that has them, with safetensors files beside it
    <id>/result.json     status, note, cost                                      (written last)
    <id>/frames.parquet  the table of the frames, for other tools

A run that was killed midway has no result.json: everything up to the last full line is readable and the run is marked
failed. The writer holds a lock on frames.jsonl, which is how a reader tells "under way" from "cut off".
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from fwviz.pools.making import sweep
from fwviz.runs.extension import Kept, load_kept, save_kept
from fwviz.runs.recipe import Recipe
from fwviz.runs.trace import FORMAT, Cost, Frame, Trace
from fwviz.types import FwvizError, Status

try:
    import fcntl
except ImportError:  # Windows: a run under way cannot be told from one cut off
    fcntl = None  # type: ignore[assignment]

MAX_RUNS = 200
MAX_STORE_BYTES = 1 << 30
MAX_INNER_BYTES = 16 << 20
CUT_OFF = "the run was cut off before it finished"

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
_CREATED = re.compile(r"\d{8}-\d{6}-\d{3}-\w{1,60}-[0-9a-f]{6}")  # the ids that are given, see RunStore.create


def default_root() -> Path:
    """``FWVIZ_RUNS`` or ``~/.cache/fwviz/runs``."""
    return Path(os.environ.get("FWVIZ_RUNS") or Path.home() / ".cache" / "fwviz" / "runs")


@dataclass(frozen=True)
class RunSummary:
    """One line of a run list. ``accuracy`` is the mean test accuracy in [0, 1], None if it was not measured."""

    id: str
    created: str
    recipe: Recipe
    status: Status
    note: str
    accuracy: float | None
    seconds: float
    pool_fingerprint: str


class RunStore:
    """The runs under one folder. Bounded: :meth:`create` drops the oldest finished runs beyond the limits.

    It also sweeps what was left without a header by a process that was killed while it made or deleted a run.
    """

    def __init__(
        self, root: Path | str | None = None, *, max_runs: int = MAX_RUNS, max_bytes: int = MAX_STORE_BYTES
    ) -> None:
        self.root = Path(root) if root is not None else default_root()
        self.max_runs = max_runs
        self.max_bytes = max_bytes

    def create(self, recipe: Recipe) -> RunWriter:
        """A new run folder with its header. Raises FwvizError if the folder cannot be written."""
        created = datetime.now(UTC)
        moment = f"{created:%Y%m%d-%H%M%S}-{created.microsecond // 1000:03}"
        run_id = f"{moment}-{recipe.method}-{secrets.token_hex(3)}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._make_room()
            folder = self.root / run_id
            folder.mkdir()
            trace = Trace(run_id, recipe, "", "", {}, {}, {}, created=created.isoformat(timespec="seconds"))
            return RunWriter(folder, trace)
        except OSError as error:
            raise FwvizError(f"the run store {self.root} cannot be written ({error.strerror}).") from None

    def ids(self) -> tuple[str, ...]:
        """Ids of all runs, newest first."""
        if not self.root.is_dir():
            return ()
        found = (f.name for f in self.root.iterdir() if _RUN_ID.fullmatch(f.name) and (f / "header.json").is_file())
        return tuple(sorted(found, reverse=True))

    def list(self) -> tuple[RunSummary, ...]:
        """Summaries of all readable runs, newest first."""
        return tuple(self._summaries())

    def summary(self, run_id: str) -> RunSummary:
        """One line of :meth:`list`. Raises FwvizError if there is no such run or it is damaged."""
        folder = self._folder(run_id)
        trace = _with_result(folder, _read_header(folder))
        return RunSummary(
            id=run_id,
            created=trace.created,
            recipe=trace.recipe,
            status=trace.status,
            note=trace.note,
            accuracy=_read_result(folder).get("accuracy"),
            seconds=trace.cost.seconds,
            pool_fingerprint=trace.pool_fingerprint,
        )

    def load(self, run_id: str) -> Trace:
        """The trace of a run, also of one under way or cut off. Raises FwvizError if there is none or it is damaged."""
        folder = self._folder(run_id)
        trace = _read_header(folder)
        frames = tuple(_read_frames(folder / "frames.jsonl"))
        return _with_result(folder, replace(trace, frames=frames))

    def kept(self, run_id: str) -> Kept | None:
        """The parts of the last iterate of a completed run, None if it is all of one part.

        Raises FwvizError if there is no such run or a file of it is damaged.
        """
        folder = self._folder(run_id)
        sizes = _read_header(folder).group_sizes.get("model")
        return load_kept(folder, sizes[0]) if sizes else None

    def delete(self, run_id: str) -> None:
        """Remove a run. Raises FwvizError if there is none or it is under way."""
        folder = self._folder(run_id)
        if _locked(folder):
            raise FwvizError(f"run {run_id!r} is under way: stop it before deleting it.")
        shutil.rmtree(folder)

    def _folder(self, run_id: str) -> Path:
        if not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id):
            raise FwvizError("that is not the id of a run.")
        if not (self.root / run_id / "header.json").is_file():
            raise FwvizError(f"there is no run {run_id!r} in {self.root}.")
        return self.root / run_id

    def _summaries(self) -> Iterator[RunSummary]:
        for run_id in self.ids():
            with contextlib.suppress(FwvizError):
                yield self.summary(run_id)

    def _headless(self) -> Iterator[Path]:
        """Folders of runs that nobody can list, read or delete, and nobody writes."""
        for folder in self.root.iterdir():
            if _CREATED.fullmatch(folder.name) and not (folder / "header.json").exists() and not _locked(folder):
                yield folder

    def _make_room(self) -> None:
        sweep(self._headless())
        sizes = {run_id: _size(self.root / run_id) for run_id in self.ids()}
        total = sum(sizes.values())
        for run_id in reversed(self.ids()):  # oldest first
            if len(sizes) < self.max_runs and total <= self.max_bytes:
                return
            if not _locked(self.root / run_id):
                shutil.rmtree(self.root / run_id, ignore_errors=True)
                total -= sizes.pop(run_id, 0)


class RunWriter:
    """Writes one run: :meth:`describe` once, :meth:`append` per frame, :meth:`finish` once. Used by one thread."""

    def __init__(self, folder: Path, trace: Trace) -> None:
        self.id = trace.id
        self.folder = folder
        self._trace = trace
        self._frames: IO[str] = (folder / "frames.jsonl").open("a", encoding="utf-8")
        self._written = 0
        if fcntl is not None:
            fcntl.flock(self._frames, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._write_header()

    def describe(self, trace: Trace) -> Trace:
        """Complete the header with what is known once the pool is open; returns it with this run's id and date."""
        self._trace = replace(trace, id=self.id, created=self._trace.created, frames=())
        self._write_header()
        return self._trace

    def append(self, frame: Frame) -> None:
        """Record a frame. Beyond 16 MB of a run its inner updates are no longer recorded."""
        if frame.inner and frame.status == "running" and self._written > MAX_INNER_BYTES:
            return
        if self._frames.closed:  # the disk failed before: what followed is not recorded
            return
        line = json.dumps(frame.to_dict(), separators=(",", ":")) + "\n"
        with self._writing():
            self._frames.write(line)
            self._frames.flush()
        self._written += len(line)

    def finish(self, trace: Trace, kept: Kept | None = None) -> None:
        """Record how the run ended, with all of its trace and the parts of its last step; done once."""
        if self._frames.closed:
            return
        test = trace.final.get("test", {})
        result: dict[str, Any] = {"status": trace.status, "note": trace.note, "cost": asdict(trace.cost)}
        result["accuracy"] = sum(s.accuracy for s in test.values()) / len(test) if test else None
        with self._writing():
            os.fsync(self._frames.fileno())
            if kept is not None:
                save_kept(self.folder, kept)
            trace.table().to_parquet(self.folder / "frames.parquet", index=False)
            _write_json(self.folder / "result.json", result)
            self._frames.close()  # releases the lock

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """What the disk refuses is one sentence; the record then ends where it is, and counts as cut off."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                self._frames.close()
            why = getattr(error, "strerror", None) or error
            raise FwvizError(
                f"the run store {self.folder.parent} cannot be written ({why}): make room, or name another folder."
            ) from None

    def _write_header(self) -> None:
        trace = self._trace
        header = {
            "format": FORMAT,
            "id": trace.id,
            "created": trace.created,
            "recipe": trace.recipe.to_dict(),
            "fingerprint": trace.recipe.fingerprint(),
            "pool": {"title": trace.pool_title, "fingerprint": trace.pool_fingerprint},
            "device": trace.device,
            "versions": trace.versions,
            "reference": trace.reference,
            "groups": trace.groups,
            "group_sizes": trace.group_sizes,
        }
        with self._writing():
            _write_json(self.folder / "header.json", header)


def _read_header(folder: Path) -> Trace:
    header = _read_json(folder / "header.json")
    if header.get("format") != FORMAT:
        raise FwvizError(f"run {folder.name!r} has format {header.get('format')!r}, but this version reads {FORMAT}.")
    try:
        return Trace(
            id=folder.name,
            recipe=Recipe.from_dict(header["recipe"]),
            pool_title=header["pool"]["title"],
            pool_fingerprint=header["pool"]["fingerprint"],
            groups={name: tuple(names) for name, names in header["groups"].items()},
            group_sizes={name: tuple(sizes) for name, sizes in header["group_sizes"].items()},
            reference=header["reference"],
            created=header["created"],
            device=header["device"],
            versions=header["versions"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise FwvizError(f"the header of run {folder.name!r} is damaged ({error!r}).") from None


def _read_frames(path: Path) -> Iterator[Frame]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if not line.endswith("\n"):  # the writer was killed, or is, in the middle of this line
                return
            try:
                yield Frame.from_dict(json.loads(line))
            except ValueError:
                raise FwvizError(f"{path.name} of run {path.parent.name!r} holds a line that is no frame.") from None


def _with_result(folder: Path, trace: Trace) -> Trace:
    # The lock is looked at first: a run that finishes in between has its result by then.
    locked = _locked(folder)
    result = _read_result(folder)
    if result:
        try:
            return replace(trace, status=result["status"], note=result["note"], cost=Cost(**result["cost"]))
        except (KeyError, TypeError) as error:
            raise FwvizError(f"the result of run {folder.name!r} is damaged ({error!r}).") from None
    last = trace.frames[-1] if trace.frames else None
    cost = Cost(last.seconds, 0.0, last.bytes_read, last.peak_memory_bytes) if last else Cost()
    if locked:
        return replace(trace, cost=cost)
    return replace(trace, cost=cost, status="failed", note=CUT_OFF)


def _read_result(folder: Path) -> dict[str, Any]:
    return _read_json(folder / "result.json") if (folder / "result.json").is_file() else {}


def _locked(folder: Path) -> bool:
    path = folder / "frames.jsonl"
    if fcntl is None or not path.is_file():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise FwvizError(f"{path.name} of run {path.parent.name!r} cannot be read.")
    return value


def _write_json(path: Path, value: dict[str, Any]) -> None:
    """Write by rename, so that a reader sees the old file or the new one."""
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _size(folder: Path) -> int:
    with contextlib.suppress(FileNotFoundError):  # another process may be deleting it
        return sum(f.stat().st_size for f in folder.iterdir() if f.is_file())
    return 0
