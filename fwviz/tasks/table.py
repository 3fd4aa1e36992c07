"""A CSV of labelled texts, read as untrusted input."""

from __future__ import annotations

import csv
import io
from codecs import BOM_UTF8
from collections.abc import Callable, Sequence
from pathlib import Path

from fwviz.types import FwvizError

MAX_FILE = 16 << 20  # bytes
MAX_ROWS = 4000
MAX_TEXT = 20_000  # characters
TEXT_COLUMNS = ("text", "sentence", "content", "input", "review", "title", "question")
LABEL_COLUMNS = ("label", "class", "category", "target", "intent", "topic", "sentiment")

# (class, where the row stands, its text).
Take = Callable[[str, str, str], None]


def read_table(path: Path, take: Take) -> None:
    """Hand every row to ``take``. The columns are called text and label, or are two of the names above.

    Comma, semicolon or tab, whichever parts the header. Raises FwvizError for what is no such file, with the row.
    """
    title = path.name
    try:
        with path.open("rb") as file:  # what a file says of its size may not be so: a device never ends
            content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise FwvizError(f"{title} cannot be read: {error.strerror}.") from None
    if len(content) > MAX_FILE:
        raise FwvizError(f"{title} has more than the {MAX_FILE >> 20} MiB a table may have: take fewer rows.")
    if not content.removeprefix(BOM_UTF8).strip():
        raise FwvizError(f"{title} is empty: it needs a line 'text,label' and a row per example.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise FwvizError(f"{title} is not UTF-8 text (line {line}): save it as 'CSV UTF-8'.") from None
    if "\0" in text:
        raise FwvizError(f"{title} holds a zero byte and is no table: save it as 'CSV UTF-8'.")
    head = text.splitlines()[0]
    mark = max(",;\t", key=head.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    limit = csv.field_size_limit()
    try:
        names = [name.strip().lower() for name in next(rows)]
        at_text, at_label = _column(names, TEXT_COLUMNS, title), _column(names, LABEL_COLUMNS, title)
        count = 0
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            place = f"line {rows.line_num}"
            count += 1
            if count > MAX_ROWS:
                raise FwvizError(f"{title} has more than {MAX_ROWS} rows: take fewer.")
            if len(row) <= max(at_text, at_label):
                raise FwvizError(
                    f"{title}: {place} has {len(row)} columns, but the first line names {len(names)}: mend it."
                )
            take(*_cells(row[at_text], row[at_label], title, place))
    except csv.Error as error:
        what = f"a cell of more than {limit} characters" if "field larger" in str(error) else str(error)
        raise FwvizError(f"{title}: line {rows.line_num} cannot be read ({what}): save the table again.") from None
    if not count:
        raise FwvizError(f"{title} has a first line but no rows: add an example a line.")


def _column(names: Sequence[str], known: tuple[str, ...], title: str) -> int:
    for name in known:
        if names.count(name) > 1:
            raise FwvizError(f"{title} has two columns {name!r}: keep one.")
        if name in names:
            return names.index(name)
    shown = ", ".join(name[:20] or "(no name)" for name in names[:6])
    raise FwvizError(
        f"{title} has no column {known[0]!r} (its first line says: {shown}): name the columns text and label."
    )


def _cells(text: str, label: str, title: str, place: str) -> tuple[str, str, str]:
    text, label = text.strip(), " ".join(label.split())
    if not text or not label:
        raise FwvizError(f"{title}: {place} has no {'text' if not text else 'label'}: fill it in or delete the row.")
    if len(text) > MAX_TEXT:
        raise FwvizError(f"{title}: {place} has a text of {len(text)} characters, but {MAX_TEXT} are the most: cut it.")
    return label, place, text
