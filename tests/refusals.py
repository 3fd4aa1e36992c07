"""What every refusal of a hostile file is: one short sentence, in little memory."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable

import pytest

from fwviz.types import FwvizError


def refused_in_little_memory(read: Callable[[], object], said: str) -> None:
    """``read`` raises one sentence that matches ``said``, having taken less than 64 MiB."""
    tracemalloc.start()
    try:
        with pytest.raises(FwvizError) as caught:
            read()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert re.search(said, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert peak < 64 << 20
