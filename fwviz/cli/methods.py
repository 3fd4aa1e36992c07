"""The command ``methods``."""

from __future__ import annotations

from collections.abc import Sequence

from fwviz.cli.output import parser_of, print_table, range_of, settings_of, shown
from fwviz.registry import entries, entry


def methods(argv: Sequence[str]) -> int:
    """list the methods, or the settings of one"""
    parser = parser_of("methods", methods)
    parser.add_argument("method", nargs="?", help="name of a method")
    options = parser.parse_args(argv)
    if options.method is None:
        found = [(m.name, m.facts["data"], m.title) for m in entries("methods").values()]
        print_table(("method", "data", "title"), found)
        return 0
    method = entry("methods", options.method)
    print(f"{method.title}\n\n{method.doc}\n")
    rows = [(s.name, shown(s.default), range_of(s), s.help) for s in settings_of(method.name)]
    print_table(("setting", "default", "range", "meaning"), rows)
    return 0
