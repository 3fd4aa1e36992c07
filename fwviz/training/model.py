"""The small CLIP: one shape, plain Hugging Face classes, and the two encodings that everything else uses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

IMAGE_SIZE, PATCH, WIDTH, LAYERS, HEADS, PROJECTION = 32, 8, 128, 4, 4, 128
TEXT_LAYERS = 2


def new_clip(tokenizer: Any, seed: int) -> Any:
    """Build an untrained ``CLIPModel`` for 32×32 images: 17 tokens of width 128 through four blocks."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    config = CLIPConfig(
        vision_config={
            **_blocks(LAYERS),
            "image_size": IMAGE_SIZE, "patch_size": PATCH,
        },
        text_config={
            **_blocks(TEXT_LAYERS),
            "vocab_size": len(tokenizer), "max_position_embeddings": 24,
            "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        projection_dim=PROJECTION,
    )  # fmt: skip
    return CLIPModel(config)


def _blocks(layers: int) -> dict[str, Any]:
    return {
        "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": layers,
        "num_attention_heads": HEADS, "projection_dim": PROJECTION, "hidden_act": "gelu",
    }  # fmt: skip


def initialise_patches(model: Any, images: Tensor) -> None:
    """Start the patch embedding from the whitened principal components of real patches.

    A plain patch embedding learns slowly; whitened components hand the first block every detail at equal strength.

    Args:
        model: an untrained CLIPModel.
        images: (n, 3, 32, 32) normalised images.
    """
    patches = torch.nn.functional.unfold(images, PATCH, stride=PATCH).transpose(1, 2).reshape(-1, 3 * PATCH * PATCH)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    values, vectors = values.flip(0)[:WIDTH], vectors.flip(1)[:, :WIDTH]
    filters = (vectors / (values + 0.05 * values.mean()).sqrt()).T
    embeddings = model.vision_model.embeddings
    with torch.no_grad():
        embeddings.patch_embedding.weight.copy_(0.5 * filters.reshape(WIDTH, 3, PATCH, PATCH))
        embeddings.position_embedding.weight.normal_(std=0.2)
        embeddings.class_embedding.normal_(std=0.2)


def encode_images(model: Any, pixels: Tensor) -> Tensor:
    """(n, 3, 32, 32) normalised pixels → (n, 128) unit embeddings; works for CLIPModel and its vision model alone."""
    pooled = model.vision_model(pixel_values=pixels).pooler_output
    return torch.nn.functional.normalize(model.visual_projection(pooled), dim=-1)


def encode_tokens(model: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    """(n, t) token ids and mask → (n, 128) unit text embeddings."""
    pooled = model.text_model(input_ids=tokens, attention_mask=mask).pooler_output
    return torch.nn.functional.normalize(model.text_projection(pooled), dim=-1)


@torch.no_grad()
def zero_shot_head(model: Any, tokenizer: Any, classes: Sequence[str], prompts: Sequence[str]) -> Tensor:
    """Per class, the mean of its unit prompt embeddings, made unit again: (classes, 128)."""
    rows = []
    for template in prompts:
        texts = [template.format(name) for name in classes]
        batch = tokenizer(texts, padding=True, truncation=True, max_length=24, return_tensors="pt")
        rows.append(encode_tokens(model, batch["input_ids"], batch["attention_mask"]))
    return torch.nn.functional.normalize(torch.stack(rows).mean(0), dim=-1)


def load_clip(folder: Path) -> tuple[Any, Any]:
    """Load a saved base in float32 with its tokenizer."""
    from transformers import AutoTokenizer, CLIPModel

    return CLIPModel.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)
