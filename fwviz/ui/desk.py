"""The events of all pages: each changes where a page stands and answers with what the page is sent. No gradio here."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

from fwviz.pools.open import first_pool, pool_ids
from fwviz.runs.recipe import GIVEN, Recipe
from fwviz.types import Coefficients, FwvizError
from fwviz.ui import state, views, wire
from fwviz.ui.bringing import Bringing, Told
from fwviz.ui.by_hand import by_hand
from fwviz.ui.controls import parse
from fwviz.ui.forms import Forms, link_of
from fwviz.ui.jobs import Job, JobBoard
from fwviz.ui.library import Library
from fwviz.ui.looking import Looking
from fwviz.ui.measured import Measurements
from fwviz.ui.measuring import Measurement
from fwviz.ui.panels.merge import tiles_value
from fwviz.ui.panels.pins import pins_value
from fwviz.ui.panels.scrubber import scrubbed
from fwviz.ui.panels.sidebar import own_value, recipe_value, runbar_value
from fwviz.ui.pictures import Shown
from fwviz.ui.sending import Messages, Sending, forget, less, news
from fwviz.ui.shelf import PREFIX, Shelf
from fwviz.ui.state import Opening, Session, View
from fwviz.ui.tabs import PICTURES, TABS

PROMISE = "promise_reality"

_log = logging.getLogger(__name__)


class Desk:
    """Answers for all pages. Holds no page's data: a page is a :class:`Session` of ids and positions."""

    def __init__(self, board: JobBoard, library: Library) -> None:
        self.board = board
        self.library = library
        self.sessions = state.Sessions()
        self.measured = Measurements(board)
        self.shelf = Shelf(gone=self._gone)
        self.bringing = Bringing(self.shelf, board)
        self.forms = Forms(board, library, self.shelf)
        self.looking = Looking(library, self.measured, self.shelf)
        self.sending = Sending(library, self.measured, self.looking)

    # --- opening a page ---------------------------------------------------------------------------

    def open(self, session: Session, opening: Opening) -> Messages:
        """Everything a page shows first. What cannot be honoured is said in the run bar."""
        problem = opening.problem
        session.own = self.shelf.enter(session.id, opening.own)
        session.narrow, session.tab, session.runs = opening.narrow, opening.tab, opening.runs
        session.view = self.library.first(opening.recipe_query.get("pool")) or self.library.first()
        session.index = opening.index
        session.checkpoint, session.layer, session.edits = opening.checkpoint, opening.layer, opening.edits
        session.values = {tab: dict(values) for tab, values in opening.values.items()}
        if opening.job is not None:
            try:
                if not self.looking.may_see(session, self.library.find(opening.job)):
                    raise FwvizError("it is of somebody's own pool, which only their page can see.")
                session.view = opening.job
            except FwvizError as error:
                problem = f"The link's run cannot be shown: {error}"
        session.compare = opening.compare or self._comparable(session.view, self.library.recorded())
        messages: Messages = {}
        try:
            recipe = self.forms.first(session, opening)
            messages["form"] = self.forms.value(session, recipe, None)
        except FwvizError as error:
            problem = str(error)
            if pool_ids():
                messages["form"] = self.forms.value(session, self.forms.fallback(first_pool()), "")
        # Someone who comes without a link sees the recording move; with reduced motion the page jumps to its end.
        replay = opening.job is None and opening.index is None
        if replay:
            session.index = 0
        self._begin(session)
        messages |= self.show(session, replay=replay)
        job = self.looking.job(session)
        if problem or job is None:
            messages["runbar"] = runbar_value(job, error=problem)
        return messages

    def choose_pool(self, session: Session, data: Any) -> Messages:
        """Another pool: its tasks and checkpoints, and instead of a recording of another pool one of its own."""
        messages = self.forms.choose_pool(session, data)
        pool = state.parse_event(data)["pool"]
        recording, view = self.library.first(pool), session.view
        if recording is None or (
            view is not None and (view.kind == "run" or self.library.find(view).recipe.pool == pool)
        ):
            return messages
        self.look_at(session, recording)
        session.compare = self._comparable(recording, self.library.recorded())
        self._begin(session)
        return messages | self.show(session)

    def check(self, session: Session, data: Any) -> tuple[Recipe, Messages]:
        """An edited recipe: its link, or one sentence on what is wrong with it. A new page keeps its link."""
        recipe = self.forms.parse(session, data)
        if data.get("what") == "open":
            return recipe, {"form": self.forms.relevance(recipe)}
        runbar = self.sending.runbar(self.looking.job(session))
        return recipe, {"form": self.forms.relevance(recipe, recipe.to_url()), "runbar": runbar}

    # --- running ----------------------------------------------------------------------------------

    def start(self, session: Session, owner: str, data: Any, *, paused: bool) -> Messages:
        """Begin a run and look at it. ``paused`` begins with one iterate and then holds."""
        recipe = self.forms.parse(session, data)
        job = self._submit(session, owner, recipe)
        if paused:
            job.control.step()
        messages = self.show(session, charts=job.state == "queued")
        return {"form": self.forms.relevance(recipe, recipe.to_url()), **messages}

    def _submit(self, session: Session, owner: str, recipe: Recipe) -> Job:
        """Queue a run and look at it."""
        job = self.board.submit(recipe, owner)
        if recipe.pool.startswith(PREFIX):
            self.shelf.ran(session.own, job.id)
        view = View("run", job.id)
        self.look_at(session, view)
        session.compare = self._comparable(view, session.compare)
        session.runs = (job.id, *session.runs)[: state.MAX_RUNS]
        return job

    def _comparable(self, view: View | None, others: Sequence[View]) -> tuple[View, ...]:
        """A run and those of ``others`` that are of its pool: who wants to compare across pools ticks their runs."""
        pools = {}
        for one in (view, *others):
            with contextlib.suppress(FwvizError):  # deleted meanwhile
                pools[one] = self.library.find(one).recipe.pool if one is not None else None
        return tuple(one for one in pools if one is not None and pools[one] == pools.get(view))[: state.MAX_COMPARED]

    def step(self, session: Session) -> Messages:
        job = self._live_job(session)
        job.control.step()
        return self._changed(session, job)

    def pause(self, session: Session) -> Messages:
        """Pause, or resume if it is paused."""
        job = self._live_job(session)
        if job.control.state == "paused":
            job.control.resume()
        else:
            job.control.pause()
        return self._changed(session, job)

    def stop(self, session: Session) -> Messages:
        job = self._live_job(session)
        self.board.stop(job)
        return self._changed(session, job)

    def _changed(self, session: Session, job: Job) -> Messages:
        session.index = None
        self.board.touch(job)
        return {"runbar": self.sending.runbar(job)}

    def _live_job(self, session: Session) -> Job:
        job = self.looking.job(session)
        if job is None or job.ended:
            raise FwvizError("there is no run under way: press Run to start one.")
        return job

    # --- what visitors bring ------------------------------------------------------------------------

    def bring(self, session: Session, owner: str, data: Any) -> Generator[Messages, None, None]:
        """Make a pool of what a visitor brings: how far it is, then the pool in the form, its base looked at.

        What is wrong with it is said where it was brought.
        """
        try:
            for told in self.bringing.bring(session.own, self.forms.pools(session), data):
                yield self._brought(session, owner, told) if "pool" in told else {"form": own_value(told)}
        except FwvizError as error:
            yield {"form": own_value({"problem": wire.sentence(error)})}
        except Exception:
            _log.exception("what a visitor brought could not be made a pool")
            yield {"form": own_value({"problem": "Something unexpected happened on the server: its log says what."})}

    def _brought(self, session: Session, owner: str, told: Told) -> Messages:
        """A pool that was made: chosen in the form, and the base alone as the run to look at, which needs no merge."""
        recipe = self.forms.fallback(told["pool"])
        messages = {"form": self.forms.value(session, recipe, recipe.to_url(), told)}
        zeros = Coefficients("model", ((0.0,) * len(recipe.checkpoints),))
        with contextlib.suppress(FwvizError):  # too many runs under way: the ranking waits for Run
            self._submit(session, owner, replace(recipe, method=GIVEN, settings={"scale": 1.0}, coefficients=zeros))
            messages |= self.show(session)
        return messages

    def _gone(self, pools: Sequence[str], runs: Sequence[str]) -> None:
        """A visitor has left: what is under way for them ends, and the records of their own pools' runs are deleted."""
        for job in filter(None, map(self.board.get, runs)):
            if not job.ended:
                job.control.stop(at_once=True)
                self.board.stop(job)
            deadline = time.monotonic() + 30  # a run that is under way still writes
            while not job.ended and time.monotonic() < deadline:
                self.board.wait(job, job.version, 1.0)
        for name in runs:
            with contextlib.suppress(FwvizError):
                self.library.forget(View("run", name))

    # --- looking ----------------------------------------------------------------------------------

    def look_at(self, session: Session, view: View, index: int | None = None) -> None:
        session.view, session.index = view, index

    def show(self, session: Session, *, replay: bool = False, charts: bool = True) -> Messages:
        """Everything that depends on what the page looks at, charts of its tab included unless they can wait."""
        messages = {"runbar": self.sending.runbar(self.looking.job(session)), "history": self.sending.history(session)}
        shown = self.looking.shown(session)
        if shown is None:
            return messages
        messages |= {"pins": pins_value(shown), **self.sending.controls(session, shown)}
        messages |= self.sending.editor(session, shown) | self.sending.deck(session, shown, replay=replay)
        return messages | self.sending.charts(session, views.charts_of(session.tab) if charts else (), shown)

    def update(self, session: Session) -> Messages:
        """What changed of a run or a measurement under way since the page was told of it last.

        Charts keep their pictures until a run has its first frame: to draw empty ones would delay it.
        """
        shown = self.looking.shown(session)
        job = self.looking.job(session)
        messages = {"runbar": self.sending.runbar(job)}
        if shown is None:
            return messages
        starting = job is not None and not job.ended and not job.frames
        names = [] if starting else self.sending.changed(session, shown)
        if TABS[session.tab].asides:
            messages |= self.sending.controls(session, shown)
        deck, charts = self.sending.deck(session, shown), self.sending.charts(session, names, shown)
        return news(session, messages | deck | charts)

    def scrub(self, session: Session, data: Any) -> Messages:
        """Move to a frame: the charts that show one frame only."""
        event = state.parse_event(data)
        shown = self.looking.shown(session)
        if shown is None or str(state.parse_view(event.get("view"))) != str(session.view):
            return {"scrubber": scrubbed()}
        index = state.parse_index(event.get("index"), len(shown.trace.frames))
        session.index = None if state.parse_flag(event.get("follow")) else index
        moved = replace(shown, index=index)
        if event.get("whole") is True:  # a message was dropped on the way
            forget(session, "scrubber", "tiles")
            return self.sending.deck(session, moved)
        tiles = less(session, "tiles", tiles_value(views.tiles(shown.trace, index)))
        charts = self.sending.charts(session, views.moved(session.tab), moved)
        return {"scrubber": scrubbed(), "tiles": tiles, **self.sending.editor(session, moved, judge=False), **charts}

    def choose_tab(self, session: Session, data: Any) -> Messages:
        """Another tab: its controls and charts. What was measured for the one before ends."""
        tab = state.parse_tab(state.parse_event(data).get("name"))
        if tab == session.tab:
            return {}  # the browser also tells of the tab it opens with
        self.leave(session)
        session.tab = tab
        self._begin(session)
        shown = self.looking.shown(session)
        if shown is None:
            return {}
        charts = self.sending.charts(session, views.charts_of(session.tab), shown)
        return self.sending.controls(session, shown) | self.sending.editor(session, shown) | charts

    def _begin(self, session: Session) -> None:
        """Begin to measure what a tab shows first, unless the machine is at work for somebody."""
        shown = self.looking.shown(session)
        if shown is None or shown.live or self.board.busy:
            return
        for picture in TABS[session.tab].pictures:
            if picture.auto and not picture.unless(shown):
                self.measured.begin(picture, shown, session.id)

    def edit(self, session: Session, data: Any) -> Messages:
        """Coefficients changed by hand: the merge they make, judged on the quick subset."""
        edits = state.parse_edits(state.parse_event(data).get("edits"))
        shown = self.looking.shown(session)
        if shown is None:
            return {}
        layers = ("", *shown.trace.groups.get("layer", ()))
        for layer, checkpoint, _ in edits:
            state.parse_id(checkpoint, shown.trace.checkpoints, "checkpoint in this run")
            state.parse_id(layer, layers, "layer in this model")
        session.edits = edits
        return self.sending.editor(session, replace(shown, edits=edits))

    def take(self, session: Session) -> Messages:
        """The merge by hand becomes the recipe of the sidebar."""
        shown = self.looking.shown(session)
        if shown is None or not shown.edits:
            raise FwvizError("nothing has been changed by hand yet: move a coefficient first.")
        recipe = self.measured.edit(shown, by_hand(shown)).recipe
        form = recipe_value(recipe, link_of(recipe), self.forms.forecast(recipe))
        return {"form": form, "runbar": self.sending.runbar(self.looking.job(session))}

    def change(self, session: Session, data: Any) -> Messages:
        """A control was moved: the charts that depend on it."""
        event = state.parse_event(data)
        name = state.parse_control_name(event.get("name"))
        shown = self.looking.shown(session)
        if shown is None:
            return {}
        known = {control.name: control for control in TABS[session.tab].controls(shown)}
        if name not in known:
            raise FwvizError("there is no such control.")
        value = parse(known[name], event.get("value"))
        session.values.setdefault(session.tab, {})[name] = value
        before, shown = shown, self.looking.shown(session)
        assert shown is not None
        # Choices may depend on other controls: then these stand elsewhere now.
        names = [n for n in shown.values if shown.values[n] != before.values.get(n)] or [name]
        after = TABS[session.tab].controls(shown)
        strip = {} if [*known.values()] == [*after] else self.sending.controls(session, shown)
        return strip | self.sending.charts(session, views.touched(session.tab, *names), shown)

    def settle(self, session: Session, data: Any) -> Messages:
        """A control was let go: what is measured beside it, instead of what was for where it stood before."""
        messages, shown = self.change(session, data), self.looking.shown(session)
        if shown is None:
            return messages
        for aside in TABS[session.tab].asides:
            if aside.control == state.parse_event(data).get("name"):
                self.measured.begin(aside, shown, _beside(session))
        return messages | self.sending.controls(session, shown)

    def open_view(self, session: Session, data: Any) -> Messages:
        """Look at a run of the history, from its last frame, or its live end."""
        view = state.parse_view(state.parse_event(data).get("id"))
        if not self.looking.may_see(session, self.library.find(view)):
            raise FwvizError("that run is of somebody's own pool, which only their page can see.")
        self.look_at(session, view)
        return self.show(session)

    def compare(self, session: Session, data: Any) -> Messages:
        session.compare = state.parse_compared(state.parse_event(data).get("ids"))
        shown = self.looking.shown(session)
        charts = self.sending.charts(session, views.touched(session.tab, "compared"), shown) if shown else {}
        return {"history": self.sending.history(session), **charts}

    def forget(self, session: Session, data: Any) -> Messages:
        """Delete one's own run."""
        view = state.parse_view(state.parse_event(data).get("id"))
        if view.kind != "run" or view.id not in session.runs:
            raise FwvizError("only runs of your own can be deleted.")
        self.library.forget(view)
        session.runs = tuple(name for name in session.runs if name != view.id)
        session.compare = tuple(other for other in session.compare if other != view)
        if session.view == view:
            first = self.library.first()
            session.view, session.index = first, None
            return self.show(session)
        return {"history": self.sending.history(session)}

    def pin(self, session: Session, data: Any) -> tuple[Messages, bool]:
        """A click in a chart, or in the lists of pins. True if the way to the pinned checkpoint is to be measured.

        {"pins": {checkpoint, layer}} says what is pinned from now on; {"t": …} goes to a step; {"action": "measure",
        "stop" or "whole", "chart": name} begins or ends a measurement, or asks for a whole picture after a gap.
        """
        event = state.parse_event(data)
        shown = self.looking.shown(session)
        if shown is None:
            return {}, False
        action = event.get("action")
        if action in ("measure", "whole"):
            name = state.parse_id(event.get("chart"), views.charts_of(session.tab), "chart")
            if action == "measure":
                return self.measure(session, name), False
            forget(session, name)
            return self.sending.charts(session, [name], shown), False
        if action == "stop":
            self.measured.board.leave(session.id)
            return self.sending.charts(session, [p.chart for p in TABS[session.tab].pictures if p.long], shown), False
        if event.get("t") is not None:
            index = views.frame_at(shown.trace, event["t"])
            session.index = index
            there = replace(shown, index=index)
            return self.sending.deck(session, there, go=True) | self.sending.charts(
                session, views.moved(session.tab), there
            ), False
        return self._pinned(session, shown, event.get("pins"))

    def _pinned(self, session: Session, shown: Shown, pins: Any) -> tuple[Messages, bool]:
        pins = state.parse_event(pins)
        checkpoint = state.parse_name(pins.get("checkpoint"), "checkpoint")
        layer = state.parse_name(pins.get("layer"), "layer")
        if checkpoint is not None:
            state.parse_id(checkpoint, shown.trace.checkpoints, "checkpoint in this run")
        if layer is not None:
            state.parse_id(layer, shown.trace.groups.get("layer", ()), "layer in this model")
        changed = [n for n, v in (("checkpoint", checkpoint), ("layer", layer)) if v != getattr(session, n)]
        session.checkpoint, session.layer = checkpoint, layer
        shown = replace(shown, checkpoint=checkpoint, layer=layer)
        messages = {"pins": pins_value(shown)} | self.sending.charts(
            session, views.touched(session.tab, *changed), shown
        )
        return messages, session.tab == "relevance" and "checkpoint" in changed and checkpoint is not None

    def measure(self, session: Session, name: str = PROMISE) -> Messages:
        """Measure what one chart needs: at once, or in the background if it takes long."""
        shown = self.looking.shown(session)
        if shown is None:
            return {}
        picture = PICTURES[name]
        problem = picture.unless(shown)
        if problem:
            raise FwvizError(problem)
        if picture.long:
            self.measured.begin(picture, shown, session.id)
        else:
            self.measured.call(picture.call(shown), shown)
        return self.sending.charts(session, [name], shown)

    def measuring(self, session: Session) -> Measurement | None:
        """The measurement under way that the page waits for."""
        return self.measured.board.of(session.id) or self.measured.board.of(_beside(session))

    def leave(self, session: Session) -> None:
        """The page, or its tab, is left: what is measured for it alone ends."""
        self.measured.board.leave(session.id)
        self.measured.board.leave(_beside(session))

    def average(self, session: Session) -> Messages:
        """Measure the plain average that a finished run is compared with, once; the charts that show it."""
        shown = self.looking.shown(session)
        if shown is None or self.board.busy or self.measured.averaged(shown.trace.recipe) is not None:
            return {}
        if shown.card is None or not shown.trace.frames:
            return {}
        with self.board.background() as control:
            self.measured.average(shown.trace.recipe, control)
        return self.sending.charts(session, views.touched(session.tab, "average"), shown)


def _beside(session: Session) -> str:
    """Who waits for what is measured beside a control: another than who waits for a chart, so that neither ends it."""
    return f"{session.id} beside"
