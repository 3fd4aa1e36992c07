"""Folders that are being made: held while their process lives, and swept by the next one when it was killed.

Holding is a lock on the folder itself, which the kernel drops with the process however that ends. A folder goes only
if nobody holds it, it is this user's, and nothing was put into it for a while: the moment between making a folder and
holding it must not count. Where folders cannot be locked nothing is ever swept.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SETTLED = 3600.0  # seconds

_MAKING = re.compile(r"\.making-[0-9a-f]{12}")


@contextlib.contextmanager
def making(beside: Path) -> Iterator[Path]:
    """A new held folder in ``beside``, gone at the end; those that killed processes left there go first.

    Raises OSError if it cannot be made.
    """
    beside.mkdir(parents=True, exist_ok=True)
    sweep(folder for folder in beside.iterdir() if _MAKING.fullmatch(folder.name))
    folder = beside / f".making-{secrets.token_hex(6)}"
    folder.mkdir()
    with hold(folder):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def hold(folder: Path) -> contextlib.ExitStack:
    """Hold a folder until what is returned is closed, or this process ends."""
    held = contextlib.ExitStack()
    if fcntl is not None:
        place = os.open(folder, os.O_RDONLY)
        held.callback(os.close, place)
        with contextlib.suppress(OSError):  # a file system without locks: nobody will get one to sweep it either
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return held


def sweep(folders: Iterable[Path]) -> None:
    """Delete those of the folders that nobody holds and that have not been touched for a while."""
    for folder in folders if fcntl is not None else ():
        with contextlib.ExitStack() as looked, contextlib.suppress(OSError):
            place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            looked.callback(os.close, place)
            found = os.fstat(place)
            if found.st_uid == os.getuid() and time.time() - found.st_mtime > SETTLED:
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
