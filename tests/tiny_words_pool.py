"""Pools of models that answer in words, small enough for tests: tiny T5, GPT-2 and LLaMA, trained and saved for real.

Three tasks: a choice between two words, a free answer of two words, a number in words. Checkpoints are whole models or
PEFT adapters (LoRA, IA3). Nothing here imports fwviz, so that a mistake in the package cannot hide in its own fixture.
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

ROWS = {"calibration": 16, "validation": 12, "test": 24}
TOKENS, ANSWER = 12, 4
GOOD, BAD = ("fine", "nice", "great"), ("poor", "sad", "weak")
NOUNS = ("film", "book", "play", "song")
NUMBERS = ("0.0", "1.0", "2.0", "3.0")
CLASSES: dict[str, tuple[str, ...]] = {"mood": ("bad", "good"), "repeat": (), "count": ()}
METRICS = {"mood": "accuracy", "repeat": "rouge", "count": "spearman"}
INCLUDE = {"t5": ["encoder.", "decoder.", "shared."], "gpt2": ["transformer."], "llama": ["model.", "lm_head."]}
LORA = {"t5": ["q", "v"], "gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"]}
IA3 = {
    "t5": (["k", "v", "wo"], ["wo"]),
    "gpt2": (["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
    "llama": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
}


def write_tokenizer(folder: Path) -> dict[str, int]:
    """A token per word; the end mark is behind a prompt for T5 only, which asks for it itself."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    words = ["<pad>", "</s>", "<unk>", ":", "the", "was", "mood", "repeat", "count", "bad", "good"]
    vocabulary = {word: i for i, word in enumerate([*words, *GOOD, *BAD, *NOUNS, *NUMBERS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return vocabulary


def make_config(kind: str, size: int) -> Any:
    from transformers import GPT2Config, LlamaConfig, T5Config

    if kind == "t5":
        return T5Config(
            vocab_size=size, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3, decoder_start_token_id=0,
            dropout_rate=0.0, initializer_factor=1.0,
        )  # fmt: skip
    if kind == "gpt2":
        return GPT2Config(
            vocab_size=size, n_embd=24, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=1,
            initializer_range=0.2,
        )  # fmt: skip
    return LlamaConfig(
        vocab_size=size, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, bos_token_id=1, eos_token_id=1, initializer_range=0.2,
    )  # fmt: skip


def auto_class(kind: str) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM


def draw(task: str, rows: int, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Prompts and right answers."""
    prompts, answers = [], []
    for row in range(rows):
        nouns = [str(n) for n in rng.choice(NOUNS, int(rng.integers(1, 3)), replace=False)]
        if task == "mood":
            prompts.append(f"mood : the {nouns[0]} was {rng.choice(GOOD if row % 2 else BAD)}")
            answers.append("good" if row % 2 else "bad")
        elif task == "repeat":
            prompts.append(f"repeat : the {' '.join(nouns)}")
            answers.append(" ".join(nouns))
        else:
            many = row % 4
            prompts.append("count : " + " ".join(["the", *rng.choice(GOOD, many)]))
            answers.append(NUMBERS[many])
    return prompts, answers


def loss_of(model: Any, kind: str, vocabulary: dict[str, int], prompts: list[str], answers: list[str]) -> Any:
    """Mean over samples of the mean −ln p of an answer's tokens, sample by sample without padding."""
    total = torch.zeros(())
    for prompt, answer in zip(prompts, answers, strict=True):
        asked = torch.tensor([[vocabulary[word] for word in prompt.split()]])
        said = torch.tensor([[*(vocabulary[word] for word in answer.split()), 1]])
        if kind == "t5":
            total = total + model(input_ids=asked, labels=said).loss
        else:
            row = torch.cat([asked, said], dim=1)
            labels = torch.cat([torch.full_like(asked, -100), said], dim=1)
            total = total + model(input_ids=row, labels=labels).loss
    return total / len(prompts)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_tiny_words_pool(root: Path, kind: str, form: str, seed: int = 0, updates: int = 12) -> Path:
    """Train and write the pool into ``root``; the global random state is as before afterwards."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        return _make(root, kind, form, updates, np.random.default_rng(seed))


def _adapted(model: Any, kind: str, form: str, rank: int) -> Any:
    from peft import IA3Config, LoraConfig, get_peft_model

    if form == "full":
        return model
    task_type = "SEQ_2_SEQ_LM" if kind == "t5" else "CAUSAL_LM"
    flipped = kind == "gpt2"
    if form == "lora":
        config: Any = LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules=LORA[kind], fan_in_fan_out=flipped, task_type=task_type
        )
    else:
        targets, forward = IA3[kind]
        config = IA3Config(
            target_modules=targets, feedforward_modules=forward, fan_in_fan_out=flipped, task_type=task_type
        )
    return get_peft_model(model, config)


def _make(root: Path, kind: str, form: str, updates: int, rng: np.random.Generator) -> Path:
    folder = root / "base"
    folder.mkdir(parents=True)
    vocabulary = write_tokenizer(folder)
    auto_class(kind).from_config(make_config(kind, len(vocabulary))).save_pretrained(folder)
    weights = "model.safetensors" if form == "full" else "adapter_model.safetensors"
    for i, task in enumerate(CLASSES):
        model = _adapted(auto_class(kind).from_pretrained(folder), kind, form, 2 + i).train()
        live = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimiser = torch.optim.AdamW(live, lr=5e-3 if form == "full" else 5e-2)
        for _ in range(updates):
            loss = loss_of(model, kind, vocabulary, *draw(task, 4, rng))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        model.save_pretrained(root / "checkpoints" / task)
    splits = {}
    for task, classes in CLASSES.items():
        for split, rows in ROWS.items():
            prompts, answers = draw(task, rows, rng)
            path = root / "tasks" / task / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            column = {"label": pa.array([classes.index(a) for a in answers])} if classes else {"answer": answers}
            pq.write_table(pa.table({"text": prompts, **column}), path)
            splits[task, split] = {
                "path": f"tasks/{task}/{split}.parquet", "rows": rows, "sha256": sha256(path),
            }  # fmt: skip
    card = {
        "format": 1,
        "id": f"tiny_{kind}_{form}",
        "title": f"Tiny {kind}, {form}",
        "summary": "Three tasks answered in words.",
        "family": "seq2seq" if kind == "t5" else "causal_lm",
        "base": {
            "path": "base", "sha256": sha256(folder / "model.safetensors"), "parameters": 1, "tokens": TOKENS,
            "answer_tokens": ANSWER, "licence": "Apache-2.0",
        },
        "merge": {"include": INCLUDE[kind], "exclude": []},
        "checkpoints": [
            {
                "id": task, "title": task, "path": f"checkpoints/{task}", "task": task, "kind": "own",
                "sha256": sha256(root / "checkpoints" / task / weights),
                "accuracy": {"validation": 0.5, "test": 0.5},
            }
            for task in CLASSES
        ],
        "tasks": [
            {
                "id": task, "title": task, "question": f"What {task}?", "metric": METRICS[task],
                **({"classes": list(classes)} if classes else {}),
                "splits": {split: splits[task, split] for split in ROWS},
                "chance": 0.0, "source": "drawn by the test suite", "licence": "Apache-2.0",
                "accuracy": {row: {"validation": 0.4, "test": 0.4} for row in ("base", "individual")},
            }
            for task, classes in CLASSES.items()
        ],
        "default": {"tasks": list(CLASSES), "checkpoints": list(CLASSES)},
    }  # fmt: skip
    (root / "pool.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    return root
