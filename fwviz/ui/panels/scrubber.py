"""The scrubber: one step, shared by every view."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import gradio as gr

from fwviz.runs.trace import Frame, Trace
from fwviz.ui import web, wire
from fwviz.ui.panels.sidebar import choice_line
from fwviz.ui.state import View

Tick = tuple[float, int, int, float | None, float | None, float | None]


def make_scrubber() -> gr.HTML:
    """Replay, single steps, a slider over the frames and what is known of the frame shown. Event: ``scrub``."""
    return gr.HTML(
        value="",
        html_template=web.template("scrubber.html"),
        js_on_load="window.fwviz.mountScrubber(element, props, (name, data) => trigger('scrub', data), watch)",
        apply_default_css=False,
        head=web.scripts(),
        elem_id="fw-scrubber",
    )


def scrubber_value(
    view: View,
    trace: Trace,
    positions: Sequence[float],
    index: int,
    *,
    live: bool,
    follow: bool,
    title: str,
    default: bool = False,
    replay: bool = False,
    go: bool = False,
) -> str:
    """Ticks [x, t, inner, loss, gap, accuracy] and where to stand; ``positions`` are x per frame, as in the charts.

    ``default`` says that this is what a page without parameters shows, so the address needs none for it; ``replay``
    starts the replay; ``go`` moves the scrubber even if a person has moved it elsewhere.
    """
    ticks: list[Tick] = []
    accuracy = None  # of the last frame that was judged: inner updates are judged as time allows
    for frame, x in zip(trace.frames, positions, strict=True):
        accuracy = frame.mean_accuracy or _closing(frame) or accuracy
        ticks.append((round(x, 4), frame.t, frame.inner, _short(frame.loss), _short(frame.gap), _short(accuracy)))
    kind = "recording" if view.kind == "rec" else "run"
    link = {} if default else {"view": str(view)} if view.kind == "rec" else {"job": view.id}
    return wire.message(
        view=str(view),
        pool=trace.recipe.pool,
        link=link,
        ticks=ticks,
        index=index,
        live=live,
        follow=follow,
        kind=kind,
        badge="Recording" if kind == "recording" else "Run",
        title=title,
        replay=replay,
        go=go,
    )


def scrubbed() -> str:
    """The answer to a scrub: the next position may be sent."""
    return wire.message(ack=True)


def source_line(trace: Trace, method_title: str) -> str:
    """Where a trace comes from, in one line: method, pool, size, date and device."""
    recipe = trace.recipe
    parts = [f"{method_title} of {choice_line(recipe)}"]
    if trace.pool_title:
        parts.append(trace.pool_title)
    when = day(trace.created)
    if when:
        parts.append(when)
    if trace.device:
        parts.append(f"on {trace.device}")
    return " · ".join(parts)


def day(created: str) -> str:
    """The day of an ISO time stamp such as 21 Nov 2026, empty if it is none."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return ""
    return f"{moment.day} {moment:%b %Y}"


def _closing(frame: Frame) -> float | None:
    """Mean accuracy on the whole validation split, which only the closing frame has."""
    scores = frame.final.get("validation", {}).values()
    return sum(score.accuracy for score in scores) / len(scores) if scores else None


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
