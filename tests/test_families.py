"""Family × format: loaded, merged by the command line, exported, reloaded by the original library with equal logits.

``python -m pytest -m slow -v tests/test_families.py`` prints the table, a row a case.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from fwviz.backbones.family import Classifier
from fwviz.backbones.open_clip import to_open_clip
from fwviz.cli import main
from fwviz.pools.open import Pool, open_pool
from fwviz.tasks.data import load_split
from tests import tiny_classifier_pool, tiny_text_pool, tiny_words_pool
from tests.backbones.test_open_clip import CONFIG, open_clip_features, replace_by_open_clip, save_open_clip, seal

# Warnings are of the libraries, about each other.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SCALE = 0.4
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def merge(root: Path, folder: Path, format: str | None = None) -> Path:
    """``fwviz merge --out``: all checkpoints of the pool with one coefficient."""
    line = ["merge", "--pool", str(root), "--method", "task_arithmetic", "--set", f"scale={SCALE}"]
    line += ["--checkpoints", "all", "--tasks", "all", "--out", str(folder), "--runs", str(folder) + ".runs"]
    assert main([*line, *(["--format", format] if format else [])]) == 0
    return folder


def merged_theta(pool: Pool) -> Tensor:
    """θ₀ + λ Σ τᵢ, added up here."""
    vectors = pool.task_vectors(pool.checkpoint_ids)
    return pool.base + SCALE * sum(vectors.vector(i) for i in range(vectors.n))


def own_features(pool: Pool, task: str) -> Tensor:
    """By fwviz, at the merged weights."""
    backbone = pool.backbone()
    assert backbone.flat is not None
    backbone.flat.load(merged_theta(pool))
    with torch.no_grad():
        return backbone.features([load_split(pool.card, pool.card.task(task), "test").inputs])


# --- images -------------------------------------------------------------------------------------


@pytest.mark.parametrize("saved_by", ["transformers", "open_clip"])
def test_clip(saved_by: str, pool_copy: Any, tmp_path: Path) -> None:
    """Out as CLIPModel, as its image tower, and back under open_clip's names."""
    from transformers import CLIPModel, CLIPVisionModelWithProjection

    if saved_by == "open_clip":
        replace_by_open_clip(pool_copy.root / "checkpoints" / "shape")
        seal(pool_copy)
    pool = open_pool(pool_copy.root)
    features = own_features(pool, "shape")
    images = load_split(pool.card, pool.card.task("shape"), "test").inputs
    pixels = images.float().div(255).sub(0.5).div(0.5)
    head = pool.heads(["shape"])["shape"]
    assert isinstance(head, Tensor)
    with torch.no_grad():
        whole = CLIPModel.from_pretrained(merge(pool_copy.root, tmp_path / "clip")).eval()
        found = F.normalize(whole.get_image_features(pixel_values=pixels, return_dict=True).pooler_output, dim=-1)
        torch.testing.assert_close(found @ head.T, features @ head.T, **CLOSE)
        tower = CLIPVisionModelWithProjection.from_pretrained(merge(pool_copy.root, tmp_path / "v", "vision_model"))
        found = F.normalize(tower.eval()(pixel_values=pixels).image_embeds, dim=-1)
        torch.testing.assert_close(found @ head.T, features @ head.T, **CLOSE)
    tensors = save_open_clip(
        tmp_path / "open_clip", CONFIG | {"quick_gelu": whole.config.vision_config.hidden_act == "quick_gelu"}
    )
    back = to_open_clip(load_file(tmp_path / "v" / "model.safetensors"))
    save_file(tensors | back, tmp_path / "open_clip" / "open_clip_model.safetensors")
    torch.testing.assert_close(open_clip_features(tmp_path / "open_clip", pixels) @ head.T, features @ head.T, **CLOSE)


# --- texts with heads ---------------------------------------------------------------------------


def test_sentence_encoder_lora(tiny_text_pool_path: Path, tmp_path: Path) -> None:
    """Out as AutoModel and as an adapter for PEFT."""
    from peft import PeftModel
    from transformers import AutoModel

    pool = open_pool(tiny_text_pool_path)
    expected = own_features(pool, "food")
    texts = pq.read_table(tiny_text_pool_path / "tasks/food/test.parquet").to_pydict()["text"]
    words = tiny_text_pool.write_tokenizer(tmp_path)
    whole = AutoModel.from_pretrained(merge(tiny_text_pool_path, tmp_path / "whole")).eval()
    base = AutoModel.from_pretrained(pool.base_dir)
    adapted = PeftModel.from_pretrained(base, merge(tiny_text_pool_path, tmp_path / "adapter", "adapter")).eval()
    with torch.no_grad():
        for model in (whole, adapted):
            torch.testing.assert_close(tiny_text_pool.embed(model, texts, words), expected, **CLOSE)


