"""Checkpoint files: what a good one gives, and the one sentence every damaged one gets."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from fwviz.space.files import CheckpointFile, SafetensorsFile, first_nonfinite
from fwviz.space.layout import build_layout, flatten, unflatten
from fwviz.types import FwvizError

Header = dict[str, Any]


def write(path: Path, header: Header | bytes, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(start: int, stop: int, shape: list[Any] | None = None, dtype: Any = "F32") -> Header:
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


DAMAGED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "empty": (lambda p: (p.write_bytes(b""), p)[1], "it has only 0 bytes"),
    "no header": (lambda p: (p.write_bytes(b"\x10"), p)[1], "it has only 1 bytes"),
    "a pickle": (lambda p: (torch.save({"a": torch.zeros(2)}, p), p)[1], "its header claims"),
    "huge header": (lambda p: write(p, b"{}", length=1 << 60), "its header claims 1152921504606846976 bytes"),
    "header to the end": (lambda p: write(p, b"{}", length=3), "its header claims 3 bytes, but the file has 10"),
    "no JSON": (lambda p: write(p, b"{'a': 1}"), "no valid JSON"),
    "not UTF-8": (lambda p: write(p, b'{"\xff": 1}'), "no valid JSON"),
    "deep JSON": (lambda p: write(p, b"[" * 100_000 + b"]" * 100_000), "no valid JSON"),
    "a list": (lambda p: write(p, b"[]"), "no table of tensors"),
    "a name twice": (
        lambda p: write(p, b'{"a": %s, "a": %s}' % ((json.dumps(entry(0, 4)).encode(),) * 2), b"\0" * 4),
        "no valid JSON",
    ),
    "entry is a number": (lambda p: write(p, {"a": 3}), "entry of tensor 'a'"),
    "entry without dtype": (lambda p: write(p, {"a": {"shape": [1], "data_offsets": [0, 4]}}), "entry of tensor 'a'"),
    "negative shape": (lambda p: write(p, {"a": entry(0, 4, [-1])}, b"\0" * 4), "are not counts"),
    "shape of text": (lambda p: write(p, {"a": entry(0, 4, ["1"])}, b"\0" * 4), "are not counts"),
    "shape true": (lambda p: write(p, {"a": entry(0, 4, [True])}, b"\0" * 4), "are not counts"),
    "shape overflows": (lambda p: write(p, {"a": entry(0, 4, [1 << 64])}, b"\0" * 4), "are not counts"),
    "endless shape": (lambda p: write(p, {"a": entry(0, 4, [1] * 1000)}, b"\0" * 4), "are not counts"),
    "three offsets": (
        lambda p: write(p, {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, b"\0" * 4),
        "are not counts",
    ),
    "offsets backwards": (lambda p: write(p, {"a": entry(4, 0, [0])}, b"\0" * 4), "tensor 'a' reaches to byte 0 of 4"),
    "cut off": (lambda p: write(p, {"a": entry(0, 400)}, b"\0" * 399), "to byte 400 of 399: the file is cut off"),
    "shape lies": (lambda p: write(p, {"a": entry(0, 8, [3])}, b"\0" * 8), "needs 12 bytes, but has 8"),
    "dtype lies": (lambda p: write(p, {"a": entry(0, 8, [2], "F64")}, b"\0" * 8), "needs 16 bytes, but has 8"),
    "unknown dtype": (lambda p: write(p, {"a": entry(0, 8, [2], "F33")}, b"\0" * 8), "unknown dtype 'F33'"),
    "dtype is a list": (lambda p: write(p, {"a": entry(0, 8, [2], [])}, b"\0" * 8), r"unknown dtype \[\]"),
    "overlap": (lambda p: write(p, {"a": entry(0, 8), "b": entry(4, 12)}, b"\0" * 12), "'b' overlaps 'a'"),
    "the same bytes": (lambda p: write(p, {"a": entry(0, 8), "b": entry(0, 8)}, b"\0" * 8), "'b' overlaps 'a'"),
    "gap": (lambda p: write(p, {"a": entry(0, 4), "b": entry(8, 12)}, b"\0" * 12), "'b' leaves a gap after 'a'"),
    "bytes after the end": (lambda p: write(p, {"a": entry(0, 4)}, b"\0" * 5), "tensors end at byte"),
    "missing": (lambda p: p, "cannot be opened: No such file"),
    "a folder": (lambda p: (p.mkdir(), p)[1], "cannot be opened|cannot be read: Is a directory"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_gets_one_sentence(tmp_path: Path, kind: str) -> None:
    make, message = DAMAGED[kind]
    path = make(tmp_path / "model.safetensors")
    with pytest.raises(FwvizError, match=message) as error:
        SafetensorsFile(path)
    text = str(error.value)
    assert str(path) in text
    assert text.endswith(".")
    assert "\n" not in text


def test_a_refused_file_is_closed(tmp_path: Path) -> None:
    path = write(tmp_path / "a", b"[]")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for _ in range(10):
        with pytest.raises(FwvizError):
            SafetensorsFile(path)
    after = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    assert after <= before


@given(cut=st.integers(0, 200), flip=st.integers(0, 199), value=st.integers(0, 255))
def test_random_damage_never_gets_past_the_checks(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int, value: int
) -> None:
    """Whatever bytes change, the file opens with every tensor inside it, or is refused with a FwvizError."""
    path = tmp_path_factory.mktemp("f") / "a"
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.float16)}, path)
    raw = bytearray(path.read_bytes())
    raw[flip % len(raw)] = value
    path.write_bytes(bytes(raw[: max(0, len(raw) - cut)]))
    try:
        file = SafetensorsFile(path)
    except FwvizError:
        return
    for name in file.tensors:
        file.read(name)


def test_tensors_come_back_as_they_were_saved(tmp_path: Path) -> None:
    tensors = {
        "f16": torch.randn(3, 4).half(),
        "bf16": torch.randn(5).bfloat16(),
        "f32": torch.randn(2, 1, 2),
        "f64": torch.randn(7).double(),
        "i64": torch.arange(4),
        "flag": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "nothing": torch.zeros(0, 3),
    }
    save_file(tensors, tmp_path / "a", metadata={"format": "pt"})
    file = SafetensorsFile(tmp_path / "a")
    assert file.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(file.read(name), tensor)
        assert file.read(name).dtype == tensor.dtype
    buffer = torch.full((4,), torch.nan, dtype=torch.float64)
    assert torch.equal(file.read_into("f64", buffer, 2, 3), tensors["f64"][2:5])
    assert buffer[3].isnan()
    assert torch.equal(file.read_into("f64", buffer, 5), tensors["f64"][5:])
    for start, count in ((5, 3), (-1, 2), (0, 5)):
        with pytest.raises(ValueError, match="does not fit"):
            file.read_into("f64", buffer, start, count)
    with pytest.raises(ValueError, match="does not fit"):
        file.read_into("f32", buffer)
    with pytest.raises(FwvizError, match="has no tensor 'x'"):
        file.read("x")


LAYOUT = build_layout({f"layers.{i}.{kind}": (3, i + 1) for i in range(12) for kind in ("weight", "bias")})


def test_a_checkpoint_is_one_flat_vector_however_it_is_stored(tmp_path: Path) -> None:
    """One file, shards in another order, mixed dtypes, renamed tensors: every range reads the same values."""
    flat = torch.randn(LAYOUT.size).half().float()  # exact in every dtype below
    tensors = unflatten(LAYOUT, flat)
    dtypes = (torch.float16, torch.float32, torch.float64)
    one, sharded = tmp_path / "one", tmp_path / "sharded"
    one.mkdir(), sharded.mkdir()
    save_file({name: t.half().contiguous() for name, t in tensors.items()}, one / "model.safetensors")
    mixed = {f"model.{name}": t.to(dtypes[j % 3]).contiguous() for j, (name, t) in enumerate(tensors.items())}
    weight_map = {name: f"model-{j % 3}.safetensors" for j, name in enumerate(mixed)}
    for part in set(weight_map.values()):
        save_file({name: t for name, t in mixed.items() if weight_map[name] == part}, sharded / part)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    checkpoints = [CheckpointFile(one, LAYOUT), CheckpointFile(sharded, LAYOUT, {"": "model."})]
    assert checkpoints[1].tensors.keys() == mixed.keys()
    for checkpoint in checkpoints:
        for start, stop in ((0, LAYOUT.size), (1, 2), (17, 90), (LAYOUT.size - 1, LAYOUT.size)):
            out = torch.full((stop - start,), torch.nan)
            raw = torch.empty((stop - start) * checkpoint.itemsize, dtype=torch.uint8)
            count = checkpoint.read_flat(start, stop, out, raw)
            assert torch.equal(out, flat[start:stop])
            assert (stop - start) * 2 <= count <= (stop - start) * checkpoint.itemsize


def test_neighbours_on_disk_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = torch.randn(LAYOUT.size)
    save_file({name: t.contiguous() for name, t in unflatten(LAYOUT, flat).items()}, tmp_path / "a")
    checkpoint = CheckpointFile(tmp_path / "a", LAYOUT)
    reads: list[int] = []
    read_at = SafetensorsFile.read_at
    monkeypatch.setattr(SafetensorsFile, "read_at", lambda self, *args: (reads.append(1), read_at(self, *args))[1])
    out, raw = torch.empty(LAYOUT.size), torch.empty(LAYOUT.size * 4, dtype=torch.uint8)
    checkpoint.read_flat(0, LAYOUT.size, out, raw)
    assert torch.equal(out, flat)
    assert len(reads) == 3  # 24 tensors: blocks 0-1, 2-9 and 10-11, for files sort "10" before "2"


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    layout = build_layout({"a": (2,), "b": (3,)})
    good = {"a": torch.ones(2), "b": torch.ones(3)}
    cases: dict[str, tuple[dict[str, torch.Tensor], str]] = {
        "missing": ({"a": good["a"]}, "has no tensor 'b': it is not a checkpoint of this architecture"),
        "shape": ({**good, "b": torch.ones(3, 1)}, r"'b' has shape \(3, 1\), but the base has \(3,\)"),
        "dtype": ({**good, "b": torch.ones(3, dtype=torch.int32)}, "'b' is torch.int32: a merge needs F16, BF16"),
    }
    for name, (tensors, message) in cases.items():
        save_file(tensors, tmp_path / name)
        with pytest.raises(FwvizError, match=message):
            CheckpointFile(tmp_path / name, layout)
    save_file({**good, "extra": torch.ones(1)}, tmp_path / "extra")
    CheckpointFile(tmp_path / "extra", layout)


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"[]",
        b"{}",
        b'{"weight_map": {}}',
        b'{"weight_map": 3}',
        b'{"weight_map": {"a": 3}}',
        b'{"weight_map": {"a": []}}',
        b'{"weight_map": {"a": "../secret.safetensors"}}',
        b'{"weight_map": {"a": "/etc/passwd"}}',
    ],
)
def test_a_bad_index_of_shards_is_refused(tmp_path: Path, index: bytes) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(FwvizError, match="no valid index of shards"):
        CheckpointFile(tmp_path, build_layout({"a": (1,)}))


def test_folders_without_a_checkpoint_and_doubled_tensors_are_refused(tmp_path: Path) -> None:
    layout = build_layout({"a": (1,)})
    with pytest.raises(FwvizError, match=r"model\.safetensors cannot be opened"):
        CheckpointFile(tmp_path, layout)
    for part in "xy":
        save_file({"a": torch.ones(1)}, tmp_path / part)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "x", "b": "y"}}))
    with pytest.raises(FwvizError, match="'a' is in two shards"):
        CheckpointFile(tmp_path, layout)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nonfinite_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    monkeypatch.setattr("fwviz.space.files._CHUNK", 10)
    flat = flatten(LAYOUT, {name: torch.randn(shape) for name, shape in zip(LAYOUT.names, LAYOUT.shapes, strict=True)})
    assert first_nonfinite(LAYOUT, flat) is None
    assert first_nonfinite(LAYOUT, torch.full((LAYOUT.size,), 3e38)) is None  # finite, though its sum is not
    for dtype in (torch.float32, torch.float16):
        LAYOUT.view(flat, "layers.7.weight")[2, 3] = value
        tensors = {name: t.to(dtype).contiguous() for name, t in unflatten(LAYOUT, flat).items()}
        save_file(tensors, tmp_path / "a")
        assert CheckpointFile(tmp_path / "a", LAYOUT).first_nonfinite() == "layers.7.weight"
        assert first_nonfinite(LAYOUT, flat) == "layers.7.weight"
        LAYOUT.view(flat, "layers.7.weight")[2, 3] = 0.0
        tensors = {name: t.to(dtype).contiguous() for name, t in unflatten(LAYOUT, flat).items()}
        save_file(tensors, tmp_path / "b")
        assert CheckpointFile(tmp_path / "b", LAYOUT).first_nonfinite() is None
