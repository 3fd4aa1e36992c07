"""Pretrain the small CLIP on the bank's ``train`` rows: contrastive image → caption, annealed by the clock."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, distributed

from fwviz.training import augment, model
from fwviz.training.bank import Bank, build_bank, in_common_use
from fwviz.training.captions import caption, train_tokenizer

log = logging.getLogger(__name__)

TEXT_TOKENS = 12
LARGEST_SCALE = math.log(60)


@dataclass(frozen=True)
class PretrainPlan:
    """What one step sees and how the step size runs.

    Attributes:
        code_points, icons, emoji, flags, cliparts: captions drawn per step from each kind.
        fonts_per_code_point: images per code point.
        common_share: share of the code points drawn from the scripts and signs in everyday use.
        negatives: other captions that every image must also reject; their embeddings come from memory, so they
            cost no pass through the text tower.
        rate: peak step size of AdamW (embeddings, norms, biases, projections).
        matrix_rate: peak step size of Muon (the blocks' matrices); 0 gives them to AdamW too.
        warm_up: share of the budget spent rising to the peak.
        average: decay of the running mean of weights, which is what is kept.
    """

    code_points: int = 44
    fonts_per_code_point: int = 4
    common_share: float = 0.8
    icons: int = 16
    emoji: int = 36
    flags: int = 12
    cliparts: int = 16
    negatives: int = 2048
    rate: float = 2e-3
    matrix_rate: float = 0.02
    warm_up: float = 0.02
    weight_decay: float = 0.05
    average: float = 0.998


class CaptionSampler:
    """Draws batches from the ``train`` rows: first names, then pictures of each name."""

    def __init__(
        self, bank: Bank, plan: PretrainPlan, tokenizer: Any, seed: int, rank: int = 0, workers: int = 1
    ) -> None:
        self.plan, self.tokenizer, self.workers = plan, tokenizer, workers
        self.rng = np.random.default_rng([seed, rank])
        self.torch_rng = torch.Generator().manual_seed(1000 * seed + rank)
        mask_rows, picture_rows = bank.mask_rows.to_pydict(), bank.picture_rows.to_pydict()
        keep_masks = [i for i, role in enumerate(mask_rows["role"]) if role == "train"]
        keep_pictures = [i for i, role in enumerate(picture_rows["role"]) if role == "train"]
        self.masks = torch.from_numpy(np.ascontiguousarray(bank.masks[keep_masks]))
        self.pictures = torch.from_numpy(np.ascontiguousarray(bank.pictures[keep_pictures]))
        # kind → name → rows of masks (≥ 0) or of pictures (stored as -1 - row)
        members: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for row, i in enumerate(keep_masks):
            members[mask_rows["kind"][i]][mask_rows["name"][i]].append(row)
        for row, i in enumerate(keep_pictures):
            members[picture_rows["kind"][i]][picture_rows["name"][i]].append(-1 - row)
        code_points = {
            name: point for name, point in zip(mask_rows["name"], mask_rows["code_point"], strict=True) if point >= 0
        }
        self.names: list[tuple[str, str]] = []
        self.rows: list[np.ndarray] = []
        self.by_kind: dict[str, np.ndarray] = {}
        self.weights: dict[str, np.ndarray] = {}
        for kind, by_name in sorted(members.items()):
            start = len(self.names)
            for name, rows in sorted(by_name.items()):
                self.names.append((name, kind))
                self.rows.append(np.asarray(rows))
            self.by_kind[kind] = np.arange(start, len(self.names))
            sizes = np.asarray([len(self.rows[i]) for i in self.by_kind[kind]], float)
            weight = sizes if kind == "emoji" else np.sqrt(np.minimum(sizes, 300))
            if kind == "glyph":
                common = np.asarray([in_common_use(code_points[self.names[i][0]]) for i in self.by_kind[kind]])
                weight[common] *= plan.common_share / weight[common].sum()
                weight[~common] *= (1 - plan.common_share) / weight[~common].sum()
            self.weights[kind] = weight / weight.sum()
        self.count = len(self.names)
        log.info("captions: %s", {kind: len(ids) for kind, ids in self.by_kind.items()})

    def tokens(self, ids: np.ndarray) -> tuple[Tensor, Tensor]:
        """Token ids and mask of one random sentence per caption id."""
        texts = [caption(name, kind, self.rng) for name, kind in (self.names[i] for i in ids)]
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=TEXT_TOKENS, return_tensors="pt")
        return batch["input_ids"], batch["attention_mask"]

    def draw(self) -> tuple[Tensor, Tensor, np.ndarray]:
        """Return normalised pixels (n, 3, 32, 32), each picture's place in the caption list (n,), and caption ids."""
        plan = self.plan
        counts = {
            "glyph": plan.code_points, "icon": plan.icons, "emoji": plan.emoji, "flag": plan.flags,
            "clipart": plan.cliparts,
        }  # fmt: skip
        ids: list[int] = []
        owners: list[int] = []
        rows: list[int] = []
        for kind, count in counts.items():
            count //= self.workers
            chosen = self.rng.choice(self.by_kind[kind], count, replace=False, p=self.weights[kind])
            copies = plan.fonts_per_code_point if kind == "glyph" else 1
            for caption_id in chosen:
                members = self.rows[caption_id]
                rows.extend(members[self.rng.integers(len(members), size=copies)])
                owners.extend([len(ids)] * copies)
                ids.append(caption_id)
        row = torch.as_tensor(np.asarray(rows))
        owner = torch.as_tensor(np.asarray(owners))
        is_mask = row >= 0
        look = augment.PRETRAINING
        pixels = torch.empty(len(row), 3, augment.OUT, augment.OUT)
        pixels[is_mask] = augment.draw_masks(self.masks[row[is_mask]], look, self.torch_rng)
        pixels[~is_mask] = augment.draw_pictures(self.pictures[-1 - row[~is_mask]], look, self.torch_rng)
        return augment.normalise(pixels), owner, np.asarray(ids)


def draw_generic(bank: Bank, base: Path, path: Path, seed: int, count: int = 4096) -> None:
    """Save ``count`` pretraining pictures (n, 32, 32, 3) uint8: what a fine-tune must not forget."""
    from transformers import AutoTokenizer

    if path.is_file():
        return
    sampler = CaptionSampler(bank, PretrainPlan(), AutoTokenizer.from_pretrained(base), seed + 7)
    pixels: list[Tensor] = []
    while sum(map(len, pixels)) < count:
        pixels.append(sampler.draw()[0])
    images = ((torch.cat(pixels)[:count] * 0.5 + 0.5) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    np.save(path, images.numpy())


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made nearly orthogonal by five Newton-Schulz steps (Jordan et al., 2024).

    For the matrices inside the blocks it learns more per image than AdamW, which is what counts on two cores.
    """

    def __init__(self, params: list[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                by_shape[p.shape].append(p)
            for shape, params in by_shape.items():
                gradients = [p.grad for p in params if p.grad is not None]
                buffers = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in params]
                torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
                ahead = torch._foreach_lerp(gradients, buffers, group["momentum"])
                update = _shared_orthogonal(torch.stack(ahead)) * max(1.0, shape[0] / shape[1]) ** 0.5
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, list(update), alpha=-group["lr"])


def _shared_orthogonal(x: Tensor) -> Tensor:
    """``_orthogonal`` with the matrices dealt out to the workers."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return _orthogonal(x)
    mine = slice(distributed.get_rank(), None, distributed.get_world_size())
    update = torch.zeros_like(x)
    update[mine] = _orthogonal(x[mine])
    distributed.all_reduce(update)
    return update


def _orthogonal(x: Tensor) -> Tensor:
    """Push the singular values of each matrix of (k, m, n) towards one."""
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


def _optimisers(clip: Any, plan: PretrainPlan) -> list[tuple[torch.optim.Optimizer, float]]:
    """Each optimiser with its peak step size."""
    matrices = [p for name, p in clip.named_parameters() if p.ndim == 2 and ".layers." in name]
    inside = {id(p) for p in matrices}
    others = [p for p in clip.parameters() if id(p) not in inside]
    if plan.matrix_rate:
        muon = Muon(matrices, plan.matrix_rate, weight_decay=plan.weight_decay)
        adam = torch.optim.AdamW(others, lr=plan.rate, betas=(0.9, 0.97), weight_decay=0.0, fused=True)
        return [(muon, plan.matrix_rate), (adam, plan.rate)]
    groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [(torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.97), fused=True), plan.rate)]


