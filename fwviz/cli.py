"""The command line: ``fwviz app | pools | methods | merge | score | lens | export | train-pool | bench``.

Every mistake ends with one sentence on stderr and an exit code that is not 0.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import logging
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fwviz.registry import SettingSpec, describe_settings, entries, entry
from fwviz.types import FwvizError

if TYPE_CHECKING:
    from fwviz.runs.recipe import Recipe
    from fwviz.runs.trace import Frame, Trace

BENCHES = ("kernels", "layerwise", "memory", "methods", "scaling", "speed")
MAX_RECIPE_FILE = 1 << 20


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    if arguments[0] not in COMMANDS:
        print(f"fwviz: there is no command {arguments[0]!r}: choose from {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    try:
        return COMMANDS[arguments[0]](arguments[1:])
    except FwvizError as error:
        print(f"fwviz: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fwviz: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as head, has seen enough
        sys.stderr.close()
        return 141


# --- app, pools, methods ------------------------------------------------------------------------


def _app(argv: Sequence[str]) -> int:
    """open the app in the browser"""
    parser = _parser("app", _app)
    parser.add_argument("--host", help="address to listen on (GRADIO_SERVER_NAME or 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (GRADIO_SERVER_PORT or 7860)")
    options = parser.parse_args(argv)
    for variable, value in (("GRADIO_SERVER_NAME", options.host), ("GRADIO_SERVER_PORT", options.port)):
        if value is not None:
            os.environ[variable] = str(value)
    from fwviz.ui.app import launch

    launch()
    return 0


def _pools(argv: Sequence[str]) -> int:
    """list the pools, or one; pools check | fetch CARD ask the Hub, pools examine DIR compares a checkpoint"""
    if argv and argv[0] in ("check", "fetch"):
        return _hub(argv[0], argv[1:])
    if argv and argv[0] == "examine":
        return _examine(argv[1:])
    parser = _parser("pools", _pools)
    parser.add_argument("pool", nargs="?", help="id or folder of a pool")
    parser.add_argument("--verify", action="store_true", help="check every file against its hash")
    options = parser.parse_args(argv)
    from fwviz.pools.card import verify
    from fwviz.pools.hub import hub_card_ids, load_hub_card
    from fwviz.pools.open import open_pool, pool_card, pool_ids

    if options.pool is None:
        cards = [pool_card(name) for name in pool_ids()]
        rows = [(c.id, len(c.checkpoints), len(c.tasks), c.title) for c in cards]
        _print_table(("pool", "checkpoints", "tasks", "title"), rows)
        listed = [load_hub_card(name) for name in hub_card_ids()]
        print("\non the Hub (fwviz pools check CARD)")
        _print_table(
            ("card", "checkpoints", "tasks", "title"),
            [(c.id, len(c.checkpoints), len(c.tasks), c.title) for c in listed],
        )
        return 0
    card = open_pool(options.pool).card
    if options.verify:
        problems = verify(card)
        for problem in problems:
            print(problem)
        print(f"{len(problems) or 'no'} problems in the files of {card.root}")
        return 1 if problems else 0
    print(f"{card.title} ({card.id})\n{card.summary}\n")
    _print_table(
        ("checkpoint", "task", "kind", "test", "note"),
        [(c.id, c.task, c.kind, _percent(c.accuracy.get("test")), c.note) for c in card.checkpoints],
    )
    print()
    tasks = [
        (
            t.id,
            len(t.classes),
            _percent(t.accuracy.get("base", {}).get("test")),
            _percent(t.accuracy.get("individual", {}).get("test")),
            t.question,
        )
        for t in card.tasks
    ]
    _print_table(("task", "classes", "base", "individual", "question"), tasks)
    return 0


def _hub(command: str, argv: Sequence[str]) -> int:
    """what a card's repositories would take, or the download of them"""
    parser = argparse.ArgumentParser(prog=f"fwviz pools {command}", description=_hub.__doc__, allow_abbrev=False)
    parser.add_argument("card", help="id or file of a card, or a pool whose base is on the Hub")
    parser.add_argument("--subset", help="only these tasks of the card, such as 8, 14 or 20")
    parser.add_argument("--no-data", action="store_true", help="leave the data sets out")
    parser.add_argument("--offline", action="store_true", help="look at the Hub's cache only")
    options = parser.parse_args(argv)
    from fwviz.pools.hub import check_card, fetch, hub_view

    card = hub_view(options.card).subset(options.subset)
    reports = check_card(card, data=not options.no_data, offline=options.offline)
    print(f"{card.title} ({card.id})\n{card.summary}\n")
    rows = [(r.hub, r.state, _size(r.bytes), _size(r.missing_bytes), r.licence, r.note) for r in reports]
    _print_table(("repository", "state", "size", "to load", "licence", "note"), rows)
    refused = [r for r in reports if r.state == "refused"]
    total = sum(r.missing_bytes or 0 for r in reports)
    print(
        f"\n{sum(r.state == 'here' for r in reports)} of {len(reports)} repositories are here; {_size(total)} to load"
    )
    if refused:
        raise FwvizError(f"{len(refused)} repositories cannot be had; the first is {refused[0].hub}: {refused[0].note}")
    if command == "check" or options.offline:
        return 0
    for report in reports:
        if report.state == "missing":
            print(f"{report.hub}: {fetch(report.hub, report.kind)}", flush=True)
    return 0


