"""Tab "Merge (live)": what each step does to accuracy, what it costs, how runs compare, and what to take home."""

from __future__ import annotations

import html
from collections.abc import Sequence

import gradio as gr

from fwviz.runs.trace import Trace
from fwviz.ui import web, wire
from fwviz.ui.panels.relevance import Rows, chart_card
from fwviz.ui.state import View

CHARTS = ("accuracy_live", "accuracy_bars", "coefficients_bars", "comparison")
LEAD = (
    "The merged model is tested after every step on images it has never been tuned on. <b>Base</b> is the model before "
    "any fine-tuning, <b>individual</b> each task's own checkpoint: merging works when one model comes close to all of "
    "them."
)
_DOWNLOADS = (
    ("weights", "Weights (safetensors)", "merged model at the step shown"),
    ("recipe", "Recipe (YAML)", "everything needed to repeat the run"),
    ("table", "Steps (CSV)", "one row per step: loss, gap, accuracy"),
    ("trace", "Whole record (zip)", "frames and header as stored"),
)


def make_merge(rows: Rows) -> tuple[gr.HTML, dict[str, gr.HTML], gr.HTML]:
    """The tiles, the charts by name, and the export card."""
    gr.HTML(f'<p class="fw-lead">{LEAD}</p>', apply_default_css=False)
    tiles = gr.HTML(tiles_value(()), apply_default_css=False, elem_id="fw-tiles")
    with gr.Row(elem_classes="fw-grid"):
        charts = {name: chart_card(name, rows, wide=("accuracy_live", "comparison")) for name in CHARTS}
    return tiles, charts, _make_export()


def _make_export() -> gr.HTML:
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


def export_value(view: View, trace: Trace, index: int) -> str:
    """What can be downloaded of a trace, and the command that repeats it."""
    return wire.message(
        view=str(view),
        index=index,
        ticks=[frame.t for frame in trace.frames],
        cli=trace.recipe.cli_line(),
        weights=bool(trace.frames),
        trace=trace.finished,
    )


def tiles_value(tiles: Sequence[tuple[str, str, str]]) -> str:
    """A row of numbers: (name, value, remark)."""
    cells = ""
    for tile in tiles:
        name, value, remark = (html.escape(text) for text in tile)
        cells += f'<div class="fw-tile"><dt>{name}</dt><dd>{value}<small>{remark}</small></dd></div>'
    return f'<dl class="fw-tiles">{cells}</dl>'
