"""What a tab is made of: pictures, each a lens' table drawn by a chart, with what it depends on.

A tab is one file in fwviz/ui/tabs that holds such records and no logic beyond "which lens with which options".
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fwviz.cards import PoolCard
from fwviz.runs.recipe import Recipe
from fwviz.runs.trace import Trace
from fwviz.ui.controls import Control, Value
from fwviz.ui.state import TabId

if TYPE_CHECKING:
    import pandas as pd

    from fwviz.ui.measured import Measurements

# What a picture can depend on beside the controls of its tab.
#   frame: the frame shown · step: the last iterate before it · growth: all iterates · judged: the accuracies so far
#   end: whether the run has ended · checkpoint, layer: what is pinned · compared: the runs ticked in the history
#   average: the plain average, measured once · edits: coefficients changed by hand
Need = str
MOVED_BY_SCRUBBING = frozenset({"frame", "step"})


@dataclass(frozen=True)
class Shown:
    """What a page looks at: a trace, one of its frames, the width class, what is pinned, the runs compared, controls.

    ``live`` says that the run is under way: then nothing is measured for it, so that the run keeps its pace.
    """

    key: str
    trace: Trace
    index: int
    narrow: bool
    checkpoint: str | None
    layer: str | None
    compared: tuple[tuple[str, Trace], ...]
    card: PoolCard | None
    live: bool
    values: Mapping[str, Value] = field(default_factory=dict)
    edits: tuple[tuple[str, str, float], ...] = ()

    def ask(self, name: str) -> str:
        """What a page sends back to get the table of a chart as it is drawn now."""
        others = [view for view, _ in self.compared]
        parts = [name, self.key, self.index, self.checkpoint, self.layer, others, dict(self.values), self.edits]
        return json.dumps(parts, separators=(",", ":"))

    def text(self, name: str) -> str:
        """A control's value as text."""
        return str(self.values.get(name, ""))

    def number(self, name: str) -> float:
        return float(self.values[name])


@dataclass(frozen=True)
class Call:
    """One call of a lens, which is also a command line.

    ``at`` says what the lens looks at: the "pool" as the recipe has it, the weights of a "frame", the record of the run
    ("trace"), the records of the runs "compared", those "beside" the run shown, which comes first, or the pool and the
    "runs" beside. ``options`` are what differs from the lens' defaults.
    """

    lens: str
    at: Literal["pool", "frame", "trace", "compared", "beside", "runs"]
    options: Mapping[str, Any] = field(default_factory=dict)

    def key(self, shown: Shown) -> Hashable:
        """Equal keys mean equal tables. Seed and device of a recipe change no measurement of the pool, nor does its
        precision: measurements are made in float32.
        """
        recipe = shown.trace.recipe
        where: Hashable = (recipe.pool, recipe.checkpoints, recipe.tasks)
        if self.at == "runs":
            where = (where, *((trace.id, len(trace.frames)) for trace in self.traces(shown)))
        if self.at == "frame":
            where = (shown.trace.id, shown.index)
        return (self.lens, self.at, where, *((k, v) for k, v in sorted(self.options.items())))

    def traces(self, shown: Shown) -> list[Trace]:
        """The records a lens of several runs looks at; beside the one shown, only those of the same pool."""
        if self.at == "compared":
            return [trace for _, trace in shown.compared]
        pool = shown.trace.pool_fingerprint
        return [shown.trace, *(t for key, t in shown.compared if key != shown.key and t.pool_fingerprint == pool)]

    def cli_line(self, shown: Shown, chart: str) -> str:
        """The shell command that makes the same figure without a browser."""
        words = ["fwviz", "lens", self.lens]
        if self.at == "trace":
            words += [shown.trace.id]
        elif self.at in ("compared", "beside"):
            words += [trace.id for trace in self.traces(shown)]
        elif self.at == "frame":
            words += ["--at", shown.trace.id, "--frame", str(shown.index)]
        else:
            recipe: Recipe = shown.trace.recipe
            words += ["--pool", recipe.pool, "--tasks", *recipe.tasks, "--checkpoints", *recipe.checkpoints]
            if self.at == "runs":
                words += ["--traces", *(trace.id for trace in self.traces(shown))]
        for name, value in self.options.items():
            words += [f"--{name.replace('_', '-')}", _word(value)]
        return shlex.join([*words, "--chart", chart, "--out", f"{chart}.html"])


Table = Callable[["Shown", "Measurements"], "pd.DataFrame"]


@dataclass(frozen=True)
class Picture:
    """One chart of a tab.

    ``call`` is the lens it draws. Where the table can be had cheaper than by that call (from the record of the run),
    ``table`` makes it. ``needs`` lists what changes it, names of controls included; ``options`` are those of the chart.
    A ``long`` picture is measured in the background when a person asks for it, and drawn while it grows; ``ask`` stands
    there until then, and with ``auto`` opening the tab is asking. ``action`` is a button of the card: (label, what it
    does). ``grow`` yields the growing table where the lens itself only returns the whole. ``unless`` says why there is
    nothing to draw, if so.
    """

    chart: str
    call: Callable[[Shown], Call]
    needs: tuple[Need, ...] = ()
    table: Table | None = None
    options: Callable[[Shown], Mapping[str, Any]] = lambda shown: {}
    wide: bool = False
    long: bool = False
    auto: bool = False
    grow: Callable[..., Iterator[pd.DataFrame]] | None = None
    ask: str = "Press Measure: the picture grows while it is measured."
    action: tuple[str, str] | None = None
    unless: Callable[[Shown], str] = lambda shown: ""


@dataclass(frozen=True)
class Aside:
    """What is measured when a control is let go, and said in words beside it while the table grows."""

    control: str
    call: Callable[[Shown], Call]
    grow: Callable[..., Iterator[pd.DataFrame]]
    words: Callable[[pd.DataFrame], str]


@dataclass(frozen=True)
class Tab:
    """One tab: its words, its pictures, the controls above them, and what stands beside some of these."""

    id: TabId
    title: str
    lead: str
    pictures: tuple[Picture, ...]
    controls: Callable[[Shown], tuple[Control, ...]] = lambda shown: ()
    asides: tuple[Aside, ...] = ()


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)