def _examine(argv: Sequence[str]) -> int:
    """hold checkpoints against their base: names, shapes, dtypes, vocabulary, NaN; nothing is written"""
    parser = argparse.ArgumentParser(prog="fwviz pools examine", description=_examine.__doc__, allow_abbrev=False)
    parser.add_argument("checkpoint", type=Path, nargs="+", help="folder or safetensors file")
    parser.add_argument("--base", required=True, help="folder of the base, or id of a pool")
    parser.add_argument("--headers-only", action="store_true", help="do not read the weights")
    options = parser.parse_args(argv)
    from fwviz.backbones.folders import base_folder
    from fwviz.pools.check import examine
    from fwviz.pools.open import pool_card, pool_ids

    card = pool_card(options.base) if options.base in pool_ids() else None
    base = base_folder(card) if card else Path(options.base)
    parts = (card.include, card.exclude) if card else (("",), ())
    failed = []
    for checkpoint in options.checkpoint:
        findings = examine(checkpoint, base, *parts, values=not options.headers_only)
        failed += [checkpoint for finding in findings[:1] if finding.severity == "error"]
        print(f"{checkpoint}: {'nothing to object to' if not findings else ''}")
        for finding in findings:
            print(f"  {finding.severity:<8}{finding.kind:<13}{finding.text}")
    if failed:
        raise FwvizError(
            f"{len(failed)} of {len(options.checkpoint)} checkpoints cannot be merged; the first is {failed[0]}."
        )
    return 0


def _methods(argv: Sequence[str]) -> int:
    """list the methods, or the settings of one"""
    parser = _parser("methods", _methods)
    parser.add_argument("method", nargs="?", help="name of a method")
    options = parser.parse_args(argv)
    if options.method is None:
        found = [(m.name, m.facts["data"], m.title) for m in entries("methods").values()]
        _print_table(("method", "data", "title"), found)
        return 0
    method = entry("methods", options.method)
    print(f"{method.title}\n\n{method.doc}\n")
    rows = [(s.name, _shown(s.default), _range(s), s.help) for s in _settings_of(method.name)]
    _print_table(("setting", "default", "range", "meaning"), rows)
    return 0


# --- merge, score, lens, export -----------------------------------------------------------------


