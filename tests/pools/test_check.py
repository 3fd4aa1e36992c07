"""A corpus of damaged and foreign checkpoints: each gets a finding that says what to do, and nothing is written."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fwviz.cli import main
from fwviz.pools.check import examine
from fwviz.types import FwvizError

QUERY = "encoder.layer.0.attention.self.query.weight"
WORDS = "embeddings.word_embeddings.weight"


@pytest.fixture
def folders(tiny_text_pool_path: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The base, and a checkpoint that differs from it a little."""
    base = tiny_text_pool_path / "base"
    own = Path(shutil.copytree(base, tmp_path / "own"))
    edit(lambda t: t[QUERY].add_(0.01))(own)
    return base, own


def edit(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], Any]:
    def act(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        kept = change(tensors)
        save_file(kept if isinstance(kept, dict) else tensors, folder / "model.safetensors")

    return act


def config(**values: Any) -> Callable[[Path], Any]:
    def act(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return act


def raw(change: Callable[[bytes], bytes]) -> Callable[[Path], Any]:
    def act(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))

    return act


def header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    """Let the header lie."""

    def rewrite(content: bytes) -> bytes:
        (size,) = struct.unpack("<Q", content[:8])
        table = json.loads(content[8 : 8 + size])
        change(table)
        text = json.dumps(table).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + size :]

    return raw(rewrite)


def only_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def shard(folder: Path, *, lose: bool = False, index: str | None = None) -> None:
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, inside in halves.items():
        save_file({name: tensors[name] for name in inside}, folder / file)
    table = {"weight_map": {name: file for file, inside in halves.items() for name in inside}}
    (folder / "model.safetensors.index.json").write_text(index or json.dumps(table))
    (folder / "model.safetensors").unlink()
    if lose:
        (folder / "b.safetensors").unlink()


def bad_adapter(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": "many"}))
    save_file({"x": torch.zeros(1)}, folder / "adapter_model.safetensors")


ERRORS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "cut off": (raw(lambda b: b[:-7]), "damaged", "cut off"),
    "empty": (raw(lambda b: b""), "damaged", "0 bytes"),
    "a text": (raw(lambda b: b"<html>404</html>" * 9), "damaged", "no safetensors file"),
    "huge header": (raw(lambda b: struct.pack("<Q", 1 << 62) + b[8:]), "damaged", "header claims"),
    "header no JSON": (raw(lambda b: b[:8] + b"x" + b[9:]), "damaged", "no valid JSON"),
    "offsets lie": (header(lambda t: t[QUERY].update(data_offsets=[0, 1 << 40])), "damaged", "reaches to byte"),
    "shape lies": (header(lambda t: t[QUERY].update(shape=[1 << 30, 1 << 30])), "damaged", "needs"),
    "overlap": (header(lambda t: t[QUERY].update(data_offsets=t[WORDS]["data_offsets"])), "damaged", "damaged"),
    "dtype lies": (header(lambda t: t[QUERY].update(dtype="F4")), "damaged", "unknown dtype 'F4'"),
    "negative": (header(lambda t: t[QUERY].update(shape=[-1, 32])), "damaged", "not counts"),
    "pickle": (only_pickle, "damaged", "is a pickle, which can run code.*save_pretrained"),
    "missing shard": (lambda f: shard(f, lose=True), "damaged", "b.safetensors cannot be opened"),
    "shard elsewhere": (
        lambda f: shard(f, index=json.dumps({"weight_map": {"x": "../../secret"}})),
        "damaged",
        "no valid index",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "damaged", "cannot be opened"),
    "no folder": (shutil.rmtree, "damaged", "cannot be opened"),
    "bad adapter": (bad_adapter, "damaged", "r is 'many'"),
    "missing": (edit(lambda t: t.pop(QUERY) is None), "missing", f'1 of 39 tensors are missing: "{QUERY}"'),
    "many missing": (
        edit(lambda t: {n: v for n, v in t.items() if "layer.1" not in n}),
        "missing",
        "and 11 more; save it whole",
    ),
    "renamed": (edit(lambda t: {f"bert.{n}": v for n, v in t.items()}), "renamed", "with a 'bert.'"),
    "shape": (edit(lambda t: t.update({QUERY: torch.zeros(32, 31)})), "shape", r"\(32, 31\), the base \(32, 32\)"),
    "vocabulary": (edit(lambda t: t.update({WORDS: t[WORDS][:-1].clone()})), "vocabulary", "resize_token_embeddings"),
    "int8": (edit(lambda t: t.update({QUERY: t[QUERY].to(torch.int8)})), "dtype", "is torch.int8"),
    "float8": (edit(lambda t: t.update({QUERY: t[QUERY].to(torch.float8_e4m3fn)})), "dtype", "float8"),
    "NaN": (edit(lambda t: t[QUERY].view(-1)[-1:].fill_(float("nan"))), "not finite", "NaN or infinity"),
    "infinity": (edit(lambda t: t[WORDS].view(-1)[:1].fill_(float("inf"))), "not finite", "NaN or infinity"),
    "other architecture": (config(model_type="llama"), "architecture", "model_type 'llama', the base's 'bert'"),
    "other heads": (config(num_attention_heads=4), "architecture", "num_attention_heads 4, the base's 2"),
}
WARNINGS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "head": (edit(lambda t: t.update({"classifier.weight": torch.zeros(2, 32)})), "extra", "stays out of the merge"),
    "half": (edit(lambda t: {n: v.half() for n, v in t.items()}), "dtype", "saved in float16, the base in float32"),
    "tokens": (config(vocab_size=999), "vocabulary", "vocab_size 999"),
    "equal": (edit(lambda t: t[QUERY].sub_(0.01)), "equal", "equals the base's"),
}


