"""Models that people bring: sound adapters and bases made here, and a corpus of damaged and hostile ones.

Nothing here imports fwviz, so that a mistake in the package cannot hide in its own fixture.
"""

from __future__ import annotations

import json
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from tests.own_corpus import encrypt, lie, write_zip

QUERY = "vision_model.encoder.layers.0.self_attn.q_proj.weight"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


# --- sound ones -----------------------------------------------------------------------------------


def lora_of(whole: Path, base: Path, target: Path, rank: int = 4) -> Path:
    """A LoRA of the attention of a checkpoint: the best of that rank, by SVD of each change, in PEFT's format."""
    own, start = load_file(whole / "model.safetensors"), load_file(base / "model.safetensors")
    tensors: dict[str, Tensor] = {}
    names = [n for n in own if n.startswith("vision_model.") and n.endswith(("q_proj.weight", "v_proj.weight"))]
    for name in names:
        u, s, v = torch.linalg.svd(own[name].float() - start[name].float(), full_matrices=False)
        module = "base_model.model." + name.removesuffix(".weight")
        tensors[f"{module}.lora_B.weight"] = (u[:, :rank] * s[:rank]).contiguous()
        tensors[f"{module}.lora_A.weight"] = v[:rank].contiguous()
    target.mkdir(parents=True)
    save_file(tensors, target / ADAPTER[1], metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj", "v_proj"]}
    (target / ADAPTER[0]).write_text(json.dumps(config))
    return target


def ia3_of(base: Path, target: Path, by: float = 1.1) -> Path:
    """An IA3 that rescales the outputs of every key of the image tower."""
    start = load_file(base / "model.safetensors")
    names = [n for n in start if n.startswith("vision_model.") and n.endswith("k_proj.weight")]
    tensors = {
        f"base_model.model.{name.removesuffix('.weight')}.ia3_l": torch.full((start[name].shape[0], 1), by)
        for name in names
    }
    target.mkdir(parents=True)
    save_file(tensors, target / ADAPTER[1], metadata={"format": "pt"})
    config = {"peft_type": "IA3", "target_modules": ["k_proj"], "feedforward_modules": []}
    (target / ADAPTER[0]).write_text(json.dumps(config))
    return target


def zip_of(path: Path, folders: Mapping[str, Path], beside: Mapping[str, bytes] | None = None) -> Path:
    """Folders under given names in one archive; "" puts the files of one at its top."""
    files = {
        f"{name}/{file.name}".lstrip("/"): file.read_bytes()
        for name, folder in folders.items()
        for file in sorted(folder.iterdir())
        if file.is_file()
    }
    return write_zip(path, files | dict(beside or {}))


# --- damaged ones ---------------------------------------------------------------------------------

WEIGHTS = save({"x": torch.arange(64.0)})
PLAIN: Mapping[str, bytes] = {
    f"one/{ADAPTER[0]}": json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}).encode(),
    f"one/{ADAPTER[1]}": WEIGHTS,
}
Make = Callable[[Path], object]


def _with(extra: Mapping[str, bytes]) -> Make:
    return lambda path: write_zip(path, {**PLAIN, **extra})


def _patched(change: Callable[[bytearray], object]) -> Make:
    def make(path: Path) -> None:
        content = bytearray(write_zip(path, PLAIN).read_bytes())
        change(content)
        path.write_bytes(content)

    return make


def _link(path: Path) -> None:
    write_zip(path, PLAIN)
    with zipfile.ZipFile(path, "a") as archive:
        entry = zipfile.ZipInfo("one/config.json")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")


def _many(count: int) -> Make:
    return lambda path: write_zip(path, {f"m{i}/{name.partition('/')[2]}": content
                                         for i in range(count) for name, content in PLAIN.items()})  # fmt: skip


