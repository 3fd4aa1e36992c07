"""Messages from Python to our components: JSON strings with a version that only grows."""

from __future__ import annotations

import itertools
import json
import os
import re
import tempfile
import time
from typing import Any

from fwviz.backbones.folders import hub_cache
from fwviz.ui.delta import changes

# The folders of an absolute path of two parts or more.
_PLACE = re.compile(r"(?<![\w.:/\\~-])/(?:[^\s/'\"]+/)+(?=[^\s/])")
# From the clock, so that a page that outlives a restart of the server does not take new messages for old ones.
_versions = itertools.count(time.time_ns() // 1_000_000)


def version() -> int:
    """A number larger than every one before."""
    return next(_versions)


def message(**fields: Any) -> str:
    """One message. Numbers that JSON lacks (NaN, infinities) are refused here rather than in the browser."""
    return _packed({"v": version(), **fields})


def difference(known: tuple[int, Any], said: Any) -> str:
    """What has changed since a message: its version and what it said → {v, since, d}, see :mod:`fwviz.ui.delta`.

    ``since`` is how far back that version lies. Where nothing has changed, the version stays, so that the message may
    be left out.
    """
    base, before = known
    changed, now = changes(before, said), version()
    return _packed({"v": now, "since": now - base, "d": changed} if changed != {} else {"v": base, "n": now, "d": {}})


def says_nothing(message: str) -> bool:
    """Whether it is the difference of two equal messages."""
    return message.endswith('"d":{}}')


def version_of(message: str) -> int:
    """The version of a message made here: it comes first."""
    return int(message[message.index(":") + 1 : message.index(",")])


def placeless(told: Any) -> Any:
    """What a page is told, in however deep a list: files by their names, not by where they lie on this machine."""
    if isinstance(told, str):
        return _placeless(told)
    if isinstance(told, dict):
        return {key: placeless(value) for key, value in told.items()}
    return [placeless(value) for value in told] if isinstance(told, list) else told


def _placeless(text: str) -> str:
    # Places known to this process are taken out first, since the names of their folders may hold spaces.
    for root in (str(hub_cache()), tempfile.gettempdir(), os.path.expanduser("~")):
        text = text.replace(f"{root}/", "/here/")
    return _PLACE.sub("", text)


def sentence(error: BaseException) -> str:
    """What an error says, with a capital at its beginning unless it begins with the name of a file or an id."""
    text = _placeless(str(error))
    return text[:1].upper() + text[1:] if re.match(r"[a-z]+[ ,:]", text) else text


def _packed(fields: Any) -> str:
    # A minus sign as itself takes half the bytes of its escape.
    return json.dumps(fields, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