def _progress_factor(progress: float, warm_up: float) -> float:
    """Share of the peak step size: a short rise, then a cosine down to one per cent."""
    if progress < warm_up:
        return max(progress / warm_up, 0.02)
    share = min(1.0, (progress - warm_up) / (1 - warm_up))
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share))


def pretrain(
    bank_folder: Path,
    folder: Path,
    seed: int,
    seconds: float,
    workers: int = 2,
    plan: PretrainPlan = PretrainPlan(),
    start_from: Path | None = None,
    snapshot_every: float = 600,
    device: str = "cpu",
) -> dict[str, float]:
    """Train for ``seconds`` and save the averaged weights as a Hugging Face CLIPModel in ``folder``.

    ``workers`` processes of one thread each train on their own batches and add up their gradients once a step. That
    bears a busy machine far better than one process of many threads, which waits for its slowest thread thousands of
    times a step. The step size falls with elapsed time, not with steps, so that a slow machine also ends with small
    steps; the exact weights therefore depend on the machine, the data and the splits do not.

    Args:
        bank_folder: where ``build_bank`` left the bank.
        start_from: an earlier snapshot to go on from, instead of fresh weights.
        device: where the towers live; give a GPU one worker.

    Returns:
        images, steps, seconds and the last running accuracy.
    """
    import torch.multiprocessing as processes

    bank = build_bank([], bank_folder, seed)
    names = sorted(set(bank.mask_rows["name"].to_pylist()) | set(bank.picture_rows["name"].to_pylist()))
    folder.mkdir(parents=True, exist_ok=True)
    train_tokenizer(_sentences(names), folder)
    memory = F.normalize(torch.randn(len(names) * 2, model.PROJECTION), dim=-1).share_memory_()
    known = torch.zeros(len(memory), dtype=torch.bool).share_memory_()
    rendezvous = folder / "rendezvous"
    rendezvous.unlink(missing_ok=True)
    arguments = (workers, bank_folder, folder, seed, seconds, plan, start_from, snapshot_every, memory, known, device)
    processes.spawn(_work, arguments, nprocs=workers)
    rendezvous.unlink(missing_ok=True)
    return json.loads((folder / "pretraining.json").read_text())


