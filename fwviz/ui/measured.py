"""What is not in a trace and has to be measured: scores at any point, the way to a vertex, the plain average.

Each result is kept, so that a question costs once. Measuring takes a second or so on the embedded pool: it is asked for
where a person waits for it (a click, a finished run), never between two updates of a live page.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fwviz.registry import entry
from fwviz.runs.recipe import Recipe
from fwviz.runs.trace import Trace

if TYPE_CHECKING:
    import pandas as pd

    from fwviz.runs.assemble import Assembly
    from fwviz.runs.runner import Control

KEPT = 128
ASSEMBLIES = 2


class Measurements:
    """Results by question, bounded. One measurement at a time: two would only slow each other and the runs."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._assemblies: OrderedDict[str, Assembly] = OrderedDict()
        self._lock = threading.Lock()
        self._device = threading.Lock()

    def lmo(self, trace: Trace, index: int) -> pd.DataFrame:
        """Scores of every checkpoint for every task at the weights of a frame."""
        table: pd.DataFrame = self._once(("lmo", trace.id, index), lambda: self._lens("lmo", trace, index))
        return table

    def layers(self, trace: Trace, index: int) -> pd.DataFrame:
        """Scores of every checkpoint in every layer at the weights of a frame."""
        table: pd.DataFrame = self._once(("layers", trace.id, index), lambda: self._lens("lmo_layers", trace, index))
        return table

    def promise(self, trace: Trace, index: int, vertex: str) -> pd.DataFrame:
        """Promised and measured change of loss on the way from a frame to a vertex ("": the most wanted)."""
        key = ("promise", trace.id, index, vertex)
        table: pd.DataFrame = self._once(key, lambda: self._lens("promise", trace, index, vertex=vertex))
        return table

    def promised(self, trace: Trace, index: int, vertex: str) -> pd.DataFrame | None:
        """The same if it has been measured, else None."""
        table: pd.DataFrame | None = self._known(("promise", trace.id, index, vertex))
        return table

    def average(self, recipe: Recipe, control: Control) -> None:
        """Measure the accuracy of the plain average of the recipe's checkpoints, unless ``control`` says stop."""
        self._once(self._average_key(recipe), lambda: self._average(recipe, control))

    def averaged(self, recipe: Recipe) -> dict[str, dict[str, float]] | None:
        """Split → task → accuracy of the plain average if it has been measured, else None."""
        found: dict[str, dict[str, float]] | None = self._known(self._average_key(recipe))
        return found

    def _average_key(self, recipe: Recipe) -> Hashable:
        return ("average", recipe.pool, recipe.checkpoints, recipe.tasks)

    def _average(self, recipe: Recipe, control: Control) -> dict[str, dict[str, float]] | None:
        from fwviz.runs.runner import execute

        trace = execute(replace(recipe, method="weight_average", settings={}), control=control)
        if control.stopped:
            return None
        return {split: {task: score.accuracy for task, score in row.items()} for split, row in trace.final.items()}

    def _lens(self, name: str, trace: Trace, index: int, **options: Any) -> pd.DataFrame:
        from fwviz.runs.export import merged_weights

        assembly = self._assembly(trace.recipe)
        theta = merged_weights(trace, index, assembly)
        table: pd.DataFrame = entry("lenses", name).run(assembly, theta, **options)
        return table

    def _assembly(self, recipe: Recipe) -> Assembly:
        from fwviz.runs.assemble import assemble

        key = recipe.fingerprint()
        if key not in self._assemblies:
            self._assemblies[key] = assemble(recipe)
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
