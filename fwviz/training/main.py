"""Make an embedded pool from packages, in one call: fetch, render, draw, pretrain, fine-tune, measure, write.

Every stage leaves its result in the cache and is skipped when that is there, so an interrupted run goes on where it
stopped. ``fwviz train-pool`` calls ``train_pool``.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fwviz.training import card as cards
from fwviz.training import measure, model
from fwviz.training.bank import build_bank
from fwviz.training.finetune import Examples, FinetunePlan, finetune, vision_state
from fwviz.training.pretrain import draw_generic, pretrain
from fwviz.training.sources import fetch_all
from fwviz.training.tasks import TASKS, Materials, Split, Task, draw_all

log = logging.getLogger(__name__)

OWN = FinetunePlan()
LONG = replace(OWN, steps=3 * OWN.steps)
LONG_TASKS = ("street_digits", "latin_small", "hebrew", "orientation", "flags", "emoji_food", "emoji_travel")
"""Tasks that validation says are not learnt yet after ``OWN``; the default tasks keep the shorter one."""
WEAK = replace(OWN, steps=OWN.steps // 8)
FOREIGN = replace(OWN, rate=3 * OWN.rate)
"""From another base the tower must first learn to speak to this base's heads."""
JOINT = replace(OWN, steps=2000, batch=72, keep=0.0)
"""Traditional multi-task learning: one tower for all tasks, four pictures of each per step, nothing else to keep."""
SEEDS = (0, 1, 2)
DEFAULT_TASKS = ("mnist", "hiragana", "fashion", "cyrillic")
DEFAULT_CHECKPOINTS = (*DEFAULT_TASKS, "katakana", "uci_digits", "flags", "orientation")
FOREIGN_SHARE = 0.1
"""Share of the pretraining time given to the second base, from which the foreign checkpoint comes."""


@dataclass(frozen=True)
class Job:
    """One checkpoint to make: on which task, how, from which base."""

    id: str
    title: str
    task: str
    kind: str
    note: str
    plan: FinetunePlan = OWN
    seed: int = 0


def jobs(tasks: Sequence[Task] = TASKS) -> list[Job]:
    """All checkpoints of the pool: one per task, then those that make choosing real."""
    own = [
        Job(task.id, task.title, task.id, "own", "Fine-tuned on this task from the pool's base.",
            LONG if task.id in LONG_TASKS else OWN)
        for task in tasks
    ]  # fmt: skip
    title = {task.id: task.title for task in tasks}
    extra = [
        Job("mnist_weak", f"{title['mnist']} (weak)", "mnist", "weak", "An eighth of the steps.", WEAK),
        Job("hiragana_half", f"{title['hiragana']} (half of the classes)", "hiragana", "half_classes",
            "Saw only the first half of the classes."),
        Job("fashion_noisy", f"{title['fashion']} (noisy labels)", "fashion", "noisy_labels",
            "Six labels in ten were drawn at random."),
        Job("mnist_foreign", f"{title['mnist']} (another base)", "mnist", "foreign_base",
            "Fine-tuned from a base of another seed: its task vector does not fit this base.", FOREIGN),
    ]  # fmt: skip
    return own + [job for job in extra if job.task in title]


