"""What is pinned: one checkpoint and one layer, marked in every chart of the page."""

from __future__ import annotations

import gradio as gr

from fwviz.ui import web, wire
from fwviz.ui.pictures import Shown


def make_pins() -> gr.HTML:
    """Two lists for those who do not click in charts. Events: ``pin`` {pins: {checkpoint, layer}}, ``tab`` {name}."""
    return gr.HTML(
        value="",
        html_template=web.template("pins.html"),
        js_on_load="window.fwviz.mountPins(element, props, "
        "(name, data) => name === 'pin' ? trigger('pin', data) : trigger('tab', data), watch)",
        apply_default_css=False,
        head=web.scripts(),
        elem_id="fw-pins",
    )


def pins_value(shown: Shown) -> str:
    """What can be pinned of the run shown, and what is."""
    titles = {c.id: c.title for c in shown.card.checkpoints} if shown.card else {}
    return wire.message(
        checkpoints=[[name, titles.get(name, name)] for name in shown.trace.checkpoints],
        layers=list(shown.trace.groups.get("layer", ())),
        checkpoint=shown.checkpoint,
        layer=shown.layer,
    )
