"""The packed encoder against transformers under a mask, gradients included, and damaged folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from fwviz.backbones._bert import bert_tensors
from fwviz.backbones.sentence_encoder import SentenceEncoder, read_sentence_encoder, read_tokenise
from fwviz.space.layout import build_layout, unflatten
from fwviz.types import FwvizError

BASE = {"tokens": 12, "scale": 20.0}
SIZES = {
    "vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40,
    "max_position_embeddings": 16, "layer_norm_eps": 1e-6, "initializer_range": 0.4,
}  # fmt: skip
LENGTHS = (5, 2, 9, 5, 1, 12, 2)


def write_tokenizer(folder: Path, words: int) -> None:
    """A token per word, [CLS] and [SEP] around each text."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing

    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3} | {f"w{i}": 4 + i for i in range(words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    # As the file of all-MiniLM does: what is saved here must not decide how long a text becomes.
    tokenizer.enable_padding(length=14)
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(params=["bert", "roberta", "prefixed"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    from transformers import BertConfig, BertForSequenceClassification, BertModel, RobertaConfig, RobertaModel

    torch.manual_seed(5)
    if request.param == "bert":
        BertModel(BertConfig(**SIZES)).save_pretrained(tmp_path)
    elif request.param == "prefixed":
        BertForSequenceClassification(BertConfig(**SIZES, hidden_act="gelu_new")).save_pretrained(tmp_path)
    else:
        RobertaModel(RobertaConfig(**SIZES, type_vocab_size=1, pad_token_id=1)).save_pretrained(tmp_path)
    write_tokenizer(tmp_path, words=30)
    return tmp_path


def reference(folder: Path) -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def own(folder: Path) -> SentenceEncoder:
    return read_sentence_encoder(folder, BASE).backbone(load_file(folder / "model.safetensors"), "cpu")


def some_tokens() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.full((len(LENGTHS), max(LENGTHS)), -1, dtype=torch.int32)
    for row, length in zip(tokens, LENGTHS, strict=True):
        row[:length] = torch.randint(4, 34, (length,), generator=generator)
    return tokens


def mean_pooled(model: Any, tokens: Tensor) -> Tensor:
    mask = tokens >= 0
    padded = torch.where(mask, tokens, model.config.pad_token_id).long()
    hidden = model(input_ids=padded, attention_mask=mask.long()).last_hidden_state
    return F.normalize((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)


def test_features_equal_transformers(folder: Path) -> None:
    tokens = some_tokens()
    with torch.no_grad():
        expected = mean_pooled(reference(folder), tokens)
        encoder = own(folder)
        torch.testing.assert_close(encoder.features([tokens]), expected, atol=1e-5, rtol=0)
        parts = [tokens[:2, :5], tokens[2:]]  # tasks whose texts were padded to other lengths
        torch.testing.assert_close(encoder.features(parts), expected, atol=1e-5, rtol=0)
    assert (expected[0] - expected[3]).norm() > 0.1, "texts of one length must not be told apart by their length alone"


def test_watch_sees_what_linear_modules_see(folder: Path) -> None:
    """Rows of padding apart: the sum of outer products of the inputs is compared, which no order changes."""
    model, encoder, tokens = reference(folder), own(folder), some_tokens()
    mask = (tokens >= 0).flatten()
    expected: dict[str, Tensor] = {}

    def record(name: str) -> Callable[[Any, Any], None]:
        def hook(module: Any, inputs: Any) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1])[mask]
            expected[f"{encoder.prefix}{name}.weight"] = rows.T @ rows

        return hook

    for name, module in model.encoder.named_modules(prefix="encoder"):
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(record(name))
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        mean_pooled(model, tokens)
        encoder.features([tokens], watch=lambda names, x: found.update(dict.fromkeys(names, x.T @ x)))
    assert found.keys() == expected.keys()
    assert len(found) == 18
    for name, gram in expected.items():
        torch.testing.assert_close(found[name], gram, atol=1e-4, rtol=1e-4)


def test_gradients_equal_transformers(folder: Path) -> None:
    model, encoder, tokens = reference(folder), own(folder), some_tokens()
    layout = build_layout(bert_tensors(encoder.shape, encoder.prefix))
    flat = encoder.bind(layout)
    direction = torch.randn(len(LENGTHS), 24, generator=torch.Generator().manual_seed(1))
    (encoder.features([tokens]) * direction).sum().backward()
    (mean_pooled(model, tokens) * direction).sum().backward()
    named = dict(model.named_parameters())
    for name, gradient in unflatten(layout, flat.gradient).items():
        expected = named[name.removeprefix(encoder.prefix)].grad
        # Softmax cancels the key's bias: its gradient is rounding, to be measured against the key's weight.
        scale = named[name.removeprefix(encoder.prefix).replace("key.bias", "key.weight")].grad.norm()
        assert scale > 0
        assert (gradient - expected).norm() < 1e-4 * scale, name


def test_heads_are_the_mean_of_the_prompts(folder: Path) -> None:
    maker = read_sentence_encoder(folder, BASE).head_maker()
    heads = maker.heads(["w1 w2", "w3"], ["w7 {}", "{} w8 w9"])
    model = reference(folder)
    with torch.no_grad():
        for head, name in zip(heads, ([5, 6], [7]), strict=True):
            texts = ([2, 11, *name, 3], [2, *name, 12, 13, 3])
            expected = torch.cat([mean_pooled(model, torch.tensor([ids])) for ids in texts]).mean(0)
            torch.testing.assert_close(head, F.normalize(expected, dim=0), atol=1e-5, rtol=0)
    with pytest.raises(FwvizError, match="where the class name goes"):
        maker.heads(["w1"], ["w2"])


def test_tokens_are_cut_and_not_padded(folder: Path) -> None:
    tokens = read_tokenise(folder, BASE)(["w0 w1", "w2 " * 30])
    assert tokens.tolist()[0] == [2, 4, 5, 3] + [-1] * 8
    assert tokens.tolist()[1] == [2] + [6] * 10 + [3]


def edit_config(**values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return edit


def drop(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors.pop(next(full for full in tensors if full.endswith(name)))
        save_file(tensors, folder / "model.safetensors")

    return edit


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "other model": (edit_config(model_type="t5"), "model_type 't5', but only bert, roberta"),
    "other width": (edit_config(hidden_size=48), "has shape"),
    "heads": (edit_config(num_attention_heads=5), "no multiple of num_attention_heads"),
    "text for a number": (edit_config(num_hidden_layers="3"), "num_hidden_layers is '3'"),
    "activation": (edit_config(hidden_act="swish"), "hidden_act is 'swish'"),
    "relative positions": (edit_config(position_embedding_type="relative_key"), "not absolute"),
    "eps": (edit_config(layer_norm_eps=float("nan")), "layer_norm_eps is nan"),
    "too short": (edit_config(max_position_embeddings=11), "has shape|at most"),
    "tensor missing": (drop("layer.1.output.dense.weight"), "has no tensor '.*layer.1.output.dense.weight'"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json cannot be read"),
    "tokenizer damaged": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "no valid tokenizer"),
    "foreign tokenizer": (lambda folder: write_tokenizer(folder, words=99), "does not fit the model of 40 tokens"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_folder_gives_one_sentence(name: str, folder: Path) -> None:
    damage, message = DAMAGE[name]
    damage(folder)
    with pytest.raises(FwvizError, match=message) as raised:
        read_sentence_encoder(folder, BASE).head_maker().heads(["w1", "w80"], ["{}"])
    assert "\n" not in str(raised.value)
