"""The card in which a person writes the coefficients of a merge, and its accuracy answers."""

from __future__ import annotations

import gradio as gr

from fwviz.runs.edit import Edit
from fwviz.ui import state, web, wire
from fwviz.ui.by_hand import ByHand
from fwviz.ui.pictures import Shown


def make_editor() -> gr.HTML:
    """Events: ``edit`` {edits: [[layer, checkpoint, value], …]}, ``recipe`` to take the merge into the sidebar."""
    return gr.HTML(
        value="",
        html_template=web.template("editor.html"),
        js_on_load="const send = {edit: (d) => trigger('edit', d), recipe: (d) => trigger('recipe', d)}; "
        "window.fwviz.mountEditor(element, props, (name, data) => send[name](data), watch)",
        apply_default_css=False,
        head=web.scripts(),
        elem_id="fw-editor",
        elem_classes="fw-wide",
    )


def editor_value(shown: Shown, hand: ByHand, edit: Edit | None) -> str:
    """Coefficients by layer, what was changed, and the accuracy per task before and after the changes."""
    titles = {c.id: c.title for c in shown.card.checkpoints} if shown.card else {}
    tasks = {t.id: t.title for t in shown.card.tasks} if shown.card else {}
    table = hand.by_layer()
    before = next((f.accuracy for f in reversed(shown.trace.frames[: shown.index + 1]) if f.accuracy), {})
    return wire.message(
        checkpoints=[[name, titles.get(name, name)] for name in shown.trace.checkpoints],
        layers=list(table),
        values=[[float(f"{x:.4g}") for x in row] for row in table.values()],
        edits=[list(item) for item in shown.edits],
        link=state.edits_link(shown.edits),
        most=state.MOST,
        tasks=[[name, tasks.get(name, name), before.get(name)] for name in shown.trace.tasks],
        accuracy=None if edit is None else {name: score.accuracy for name, score in edit.scores.items()},
        seconds=None if edit is None else round(edit.rebuild_seconds + edit.evaluation_seconds, 3),
        recipe=None if edit is None else edit.recipe.to_yaml(),
    )


def editor_problem(problem: str) -> str:
    """Why there is nothing to edit."""
    return wire.message(problem=wire.placeless(problem))
