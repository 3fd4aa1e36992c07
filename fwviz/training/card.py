"""Write a pool to disk: task splits as parquet, towers as safetensors, and the card that describes them all."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fwviz.training.sources import Fetched
from fwviz.training.tasks import ROLES, Split, Task
from fwviz.training.text_tasks import TextTask

SPLITS = ROLES[1:]
"""Splits that ship: calibration, validation, test."""


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write_split(path: Path, split: Split, classes: Sequence[str]) -> None:
    """One split as parquet: image (bytes, path), label, source_key; readable by ``datasets`` as it is."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(classes), "_type": "ClassLabel"},
        "source_key": {"dtype": "string", "_type": "Value"},
    }
    fields = [("image", image_type), ("label", pa.int64()), ("source_key", pa.string())]
    schema = pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})
    columns = {
        "image": [{"bytes": _png(image), "path": f"{i:04d}.png"} for i, image in enumerate(split.images)],
        "label": split.labels.astype(np.int64).tolist(),
        "source_key": list(split.keys),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pydict(columns, schema=schema), path, compression="zstd")


def read_split(path: Path) -> Split:
    """Inverse of ``write_split``."""
    import pyarrow.parquet as pq
    from PIL import Image

    table = pq.read_table(path).to_pydict()
    images = np.stack([np.asarray(Image.open(io.BytesIO(item["bytes"])).convert("RGB")) for item in table["image"]])
    return Split(images, np.asarray(table["label"]), tuple(table["source_key"]))


def write_task(folder: Path, task: Task, splits: Mapping[str, Split]) -> dict[str, Any]:
    """Write a task's three splits under ``folder/tasks/<id>``; return its entry of the card, without accuracies."""
    files = {name: split_path(folder, task.id, name) for name in SPLITS}
    for name, path in files.items():
        write_split(path, splits[name], task.classes)
    rows = {name: len(splits[name].labels) for name in SPLITS}
    return task_entry(folder, task, files, rows, source=task.source, licence=task.licence)


def split_path(folder: Path, task: str, split: str) -> Path:
    """Where a split of a task lies in a pool."""
    return folder / "tasks" / task / f"{split}.parquet"


def task_entry(
    folder: Path,
    task: Task | TextTask,
    files: Mapping[str, Path],
    rows: Mapping[str, int],
    *,
    source: str,
    licence: str,
    accuracy: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A task's entry of the card of the pool in ``folder``: its splits' written files and numbers of rows."""
    return {
        "id": task.id,
        "title": task.title,
        "question": task.question,
        "classes": list(task.classes),
        "prompts": list(task.prompts),
        "splits": {
            name: {"path": path.relative_to(folder).as_posix(), "rows": rows[name], "sha256": sha256(path)}
            for name, path in files.items()
        },
        "chance": round(1 / len(task.classes), 4),
        **({} if accuracy is None else {"accuracy": dict(accuracy)}),
        "source": source,
        "licence": licence,
        "tags": list(task.tags),
    }


def write_checkpoint(folder: Path, state: Mapping[str, Tensor], vision_config: Any) -> str:
    """Save a tower as ``CLIPVisionModelWithProjection`` in fp16; return the SHA-256 of its weights."""
    from transformers import CLIPVisionModelWithProjection

    tower = CLIPVisionModelWithProjection(vision_config)
    tower.load_state_dict(dict(state))
    tower.half().save_pretrained(folder)
    return sha256(folder / "model.safetensors")


def rounded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state as it will come back from disk: through fp16 and back."""
    return {name: v.half().float() if v.is_floating_point() else v for name, v in state.items()}


def source_entries(fetched: Sequence[Fetched]) -> list[dict[str, str]]:
    """The card's list of packages, with the versions that were read."""
    return [
        {
            "package": item.package.name,
            "version": item.version,
            "registry": item.package.registry,
            "licence": item.package.licence,
            "used_for": item.package.used_for,
        }
        for item in fetched
    ]


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Write ``pool.yaml``: keys in the order given, text unescaped, lines of at most 120 characters."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True  # cards are read as untrusted input, where aliases are refused

    text = yaml.dump(dict(card), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
    (folder / "pool.yaml").write_text(text, encoding="utf-8")


PICTURES = ("torch", "transformers", "tokenizers", "numpy", "pillow", "fonttools", "cairosvg", "scikit-learn")


def versions(names: Sequence[str] = PICTURES) -> dict[str, str]:
    """Versions of Python and the libraries that shaped a pool."""
    import importlib.metadata as metadata
    import platform

    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def parameters(model: torch.nn.Module) -> int:
    """Number of parameters of a model."""
    return sum(p.numel() for p in model.parameters())
