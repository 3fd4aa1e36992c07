"""Run history: what was run in this browser and what ships with fwviz; tick runs to compare them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gradio as gr

from fwviz.runs.recipe import Recipe
from fwviz.ui import web, wire
from fwviz.ui.panels.scrubber import day
from fwviz.ui.state import View


@dataclass(frozen=True)
class Row:
    """One line of the history. ``accuracy`` is the mean test accuracy in [0, 1], ``pool`` the title of the pool."""

    view: View
    recipe: Recipe
    method_title: str
    created: str
    status: str
    accuracy: float | None
    seconds: float | None
    note: str = ""
    pool: str = ""


def make_history() -> gr.HTML:
    """The table of runs. Events: ``open`` {id}, ``compare`` {ids}, ``forget`` {id, runs}."""
    return gr.HTML(
        value="",
        html_template=web.template("history.html"),
        js_on_load="const send = {open: (d) => trigger('open', d), compare: (d) => trigger('compare', d), "
        "forget: (d) => trigger('forget', d)}; "
        "window.fwviz.mountHistory(element, props, (name, data) => send[name](data), watch)",
        apply_default_css=False,
        head=web.scripts(),
        elem_id="fw-history",
    )


def history_value(rows: Sequence[Row], *, opened: View | None, compared: Sequence[View]) -> str:
    """The rows to show, which is open and which are compared; with runs of several pools each row names its own."""
    several = len({row.recipe.pool for row in rows}) > 1
    return wire.message(
        rows=[
            {
                "id": str(row.view),
                "own": row.view.kind == "run",
                "title": row.method_title,
                "settings": _said(row.recipe),
                "note": ", ".join(filter(None, (_head(row.pool) if several else "", _note(row)))),
                "when": day(row.created),
                "tasks": len(row.recipe.tasks),
                "checkpoints": len(row.recipe.checkpoints),
                "accuracy": row.accuracy,
                "seconds": row.seconds,
                "status": "finished" if row.status == "max_steps" else row.status,
            }
            for row in rows
        ],
        open=str(opened) if opened else "",
        compare=[str(view) for view in compared],
    )


def _head(title: str) -> str:
    """A pool's title without what is said of it after a colon."""
    return title.partition(":")[0]


def _note(row: Row) -> str:
    if row.status == "failed":
        return wire.placeless(row.note)
    return "recording" if row.view.kind == "rec" else ""


def _said(recipe: Recipe) -> str:
    """The settings that differ from the defaults."""
    changed = [f"{name.replace('_', ' ')} {value}" for name, value in recipe.changed_settings().items()]
    return ", ".join([*changed, *([f"seed {recipe.seed}"] if recipe.seed else [])])
