"""What is not in a trace and has to be measured: lenses at any weights, the plain average, and what takes long.

Each result is kept, so that a question costs once. Short measurements answer while a person waits for them (a click, a
slider, a finished run) and never run between two updates of a live page; long ones go to the :class:`MeasureBoard`.
"""

from __future__ import annotations

import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fwviz.registry import entry
from fwviz.runs.recipe import Recipe
from fwviz.runs.store import RunStore
from fwviz.runs.trace import Trace
from fwviz.types import FwvizError
from fwviz.ui.by_hand import ByHand
from fwviz.ui.hardware import at_home
from fwviz.ui.jobs import JobBoard
from fwviz.ui.measuring import MeasureBoard, Measurement, Work
from fwviz.ui.pictures import Aside, Call, Picture, Shown

if TYPE_CHECKING:
    import pandas as pd

    from fwviz.runs.assemble import Assembly
    from fwviz.runs.edit import Edit
    from fwviz.runs.runner import Control

KEPT = 128
ASSEMBLIES = 2


class Measurements:
    """Results by question, bounded. One short measurement at a time: two would only slow each other and the runs."""

    def __init__(self, board: JobBoard) -> None:
        self.board = MeasureBoard(board)
        self._store = board.store
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._assemblies: OrderedDict[Hashable, Assembly] = OrderedDict()
        self._lock = threading.Lock()
        self._device = threading.Lock()

    def call(self, call: Call, shown: Shown) -> pd.DataFrame:
        """The table of one lens; what only reads a record is not kept."""
        lens = entry("lenses", call.lens).run
        if call.at == "trace":
            table: pd.DataFrame = lens(shown.trace, **_with_card(lens, shown), **call.options)
            return table
        if call.at in ("compared", "beside"):
            table = lens(call.traces(shown), **_with_card(lens, shown), **call.options)
            return table
        table = self._once(call.key(shown), lambda: lens(**self._sources(call, shown), **call.options))
        return table

    def known(self, call: Call, shown: Shown) -> pd.DataFrame | None:
        """The table if it has been measured, else None."""
        table: pd.DataFrame | None = self._known(call.key(shown))
        return table

    def grown(self, call: Call, shown: Shown, ask: str) -> pd.DataFrame:
        """What there is by now of a long measurement; FwvizError with ``ask``, or with why there is nothing yet."""
        found = self.board.get(call.key(shown))
        if found is not None and found.table is not None:
            return found.table
        if found is not None and found.state == "failed":
            raise FwvizError(found.said)
        raise FwvizError(ask if found is None or found.ended else "The first numbers are on their way.")

    def said(self, aside: Aside, shown: Shown) -> str:
        """What there is by now of a measurement beside a control; nothing until the control has been let go here."""
        if aside.control not in shown.values:  # those of a tab that has just been left
            return ""
        found = self.board.get(aside.call(shown).key(shown))
        if found is None:
            return ""
        if found.table is not None:
            return aside.words(found.table)
        said = {"waiting": "waiting for a free place …", "running": "merging …", "failed": found.said}
        return said.get(found.state, "")

    def begin(self, picture: Picture | Aside, shown: Shown, owner: str) -> Measurement:
        """Have what a picture draws, or an aside says, measured in the background, with an assembly of its own."""
        call = picture.call(shown)
        grow = picture.grow or entry("lenses", call.lens).run
        return self.board.ask(call.key(shown), owner, _work(call, grow, shown, self._store))

    def edit(self, shown: Shown, hand: ByHand) -> Edit:
        """The merge of these coefficients, rebuilt and judged."""
        recipe = shown.trace.recipe
        key = ("edit", recipe.pool, recipe.checkpoints, recipe.tasks, hand.granularity, hand.values)

        def judge() -> Edit | None:
            from fwviz.runs.edit import edited

            return edited(self._assembly(recipe), hand.granularity, hand.values)

        made: Edit = self._once(key, judge)
        return made

    def average(self, recipe: Recipe, control: Control) -> None:
        """Measure the accuracy of the plain average of the recipe's checkpoints, unless ``control`` says stop."""
        self._once(_average_key(recipe), lambda: _average(recipe, control))

    def averaged(self, recipe: Recipe) -> dict[str, dict[str, float]] | None:
        """Split → task → accuracy of the plain average if it has been measured, else None."""
        found: dict[str, dict[str, float]] | None = self._known(_average_key(recipe))
        return found

    def _sources(self, call: Call, shown: Shown) -> dict[str, Any]:
        assembly = self._assembly(shown.trace.recipe)
        sources = {"assembly": assembly, **_weights(call, shown.trace, shown.index, assembly)}
        return sources | _records(call, shown)

    def _assembly(self, recipe: Recipe) -> Assembly:
        from fwviz.runs.assemble import assemble

        key = (recipe.pool, recipe.checkpoints, recipe.tasks, recipe.device, recipe.dtype, recipe.storage)
        if key not in self._assemblies:
            self._assemblies[key] = assemble(at_home(recipe))
        self._assemblies.move_to_end(key)
        while len(self._assemblies) > ASSEMBLIES:
            self._assemblies.popitem(last=False)
        return self._assemblies[key]

    def _known(self, key: Hashable) -> Any:
        with self._lock:
            return self._kept.get(key)

    def _once(self, key: Hashable, measure: Callable[[], Any]) -> Any:
        found = self._known(key)
        if found is not None:
            return found
        with self._device:
            found = self._known(key)
            if found is None:
                found = measure()
                if found is None:  # was told to stop: the next who asks begins again
                    return found
                with self._lock:
                    self._kept[key] = found
                    while len(self._kept) > KEPT:
                        self._kept.popitem(last=False)
        return found


