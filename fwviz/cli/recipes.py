"""Recipes from the command line: options, a file, and what the pool's card says."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fwviz.cli.output import flag, range_of, settings_of, shown
from fwviz.registry import entries
from fwviz.types import FwvizError

if TYPE_CHECKING:
    from fwviz.runs.recipe import Recipe

MAX_RECIPE_FILE = 1 << 20
_FIELDS = ("pool", "method", "tasks", "checkpoints", "seed", "device", "dtype", "storage", "precision", "coefficients")


def add_recipe_options(parser: argparse.ArgumentParser, argv: Sequence[str], method: str | None = None) -> None:
    """Options of a recipe. Without a default ``method`` one must be named, and its settings become flags."""
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="a recipe (YAML or JSON); other options go over it")
    parser.add_argument("--pool", help="id or folder of a pool (the first that carries its own base)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="evaluation tasks, or all (the pool's default)")
    parser.add_argument("--checkpoints", nargs="+", metavar="ID", help="checkpoints, or all (the pool's default)")
    parser.add_argument("--seed", help="seed (0)")
    parser.add_argument("--device", help="cpu, cuda, cuda:<number> or mps (cpu)")
    parser.add_argument("--dtype", help="type of the task vectors: float32, bfloat16 or float16 (float32)")
    parser.add_argument("--storage", help="task vectors in memory or read from disk: resident or streamed (resident)")
    parser.add_argument("--precision", help="what the model computes in: float32 or bfloat16 (float32)")
    parser.add_argument("--coefficients", help="of given_coefficients: granularity:row_row…, such as model:0.3,0.5")
    parser.set_defaults(default_method=method, method=None, set=[], setting_flags=())
    if method is not None:
        return
    parser.add_argument("--method", help=f"one of: {', '.join(entries('methods'))}")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the method")
    chosen = _value_of("--method", argv)
    if chosen in entries("methods"):
        specs = settings_of(chosen)
        flags = parser.add_argument_group(f"settings of {chosen}")
        for spec in specs:
            text = f"{spec.help} [{range_of(spec)}] ({shown(spec.default)})".replace("%", "%%")
            flags.add_argument(flag(spec.name), dest=f"setting_{spec.name}", metavar="VALUE", help=text)
        parser.set_defaults(setting_flags=tuple(spec.name for spec in specs))


def recipe_of(options: argparse.Namespace) -> Recipe:
    values = {name: getattr(options, name) for name in _FIELDS if getattr(options, name) is not None}
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
        return read_recipe(options.recipe, values, settings)
    values.setdefault("method", options.default_method)
    if values["method"] is None:
        raise FwvizError(f"name a --method: {', '.join(entries('methods'))}.")
    return _complete({**values, "settings": settings})


def read_recipe(path: Path, values: dict[str, Any], settings: dict[str, Any] | None = None) -> Recipe:
    """The recipe of a file with options over it."""
    from fwviz.pools.places import is_there
    from fwviz.runs.origin import MARK
    from fwviz.runs.recipe import plain_from_text

    try:
        with path.open("rb") as file:  # what a file says of its size may not be so: a device never ends
            content = file.read(MAX_RECIPE_FILE + 1)
        if len(content) > MAX_RECIPE_FILE:
            raise FwvizError(f"{path} is too large for a recipe.")
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise FwvizError(f"the recipe {path} cannot be read ({reason}).") from None
    plain = plain_from_text(text)
    if "method" in values and values["method"] != plain.get("method"):
        plain["settings"] = {}
        plain.pop("coefficients", None)
    own = text.startswith(MARK) and "pool" not in values
    if own and not is_there(str(plain.get("pool"))):
        raise FwvizError(
            f"{path.name} merges a pool of somebody's own that is not here: bring the files its first lines name, as "
            f"they say, and give the pool that makes of them with --pool."
        )
    plain |= values
    given = plain.get("settings", {})
    if settings and isinstance(given, dict):
        plain["settings"] = {**given, **settings}
    return _complete(plain)


def _complete(values: dict[str, Any]) -> Recipe:
    """A recipe with what was left open taken from the pool card."""
    from fwviz.pools.open import first_pool, open_pool
    from fwviz.runs.recipe import Recipe

    if "pool" not in values:
        values = {**values, "pool": first_pool()}
    card = open_pool(str(values["pool"])).card
    for name, everything in (("tasks", card.tasks), ("checkpoints", card.checkpoints)):
        if values.get(name) == ["all"]:
            values = {**values, name: [item.id for item in everything]}
    return Recipe.from_dict(values, card)


def _value_of(flag: str, argv: Sequence[str]) -> str:
    """The last value of one flag, without parsing the rest."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument(flag, dest="value", default="")
    try:
        return str(peek.parse_known_args(list(argv))[0].value)
    except SystemExit:  # the flag has no value: the real parser says so
        return ""