def _merge(argv: Sequence[str]) -> int:
    """merge checkpoints, one live line per frame"""
    parser = _parser("merge", _merge)
    _add_recipe_options(parser, argv)
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write the merged weights into this new folder")
    _add_format_options(parser)
    parser.add_argument("--runs", type=Path, metavar="DIR", help="run store (FWVIZ_RUNS or ~/.cache/fwviz/runs)")
    options = parser.parse_args(argv)
    recipe = _recipe(options)
    from fwviz.runs.export import check_target, export_weights
    from fwviz.runs.runner import Control, run
    from fwviz.runs.store import RunStore

    if options.out is not None:
        check_target(options.out)  # before the work, not after it
    control = Control()
    writer = RunStore(options.runs).create(recipe)
    print(recipe.cli_line())
    frames = run(recipe, control=control, writer=writer)
    previous = signal.signal(signal.SIGINT, lambda *_: control.stop(at_once=control.stopped))
    try:
        _print_frames(frames, recipe.tasks)
    finally:
        signal.signal(signal.SIGINT, previous)
    trace = RunStore(options.runs).load(writer.id)
    if trace.status == "failed":
        raise FwvizError(trace.note)
    _print_results(trace)
    if options.out is not None:
        kept = RunStore(options.runs).extension(writer.id)
        print(
            f"weights: {export_weights(trace, -1, options.out, options.format, kept=kept, rank=options.adapter_rank)}"
        )
    return 0


def _score(argv: Sequence[str]) -> int:
    """what the Frank-Wolfe oracle says: score of each checkpoint for each task at the base"""
    parser = _parser("score", _score)
    _add_recipe_options(parser, argv, method="weight_average")
    options = parser.parse_args(argv)
    recipe = _recipe(options)
    from fwviz.lenses.lmo import lmo
    from fwviz.runs.assemble import assemble

    table = lmo(assemble(recipe)).set_index(["checkpoint", "task"])
    print("score = <gradient of the task's calibration loss at the base, checkpoint - base>; * = the oracle's choice")
    rows = []
    for name in recipe.checkpoints:
        cells = [table.loc[(name, task)] for task in recipe.tasks]
        rows.append((name, *(f"{'*' if cell.chosen else ''}{cell.score:.4g}" for cell in cells)))
    _print_table(("checkpoint", *recipe.tasks), rows)
    return 0


def _lens(argv: Sequence[str]) -> int:
    """run one analysis; a CSV on stdout, or a CSV or HTML file"""
    name = argv[0] if argv and not argv[0].startswith("-") else None
    parser = _parser("lens", _lens)
    parser.add_argument("name", metavar="NAME", help=f"one of: {', '.join(entries('lenses'))}")
    if name is None:
        parser.parse_args(argv)  # prints the help or what is missing
        return 2
    lens = entry("lenses", name)
    parser.description = f"{lens.title}: {lens.facts['question']}"
    parameters = inspect.signature(lens.run).parameters
    if "assembly" in parameters:
        _add_recipe_options(parser, argv, method="weight_average")
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
            parser.add_argument(_flag(option), dest=f"lens_{option}", default=default, help=f"({default})")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a .csv, or a .html with a chart")
    parser.add_argument("--chart", help=f"chart of the .html file, one of: {', '.join(entries('charts'))}")
    options = parser.parse_args(argv)
    given = {n: getattr(options, n if n in shared else f"lens_{n}") for n in options_of_lens}
    chosen = {n: _parse_like(n, d if given[n] is None else given[n], d) for n, d in options_of_lens.items()}
    if options.out is not None and options.out.suffix not in (".csv", ".html"):
        raise FwvizError(f"{options.out.name} ends neither in .csv nor in .html: name one of the two.")
    chart = _chart_of(name, options.chart) if options.out is not None and options.out.suffix == ".html" else None
    table = _last(lens.run(**_lens_sources(tuple(parameters), options), **chosen))
    if chart is not None:
        entry("charts", chart).run(table).write_html(options.out, include_plotlyjs=True)
    else:
        table.to_csv(sys.stdout if options.out is None else options.out, index=False)
    return 0


def _export(argv: Sequence[str]) -> int:
    """write the merged weights of a run, or of a recipe that is run first"""
    parser = _parser("export", _export)
    parser.add_argument("run", nargs="?", metavar="RUN", help="id of a recorded run")
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="a recipe (YAML or JSON) to run instead")
    parser.add_argument("--frame", type=int, default=-1, help="index of the frame, negative from the end (-1)")
    _add_format_options(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="a new or empty folder")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="run store (FWVIZ_RUNS or ~/.cache/fwviz/runs)")
    options = parser.parse_args(argv)
    if (options.run is None) == (options.recipe is None):
        raise FwvizError("name either a recorded run or a --recipe file.")
    from fwviz.runs.export import export_weights
    from fwviz.runs.store import RunStore

    store = RunStore(options.runs)
    source = store.load(options.run) if options.run else _read_recipe(options.recipe, {})
    kept = store.extension(options.run) if options.run else None
    print(export_weights(source, options.frame, options.out, options.format, kept=kept, rank=options.adapter_rank))
    return 0