def _with_card(lens: Callable[..., Any], shown: Shown) -> dict[str, Any]:
    return {"card": shown.card} if "card" in inspect.signature(lens).parameters else {}


def _weights(call: Call, trace: Trace, index: int, assembly: Assembly) -> dict[str, Any]:
    """The weights of the frame a lens looks from, if it looks from one."""
    if call.at != "frame":
        return {}
    from fwviz.runs.export import merged_weights

    named = "backbone" in inspect.signature(entry("lenses", call.lens).run).parameters and trace.has_parts
    return {"theta": merged_weights(trace, index, assembly)} | ({"backbone": True} if named else {})


def _records(call: Call, shown: Shown) -> dict[str, Any]:
    """The runs that a lens of the pool places in its picture, if it does."""
    return {"traces": call.traces(shown)} if call.at == "runs" else {}


def _work(call: Call, grow: Callable[..., Iterator[pd.DataFrame]], shown: Shown, store: RunStore) -> Work:
    def work(check: Callable[[], None]) -> Iterator[pd.DataFrame]:
        from fwviz.runs.assemble import assemble

        check()
        assembly = assemble(at_home(shown.trace.recipe), check=check)
        sources: dict[str, Any] = {"assembly": assembly, **_weights(call, shown.trace, shown.index, assembly)}
        if "store" in inspect.signature(grow).parameters:  # what is run for the picture is kept like any run
            sources["store"] = store
        yield from grow(**sources, **_records(call, shown), **call.options)

    return work


def _average_key(recipe: Recipe) -> Hashable:
    return ("average", recipe.pool, recipe.checkpoints, recipe.tasks)


def _average(recipe: Recipe, control: Control) -> dict[str, dict[str, float]] | None:
    from fwviz.runs.runner import execute

    trace = execute(replace(at_home(recipe), method="weight_average", settings={}), control=control)
    if control.stopped:
        return None
    if trace.status == "failed":
        raise FwvizError(trace.note)
    return {split: {task: score.accuracy for task, score in row.items()} for split, row in trace.final.items()}
