"""A really trained pool small enough for fast tests, in exactly the on-disk format of the embedded pools.

A CLIP of 16 x 16 pixel images (patch 4, width 32, two blocks) learns four pattern tasks a little, then one checkpoint
per task learns its own task well; a fifth starts from a different base. Each step is the real thing (training,
fp16 safetensors, PNGs in parquet, hashes, measured accuracies), only small. Nothing here imports fwviz, so that a
mistake in the package cannot hide in its own fixture.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

SIDE = 16
ROWS = {"calibration": 48, "validation": 48, "test": 96}
PROMPTS = ("a picture of {}", "a small {} pattern")
CLASSES = {
    "colour": ("red", "green", "blue", "yellow"),
    "stripes": ("level stripes", "upright stripes", "slanted stripes"),
    "shape": ("square", "cross", "ring"),
    "corner": ("top left dot", "top right dot", "bottom left dot", "bottom right dot"),
}
QUESTIONS = {
    "colour": "Which colour does the patch have?",
    "stripes": "Which way do the stripes run?",
    "shape": "Which shape is drawn?",
    "corner": "In which corner lies the dot?",
}
FOREIGN = "shape_foreign"


# --- pictures -----------------------------------------------------------------------------------


def draw(task: str, label: int, rng: np.random.Generator) -> np.ndarray:
    """One (16, 16, 3) uint8 picture of class ``label`` of ``task``; everything but the class varies."""
    background = rng.uniform(0.0, 0.35, 3)
    ink = np.clip(background + rng.uniform(0.25, 0.6) + rng.uniform(-0.1, 0.25, 3), 0, 1)
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    if task == "colour":
        ink = np.array([(0.8, 0.2, 0.2), (0.2, 0.8, 0.2), (0.2, 0.2, 0.8), (0.8, 0.8, 0.2)][label])
        ink = np.clip(ink + rng.uniform(-0.2, 0.2, 3), 0, 1)
        top, left, size = rng.integers(0, 8), rng.integers(0, 8), rng.integers(5, 9)
        mask = (y >= top) & (y < top + size) & (x >= left) & (x < left + size)
    elif task == "stripes":
        along = (y, x, x + y)[label]
        mask = np.sin(2 * np.pi * along / rng.uniform(3.5, 6.0) + rng.uniform(0, 6.3)) > rng.uniform(-0.2, 0.4)
    elif task == "shape":
        dy, dx = y - rng.uniform(5.5, 9.5), x - rng.uniform(5.5, 9.5)
        radius = rng.uniform(3.5, 5.5)
        mask = (
            np.maximum(abs(dy), abs(dx)) < radius,
            (np.minimum(abs(dy), abs(dx)) < 1.2) & (np.maximum(abs(dy), abs(dx)) < radius + 1),
            abs(np.hypot(dy, dx) - radius) < 1.2,
        )[label]
    else:
        row, column = divmod(label, 2)
        mask = np.hypot(y - rng.uniform(2, 5) - 8 * row, x - rng.uniform(2, 5) - 8 * column) < rng.uniform(2.5, 4)
    picture = np.where(mask[..., None], ink, background) + rng.normal(0, 0.09, (SIDE, SIDE, 3))
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)


def draw_many(task: str, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """``count`` pictures (N, 16, 16, 3) uint8 with balanced labels (N,) in random order."""
    labels = rng.permutation(np.arange(count) % len(CLASSES[task]))
    return np.stack([draw(task, int(label), rng) for label in labels]), labels.astype(np.int64)


def to_pixels(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) → what the image processor of the base hands to the tower, (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.5).contiguous()


# --- model --------------------------------------------------------------------------------------


def make_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level BPE with the 512 byte symbols and no merges: every text has a token per byte."""
    from tokenizers.pre_tokenizers import ByteLevel

    symbols = sorted(ByteLevel.alphabet())
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: index for index, word in enumerate(words)}, merges=[], model_max_length=40)


def make_config(tokenizer: CLIPTokenizer) -> CLIPConfig:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "projection_dim": 24}
    text = {"num_hidden_layers": 1, "vocab_size": len(tokenizer), "max_position_embeddings": 40}
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    # A wide initialisation: at CLIP's own 0.02 so narrow a tower hardly starts to learn in a hundred steps.
    start = {"initializer_factor": 2.0, "initializer_range": 0.3}
    vision = {"num_hidden_layers": 2, "image_size": SIDE, "patch_size": 4}
    return CLIPConfig(text_config=tower | text | special, vision_config=tower | vision | start, projection_dim=24)


def text_heads(model: CLIPModel, tokenizer: CLIPTokenizer, classes: Sequence[str]) -> Tensor:
    """(C, D) class embeddings: mean of the normalised embeddings of all prompts, normalised again."""
    texts = [prompt.replace("{}", name) for name in classes for prompt in PROMPTS]
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    features = model.get_text_features(**tokens, return_dict=True).pooler_output
    return F.normalize(F.normalize(features, dim=-1).unflatten(0, (len(classes), -1)).mean(1), dim=-1)


