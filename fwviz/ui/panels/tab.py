"""The parts every tab has: its words, its controls, its charts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import gradio as gr

from fwviz.registry import entry
from fwviz.ui import web
from fwviz.ui.chart import make_chart
from fwviz.ui.pictures import Picture, Tab

# From what a chart's payload says to ask, to its table as JSON.
Rows = Callable[[str], str]


def make_lead(tab: Tab) -> None:
    """What the tab is about, in two sentences."""
    gr.HTML(f'<p class="fw-lead">{tab.lead}</p>', apply_default_css=False)


def make_charts(
    tab: Tab, rows: Rows, after: Mapping[str, tuple[str, Callable[[], gr.HTML]]] | None = None
) -> dict[str, gr.HTML]:
    """The controls and the charts of a tab by name: ``<tab>_controls`` and the names of the charts.

    ``after`` puts another card behind a chart: chart → (name, how it is made).
    """
    parts = {f"{tab.id}_controls": _make_controls(tab)}
    with gr.Row(elem_classes="fw-grid"):
        for picture in tab.pictures:
            parts[picture.chart] = _card(picture, rows)
            if after and picture.chart in after:
                name, make = after[picture.chart]
                parts[name] = make()
    return parts


def _make_controls(tab: Tab) -> gr.HTML:
    """The strip of controls. Events, each {name, value}: ``tune`` of a slider under way, of which the last will do;
    ``choose`` of anything else; ``settle`` of a slider beside which something is measured when it is let go."""
    return gr.HTML(
        value="",
        html_template=f'<div class="fw-strip" role="group" aria-label="Controls of the tab {tab.title}" hidden></div>',
        js_on_load="const send = {tune: (d) => trigger('tune', d), choose: (d) => trigger('choose', d), "
        "settle: (d) => trigger('settle', d)}; "
        "window.fwviz.mountControls(element, props, (name, data) => send[name](data), watch)",
        apply_default_css=False,
        head=web.scripts(),
        elem_id=f"fw-controls-{tab.id}",
        elem_classes="fw-controls",
    )


def _card(picture: Picture, rows: Rows) -> gr.HTML:
    """The card of a registered chart, with its question as title."""
    facts = entry("charts", picture.chart).facts
    card = make_chart(
        picture.chart, title=facts["question"], reading=facts["reading"], rows=rows, action=picture.action
    )
    if picture.wide:
        card.elem_classes = [*(card.elem_classes or []), "fw-wide"]
    return card
