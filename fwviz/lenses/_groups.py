"""Which coordinates a table is about: the whole model, a layer or a tensor; and its tensors by name."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from fwviz.space.layout import WEIGHT_TYPES
from fwviz.types import GRANULARITIES, FwvizError, Groups, ParamLayout

# What a weight type is called in tables and charts, in their order.
TYPE_TITLES = {
    "embedding": "embeddings",
    "query": "attention query",
    "key": "attention key",
    "value": "attention value",
    "qkv": "attention q, k, v",
    "output": "attention output",
    "mlp": "MLP",
    "norm": "norms",
    "projection": "projection",
    "other": "other",
}


def containing(layout: ParamLayout, group: str) -> Groups:
    """The partition that has a group of this name: "model", a layer or a tensor."""
    for granularity in GRANULARITIES:
        groups = layout.groups(granularity)
        if group in groups.names:
            return groups
    layers = ", ".join(layout.groups("layer").names[:8])
    raise FwvizError(f"there is no group {group!r}: choose model, a layer ({layers} …) or the name of a tensor.")


def span(layout: ParamLayout, group: str) -> tuple[int, int]:
    """The range [start, stop) of "model", of a layer or of a tensor in the flat vector."""
    groups = containing(layout, group)
    g = groups.names.index(group)
    return groups.bounds[g], groups.bounds[g + 1]


def typed(values: Sequence[str]) -> pd.Categorical:
    """Weight types as a categorical column of their titles, in the order of :data:`TYPE_TITLES`."""
    titles = [TYPE_TITLES[kind] for kind in WEIGHT_TYPES]
    return pd.Categorical([TYPE_TITLES[kind] for kind in values], categories=titles)
