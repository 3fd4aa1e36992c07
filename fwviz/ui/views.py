"""From what a page looks at to the payload of each chart, whole or as a difference; the tiles of a frame.

No maths here: lenses measure, charts draw, the tabs say which belongs to which.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from typing import Any

import pandas as pd

from fwviz.charts import _style as style
from fwviz.registry import entry
from fwviz.runs.trace import Trace
from fwviz.types import FwvizError, Split
from fwviz.ui import wire
from fwviz.ui.brief import brief
from fwviz.ui.chart import payload
from fwviz.ui.measured import Measurements
from fwviz.ui.measuring import Measurement
from fwviz.ui.pictures import MOVED_BY_SCRUBBING, Picture, Shown
from fwviz.ui.state import TabId, parse_index
from fwviz.ui.tabs import PICTURES, TABS

Sent = dict[str, Any]  # name of a chart → version and figure of its last message


def charts_of(tab: TabId) -> tuple[str, ...]:
    """The charts of a tab, in order."""
    return tuple(picture.chart for picture in TABS[tab].pictures)


def touched(tab: TabId, *what: str) -> tuple[str, ...]:
    """The charts of a tab that change when one of ``what`` does: needs or names of controls."""
    return tuple(picture.chart for picture in TABS[tab].pictures if {*picture.needs} & {*what})


def moved(tab: TabId) -> tuple[str, ...]:
    """The charts of a tab that follow the scrubber."""
    return touched(tab, *MOVED_BY_SCRUBBING)


def draw(name: str, shown: Shown, measured: Measurements, sent: Sent | None = None) -> str:
    """The payload of one chart: what changed since ``sent``, which is brought up to date, or all of it."""
    picture = PICTURES[name]
    job = _job(picture, shown, measured)
    facts: dict[str, Any] = {"key": shown.key} if job is None else {"key": shown.key, "job": job.facts()}
    if picture.long and job is None:
        facts["job"] = {"state": "idle"}
    try:
        figure = entry("charts", name).run(
            table(name, shown, measured), theme="light", narrow=shown.narrow, **picture.options(shown)
        )
    except FwvizError as error:
        return _less(name, facts | {"note": wire.placeless(str(error)), "figure": None}, sent)
    plain = json.loads(figure.to_json(validate=False), parse_float=_rounded)
    # Words for screen readers and the like are of the page, not of the plot.
    meta = plain["layout"].pop("meta", {})
    facts |= {"ask": shown.ask(name), "summary": meta.get("summary", ""), "cursor": bool(meta.get("cursor"))}
    return _less(name, facts | {"figure": brief(plain)}, sent)


def _less(name: str, said: dict[str, Any], sent: Sent | None) -> str:
    """A payload, or what has changed of it since the last: a first picture always comes whole."""
    made = payload(**said)
    if sent is None:
        return made
    before = sent.get(name)
    if before is not None and (said["figure"] is None) == (before[1]["figure"] is None):
        made = min(wire.difference(before, said), made, key=len)
    if not wire.says_nothing(made):
        sent[name] = (wire.version_of(made), said)
    return made


def _rounded(text: str) -> float:
    """A number outside the arrays, which are float32 already: to as many digits as a pixel can show."""
    return float(f"{float(text):.6g}")


def table(name: str, shown: Shown, measured: Measurements) -> pd.DataFrame:
    """The tidy table one chart draws. Raises FwvizError with the reason why there is none."""
    picture = PICTURES[name]
    problem = picture.unless(shown)
    if problem:
        raise FwvizError(problem)
    if picture.table is not None:
        return picture.table(shown, measured)
    if picture.long:
        return measured.grown(picture.call(shown), shown, picture.ask)
    return measured.call(picture.call(shown), shown)


def _job(picture: Picture, shown: Shown, measured: Measurements) -> Measurement | None:
    return measured.board.get(picture.call(shown).key(shown)) if picture.long and not picture.unless(shown) else None


def mark(name: str, shown: Shown, measured: Measurements) -> Hashable:
    """Equal marks mean equal pictures: what a chart depends on, to send it only when it changes."""
    picture = PICTURES[name]
    job = _job(picture, shown, measured)
    marks = [_mark(need, shown, measured) for need in picture.needs]
    return (*marks, None if job is None else (job.version, job.state))


def _mark(need: str, shown: Shown, measured: Measurements) -> Hashable:
    trace = shown.trace
    if need == "frame":
        return shown.index
    if need == "step":
        return sum(frame.completed for frame in trace.frames[: shown.index + 1])
    if need == "growth":
        return sum(frame.completed for frame in trace.frames)
    if need == "judged":
        return sum(bool(frame.accuracy) for frame in trace.frames)
    if need == "end":
        return trace.finished
    if need == "average":
        return measured.averaged(trace.recipe) is not None
    if need == "compared":
        return tuple(key for key, _ in shown.compared)
    if need in ("checkpoint", "layer", "edits"):
        made: Hashable = getattr(shown, need)
        return made
    return shown.values.get(need)


def positions(trace: Trace) -> list[float]:
    """x of each frame in the charts over t."""
    from fwviz.lenses.accuracy import positions as places

    return places(trace)


def frame_at(trace: Trace, t: Any) -> int:
    """The frame of the completed iterate nearest to ``t``."""
    wanted = parse_index(round(t) if isinstance(t, float) and abs(t) < 1e6 else t, 10**6)
    return min(
        range(len(trace.frames)), key=lambda i: (abs(trace.frames[i].t - wanted), trace.frames[i].inner), default=0
    )


def tiles(trace: Trace, index: int) -> list[tuple[str, str, str]]:
    """Numbers of the frame shown: accuracy beside its references, and what the run has cost so far."""
    if not trace.frames:
        return []
    frame = trace.frames[index]
    tasks = trace.tasks

    def mean(row: str, split: Split) -> float | None:
        known = trace.reference.get(row, {}).get(split, {})
        return sum(known[task] for task in tasks) / len(tasks) if all(task in known for task in tasks) else None

    test = frame.final.get("test", {})
    split: Split = "test" if test else "validation"
    # Inner updates are judged as time allows: the number shown is that of the last frame that was.
    judged = next((f.mean_accuracy for f in reversed(trace.frames[: index + 1]) if f.accuracy), None)
    accuracy = sum(score.accuracy for score in test.values()) / len(test) if test else judged
    percent = "{:.1f} %".format
    base, individual = mean("base", split), mean("individual", split)
    made = [("Average accuracy", percent(100 * accuracy) if accuracy is not None else "–", f"{split} samples")]
    if base is not None and individual is not None:
        made.append(
            ("Base → individual", f"{percent(100 * base)[:-2]} → {percent(100 * individual)}", f"{split}, same tasks")
        )
    made.append(("Time", f"{frame.seconds:.1f} s", "of this run, pauses left out"))
    made.append(("Extra memory", style.size(frame.peak_memory_bytes), "peak of the process"))
    if frame.stored_bytes:
        made.append(("Stored beside it", style.size(frame.stored_bytes), "experts, masks, maps and router"))
    made.append(("Checkpoint data read", style.size(frame.bytes_read), f"{len(trace.checkpoints)} checkpoints"))
    return made