@pytest.mark.parametrize(
    ("kind", "form"), [("roberta", "full"), ("bert", "full"), ("roberta", "lora"), ("bert", "lora")]
)
def test_sequence_classifier(kind: str, form: str, tmp_path: Path) -> None:
    """Out as AutoModelForSequenceClassification, each task with the classifier of its own checkpoint."""
    from transformers import AutoModelForSequenceClassification

    root = tiny_classifier_pool.make_tiny_classifier_pool(tmp_path / "pool", kind, form)
    pool, folder = open_pool(root), merge(root, tmp_path / "whole")
    for task, classes in tiny_classifier_pool.CLASSES.items():
        head = pool.heads([task])[task]
        assert isinstance(head, Classifier)
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=max(len(classes), 1)).eval()
        model.load_state_dict(load_file(folder / "heads" / f"{task}.safetensors"), strict=False)
        table = pq.read_table(root / "tasks" / task / "test.parquet").to_pydict()
        pairs = table.get("text_pair", [None] * len(table["text"]))
        inputs = tiny_classifier_pool.encode(pool.base_dir, list(zip(table["text"], pairs, strict=True)))
        models = [model]
        if form == "lora":
            adapter = tmp_path / "adapter"
            models.append(adapted(merge(root, adapter, "adapter") if not adapter.exists() else adapter, task, classes))
        with torch.no_grad():
            for model in models:
                torch.testing.assert_close(model(**inputs).logits, head.logits(own_features(pool, task)), **CLOSE)


def adapted(folder: Path, task: str, classes: Sequence[str]) -> Any:
    """By the lines of the export's own README, for one task."""
    text = (folder / "README.md").read_text().split("```python")[1].split("```")[0]
    own = re.sub(r"heads/\w+\.", f"heads/{task}.", text.replace("path/to/this/folder", str(folder)))
    own = own.replace('from_pretrained("base"', f'from_pretrained("{folder.parent / "pool/base"}"')
    names: dict[str, Any] = {}
    exec(re.sub(r"num_labels=\d", f"num_labels={max(len(classes), 1)}", own), names)
    return names["model"].eval()


# --- words --------------------------------------------------------------------------------------


def library_log_probs(model: Any, kind: str, words: dict[str, int], prompt: str, answer: str) -> Tensor:
    """ln p of all words at each token of an answer, by the library, one sample without padding: (L, vocabulary)."""
    asked = torch.tensor([[words[word] for word in prompt.split()]])
    said = torch.tensor([[*(words[word] for word in answer.split()), 1]])
    if kind == "t5":
        start = torch.cat([torch.zeros_like(said[:, :1]), said[:, :-1]], dim=1)
        return model(input_ids=asked, decoder_input_ids=start).logits[0].log_softmax(-1)
    logits = model(input_ids=torch.cat([asked, said], dim=1)).logits[0]
    return logits[asked.shape[1] - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize("form", ["full", "lora", "ia3"])
@pytest.mark.parametrize("kind", ["t5", "gpt2", "llama"])
def test_words(kind: str, form: str, tmp_path: Path) -> None:
    """Out as AutoModelForSeq2SeqLM or AutoModelForCausalLM, and where it is exact as an adapter for PEFT."""
    from peft import PeftModel

    root = tiny_words_pool.make_tiny_words_pool(tmp_path / "pool", kind, form, updates=2)
    pool, load = open_pool(root), tiny_words_pool.auto_class(kind).from_pretrained
    words = tiny_words_pool.write_tokenizer(tmp_path)
    models = [load(merge(root, tmp_path / "whole")).eval()]
    if form == "lora":
        adapter = merge(root, tmp_path / "adapter", "adapter")
        models.append(PeftModel.from_pretrained(load(pool.base_dir), adapter).eval())
    own: Any = pool.model()
    own.flat.load(merged_theta(pool))
    assert float((merged_theta(pool) - pool.base).abs().max()) > 1e-3
    for task, classes in tiny_words_pool.CLASSES.items():
        table = pq.read_table(root / "tasks" / task / "test.parquet").to_pydict()
        answers = [classes[label] for label in table["label"]] if classes else table["answer"]
        data = load_split(pool.card, pool.card.task(task), "test")
        with torch.no_grad():
            found, counts = own.log_probs(data.inputs, data.labels)
            for row, (prompt, answer) in enumerate(zip(table["text"], answers, strict=True)):
                said = torch.tensor([*(words[word] for word in answer.split()), 1])
                for model in models:
                    expected = library_log_probs(model, kind, words, prompt, answer).gather(1, said[:, None])[:, 0]
                    assert int(counts[row, 0]) == len(said)
                    torch.testing.assert_close(found[row, 0, : len(said)], expected, **CLOSE)