def _work(
    rank: int,
    workers: int,
    bank_folder: Path,
    folder: Path,
    seed: int,
    seconds: float,
    plan: PretrainPlan,
    start_from: Path | None,
    snapshot_every: float,
    memory: Tensor,
    known: Tensor,
    device: str,
) -> None:
    """One worker's loop; all workers hold the same weights, the first one saves them."""
    from transformers import AutoTokenizer

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    distributed.init_process_group("gloo", f"file://{(folder / 'rendezvous').resolve()}", rank=rank, world_size=workers)
    tokenizer = AutoTokenizer.from_pretrained(start_from or folder)
    sampler = CaptionSampler(build_bank([], bank_folder, seed), plan, tokenizer, seed, rank, workers)
    clip = model.new_clip(tokenizer, seed)
    if start_from is None:
        look = torch.cat([sampler.draw()[0] for _ in range(12)])
        model.initialise_patches(clip, look)
    else:
        clip = model.load_clip(start_from)[0]
    clip.train().to(device)
    if workers > 1:
        for p in clip.parameters():
            distributed.broadcast(p.data, 0)
    live = list(clip.parameters())
    mean = [p.detach().clone() for p in live]
    optimisers = _optimisers(clip, plan)

    start = last_snapshot = time.monotonic()
    step, running = 0, 0.0
    elapsed = torch.zeros(1)
    while elapsed.item() < seconds:
        for optimiser, peak in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = peak * _progress_factor(elapsed.item() / seconds, plan.warm_up)
        pixels, owner, ids = sampler.draw()
        tokens, mask = sampler.tokens(ids)
        text = model.encode_tokens(clip, tokens.to(device), mask.to(device))
        image = model.encode_images(clip, pixels.to(device))
        others = torch.as_tensor(sampler.rng.integers(sampler.count, size=plan.negatives))
        usable = known[others] & ~torch.isin(others, torch.as_tensor(ids))
        scale = clip.logit_scale.clamp(max=LARGEST_SCALE).exp()
        logits = scale * image @ torch.cat([text, memory[others[usable]].to(device)]).T
        loss = F.cross_entropy(logits, owner.to(device))
        clip.zero_grad(set_to_none=True)
        loss.backward()
        _add_up(live, workers)
        torch.nn.utils.clip_grad_norm_(live, 1.0)
        for optimiser, _ in optimisers:
            optimiser.step()
        memory[ids] = text.detach().cpu()
        known[ids] = True
        step += 1
        torch._foreach_lerp_(mean, [p.detach() for p in live], 1 - min(plan.average, (1 + step) / (10 + step)))
        running += (float((logits.argmax(1).cpu() == owner).float().mean()) - running) / min(step, 100)
        # Workers must agree on when to stop: the first one's clock counts.
        elapsed[0] = time.monotonic() - start
        distributed.broadcast(elapsed, 0)
        if rank == 0 and step % 50 == 0:
            log.info(
                "step %d images %d s %.0f loss %.3f acc %.3f scale %.1f",
                step, step * len(pixels) * workers, elapsed.item(), loss.item(), running, scale.item(),
            )  # fmt: skip
        if rank == 0 and time.monotonic() - last_snapshot > snapshot_every:
            last_snapshot = time.monotonic()
            save(clip, mean, tokenizer, folder.with_name(f"{folder.name}_{int(elapsed.item())}s"))
    if rank == 0:
        save(clip, mean, tokenizer, folder)
        facts = {"images": step * len(pixels) * workers, "steps": step, "seconds": elapsed.item(), "accuracy": running}
        (folder / "pretraining.json").write_text(json.dumps(facts))
    distributed.destroy_process_group()


def _add_up(params: list[Tensor], workers: int) -> None:
    """Replace every gradient by its mean over the workers, in one exchange."""
    if workers == 1:
        return
    gradients = [p.grad for p in params if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= workers
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def save(clip: Any, weights: list[Tensor], tokenizer: Any, folder: Path) -> None:
    """Save ``weights``, in the order of ``clip.parameters()``, as an fp16 CLIPModel with tokenizer and processor."""
    import copy

    from transformers import CLIPImageProcessor

    kept = copy.deepcopy(clip)
    with torch.no_grad():
        for p, value in zip(kept.parameters(), weights, strict=True):
            p.copy_(value)
        kept.logit_scale.clamp_(max=LARGEST_SCALE)
    kept.half().cpu().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(
        size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}, do_center_crop=False, do_resize=True,
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    ).save_pretrained(folder)  # fmt: skip


def _sentences(names: list[str]) -> Iterator[str]:
    rng = np.random.default_rng(0)
    for name in names:
        for kind in ("glyph", "emoji"):
            yield caption(name, kind, rng)
