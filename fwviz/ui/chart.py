"""The chart component: a static card of HTML whose plot is kept alive by assets/web/chart.js.

gradio's own ``gr.Plot`` makes a new plot at each update (zoom is lost, no clicks). Here the page holds one node per chart
and calls ``Plotly.react`` on it. A payload is one complete JSON *string* with a version: gradio then neither compares it
element by element nor streams differences, and a payload that is dropped on the way does no harm.
"""

from __future__ import annotations

import html
import json
import re
from typing import Any

import gradio as gr

from fwviz.ui import web, wire

_NAME = re.compile(r"[a-z][a-z0-9_]*")

_CARD = """<article class="fw-card loading" data-chart="{name}" aria-labelledby="fw-title-{name}">
<header><h3 id="fw-title-{name}">{title}</h3><div class="fw-tools">
{extra}<button type="button" data-act="table" aria-pressed="false" title="Show the numbers behind this chart">Data table</button>
<details class="fw-menu"><summary aria-label="Save this chart" title="Save this chart">Save</summary><div>
<button type="button" data-act="png">Picture (PNG)</button><button type="button" data-act="svg">Picture (SVG)</button>
<button type="button" data-act="html">Figure (HTML)</button><button type="button" data-act="csv">Data (CSV)</button>
</div></details></div></header>
<p class="fw-reading">{reading}</p>
<div class="fw-plot" role="img" aria-label=""></div><p class="fw-empty" hidden></p>
<div class="fw-table" tabindex="0" role="region" aria-label="Data of this chart" hidden></div></article>"""


def make_chart(
    name: str, *, title: str, reading: str, value: str | None = None, action: tuple[str, str] | None = None
) -> gr.HTML:
    """A chart card. ``title`` is the question it answers, ``reading`` one sentence on how to read it.

    ``action`` is a button of its own: (label, what it does).

    Its event ``pin`` carries what was clicked: chart, x, y, trace, custom.
    """
    assert _NAME.fullmatch(name), name
    extra = ""
    if action is not None:
        extra = f'<button type="button" class="fw-act" data-act="measure" title="{_plain(action[1])}">{_plain(action[0])}</button>'
    return gr.HTML(
        value=value,
        html_template=_CARD.format(name=name, title=_plain(title), reading=_plain(reading), extra=extra),
        js_on_load="window.fwviz.mountChart(element, props, (event, data) => trigger('pin', data), watch)",
        apply_default_css=False,
        head=web.scripts(),
        elem_id=f"fw-chart-{name}",
        elem_classes="fw-chart",
    )


def payload(figure: Any, *, key: str, summary: str = "", note: str = "", cursor: bool = False) -> str:
    """One complete update of a chart.

    ``figure`` is a plotly Figure or None (then ``note`` says why there is nothing to draw). ``key`` names what is shown:
    zoom lives as long as it stays the same. ``cursor`` says that the x axis is the shared step.
    """
    body = {"v": wire.version(), "key": key, "summary": summary, "note": note, "cursor": cursor}
    drawn = "null" if figure is None else figure.to_json(validate=False)
    return f'{json.dumps(body)[:-1]}, "figure": {drawn}}}'


def _plain(text: str) -> str:
    """Escaped for HTML and for the two template languages gradio runs over it."""
    escaped = html.escape(text)
    for character in "`$\\{}":
        escaped = escaped.replace(character, f"&#{ord(character)};")
    return escaped