# --- train-pool, bench --------------------------------------------------------------------------


def _train_pool(argv: Sequence[str]) -> int:
    """rebuild the embedded pool from packages"""
    parser = _parser("train-pool", _train_pool)
    parser.add_argument("kind", nargs="?", choices=("vision", "text"), default="vision", help="which pool (vision)")
    parser.add_argument("--name", help="id of the pool (its kind)")
    parser.add_argument("--out", type=Path, default=Path("assets/pools"), help="folder of pools (assets/pools)")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/fwviz/train-pool"), help="what is kept on the way")
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    parser.add_argument("--pretrain-seconds", type=float, default=3400, help="clock time for the base (3400)")
    parser.add_argument("--device", default="cpu", help="where to pretrain: cpu or cuda (cpu)")
    parser.add_argument("--threads", type=int, default=2, help="one core each (2)")
    parser.add_argument("--rehearse", action="store_true", help="a thirtieth of the fine-tuning, to see it run")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        from fwviz.training.main import train_pool
        from fwviz.training.text_main import train_text_pool
    except ModuleNotFoundError as error:
        raise FwvizError(f"training needs {error.name}: install fwviz/training/requirements.txt.") from None
    name = options.name or options.kind
    if options.kind == "text":
        train_text_pool(name, options.out, options.cache, options.seed, options.threads)
        return 0
    train_pool(
        name,
        options.out,
        options.cache,
        options.seed,
        options.pretrain_seconds,
        options.device,
        options.threads,
        options.rehearse,
    )
    return 0


def _bench(argv: Sequence[str]) -> int:
    """measure: kernels, memory, methods, scaling or speed"""
    if not argv or argv[0] not in BENCHES:
        print(f"usage: fwviz bench {{{','.join(BENCHES)}}} …", file=sys.stderr)
        return 2
    module = importlib.import_module(f"fwviz.bench.{argv[0]}")
    code: int = module.main(list(argv[1:]))
    return code


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "app": _app,
    "pools": _pools,
    "methods": _methods,
    "merge": _merge,
    "score": _score,
    "lens": _lens,
    "export": _export,
    "train-pool": _train_pool,
    "bench": _bench,
}


# --- recipes from the command line --------------------------------------------------------------


def recipe_from_arguments(argv: Sequence[str]) -> Recipe:
    """The recipe of the options of ``fwviz merge``; what :meth:`Recipe.cli_line` writes is read back."""
    parser = _parser("merge", _merge)
    _add_recipe_options(parser, argv)
    return _recipe(parser.parse_args(argv))


