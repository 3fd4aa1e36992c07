"""The merged models of finished runs, as lenses that judge them anew need them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from fwviz.lenses.comparison import describe
from fwviz.pools.open import open_pool
from fwviz.runs.assemble import Assembly, assemble, pool_fingerprint
from fwviz.runs.export import merged_parts
from fwviz.runs.recipe import Recipe
from fwviz.runs.store import RunStore
from fwviz.runs.trace import Trace
from fwviz.types import Extension, FwvizError


@dataclass(frozen=True)
class Merged:
    """One merge: the weights of its backbone θ (P,), and what it has beside them."""

    run: str
    label: str
    method: str
    theta: Tensor
    extension: Extension | None = None


def base_of(assembly: Assembly) -> Merged:
    """The model before any merging, as a row to compare with."""
    return Merged("", "base", "", assembly.problem.vectors.base.float())


def finished(assembly: Assembly, traces: Sequence[Trace]) -> list[Trace]:
    """The runs that came to an end, each once. FwvizError if one is of another pool."""
    own = pool_fingerprint(assembly.pool.card)
    for trace in traces:
        if trace.pool_fingerprint != own:
            raise FwvizError(f"run {trace.id or describe(trace)!r} is of another pool: choose runs of this pool.")
    ended = {run_of(trace): trace for trace in traces if trace.frames and trace.finished and trace.status != "failed"}
    return list(ended.values())


def run_of(trace: Trace) -> str:
    """The id of a run; one that was not saved has none."""
    return trace.id or trace.recipe.fingerprint()


def lean(recipe: Recipe) -> Recipe:
    """The same merge with as little of its checkpoints in memory as their files allow."""
    return replace(recipe, storage=open_pool(recipe.pool).lean_storage(recipe.checkpoints))


def rebuilt(traces: Sequence[Trace], store: RunStore | None) -> Iterator[Merged]:
    """The last iterate of every run: from its coefficients, from what ``store`` kept of it, else run again."""
    for trace in traces:
        kept = store.kept(trace.id) if store is not None and trace.id in store.ids() else None
        theta, extension = merged_parts(trace, -1, assemble(lean(trace.recipe)), kept)
        yield Merged(run_of(trace), describe(trace), trace.recipe.method, theta, extension)
