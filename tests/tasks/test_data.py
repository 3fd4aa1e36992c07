"""Splits: what is decoded, fair subsets, and parquet files that lie."""

from __future__ import annotations

import io
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fwviz.pools.card import load_card
from fwviz.tasks.batches import passes
from fwviz.tasks.data import load_split, stratified_subset
from fwviz.types import FwvizError


def load(root: Path) -> Any:
    card = load_card(root)
    return load_split(card, card.task("shape"), "calibration")


def test_split_holds_the_pictures(tiny_pool_path: Path) -> None:
    data = load(tiny_pool_path)
    rows = pq.read_table(tiny_pool_path / "tasks/shape/calibration.parquet").to_pylist()
    assert data.inputs.dtype == torch.uint8
    assert data.inputs.shape == (48, 3, 16, 16)
    assert data.labels.tolist() == [row["label"] for row in rows]
    assert data.source_keys == tuple(row["source_key"] for row in rows)
    for i in (0, 47):
        picture = np.array(Image.open(io.BytesIO(rows[i]["image"]["bytes"])))
        assert np.array_equal(data.inputs[i].permute(1, 2, 0).numpy(), picture)


def test_split_is_decoded_once_for_all_threads(pool_copy: Any) -> None:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(load(pool_copy.root))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len({id(data) for data in found}) == 1


# --- subsets and passes -------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), min_size=1, max_size=120), st.integers(1, 130), st.integers(0, 3))
def test_subset_keeps_the_shares(labels: list[int], count: int, seed: int) -> None:
    tensor = torch.tensor(labels)
    rows = stratified_subset(tensor, count, seed)
    assert len(rows) == len(set(rows.tolist())) == min(count, len(labels))
    assert rows.tolist() == sorted(rows.tolist())
    for label in set(labels):
        share = labels.count(label) * len(rows) / len(labels)
        assert abs(int((tensor[rows] == label).sum()) - share) < 1
    assert torch.equal(rows, stratified_subset(tensor, count, seed))


def test_subset_depends_on_the_seed() -> None:
    labels = torch.arange(100) % 4
    assert not torch.equal(stratified_subset(labels, 20, 0), stratified_subset(labels, 20, 1))


@given(st.lists(st.integers(0, 30), max_size=6), st.integers(1, 12))
def test_passes_cover_every_sample_once(counts: list[int], chunk: int) -> None:
    cut = list(passes(counts, chunk))
    samples = [(piece.task, i) for pieces in cut for piece in pieces for i in range(piece.start, piece.stop)]
    assert samples == [(task, i) for task, count in enumerate(counts) for i in range(count)]
    sizes = [sum(piece.stop - piece.start for piece in pieces) for pieces in cut]
    assert all(size == chunk for size in sizes[:-1])
    assert all(0 < size <= chunk for size in sizes[-1:])


# --- damaged files ------------------------------------------------------------------------------


def png(width: int, height: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, format="PNG")
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def forged_png(*parts: tuple[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, content) for kind, content in parts)


