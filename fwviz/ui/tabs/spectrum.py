"""Tab "Spectrum (Fourier)": task vectors as signals, where checkpoints interfere, and what a filter takes away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from fwviz.charts import _style as style
from fwviz.ui.controls import Control, choice, number
from fwviz.ui.pictures import Aside, Call, Picture, Shown, Tab


def _controls(shown: Shown) -> tuple[Control, ...]:
    titles = {c.id: c.title for c in shown.card.checkpoints} if shown.card else {}
    names = shown.trace.checkpoints
    tensors = [name for name in shown.trace.groups.get("tensor", ()) if name.endswith("weight") and "norm" not in name]
    layers = shown.trace.groups.get("layer", ())
    return (
        number(
            "cutoff",
            "Cutoff",
            0.3,
            0.0,
            1.0,
            0.01,
            "Radial frequency ρ below which a high-pass filter sets everything to zero. Papers use 0.1 to 0.4. Let go, "
            "and FR-Merging merges with this filter and is tested.",
            live=True,
        ),
        choice(
            "group",
            "Curves over",
            [("model", "the whole model"), *((name, name) for name in layers), *((t, _short(t)) for t in tensors)],
            help="The weight matrices that the radial spectra and the interference are taken over.",
        ),
        choice("checkpoint", "Map of", [(name, titles.get(name, name)) for name in names], shown.checkpoint),
        choice(
            "tensor",
            "in",
            [(name, _short(name)) for name in tensors],
            next((name for name in tensors if "mlp" in name or "fc1" in name), None),
        ),
        choice(
            "matrix",
            "Generalisation shows",
            [
                ("difference", "what the filter changes"),
                ("accuracy", "accuracy without the filter"),
                ("filtered", "accuracy with the filter"),
            ],
            help="The map of one task vector on every task: the difference the filter makes, or either accuracy.",
        ),
    )


def _short(tensor: str) -> str:
    return tensor.removeprefix("vision_model.").removeprefix("encoder.").removesuffix(".weight")


def _subpools(**sources: Any) -> Iterator[pd.DataFrame]:
    """The table of ``variance_accuracy`` as it grows."""
    from fwviz.lenses.variance_accuracy import subpools

    found: list[pd.DataFrame] = []
    for row in subpools(**sources):
        found.append(row)
        table = pd.concat(found, ignore_index=True)
        table.attrs = {"done": len(found), "total": int(row["planned"].iloc[0]), "what": "sub-pools"}
        yield table


def _responses(**sources: Any) -> Iterator[pd.DataFrame]:
    """The table of ``filter_response`` as it grows."""
    from fwviz.lenses.filter_response import CUTOFFS, responses

    total = len(CUTOFFS) * len(str(sources["bands"]).split(","))
    for done, table in enumerate(responses(**sources), 1):
        table.attrs = {"done": done, "total": total, "what": "merges"}
        yield table


def _generalisation(shown: Shown) -> Call:
    return Call("generalisation", "pool", {"cutoff": shown.number("cutoff")})


def _response(*, cutoffs: tuple[float, ...], **sources: Any) -> Iterator[pd.DataFrame]:
    """The table of ``filter_response`` for the one cutoff chosen."""
    from fwviz.lenses.filter_response import response

    yield from response(sources["assembly"], cutoffs[0])


def _words(table: pd.DataFrame) -> str:
    """What the merge at a cutoff reaches, beside the slider."""
    row = table.iloc[0]
    text = f"FR merge at {row['cutoff']:g}: {style.percent(row['accuracy'])} quick accuracy"
    known = row["unfiltered"] == row["unfiltered"]
    return text + (f" ({style.points(row['accuracy'] - row['unfiltered'])} against no filter)" if known else " …")


def _over(shown: Shown) -> dict[str, object]:
    return {"group": shown.text("group"), "cutoff": shown.number("cutoff")}


SPECTRUM = Tab(
    id="spectrum",
    title="Spectrum",
    lead="A weight matrix can be read like a picture: <b>coarse structure lies at low frequencies, fine detail at high "
    "ones</b>. Where the checkpoints differ most they get in each other's way. A high-pass filter takes the coarse "
    "part out before merging: move the cutoff and see what is lost.",
    controls=_controls,
    asides=(
        Aside(
            "cutoff",
            lambda s: Call("filter_response", "pool", {"bands": "high", "cutoffs": (s.number("cutoff"),)}),
            _response,
            _words,
        ),
    ),
    pictures=(
        Picture(
            "spectrum_map",
            lambda s: Call(
                "spectrum_map",
                "pool",
                {"checkpoint": s.text("checkpoint"), "tensor": s.text("tensor"), "cutoff": s.number("cutoff")},
            ),
            ("checkpoint", "tensor", "cutoff"),
        ),
        Picture("spectrum_profile", lambda s: Call("spectrum_profile", "pool", _over(s)), ("group", "cutoff")),
        Picture("energy_share", lambda s: Call("spectrum_profile", "pool", _over(s)), ("group", "cutoff")),
        Picture("spectrum_variance", lambda s: Call("spectrum_variance", "pool", _over(s)), ("group", "cutoff")),
        Picture(
            "filter_response",
            lambda s: Call("filter_response", "pool", {"bands": "high,low"}),
            grow=_responses,
            long=True,
            ask="Press Measure: one merge and one test per cutoff, keeping the fine part or the coarse part.",
            action=("Measure", "Merge with a row of cutoffs and test each"),
        ),
        Picture(
            "variance_accuracy",
            lambda s: Call("variance_accuracy", "pool", {"size": 3} if len(s.trace.checkpoints) > 3 else {"size": 2}),
            grow=_subpools,
            long=True,
            ask="Press Measure: random sub-pools are merged one after the other.",
            action=("Measure", "Merge random sub-pools and compare their interference with what they keep"),
        ),
        Picture(
            "generalisation",
            _generalisation,
            ("cutoff", "matrix"),
            options=lambda s: {"value": s.text("matrix")},
            wide=True,
            long=True,
            ask="Press Measure: every task vector alone, with what lies below the cutoff and without, on every task.",
            action=("Measure", "Test every task vector alone on every task, with the filter and without"),
        ),
    ),
)
