"""The command ``app``."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fwviz.cli.output import parser_of


def app(argv: Sequence[str]) -> int:
    """open the app in the browser"""
    parser = parser_of("app", app)
    parser.add_argument("--host", help="address to listen on (GRADIO_SERVER_NAME or 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (GRADIO_SERVER_PORT or 7860)")
    options = parser.parse_args(argv)
    for variable, value in (("GRADIO_SERVER_NAME", options.host), ("GRADIO_SERVER_PORT", options.port)):
        if value is not None:
            os.environ[variable] = str(value)
    from fwviz.ui.app import launch

    launch()
    return 0
