"""The command line: ``fwviz app | pools | methods | merge | own | score | lens | export | train-pool | bench``.

Every mistake ends with one sentence on stderr and an exit code that is not 0.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Sequence

from fwviz.cli import lens, make, merge, methods, own, pools, serve
from fwviz.cli.make import BENCHES
from fwviz.cli.merge import recipe_from_arguments
from fwviz.types import FwvizError

__all__ = ["BENCHES", "COMMANDS", "main", "recipe_from_arguments"]


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
    except OSError as error:
        where = f"{error.filename} cannot be read or written" if error.filename else "a file cannot be read or written"
        print(f"fwviz: {where}: {error.strerror or error}.", file=sys.stderr)
        return 1


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "app": serve.app,
    "pools": pools.pools,
    "methods": methods.methods,
    "merge": merge.merge,
    "own": own.own,
    "score": lens.score,
    "lens": lens.lens,
    "export": merge.export,
    "train-pool": make.train_pool,
    "bench": make.bench,
}


def _overview() -> str:
    lines = [f"  {name:<11} {command.__doc__}" for name, command in COMMANDS.items()]
    head = "usage: fwviz COMMAND …\n\nSee model merging as it happens: Frank-Wolfe merging, live in the browser.\n"
    return "\n".join([head, *lines, "", textwrap.dedent("fwviz COMMAND --help tells the options of a command.")])