def header(width: int, height: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


PIXELS = zlib.compress(b"\x00" * (49 * 16))
Rows = dict[str, list[Any]]


def first_image(content: bytes | None) -> Callable[[Rows], Any]:
    return lambda rows: rows["image"].__setitem__(0, None if content is None else {"bytes": content, "path": "a"})


def labels(*values: int | None) -> Callable[[Rows], Any]:
    return lambda rows: rows["label"].__setitem__(slice(0, len(values)), values)


ROWS: dict[str, tuple[Callable[[Rows], Any], str]] = {
    "no image": (first_image(None), "row 0 has no image"),
    "empty image": (first_image(b""), "row 0 holds no PNG"),
    "text": (first_image(b"not an image, but long enough to be mistaken for one"), "row 0 holds no PNG"),
    "a GIF": (first_image(b"GIF89a" + b"\x00" * 64), "row 0 holds no PNG"),
    "a script": (first_image(b"<svg onload='alert(1)'></svg>" + b" " * 32), "row 0 holds no PNG"),
    "cut off": (first_image(png(16, 16)[:50]), "cannot be decoded"),
    "damaged": (first_image(forged_png(header(16, 16), (b"IDAT", b"xxxx"), (b"IEND", b""))), "cannot be decoded"),
    "no pixels": (first_image(forged_png(header(16, 16), (b"IEND", b""))), "cannot be decoded"),
    "other size": (first_image(png(17, 16)), "17 x 16 pixels, but the pool takes 16 x 16"),
    "bomb": (first_image(forged_png(header(60_000, 60_000), (b"IDAT", PIXELS))), "60000 x 60000 pixels"),
    "second header": (
        first_image(forged_png(header(16, 16), header(60_000, 60_000), (b"IDAT", PIXELS), (b"IEND", b""))),
        "cannot be decoded",
    ),
    "text bomb": (
        first_image(
            forged_png(header(16, 16), (b"zTXt", b"a\x00\x00" + zlib.compress(b"x" * (40 << 20))), (b"IDAT", PIXELS))
        ),
        "cannot be decoded",
    ),
    "label beyond": (labels(3), "row 0 has label 3, but the task has 3 classes"),
    "label below": (labels(0, -1), "row 1 has label -1"),
    "no label": (labels(None), "row 0 has no label"),
    "one class": (labels(*[1] * 48), "images of one class only"),
}
TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def rewrite(root: Path, change: Callable[[Rows], Any], types: dict[str, Any] | None = None) -> None:
    file = root / "tasks/shape/calibration.parquet"
    rows = pq.read_table(file).to_pydict()
    change(rows)
    kinds = {"image": TYPE, "label": pa.int64(), "source_key": pa.string()} | (types or {})
    pq.write_table(pa.table({name: pa.array(values, type=kinds[name]) for name, values in rows.items()}), file)


@pytest.mark.parametrize("name", ROWS)
def test_damaged_row_gives_one_sentence(name: str, pool_copy: Any) -> None:
    change, message = ROWS[name]
    rewrite(pool_copy.root, change)
    pool_copy.seal()
    with pytest.raises(FwvizError, match=message) as raised:
        load(pool_copy.root)
    assert "calibration.parquet" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_every_kind_of_png_becomes_rgb(pool_copy: Any, mode: str) -> None:
    rewrite(pool_copy.root, first_image(png(16, 16, mode)))
    pool_copy.seal()
    assert load(pool_copy.root).inputs[0].float().mean() == 0


def write(content: bytes) -> Callable[[Path], Any]:
    return lambda root: (root / "tasks/shape/calibration.parquet").write_bytes(content)


def halve(root: Path) -> None:
    file = root / "tasks/shape/calibration.parquet"
    file.write_bytes(file.read_bytes()[:2000] + file.read_bytes()[-4000:])


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda root: (root / "tasks/shape/calibration.parquet").unlink(), "cannot be read"),
    "empty": (write(b""), "damaged or no parquet"),
    "text": (write(b"PAR1 hello PAR1"), "damaged or no parquet"),
    "pickle": (write(b"\x80\x04\x95" + b"x" * 99), "damaged or no parquet"),
    "middle lost": (halve, "damaged or no parquet|cannot be decoded|holds no PNG"),
    "no label column": (lambda root: rewrite(root, lambda rows: rows.pop("label")), "no column 'label'"),
    "labels are text": (
        lambda root: rewrite(root, lambda rows: rows.update(label=["1"] * 48), {"label": pa.string()}),
        "no column 'label' of type int64",
    ),
    "images are text": (
        lambda root: rewrite(root, lambda rows: rows.update(image=["1"] * 48), {"image": pa.string()}),
        "no column 'image'",
    ),
    "a row less": (
        lambda root: rewrite(root, lambda rows: rows.update({k: v[1:] for k, v in rows.items()})),
        "has 47 rows, but its card says 48",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_damaged_file_gives_one_sentence(name: str, pool_copy: Any) -> None:
    damage, message = FILES[name]
    if name == "missing":
        damage(pool_copy.root)
    else:
        damage(pool_copy.root)
        pool_copy.seal()
    with pytest.raises(FwvizError, match=message) as raised:
        load(pool_copy.root)
    assert "\n" not in str(raised.value)


def test_changed_labels_are_noticed_by_their_hash(pool_copy: Any) -> None:
    rewrite(pool_copy.root, labels(2, 1, 0))
    with pytest.raises(FwvizError, match=r"calibration\.parquet is not the file its pool card describes"):
        load(pool_copy.root)


def test_a_file_that_expands_wildly_is_cut_short(pool_copy: Any) -> None:
    """One large value, stored once by the dictionary encoding, repeated in every row."""
    large = b"\x89PNG\r\n\x1a\n" + b"\x00" * (1 << 20)
    rewrite(pool_copy.root, lambda rows: rows.update(image=[{"bytes": large, "path": "a"}] * 48))
    pool_copy.seal()
    assert (pool_copy.root / "tasks/shape/calibration.parquet").stat().st_size < 1 << 20
    with pytest.raises(FwvizError, match="an image of more than 66 KiB"):
        load(pool_copy.root)
