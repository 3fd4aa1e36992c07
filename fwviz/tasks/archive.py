"""Zips that strangers made: bounded by their headers, and again while reading; of class folders nothing is unpacked."""

from __future__ import annotations

import contextlib
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fwviz.types import FwvizError

MAX_FILE = 64 << 20  # bytes of the archive
MAX_TOTAL = 256 << 20  # bytes it unpacks to
MAX_ENTRY = 16 << 20  # bytes one file unpacks to
MAX_ENTRIES = 4000
MAX_RATIO = 200  # how much larger than packed a file may be, beyond _SMALL bytes
_SMALL = 1 << 20
_MAX_DIRECTORY = 4 << 20  # bytes of the table of contents
_PIECE = 1 << 16
_END, _END64 = b"PK\x05\x06", b"PK\x06\x07"
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst", ".jar")
_JUNK = ("__MACOSX", "Thumbs.db", "desktop.ini")
_SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation"}

# (class, name of the file in the archive, its bytes) → what is kept of it.
Take = Callable[[str, str, bytes], None]


@dataclass(frozen=True)
class Bounds:
    """How large an archive may be: bytes packed, unpacked together and of one file, and the number of files.

    ``a_thing`` is what a file of it is in messages, ``fewer`` how it becomes smaller, ``pack`` how it is made.
    """

    file: int
    total: int
    entry: int
    entries: int
    a_thing: str
    fewer: str
    pack: str


class Archive:
    """An archive whose headers have been checked; what is read of it is counted, because headers lie.

    ``entries`` maps the names of its files to their headers, without what systems leave behind.
    """

    def __init__(self, archive: zipfile.ZipFile, title: str, bounds: Bounds) -> None:
        self._archive = archive
        self._title = title
        self._bounds = bounds
        self._left = bounds.total
        self.entries = _look(archive, title, bounds)

    def pieces(self, name: str) -> Iterator[bytes]:
        """The bytes of one file, piece by piece."""
        entry = self.entries[name]
        count, most = 0, min(self._left, self._bounds.entry)
        with self._archive.open(entry) as file:
            while piece := file.read(_PIECE):
                if not count and piece.startswith(b"PK\x03\x04"):
                    raise _nested(self._title, name)
                count += len(piece)
                if count > most:
                    raise FwvizError(
                        f"{_shown(name)} in {self._title} unpacks to more than its header says: leave it out."
                    )
                yield piece
        if count != entry.file_size:
            raise zipfile.BadZipFile(f"{name!r} is not as long as its header says")
        self._left -= count


@contextlib.contextmanager
def opened(path: Path, bounds: Bounds) -> Iterator[Archive]:
    """An archive, opened and checked; nothing is unpacked yet.

    Raises:
        FwvizError: it is damaged, encrypted, too large or too full, here or while it is read; it holds a link, an
            archive, or a name that leads out of it.
    """
    title = path.name
    _check_directory(path, title, bounds)
    try:
        with zipfile.ZipFile(path) as archive:
            yield Archive(archive, title, bounds)
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, NotImplementedError) as error:
        raise FwvizError(
            f"{title} is a damaged zip archive ({_first_line(error)}): make it again from the folders."
        ) from None


def read_archive(path: Path, take: Take) -> tuple[str, ...]:
    """Hand every file of the class folders to ``take``, in the order of their names; returns the files left aside.

    A class is a folder. One folder around all of them is looked through, and so are folders called train, test and the
    like. Files that systems leave behind and texts beside the class folders are left aside.

    Raises:
        FwvizError: the archive cannot be taken (see :func:`opened`), or holds a file outside of the class folders.
    """
    bounds = Bounds(
        MAX_FILE, MAX_TOTAL, MAX_ENTRY, MAX_ENTRIES,
        "a picture", "take fewer pictures", "pack one folder of pictures per class into a .zip file",
    )  # fmt: skip
    with opened(path, bounds) as archive:
        wanted, aside = _classes(archive.entries, path.name)
        for label, name in wanted:
            take(label, name, b"".join(archive.pieces(name)))
    return aside


