"""Beside the charts of the tab "Merge (live)": the numbers of a frame, and what to take home."""

from __future__ import annotations

from collections.abc import Sequence

import gradio as gr

from fwviz.cards import PoolCard
from fwviz.runs.origin import own_line
from fwviz.runs.recipe import Recipe
from fwviz.runs.trace import Trace
from fwviz.ui import web, wire
from fwviz.ui.shelf import PREFIX
from fwviz.ui.state import View

_DOWNLOADS = (
    ("weights", "Weights (safetensors)", "merged model at the step shown"),
    ("recipe", "Recipe (YAML)", "everything needed to repeat the run"),
    ("table", "Steps (CSV)", "one row per step: loss, gap, accuracy"),
    ("trace", "Whole record (zip)", "frames and header as stored"),
)


def make_tiles() -> gr.HTML:
    """Numbers of the frame shown."""
    return gr.HTML(
        value="",
        html_template='<dl class="fw-tiles"></dl>',
        js_on_load="window.fwviz.mountTiles(element, props, watch)",
        apply_default_css=False,
        head=web.scripts(),
        elem_id="fw-tiles",
    )


def make_export() -> gr.HTML:
    """Downloads of the run shown, and the command that repeats it."""
    links = "".join(
        f'<a data-what="{what}" download>{title}<small>{said}</small></a>' for what, title, said in _DOWNLOADS
    )
    return gr.HTML(
        value="",
        html_template=web.template("export.html", links=links),
        js_on_load="window.fwviz.mountExport(element, props, trigger, watch)",
        apply_default_css=False,
        head=web.scripts(),
        elem_id="fw-export",
    )


def export_value(view: View, trace: Trace, card: PoolCard | None) -> str:
    """What can be downloaded of a trace, and the command that repeats it; the page knows the step itself."""
    return wire.message(
        view=str(view),
        cli=_command(trace.recipe, card),
        weights=bool(trace.frames),
        trace=trace.finished,
    )


def _command(recipe: Recipe, card: PoolCard | None) -> str:
    """The line that repeats a run. A pool of a visitor's own is only here: its files are named by words in capitals."""
    return own_line(recipe, card) if recipe.pool.startswith(PREFIX) else recipe.cli_line()


def tiles_value(tiles: Sequence[tuple[str, str, str]]) -> str:
    """A row of numbers: (name, value, remark)."""
    return wire.message(tiles=[list(tile) for tile in tiles])
