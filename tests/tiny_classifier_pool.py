"""A pool of sequence classifiers small enough for tests: a tiny RoBERTa or BERT, really fine-tuned by transformers.

Three tasks with classifiers of their own: two classes of one text, three classes of a pair, a number. Nothing here
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
from torch.nn import functional as F

ROWS = {"calibration": 32, "validation": 24, "test": 64}
TOKENS = 14
GOOD, BAD = ("fine", "good", "great", "nice"), ("bad", "poor", "sad", "weak")
FILLER = ("the", "a", "film", "book", "was", "very", "it", "is", "and", "then")
CLASSES = {"mood": ("bad", "good"), "pair": ("same", "other", "mixed"), "degree": ()}
Sample = tuple[str, str | None]


def write_tokenizer(folder: Path, kind: str) -> dict[str, int]:
    """A token per word; marks and types of pairs as RoBERTa or BERT has them."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing

    marks = ["<s>", "<pad>", "</s>", "<unk>"] if kind == "roberta" else ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    vocabulary = {word: index for index, word in enumerate([*marks, *FILLER, *GOOD, *BAD])}
    start, end = ("<s>", "</s>") if kind == "roberta" else ("[CLS]", "[SEP]")
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=marks[3]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    pair = f"{start} $A {end} {end} $B {end}" if kind == "roberta" else f"{start} $A {end} $B:1 {end}:1"
    tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A {end}", pair=pair, special_tokens=[(m, vocabulary[m]) for m in (start, end)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return vocabulary


def make_config(kind: str, size: int) -> Any:
    from transformers import BertConfig, RobertaConfig

    shape = {
        "vocab_size": size, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 48, "max_position_embeddings": 24, "initializer_range": 0.15,
    }  # fmt: skip
    if kind == "roberta":
        return RobertaConfig(**shape, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2)
    return BertConfig(**shape, pad_token_id=0)


def draw(task: str, rows: int, rng: np.random.Generator) -> tuple[list[Sample], list[float]]:
    """Texts, or pairs, whose label can be read off their words."""
    samples: list[Sample] = []
    labels: list[float] = []
    for row in range(rows):

        def text(good: int, bad: int) -> str:
            words = [*rng.choice(GOOD, good), *rng.choice(BAD, bad), *rng.choice(FILLER, 4 - good - bad)]
            return " ".join(rng.permutation(words))

        if task == "mood":
            labels.append(row % 2)
            samples.append((text(2 * (row % 2), 2 - 2 * (row % 2)), None))
        elif task == "degree":
            good = int(rng.integers(5))
            labels.append(good / 2)
            samples.append((text(good, 0), text(0, 0)))
        else:
            first = int(rng.integers(2))
            second = {0: first, 1: 1 - first, 2: 2}[row % 3]
            labels.append(row % 3)
            pair = [text(0, 0) if side == 2 else text(2 * side, 2 - 2 * side) for side in (first, second)]
            samples.append((pair[0], pair[1]))
    return samples, labels


def encode(folder: Path, samples: list[Sample]) -> dict[str, torch.Tensor]:
    """What transformers' models take."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    coded = tokenizer.encode_batch([text if pair is None else (text, pair) for text, pair in samples])
    longest = max(len(e.ids) for e in coded)
    pad = 1 if tokenizer.token_to_id("<pad>") is not None else 0

    def rows(values: list[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([row + [fill] * (longest - len(row)) for row in values])

    found = {
        "input_ids": rows([e.ids for e in coded], pad),
        "attention_mask": rows([[1] * len(e.ids) for e in coded], 0),
    }
    if pad == 0:
        found["token_type_ids"] = rows([e.type_ids for e in coded], 0)
    return found


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_tiny_classifier_pool(root: Path, kind: str = "roberta", form: str = "full", seed: int = 0) -> Path:
    """Train and write the pool into ``root``; the global random state is as before afterwards.

    ``form`` "lora" saves PEFT adapters, which keep their classifier beside them.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        return _make(root, kind, form, np.random.default_rng(seed))


def _make(root: Path, kind: str, form: str, rng: np.random.Generator) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel, AutoModelForSequenceClassification

    folder = root / "base"
    folder.mkdir(parents=True)
    config = make_config(kind, len(write_tokenizer(folder, kind)))
    AutoModel.from_config(config).save_pretrained(folder)
    splits = {(task, split): draw(task, rows, rng) for task in CLASSES for split, rows in ROWS.items()}
    for task, classes in CLASSES.items():
        names = {"id2label": dict(enumerate(classes)), "label2id": {c: i for i, c in enumerate(classes)}}
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=max(len(classes), 1), **(names if classes else {})
        )
        if form == "lora":
            model = get_peft_model(
                model, LoraConfig(r=3, lora_alpha=6, target_modules=["query", "value"], task_type="SEQ_CLS")
            )
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
        samples, labels = draw(task, 192, rng)
        inputs = encode(folder, samples)
        for _ in range(60):
            rows = torch.randint(len(labels), (32,))
            logits = model(**{key: value[rows] for key, value in inputs.items()}).logits
            wanted = torch.tensor(labels)[rows]
            loss = F.cross_entropy(logits, wanted.long()) if classes else F.mse_loss(logits[:, 0], wanted)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        model.save_pretrained(root / "checkpoints" / task)
    for (task, split), (samples, labels) in splits.items():
        path = root / "tasks" / task / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        label = pa.array([int(v) for v in labels], pa.int64()) if CLASSES[task] else pa.array(labels, pa.float64())
        columns = {"text": [text for text, _ in samples], "label": label}
        if any(pair is not None for _, pair in samples):
            columns["text_pair"] = [pair for _, pair in samples]
        pq.write_table(pa.table(columns), path)
    weights = "model.safetensors" if form == "full" else "adapter_model.safetensors"
    card = {
        "format": 1,
        "id": f"tiny_{kind}",
        "title": f"Tiny {kind}",
        "summary": "Three tasks with classifiers of their own, trained in seconds for the tests.",
        "family": "sequence_classifier",
        "base": {
            "path": "base",
            "sha256": sha256(folder / "model.safetensors"),
            "parameters": 1,
            "tokens": TOKENS,
            "licence": "Apache-2.0",
        },
        "merge": {"include": ["embeddings.", "encoder."], "exclude": []},
        "checkpoints": [
            {
                "id": task,
                "title": task,
                "path": f"checkpoints/{task}",
                "sha256": sha256(root / "checkpoints" / task / weights),
                "task": task,
                "kind": "own",
                "accuracy": {"validation": 0.5, "test": 0.5},
            }
            for task in CLASSES
        ],
        "tasks": [
            {
                "id": task,
                "title": task,
                "question": f"Which {task}?",
                **({"classes": list(classes)} if classes else {"metric": "pearson_spearman"}),
                "splits": {
                    split: {
                        "path": f"tasks/{task}/{split}.parquet",
                        "rows": rows,
                        "sha256": sha256(root / "tasks" / task / f"{split}.parquet"),
                    }
                    for split, rows in ROWS.items()
                },
                "chance": 0.3,
                "accuracy": {row: {"validation": 0.4, "test": 0.4} for row in ("base", "individual")},
                "source": "drawn by the test suite",
                "licence": "Apache-2.0",
            }
            for task, classes in CLASSES.items()
        ],
        "default": {"tasks": list(CLASSES), "checkpoints": list(CLASSES)},
    }
    (root / "pool.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    return root
