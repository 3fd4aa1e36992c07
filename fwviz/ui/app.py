"""The page: components, events, launch settings. What is shown is decided in fwviz.ui.desk."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import anyio
import gradio as gr

from fwviz.runs.store import RunStore
from fwviz.types import FwvizError
from fwviz.ui import exports, state, uploads, web, wire
from fwviz.ui.desk import Desk
from fwviz.ui.hardware import runner
from fwviz.ui.jobs import JobBoard
from fwviz.ui.library import Library, recordings_root
from fwviz.ui.panels.editor import make_editor
from fwviz.ui.panels.history import make_history
from fwviz.ui.panels.merge import make_export, make_tiles
from fwviz.ui.panels.pins import make_pins
from fwviz.ui.panels.scrubber import make_scrubber
from fwviz.ui.panels.sidebar import make_form, make_runbar, runbar_value
from fwviz.ui.panels.tab import make_charts, make_lead
from fwviz.ui.sending import Messages
from fwviz.ui.state import Session
from fwviz.ui.tabs import PICTURES, TABS
from fwviz.ui.theme import make_theme

TITLE = "fwviz · model merging as it happens"
TAGLINE = (
    "See model merging as it happens: which checkpoints the Frank–Wolfe oracle wants for your tasks, and what each "
    "step does to accuracy."
)
UPDATE_EVERY = 0.2  # seconds between two updates of a live page, at least
SWITCH_EVERY = 0.0005  # seconds a thread keeps the interpreter while others wait
LOOK_EVERY = 0.04  # seconds between two looks at a job

# One request of a page: what the component sent, and whose page it is.
Answer = Callable[[Desk, Session, str, Any], Messages]

_log = logging.getLogger(__name__)
_UNEXPECTED = "Something unexpected happened on the server: its log has the details."

# Runs before our scripts are there: the address, the width and the runs this browser remembers.
_BOOT = """() => {
  let runs = [];
  try { runs = JSON.parse(localStorage.getItem("fwviz.runs") || "[]"); } catch { /* no storage: no memory */ }
  const query = Object.fromEntries(new URLSearchParams(location.search));
  let own = "";
  try { own = sessionStorage.getItem("fwviz.own") || ""; } catch { /* no storage: a reload forgets what was brought */ }
  return [JSON.stringify({query, width: window.innerWidth, runs, own})];
}"""


def build_demo(desk: Desk | None = None) -> gr.Blocks:
    """The page. ``desk`` answers it; by default one over the run store and the recordings that ship with fwviz."""
    desk = desk or make_desk()

    def rows(asked: str) -> str:
        return desk.looking.rows(asked)

    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)) as demo:
        gr.HTML(
            html_template=web.template("header.html", tagline=TAGLINE),
            js_on_load="window.fwviz.mountHeader(element)",
            apply_default_css=False,
            head=web.scripts(),
            elem_id="fw-header",
        )
        boot = gr.Textbox(visible="hidden", max_length=state.MAX_TEXT, label="opening", elem_id="fw-boot")
        tab_items: dict[str, gr.Tab] = {}
        with gr.Row(elem_id="fw-shell"):
            with gr.Column(elem_id="fw-side"):
                parts: dict[str, gr.HTML] = {"form": make_form(), "runbar": make_runbar()}
            with gr.Column(elem_id="fw-main"):
                with gr.Column(elem_id="fw-deck"):
                    parts["scrubber"] = make_scrubber()
                    parts["pins"] = make_pins()
                with gr.Tabs(elem_id="fw-tabs") as tabs:
                    for tab in TABS.values():
                        with gr.Tab(tab.title, id=tab.id, elem_id=f"fw-tab-{tab.id}") as tab_items[tab.id]:
                            make_lead(tab)
                            if tab.id == "merge":
                                parts["tiles"] = make_tiles()
                            parts |= make_charts(tab, rows, {"weights_map": ("editor", make_editor)})
                            if tab.id == "merge":
                                parts["export"] = make_export()
                                parts["history"] = make_history()
        gr.HTML(
            html_template='<button id="fw-drawer-shade" tabindex="-1" aria-label="Close the recipe"></button>',
            js_on_load="element.addEventListener('click', () => window.fwviz.drawer(false))",
            apply_default_css=False,
            head=web.scripts(),
        )
        _wire(demo, desk, parts, tabs, tab_items, boot)
    demo.queue(max_size=32, default_concurrency_limit=4)
    return demo


def make_desk() -> Desk:
    """A desk over the run store of this machine."""
    store = RunStore()
    board = JobBoard(store, execute=runner(store))
    return Desk(board, Library(board, RunStore(recordings_root())))


def _wire(
    demo: gr.Blocks,
    desk: Desk,
    parts: Mapping[str, gr.HTML],
    tabs: gr.Tabs,
    tab_items: Mapping[str, gr.Tab],
    boot: gr.Textbox,
) -> None:
    """Which event asks the desk for what. Every answer is a set of messages for the parts of the page."""
    outputs = [*parts.values()]
    quiet: dict[str, Any] = {"outputs": outputs, "show_progress": "hidden", "api_visibility": "private"}

    def spread(messages: Messages) -> dict[Any, Any]:
        if not messages:
            return {parts["runbar"]: gr.skip()}  # gradio takes an empty dict for a missing answer
        return {parts[name]: text for name, text in messages.items()}

    def once(answer: Answer) -> Callable[..., Any]:
        """A handler that answers an event once."""

        def handle(event: gr.EventData, request: gr.Request) -> dict[Any, Any]:
            session = desk.sessions.get(request.session_hash)
            return spread(
                _guarded(desk, session, functools.partial(answer, desk, session, _owner(request), event._data))
            )

        return handle

    def then_follow(answer: Answer) -> Callable[..., Any]:
        """A handler that answers, then keeps the page up to date while what it looks at is under way."""

        async def handle(event: gr.EventData, request: gr.Request) -> AsyncIterator[dict[Any, Any]]:
            session = desk.sessions.get(request.session_hash)
            asked = functools.partial(answer, desk, session, _owner(request), event._data)
            async for messages in _follow(desk, session, asked):
                yield spread(messages)

        return handle

    async def open_page(opening: str, request: gr.Request) -> AsyncIterator[dict[Any, Any]]:
        session = desk.sessions.get(request.session_hash)
        asked = functools.partial(desk.open, session, state.parse_opening(opening))
        first: dict[Any, Any] = {}
        async for messages in _follow(desk, session, asked):
            if not first:  # the tab of the link
                first = {tabs: gr.Tabs(selected=session.tab)}
                yield {**spread(messages), **first}
            else:
                yield spread(messages)

    async def rank(event: gr.EventData, request: gr.Request) -> AsyncIterator[dict[Any, Any]]:
        session = desk.sessions.get(request.session_hash)
        async for messages in _checked(desk, session, event._data):
            yield spread(messages)

    async def bring(event: gr.EventData, request: gr.Request) -> AsyncIterator[dict[Any, Any]]:
        session = desk.sessions.get(request.session_hash)
        made = desk.bring(session, _owner(request), event._data)
        try:
            while messages := await anyio.to_thread.run_sync(_guarded, desk, session, lambda: next(made, {})):
                yield spread(messages)
        finally:
            await anyio.to_thread.run_sync(made.close)
        async for messages in _follow(desk, session, dict):
            yield spread(messages)

    def leave(request: gr.Request) -> None:
        desk.shelf.leave(str(request.session_hash))

    streams: dict[str, Any] = {"concurrency_limit": None, "trigger_mode": "multiple", **quiet}
    # Gradio's own mode, "once", drops what is chosen while an earlier choice is still being answered. The last of many
    # will do where it holds all that was chosen (see fwviz.latest in assets/web/page.js); else each is answered.
    latest: dict[str, Any] = {"trigger_mode": "always_last", **quiet}
    each: dict[str, Any] = {"trigger_mode": "multiple", **quiet}
    opened = {"outputs": [*outputs, tabs], "api_name": "open", "api_visibility": "undocumented"}
    demo.load(open_page, boot, **(streams | opened), js=_BOOT)
    parts["form"].edit(rank, None, **latest)
    parts["form"].pool(then_follow(lambda d, s, o, e: d.choose_pool(s, e)), None, **streams)
    parts["form"].own(bring, None, **streams)
    demo.unload(leave)
    parts["runbar"].run(
        then_follow(lambda d, s, o, e: d.start(s, o, state.parse_event(e), paused=False)), None, **streams
    )
    parts["runbar"].step(then_follow(_step), None, **streams)
    parts["runbar"].pause(once(lambda d, s, o, e: d.pause(s)), None, **quiet)
    parts["runbar"].stop(once(lambda d, s, o, e: d.stop(s)), None, **quiet)
    parts["scrubber"].scrub(once(lambda d, s, o, e: d.scrub(s, e)), None, **latest)
    parts["history"].open(then_follow(lambda d, s, o, e: d.open_view(s, e)), None, **streams)
    parts["history"].compare(once(lambda d, s, o, e: d.compare(s, e)), None, **latest)
    parts["history"].forget(once(lambda d, s, o, e: d.forget(s, e)), None, **each)
    for name, picture in PICTURES.items():
        answer = then_follow(_pin) if picture.long else once(_pin)
        parts[name].pin(answer, None, **(streams if picture.long else latest))
    parts["editor"].edit(once(lambda d, s, o, e: d.edit(s, e)), None, **latest)
    parts["editor"].recipe(once(lambda d, s, o, e: d.take(s)), None, **quiet)
    parts["pins"].pin(once(_pin), None, **latest)
    for tab in TABS:
        changed = once(lambda d, s, o, e: d.change(s, e))
        parts[f"{tab}_controls"].tune(changed, None, **latest)
        parts[f"{tab}_controls"].choose(changed, None, **each)
        if TABS[tab].asides:
            parts[f"{tab}_controls"].settle(then_follow(lambda d, s, o, e: d.settle(s, e)), None, **streams)
    parts["pins"].tab(then_follow(lambda d, s, o, e: d.choose_tab(s, e)), None, **streams)
    for name, tab in tab_items.items():
        tab.select(None, None, None, js=f"() => {{ window.fwviz?.chosenTab('{name}') }}")


def _step(desk: Desk, session: Session, owner: str, event: Any) -> Messages:
    """One iteration of the run under way, else a new run that holds after its first iterate."""
    if "recipe" in state.parse_event(event):
        return desk.start(session, owner, event, paused=True)
    return desk.step(session)


def _pin(desk: Desk, session: Session, owner: str, event: Any) -> Messages:
    messages, measure = desk.pin(session, event)
    return messages | desk.measure(session) if measure else messages


def _owner(request: gr.Request) -> str:
    """Whose turn it is in the queue: a page, or all pages of one address beyond a few."""
    return str(request.session_hash)


def _guarded(desk: Desk, session: Session, ask: Callable[[], Messages]) -> Messages:
    """The answer, or one sentence in the run bar; the rest of the page stays as it is."""
    try:
        return ask()
    except FwvizError as error:
        return {"runbar": runbar_value(desk.looking.job(session), error=wire.sentence(error))}
    except Exception:
        _log.exception("an event of a page failed")
        return {"runbar": runbar_value(desk.looking.job(session), error=_UNEXPECTED)}


async def _follow(desk: Desk, session: Session, ask: Callable[[], Messages]) -> AsyncIterator[Messages]:
    """The answer, then updates while a run or a measurement the page looks at is under way.

    A later call for the page ends this one. When the page goes away, what is measured for it alone ends.
    """
    session.stream += 1
    mine = session.stream
    session.sent = {}
    seen: Any = None
    try:
        yield await anyio.to_thread.run_sync(_guarded, desk, session, ask)
        ran = desk.looking.job(session) is not None
        while session.stream == mine:
            job, measuring = desk.looking.job(session), desk.measuring(session)
            live = job is not None and not job.ended
            if ran and not live:
                ran = False
                yield await anyio.to_thread.run_sync(_guarded, desk, session, functools.partial(desk.show, session))
            if not live and measuring is None:
                break
            ran = live
            version = (job.version if job is not None else None, measuring and (measuring.key, measuring.version))
            if version == seen:
                await asyncio.sleep(LOOK_EVERY)
                continue
            seen = version
            yield await anyio.to_thread.run_sync(_guarded, desk, session, functools.partial(desk.update, session))
            await asyncio.sleep(UPDATE_EVERY)
        for last in (desk.average,) if seen is None else (desk.update, desk.average):
            if session.stream == mine:
                yield await anyio.to_thread.run_sync(_guarded, desk, session, functools.partial(last, session))
    finally:
        if session.stream == mine:
            session.sent = None
            desk.leave(session)


async def _checked(desk: Desk, session: Session, event: Any) -> AsyncIterator[Messages]:
    """An edited recipe: checked, then ranked a task at a time."""
    found: list[Any] = []

    def check() -> Messages:
        recipe, messages = desk.check(session, event)
        found.append(recipe)
        return messages

    yield await anyio.to_thread.run_sync(_guarded, desk, session, check)
    if not found:
        return
    ranking = desk.forms.rank(found[0])
    while True:
        messages = await anyio.to_thread.run_sync(_guarded, desk, session, lambda: next(ranking, {}))
        if not messages:
            return
        yield messages


def launch() -> None:
    """Build the page and serve it: port and host from GRADIO_SERVER_PORT and GRADIO_SERVER_NAME."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    # Two runs at once share the cores: threads that spin while they wait would starve each other.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # A run needs the interpreter for a moment between two tensor operations; at Python's own 5 ms each such moment
    # would wait that long while a chart is made.
    sys.setswitchinterval(SWITCH_EVERY)
    desk = make_desk()
    demo = build_demo(desk)
    try:
        demo.launch(**launch_settings(desk))
    finally:
        desk.board.close()
        desk.shelf.close()


def launch_settings(desk: Desk) -> dict[str, Any]:
    """What ``Blocks.launch`` is given: nothing leaves this machine, nothing but our own files is served."""
    downloads = exports.routes(web.PREFIX, desk.library)
    brought = uploads.routes(web.PREFIX, desk.shelf)
    return {
        "theme": make_theme(),
        "head": web.head(),
        "app_kwargs": {"routes": [*downloads, *brought, *web.routes()], "docs_url": None, "redoc_url": None},
        "ssr_mode": False,
        "strict_cors": True,
        "max_file_size": "1mb",
        "state_session_capacity": 500,
        "show_error": False,
        "enable_monitoring": False,
        "run_history": False,
        "footer_links": [],
        "share": False,
        "pwa": False,
        "quiet": False,
    }
