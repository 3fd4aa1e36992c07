"""Data sets that people bring: sound ones drawn here, of no pool, and a corpus of damaged and hostile ones.

Nothing here imports fwviz, so that a mistake in the package cannot hide in its own fixture.
"""

from __future__ import annotations

import csv
import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tests import tiny_classifier_pool, tiny_words_pool

SHAPES = ("circle", "cross", "square", "star", "triangle")
SEGMENTS = {  # of a seven-segment display: top, upper right, lower right, bottom, lower left, upper left, middle
    0: "012345", 1: "12", 2: "01643", 3: "01236", 4: "5612", 5: "05623", 6: "056234", 7: "012", 8: "0123456",
    9: "012356",
}  # fmt: skip
WORDS = {
    "fruit": ("apple", "plum", "fig"), "sea": ("wave", "shore", "tide"), "night": ("moon", "star", "dark"),
}  # fmt: skip
FILLER = ("the", "a", "of", "and", "was", "very", "one", "some", "near", "then", "with", "it", "is", "here")


# --- sound ones -----------------------------------------------------------------------------------


def draw_shape(kind: str, rng: np.random.Generator, side: int = 48) -> Image.Image:
    """An outline on a dark ground; everything but the kind varies."""
    picture = Image.new("RGB", (side, side), tuple(int(x) for x in rng.integers(0, 90, 3)))
    pen = ImageDraw.Draw(picture)
    ink = tuple(int(x) for x in rng.integers(140, 256, 3))
    r = rng.uniform(0.22, 0.36) * side
    x, y = rng.uniform(r + 3, side - r - 3, 2)
    width = int(rng.integers(3, 6))
    if kind == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), outline=ink, width=width)
    elif kind == "square":
        pen.rectangle((x - r, y - r, x + r, y + r), outline=ink, width=width)
    elif kind == "triangle":
        pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], outline=ink, width=width)
    elif kind == "cross":
        pen.line((x - r, y, x + r, y), fill=ink, width=width + 2)
        pen.line((x, y - r, x, y + r), fill=ink, width=width + 2)
    else:
        long = [r if i % 2 == 0 else 0.4 * r for i in range(10)]
        turn = np.arange(10) * np.pi / 5
        pen.polygon(list(zip(x + long * np.sin(turn), y - long * np.cos(turn), strict=True)), fill=ink)
    return picture


def draw_segments(digit: int, rng: np.random.Generator, side: int = 48) -> Image.Image:
    """A digit of a seven-segment display, slanted and of varying colours."""
    picture = Image.new("RGB", (side, side), tuple(int(x) for x in rng.integers(0, 60, 3)))
    pen = ImageDraw.Draw(picture)
    ink = tuple(int(x) for x in rng.integers(150, 256, 3))
    w, h = rng.uniform(0.3, 0.42) * side, rng.uniform(0.62, 0.78) * side
    left, top, slant = rng.uniform(4, side - w - 8), rng.uniform(3, side - h - 3), rng.uniform(-1, 5)
    place = {name: (left + dx * w + slant * (1 - dy), top + dy * h) for name, dx, dy in (
        ("a", 0, 0), ("b", 1, 0), ("c", 0, 0.5), ("d", 1, 0.5), ("e", 0, 1), ("f", 1, 1))}  # fmt: skip
    ends = ("ab", "bd", "df", "ef", "ce", "ac", "cd")
    for segment in SEGMENTS[digit]:
        start, stop = ends[int(segment)]
        pen.line((place[start], place[stop]), fill=ink, width=int(rng.integers(3, 6)))
    return picture


def encode(picture: Image.Image, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=format)
    return buffer.getvalue()


