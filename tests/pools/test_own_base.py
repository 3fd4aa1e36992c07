"""A base of a person's own: what is said of a sound one, and a corpus of those that can be none."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fwviz.pools.base import examine_base, read_base
from fwviz.pools.card import load_card
from fwviz.pools.check import examine
from fwviz.pools.own import bring_checkpoint
from tests import tiny_words_pool
from tests.own_models import BAD_BASES, bad_base, ia3_of, lora_of


def test_a_sound_base_is_named_with_its_size(tiny_pool_path: Path, tiny_text_pool_path: Path) -> None:
    (clip, *rest) = examine_base(tiny_pool_path / "base")
    assert re.fullmatch(
        r"a CLIP of 0\.\d+ million weights that takes pictures of \d+ x \d+; its image tower .*", clip.text
    )
    (text, *others) = examine_base(tiny_text_pool_path / "base")
    assert re.fullmatch(r"an encoder of texts of 0\.\d+ million weights, 2 blocks of width \d+, .*", text.text)
    assert {finding.severity for finding in (clip, text, *rest, *others)} == {"fact"}
    for root, family in ((tiny_pool_path, "clip_vision"), (tiny_text_pool_path, "sentence_encoder")):
        assert read_base(str(root / "base"))[0] == family


@pytest.mark.parametrize("name", BAD_BASES)
def test_a_bad_base_is_one_sentence_and_stays_as_it_is(name: str, tiny_pool_path: Path, tmp_path: Path) -> None:
    folder = bad_base(name, tiny_pool_path / "base", tmp_path / "base")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    first, *_ = examine_base(folder)
    assert first.severity == "error"
    assert re.search(BAD_BASES[name][1], first.text), first.text
    assert "\n" not in first.text
    assert len(first.text) < 400
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_what_a_base_has_beside_its_encoder_is_said(tiny_text_pool_path: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_text_pool_path / "base", tmp_path / "base"))
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "cls.predictions.bias": torch.zeros(3)}, folder / "model.safetensors")
    assert any(f.kind == "extra" and '"cls.predictions.bias"' in f.text for f in examine_base(folder))
    renamed = {f"model.{name}": tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors")
    assert [f.kind for f in examine_base(folder) if f.severity == "error"] == ["renamed"]


def test_a_tokenizer_with_more_tokens_than_the_model_is_warned_of(tiny_text_pool_path: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = Path(shutil.copytree(tiny_text_pool_path / "base", tmp_path / "base"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["zebra", "gnu"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (warning,) = [finding for finding in examine_base(folder) if finding.severity == "warning"]
    assert re.fullmatch(r"tokenizer.json has \d+ tokens, the model \d+: .*", warning.text)


def test_a_checkpoint_with_a_head_beside_a_base_in_shards(pool_copy: Any, tmp_path: Path) -> None:
    """What the base lacks is left out, wherever the base keeps its tensors."""
    base = pool_copy.root / "base"
    whole = load_file(base / "model.safetensors")
    names = sorted(whole)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, some in parts.items():
        save_file({name: whole[name] for name in some}, base / file, metadata={"format": "pt"})
    index = {"weight_map": {name: file for file, some in parts.items() for name in some}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    (base / "model.safetensors").unlink()
    own = load_file(pool_copy.root / "checkpoints" / "shape" / "model.safetensors")
    save_file(own | {"classifier.weight": torch.zeros(3, 4)}, tmp_path / "own.safetensors")
    found = bring_checkpoint(tmp_path / "own.safetensors", "own", load_card(pool_copy.root), tmp_path / "pool")
    assert found.card is not None
    kept = load_file(tmp_path / "pool" / found.card.path / "model.safetensors")
    assert set(kept) == set(own)
    assert all(torch.equal(kept[name], own[name]) for name in own)


def test_adapters_that_change_what_is_not_merged(tiny_pool_path: Path, tmp_path: Path) -> None:
    base, whole = tiny_pool_path / "base", tiny_pool_path / "checkpoints" / "shape"
    lora, ia3 = lora_of(whole, base, tmp_path / "lora"), ia3_of(base, tmp_path / "ia3")
    tower = ("vision_model.", "visual_projection.")
    assert [(f.severity, f.kind) for f in examine(lora, base, tower)] == [("fact", "adapter")]
    assert [(f.severity, f.kind) for f in examine(ia3, base, tower)] == [("fact", "adapter")]
    (first, *_) = examine(lora, base, ("visual_projection.",))
    assert (first.severity, first.kind) == ("error", "outside")
    assert "its task vector would be zero" in first.text
    (first, *_) = examine(lora, base, tower, ("vision_model.encoder.layers.0.",))
    assert (first.severity, first.kind) == ("warning", "outside")
    assert "vision_model.encoder.layers.0.self_attn.q_proj.weight" in first.text


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """A GPT-2 as the Hub has it: without the whole model's prefix, and with masks that are no weights."""
    folder = tmp_path / "gpt2"
    folder.mkdir()
    size = len(tiny_words_pool.write_tokenizer(folder))
    tiny_words_pool.auto_class("gpt2").from_config(tiny_words_pool.make_config("gpt2", size)).save_pretrained(folder)
    tensors = {n.removeprefix("transformer."): t for n, t in load_file(folder / "model.safetensors").items()}
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 32, 32).tril() for i in range(2)}
    save_file(tensors | masks, folder / "model.safetensors")
    return folder


def test_a_model_that_answers_in_words_is_a_base(gpt2: Path) -> None:
    first, second = examine_base(gpt2)
    assert (first.severity, second.severity, second.kind) == ("fact", "fact", "extra")
    assert re.fullmatch(r"a GPT-2 of 0\.\d+ million weights .* reads 24 tokens of a prompt and writes 8\.", first.text)
    model = read_base(str(gpt2))
    assert (model.family, model.include) == ("causal_lm", ("h.", "ln_f.", "wpe.", "wte."))
    assert model.exclude == ("h.0.attn.bias", "h.1.attn.bias"), "what no checkpoint need have"
    assert (model.base["tokens"], model.base["answer_tokens"]) == (24, 8), "together what it has places for"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t["wte.weight"][0].fill_(torch.nan), '"wte.weight" holds NaN or infinity'),
        (lambda t: t.pop("h.1.ln_1.bias"), "of a 'gpt2' model, but .*no tensor .*h.1.ln_1.bias"),
        (lambda t: t.update({"wpe.weight": t["wpe.weight"][:9].clone()}), "but .*'wpe.weight' has shape"),
        (lambda t: t.update({"ln_f.bias": t["ln_f.bias"].to(torch.int8)}), "'ln_f.bias' is torch.int8"),
    ],
)
def test_what_is_wrong_with_one_is_said(change: Any, said: str, gpt2: Path) -> None:
    tensors = load_file(gpt2 / "model.safetensors")
    change(tensors)
    save_file(tensors, gpt2 / "model.safetensors")
    first, *_ = examine_base(gpt2)
    assert first.severity == "error"
    assert re.search(said, first.text), first.text
