"""One LoRA adapter per sentence task: the encoder's matrices move at low rank, the heads stay frozen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fwviz.training.text_tasks import TextSplit, TextTask

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
MAX_TOKENS = 64
SCALE = 20.0
"""Logits are this times the cosine between a sentence and a class, as the base was trained with."""


@dataclass(frozen=True)
class AdapterPlan:
    """How one adapter is made: AdamW with a warm-up and a cosine, label smoothing as in the picture pool."""

    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = ("query", "key", "value", "attention.output.dense")
    steps: int = 150
    batch: int = 32
    rate: float = 1e-3
    smoothing: float = 0.05


def load_encoder(folder: Path) -> tuple[Any, Any]:
    """The base encoder in eval mode and its tokenizer, from a local folder."""
    from transformers import AutoModel, AutoTokenizer

    encoder = AutoModel.from_pretrained(folder, local_files_only=True, attn_implementation="sdpa")
    return encoder.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def embed(encoder: Any, tokens: dict[str, Tensor]) -> Tensor:
    """Mean of the last hidden states over a sentence's tokens, of unit length: (B, 384)."""
    hidden = encoder(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def tokenise(tokenizer: Any, texts: Sequence[str]) -> dict[str, Tensor]:
    """Token ids and mask, padded to the longest sentence."""
    return dict(
        tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt",
                  return_token_type_ids=False)
    )  # fmt: skip


@torch.no_grad()
def text_head(encoder: Any, tokenizer: Any, task: TextTask) -> Tensor:
    """Unit embeddings of the classes, each the mean over its descriptions: (classes, 384)."""
    rows = [embed(encoder, tokenise(tokenizer, [p.format(c) for p in task.prompts])).mean(0) for c in task.classes]
    return F.normalize(torch.stack(rows), dim=-1)


def batches(lengths: np.ndarray, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Rows of one batch after the other, without end; texts of a batch are of about one length.

    Padding would double the work: whole rounds of the data are shuffled, and of every eight batches in a row the rows
    are sorted by length and the batches shuffled again. lengths (N,) → arrays of ``size`` rows.
    """
    left = np.empty(0, dtype=int)
    while True:
        while len(left) < 8 * size:
            left = np.concatenate([left, rng.permutation(len(lengths))])
        rows, left = left[: 8 * size], left[8 * size :]
        sorted_rows = rows[np.argsort(lengths[rows], kind="stable")].reshape(8, size)
        yield from sorted_rows[rng.permutation(8)]


def train_adapter(
    folder: Path, task: TextTask, split: TextSplit, plan: AdapterPlan, seed: int, out: Path | None = None
) -> Any:
    """Train one PEFT LoRA adapter with the task's head frozen and, given ``out``, save it there. Returns the model.

    Only the batches depend on ``seed``, and the adapter's first factor.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    encoder, tokenizer = load_encoder(folder)
    head = text_head(encoder, tokenizer, task)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=plan.rank, lora_alpha=plan.alpha, target_modules=list(plan.targets), task_type=TaskType.FEATURE_EXTRACTION
    )
    model = get_peft_model(encoder, config).eval()
    model.peft_config["default"].base_model_name_or_path = HUB_ID  # not where it lay on this machine
    live = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(live, lr=plan.rate, weight_decay=0.0)
    rng = np.random.default_rng([seed, 2])
    labels = torch.tensor(split.labels)
    lengths = np.array(
        [len(ids) for ids in tokenizer(list(split.texts), truncation=True, max_length=MAX_TOKENS).input_ids]
    )
    warm_up = max(1, plan.steps // 15)
    for step, rows in zip(range(plan.steps), batches(lengths, plan.batch, rng), strict=False):
        share = max(0.0, step - warm_up) / (plan.steps - warm_up)
        for group in optimiser.param_groups:
            group["lr"] = plan.rate * min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * share))
        features = embed(model, tokenise(tokenizer, [split.texts[i] for i in rows]))
        loss = F.cross_entropy(SCALE * features @ head.T, labels[rows], label_smoothing=plan.smoothing)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(live, 1.0)
        optimiser.step()
    if out is not None:
        # Without the flag PEFT asks the Hub whether the vocabulary has grown.
        model.half().save_pretrained(str(out), safe_serialization=True, save_embedding_layers=False)
        model.float()
    return model
