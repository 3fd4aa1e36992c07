"""Tab "Relevance": which checkpoints the oracle wants, where, when, and whether its promise holds."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr

from fwviz.registry import entry
from fwviz.ui.chart import make_chart

# From what a chart's payload says to ask, to its table as JSON.
Rows = Callable[[str], str]

CHARTS = ("lmo_bars", "lmo_history", "gap_curve", "lmo_layers", "promise_reality")
_WIDE = ("lmo_bars", "lmo_layers", "promise_reality")
_ACTIONS = {"promise_reality": ("Measure", "Measure the loss on the way from the step shown to the checkpoint")}
LEAD = (
    "A Frank–Wolfe step asks every checkpoint one question: <b>if the merge moved towards you, how much would the loss "
    "of these tasks fall?</b> The gradient answers without trying. Here is the answer at the step chosen above."
)


def make_relevance(rows: Rows) -> dict[str, gr.HTML]:
    """The charts of the tab by name."""
    gr.HTML(f'<p class="fw-lead">{LEAD}</p>', apply_default_css=False)
    with gr.Row(elem_classes="fw-grid"):
        return {name: chart_card(name, rows) for name in CHARTS}


def chart_card(name: str, rows: Rows, wide: tuple[str, ...] = _WIDE) -> gr.HTML:
    """The card of a registered chart, with its question as title."""
    found = entry("charts", name)
    question, reading = found.facts["question"], found.facts["reading"]
    card = make_chart(name, title=question, reading=reading, rows=rows, action=_ACTIONS.get(name))
    if name in wide:
        card.elem_classes = [*(card.elem_classes or []), "fw-wide"]
    return card
