"""What each page is shown: from a session, the traces and the pool to the messages of the components. No gradio here.

A message set maps the name of a component (see fwviz.ui.app) to what it is sent.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from fwviz.pools.open import open_pool, pool_ids
from fwviz.registry import entries, entry
from fwviz.runs.assemble import assemble
from fwviz.runs.recipe import Recipe
from fwviz.runs.trace import Trace
from fwviz.types import FwvizError, PoolCard
from fwviz.ui import state, views
from fwviz.ui.jobs import Job, JobBoard
from fwviz.ui.library import Library
from fwviz.ui.measured import Measurements
from fwviz.ui.panels.history import Row, history_value
from fwviz.ui.panels.merge import export_value, tiles_value
from fwviz.ui.panels.scrubber import scrubbed, scrubber_value, source_line
from fwviz.ui.panels.sidebar import form_value, relevance_value, runbar_value
from fwviz.ui.state import Opening, Session, View

Messages = dict[str, str]

FIRST_METHOD = "fw_soft"
MAX_ROWS = 5000

_log = logging.getLogger(__name__)


class Desk:
    """Answers for all pages. Holds no page's data: a page is a :class:`Session` of ids and positions."""

    def __init__(self, board: JobBoard, library: Library) -> None:
        self.board = board
        self.library = library
        self.sessions = state.Sessions()
        self.measured = Measurements()
        self._rankings: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {}
        self._ranking = threading.Lock()

    # --- opening a page ---------------------------------------------------------------------------

    def open(self, session: Session, opening: Opening) -> Messages:
        """Everything a page shows first. What cannot be honoured is said in the run bar."""
        problem = opening.problem
        session.narrow, session.tab, session.runs = opening.narrow, opening.tab, opening.runs
        session.view, session.index = self.library.first(), opening.index
        session.compare = self.library.recorded()[: state.MAX_COMPARED - 1]
        if opening.job is not None:
            try:
                self.library.find(opening.job)
                session.view = opening.job
            except FwvizError as error:
                problem = f"The link's run cannot be shown: {error}"
        messages: Messages = {}
        try:
            recipe = self._first_recipe(session, opening)
            messages["form"] = self._form(recipe, None)
        except FwvizError as error:
            problem = str(error)
            fallback = self._fallback_recipe()
            if fallback is not None:
                messages["form"] = self._form(fallback, "")
        # Someone who comes without a link sees the recording move; with reduced motion the page jumps to its end.
        replay = opening.job is None and opening.index is None
        if replay:
            session.index = 0
        messages |= self.show(session, replay=replay)
        job = self.job(session)
        if problem or job is None:
            messages["runbar"] = runbar_value(job, error=problem)
        return messages

    def _first_recipe(self, session: Session, opening: Opening) -> Recipe:
        """The recipe of the link, else that of the run shown, else the pool's default."""
        if opening.recipe_query:
            query = {"method": FIRST_METHOD, **opening.recipe_query}
            query.setdefault("pool", self._pools()[0])
            state.parse_id(query["pool"], self._pools(), "pool")
            return Recipe.from_url(query, open_pool(query["pool"]).card)
        if session.view is not None:
            recipe = self.library.find(session.view).recipe
            if recipe.pool in self._pools():
                return recipe
        fallback = self._fallback_recipe()
        if fallback is None:
            raise FwvizError("there is no pool of checkpoints here: set FWVIZ_POOLS to a folder that holds one.")
        return fallback

    def _fallback_recipe(self, pool: str | None = None) -> Recipe | None:
        pools = self._pools()
        if not pools:
            return None
        name = pool or pools[0]
        method = FIRST_METHOD if FIRST_METHOD in entries("methods") else next(iter(entries("methods")))
        return Recipe.from_dict({"pool": name, "method": method}, open_pool(name).card)

    # --- the form ---------------------------------------------------------------------------------

    def choose_pool(self, data: Any) -> Messages:
        """Another pool: its tasks and checkpoints, with the pool's default recipe."""
        name = state.parse_id(state.parse_event(data).get("pool"), self._pools(), "pool")
        recipe = self._fallback_recipe(name)
        assert recipe is not None
        return {"form": self._form(recipe, recipe.to_url()), "runbar": runbar_value(None)}

    def check(self, session: Session, data: Any) -> tuple[Recipe, Messages]:
        """An edited recipe: its link, or one sentence on what is wrong with it. A new page keeps its link."""
        recipe = self.parse(data)
        if data.get("what") == "open":
            return recipe, {"form": relevance_value(self._known(recipe))}
        runbar = self._runbar(self.job(session))
        return recipe, {"form": relevance_value(self._known(recipe), recipe.to_url()), "runbar": runbar}

    def parse(self, data: Any) -> Recipe:
        """The recipe of an event, checked against its pool."""
        recipe = state.parse_recipe(state.parse_event(data).get("recipe"), self._pools())
        recipe.check(open_pool(recipe.pool).card)
        return recipe

    def rank(self, recipe: Recipe) -> Iterator[Messages]:
        """Measure which checkpoint each chosen task's oracle wants at the base, a task at a time.

        The recipe itself is opened first: what it reads stays cached, so that Run begins at once.
        """
        pool = open_pool(recipe.pool)
        if self.board.busy:
            return  # the page asks again when the run has ended
        if any(task not in self._known(recipe) for task in recipe.tasks):
            assemble(recipe)
        for task in recipe.tasks:
            if task in self._known(recipe):
                continue
            if self.board.busy:
                return
            with self._ranking:
                if task not in self._known(recipe):
                    asked = replace(recipe, tasks=(task,), checkpoints=pool.checkpoint_ids, seed=0, device="cpu")
                    scores = entry("lenses", "lmo").run(assemble(asked))
                    self._known(recipe)[task] = tuple(scores.sort_values("rank")["checkpoint"])
            yield {"form": relevance_value(self._known(recipe))}

    def _known(self, recipe: Recipe) -> dict[str, tuple[str, ...]]:
        card = open_pool(recipe.pool).card
        return self._rankings.setdefault((recipe.pool, str(card.base.get("sha256"))), {})

    def _form(self, recipe: Recipe, query: str | None) -> str:
        pools = self._pools()
        card = open_pool(recipe.pool).card
        titles = [(name, open_pool(name).card.title) for name in pools]
        return form_value(
            replace(card, id=recipe.pool), pools=titles, recipe=recipe, relevance=self._known(recipe), query=query
        )

    def _pools(self) -> tuple[str, ...]:
        return pool_ids()

    # --- running ----------------------------------------------------------------------------------

    def start(self, session: Session, owner: str, data: Any, *, paused: bool) -> Messages:
        """Begin a run and look at it. ``paused`` begins with one iterate and then holds."""
        recipe = self.parse(data)
        job = self.board.submit(recipe, owner)
        if paused:
            job.control.step()
        view = View("run", job.id)
        self.look_at(session, view)
        session.compare = (view, *session.compare)[: state.MAX_COMPARED]
        session.runs = (job.id, *session.runs)[: state.MAX_RUNS]
        return {"form": relevance_value(self._known(recipe), recipe.to_url()), **self.show(session)}

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
        return {"runbar": self._runbar(job)}

    def job(self, session: Session) -> Job | None:
        """The job in memory the page looks at, if it looks at one."""
        if session.view is None or session.view.kind != "run":
            return None
        return self.board.get(session.view.id)

    def _live_job(self, session: Session) -> Job:
        job = self.job(session)
        if job is None or job.ended:
            raise FwvizError("there is no run under way: press Run to start one.")
        return job

    def _runbar(self, job: Job | None, error: str = "") -> str:
        return runbar_value(job, ahead=self.board.ahead(job) if job is not None else 0, error=error)

    # --- looking ----------------------------------------------------------------------------------

    def look_at(self, session: Session, view: View, index: int | None = None) -> None:
        session.view, session.index, session.vertex = view, index, None

    def show(self, session: Session, *, replay: bool = False) -> Messages:
        """Everything that depends on what the page looks at, charts of its tab included."""
        messages = {"runbar": self._runbar(self.job(session)), "history": self.history(session)}
        shown = self.shown(session)
        if shown is None:
            return messages
        return (
            messages | self._deck(session, shown, replay=replay) | self.charts(session, views.TABS[session.tab], shown)
        )

    def update(self, session: Session, sent: dict[str, Any]) -> Messages:
        """What changed of a run under way since ``sent``, which remembers what the page has."""
        shown = self.shown(session)
        messages = {"runbar": self._runbar(self.job(session))}
        if shown is None:
            return messages
        names = []
        for name in views.TABS[session.tab]:
            mark = views.mark(name, shown, self.measured)
            if sent.get(name) != mark:
                sent[name] = mark
                names.append(name)
        return messages | self._deck(session, shown) | self.charts(session, names, shown)

    def scrub(self, session: Session, data: Any) -> Messages:
        """Move to a frame: the charts that show one frame only."""
        event = state.parse_event(data)
        shown = self.shown(session)
        if shown is None or str(state.parse_view(event.get("view"))) != str(session.view):
            return {"scrubber": scrubbed()}
        index = state.parse_index(event.get("index"), len(shown.trace.frames))
        session.index = None if state.parse_flag(event.get("follow")) else index
        moved = replace(shown, index=index)
        names = [name for name in views.TABS[session.tab] if name in views.OF_ONE_FRAME]
        tiles = tiles_value(views.tiles(shown.trace, index))
        return {"scrubber": scrubbed(), "tiles": tiles, **self.charts(session, names, moved)}

    def choose_tab(self, session: Session, tab: Any) -> Messages:
        if state.parse_tab(tab) == session.tab:
            return {}  # the browser also tells of the tab it opens with
        session.tab = state.parse_tab(tab)
        shown = self.shown(session)
        return self.charts(session, views.TABS[session.tab], shown) if shown is not None else {}

    def open_view(self, session: Session, data: Any) -> Messages:
        """Look at a run of the history, from its last frame, or its live end."""
        view = state.parse_view(state.parse_event(data).get("id"))
        self.library.find(view)
        self.look_at(session, view)
        return self.show(session)

    def compare(self, session: Session, data: Any) -> Messages:
        session.compare = state.parse_compared(state.parse_event(data).get("ids"))
        shown = self.shown(session)
        return {"history": self.history(session), **(self.charts(session, ["comparison"], shown) if shown else {})}

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
        return {"history": self.history(session)}

    def pin(self, session: Session, data: Any) -> tuple[Messages, bool]:
        """A click in a chart: a step to go to, or a checkpoint to look along. True if a promise is to be measured."""
        event = state.parse_event(data)
        shown = self.shown(session)
        if shown is None:
            return {}, False
        select, custom = event.get("select"), event.get("custom")
        if select == "t":
            index = views.frame_at(shown.trace, custom if custom is not None else event.get("x"))
            session.index = index
            moved = replace(shown, index=index)
            names = [name for name in views.TABS[session.tab] if name in views.OF_ONE_FRAME]
            return self._deck(session, moved, go=True) | self.charts(session, names, moved), False
        if select == "checkpoint":
            session.vertex = state.parse_id(custom, shown.trace.checkpoints, "checkpoint in this run")
            return {}, True
        return {}, event.get("action") == "measure"

    def measure(self, session: Session) -> Messages:
        """Measure the promise along θ_t → s for the chosen checkpoint, or for the one the oracle picked."""
        shown = self.shown(session)
        if shown is None:
            return {}
        self.measured.promise(shown.trace, shown.index, shown.vertex or "")
        return self.charts(session, ["promise_reality"], shown)

    def average(self, session: Session) -> Messages:
        """Measure the plain average that a finished run is compared with, once; the charts that show it."""
        shown = self.shown(session)
        if shown is None or self.board.busy or self.measured.averaged(shown.trace.recipe) is not None:
            return {}
        if shown.card is None or not shown.trace.frames:
            return {}
        with self.board.background() as control:
            self.measured.average(shown.trace.recipe, control)
        return self.charts(session, [name for name in views.TABS[session.tab] if name in views.WITH_AVERAGE], shown)

    # --- parts ------------------------------------------------------------------------------------

    def shown(self, session: Session) -> views.Shown | None:
        """What the page looks at, None if there is nothing to look at."""
        if session.view is None:
            return None
        return self._shown(session.view, session.index, session.vertex, session.compare, session.narrow)

    def _shown(
        self, view: View, index: int | None, vertex: str | None, compare: Sequence[View], narrow: bool
    ) -> views.Shown | None:
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
        return views.Shown(
            key=str(view),
            trace=trace,
            index=last if index is None else min(index, last),
            narrow=narrow,
            vertex=vertex,
            compared=tuple(compared),
            card=self._card(trace),
            live=not trace.finished,
        )

    def rows(self, asked: Any) -> str:
        """The table behind a chart as JSON {columns, rows}, or {problem}: the answer to what a payload says to ask."""
        try:
            name, view, index, vertex, compared = state.parse_question(asked, tuple(views.TABLES))
            shown = self._shown(view, index, vertex, compared, False)
            if shown is None:
                raise FwvizError("that run is no longer there.")
            if vertex is not None:
                state.parse_id(vertex, shown.trace.checkpoints, "checkpoint in this run")
            data = views.table(name, shown, self.measured).head(MAX_ROWS)
            return str(data.to_json(orient="split", index=False, double_precision=6)).replace('"data":', '"rows":', 1)
        except FwvizError as error:
            return json.dumps({"problem": str(error)})

    def _card(self, trace: Trace) -> PoolCard | None:
        try:
            return open_pool(trace.recipe.pool).card if trace.recipe.pool in self._pools() else None
        except FwvizError:
            return None

    def charts(self, session: Session, names: Iterable[str], shown: views.Shown) -> Messages:
        return {name: views.draw(name, shown, self.measured) for name in names}

    def _deck(self, session: Session, shown: views.Shown, *, replay: bool = False, go: bool = False) -> Messages:
        assert session.view is not None
        job = self.job(session)
        live = job is not None and not job.ended
        title = source_line(shown.trace, entry("methods", shown.trace.recipe.method).title)
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
            "scrubber": scrubber,
            "tiles": tiles_value(views.tiles(shown.trace, shown.index)),
            "export": export_value(session.view, shown.trace, max(shown.index, 0)),
        }

    def history(self, session: Session) -> str:
        rows = []
        for view in (*(View("run", name) for name in session.runs), *self.library.recorded()):
            try:
                trace = self.library.find(view)
            except FwvizError:
                continue  # forgotten here, still remembered by the browser
            job = self.board.get(view.id) if view.kind == "run" else None
            rows.append(_row(view, trace, job))
        return history_value(rows, opened=session.view, compared=session.compare)


def _row(view: View, trace: Trace, job: Job | None) -> Row:
    test = trace.final.get("test", {})
    return Row(
        view=view,
        recipe=trace.recipe,
        method_title=entry("methods", trace.recipe.method).title,
        created=trace.created,
        status=job.state if job is not None and not job.ended else trace.status,
        accuracy=sum(score.accuracy for score in test.values()) / len(test) if test else None,
        seconds=trace.cost.seconds if trace.finished else None,
        note=trace.note,
    )