def _check_directory(path: Path, title: str, bounds: Bounds) -> None:
    """Look at the end of the file, where the size of its table of contents stands, before any of it is read."""
    try:
        size = path.stat().st_size
        if size > bounds.file:
            raise FwvizError(
                f"{title} has {size >> 20} MiB, but an archive may have {bounds.file >> 20}: {bounds.fewer}."
            )
        with path.open("rb") as file:
            file.seek(max(0, size - (1 << 16) - 22))
            tail = file.read()
    except OSError as error:
        raise FwvizError(f"{title} cannot be read: {error.strerror}.") from None
    place = tail.rfind(_END)
    if place < 0 or len(tail) - place < 22:
        what = "is empty" if not size else "is no zip archive"
        raise FwvizError(f"{title} {what}: {bounds.pack}.")
    if tail[max(0, place - 20) : place].startswith(_END64):
        raise FwvizError(
            f"{title} is in the format for archives of more than 4 GiB: make an ordinary zip of fewer files."
        )
    directory = int.from_bytes(tail[place + 12 : place + 16], "little")
    if directory > min(size, _MAX_DIRECTORY):
        raise FwvizError(f"{title} lists more than {bounds.entries} files, or lies about them: {bounds.fewer}.")


def _look(archive: zipfile.ZipFile, title: str, bounds: Bounds) -> dict[str, zipfile.ZipInfo]:
    """The files by name, every header checked; nothing is unpacked yet."""
    entries = archive.infolist()
    if len(entries) > bounds.entries:
        raise FwvizError(f"{title} holds {len(entries)} files, but may hold {bounds.entries}: {bounds.fewer}.")
    found: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        _check_entry(entry, title, bounds)
        parts = PurePosixPath(entry.filename).parts
        if entry.is_dir() or any(part in _JUNK or part.startswith(".") for part in parts):
            continue
        if entry.filename in found:
            raise FwvizError(f"{title} holds {_shown(entry.filename)} twice: make the archive again.")
        found[entry.filename] = entry
    total = sum(entry.file_size for entry in found.values())
    if total > bounds.total:
        raise FwvizError(
            f"{title} unpacks to {total >> 20} MiB, but may unpack to {bounds.total >> 20}: {bounds.fewer}."
        )
    return found


def _check_entry(entry: zipfile.ZipInfo, title: str, bounds: Bounds) -> None:
    """Refuse what no sound archive holds, by its header."""
    name = entry.filename
    parts = name.rstrip("/").split("/")
    outside = name.startswith("/") or "\\" in name or ":" in parts[0] or any(part in ("", ".", "..") for part in parts)
    if outside or not name.isprintable():
        raise FwvizError(
            f"{title} holds {_shown(name)}, a name that could lead out of the archive: make it again from the folders."
        )
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise FwvizError(f"{title} holds {_shown(name)}, a link: put the file itself into the archive.")
    if entry.flag_bits & 0x1:
        raise FwvizError(f"{title} is encrypted: make the archive again without a password.")
    if entry.is_dir():
        return
    if name.lower().endswith(_ARCHIVES):
        raise _nested(title, name)
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise FwvizError(f"{title} is packed in an unusual way: make an ordinary zip archive.")
    if entry.file_size > bounds.entry:
        raise FwvizError(
            f"{_shown(name)} unpacks to {entry.file_size >> 20} MiB, but {bounds.a_thing} may have "
            f"{bounds.entry >> 20}: make it smaller."
        )
    if entry.file_size > max(_SMALL, MAX_RATIO * entry.compress_size):
        raise FwvizError(
            f"{_shown(name)} in {title} unpacks to {entry.file_size // max(entry.compress_size, 1)} times its size, as "
            f"{bounds.a_thing} never does: leave it out."
        )


def _classes(found: dict[str, zipfile.ZipInfo], title: str) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """The pictures with their classes, and the names of the files left aside."""
    paths = {name: PurePosixPath(name).parts for name in found}
    pictures = {name: parts for name, parts in paths.items() if not name.lower().endswith((".txt", ".md", ".csv"))}
    aside = tuple(sorted(set(paths) - set(pictures)))
    if not pictures:
        raise FwvizError(f"{title} holds no picture: put one folder of pictures per class into it.")
    while len({parts[0] for parts in pictures.values()}) == 1 and all(len(parts) > 2 for parts in pictures.values()):
        pictures = {name: parts[1:] for name, parts in pictures.items()}
    if {parts[0].lower() for parts in pictures.values()} <= _SPLITS and all(len(p) > 2 for p in pictures.values()):
        pictures = {name: parts[1:] for name, parts in pictures.items()}
    loose = next((name for name, parts in pictures.items() if len(parts) < 2), None)
    if loose is not None:
        raise FwvizError(
            f"{_shown(loose)} lies in no class folder: put each picture into a folder named after its class."
        )
    return [(pictures[name][0], name) for name in sorted(pictures)], aside


def _nested(title: str, name: str) -> FwvizError:
    return FwvizError(
        f"{title} holds {_shown(name)}, an archive inside the archive: unpack it before you pack the folders."
    )


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 80 else name[:77] + "...")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:100]
