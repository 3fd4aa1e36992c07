"""The chart component: a static card of HTML whose plot is kept alive by assets/web/chart.js.

gradio's own ``gr.Plot`` makes a new plot at each update (zoom is lost, no clicks). Here the page holds one node per
chart and calls ``Plotly.react`` on it. A payload is one complete JSON *string* with a version: gradio then neither
compares it element by element nor streams differences, and a payload that is dropped on the way does no harm.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any

import gradio as gr

from fwviz.ui import web, wire

_NAME = re.compile(r"[a-z][a-z0-9_]*")


def make_chart(
    name: str,
    *,
    title: str,
    reading: str,
    rows: Callable[[str], str],
    value: str | None = None,
    action: tuple[str, str] | None = None,
) -> gr.HTML:
    """A chart card. ``title`` is the question it answers, ``reading`` one sentence on how to read it.

    ``rows`` answers the data table: from the ``ask`` of a payload to JSON {columns, rows}. ``action`` is a button of
    its own: (label, what it does).

    Its event ``pin`` carries what is pinned by a click, the step that was clicked, or what is to be done (see
    :meth:`fwviz.ui.desk.Desk.pin`).
    """
    assert _NAME.fullmatch(name), name
    extra = ""
    if action is not None:
        label, help = (_plain(text) for text in action)
        extra = (
            f'<button type="button" class="fw-act" data-act="measure" data-label="{label}" title="{help}">'
            f"{label}</button>"
        )
    return gr.HTML(
        value=value,
        html_template=web.template("card.html", name=name, title=_plain(title), reading=_plain(reading), extra=extra),
        js_on_load="window.fwviz.mountChart(element, props, (event, data) => trigger('pin', data), watch, server)",
        server_functions=[rows],
        apply_default_css=False,
        head=web.scripts(),
        elem_id=f"fw-chart-{name}",
        elem_classes="fw-chart",
    )


def payload(figure: Any, *, key: str, **facts: Any) -> str:
    """One complete update of a chart.

    ``figure`` is plain data or None (then ``note`` says why there is nothing to draw). ``key`` names what is shown:
    zoom lives as long as it stays the same. Of the ``facts``, ``ask`` is what the page sends to get the table behind
    the figure, ``summary`` is for screen readers, ``cursor`` says that the x axis is the shared step, and ``job`` is
    where a measurement stands.
    """
    return wire.message(key=key, **facts, figure=figure)


def _plain(text: str) -> str:
    """Escaped for HTML and for the two template languages gradio runs over it."""
    escaped = html.escape(text)
    for character in "`$\\{}":
        escaped = escaped.replace(character, f"&#{ord(character)};")
    return escaped
