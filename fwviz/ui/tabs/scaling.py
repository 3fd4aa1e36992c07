"""Tab "Scaling": more and more checkpoints join the pool, and each method either copes or not."""

from __future__ import annotations

from typing import Any

from fwviz.ui.controls import Control, choice, number
from fwviz.ui.pictures import Call, Picture, Shown, Tab


def _controls(shown: Shown) -> tuple[Control, ...]:
    return (
        choice(
            "order",
            "Who joins first",
            [
                ("irrelevant", "irrelevant checkpoints"),
                ("relevant", "relevant checkpoints"),
                ("noisy", "badly trained checkpoints"),
                ("random", "anybody"),
            ],
            help="Irrelevant: of tasks that have nothing in common with those evaluated.",
        ),
        choice(
            "methods",
            "Curves",
            [
                ("", "averaging, arithmetic, FW-hard, FW-soft"),
                ("weight_average,task_arithmetic,ties", "methods without data"),
                ("weight_average,supermerge,fw_soft", "averaging, SuperMerge, FW-soft"),
            ],
        ),
        number("seeds", "Orders drawn", 1, 1, 3, 1, "Each is run in full: three take three times as long."),
    )


def _call(shown: Shown) -> Call:
    options: dict[str, Any] = {"order": shown.text("order"), "seeds": int(shown.number("seeds"))}
    return Call("scaling", "pool", options | ({"methods": shown.text("methods")} if shown.text("methods") else {}))


SCALING = Tab(
    id="scaling",
    title="Scaling",
    lead="Begin with the checkpoints that the tasks need, then let others join. <b>A method that cannot tell who "
    "matters loses accuracy with every newcomer.</b> Every point is a merge, run and tested in full; what has been run "
    "before is taken from the run store.",
    controls=_controls,
    pictures=(
        Picture(
            "scaling_curves",
            _call,
            ("order", "methods", "seeds"),
            wide=True,
            long=True,
            ask="Press Measure: one merge after the other, smallest and largest pool first. Stop keeps what there is.",
            action=("Measure", "Run every method on pools of growing size"),
        ),
    ),
)
