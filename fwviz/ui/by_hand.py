"""A merge by hand: the coefficients of the frame shown, with changes of a person over them."""

from __future__ import annotations

from dataclasses import dataclass

from fwviz.runs.trace import Matrix
from fwviz.space.layout import layer_of
from fwviz.types import FwvizError, Granularity
from fwviz.ui.pictures import Shown


@dataclass(frozen=True)
class ByHand:
    """Coefficients (G, n) at one granularity, and the layer each group lies in with its share of that layer."""

    granularity: Granularity
    values: Matrix
    layers: tuple[str, ...]
    shares: tuple[float, ...]

    def by_layer(self) -> dict[str, tuple[float, ...]]:
        """Layer → mean coefficient per checkpoint, weighted by parameters: what a person sees and changes."""
        seen: dict[str, list[float]] = {}
        for layer, share, row in zip(self.layers, self.shares, self.values, strict=True):
            total = seen.setdefault(layer, [0.0] * len(row))
            for i, value in enumerate(row):
                total[i] += share * value
        return {layer: tuple(row) for layer, row in seen.items()}


def by_hand(shown: Shown) -> ByHand:
    """The frame shown with the edits over it. FwvizError if its merge is not linear.

    An edit sets a whole layer; "" as the layer sets all of them. A merge with one coefficient per checkpoint is spread
    over the layers first; one with a coefficient per tensor keeps its tensors.
    """
    trace = shown.trace
    frame = trace.frames[shown.index] if trace.frames else None
    if frame is None or frame.coefficients is None:
        raise FwvizError("this merge is not a table of coefficients: choose a linear method, such as weight averaging.")
    granularity: Granularity = "tensor" if frame.granularity == "tensor" else "layer"
    names, sizes = trace.groups[granularity], trace.group_sizes[granularity]
    layers = tuple(layer_of(name) for name in names) if granularity == "tensor" else tuple(names)
    rows = frame.coefficients * len(names) if frame.granularity == "model" else frame.coefficients
    values = [list(row) for row in rows]
    column = {name: i for i, name in enumerate(trace.checkpoints)}
    for layer, checkpoint, value in shown.edits:
        if checkpoint in column:
            for g, home in enumerate(layers):
                if layer in ("", home):
                    values[g][column[checkpoint]] = value
    whole: dict[str, int] = {}
    for layer, size in zip(layers, sizes, strict=True):
        whole[layer] = whole.get(layer, 0) + size
    shares = tuple(size / whole[layer] for layer, size in zip(layers, sizes, strict=True))
    return ByHand(granularity, tuple(tuple(row) for row in values), layers, shares)
