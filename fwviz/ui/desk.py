"""What each page is shown: from a session, the traces and the pool to the messages of the components. No gradio here.

A message set maps the name of a component (see fwviz.ui.app) to what it is sent.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fwviz.pools.open import open_pool, pool_ids
from fwviz.registry import entries, entry
from fwviz.runs.assemble import assemble
from fwviz.runs.recipe import Recipe
from fwviz.runs.trace import Trace
from fwviz.types import FwvizError, PoolCard
from fwviz.ui import state, views
from fwviz.ui.by_hand import by_hand
from fwviz.ui.controls import controls_value, parse, values_of
from fwviz.ui.jobs import Job, JobBoard
from fwviz.ui.library import Library
from fwviz.ui.measured import Measurements
from fwviz.ui.measuring import Measurement
from fwviz.ui.panels.editor import editor_problem, editor_value
from fwviz.ui.panels.history import Row, history_value
from fwviz.ui.panels.merge import export_value, tiles_value
from fwviz.ui.panels.pins import pins_value
from fwviz.ui.panels.scrubber import scrubbed, scrubber_value, source_line
from fwviz.ui.panels.sidebar import form_value, recipe_value, relevance_value, runbar_value
from fwviz.ui.pictures import Shown
from fwviz.ui.state import Opening, Session, TabId, View
from fwviz.ui.tabs import PICTURES, TABS

Messages = dict[str, str]

FIRST_METHOD = "fw_soft"
PROMISE = "promise_reality"
MAX_ROWS = 5000

_log = logging.getLogger(__name__)


class Desk:
    """Answers for all pages. Holds no page's data: a page is a :class:`Session` of ids and positions."""

    def __init__(self, board: JobBoard, library: Library) -> None:
        self.board = board
        self.library = library
        self.sessions = state.Sessions()
        self.measured = Measurements(board)
        self._rankings: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {}
        self._ranking = threading.Lock()

    # --- opening a page ---------------------------------------------------------------------------

    def open(self, session: Session, opening: Opening) -> Messages:
        """Everything a page shows first. What cannot be honoured is said in the run bar."""
        problem = opening.problem
        session.narrow, session.tab, session.runs = opening.narrow, opening.tab, opening.runs
        session.view, session.index = self.library.first(), opening.index
        session.compare = opening.compare or self.library.recorded()[: state.MAX_COMPARED - 1]
        session.checkpoint, session.layer, session.edits = opening.checkpoint, opening.layer, opening.edits
        session.values = {tab: dict(values) for tab, values in opening.values.items()}
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
        self._begin(session)
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
        session.view, session.index = view, index

    def show(self, session: Session, *, replay: bool = False) -> Messages:
        """Everything that depends on what the page looks at, charts of its tab included."""
        messages = {"runbar": self._runbar(self.job(session)), "history": self.history(session)}
        shown = self.shown(session)
        if shown is None:
            return messages
        messages |= {"pins": pins_value(shown), **self._controls(session, shown)}
        messages |= self._editor(session, shown)
        charts = self.charts(session, views.charts_of(session.tab), shown)
        return messages | self._deck(session, shown, replay=replay) | charts

    def update(self, session: Session, marks: dict[str, Any]) -> Messages:
        """What changed of a run or a measurement under way since ``marks``, which remembers what the page has."""
        shown = self.shown(session)
        messages = {"runbar": self._runbar(self.job(session))}
        if shown is None:
            return messages
        names = []
        for name in views.charts_of(session.tab):
            mark = views.mark(name, shown, self.measured)
            if marks.get(name) != mark:
                marks[name] = mark
                names.append(name)
        if shown.live or marks.get("deck") != shown.index:
            marks["deck"] = shown.index
            messages |= self._deck(session, shown)
        return _news(session, messages) | self.charts(session, names, shown)

    def scrub(self, session: Session, data: Any) -> Messages:
        """Move to a frame: the charts that show one frame only."""
        event = state.parse_event(data)
        shown = self.shown(session)
        if shown is None or str(state.parse_view(event.get("view"))) != str(session.view):
            return {"scrubber": scrubbed()}
        index = state.parse_index(event.get("index"), len(shown.trace.frames))
        session.index = None if state.parse_flag(event.get("follow")) else index
        moved = replace(shown, index=index)
        if event.get("whole") is True:  # ticks were dropped on the way
            _forget(session, "scrubber")
            return self._deck(session, moved)
        tiles = tiles_value(views.tiles(shown.trace, index))
        charts = self.charts(session, views.moved(session.tab), moved)
        return {"scrubber": scrubbed(), "tiles": tiles, **self._editor(session, moved, judge=False), **charts}

    def choose_tab(self, session: Session, data: Any) -> Messages:
        """Another tab: its controls and charts. What was measured for the one before ends."""
        tab = state.parse_tab(state.parse_event(data).get("name"))
        if tab == session.tab:
            return {}  # the browser also tells of the tab it opens with
        self.measured.board.leave(session.id)
        session.tab = tab
        self._begin(session)
        shown = self.shown(session)
        if shown is None:
            return {}
        charts = self.charts(session, views.charts_of(session.tab), shown)
        return self._controls(session, shown) | self._editor(session, shown) | charts

    def _begin(self, session: Session) -> None:
        """Begin to measure what a tab shows first, unless the machine is at work for somebody."""
        shown = self.shown(session)
        if shown is None or shown.live or self.board.busy:
            return
        for picture in TABS[session.tab].pictures:
            if picture.auto and not picture.unless(shown):
                self.measured.begin(picture, shown, session.id)

    def edit(self, session: Session, data: Any) -> Messages:
        """Coefficients changed by hand: the merge they make, judged on the quick subset."""
        edits = state.parse_edits(state.parse_event(data).get("edits"))
        shown = self.shown(session)
        if shown is None:
            return {}
        layers = ("", *shown.trace.groups.get("layer", ()))
        for layer, checkpoint, _ in edits:
            state.parse_id(checkpoint, shown.trace.checkpoints, "checkpoint in this run")
            state.parse_id(layer, layers, "layer in this model")
        session.edits = edits
        return self._editor(session, replace(shown, edits=edits))

    def take(self, session: Session) -> Messages:
        """The merge by hand becomes the recipe of the sidebar."""
        shown = self.shown(session)
        if shown is None or not shown.edits:
            raise FwvizError("nothing has been changed by hand yet: move a coefficient first.")
        recipe = self.measured.edit(shown, by_hand(shown)).recipe
        return {"form": recipe_value(recipe, _link_of(recipe)), "runbar": self._runbar(self.job(session))}

    def _editor(self, session: Session, shown: Shown, *, judge: bool = True) -> Messages:
        """The table of the merge by hand, on the tab that has it; judged if there is something to judge."""
        if session.tab != "weights":
            return {}
        try:
            hand = by_hand(shown)
            made = self.measured.edit(shown, hand) if shown.edits and judge and not shown.live else None
        except FwvizError as error:
            return {"editor": editor_problem(str(error))}
        return {"editor": editor_value(shown, hand, made)}

    def change(self, session: Session, data: Any) -> Messages:
        """A control was moved: the charts that depend on it."""
        event = state.parse_event(data)
        name = state.parse_control_name(event.get("name"))
        shown = self.shown(session)
        if shown is None:
            return {}
        known = {control.name: control for control in TABS[session.tab].controls(shown)}
        if name not in known:
            raise FwvizError("there is no such control.")
        value = parse(known[name], event.get("value"))
        session.values.setdefault(session.tab, {})[name] = value
        before, shown = shown, self.shown(session)
        assert shown is not None
        # Choices may depend on other controls: then these stand elsewhere now.
        names = [n for n in shown.values if shown.values[n] != before.values.get(n)] or [name]
        after = TABS[session.tab].controls(shown)
        strip = {} if [*known.values()] == [*after] else self._controls(session, shown)
        return strip | self.charts(session, views.touched(session.tab, *names), shown)

    def open_view(self, session: Session, data: Any) -> Messages:
        """Look at a run of the history, from its last frame, or its live end."""
        view = state.parse_view(state.parse_event(data).get("id"))
        self.library.find(view)
        self.look_at(session, view)
        return self.show(session)

    def compare(self, session: Session, data: Any) -> Messages:
        session.compare = state.parse_compared(state.parse_event(data).get("ids"))
        shown = self.shown(session)
        charts = self.charts(session, views.touched(session.tab, "compared"), shown) if shown else {}
        return {"history": self.history(session), **charts}

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
        """A click in a chart, or in the lists of pins. True if the way to the pinned checkpoint is to be measured.

        {"pins": {checkpoint, layer}} says what is pinned from now on; {"t": …} goes to a step; {"action": "measure",
        "stop" or "whole", "chart": name} begins or ends a measurement, or asks for a whole picture after a gap.
        """
        event = state.parse_event(data)
        shown = self.shown(session)
        if shown is None:
            return {}, False
        action = event.get("action")
        if action in ("measure", "whole"):
            name = state.parse_id(event.get("chart"), views.charts_of(session.tab), "chart")
            if action == "measure":
                return self.measure(session, name), False
            _forget(session, name)
            return self.charts(session, [name], shown), False
        if action == "stop":
            self.measured.board.leave(session.id)
            return self.charts(session, [p.chart for p in TABS[session.tab].pictures if p.long], shown), False
        if event.get("t") is not None:
            index = views.frame_at(shown.trace, event["t"])
            session.index = index
            there = replace(shown, index=index)
            return self._deck(session, there, go=True) | self.charts(session, views.moved(session.tab), there), False
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
        messages = {"pins": pins_value(shown)} | self.charts(session, views.touched(session.tab, *changed), shown)
        return messages, session.tab == "relevance" and "checkpoint" in changed and checkpoint is not None

    def measure(self, session: Session, name: str = PROMISE) -> Messages:
        """Measure what one chart needs: at once, or in the background if it takes long."""
        shown = self.shown(session)
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
        return self.charts(session, [name], shown)

    def measuring(self, session: Session) -> Measurement | None:
        """The measurement under way that the page waits for."""
        return self.measured.board.of(session.id)

    def average(self, session: Session) -> Messages:
        """Measure the plain average that a finished run is compared with, once; the charts that show it."""
        shown = self.shown(session)
        if shown is None or self.board.busy or self.measured.averaged(shown.trace.recipe) is not None:
            return {}
        if shown.card is None or not shown.trace.frames:
            return {}
        with self.board.background() as control:
            self.measured.average(shown.trace.recipe, control)
        return self.charts(session, views.touched(session.tab, "average"), shown)

    # --- parts ------------------------------------------------------------------------------------

    def shown(self, session: Session) -> Shown | None:
        """What the page looks at, None if there is nothing to look at."""
        if session.view is None:
            return None
        shown = self._shown(session.view, session.index, session.compare, session.narrow)
        if shown is None:
            return None
        # A pin outlives the run it was made in; where there is no such checkpoint, nothing is marked.
        checkpoint = session.checkpoint if session.checkpoint in shown.trace.checkpoints else None
        layer = session.layer if session.layer in shown.trace.groups.get("layer", ()) else None
        shown = replace(shown, checkpoint=checkpoint, layer=layer, edits=session.edits)
        return self._valued(shown, session.tab, session.values.get(session.tab, {}))

    def _shown(self, view: View, index: int | None, compare: Sequence[View], narrow: bool) -> Shown | None:
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
            card=self._card(trace),
            live=not trace.finished,
        )

    def _valued(self, shown: Shown, tab: TabId, raw: Mapping[str, Any]) -> Shown:
        """With the values of a tab's controls; twice, because choices may depend on values."""
        for _ in range(2):
            shown = replace(shown, values=values_of(TABS[tab].controls(shown), raw))
        return shown

    def rows(self, asked: Any) -> str:
        """The table behind a chart and its command line: JSON {columns, rows, cli}, or {problem}."""
        try:
            question = state.parse_question(asked, tuple(PICTURES))
            shown = self._shown(question.view, question.index, question.compared, False)
            if shown is None:
                raise FwvizError("that run is no longer there.")
            if question.checkpoint is not None:
                state.parse_id(question.checkpoint, shown.trace.checkpoints, "checkpoint in this run")
            shown = replace(shown, checkpoint=question.checkpoint, layer=question.layer, edits=question.edits)
            tab = next(tab for tab in TABS.values() if any(p.chart == question.chart for p in tab.pictures))
            shown = self._valued(shown, tab.id, question.values)
            data = views.table(question.chart, shown, self.measured).head(MAX_ROWS)
            made = str(data.to_json(orient="split", index=False, double_precision=6)).replace('"data":', '"rows":', 1)
            line = PICTURES[question.chart].call(shown).cli_line(shown, question.chart)
            return f'{made[:-1]},"cli":{json.dumps(line)}}}'
        except FwvizError as error:
            return json.dumps({"problem": str(error)})

    def _card(self, trace: Trace) -> PoolCard | None:
        try:
            return open_pool(trace.recipe.pool).card if trace.recipe.pool in self._pools() else None
        except FwvizError:
            return None

    def charts(self, session: Session, names: Iterable[str], shown: Shown) -> Messages:
        """The payloads of some charts; while a stream is on, what has changed of them."""
        return {name: views.draw(name, shown, self.measured, session.sent) for name in names}

    def _controls(self, session: Session, shown: Shown) -> Messages:
        controls = TABS[session.tab].controls(shown)
        return {f"{session.tab}_controls": controls_value(session.tab, controls, shown.values)}

    def _deck(self, session: Session, shown: Shown, *, replay: bool = False, go: bool = False) -> Messages:
        assert session.view is not None
        job = self.job(session)
        live = job is not None and not job.ended
        title = source_line(shown.trace, entry("methods", shown.trace.recipe.method).title)
        count, known = len(shown.trace.frames), 0
        if session.sent is not None:
            view, sent = session.sent.get("scrubber", ("", 0))
            known = sent if view == str(session.view) and sent <= count else 0
            session.sent["scrubber"] = (str(session.view), count)
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
            known=known,
        )
        return {
            "scrubber": scrubber,
            "tiles": tiles_value(views.tiles(shown.trace, shown.index)),
            "export": export_value(session.view, shown.trace),
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


def _link_of(recipe: Recipe) -> str:
    """The query of a recipe; coefficients that are too many for a link stay in the page."""
    try:
        return recipe.to_url()
    except FwvizError:
        return ""


def _news(session: Session, messages: Messages) -> Messages:
    """The messages that say something else than the last of their kind, while a stream is on."""
    if session.sent is None:
        return messages
    fresh = {}
    for name, text in messages.items():
        said = text.partition(",")[2] if text.startswith('{"v":') else text
        if session.sent.get(f"said {name}") != said:
            session.sent[f"said {name}"] = said
            fresh[name] = text
    return fresh


def _forget(session: Session, name: str) -> None:
    """The page lacks what it was sent of a part: all of it is sent next."""
    if session.sent is not None:
        session.sent.pop(name, None)


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