# Name → (how it is made, what the one sentence says).
BAD_MODEL_ZIPS: dict[str, tuple[Make, str]] = {
    "empty": (lambda p: p.write_bytes(b""), "is empty: pack the folder of each model"),
    "no archive": (lambda p: p.write_bytes(b"<html>404</html>" * 99), "is no zip archive"),
    "cut off": (_patched(lambda c: c.__delitem__(slice(len(c) // 2, None))), "is no zip archive"),
    "damaged": (_patched(lambda c: c.__setitem__(slice(70, 110), b"\xff" * 40)), "damaged zip archive"),
    "nothing in it": (lambda p: write_zip(p, {}), "holds no model"),
    "pictures": (lambda p: write_zip(p, {"circle/1.png": b"x", "square/1.png": b"y"}), "holds no model"),
    "bomb": (_with({"one/tokenizer.json": b" " * (9 << 20)}), "times its size"),
    "size lies small": (_patched(lie(f"one/{ADAPTER[1]}".encode(), 10)), "damaged"),
    "size lies large": (_patched(lie(f"one/{ADAPTER[1]}".encode(), 1 << 19)), "damaged"),
    "size lies huge": (_patched(lie(f"one/{ADAPTER[1]}".encode(), 3 << 30)), "unpacks to 3072 MiB"),
    "traversal": (_with({"../../model.safetensors": WEIGHTS}), "lead out of the archive"),
    "traversal inside": (_with({"one/../../../model.safetensors": WEIGHTS}), "lead out of the archive"),
    "absolute": (_with({"/etc/cron.d/config.json": b"{}"}), "lead out of the archive"),
    "backslash": (_with({"one\\..\\..\\config.json": b"{}"}), "lead out of the archive"),
    "drive": (_with({"C:/x/config.json": b"{}"}), "lead out of the archive"),
    "control letters": (_with({"\x1b[2J/config.json": b"{}"}), "lead out of the archive"),
    "link": (_link, "a link"),
    "encrypted": (_patched(encrypt), "is encrypted"),
    "nested": (_with({"one/more.zip": b"PK\x05\x06" + b"\0" * 18}), "archive inside the archive"),
    "nested in disguise": (_with({"one/tokenizer.json": b"PK\x03\x04" + b"x" * 99}), "archive inside the archive"),
    "unusual packing": (lambda p: write_zip(p, PLAIN, zipfile.ZIP_LZMA), "unusual way"),
    "too many files": (_with({f"one/{i}.txt": b"" for i in range(500)}), "502 files"),
    "pickled adapter": (lambda p: write_zip(p, {f"one/{ADAPTER[0]}": b"{}", "one/adapter_model.bin": b"x"}),
                        "'adapter_model.bin', a pickle, .* load it with PEFT and save_pretrained it again"),
    "pickled model": (lambda p: write_zip(p, {"one/config.json": b"{}", "one/pytorch_model.bin": b"x"}),
                      "a pickle, .* load it with transformers and save_pretrained it again"),
    "configuration alone": (lambda p: write_zip(p, {f"one/{ADAPTER[0]}": b"{}"}), "without adapter_model.safetensors"),
    "weights alone": (lambda p: write_zip(p, {"one/model.safetensors": WEIGHTS}), "weights without config.json"),
}  # fmt: skip
TOO_MANY_MODELS = (_many(9), "at most 8 checkpoints")


def _edit(change: Callable[[dict[str, Tensor]], Any]) -> Make:
    def act(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        kept = change(tensors)
        save_file(kept if isinstance(kept, dict) else tensors, folder / "model.safetensors")

    return act


def _config(file: str = "config.json", **values: Any) -> Make:
    def act(folder: Path) -> None:
        held = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({k: v for k, v in (held | values).items() if v is not None}))

    return act


def _raw(change: Callable[[bytes], bytes]) -> Make:
    def act(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))

    return act


def _without(name: str) -> Make:
    return lambda folder: (folder / name).unlink()


def _pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _shards(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")


def _grown(tensors: dict[str, Tensor]) -> None:
    name = "text_model.embeddings.token_embedding.weight"
    tensors[name] = torch.cat([tensors[name], tensors[name][:1]])


def _tokenizer(folder: Path) -> None:
    held = json.loads((folder / "tokenizer.json").read_text())
    held["added_tokens"] = [{"id": 99_999, "content": "<far>", "single_word": False, "lstrip": False, "rstrip": False,
                             "normalized": False, "special": True}]  # fmt: skip
    held["model"] = {"type": "none"}
    (folder / "tokenizer.json").write_text(json.dumps(held))


# Name → (what is done to a CLIP's folder, what the one sentence says).
BAD_BASES: dict[str, tuple[Make, str]] = {
    "cut off": (_raw(lambda b: b[:-7]), "cut off"),
    "empty": (_raw(lambda b: b""), "0 bytes"),
    "a text": (_raw(lambda b: b"<html>404</html>" * 9), "no safetensors file"),
    "huge header": (_raw(lambda b: struct.pack("<Q", 1 << 62) + b[8:]), "header claims"),
    "pickle": (_pickled, "is a pickle, which can run code.*save_pretrained"),
    "shards": (_shards, "weights in shards"),
    "no weights": (_without("model.safetensors"), "no model.safetensors"),
    "no config": (_without("config.json"), "there is no config.json"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "no valid JSON"),
    "another kind": (_config(model_type="gpt2"), "of a 'gpt2' model"),
    "no kind": (_config(model_type=None), "of a None model"),
    "image tower alone": (_config(model_type="clip_vision_model"), "of a 'clip_vision_model' model"),
    "no tokenizer": (_without("tokenizer.json"), "no tokenizer.json"),
    "bad tokenizer": (_tokenizer, "no valid tokenizer"),
    "no preprocessor": (_without("preprocessor_config.json"), "no preprocessor_config.json"),
    "bad preprocessor": (_config("preprocessor_config.json", image_std=[0, 0, 0]), "image_std is"),
    "missing": (_edit(lambda t: t.pop(QUERY) is None), "1 of [0-9]+ tensors are missing: "),
    "renamed": (_edit(lambda t: {f"clip.{n}": v for n, v in t.items()}), "with a 'clip.'"),
    "shape": (_edit(lambda t: t.update({QUERY: t[QUERY][:3].clone()})), "has shape .* config.json says"),
    "vocabulary": (_edit(_grown), "token_embedding.* has shape .* config.json says"),
    "dtype": (_edit(lambda t: t.update({QUERY: t[QUERY].to(torch.int8)})), "is torch.int8"),
    "not finite": (_edit(lambda t: t[QUERY].fill_(torch.nan)), "NaN or infinity"),
    "infinite": (_edit(lambda t: t[QUERY][0].fill_(torch.inf)), "NaN or infinity"),
    "no scale": (_edit(lambda t: t.pop("logit_scale") is None), "logit_scale"),
}  # fmt: skip


def bad_base(name: str, base: Path, target: Path) -> Path:
    """A copy of a CLIP's folder with one thing wrong."""
    made = Path(shutil.copytree(base, target))
    BAD_BASES[name][0](made)
    return made


# Name → (what is done to the folder of a LoRA of a CLIP, what the one sentence says).
BAD_ADAPTERS: dict[str, tuple[Make, str]] = {
    "no kind": (_config(ADAPTER[0], peft_type="PREFIX_TUNING"), "only LORA and IA3"),
    "rank lies": (_config(ADAPTER[0], r=3), "ranks 4 and 4, but adapter_config.json says 3"),
    "rank is a word": (_config(ADAPTER[0], r="many"), "r is 'many'"),
    "dora": (_config(ADAPTER[0], use_dora=True), "uses use_dora"),
    "cut off": (lambda f: (f / ADAPTER[1]).write_bytes((f / ADAPTER[1]).read_bytes()[:-9]), "cut off"),
    "not finite": (lambda f: _adapter(f, lambda t: t.fill_(torch.nan)), "NaN or infinity"),
    "another model": (lambda f: _adapter(f, lambda t: t, "attention"), "another model"),
    "another width": (lambda f: _adapter(f, lambda t: torch.cat([t, t], 1) if t.shape[0] == 4 else t), "another model"),
    "no JSON": (lambda f: (f / ADAPTER[0]).write_text("["), "no valid JSON"),
}  # fmt: skip


def _adapter(folder: Path, change: Callable[[Tensor], Tensor], module: str = "self_attn") -> None:
    tensors = load_file(folder / ADAPTER[1])
    changed = {name.replace("self_attn", module): change(tensor.clone()) for name, tensor in tensors.items()}
    save_file(changed, folder / ADAPTER[1])


def bad_adapter(name: str, whole: Path, base: Path, target: Path) -> Path:
    """A LoRA of a checkpoint with one thing wrong."""
    made = lora_of(whole, base, target)
    BAD_ADAPTERS[name][0](made)
    return made
