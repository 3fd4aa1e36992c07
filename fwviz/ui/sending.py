"""What the parts of a page are sent: messages of the run bar, the scrubber, the history, the controls, the charts.

A message set maps the name of a component (see fwviz.ui.app) to what it is sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from fwviz.runs.trace import Trace
from fwviz.types import FwvizError
from fwviz.ui import views
from fwviz.ui.by_hand import by_hand
from fwviz.ui.controls import controls_value
from fwviz.ui.jobs import Job
from fwviz.ui.library import Library
from fwviz.ui.looking import Looking
from fwviz.ui.measured import Measurements
from fwviz.ui.panels.editor import editor_problem, editor_value
from fwviz.ui.panels.history import Row, history_value
from fwviz.ui.panels.merge import export_value, tiles_value
from fwviz.ui.panels.scrubber import scrubber_value, source_line
from fwviz.ui.panels.sidebar import runbar_value
from fwviz.ui.pictures import Shown
from fwviz.ui.state import Session, View
from fwviz.ui.tabs import TABS
from fwviz.ui.wire import difference, says_nothing, version_of

Messages = dict[str, str]
REPEATED = ("runbar", "export", *(f"{tab}_controls" for tab in TABS))  # come whole each time


class Sending:
    """Makes the messages; while a stream is on, only of what a page does not have yet (see ``Session.sent``)."""

    def __init__(self, library: Library, measured: Measurements, looking: Looking) -> None:
        self.board = library.board
        self.library = library
        self.measured = measured
        self.looking = looking

    def runbar(self, job: Job | None, error: str = "") -> str:
        return runbar_value(job, ahead=self.board.ahead(job) if job is not None else 0, error=error)

    def charts(self, session: Session, names: Iterable[str], shown: Shown) -> Messages:
        """The payloads of some charts; while a stream is on, what has changed of them."""
        made = {}
        for name in names:
            if session.sent is not None:
                session.sent[f"mark {name}"] = views.mark(name, shown, self.measured)
            made[name] = views.draw(name, shown, self.measured, session.sent)
        return made

    def changed(self, session: Session, shown: Shown) -> list[str]:
        """The charts of the tab whose pictures are others than those the page was sent since its stream is on."""
        sent = session.sent or {}
        names = views.charts_of(session.tab)
        return [name for name in names if sent.get(f"mark {name}") != views.mark(name, shown, self.measured)]

    def controls(self, session: Session, shown: Shown) -> Messages:
        tab = session.tab
        controls = TABS[tab].controls(shown)
        # Another tab may have been chosen since: its own answer follows, and until then defaults will do.
        values = {control.name: shown.values.get(control.name, control.default) for control in controls}
        said = {aside.control: self.measured.said(aside, shown) for aside in TABS[tab].asides}
        return {f"{tab}_controls": controls_value(tab, controls, values, said)}

    def editor(self, session: Session, shown: Shown, *, judge: bool = True) -> Messages:
        """The table of the merge by hand, on the tab that has it; judged if there is something to judge."""
        if session.tab != "weights":
            return {}
        try:
            hand = by_hand(shown)
            made = self.measured.edit(shown, hand) if shown.edits and judge and not shown.live else None
        except FwvizError as error:
            return {"editor": editor_problem(str(error))}
        return {"editor": editor_value(shown, hand, made)}

    def deck(self, session: Session, shown: Shown, *, replay: bool = False, go: bool = False) -> Messages:
        assert session.view is not None
        job = self.looking.job(session)
        live = job is not None and not job.ended
        title = source_line(shown.trace, shown.trace.recipe.title)
        scrubber = scrubber_value(
            session.view,
            shown.trace,
            views.positions(shown.trace),
            max(shown.index, 0),
            live=live,
            follow=session.index is None,
            title=title,
            default=session.view == self.library.first(),
            replay=replay,
            go=go,
        )
        return {
            "scrubber": less(session, "scrubber", scrubber),
            "tiles": less(session, "tiles", tiles_value(views.tiles(shown.trace, shown.index))),
            "export": export_value(session.view, shown.trace, shown.card),
        }

    def history(self, session: Session) -> str:
        rows = []
        for view in (*(View("run", name) for name in session.runs), *self.library.recorded()):
            try:
                trace = self.library.find(view)
            except FwvizError:
                continue  # forgotten here, still remembered by the browser
            if not self.looking.may_see(session, trace):
                continue
            job = self.board.get(view.id) if view.kind == "run" else None
            rows.append(_row(view, trace, job))
        return history_value(rows, opened=session.view, compared=session.compare)


def less(session: Session, name: str, message: str) -> str:
    """What has changed of a part since its last message; all of it if the page has none, or if that is shorter.

    The part of the page merges it (fwviz.patched), and asks for the whole if it missed the message it builds on.
    """
    if session.sent is None:
        return message
    said = json.loads(message)
    del said["v"]
    before = session.sent.get(name)
    if before is not None:
        message = min(difference(before, said), message, key=len)
    if not says_nothing(message):
        session.sent[name] = (version_of(message), said)
    return message


def news(session: Session, messages: Messages) -> Messages:
    """The messages that say something else than the last of their kind, while a stream is on."""
    if session.sent is None:
        return messages
    fresh = {}
    for name, text in messages.items():
        said = text.partition(",")[2] if name in REPEATED else ""
        if says_nothing(text) or (said and session.sent.get(f"said {name}") == said):
            continue
        session.sent[f"said {name}"] = said
        fresh[name] = text
    return fresh


def forget(session: Session, *names: str) -> None:
    """The page lacks what it was sent of some parts: all of them are sent next."""
    if session.sent is not None:
        for name in names:
            session.sent.pop(name, None)


def _row(view: View, trace: Trace, job: Job | None) -> Row:
    test = trace.final.get("test", {})
    return Row(
        view=view,
        recipe=trace.recipe,
        method_title=trace.recipe.title,
        created=trace.created,
        status=job.state if job is not None and not job.ended else trace.status,
        accuracy=sum(score.accuracy for score in test.values()) / len(test) if test else None,
        seconds=trace.cost.seconds if trace.finished else None,
        note=trace.note,
        pool=trace.pool_title,
    )