def logits_of(model: CLIPModel, pixels: Tensor, heads: Tensor) -> Tensor:
    features = F.normalize(model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output, dim=-1)
    return model.logit_scale.exp() * features @ heads.T


@dataclass(frozen=True)
class Data:
    pixels: dict[str, Tensor]
    labels: dict[str, Tensor]


def spread_captions(model: CLIPModel, tokenizer: CLIPTokenizer, steps: int) -> None:
    """Push the captions of different classes apart, so that the image tower has targets worth learning."""
    names = all_classes()
    optimiser = torch.optim.AdamW(
        [*model.text_model.parameters(), *model.text_projection.parameters()], lr=1e-2, fused=True
    )
    for _ in range(steps):
        heads = text_heads(model, tokenizer, names)
        loss = F.cross_entropy(10 * heads @ heads.T, torch.arange(len(names)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def pretrain(model: CLIPModel, tokenizer: CLIPTokenizer, data: Data, steps: int) -> None:
    """Train the image tower on all tasks together: image → the caption of its class among all captions."""
    with torch.no_grad():
        heads = text_heads(model, tokenizer, all_classes())
    starts = np.cumsum([0, *(len(classes) for classes in CLASSES.values())])
    optimiser = torch.optim.AdamW(vision_parameters(model), lr=6e-3, fused=True)
    for step in range(steps):
        chosen = [torch.randint(len(data.labels[task]), (12,)) for task in CLASSES]
        pixels = torch.cat([data.pixels[task][rows] for task, rows in zip(CLASSES, chosen, strict=True)])
        labels = torch.cat(
            [data.labels[task][rows] + int(start) for task, rows, start in zip(CLASSES, chosen, starts, strict=False)]
        )
        # Some captions are wrong, so that the base stays clearly below its fine-tunes.
        noisy = torch.where(torch.rand(len(labels)) < 0.2, torch.randint(len(heads), (len(labels),)), labels)
        loss = F.cross_entropy(logits_of(model, pixels, heads), noisy)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        optimiser.param_groups[0]["lr"] = 6e-3 * (1 - step / steps)


def all_classes() -> list[str]:
    return [name for classes in CLASSES.values() for name in classes]


def vision_parameters(model: CLIPModel) -> list[torch.nn.Parameter]:
    return [*model.vision_model.parameters(), *model.visual_projection.parameters()]


def fine_tune(model: CLIPModel, heads: Tensor, data: Data, task: str, steps: int) -> None:
    """Train the image tower on one task with frozen text heads."""
    optimiser = torch.optim.AdamW(vision_parameters(model), lr=3e-3, fused=True)
    for step in range(steps):
        rows = torch.randint(len(data.labels[task]), (32,))
        loss = F.cross_entropy(logits_of(model, data.pixels[task][rows], heads), data.labels[task][rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        optimiser.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)


# --- files --------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def write_split(path: Path, images: Sequence[bytes], labels: Sequence[int], keys: Sequence[str]) -> None:
    """One parquet file: image struct{bytes, path} holding PNGs, label int64, source_key string."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "image": pa.array(
                [{"bytes": image, "path": f"{key}.png"} for image, key in zip(images, keys, strict=True)],
                type=pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            ),
            "label": pa.array(list(labels), type=pa.int64()),
            "source_key": pa.array(list(keys), type=pa.string()),
        }
    )
    pq.write_table(table, path)


def save_vision(model: CLIPModel, folder: Path) -> None:
    """The image tower as a CLIPVisionModelWithProjection folder in fp16, tensor names as in the base."""
    folder.mkdir(parents=True)
    tensors = {
        name: tensor.detach().half().contiguous()
        for name, tensor in model.state_dict().items()
        if name.startswith(("vision_model.", "visual_projection."))
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.vision_config.to_dict() | {"architectures": ["CLIPVisionModelWithProjection"]}
    (folder / "config.json").write_text(json.dumps(config, indent=1, default=str))


def round_to_half(model: CLIPModel) -> None:
    """Keep what fp16 files will keep, so that measured accuracies are those of the files."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())


# --- the pool -----------------------------------------------------------------------------------


def make_tiny_pool(root: Path | str, seed: int = 0) -> Path:
    """Train and write the pool into ``root`` (made if missing, must hold no pool); returns ``root``.

    The global random state and thread count are as before afterwards.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _make(Path(root), seed)
    finally:
        torch.set_num_threads(threads)


def _make(root: Path, seed: int) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    drawn = {task: draw_many(task, 480, rng) for task in CLASSES}
    train = Data(
        {task: to_pixels(images) for task, (images, _) in drawn.items()},
        {task: torch.from_numpy(labels) for task, (_, labels) in drawn.items()},
    )
    splits = {(task, split): draw_many(task, rows, rng) for task in CLASSES for split, rows in ROWS.items()}

    tokenizer = make_tokenizer()
    base = CLIPModel(make_config(tokenizer))
    spread_captions(base, tokenizer, steps=15)
    pretrain(base, tokenizer, train, steps=60)
    round_to_half(base)
    with torch.no_grad():
        heads = {task: text_heads(base, tokenizer, classes) for task, classes in CLASSES.items()}

    models: dict[str, tuple[str, str, CLIPModel]] = {}
    for task in CLASSES:
        model = copy.deepcopy(base)
        fine_tune(model, heads[task], train, task, steps=60)
        models[task] = (task, "own", model)
    # The paper's noisy model: same architecture and task, but another pretraining run underneath.
    foreign = copy.deepcopy(base)
    stranger = CLIPModel(make_config(tokenizer))
    foreign.vision_model.load_state_dict(stranger.vision_model.state_dict())
    foreign.visual_projection.load_state_dict(stranger.visual_projection.state_dict())
    pretrain(foreign, tokenizer, train, steps=60)
    fine_tune(foreign, heads["shape"], train, "shape", steps=60)
    models[FOREIGN] = ("shape", "foreign_base", foreign)
    for _, _, model in models.values():
        round_to_half(model)

    def accuracy(model: CLIPModel, task: str) -> dict[str, float]:
        with torch.no_grad():
            return {
                split: round(
                    (logits_of(model, to_pixels(splits[task, split][0]), heads[task]).argmax(-1).numpy()
                     == splits[task, split][1]).mean().item(), 4,
                )
                for split in ("validation", "test")
            }  # fmt: skip

    base.half().save_pretrained(root / "base")
    base.float()
    tokenizer.save_pretrained(root / "base")
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"height": SIDE, "width": SIDE},
        "do_center_crop": False,
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
    }
    (root / "base" / "preprocessor_config.json").write_text(json.dumps(processor, indent=1))
    for name, (_, _, model) in models.items():
        save_vision(model, root / "checkpoints" / name)
    for (task, split), (images, labels) in splits.items():
        keys = [f"drawn/{task}/{split}/{row}" for row in range(len(labels))]
        write_split(root / "tasks" / task / f"{split}.parquet", [png(i) for i in images], labels.tolist(), keys)

    card = {
        "format": 1,
        "id": "tiny",
        "title": "Tiny patterns",
        "summary": "Four pattern tasks and five checkpoints of a tiny CLIP, trained in seconds for the tests.",
        "family": "clip_vision",
        "base": {
            "path": "base",
            "sha256": sha256(root / "base" / "model.safetensors"),
            "parameters": sum(p.numel() for p in base.parameters()),
            "image_size": SIDE,
            "licence": "Apache-2.0",
        },
        "merge": {"include": ["vision_model.", "visual_projection."], "exclude": []},
        "checkpoints": [
            {
                "id": name,
                "title": name.replace("_", " ").capitalize(),
                "path": f"checkpoints/{name}",
                "sha256": sha256(root / "checkpoints" / name / "model.safetensors"),
                "task": task,
                "kind": kind,
                "note": "" if kind == "own" else "fine-tuned from a different base",
                "accuracy": accuracy(model, task),
            }
            for name, (task, kind, model) in models.items()
        ],
        "tasks": [_task_card(root, task, accuracy(base, task), accuracy(models[task][2], task)) for task in CLASSES],
        "default": {"tasks": ["colour", "stripes"], "checkpoints": list(models)},
        "sources": [
            {"package": "none", "version": "0", "registry": "drawn", "licence": "Apache-2.0", "used_for": "all tasks"}
        ],
        "training": {"seed": seed},
        "phenomena": [],
    }
    (root / "pool.yaml").write_text(yaml.safe_dump(card, sort_keys=False, allow_unicode=True))
    return root


def _task_card(root: Path, task: str, base: dict[str, float], individual: dict[str, float]) -> dict[str, Any]:
    files = {split: root / "tasks" / task / f"{split}.parquet" for split in ROWS}
    return {
        "id": task,
        "title": task.capitalize(),
        "question": QUESTIONS[task],
        "classes": list(CLASSES[task]),
        "prompts": list(PROMPTS),
        "splits": {
            split: {"path": path.relative_to(root).as_posix(), "rows": ROWS[split], "sha256": sha256(path)}
            for split, path in files.items()
        },
        "chance": round(1 / len(CLASSES[task]), 4),
        "accuracy": {"base": base, "individual": individual},
        "source": "drawn by the test suite",
        "licence": "Apache-2.0",
        "tags": ["drawn"],
    }
