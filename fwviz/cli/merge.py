"""The commands ``merge`` and ``export``: a run with its live lines, and its weights."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fwviz.cli.output import parser_of, percent, print_table, short
from fwviz.cli.recipes import add_recipe_options, read_recipe, recipe_of
from fwviz.types import FwvizError

if TYPE_CHECKING:
    from fwviz.runs.recipe import Recipe
    from fwviz.runs.trace import Frame, Trace


def merge(argv: Sequence[str]) -> int:
    """merge checkpoints, one live line per frame"""
    parser = parser_of("merge", merge)
    add_recipe_options(parser, argv)
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write the merged weights into this new folder")
    add_format_options(parser)
    parser.add_argument("--runs", type=Path, metavar="DIR", help="run store (FWVIZ_RUNS or ~/.cache/fwviz/runs)")
    options = parser.parse_args(argv)
    recipe = recipe_of(options)
    from fwviz.runs.export import check_target

    if options.out is not None:
        check_target(options.out)  # before the work, not after it
    carry_out(recipe, options)
    return 0


def carry_out(recipe: Recipe, options: argparse.Namespace) -> None:
    """Run a recipe with a line per frame, print its results and write its weights if ``options.out`` says where."""
    from fwviz.runs.assemble import require_device
    from fwviz.runs.export import export_weights
    from fwviz.runs.runner import Control, run
    from fwviz.runs.store import RunStore

    require_device(recipe.device)  # before anything is recorded
    control = Control()
    writer = RunStore(options.runs).create(recipe)
    print(recipe.cli_line())
    frames = run(recipe, control=control, writer=writer)
    previous = signal.signal(signal.SIGINT, lambda *_: control.stop(at_once=control.stopped))
    try:
        ended = _print_frames(frames, recipe.tasks)
    finally:
        signal.signal(signal.SIGINT, previous)
    if ended is not None and ended.status == "failed":
        raise FwvizError(ended.note)
    trace = RunStore(options.runs).load(writer.id)
    _print_results(trace)
    if options.out is not None:
        kept = RunStore(options.runs).kept(writer.id)
        print(
            f"weights: {export_weights(trace, -1, options.out, options.format, kept=kept, rank=options.adapter_rank)}"
        )


def recipe_from_arguments(argv: Sequence[str]) -> Recipe:
    """The recipe of the options of ``fwviz merge``; what :meth:`Recipe.cli_line` writes is read back."""
    parser = parser_of("merge", merge)
    add_recipe_options(parser, argv)
    return recipe_of(parser.parse_args(argv))


def export(argv: Sequence[str]) -> int:
    """write the merged weights of a run, or of a recipe that is run first"""
    parser = parser_of("export", export)
    parser.add_argument("run", nargs="?", metavar="RUN", help="id of a recorded run")
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="a recipe (YAML or JSON) to run instead")
    parser.add_argument("--frame", type=int, default=-1, help="index of the frame, negative from the end (-1)")
    add_format_options(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="a new or empty folder")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="run store (FWVIZ_RUNS or ~/.cache/fwviz/runs)")
    options = parser.parse_args(argv)
    if (options.run is None) == (options.recipe is None):
        raise FwvizError("name either a recorded run or a --recipe file.")
    from fwviz.runs.export import export_weights
    from fwviz.runs.store import RunStore

    store = RunStore(options.runs)
    source = store.load(options.run) if options.run else read_recipe(options.recipe, {})
    kept = store.kept(options.run) if options.run else None
    print(export_weights(source, options.frame, options.out, options.format, kept=kept, rank=options.adapter_rank))
    return 0


def add_format_options(parser: argparse.ArgumentParser) -> None:
    formats = ("clip_model", "vision_model", "model", "adapter")
    parser.add_argument("--format", choices=formats, help="what to write (the pool's own: clip_model or model)")
    parser.add_argument(
        "--adapter-rank", type=int, help="rank of an exported adapter (as many as its parts have together: exact)"
    )


def _print_frames(frames: Iterable[Frame], tasks: Sequence[str]) -> Frame | None:
    """A line for each frame; returns the closing one."""
    shown = tasks if len(tasks) <= 8 else ()
    print(_line(("t", "loss", "gap", "step", "seconds", "mean"), shown, "vertices"))
    for frame in frames:
        if frame.status != "running":
            print(f"{frame.status} after {frame.seconds:.1f} s" + (f": {frame.note}" if frame.note else ""), flush=True)
            return frame
        chosen = " ".join(dict.fromkeys(name for group in frame.vertices for name in group)) if frame.inner == 0 else ""
        number = f"{frame.t}.{frame.inner}" if frame.inner else f"{frame.t}"
        accuracies = [percent(frame.accuracy.get(task)) for task in shown]
        facts = (short(frame.loss), short(frame.gap), short(frame.step_size), f"{frame.seconds:.1f}")
        print(_line((number, *facts, percent(frame.mean_accuracy)), accuracies, chosen[:60]), flush=True)
    return None


def _line(facts: Sequence[str], tasks: Iterable[str], chosen: str) -> str:
    cells = "".join(f"{fact:>{width}}" for fact, width in zip(facts, (7, 10, 10, 9, 9, 8), strict=True))
    return f"{cells}{''.join(f'{task[:11]:>12}' for task in tasks)}  {chosen}".rstrip()


def _print_results(trace: Trace) -> None:
    """Test scores by task beside those of the base and the task's own checkpoint, and what the run cost."""
    from fwviz.pools.open import pool_card
    from fwviz.tasks.metrics import normalised

    table = trace.results("test")
    rows = [(r.task, percent(r.base), percent(r.individual), percent(r.merged)) for r in table.itertuples()]
    means = [percent(table[name].mean()) for name in ("base", "individual", "merged")]
    card = pool_card(trace.recipe.pool)
    others = [f"{task}: {card.task(task).metric}" for task in trace.tasks if card.task(task).metric != "accuracy"]
    print("\ntest accuracy in %" + (f" ({', '.join(others)})" if others else ""))
    print_table(("task", "base", "individual", "merged"), [*rows, ("mean", *means)])
    known = table[(table["individual"] > 0) & table["merged"].notna()].set_index("task")
    if len(known):
        share = normalised(known["merged"].to_dict(), known["individual"].to_dict())
        print(f"normalised: {percent(share)} % of the tasks' own checkpoints in the mean")
    cost = trace.cost
    print(
        f"{cost.seconds:.1f} s, of these {cost.evaluation_seconds:.1f} s judging; {cost.bytes_read / 1e6:.1f} MB of "
        f"checkpoints read; peak memory +{cost.peak_memory_bytes / 1e6:.0f} MB; "
        + (f"stored beside the model {cost.stored_bytes / 1e3:.1f} kB; " if cost.stored_bytes else "")
        + f"run {trace.id}"
    )