def _add_recipe_options(parser: argparse.ArgumentParser, argv: Sequence[str], method: str | None = None) -> None:
    """Options of a recipe. Without a default ``method`` one must be named, and its settings become flags."""
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="a recipe (YAML or JSON); other options go over it")
    parser.add_argument("--pool", help="id or folder of a pool (the first embedded pool)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="evaluation tasks, or all (the pool's default)")
    parser.add_argument("--checkpoints", nargs="+", metavar="ID", help="checkpoints, or all (the pool's default)")
    parser.add_argument("--seed", help="seed (0)")
    parser.add_argument("--device", help="cpu, cuda, cuda:<number> or mps (cpu)")
    parser.add_argument("--dtype", help="type of the task vectors: float32, bfloat16 or float16 (float32)")
    parser.add_argument("--storage", help="task vectors in memory or read from disk: resident or streamed (resident)")
    parser.add_argument("--coefficients", help="of given_coefficients: granularity:row_row…, such as model:0.3,0.5")
    parser.set_defaults(default_method=method, method=None, set=[], setting_flags=())
    if method is not None:
        return
    parser.add_argument("--method", help=f"one of: {', '.join(entries('methods'))}")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the method")
    chosen = _value_of("--method", argv)
    if chosen in entries("methods"):
        specs = _settings_of(chosen)
        flags = parser.add_argument_group(f"settings of {chosen}")
        for spec in specs:
            text = f"{spec.help} [{_range(spec)}] ({_shown(spec.default)})".replace("%", "%%")
            flags.add_argument(_flag(spec.name), dest=f"setting_{spec.name}", metavar="VALUE", help=text)
        parser.set_defaults(setting_flags=tuple(spec.name for spec in specs))


def _recipe(options: argparse.Namespace) -> Recipe:
    values = {
        name: getattr(options, name)
        for name in ("pool", "method", "tasks", "checkpoints", "seed", "device", "dtype", "storage", "coefficients")
        if getattr(options, name) is not None
    }
    settings: dict[str, Any] = {}
    for item in options.set:
        name, equals, value = item.partition("=")
        if not equals:
            raise FwvizError(f"--set {item!r} has no value: write --set name=value.")
        settings[name] = value
    for name in options.setting_flags:
        value = getattr(options, f"setting_{name}")
        if value is not None:
            settings[name] = value
    if options.recipe is not None:
        return _read_recipe(options.recipe, values, settings)
    values.setdefault("method", options.default_method)
    if values["method"] is None:
        raise FwvizError(f"name a --method: {', '.join(entries('methods'))}.")
    return _complete({**values, "settings": settings})


def _read_recipe(path: Path, values: dict[str, Any], settings: dict[str, Any] | None = None) -> Recipe:
    """The recipe of a file with options over it."""
    from fwviz.runs.recipe import plain_from_text

    try:
        if path.stat().st_size > MAX_RECIPE_FILE:
            raise FwvizError(f"{path} is too large for a recipe.")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise FwvizError(f"the recipe {path} cannot be read ({reason}).") from None
    plain = plain_from_text(text)
    if "method" in values and values["method"] != plain.get("method"):
        plain["settings"] = {}
        plain.pop("coefficients", None)
    plain |= values
    if settings:
        plain["settings"] = {**plain.get("settings", {}), **settings}
    return _complete(plain)


def _complete(values: dict[str, Any]) -> Recipe:
    """A recipe with what was left open taken from the pool card."""
    from fwviz.pools.open import open_pool, pool_ids
    from fwviz.runs.recipe import Recipe

    if "pool" not in values:
        if not pool_ids():
            raise FwvizError("no pool was found: name a pool folder with --pool.")
        values = {**values, "pool": pool_ids()[0]}
    card = open_pool(str(values["pool"])).card
    for name, everything in (("tasks", card.tasks), ("checkpoints", card.checkpoints)):
        if values.get(name) == ["all"]:
            values = {**values, name: [item.id for item in everything]}
    return Recipe.from_dict(values, card)


def _add_format_options(parser: argparse.ArgumentParser) -> None:
    formats = ("clip_model", "vision_model", "model", "adapter")
    parser.add_argument("--format", choices=formats, help="what to write (the pool's own: clip_model or model)")
    parser.add_argument(
        "--adapter-rank", type=int, help="rank of an exported adapter (as many as its parts have together: exact)"
    )


def _value_of(flag: str, argv: Sequence[str]) -> str:
    """The last value of one flag, without parsing the rest."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument(flag, dest="value", default="")
    try:
        return str(peek.parse_known_args(list(argv))[0].value)
    except SystemExit:  # the flag has no value: the real parser says so
        return ""


# --- lenses -------------------------------------------------------------------------------------


def _lens_sources(parameters: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """What a lens looks at: an assembly (and weights to look from), a trace, or traces; with the card of the pool."""
    from fwviz.pools.open import open_pool
    from fwviz.runs.assemble import assemble
    from fwviz.runs.export import merged_weights

    if "assembly" not in parameters:
        traces = [_trace(run_id, options) for run_id in ([options.run] if "trace" in parameters else options.run)]
        sources: dict[str, Any] = {"trace": traces[0]} if "trace" in parameters else {"traces": traces}
        if "card" in parameters:
            sources["card"] = open_pool(traces[0].recipe.pool).card
        return sources
    placed = {"traces": [_trace(run_id, options) for run_id in options.traces]} if "traces" in parameters else {}
    if options.at is None:
        return {"assembly": assemble(_recipe(options)), **placed}
    trace = _trace(options.at, options)
    assembly = assemble(trace.recipe)
    if "theta" not in parameters:
        return {"assembly": assembly, **placed}
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
        raise FwvizError(f"{_flag(name)} is {value!r}, but must be {kind}.") from None


# --- output -------------------------------------------------------------------------------------


def _print_frames(frames: Iterable[Frame], tasks: Sequence[str]) -> None:
    shown = tasks if len(tasks) <= 8 else ()
    print(_line(("t", "loss", "gap", "step", "seconds", "mean"), shown, "vertices"))
    for frame in frames:
        if frame.status != "running":
            print(f"{frame.status} after {frame.seconds:.1f} s" + (f": {frame.note}" if frame.note else ""), flush=True)
            continue
        chosen = " ".join(dict.fromkeys(name for group in frame.vertices for name in group)) if frame.inner == 0 else ""
        number = f"{frame.t}.{frame.inner}" if frame.inner else f"{frame.t}"
        accuracies = [_percent(frame.accuracy.get(task)) for task in shown]
        facts = (_short(frame.loss), _short(frame.gap), _short(frame.step_size), f"{frame.seconds:.1f}")
        print(_line((number, *facts, _percent(frame.mean_accuracy)), accuracies, chosen[:60]), flush=True)


def _line(facts: Sequence[str], tasks: Iterable[str], chosen: str) -> str:
    cells = "".join(f"{fact:>{width}}" for fact, width in zip(facts, (7, 10, 10, 9, 9, 8), strict=True))
    return f"{cells}{''.join(f'{task[:11]:>12}' for task in tasks)}  {chosen}".rstrip()


def _print_results(trace: Trace) -> None:
    table = trace.results("test")
    rows = [(r.task, _percent(r.base), _percent(r.individual), _percent(r.merged)) for r in table.itertuples()]
    means = [_percent(table[name].mean()) for name in ("base", "individual", "merged")]
    print("\ntest accuracy in %")
    _print_table(("task", "base", "individual", "merged"), [*rows, ("mean", *means)])
    cost = trace.cost
    print(
        f"{cost.seconds:.1f} s, of these {cost.evaluation_seconds:.1f} s judging; {cost.bytes_read / 1e6:.1f} MB of "
        f"checkpoints read; peak memory +{cost.peak_memory_bytes / 1e6:.0f} MB; "
        + (f"stored beside the model {cost.stored_bytes / 1e3:.1f} kB; " if cost.stored_bytes else "")
        + f"run {trace.id}"
    )


def _print_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns as wide as they need, but the last, which is text."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[j]) for row in cells) for j in range(len(head))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _size(count: int | None) -> str:
    if count is None:
        return "-"
    unit = next((u for u in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if count >= u[1]), ("B", 1.0))
    return f"{count / unit[1]:.3g} {unit[0]}"


def _percent(value: float | None) -> str:
    return "-" if value is None or value != value else f"{100 * value:.1f}"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _settings_of(method: str) -> tuple[SettingSpec, ...]:
    cls = entry("methods", method).settings
    return describe_settings(cls) if cls else ()


def _range(spec: SettingSpec) -> str:
    if spec.choices:
        return "|".join(spec.choices)
    if spec.kind is bool:
        return "true|false"
    low, high = ("" if bound is None else f"{bound:g}" for bound in (spec.low, spec.high))
    return f"{low}..{high}"


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _parser(name: str, command: Callable[..., Any]) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"fwviz {name}", description=command.__doc__, allow_abbrev=False)


def _overview() -> str:
    lines = [f"  {name:<11} {command.__doc__}" for name, command in COMMANDS.items()]
    head = "usage: fwviz COMMAND …\n\nSee model merging as it happens: Frank-Wolfe merging, live in the browser.\n"
    return "\n".join([head, *lines, "", textwrap.dedent("fwviz COMMAND --help tells the options of a command.")])
