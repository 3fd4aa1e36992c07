"""PEFT adapters as checkpoints: ΔW against PEFT's own merge, the pool against transformers, damaged folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fwviz.pools.adapters import AdapterFile, read_config
from fwviz.pools.open import Pool, open_pool
from fwviz.space.layout import build_layout, flatten, unflatten
from fwviz.space.lowrank import LowRankTaskVectors
from fwviz.tasks.data import load_split
from fwviz.tasks.evaluators import Evaluator
from fwviz.tasks.objectives import CalibrationObjective
from fwviz.types import FwvizError, TaskVectors

pytestmark = pytest.mark.filterwarnings("ignore")  # of peft and transformers, about each other


def merged_by_peft(model: Any, folder: Path) -> dict[str, Tensor]:
    """The base's weights with an adapter folded in by PEFT itself."""
    from peft import PeftModel

    state = PeftModel.from_pretrained(model, str(folder)).merge_and_unload().state_dict()
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def bert(root: Path) -> Any:
    from transformers import BertModel

    return BertModel.from_pretrained(root / "base", local_files_only=True).eval()


def test_task_vectors_are_what_peft_merges(tiny_text_pool: Pool) -> None:
    root = tiny_text_pool.card.root
    vectors = tiny_text_pool.task_vectors(tiny_text_pool.checkpoint_ids)
    assert isinstance(vectors, LowRankTaskVectors)
    assert isinstance(vectors, TaskVectors)
    for i, name in enumerate(vectors.names):
        expected = flatten(tiny_text_pool.layout, merged_by_peft(bert(root), root / "checkpoints" / name))
        found = vectors.base + vectors.vector(i)
        assert (found - vectors.base).norm() > 0.1
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_only_what_an_adapter_changes_is_merged(tiny_text_pool: Pool) -> None:
    assert "encoder.layer.0.attention.self.query.weight" in tiny_text_pool.layout.names
    excluded = tiny_text_pool.layout.excluded
    assert excluded["embeddings.word_embeddings.weight"] == "no adapter changes it"
    assert excluded["pooler.dense.weight"].startswith("outside the merged part")


def test_accuracies_are_those_of_peft(tiny_text_pool: Pool) -> None:
    """The whole chain: tokenizer, packed encoder, heads, adapter; measured when the pool was made by other code."""
    pool = tiny_text_pool
    evaluator = Evaluator(pool.backbone(), pool.card, pool.task_ids, pool.heads(pool.task_ids))
    base = evaluator.full(pool.base)
    vectors = pool.task_vectors(pool.checkpoint_ids)
    for i, task in enumerate(pool.card.tasks):
        assert base[task.id].accuracy == pytest.approx(task.accuracy["base"]["test"], abs=1e-3)
        own = evaluator.full(vectors.base + vectors.vector(i))[task.id].accuracy
        assert own == pytest.approx(task.accuracy["individual"]["test"], abs=0.011), task.id


def test_the_score_is_the_slope_along_the_adapter(tiny_text_pool: Pool) -> None:
    pool = tiny_text_pool
    data = {task: load_split(pool.card, pool.card.task(task), "calibration") for task in ("food", "time")}
    objective = CalibrationObjective(pool.backbone(), data, pool.heads(tuple(data)))
    vectors = pool.task_vectors(pool.checkpoint_ids)
    groups = pool.layout.groups("model")
    _, gradient = objective.gradient(pool.base)
    scores = vectors.scores(gradient, groups)[0]
    for i in range(vectors.n):
        step = 0.02
        ahead, behind = (
            objective.losses(pool.base + sign * step * vectors.vector(i)).double().mean() for sign in (1, -1)
        )
        assert float(scores[i]) == pytest.approx(float(ahead - behind) / (2 * step), rel=0.05, abs=2e-3)
    assert scores.abs().max() > 0.01


