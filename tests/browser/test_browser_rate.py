"""How often a chart can be told something new: the whole way of a live message, from a generator to the drawn plot."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr
import numpy as np
import pytest

from fwviz.charts import _style as style
from fwviz.ui import web, wire
from fwviz.ui.chart import make_chart, payload
from tests.browser.conftest import PATIENCE, Watched

RATE, SECONDS = 20, 2.0  # messages a second, for so long
LINES, POINTS = 20, 100  # what a message draws


def figure(grown: int) -> dict[str, Any]:
    """Twenty curves of a hundred points and ``grown`` more."""
    x = np.linspace(0, 1 + grown / POINTS, POINTS + grown)
    curves = [
        {"type": "scatter", "mode": "lines", "x": style.f4(x), "y": style.f4(np.sin(3 * x + k / 4))}
        for k in range(LINES)
    ]
    base = style.layout("light", 340, summary="", reading="", revision="rate", margin=(40, 10, 10, 30))
    made: dict[str, Any] = json.loads(style.figure(curves, base).to_json(validate=False))
    return made


def messages(count: int) -> Iterator[str]:
    """The first picture whole, then what has changed since the one before, stamped with the time it is sent."""
    said = {"key": "rate", "ask": "", "summary": "curves", "cursor": False, "figure": figure(0)}
    text = payload(**said)
    yield text
    for grown in range(1, count + 1):
        known = (wire.version_of(text), said)
        said = {**said, "ask": f"{time.time():.3f}", "figure": figure(grown)}
        text = wire.difference(known, said)
        yield text


@pytest.fixture
def address() -> Iterator[str]:
    """A page with one chart of ours, and a button that sends it messages as the app's live pages are sent theirs."""
    due = list(messages(int(RATE * SECONDS)))

    def run() -> Iterator[str]:
        start = time.monotonic()
        for i, text in enumerate(due[1:]):
            time.sleep(max(0.0, start + i / RATE - time.monotonic()))
            sent = json.loads(text)
            sent["d"]["ask"] = f"{time.time():.3f}"
            yield json.dumps(sent)

    with gr.Blocks(analytics_enabled=False) as demo:
        go = gr.Button("Go", elem_id="go")
        made = make_chart("rate", title="Curves", reading="They grow.", rows=lambda asked: "{}", value=due[0])
        go.click(run, None, made, show_progress="hidden")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    demo.queue().launch(
        prevent_thread_lock=True,
        server_name="127.0.0.1",
        server_port=port,
        quiet=True,
        ssr_mode=False,
        head=web.head(),
        app_kwargs={"routes": web.routes()},
        footer_links=[],
    )
    yield f"http://127.0.0.1:{port}"
    demo.close()


@pytest.mark.slow  # times: on a machine that does nothing else
def test_twenty_messages_a_second_are_drawn_and_zoom_is_kept(browser: Any, address: str) -> None:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
    context.set_default_timeout(PATIENCE * 1000)
    watched = Watched(context.new_page(), address)
    page = watched.page
    page.goto(address, wait_until="domcontentloaded")
    page.wait_for_function("window.fwviz?.charts?.rate?.ready")
    plot = "document.querySelector('#fw-chart-rate .fw-plot')"
    page.evaluate(f"Plotly.relayout({plot}, {{'xaxis.range': [0.2, 0.6], 'yaxis.range': [0, 0.5]}})")
    page.evaluate(
        f"""() => {{
          const state = window.fwviz.charts.rate, log = (window.log = {{arrived: [], drawn: []}});
          const push = state.push;
          state.push = (payload) => {{
            push(payload);
            log.arrived.push([state.payload.v, performance.now(), Date.now() / 1000 - Number(state.payload.ask)]);
          }};
          {plot}.on('plotly_afterplot', () => log.drawn.push([state.payload.v, performance.now()]));
        }}"""
    )
    before = page.evaluate("({...window.fwviz.charts.rate})")
    page.click("#go")
    count = int(RATE * SECONDS)
    page.wait_for_function(
        f"n => {plot}._fullData[0].x.length === n && window.fwviz.charts.rate.drawn > 0", arg=POINTS + count
    )
    after, log = page.evaluate("[{...window.fwviz.charts.rate}, window.log]")
    arrived, drawn = after["received"] - before["received"], after["drawn"] - before["drawn"]
    first, last = log["arrived"][0], log["arrived"][-1]
    delays = [delay for _, _, delay in log["arrived"]]
    rate = (len(log["arrived"]) - 1) / ((last[1] - first[1]) / 1000)
    versions = [version for version, _ in log["drawn"]]
    shown = {v: min(at for w, at in log["drawn"] if w == v) for v in versions}
    waits = [shown[v] - at for v, at, _ in log["arrived"] if v in shown]
    print(
        f"\n{arrived} of {count} messages arrived at {rate:.1f}/s, {drawn} were drawn; "
        f"on their way {1000 * np.median(delays):.0f} ms (at most {1000 * max(delays):.0f}), "
        f"then drawn after {np.median(waits):.0f} ms (at most {max(waits):.0f})"
    )
    assert arrived == count, "messages were lost"
    assert versions == sorted(versions), "an older picture was drawn over a newer one"
    assert page.evaluate(f"{plot}._fullLayout.xaxis.range") == pytest.approx([0.2, 0.6])
    assert page.evaluate(f"{plot}._fullLayout.yaxis.range") == pytest.approx([0, 0.5])
    # No queue grows: the last quarter of the messages are no later than the first.
    quarter = count // 4
    assert np.median(delays[-quarter:]) < np.median(delays[:quarter]) + 0.1
    assert drawn >= 0.95 * count
    assert rate >= 0.95 * RATE
    watched.check()
    context.close()
