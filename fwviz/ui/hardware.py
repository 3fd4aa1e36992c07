"""The seam to machines that lend a GPU for a while: Hugging Face Spaces with ZeroGPU.

There a function decorated by ``spaces.GPU`` runs in another process that has the GPU: its arguments and what it yields
are pickled, and nothing else comes back. So the run happens there with a recipe alone, and what it yields is recorded
here. The GPU is asked for as long as the run is expected to take. Elsewhere runs go the ordinary way, and the package
is not even imported.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from typing import Any

from fwviz.runs.estimate import expected_seconds
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import Control, run
from fwviz.runs.store import RunStore, RunSummary, RunWriter
from fwviz.runs.trace import Frame, Trace
from fwviz.types import FwvizError, Status

LONGEST = 110  # seconds that a run may hold the GPU; Spaces lend up to 120 to guests
SHORTEST = 20  # what starting a process and moving a model there takes, with some to spare
MARGIN = 1.5  # on what is expected: a run that is cut off is worth nothing

Frames = Callable[[Recipe], Iterator[Frame | Trace]]


def lends_gpu() -> bool:
    """True on a Space with ZeroGPU."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true") and bool(
        importlib.util.find_spec("spaces")
    )


def at_home(recipe: Recipe) -> Recipe:
    """The recipe as this process measures what belongs to no run: in float32, on no GPU that is lent to runs only."""
    return replace(recipe, precision="float32", device="cpu" if lends_gpu() else recipe.device)


def runner(store: RunStore | None = None) -> Callable[..., Generator[Frame, None, Trace]]:
    """What executes a recipe on this machine: the runner itself, or the runner on a borrowed GPU."""
    return functools.partial(borrowed, on_gpu(frames_of, store)) if lends_gpu() else run


def on_gpu(function: Frames, store: RunStore | None = None) -> Frames:
    """The generator as ``spaces.GPU`` decorates it, unchanged where no GPU is lent.

    The GPU is asked for anew at every call, for as long as the runs of the store let expect.
    """
    if not lends_gpu():
        return function
    import spaces

    kept = RunStore() if store is None else store
    decorated: Frames = spaces.GPU(duration=lambda recipe: lent_seconds(recipe, kept.list()))(function)
    return decorated


def lent_seconds(recipe: Recipe, earlier: Iterable[RunSummary]) -> int:
    """For how long to ask for the GPU: what runs like this took, with a margin; the most there is if none is known."""
    expected = expected_seconds(recipe, earlier)
    return LONGEST if expected is None else round(min(max(MARGIN * expected, SHORTEST), LONGEST))


def frames_of(recipe: Recipe) -> Iterator[Frame | Trace]:
    """The frames of a run, then its trace: all that leaves the process with the GPU."""
    trace = yield from run(recipe)
    yield trace


def borrowed(frames: Frames, recipe: Recipe, *, control: Control, writer: RunWriter) -> Generator[Frame, None, Trace]:
    """Run a recipe through ``frames`` and record it here. A stop ends it without the scores on the test data,
    and experts of a merge stay behind. What the machine says when it lends no GPU becomes the note of the run.

    Runs that ask for cuda go there; others stay in this process and obey the control in full.
    """
    if not recipe.device.startswith("cuda"):
        return (yield from run(recipe, control=control, writer=writer))
    from fwviz.runs.assemble import assemble, describe

    # What is run is what was asked for, though only the other process knows the name of its GPU.
    here = describe(assemble(replace(recipe, device="cpu")))
    header = writer.describe(replace(here, recipe=recipe, device="a borrowed GPU"))
    known: list[Frame] = []
    note = "the GPU was taken back before the run had ended: take fewer steps."
    items: Any = frames(recipe)
    with contextlib.closing(items):  # which takes the GPU back at once
        try:
            for item in items:
                if isinstance(item, Trace):
                    done = replace(item, id=header.id, created=header.created, recipe=recipe)
                    writer.describe(done)
                    writer.finish(done)
                    return done
                known.append(item)
                writer.append(item)
                yield item
                control.wait()
                if control.stopped:
                    break
        except Exception as error:
            note = _said(error)
    status: Status = "stopped" if control.stopped else "failed"
    trace = replace(header, frames=tuple(known), status=status, note="" if control.stopped else note)
    writer.finish(trace)
    return trace


def _said(error: Exception) -> str:
    """The sentence of an error that is meant for people; any other goes on."""
    import gradio as gr

    if isinstance(error, FwvizError):
        return str(error)
    if not isinstance(error, gr.Error):
        raise error
    return f"no GPU was lent ({str(error.message).rstrip('. ')}): try again later or set device to cpu."