def snapshot(folder: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_merged(
    name: str, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    base, own = folders
    damage, kind, message = ERRORS[name]
    damage(own)
    before = snapshot(tmp_path)
    assert main(["pools", "examine", str(own), "--base", str(base)]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("fwviz: 1 of 1 checkpoints cannot be merged")
    assert printed.err.count("\n") == 1
    findings = examine(own, base)
    assert findings[0].severity == "error"
    assert findings[0].kind == kind
    assert "\n" not in findings[0].text
    import re

    assert re.search(message, findings[0].text), findings[0].text
    assert snapshot(tmp_path) == before, "nothing is written"


@pytest.mark.parametrize("name", WARNINGS)
def test_what_is_only_said(name: str, folders: tuple[Path, Path]) -> None:
    base, own = folders
    damage, kind, message = WARNINGS[name]
    damage(own)
    if name == "equal":
        shutil.copy(base / "model.safetensors", own / "model.safetensors")
    findings = examine(own, base)
    assert [finding.kind for finding in findings] == [kind]
    assert findings[0].severity == "warning"
    assert message in findings[0].text
    assert main(["pools", "examine", str(own), "--base", str(base)]) == 0


def test_a_sound_checkpoint_and_its_shards(folders: tuple[Path, Path]) -> None:
    base, own = folders
    assert examine(own, base) == ()
    assert examine(own / "model.safetensors", base / "model.safetensors") == ()
    shard(own)
    assert examine(own, base) == ()


def test_only_what_is_merged_must_fit(folders: tuple[Path, Path]) -> None:
    base, own = folders
    edit(lambda t: t.update({WORDS: t[WORDS][:-1].clone()}))(own)
    assert examine(own, base, ("encoder.",)) == ()
    assert examine(own, base, ("",), ("embeddings.",)) == ()
    assert examine(own, base)[0].kind == "vocabulary"


@pytest.mark.parametrize("whole", ["checkpoint", "base"])
def test_a_prefix_the_family_knows_may_be_on_one_side_only(
    whole: str, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """Nothing else is passed over for it: shapes, NaN and equality are found behind the prefix."""
    base, own = folders
    base = Path(shutil.copytree(base, tmp_path / "base"))
    side = own if whole == "checkpoint" else base

    def prefixed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"bert.{name}": tensor for name, tensor in tensors.items()}

    edit(prefixed)(side)
    query = QUERY if whole == "base" else f"bert.{QUERY}"
    assert [finding.kind for finding in examine(own, base)] == ["renamed"]
    assert [finding.kind for finding in examine(own, base, prefixes=("roberta.",))] == ["renamed"]
    assert examine(own, base, prefixes=("roberta.", "bert.")) == ()
    start = load_file(base / "model.safetensors")
    same = prefixed(start) if whole == "checkpoint" else {n.removeprefix("bert."): t for n, t in start.items()}
    for damage, kind in (
        (lambda t: same, "equal"),
        (lambda t: t[query].fill_(float("nan")) is None, "not finite"),
        (lambda t: t.update({query: t[query][:1].clone()}), "shape"),
    ):
        bad = Path(shutil.copytree(own, tmp_path / kind))
        edit(damage)(bad)
        assert [finding.kind for finding in examine(bad, base, prefixes=("bert.",))] == [kind]


def test_headers_alone_do_not_read_weights(folders: tuple[Path, Path]) -> None:
    base, own = folders
    edit(lambda t: t[QUERY].fill_(float("nan")))(own)
    assert examine(own, base, values=False) == ()


def test_tied_tensors_are_named(tmp_path: Path) -> None:
    tensors = {"shared.weight": torch.ones(4, 2), "lm_head.weight": torch.ones(4, 2), "block.0.w": torch.ones(2)}
    save_file({name: t.clone() for name, t in tensors.items()}, tmp_path / "base.safetensors")
    own = {name: t.clone() + 1 for name, t in tensors.items() if name != "lm_head.weight"}
    save_file(own, tmp_path / "own.safetensors")
    (found,) = examine(tmp_path / "own.safetensors", tmp_path / "base.safetensors")
    assert (found.severity, found.kind) == ("warning", "tied")
    assert "lm_head.weight" in found.text


def test_adapters_and_open_clip_are_told(tiny_text_pool_path: Path) -> None:
    (found,) = examine(tiny_text_pool_path / "checkpoints" / "food", tiny_text_pool_path / "base")
    assert (found.severity, found.kind) == ("fact", "adapter")
    assert "LORA adapter that changes 4 tensors" in found.text


def test_a_checkpoint_of_a_pool(tiny_pool_path: Path) -> None:
    include = ("vision_model.", "visual_projection.")
    assert examine(tiny_pool_path / "checkpoints" / "shape", tiny_pool_path / "base", include) == ()


def test_a_damaged_base_is_an_error_of_its_own(folders: tuple[Path, Path]) -> None:
    base, own = folders
    raw(lambda b: b[:-1])(own)
    with pytest.raises(FwvizError, match="cut off"):
        examine(base, own)
