"""Tab "Weights": what each layer takes of each checkpoint, how far the checkpoints moved, and how alike they are."""

from __future__ import annotations

from fwviz.ui.controls import Control, choice
from fwviz.ui.pictures import Call, Picture, Shown, Tab


def _controls(shown: Shown) -> tuple[Control, ...]:
    layers = shown.trace.groups.get("layer", ())
    return (
        choice("order", "Columns", [("type", "by kind of weight"), ("depth", "from input to output")]),
        choice(
            "group",
            "Compare over",
            [
                ("pinned", "the marked layer, else all"),
                ("model", "the whole model"),
                *((name, name) for name in layers),
            ],
            help="The part of the model whose task vectors are compared pair by pair.",
        ),
        choice(
            "weighted",
            "A conflict counts",
            [("false", "once per weight"), ("true", "by its size")],
            help="Whether a large pull in opposite directions weighs more than a small one.",
        ),
    )


def _moment(shown: Shown) -> dict[str, object]:
    """The iteration of the frame shown; nothing at the end, where every run stands at its own last one."""
    frames = shown.trace.frames
    return {} if not frames or shown.index >= len(frames) - 1 else {"t": frames[shown.index].t}


def _part(shown: Shown) -> dict[str, object]:
    group = shown.text("group")
    return {"group": (shown.layer or "model") if group == "pinned" else group}


WEIGHTS = Tab(
    id="weights",
    title="Weights",
    lead="A linear merge is a table of numbers: <b>how much each layer takes of each checkpoint</b>. Here are the "
    "tables that the methods found, and what the checkpoints look like before any merging: how far they moved, who "
    "moved the same way, and who pulls against whom.",
    controls=_controls,
    pictures=(
        Picture(
            "weights_map",
            lambda s: Call("weights_map", "beside", _moment(s)),
            ("frame", "compared", "order"),
            options=lambda s: {"order": s.text("order")},
            wide=True,
        ),
        Picture("weights_by_type", lambda s: Call("weights_by_type", "beside", _moment(s)), ("frame", "compared")),
        Picture("magnitudes", lambda s: Call("magnitudes", "pool")),
        Picture("similarity", lambda s: Call("similarity", "pool", _part(s)), ("group", "layer")),
        Picture(
            "sign_conflict",
            lambda s: Call("sign_conflict", "pool", {**_part(s), "weighted": s.text("weighted") == "true"}),
            ("group", "layer", "weighted"),
        ),
    ),
)
