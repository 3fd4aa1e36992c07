"""The command ``own`` and ``pools open``: a task and checkpoints of one's own, from files to a merged model."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fwviz.cli.merge import add_format_options, carry_out
from fwviz.cli.output import parser_of, percent, print_table
from fwviz.cli.recipes import add_recipe_options, recipe_of
from fwviz.types import FwvizError

if TYPE_CHECKING:
    from fwviz.pools.own import Brought
    from fwviz.runs.own import OwnPool
    from fwviz.runs.recipe import Recipe

METHOD = "fw_soft"
KEPT = 32  # pools that stay in the cache


def own(argv: Sequence[str]) -> int:
    """merge for a task of your own: a zip of class folders, or a CSV of texts and labels"""
    given = list(argv)
    if "--recipe" not in given and not any(word.partition("=")[0] == "--method" for word in given):
        given = ["--method", METHOD, *given]
    parser = parser_of("own", own)
    parser.add_argument("examples", type=Path, metavar="FILE", help="a .zip of class folders, or a .csv: text,label")
    parser.add_argument("--title", default="", help="what the task is called (the file's name)")
    parser.add_argument("--classes", nargs="+", default=[], metavar="FOLDER=NAME", help="other names for prompts")
    parser.add_argument("--prompts", nargs="+", default=[], metavar="TEXT", help="texts with {} for the class name")
    parser.add_argument("--bring", nargs="+", default=[], metavar="PLACE", help=f"more checkpoints: {_PLACES}")
    parser.add_argument("--base", metavar="PLACE", help="a base of your own for them: a folder or an id on the Hub")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="the new pool (FWVIZ_OWN or ~/.cache/fwviz/own)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write the merged weights into this new folder")
    add_recipe_options(parser, given)
    add_format_options(parser)
    parser.add_argument("--runs", type=Path, metavar="DIR", help="run store (FWVIZ_RUNS or ~/.cache/fwviz/runs)")
    options = parser.parse_args(given)
    from fwviz.runs.export import check_target
    from fwviz.runs.own import Base, Wish, default_root, own_pool, pool_name

    if options.out is not None:
        check_target(options.out)  # before the work, not after it
    if options.base is None:
        asked = recipe_of(options)  # which also finds what is wrong with the options
        parent: str | Base = str(Path(asked.pool).resolve()) if os.sep in asked.pool else asked.pool
        seed = asked.seed
    else:
        if options.pool is not None or not options.bring:
            raise FwvizError("a --base stands in the place of a --pool, and needs checkpoints to --bring.")
        parent, seed = Base(_base(options.base)), _seed(options.seed)
    wish = Wish(options.title, _names(options.classes), tuple(options.prompts), seed)
    brought = [_place(text) for text in options.bring]
    if options.keep is not None:
        check_target(options.keep)
        root = options.keep.resolve()
    else:
        _readable(options.examples)
        root = default_root() / pool_name(parent, [options.examples, *(path for _, path in brought)], wish)
    made = own_pool(parent, root, examples=options.examples, wish=wish, checkpoints=brought, told=_told)
    if options.keep is None:
        _make_room(default_root(), root)
    options.pool = str(root)
    assert made.task is not None
    if options.tasks != ["all"]:
        options.tasks = list(dict.fromkeys([made.task.id, *(options.tasks or ())]))
    recipe = recipe_of(options)
    _print_found(made)
    _print_relevance(made, recipe)
    carry_out(recipe, options)
    alone = made.scores[made.best]["test"].accuracy
    print(f"individual: {made.best}, the best checkpoint alone on the other splits ({percent(alone)} in the test)")
    return 0


def open_checkpoints(argv: Sequence[str]) -> int:
    """make a pool of checkpoints of your own and the base, tasks and checkpoints of another pool"""
    parser = parser_of("pools open", open_checkpoints)
    parser.add_argument("checkpoint", nargs="+", help=_PLACES)
    parser.add_argument("--pool", required=True, help="id or folder of the pool they are added to")
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="a new folder for the pool")
    options = parser.parse_args(argv)
    from fwviz.pools.open import pool_card
    from fwviz.runs.export import check_target
    from fwviz.runs.own import own_pool

    check_target(options.out)
    pool_card(options.pool)
    parent = str(Path(options.pool).resolve()) if os.sep in options.pool else options.pool
    made = own_pool(parent, options.out.resolve(), checkpoints=[_place(text) for text in options.checkpoint])
    _print_brought(made.brought)
    print(f"pool: {made.root}")
    return 0


_PLACES = "folders, safetensors files or ids on the Hub"


def _place(text: str) -> tuple[str, Path]:
    """Name and place of a checkpoint; one of the Hub is downloaded."""
    from fwviz.pools.check import PICKLES

    path = Path(text)
    if (text and path.exists()) or path.is_absolute() or path.suffix in (".safetensors", *PICKLES):
        return path.stem if path.is_file() else path.resolve().name, path
    return text.rpartition("/")[2], _fetched(text)


def _base(text: str) -> str:
    if Path(text).is_dir() or Path(text).is_absolute():
        return str(Path(text).resolve())
    _fetched(text)
    return text


def _fetched(text: str) -> Path:
    """The folder of what is no file or folder here, and so must be on the Hub."""
    from fwviz.pools.hub import check_id, fetch, require

    try:
        check_id(text)
    except FwvizError as error:
        raise FwvizError(f"{text[:60]!r} is not on this machine, and {error}") from None
    require(text)
    return fetch(text)


def _readable(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise FwvizError(f"{path} is no file: give a .zip of class folders, or a .csv of texts and labels.")
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise FwvizError(f"{path} cannot be read: {error.strerror}.") from None


def _names(items: Sequence[str]) -> dict[str, str]:
    names = {}
    for item in items:
        folder, equals, name = item.partition("=")
        if not equals:
            raise FwvizError(f"--classes {item!r} has no name: write --classes folder=name.")
        names[folder] = name
    return names


def _seed(text: str | None) -> int:
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise FwvizError(f"--seed is {text[:60]!r}, but must be a whole number from 0 on, of nine digits at most.")
    return int(text)


def _told(done: int, total: int) -> None:
    end = "\n" if done == total else ""
    print(f"\rjudging what there is: {done} of {total}", end=end, file=sys.stderr, flush=True)


def _make_room(place: Path, made: Path) -> None:
    """Delete the pools that were made longest ago, beyond a number."""
    pools = sorted((p for p in place.iterdir() if (p / "pool.yaml").is_file()), key=lambda p: p.stat().st_mtime)
    for folder in pools[: max(0, len(pools) - KEPT)]:
        if folder != made:
            shutil.rmtree(folder, ignore_errors=True)


def _print_found(made: OwnPool) -> None:
    print(made.said)
    for finding in made.base:
        print(f"base: {finding.text}")
    _print_brought(made.brought)
    print(f"pool: {made.root}")


def _print_brought(brought: Sequence[Brought]) -> None:
    for one in brought:
        print(one.sentence())
        for finding in one.findings[1:]:
            print(f"  {finding.severity}: {finding.text}")


def _print_relevance(made: OwnPool, recipe: Recipe) -> None:
    """The oracle's ranking at the base, beside what each checkpoint gets right alone."""
    from dataclasses import replace

    from fwviz.lenses.lmo import lmo
    from fwviz.runs.assemble import assemble

    assert made.task is not None
    table = lmo(assemble(replace(recipe, tasks=(made.task.id,)))).sort_values("rank")
    print("\nscore = <gradient of the task's calibration loss at the base, checkpoint - base>, most wanted first")
    rows = [
        (row.rank, row.checkpoint, f"{row.score:.4g}", percent(made.scores[row.checkpoint]["test"].accuracy))
        for row in table.itertuples()
    ]
    base = percent(made.scores["base"]["test"].accuracy)
    print_table(("rank", "checkpoint", "score", "test alone"), [*rows, ("", "base", "0", base)])
    print()
