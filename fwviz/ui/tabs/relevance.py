"""Tab "Relevance": which checkpoints the oracle wants, where, when, and whether its promise holds."""

from __future__ import annotations

import pandas as pd

from fwviz.registry import entry
from fwviz.space.layout import layer_of
from fwviz.types import FwvizError
from fwviz.ui.controls import Control, choice
from fwviz.ui.measured import Measurements
from fwviz.ui.pictures import Call, Picture, Shown, Tab


def _controls(shown: Shown) -> tuple[Control, ...]:
    tasks = {task.id: task.title for task in shown.card.tasks} if shown.card else {}
    return (
        choice(
            "value",
            "Bars show",
            [("score", "inner product, in nats"), ("cosine", "sum of cosines (released code)")],
            help="What the oracle compares: the linear approximation of the paper, or what the released code ranks by.",
        ),
        choice("order", "Rows", [("pool", "as in the pool"), ("score", "most wanted first")]),
        choice(
            "scope",
            "Over the run",
            [("joint", "all tasks together"), *((task, tasks.get(task, task)) for task in shown.trace.tasks)],
            help="Whose gradient the map over the iterations shows.",
        ),
    )


def _bars(shown: Shown, measured: Measurements) -> pd.DataFrame:
    """The scores that the iteration after the frame shown compared; measured where the record has none."""
    trace = shown.trace
    history = entry("lenses", "lmo_history").run(trace, shown.card)
    history = history[history["scope"] != "joint"]
    if not len(history) or shown.text("value") == "cosine":
        if not trace.frames or shown.live:
            raise FwvizError(
                "The scores appear with the first iteration."
                if shown.live and not len(history)
                else "The cosines are measured when the run has ended."
                if shown.live
                else "Press Run to see the scores."
            )
        return measured.call(_bars_call(shown), shown)
    frame = trace.frames[shown.index]
    recorded = sorted(set(history["t"]))
    wanted = frame.t if frame.inner and frame.t else frame.t + 1
    at = max((t for t in recorded if t <= wanted), default=recorded[0])
    titles = {task.id: task.title for task in shown.card.tasks} if shown.card else {}
    rows = history[history["t"] == at]
    return rows.assign(task=rows["scope"], task_title=[titles.get(task, task) for task in rows["scope"]])


def _bars_call(shown: Shown) -> Call:
    return Call("lmo", "frame")


def _layers(shown: Shown, measured: Measurements) -> pd.DataFrame:
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
        return measured.call(_layers_call(shown), shown)
    titles = {c.id: c.title for c in shown.card.checkpoints} if shown.card else {}
    names = trace.groups[next(g for g in trace.groups if len(trace.groups[g]) == len(at.scores))]
    fine = names == trace.groups.get("tensor")
    rows = [
        {
            "group": names[g],
            "group_index": g,
            "layer": layer_of(names[g]) if fine else names[g],
            "checkpoint": checkpoint,
            "checkpoint_title": titles.get(checkpoint, checkpoint),
            "score": score,
            "chosen": score == min(scores),
        }
        for g, scores in enumerate(at.scores)
        for checkpoint, score in zip(trace.checkpoints, scores, strict=True)
    ]
    return pd.DataFrame(rows)


def _layers_call(shown: Shown) -> Call:
    return Call("lmo_layers", "frame")


def _promise(shown: Shown, measured: Measurements) -> pd.DataFrame:
    if not shown.trace.frames:
        raise FwvizError("Press Run first: the way begins at a step of a run.")
    found = measured.known(promise_call(shown), shown)
    if found is None:
        where = f"towards {shown.checkpoint}" if shown.checkpoint else "towards the checkpoint that is wanted most"
        raise FwvizError(
            f"Press Measure to walk from this step {where}, or click a checkpoint's bar to walk towards it."
        )
    return found


def promise_call(shown: Shown) -> Call:
    """The way from the frame shown to the pinned checkpoint, or to the one the oracle wants most."""
    return Call("promise", "frame", {"vertex": shown.checkpoint} if shown.checkpoint else {})


def _no_oracle(shown: Shown) -> str:
    """Why there are no scores of this run: not yet, or never."""
    trace = shown.trace
    if any(frame.scores is not None for frame in trace.frames):
        return ""
    if not trace.finished:
        return "What the oracle wants appears with the first iteration, if the method asks one."
    title = trace.recipe.title
    return f"{title} asks no oracle on its way: run FW-Merging to see here what each iteration wants."


RELEVANCE = Tab(
    id="relevance",
    title="Relevance",
    lead="A Frank–Wolfe step asks every checkpoint one question: <b>if the merge moved towards you, how much would the "
    "loss of these tasks fall?</b> The gradient answers without trying. Here is the answer at the step chosen above.",
    controls=_controls,
    pictures=(
        Picture(
            "lmo_bars",
            _bars_call,
            ("step", "value", "order"),
            table=_bars,
            options=lambda shown: {"value": shown.text("value"), "order": shown.text("order")},
            wide=True,
        ),
        Picture(
            "lmo_history",
            lambda shown: Call("lmo_history", "trace"),
            ("growth", "scope"),
            options=lambda shown: {"scope": shown.text("scope")},
            unless=_no_oracle,
        ),
        Picture("gap_curve", lambda shown: Call("gap", "trace"), ("growth",)),
        Picture("lmo_layers", _layers_call, ("step",), table=_layers, wide=True),
        Picture(
            "promise_reality",
            promise_call,
            ("step", "checkpoint"),
            table=_promise,
            wide=True,
            action=("Measure", "Measure the loss on the way from the step shown to the checkpoint"),
        ),
    ),
)
