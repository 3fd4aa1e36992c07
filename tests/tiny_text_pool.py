"""A pool of sentence tasks small enough for tests: a tiny BERT, PEFT adapters really trained on it, texts in parquet.

Its four LoRA adapters differ in all they may: rank, alpha, rank-stabilised scaling, patterns, modules. Nothing here
imports fwviz, so that a mistake in the package cannot hide in its own fixture.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

ROWS = {"calibration": 48, "validation": 48, "test": 96}
TOKENS, SCALE = 12, 12.0
PROMPTS = ("it is {}", "{} here")
# Class → words of which a text of the class holds two; the rest of the text is filler.
WORDS = {
    "food": {"fruit": ("apple", "plum", "fig"), "bread": ("loaf", "bun", "crust"), "drink": ("tea", "milk", "cider")},
    "mood": {"glad": ("smile", "laugh", "cheer"), "sad": ("weep", "sigh", "mourn")},
    "place": {"sea": ("wave", "shore", "tide"), "wood": ("oak", "moss", "fern"), "town": ("street", "roof", "shop")},
    "time": {"day": ("noon", "sun", "light"), "night": ("moon", "star", "dark")},
}
FILLER = ("the", "a", "of", "and", "was", "very", "one", "some", "near", "then", "with", "it", "is", "here")
ADAPTERS: dict[str, dict[str, Any]] = {
    "food": {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]},
    "mood": {"r": 2, "lora_alpha": 3, "target_modules": ["query", "key", "value"], "use_rslora": True},
    "place": {
        "r": 4, "lora_alpha": 8, "target_modules": ["query", "attention.output.dense", "intermediate.dense"],
        "rank_pattern": {"attention.output.dense": 1}, "alpha_pattern": {"layer.1.attention.self.query": 2},
    },
    "time": {"r": 3, "lora_alpha": 6, "target_modules": "all-linear"},
}  # fmt: skip


def write_tokenizer(folder: Path) -> dict[str, int]:
    """A token per word, [CLS] and [SEP] around each text."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing

    words = [word for classes in WORDS.values() for name, inside in classes.items() for word in (name, *inside)]
    listed = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys([*FILLER, *words])]
    vocabulary = {word: index for index, word in enumerate(listed)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return vocabulary


def draw(task: str, count: int, rng: np.random.Generator) -> tuple[list[str], list[int]]:
    """Texts of 3 to 9 words with balanced labels."""
    classes = list(WORDS[task].values())
    labels = [int(x) for x in rng.permutation(np.arange(count) % len(classes))]
    texts = []
    for label in labels:
        words = [*rng.choice(classes[label], 2), *rng.choice(FILLER, rng.integers(1, 8))]
        texts.append(" ".join(str(word) for word in rng.permutation(words)))
    return texts, labels


def encode(texts: list[str], vocabulary: dict[str, int]) -> dict[str, Tensor]:
    ids = [[2, *(vocabulary[word] for word in text.split()), 3][:TOKENS] for text in texts]
    longest = max(map(len, ids))
    return {
        "input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in ids]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids]),
    }


def embed(model: Any, texts: list[str], vocabulary: dict[str, int]) -> Tensor:
    tokens = encode(texts, vocabulary)
    mask = tokens["attention_mask"][..., None]
    return F.normalize((model(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1), dim=-1)


def heads_of(model: Any, task: str, vocabulary: dict[str, int]) -> Tensor:
    names = list(WORDS[task])
    rows = embed(model, [prompt.replace("{}", name) for name in names for prompt in PROMPTS], vocabulary)
    return F.normalize(rows.unflatten(0, (len(names), -1)).mean(1), dim=-1)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_tiny_text_pool(root: Path, seed: int = 0) -> Path:
    """Train and write the pool into ``root``; the global random state is as before afterwards."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft and transformers, about each other
        torch.manual_seed(seed)
        return _make(root, seed)


def _make(root: Path, seed: int) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import BertConfig, BertModel

    rng = np.random.default_rng(seed)
    base_folder = root / "base"
    base_folder.mkdir(parents=True)
    vocabulary = write_tokenizer(base_folder)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=16, initializer_range=0.2,
    )  # fmt: skip
    BertModel(config).save_pretrained(base_folder)
    splits = {(task, split): draw(task, rows, rng) for task in WORDS for split, rows in ROWS.items()}

    def load() -> Any:
        return BertModel.from_pretrained(base_folder, local_files_only=True).eval()

    def accuracy(model: Any, task: str) -> dict[str, float]:
        with torch.no_grad():
            return {
                split: round(float((embed(model, splits[task, split][0], vocabulary) @ heads[task].T).argmax(-1)
                    .eq(torch.tensor(splits[task, split][1])).float().mean()), 4)
                for split in ("validation", "test")
            }  # fmt: skip

    base = load()
    with torch.no_grad():
        heads = {task: heads_of(base, task, vocabulary) for task in WORDS}
    own: dict[str, dict[str, float]] = {}
    for task, values in ADAPTERS.items():
        model = get_peft_model(load(), LoraConfig(**values))
        live = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimiser = torch.optim.AdamW(live, lr=2e-2)
        texts, labels = draw(task, 256, rng)
        for _ in range(25):
            rows = torch.randint(256, (32,)).tolist()
            logits = SCALE * embed(model, [texts[i] for i in rows], vocabulary) @ heads[task].T
            loss = F.cross_entropy(logits, torch.tensor([labels[i] for i in rows]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        model.save_pretrained(root / "checkpoints" / task)
        own[task] = accuracy(model, task)
    for (task, split), (texts, labels) in splits.items():
        path = root / "tasks" / task / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": texts, "label": pa.array(labels, pa.int64())}), path)

    card = {
        "format": 1,
        "id": "tiny_text",
        "title": "Tiny sentences",
        "summary": "Four word tasks and a LoRA adapter for each, trained in seconds for the tests.",
        "family": "sentence_encoder",
        "base": {
            "path": "base",
            "sha256": sha256(base_folder / "model.safetensors"),
            "parameters": sum(p.numel() for p in base.parameters()),
            "tokens": TOKENS,
            "scale": SCALE,
            "licence": "Apache-2.0",
        },
        "merge": {"include": ["embeddings.", "encoder."], "exclude": []},
        "checkpoints": [
            {
                "id": task,
                "title": task.capitalize(),
                "path": f"checkpoints/{task}",
                "sha256": sha256(root / "checkpoints" / task / "adapter_model.safetensors"),
                "task": task,
                "kind": "own",
                "accuracy": dict(own[task]),
            }
            for task in WORDS
        ],
        "tasks": [
            {
                "id": task,
                "title": task.capitalize(),
                "question": f"Which {task}?",
                "classes": list(WORDS[task]),
                "prompts": list(PROMPTS),
                "splits": {
                    split: {
                        "path": f"tasks/{task}/{split}.parquet",
                        "rows": ROWS[split],
                        "sha256": sha256(root / "tasks" / task / f"{split}.parquet"),
                    }
                    for split in ROWS
                },
                "chance": round(1 / len(WORDS[task]), 4),
                "accuracy": {"base": accuracy(base, task), "individual": dict(own[task])},
                "source": "drawn by the test suite",
                "licence": "Apache-2.0",
            }
            for task in WORDS
        ],
        "default": {"tasks": ["food", "mood"], "checkpoints": list(WORDS)},
    }
    (root / "pool.yaml").write_text(yaml.safe_dump(card, sort_keys=False, allow_unicode=True))
    return root
