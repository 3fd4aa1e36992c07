"""The seam to machines that lend a GPU for a while: Hugging Face Spaces with ZeroGPU.

There a function decorated by ``spaces.GPU`` runs in another process that has the GPU: its arguments and what it yields
are pickled, and nothing else comes back. So the run happens there with a recipe alone, and what it yields is recorded
here. Without the package, or off that hardware, runs go the ordinary way.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import Any

from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import Control, run
from fwviz.runs.store import RunWriter
from fwviz.runs.trace import Frame, Trace
from fwviz.types import Status

SECONDS = 110  # that a run may hold the GPU; Spaces lend up to 120 to guests


def lends_gpu() -> bool:
    """True on a Space with ZeroGPU."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "true") and bool(importlib.util.find_spec("spaces"))


def runner() -> Callable[..., Generator[Frame, None, Trace]]:
    """What executes a recipe on this machine: the runner itself, or the runner on a borrowed GPU."""
    return functools.partial(borrowed, on_gpu(frames_of)) if lends_gpu() else run


def on_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as ``spaces.GPU`` decorates it, unchanged where there is no such package."""
    if importlib.util.find_spec("spaces") is None:
        return function
    import spaces

    decorated: Callable[..., Any] = spaces.GPU(duration=lambda recipe: SECONDS)(function)
    return decorated


def frames_of(recipe: Recipe) -> Iterator[Frame | Trace]:
    """The frames of a run, then its trace: all that leaves the process with the GPU."""
    trace = yield from run(recipe)
    yield trace


def borrowed(
    frames: Callable[[Recipe], Iterator[Frame | Trace]], recipe: Recipe, *, control: Control, writer: RunWriter
) -> Generator[Frame, None, Trace]:
    """Run a recipe through ``frames`` and record it here. A stop ends it without the scores on the test data,
    and experts of a merge stay behind.

    Runs that ask for cuda go there; others stay in this process and obey the control in full.
    """
    if not recipe.device.startswith("cuda"):
        return (yield from run(recipe, control=control, writer=writer))
    from fwviz.runs.assemble import assemble, describe

    header = writer.describe(describe(assemble(replace(recipe, device="cpu"))))
    known: list[Frame] = []
    for item in frames(recipe):
        if isinstance(item, Trace):
            done = replace(item, id=header.id)
            writer.finish(done)
            return done
        known.append(item)
        writer.append(item)
        yield item
        control.wait()
        if control.stopped:
            break
    status: Status = "stopped" if control.stopped else "failed"
    note = "" if control.stopped else "the GPU was taken back before the run had ended: take fewer steps."
    trace = replace(header, frames=tuple(known), status=status, note=note)
    writer.finish(trace)
    return trace
