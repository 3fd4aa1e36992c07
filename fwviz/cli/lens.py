"""The commands ``score`` and ``lens``: analyses, without the app."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fwviz.cli.output import flag, parser_of, print_table
from fwviz.cli.recipes import add_recipe_options, recipe_of
from fwviz.registry import entries, entry
from fwviz.types import FwvizError

if TYPE_CHECKING:
    from fwviz.runs.trace import Trace


def score(argv: Sequence[str]) -> int:
    """what the Frank-Wolfe oracle says: score of each checkpoint for each task at the base"""
    parser = parser_of("score", score)
    add_recipe_options(parser, argv, method="weight_average")
    options = parser.parse_args(argv)
    recipe = recipe_of(options)
    from fwviz.lenses.lmo import lmo
    from fwviz.runs.assemble import assemble

    table = lmo(assemble(recipe)).set_index(["checkpoint", "task"])
    print("score = <gradient of the task's calibration loss at the base, checkpoint - base>; * = the oracle's choice")
    rows = []
    for name in recipe.checkpoints:
        cells = [table.loc[(name, task)] for task in recipe.tasks]
        rows.append((name, *(f"{'*' if cell.chosen else ''}{cell.score:.4g}" for cell in cells)))
    print_table(("checkpoint", *recipe.tasks), rows)
    return 0


def lens(argv: Sequence[str]) -> int:
    """run one analysis; a CSV on stdout, or a CSV or HTML file"""
    name = argv[0] if argv and not argv[0].startswith("-") else None
    parser = parser_of("lens", lens)
    parser.add_argument("name", metavar="NAME", help=f"one of: {', '.join(entries('lenses'))}")
    if name is None:
        parser.parse_args(argv)  # prints the help or what is missing
        return 2
    analysis = entry("lenses", name)
    parser.description = f"{analysis.title}: {analysis.facts['question']}"
    parameters = inspect.signature(analysis.run).parameters
    if "assembly" in parameters:
        add_recipe_options(parser, argv, method="weight_average")
        parser.add_argument("--at", metavar="RUN", help="look from a frame of this run, not from the base")
        parser.add_argument("--frame", type=int, default=-1, help="index of that frame, negative from the end (-1)")
        if "traces" in parameters:
            parser.add_argument("--traces", nargs="+", default=[], metavar="RUN", help="runs to place in the picture")
    else:
        count = "+" if "traces" in parameters else None
        parser.add_argument("run", metavar="RUN", nargs=count, help="id of a recorded run")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="run store (FWVIZ_RUNS or ~/.cache/fwviz/runs)")
    options_of_lens = {n: p.default for n, p in parameters.items() if isinstance(p.default, bool | int | float | str)}
    shared = {"seed"} & set(options_of_lens) if "assembly" in parameters else set()  # one flag for recipe and lens
    for option, default in options_of_lens.items():
        if option not in shared:
            parser.add_argument(flag(option), dest=f"lens_{option}", default=default, help=f"({default})")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a .csv, or a .html with a chart")
    parser.add_argument("--chart", help=f"chart of the .html file, one of: {', '.join(entries('charts'))}")
    options = parser.parse_args(argv)
    given = {n: getattr(options, n if n in shared else f"lens_{n}") for n in options_of_lens}
    chosen = {n: _parse_like(n, d if given[n] is None else given[n], d) for n, d in options_of_lens.items()}
    if options.out is not None and options.out.suffix not in (".csv", ".html"):
        raise FwvizError(f"{options.out.name} ends neither in .csv nor in .html: name one of the two.")
    if options.out is not None and not options.out.parent.is_dir():
        raise FwvizError(f"there is no folder {options.out.parent}: make it, or name a file in another.")
    chart = _chart_of(name, options.chart) if options.out is not None and options.out.suffix == ".html" else None
    table = _last(analysis.run(**chosen | _lens_sources(tuple(parameters), options)))
    if chart is not None:
        entry("charts", chart).run(table).write_html(options.out, include_plotlyjs=True)
    else:
        table.to_csv(sys.stdout if options.out is None else options.out, index=False)
    return 0


def _lens_sources(parameters: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """What a lens looks at: an assembly (and weights to look from), a trace, or traces; with the card of the pool."""
    from fwviz.pools.open import open_pool
    from fwviz.runs.assemble import assemble
    from fwviz.runs.export import merged_weights
    from fwviz.runs.store import RunStore

    if "assembly" not in parameters:
        traces = [_trace(run_id, options) for run_id in ([options.run] if "trace" in parameters else options.run)]
        sources: dict[str, Any] = {"trace": traces[0]} if "trace" in parameters else {"traces": traces}
        if "card" in parameters:
            sources["card"] = open_pool(traces[0].recipe.pool).card
        return sources
    placed: dict[str, Any] = {}
    if "traces" in parameters:
        placed["traces"] = [_trace(run_id, options) for run_id in options.traces]
    if "store" in parameters:  # what is run for the table is kept, and found again, like any run
        placed["store"] = RunStore(options.runs)
    if options.at is None:
        return {"assembly": assemble(recipe_of(options)), **placed}
    trace = _trace(options.at, options)
    assembly = assemble(trace.recipe)
    if "theta" not in parameters:
        return {"assembly": assembly, **placed}
    if "backbone" in parameters and trace.has_parts:
        placed["backbone"] = True
    return {"assembly": assembly, "theta": merged_weights(trace, options.frame, assembly), **placed}


def _trace(run_id: str, options: argparse.Namespace) -> Trace:
    """A run of the store, or else a recording that ships with fwviz."""
    from fwviz.runs.store import RunStore
    from fwviz.ui.library import recordings_root

    recordings = RunStore(recordings_root())
    if options.runs is None and run_id in recordings.ids():
        return recordings.load(run_id)
    return RunStore(options.runs).load(run_id)


def _last(made: Any) -> Any:
    """The table of a lens; of one that yields tables as it measures, the last."""
    if not isinstance(made, Iterator):
        return made
    for table in made:
        counts = getattr(table, "attrs", {})
        if "total" in counts:
            print(f"\r{counts['done']} of {counts['total']}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return table


def _chart_of(lens: str, chosen: str | None) -> str:
    """The chart of a lens: the one asked for, or the one that draws its table."""
    if chosen is not None:
        return entry("charts", chosen).name
    drawn_by = [name for name, chart in entries("charts").items() if chart.facts["lens"] == lens]
    if not drawn_by:
        raise FwvizError(f"no chart draws the lens {lens!r}: take a .csv file, or name the --chart to try.")
    return drawn_by[0]


def _parse_like(name: str, value: Any, default: Any) -> Any:
    """A flag's text as the type of its default."""
    if isinstance(default, str) or not isinstance(value, str):
        return value
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[value.lower()]
        return type(default)(value)
    except (KeyError, ValueError):
        kind = "true or false" if isinstance(default, bool) else "a number"
        raise FwvizError(f"{flag(name)} is {value!r}, but must be {kind}.") from None