def test_texts_are_read_once(tiny_text_pool: Pool) -> None:
    card = tiny_text_pool.card
    first = load_split(card, card.task("food"), "calibration")
    assert load_split(card, card.task("food"), "calibration") is first
    assert first.inputs.dtype == torch.int32
    assert first.inputs.shape[0] == 48
    assert bool((first.inputs[:, 0] == 2).all())


@pytest.mark.parametrize("kind", ["conv1d", "embedding", "bias", "ia3", "prefixed"])
def test_other_kinds_of_adapter_equal_peft(kind: str, tmp_path: Path) -> None:
    """GPT-2's transposed matrices, embeddings, trained biases, IA3, and an adapter trained inside a whole model."""
    from peft import IA3Config, LoraConfig, TaskType, get_peft_model
    from transformers import BertConfig, BertForSequenceClassification, BertModel, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    size = {
        "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 30,
    }  # fmt: skip
    whole = BertForSequenceClassification(BertConfig(**size))
    model: Any = BertModel(BertConfig(**size))
    if kind == "conv1d":
        model = GPT2LMHeadModel(GPT2Config(n_embd=12, n_layer=2, n_head=2, vocab_size=30, n_positions=8))
        config: Any = LoraConfig(r=2, lora_alpha=5, target_modules=["c_attn", "attn.c_proj"], fan_in_fan_out=True)
    elif kind == "embedding":
        config = LoraConfig(r=2, lora_alpha=5, target_modules=["word_embeddings", "query"])
    elif kind == "bias":
        config = LoraConfig(r=2, lora_alpha=5, target_modules=["query"], bias="lora_only")
    elif kind == "ia3":
        config = IA3Config(
            target_modules=["key", "value", "intermediate.dense"], feedforward_modules=["intermediate.dense"]
        )
    else:
        config = LoraConfig(r=2, lora_alpha=5, target_modules=["query"], task_type=TaskType.SEQ_CLS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # new models have zeros there, which no factor can change
                parameter.copy_(torch.randn_like(parameter))
    whole.bert.load_state_dict(model.state_dict() if kind == "prefixed" else whole.bert.state_dict())
    base = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    adapted = get_peft_model(whole if kind == "prefixed" else model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad or (kind == "bias" and name.endswith("query.bias")):
                parameter.add_(torch.randn_like(parameter), alpha=0.5)
    adapted.save_pretrained(tmp_path)
    state = adapted.merge_and_unload().state_dict()
    expected = {name: state.get(name, state.get(f"bert.{name}")) for name in base}

    shapes = {name: tuple(tensor.shape) for name, tensor in base.items()}
    parts = AdapterFile(tmp_path, shapes).read(base)
    layout = build_layout({name: shape for name, shape in shapes.items() if base[name].is_floating_point()})
    vectors = LowRankTaskVectors(layout, ["x"], flatten(layout, base), [parts])
    found = unflatten(layout, vectors.combine(torch.ones(1, 1), layout.groups("model")))
    assert parts
    for name in layout.names:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5, msg=name)
        assert (name in parts) == (not torch.equal(expected[name], base[name])), name


# --- damaged folders ----------------------------------------------------------------------------

QUERY = "base_model.model.encoder.layer.0.attention.self.query"


def edit_config(**values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "adapter_config.json"
        kept = json.loads(file.read_text()) | values
        file.write_text(json.dumps({key: value for key, value in kept.items() if value != "drop"}))

    return edit


def edit_tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")

    return edit


def poison(tensors: dict[str, Tensor]) -> None:
    tensors[f"{QUERY}.lora_B.weight"][0, 0] = float("nan")


def pickle(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    torch.save(tensors, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no JSON": (lambda folder: (folder / "adapter_config.json").write_text("{"), "no valid JSON"),
    "a list": (lambda folder: (folder / "adapter_config.json").write_text("[]"), "no JSON object"),
    "prefix tuning": (edit_config(peft_type="PREFIX_TUNING"), "kind 'PREFIX_TUNING', but only LORA and IA3"),
    "no kind": (edit_config(peft_type="drop"), "kind 'unknown'"),
    "DoRA": (edit_config(use_dora=True), "uses use_dora.*merge_and_unload"),
    "PiSSA": (edit_config(init_lora_weights="pissa_niter_4"), "initialised by pissa.*changes the base"),
    "no rank": (edit_config(r=None), "r is None, but must be a whole number"),
    "rank as text": (edit_config(r="4"), "r is '4'"),
    "rank zero": (edit_config(r=0), "r is 0"),
    "another rank": (edit_config(r=8), "have ranks 4 and 4, but adapter_config.json says 8"),
    "alpha": (edit_config(lora_alpha=float("inf")), "lora_alpha is inf"),
    "flag": (edit_config(use_rslora="yes"), "use_rslora is 'yes'"),
    "pattern": (edit_config(rank_pattern={"(": 2}), "no regular expression"),
    "slow pattern": (edit_config(alpha_pattern={"(a+)+b": 2}), "too intricate"),
    "pattern as list": (edit_config(rank_pattern=[1]), "must be a table"),
    "flipped": (edit_config(fan_in_fan_out=True), "adapter of another model|is 48 x 32"),
    "NaN": (edit_tensors(poison), "NaN or infinity"),
    "half a pair": (edit_tensors(lambda t: t.pop(f"{QUERY}.lora_A.weight")), "has only lora_B"),
    "unknown module": (
        edit_tensors(lambda t: t.update({k.replace("layer.0", "layer.7"): v.clone() for k, v in t.items()})),
        "which the base lacks",
    ),
    "unknown tensor": (edit_tensors(lambda t: t.update(extra=torch.zeros(2))), "'extra' that the base lacks"),
    "whole numbers": (
        edit_tensors(lambda t: t.update({f"{QUERY}.lora_A.weight": torch.zeros(4, 32, dtype=torch.int32)})),
        "torch.int32",
    ),
    "other width": (
        edit_tensors(lambda t: t.update({f"{QUERY}.lora_A.weight": torch.zeros(4, 30)})),
        "32 x 30, but the base's tensor has shape",
    ),
    "a cube": (
        edit_tensors(lambda t: t.update({f"{QUERY}.lora_A.weight": torch.zeros(4, 32, 1)})),
        "no pair of matrices",
    ),
    "nothing in it": (edit_tensors(lambda t: t.clear()), "changes nothing"),
    "cut off": (
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(
            (folder / "adapter_model.safetensors").read_bytes()[:-3]
        ),
        "cut off|ends at|end at",
    ),
    "pickle": (pickle, "is a pickle, which can run code.*save_pretrained"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "cannot be opened"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_adapter_gives_one_sentence(name: str, text_pool_copy: Any) -> None:
    damage, message = DAMAGE[name]
    folder = text_pool_copy.root / "checkpoints" / ("place" if name == "flipped" else "food")
    damage(folder)
    if (folder / "adapter_model.safetensors").exists():
        text_pool_copy.seal()
    with pytest.raises(FwvizError, match=message) as raised:
        open_pool(text_pool_copy.root).task_vectors(["mood", "food", "place"])
    assert "\n" not in str(raised.value)


def test_scales_follow_the_patterns(tiny_text_pool_path: Path) -> None:
    config = read_config(tiny_text_pool_path / "checkpoints" / "place")
    assert config.scale_of("encoder.layer.0.attention.self.query", 4) == 2.0
    assert config.scale_of("encoder.layer.1.attention.self.query", 4) == 0.5
    assert config.rank_of("encoder.layer.1.attention.output.dense") == 1
    assert read_config(tiny_text_pool_path / "checkpoints" / "mood").scale_of("x", 2) == pytest.approx(3 / 2**0.5)


def test_half_precision_factors(tiny_text_pool: Pool) -> None:
    exact = tiny_text_pool.task_vectors(["food"])
    half = tiny_text_pool.task_vectors(["food"], dtype=torch.bfloat16)
    assert not torch.equal(half.vector(0), exact.vector(0))
    assert (half.vector(0) - exact.vector(0)).norm() < 0.01 * exact.vector(0).norm()