def shapes_zip(path: Path, count: int = 12, classes: tuple[str, ...] = SHAPES, folder: str = "shapes/") -> Path:
    """``count`` pictures of each shape, as PNG, JPEG and WebP by turns."""
    rng = np.random.default_rng(0)
    formats = ("PNG", "JPEG", "WEBP")
    files = {
        f"{folder}{kind}/{i}.{formats[i % 3].lower()}": encode(draw_shape(kind, rng), formats[i % 3])
        for kind in classes
        for i in range(count)
    }
    return write_zip(path, files)


def segments_zip(path: Path, count: int = 20) -> Path:
    """``count`` pictures of each digit of a seven-segment display, in folders 0 to 9."""
    rng = np.random.default_rng(1)
    files = {f"{d}/{i}.png": encode(draw_segments(d, rng)) for d in range(10) for i in range(count)}
    return write_zip(path, files)


def texts_csv(path: Path, count: int = 14) -> Path:
    """``count`` texts of each class of words."""
    rng = np.random.default_rng(2)
    rows = ["text,label"]
    for label, words in WORDS.items():
        seen: set[str] = set()
        while len(seen) < count:
            inside = [*rng.choice(words, 2), *rng.choice(FILLER, int(rng.integers(2, 8)))]
            seen.add(" ".join(str(word) for word in rng.permutation(inside)))
        rows += [f'"{text}",{label}' for text in sorted(seen)]
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def moods(path: Path, kind: str, names: Sequence[str] = ("bad", "good"), rows: int = 60) -> Path:
    """Examples of the task "mood" of the tiny pools of a kind, drawn anew, each different from the others."""
    rng = np.random.default_rng(7)
    found: dict[str, str] = {}
    while len(found) < rows:
        if kind in ("roberta", "bert"):
            samples, labels = tiny_classifier_pool.draw("mood", 2, rng)
            found |= {text: names[int(label)] for (text, _), label in zip(samples, labels, strict=True)}
        else:
            prompts, answers = tiny_words_pool.draw("mood", 2, rng)
            extra = " ".join(rng.choice(("the", "was"), 5))
            found |= {f"{extra} {p}": names[("bad", "good").index(a)] for p, a in zip(prompts, answers, strict=True)}
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *found.items()])
    return path