def training_rows(job: Job, split: Split, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The fine-tuning pictures and labels that a job sees."""
    images, labels = split.images, split.labels
    if job.kind == "half_classes":
        kept = labels < classes // 2
        return images[kept], labels[kept]
    if job.kind == "noisy_labels":
        rng = np.random.default_rng(job.seed)
        random = rng.integers(classes, size=len(labels))
        return images, np.where(rng.random(len(labels)) < 0.6, random, labels)
    return images, labels


def run_job(job: Job, base: Path, home: Path, tasks_folder: Path, generic: Path, folder: Path) -> str:
    """Make one checkpoint, unless it is there: ``folder/<id>-s<seed>.pt`` holds the tower's state in fp16 values.

    Args:
        base: where the tower starts.
        home: the pool's base, whose text tower gives the head; differs from ``base`` for the foreign checkpoint only.
    """
    path = folder / f"{job.id}-s{job.seed}.pt"
    if path.is_file():
        return job.id
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    task = next(task for task in TASKS if task.id == job.task)
    split = draw_all(None, tasks_folder, [task])[task.id]["train"]
    clip, tokenizer = model.load_clip(home)
    head = model.zero_shot_head(clip, tokenizer, task.classes, task.prompts)
    if base != home:
        clip, _ = model.load_clip(base)
    images, labels = training_rows(job, split, len(task.classes))
    start = time.monotonic()
    state = finetune(clip, [Examples(head, images, labels)], job.plan, job.seed, np.load(generic))
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"state": cards.rounded(state), "seconds": time.monotonic() - start}, path)
    return job.id


def shortened(plan: FinetunePlan, rehearse: bool) -> FinetunePlan:
    """The plan, or with ``rehearse`` a thirtieth of its steps."""
    return replace(plan, steps=max(2, plan.steps // 30)) if rehearse else plan


def train_jointly(base: Path, tasks_folder: Path, folder: Path, seed: int, plan: FinetunePlan = JOINT) -> Path:
    """One tower on the fine-tuning pictures of all tasks: the reference row "mtl". Kept as ``folder/mtl.pt``."""
    path = folder / "mtl.pt"
    if not path.is_file():
        clip, tokenizer = model.load_clip(base)
        drawn = draw_all(None, tasks_folder)
        rows = [
            Examples(
                model.zero_shot_head(clip, tokenizer, task.classes, task.prompts),
                drawn[task.id]["train"].images,
                drawn[task.id]["train"].labels,
            )
            for task in TASKS
        ]
        torch.save({"state": cards.rounded(finetune(clip, rows, plan, seed))}, path)
    return path


def _run_all(
    work: Iterable[tuple[Job, Path]], home: Path, tasks_folder: Path, generic: Path, folder: Path, workers: int
) -> None:
    with ProcessPoolExecutor(workers) as pool:
        running = [pool.submit(run_job, job, base, home, tasks_folder, generic, folder) for job, base in work]
        for done in running:
            log.info("checkpoint %s", done.result())


def train_pool(
    name: str = "vision",
    out: Path = Path("assets/pools"),
    cache: Path = Path("~/.cache/fwviz/train-pool"),
    seed: int = 0,
    pretrain_seconds: float = 3400,
    device: str = "cpu",
    threads: int = 2,
    rehearse: bool = False,
) -> None:
    """Rebuild the embedded pool ``out/<name>`` from packages.

    Args:
        name: id of the pool, and its folder under ``out``.
        cache: packages, bank, bases and checkpoints are kept here; delete a part to make it anew.
        seed: decides roles of fonts, pictures, weights and fine-tuning.
        pretrain_seconds: clock time for pretraining the base.
        device: where to pretrain; ``cuda`` trains in one process.
        threads: workers for rendering, pretraining and fine-tuning, one core each.
        rehearse: take a thirtieth of all fine-tuning steps, to see the whole recipe run; the pool is of no use.
    """
    cache = cache.expanduser()
    folder = out / name
    fetched = fetch_all(cache)
    bank = build_bank(fetched, cache / "bank", seed, threads)
    materials = Materials(bank, {item.package.name: item for item in fetched}, seed)
    drawn = draw_all(materials, cache / "tasks")
    base, foreign = cache / "base", cache / "foreign_base"
    workers = 1 if device != "cpu" else threads
    for path, base_seed, share in ((base, seed, 1.0), (foreign, seed + 1000, FOREIGN_SHARE)):
        if not (path / "pretraining.json").is_file():
            pretrain(cache / "bank", path, base_seed, pretrain_seconds * share, workers, device=device)
    draw_generic(bank, base, cache / "generic.npy", seed)
    made = [replace(job, plan=shortened(job.plan, rehearse)) for job in jobs()]
    work = [(job, foreign if job.kind == "foreign_base" else base) for job in made]
    for other in SEEDS[1:]:
        work += [(replace(job, seed=other), base) for job in made if job.id in DEFAULT_TASKS]
    _run_all(work, base, cache / "tasks", cache / "generic.npy", cache / "checkpoints", threads)
    train_jointly(base, cache / "tasks", cache, seed, shortened(JOINT, rehearse))
    write_pool(folder, name, cache, drawn, cards.source_entries(fetched), seed, pretrain_seconds)


def write_pool(
    folder: Path,
    name: str,
    cache: Path,
    drawn: dict[str, dict[str, Split]],
    sources: list[dict[str, str]],
    seed: int,
    pretrain_seconds: float,
) -> None:
    """Measure the checkpoints in the cache and write splits, weights and card."""
    import shutil

    folder.mkdir(parents=True, exist_ok=True)
    for old in ("tasks", "checkpoints", "base"):
        shutil.rmtree(folder / old, ignore_errors=True)
    clip, tokenizer = model.load_clip(cache / "base")
    shutil.copytree(cache / "base", folder / "base", ignore=shutil.ignore_patterns("pretraining.json", "rendezvous"))
    task_entries = {task.id: cards.write_task(folder, task, drawn[task.id]) for task in TASKS}
    heads = {task.id: model.zero_shot_head(clip, tokenizer, task.classes, task.prompts) for task in TASKS}
    states: dict[tuple[str, int], dict[str, Tensor]] = {}
    seconds = []
    for path in sorted((cache / "checkpoints").glob("*.pt")):
        saved = torch.load(path)
        job_id, job_seed = path.stem.rsplit("-s", 1)
        states[job_id, int(job_seed)] = saved["state"]
        seconds.append(saved["seconds"])
    judge = measure.Judge(clip, heads, drawn)
    checkpoint_entries = []
    for job in jobs():
        state = states[job.id, 0]
        target = folder / "checkpoints" / job.id
        digest = cards.write_checkpoint(target, state, clip.config.vision_config)
        scores = {split: round(judge.accuracy(state, job.task, split), 4) for split in ("validation", "test")}
        checkpoint_entries.append(
            {
                "id": job.id,
                "title": job.title,
                "path": f"checkpoints/{job.id}",
                "sha256": digest,
                "task": job.task,
                "kind": job.kind,
                "note": job.note,
                "accuracy": scores,
            }
        )
    own = {entry["task"]: entry["accuracy"] for entry in checkpoint_entries if entry["kind"] == "own"}
    joint = torch.load(cache / "mtl.pt")["state"]
    for task_id, entry in task_entries.items():
        together = {split: round(judge.accuracy(joint, task_id, split), 4) for split in ("validation", "test")}
        zero_shot = {split: round(judge.accuracy(None, task_id, split), 4) for split in ("validation", "test")}
        at = list(entry).index("source")
        items = list(entry.items())
        items.insert(at, ("accuracy", {"base": zero_shot, "individual": own[task_id], "mtl": together}))
        task_entries[task_id] = dict(items)
    facts = json.loads((cache / "base" / "pretraining.json").read_text())
    phenomena = measure.phenomena(judge, vision_state(clip), states, DEFAULT_TASKS, [job.id for job in jobs()], SEEDS)
    cards.write_card(
        folder,
        {
            "format": 1,
            "id": name,
            "title": "Small pictures: letters, digits, signs, flags, emoji, clothes, animals",
            "summary": (
                "A small CLIP, pretrained from scratch on glyphs, icons, emoji, flags and clip-art with their names, "
                f"and {len(checkpoint_entries)} fine-tunes of its image tower on {len(task_entries)} tasks."
            ),
            "family": "clip_vision",
            "base": {
                "path": "base",
                "sha256": cards.sha256(folder / "base" / "model.safetensors"),
                "parameters": cards.parameters(clip),
                "image_size": model.IMAGE_SIZE,
                "licence": "Apache-2.0",
            },
            "merge": {"include": ["vision_model."], "exclude": list(measure.NEVER_MOVED)},
            "checkpoints": checkpoint_entries,
            "tasks": list(task_entries.values()),
            "default": {"tasks": list(DEFAULT_TASKS), "checkpoints": list(DEFAULT_CHECKPOINTS)},
            "sources": sources,
            "training": {
                "command": f"fwviz train-pool --seed {seed} --pretrain-seconds {pretrain_seconds:.0f}",
                "seed": seed,
                "seeds": list(SEEDS),
                "pretrain_seconds": round(facts["seconds"]),
                "pretrain_images": facts["images"],
                **({"note": facts["note"]} if "note" in facts else {}),
                "finetune_seconds": round(float(np.mean(seconds)), 1),
                "finetune": asdict(OWN),
                "mtl": asdict(JOINT),
                "longer": {"steps": LONG.steps, "tasks": list(LONG_TASKS)},
                "machine": "2 CPU cores",
                "versions": cards.versions(),
            },
            "phenomena": phenomena,
        },
    )
