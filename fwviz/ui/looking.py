"""What a page looks at: from its session to the run, frame, pins and controls that charts are drawn from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fwviz.cards import PoolCard
from fwviz.pools.open import open_pool, pool_ids
from fwviz.runs.trace import Trace
from fwviz.types import FwvizError
from fwviz.ui import state, views, wire
from fwviz.ui.controls import values_of
from fwviz.ui.jobs import Job
from fwviz.ui.library import Library
from fwviz.ui.measured import Measurements
from fwviz.ui.pictures import Shown
from fwviz.ui.shelf import PREFIX, Shelf
from fwviz.ui.state import Session, TabId, View
from fwviz.ui.tabs import PICTURES, TABS

MAX_ROWS = 5000


class Looking:
    """Resolves the ids of a session against the library. What is no longer there is left out, not an error."""

    def __init__(self, library: Library, measured: Measurements, shelf: Shelf) -> None:
        self.library = library
        self.shelf = shelf
        self.measured = measured

    def job(self, session: Session) -> Job | None:
        """The job in memory the page looks at, if it looks at one."""
        if session.view is None or session.view.kind != "run":
            return None
        return self.library.board.get(session.view.id)

    def shown(self, session: Session) -> Shown | None:
        """What the page looks at, None if there is nothing to look at."""
        if session.view is None:
            return None
        shown = self._at(session.view, session.index, session.compare, session.narrow)
        if shown is None or not self.may_see(session, shown.trace):
            return None
        # A pin outlives the run it was made in; where there is no such checkpoint, nothing is marked.
        checkpoint = session.checkpoint if session.checkpoint in shown.trace.checkpoints else None
        layer = session.layer if session.layer in shown.trace.groups.get("layer", ()) else None
        shown = replace(shown, checkpoint=checkpoint, layer=layer, edits=session.edits)
        return _valued(shown, session.tab, session.values.get(session.tab, {}))

    def may_see(self, session: Session, trace: Trace) -> bool:
        """Whether a run is of a pool of everybody's, or of the page's own."""
        return self.shelf.may_see(session.own, trace.recipe.pool)

    def rows(self, asked: Any) -> str:
        """The table behind a chart and its command line: JSON {columns, rows, cli}, or {problem}."""
        try:
            question = state.parse_question(asked, tuple(PICTURES))
            shown = self._at(question.view, question.index, question.compared, False)
            if shown is None:
                raise FwvizError("that run is no longer there.")
            if question.checkpoint is not None:
                state.parse_id(question.checkpoint, shown.trace.checkpoints, "checkpoint in this run")
            shown = replace(shown, checkpoint=question.checkpoint, layer=question.layer, edits=question.edits)
            tab = next(tab for tab in TABS.values() if any(p.chart == question.chart for p in tab.pictures))
            shown = _valued(shown, tab.id, question.values)
            data = views.table(question.chart, shown, self.measured).head(MAX_ROWS)
            made = str(data.to_json(orient="split", index=False, double_precision=6)).replace('"data":', '"rows":', 1)
            line = PICTURES[question.chart].call(shown).cli_line(shown, question.chart)
            return f'{made[:-1]},"cli":{json.dumps(line)}}}'
        except FwvizError as error:
            return json.dumps({"problem": wire.placeless(str(error))})

    def _at(self, view: View, index: int | None, compare: Sequence[View], narrow: bool) -> Shown | None:
        try:
            trace = self.library.find(view)
        except FwvizError:
            return None
        last = len(trace.frames) - 1
        compared = []
        for other in compare or ((view,) if trace.finished else ()):
            try:
                compared.append((str(other), self.library.find(other)))
            except FwvizError:
                continue
        return Shown(
            key=str(view),
            trace=trace,
            index=last if index is None else min(index, last),
            narrow=narrow,
            checkpoint=None,
            layer=None,
            compared=tuple(compared),
            card=_card(trace),
            live=not trace.finished,
        )


def _valued(shown: Shown, tab: TabId, raw: Mapping[str, Any]) -> Shown:
    """With the values of a tab's controls; twice, because choices may depend on values."""
    for _ in range(2):
        shown = replace(shown, values=values_of(TABS[tab].controls(shown), raw))
    return shown


def _card(trace: Trace) -> PoolCard | None:
    try:
        known = trace.recipe.pool.startswith(PREFIX) or trace.recipe.pool in pool_ids()
        return open_pool(trace.recipe.pool).card if known else None
    except FwvizError:
        return None
