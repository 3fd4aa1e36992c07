"""``python -m fwviz``."""

from fwviz.cli import main

raise SystemExit(main())
