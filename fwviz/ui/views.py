"""From a trace and a frame to the payload of each chart: which lens feeds which chart, and what changes when.

No maths here: lenses measure, charts draw, this says which belongs to which.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fwviz.registry import entry
from fwviz.runs.trace import Trace
from fwviz.types import FwvizError, PoolCard, Split
from fwviz.ui.chart import payload
from fwviz.ui.measured import Measurements
from fwviz.ui.panels import merge, relevance
from fwviz.ui.state import Tab, parse_index

TABS: dict[Tab, tuple[str, ...]] = {"relevance": relevance.CHARTS, "merge": merge.CHARTS}
OF_ONE_FRAME = frozenset({"lmo_bars", "lmo_layers", "coefficients_bars", "promise_reality"})
WITH_AVERAGE = frozenset({"accuracy_live", "accuracy_bars"})


@dataclass(frozen=True)
class Shown:
    """What a page looks at: a trace, one of its frames, the width class, the pinned checkpoint and the runs compared.

    ``live`` says that the run is under way: then nothing is measured for it, so that the run keeps its pace.
    """

    key: str
    trace: Trace
    index: int
    narrow: bool
    vertex: str | None
    compared: tuple[tuple[str, Trace], ...]
    card: PoolCard | None
    live: bool

    def ask(self, name: str) -> str:
        """What a page sends back to get the table of a chart as it is drawn now."""
        others = [view for view, _ in self.compared]
        return json.dumps([name, self.key, self.index, self.vertex, others], separators=(",", ":"))


def draw(name: str, shown: Shown, measured: Measurements) -> str:
    """The payload of one chart."""
    try:
        data = table(name, shown, measured)
    except FwvizError as error:
        return payload(None, key=shown.key, note=str(error))
    figure = entry("charts", name).run(data, theme="light", narrow=shown.narrow)
    meta = figure.layout.meta or {}
    cursor = bool(meta.get("cursor"))
    return payload(figure, key=shown.key, ask=shown.ask(name), summary=meta.get("summary", ""), cursor=cursor)


def table(name: str, shown: Shown, measured: Measurements) -> pd.DataFrame:
    """The tidy table one chart draws. Raises FwvizError with the reason why there is none."""
    made: pd.DataFrame = TABLES[name](shown, measured)
    return made


def _lens(name: str, *arguments: Any, **options: Any) -> Any:
    return entry("lenses", name).run(*arguments, **options)


def _lmo_bars(shown: Shown, measured: Measurements) -> pd.DataFrame:
    """The scores that the iteration after the frame shown compared; measured where the method has no oracle."""
    trace = shown.trace
    history = _lens("lmo_history", trace, shown.card)
    history = history[history["scope"] != "joint"]
    if not len(history):
        if not trace.frames or shown.live:
            raise FwvizError(
                "The scores appear with the first iteration." if shown.live else "Press Run to see the scores."
            )
        return measured.lmo(trace, shown.index)
    frame = trace.frames[shown.index]
    recorded = sorted(set(history["t"]))
    wanted = frame.t if frame.inner and frame.t else frame.t + 1
    at = max((t for t in recorded if t <= wanted), default=recorded[0])
    titles = {task.id: task.title for task in shown.card.tasks} if shown.card else {}
    rows = history[history["t"] == at]
    return rows.assign(task=rows["scope"], task_title=[titles.get(task, task) for task in rows["scope"]])


def _lmo_layers(shown: Shown, measured: Measurements) -> pd.DataFrame:
    """Recorded scores per group, as above; a model-wise record has one group only and is measured by layer instead."""
    trace = shown.trace
    if not trace.frames:
        raise FwvizError("The scores appear with the first iteration.")
    frame = trace.frames[shown.index]
    wanted = frame.t if frame.inner and frame.t else frame.t + 1
    scored = [f for f in trace.iterates() if f.scores is not None and len(f.scores) > 1]
    at = max((f for f in scored if f.t <= wanted), key=lambda f: f.t, default=None)
    if at is None or at.scores is None:
        if shown.live:
            raise FwvizError("This method compares whole models: the layers are measured when the run has ended.")
        return measured.layers(trace, shown.index)
    titles = {c.id: c.title for c in shown.card.checkpoints} if shown.card else {}
    names = trace.groups[next(g for g in trace.groups if len(trace.groups[g]) == len(at.scores))]
    rows = [
        {
            "group": names[g],
            "group_index": g,
            "checkpoint": checkpoint,
            "checkpoint_title": titles.get(checkpoint, checkpoint),
            "score": score,
            "chosen": score == min(scores),
        }
        for g, scores in enumerate(at.scores)
        for checkpoint, score in zip(trace.checkpoints, scores, strict=True)
    ]
    return pd.DataFrame(rows)


def _promise(shown: Shown, measured: Measurements) -> pd.DataFrame:
    if not shown.trace.frames:
        raise FwvizError("Press Run first: the way begins at a step of a run.")
    found = measured.promised(shown.trace, shown.index, shown.vertex or "")
    if found is None:
        where = f"towards {shown.vertex}" if shown.vertex else "towards the checkpoint that is wanted most"
        raise FwvizError(
            f"Press Measure to walk from this step {where}, or click a checkpoint's bar to walk towards it."
        )
    return found


def _average(shown: Shown, measured: Measurements, split: Split) -> dict[str, float] | None:
    found = measured.averaged(shown.trace.recipe)
    return found.get(split) if found else None


TABLES: dict[str, Callable[[Shown, Measurements], Any]] = {
    "lmo_bars": _lmo_bars,
    "lmo_layers": _lmo_layers,
    "lmo_history": lambda s, m: _lens("lmo_history", s.trace, s.card),
    "gap_curve": lambda s, m: _lens("gap", s.trace),
    "promise_reality": _promise,
    "accuracy_live": lambda s, m: _lens("accuracy", s.trace, s.card, _average(s, m, "validation")),
    "accuracy_bars": lambda s, m: _lens("results", s.trace, s.card, _average(s, m, "test")),
    "coefficients_bars": lambda s, m: _lens("coefficients", s.trace, s.card, index=s.index),
    "comparison": lambda s, m: _lens("comparison", [trace for _, trace in s.compared], s.card),
}


def mark(name: str, shown: Shown, measured: Measurements) -> Hashable:
    """Equal marks mean equal pictures: what a chart depends on, to send it only when it changes."""
    trace, index = shown.trace, shown.index
    iterates = sum(frame.completed for frame in trace.frames[: index + 1])
    average = measured.averaged(trace.recipe) is not None
    marks: dict[str, Hashable] = {
        "lmo_bars": iterates,
        "lmo_layers": iterates,
        "lmo_history": iterates,
        "gap_curve": iterates,
        "promise_reality": (iterates, shown.vertex),
        "accuracy_live": (sum(bool(frame.accuracy) for frame in trace.frames), average),
        "accuracy_bars": (trace.finished, average),
        "coefficients_bars": index,
        "comparison": (trace.finished, tuple(key for key, _ in shown.compared)),
    }
    return marks[name]


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
    made = [("Average accuracy", percent(100 * accuracy) if accuracy is not None else "–", f"{split} images")]
    if base is not None and individual is not None:
        made.append(
            ("Base → individual", f"{percent(100 * base)[:-2]} → {percent(100 * individual)}", f"{split}, same tasks")
        )
    made.append(("Time", f"{frame.seconds:.1f} s", "of this run, pauses left out"))
    made.append(("Extra memory", _bytes(frame.peak_memory_bytes), "peak of the process"))
    made.append(("Checkpoint data read", _bytes(frame.bytes_read), f"{len(trace.checkpoints)} checkpoints"))
    return made


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