def write_zip(path: Path, files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


# --- damaged ones ---------------------------------------------------------------------------------

Make = Callable[[Path], object]


def _with(extra: Mapping[str, bytes], *, count: int = 5) -> Make:
    """A sound archive with something in it that must not be."""

    def make(path: Path) -> None:
        shapes_zip(path, count, ("circle", "square"))
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            for name, content in extra.items():
                archive.writestr(name, content)

    return make


def _patched(change: Callable[[bytearray], object]) -> Make:
    def make(path: Path) -> None:
        content = bytearray(shapes_zip(path, 5, ("circle", "square")).read_bytes())
        change(content)
        path.write_bytes(content)

    return make


def _link(path: Path) -> None:
    shapes_zip(path, 5, ("circle", "square"))
    with zipfile.ZipFile(path, "a") as archive:
        entry = zipfile.ZipInfo("shapes/circle/passwd.png")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")


def encrypt(content: bytearray) -> None:
    """Set the flag of encryption in every header, local and central."""
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.find(mark)
        while place >= 0:
            content[place + at] |= 1
            place = content.find(mark, place + 4)


def lie(name: bytes, size: int) -> Callable[[bytearray], None]:
    """Let the headers of one file claim another unpacked size."""

    def change(content: bytearray) -> None:
        for mark, at, start in ((b"PK\x03\x04", 22, 30), (b"PK\x01\x02", 24, 46)):
            place = content.find(mark)
            while place >= 0:
                if content[place + start : place + start + len(name)] == name:
                    content[place + at : place + at + 4] = struct.pack("<I", size)
                place = content.find(mark, place + 4)

    return change


def _bomb_png(width: int, height: int) -> bytes:
    """A PNG whose header promises so many pixels and which holds next to none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def _duplicates(path: Path) -> None:
    one = encode(draw_shape("circle", np.random.default_rng(3)))
    write_zip(path, {f"{kind}/{i}.png": one for kind in ("circle", "square") for i in range(6)})


def _same_many_times(path: Path) -> None:
    rng = np.random.default_rng(4)
    one = encode(draw_shape("square", rng))
    files = {f"circle/{i}.png": encode(draw_shape("circle", rng)) for i in range(6)}
    write_zip(path, files | {f"square/{i}.png": one for i in range(6)})


def _twice(path: Path) -> None:
    import warnings

    shapes_zip(path, 5, ("circle", "square"))
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("shapes/circle/0.png", b"again")


PICTURE = encode(draw_shape("circle", np.random.default_rng(9)))

# Name → (how it is made, what the one sentence says).
BAD_ZIPS: dict[str, tuple[Make, str]] = {
    "empty": (lambda p: p.write_bytes(b""), "is empty"),
    "no archive": (lambda p: p.write_bytes(b"<html>404</html>" * 99), "is no zip archive"),
    "cut off": (_patched(lambda c: c.__delitem__(slice(len(c) // 2, None))), "is no zip archive"),
    "damaged contents": (_patched(lambda c: c.__setitem__(slice(60, 200), b"\xff" * 140)), "damaged"),
    "damaged table": (lambda p: (_patched(lambda c: c.__setitem__(
        slice(c.find(b"PK\x01\x02"), c.find(b"PK\x01\x02") + 40), b"\0" * 40))(p)), "damaged zip archive"),
    "table lies": (_patched(lambda c: c.__setitem__(slice(len(c) - 10, len(c) - 6), b"\xff\xff\xff\x7f")),
                   "lies about"),
    "nothing in it": (lambda p: write_zip(p, {}), "holds no picture"),
    "only a text": (lambda p: write_zip(p, {"readme.txt": b"hello"}), "holds no picture"),
    "zip bomb": (_with({"shapes/circle/b.png": b"\0" * (9 << 20)}), "times its size"),
    "huge file": (_with({"shapes/circle/b.png": b"\0" * (17 << 20)}), "unpacks to 17 MiB"),
    "size lies small": (_patched(lie(b"shapes/circle/0.png", 10)), "damaged"),
    "size lies large": (_patched(lie(b"shapes/circle/0.png", 1 << 19)), "damaged"),
    "too many files": (_with({f"shapes/circle/{i}.txt": b"" for i in range(4100)}), "4110 files"),
    "traversal": (_with({"../../outside.png": PICTURE}), "lead out of the archive"),
    "traversal inside": (_with({"shapes/circle/../../../x.png": PICTURE}), "lead out of the archive"),
    "absolute": (_with({"/etc/cron.d/x.png": PICTURE}), "lead out of the archive"),
    "backslash": (_with({"shapes\\circle\\..\\..\\x.png": PICTURE}), "lead out of the archive"),
    "drive": (_with({"C:/x/y.png": PICTURE}), "lead out of the archive"),
    "control letters": (_with({"shapes/circle/\x1b[2J.png": PICTURE}), "lead out of the archive"),
    "link": (_link, "a link"),
    "encrypted": (_patched(encrypt), "is encrypted"),
    "nested": (_with({"shapes/circle/more.zip": b"PK\x05\x06" + b"\0" * 18}), "archive inside the archive"),
    "nested in disguise": (_with({"shapes/circle/x.png": b"PK\x03\x04" + b"x" * 99}), "archive inside the archive"),
    "unusual packing": (lambda p: write_zip(p, {f"a/{i}.png": PICTURE for i in range(5)}, zipfile.ZIP_LZMA),
                        "unusual way"),
    "named twice": (_twice, "twice"),
    "loose pictures": (lambda p: write_zip(p, {f"{i}.png": PICTURE for i in range(9)}), "lies in no class folder"),
    "no picture": (_with({"shapes/circle/x.png": b"GIF or not, this is text"}), "is no picture"),
    "svg": (_with({"shapes/circle/x.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}), "is no picture"),
    "cut picture": (_with({"shapes/circle/x.png": PICTURE[: len(PICTURE) // 2]}), "damaged picture"),
    "pixel bomb": (_with({"shapes/circle/x.png": _bomb_png(30_000, 30_000)}), "million"),
    "larger pixel bomb": (_with({"shapes/circle/x.png": _bomb_png(6_000, 6_000)}), "million"),
    "empty picture": (_with({"shapes/circle/x.png": b""}), "is no picture"),
    "one class": (lambda p: shapes_zip(p, 9, ("circle",)), "one class only"),
    "few": (lambda p: shapes_zip(p, 3, ("circle", "square")), "has 3 different pictures, but each class needs 5"),
    "few different": (_same_many_times, "has 1 different pictures"),
    "many classes": (lambda p: write_zip(p, {f"c{i:03}/x{j}.png": encode(Image.new("RGB", (4, 4), (i, j * 9, 7)))
                                             for i in range(101) for j in range(5)}), "has 101 classes"),
    "one picture, two classes": (_duplicates, "are the same, but of the classes"),
}  # fmt: skip


def _rows(*rows: str, head: str = "text,label") -> Make:
    return lambda p: p.write_bytes("\n".join([head, *rows]).encode())


GOOD_ROWS = tuple(f"word {i} here,{label}" for i, label in enumerate("aabb" * 4))

BAD_TABLES: dict[str, tuple[Make, str]] = {
    "empty": (lambda p: p.write_bytes(b""), "is empty"),
    "blank": (lambda p: p.write_bytes(b"\n \n\n"), "is empty"),
    "only a byte order mark": (lambda p: p.write_bytes(b"\xef\xbb\xbf\n"), "is empty"),
    "only a head": (_rows(), "has a first line but no rows"),
    "an archive": (lambda p: shapes_zip(p, 5), "is an archive, but this pool reads texts"),
    "latin-1": (lambda p: p.write_bytes("text,label\ncafé,a\n".encode("latin-1")), "not UTF-8 text .line 2"),
    "utf-16": (lambda p: p.write_bytes("text,label\nword,a\n".encode("utf-16")), "not UTF-8"),
    "zero byte": (_rows("a\0b,x"), "zero byte"),
    "no text column": (_rows(*GOOD_ROWS, head="words,label"), "no column 'text'"),
    "no label column": (_rows(*GOOD_ROWS, head="text,number"), "no column 'label'"),
    "two text columns": (_rows("a,b,c", head="text,text,label"), "two columns 'text'"),
    "short row": (_rows(*GOOD_ROWS, "alone"), "line 18 has 1 columns"),
    "no text": (_rows(*GOOD_ROWS, " ,a"), "line 18 has no text"),
    "no label": (_rows(*GOOD_ROWS, "word,"), "line 18 has no label"),
    "endless text": (_rows(*GOOD_ROWS, "x" * 30_000 + ",a"), "20000 are the most"),
    "endless cell": (_rows(*GOOD_ROWS, "x" * 200_000 + ",a"), "cannot be read"),
    "open quote": (_rows(*GOOD_ROWS, '"never closed,a'), "cannot be read"),
    "too many rows": (_rows(*(f"t{i},{i % 2}" for i in range(4001))), "more than 4000 rows"),
    "one class": (_rows(*(f"t{i},a" for i in range(9))), "one class only"),
    "few": (_rows("a 1,a", "a 2,a", *(f"b {i},b" for i in range(9))), "2 different texts"),
    "few different": (_rows(*["Same  Text,a", "same text,a", "SAME TEXT,a"] * 3, *(f"b {i},b" for i in range(9))),
                      "1 different texts"),
    "one text, two classes": (_rows(*GOOD_ROWS, "WORD  0 here,b"), "are the same, but of the classes"),
    "many classes": (_rows(*(f"t{i},c{i // 5}" for i in range(505))), "has 101 classes"),
}  # fmt: skip
