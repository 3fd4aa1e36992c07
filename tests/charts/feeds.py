"""Every chart with a table for it: what the contract of charts is held against."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pandas as pd

from fwviz import registry
from tests.charts.tables_runs import (
    Names,
    accuracy,
    coefficients,
    comparison,
    gap,
    generalisation,
    lmo,
    lmo_history,
    lmo_layers,
    merges,
    promise,
    results,
    scale_curve,
    scaling,
)
from tests.charts.tables_weights import (
    filter_response,
    interpolation,
    landscape,
    magnitudes,
    pairs,
    simplex,
    spectrum_map,
    spectrum_profile,
    spectrum_variance,
    variance_accuracy,
    weights_by_type,
    weights_map,
)

# Every chart, a table for it, and the columns whose numbers it draws.
FEEDS: dict[str, tuple[Callable[[Names], pd.DataFrame], tuple[str, ...]]] = {
    "lmo_bars": (lmo, ("score",)),
    "lmo_layers": (lmo_layers, ("score",)),
    "lmo_history": (lmo_history, ("score",)),
    "gap_curve": (gap, ("gap", "loss")),
    "promise_reality": (promise, ("promised", "measured")),
    "accuracy_live": (accuracy, ("accuracy",)),
    "accuracy_bars": (results, ("accuracy",)),
    "comparison": (comparison, ("accuracy",)),
    "coefficients_bars": (coefficients, ("coefficient",)),
    "spectrum_map": (spectrum_map, ("amplitude",)),
    "spectrum_profile": (spectrum_profile, ("amplitude",)),
    "energy_share": (spectrum_profile, ("share_below",)),
    "spectrum_variance": (spectrum_variance, ("variance",)),
    "filter_response": (filter_response, ("accuracy",)),
    "variance_accuracy": (variance_accuracy, ("normalised", "variance")),
    "weights_map": (weights_map, ("coefficient",)),
    "weights_by_type": (weights_by_type, ("mean",)),
    "magnitudes": (magnitudes, ("median",)),
    "similarity": (partial(pairs, "cosine"), ("cosine",)),
    "sign_conflict": (partial(pairs, "conflict"), ("conflict",)),
    "scale_curve": (scale_curve, ("loss",)),
    "generalisation": (generalisation, ("accuracy", "filtered")),
    "cka": (partial(merges, "cka"), ("cka",)),
    "left_out": (partial(merges, "accuracy"), ("accuracy",)),
    "landscape_contour": (landscape, ("loss",)),
    "landscape_surface": (landscape, ("loss",)),
    "simplex_triangle": (simplex, ("loss",)),
    "scaling_curves": (scaling, ("accuracy",)),
    "interpolation_curve": (interpolation, ("loss",)),
}
CHARTS = sorted(registry.entries("charts"))
