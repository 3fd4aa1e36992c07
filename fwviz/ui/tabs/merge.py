"""Tab "Merge (live)": what each step does to accuracy, what it costs, and how runs compare."""

from __future__ import annotations

import pandas as pd

from fwviz.registry import entry
from fwviz.types import Split
from fwviz.ui.controls import Control, choice
from fwviz.ui.measured import Measurements
from fwviz.ui.pictures import Call, Picture, Shown, Tab


def _controls(shown: Shown) -> tuple[Control, ...]:
    return (choice("x", "Accuracy over", [("t", "iterations"), ("seconds", "seconds")]),)


def _average(shown: Shown, measured: Measurements, split: Split) -> dict[str, float] | None:
    found = measured.averaged(shown.trace.recipe)
    return found.get(split) if found else None


def _accuracy(shown: Shown, measured: Measurements) -> pd.DataFrame:
    average = _average(shown, measured, "validation")
    made: pd.DataFrame = entry("lenses", "accuracy").run(shown.trace, shown.card, average)
    return made


def _results(shown: Shown, measured: Measurements) -> pd.DataFrame:
    made: pd.DataFrame = entry("lenses", "results").run(shown.trace, shown.card, _average(shown, measured, "test"))
    return made


def _alone(shown: Shown) -> str:
    """A comparison of one run with itself says nothing that the bars above do not."""
    return "" if len(shown.compared) > 1 else "Tick two or more runs in the list below to see them side by side."


def _no_search(shown: Shown) -> str:
    searched = any(t.recipe.settings.get("scale_search", "off") != "off" for t in _scales(shown).traces(shown))
    return "" if searched else "Run a method with its setting “scale search” on: every scale it tries is drawn here."


def _unfinished(shown: Shown) -> str:
    return "" if shown.trace.finished and shown.trace.frames else "Appears when the run has ended."


def _scales(shown: Shown) -> Call:
    return Call("scale_curve", "beside")


MERGE = Tab(
    id="merge",
    title="Merge (live)",
    lead="The merged model is tested after every step on samples it has never been tuned on. <b>Base</b> is the model "
    "before any fine-tuning, <b>individual</b> each task's own checkpoint: merging works when one model comes close to "
    "all of them.",
    controls=_controls,
    pictures=(
        Picture(
            "accuracy_live",
            lambda shown: Call("accuracy", "trace"),
            ("judged", "average", "x"),
            table=_accuracy,
            options=lambda shown: {"x": shown.text("x")},
            wide=True,
        ),
        Picture("accuracy_bars", lambda shown: Call("results", "trace"), ("end", "average"), table=_results),
        Picture("coefficients_bars", lambda shown: Call("coefficients", "trace", {"index": shown.index}), ("frame",)),
        Picture(
            "comparison",
            lambda shown: Call("comparison", "compared"),
            ("end", "compared"),
            wide=True,
            unless=_alone,
        ),
        Picture("scale_curve", _scales, ("end", "compared"), wide=True, unless=_no_search),
        Picture(
            "cka",
            lambda shown: Call("cka", "runs"),
            ("end", "compared"),
            wide=True,
            long=True,
            ask="Press Measure: what the merges' heads read of each task is compared with its own checkpoint's.",
            action=("Measure", "Compare the features of the runs with those of the tasks' own checkpoints"),
            unless=_unfinished,
        ),
        Picture(
            "left_out",
            lambda shown: Call("left_out", "runs"),
            ("end", "compared"),
            wide=True,
            long=True,
            ask="Press Measure: the merges are tested on the tasks of the pool that they have nothing to do with.",
            action=("Measure", "Test the runs on the tasks that none of them was made for"),
            unless=_unfinished,
        ),
    ),
)
