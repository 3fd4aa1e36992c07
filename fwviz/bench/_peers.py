"""Merges by other implementations, for ``fwviz bench speed``; run by an interpreter that has them, but not fwviz.

    PEER_PYTHON fwviz/bench/_peers.py NAME FOLDER COUNT THREADS

reads base.safetensors and checkpoint-0 … from a folder, merges them and prints one line of JSON: seconds and the peak
of memory above what was held before, in bytes. Merges that look at data find it in inputs.safetensors: images
(COUNT, N, 3, H, W) uint8, the head (C, D) of all, and how many images go through the model at once.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Tensors = dict[str, Any]
Merge = Callable[[], object]
# Base, checkpoints and the folder → the merge. It imports and sets up what is not timed.
Peer = Callable[[Tensors, list[Tensors], Path], Merge]

STATUS = Path("/proc/self/status")


def mergekit_ties(base: Tensors, models: list[Tensors], folder: Path) -> Merge:
    """mergekit's TIES tensor by tensor, density 0.2."""
    from mergekit.merge_methods.api import merge_tensors

    parameters = {"weight": 1.0, "density": 0.2}
    return lambda: {
        name: merge_tensors([value, *(m[name] for m in models)], "ties", parameters=parameters, base_index=0)
        for name, value in base.items()
    }


def fusion_bench_tsv_m(base: Tensors, models: list[Tensors], folder: Path) -> Merge:
    """FusionBench's task singular vectors, with the subtraction and addition of the base around it."""
    from fusion_bench.method.task_singular_vector.utils.TSVM_utils import compute_and_sum_svd_mem_reduction

    def merge() -> object:
        deltas = [{name: model[name] - base[name] for name in base} for model in models]
        merged = compute_and_sum_svd_mem_reduction(deltas, accelerator="cpu")
        return {name: base[name] + merged[name] for name in base}

    return merge


def fusion_bench_regmean(base: Tensors, models: list[Tensors], folder: Path) -> Merge:
    """FusionBench's RegMean for CLIP: input products of all linear layers, then least squares."""
    from fusion_bench.method.regmean.clip_regmean import RegMeanAlgorithmForCLIP
    from fusion_bench.method.regmean.regmean import merging_with_regmean_weights
    from fusion_bench.method.regmean.utils import get_modules_to_merge
    from torch import nn

    towers, images, settings = _towers(base, models, folder)
    algorithm = RegMeanAlgorithmForCLIP(
        num_regmean_examples=len(images[0]),
        exclude_param_names_regex=[],
        reduce_non_diagonal_ratio=0.95,
        weight_transpose=True,
        dataloader_kwargs={"batch_size": settings["batch"]},
    )
    _set_up(algorithm, settings)

    def merge() -> object:
        found = [
            algorithm.get_regmean_weights("task", tower, data, get_modules_to_merge(tower, [nn.Linear]))
            for tower, data in zip(towers, images, strict=True)
        ]
        return merging_with_regmean_weights(_columns(towers), found, 0.95)

    return merge


def fusion_bench_fisher(base: Tensors, models: list[Tensors], folder: Path) -> Merge:
    """FusionBench's Fisher merging for CLIP: one backward pass per batch, then the weighted mean."""
    import torch
    from fusion_bench.method.fisher_merging.clip_fisher_merging import FisherMergingForCLIPVisionModel
    from fusion_bench.method.fisher_merging.fisher_merging import merging_with_fisher_weights

    towers, images, settings = _towers(base, models, folder)
    algorithm = FisherMergingForCLIPVisionModel(
        exclude_param_names_regex=[],
        normalize_fisher_weight=True,
        minimal_fisher_weight=1e-6,
        num_fisher_examples=len(images[0]),
        dataloader_kwargs={"batch_size": settings["batch"]},
    )
    _set_up(algorithm, settings)

    def merge() -> object:
        columns = _columns(towers)
        with torch.enable_grad():
            found = [
                algorithm.get_fisher_weights("task", tower, data, list(columns))
                for tower, data in zip(towers, images, strict=True)
            ]
        return merging_with_fisher_weights(columns, found, torch.ones(len(towers)) / len(towers))

    return merge


def _towers(base: Tensors, models: list[Tensors], folder: Path) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """The checkpoints as models that share their tensors, pairs (image, label) for each, and what else is given."""
    from safetensors.torch import load_file
    from transformers import CLIPVisionConfig, CLIPVisionModel

    given: dict[str, Any] = dict(load_file(folder / "inputs.safetensors"))
    prefix = "vision_model."
    width, _, patch, _ = base[f"{prefix}embeddings.patch_embedding.weight"].shape
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=sum(name.endswith("fc1.weight") for name in base),
        num_attention_heads=max(width // 64, 1),
        image_size=given["images"].shape[-1],
        patch_size=patch,
        attn_implementation="sdpa",
    )
    towers = []
    for model in models:
        tower = CLIPVisionModel(config).eval()
        names = {name.removeprefix(prefix): value for name, value in model.items() if name.startswith(prefix)}
        missing, unexpected = tower.load_state_dict(names, strict=False, assign=True)
        if unexpected or set(missing) & set(dict(tower.named_parameters())):
            raise RuntimeError(f"the tower lacks {unexpected} and needs {missing}")
        towers.append(tower)
    images = [[(image, 0) for image in own] for own in given["images"][: len(models)]]
    return towers, images, {**given, "batch": int(given["batch"]), "projection": base["visual_projection.weight"]}


def _set_up(algorithm: Any, settings: dict[str, Any]) -> None:
    """Give an algorithm what it would make of a pool's files: device, preprocessing and the head."""
    import lightning
    from torch.nn.functional import linear

    algorithm.fabric = lightning.Fabric(accelerator="cpu", devices=1)
    algorithm._clip_processor = lambda image: image.float().div_(127.5).sub_(1)
    algorithm.zeroshot_weights = {"task": settings["head"]}
    algorithm.visual_projection = lambda x: linear(x, settings["projection"])
    algorithm.logit_scale_exp = 100.0


def _columns(towers: list[Any]) -> dict[str, list[Any]]:
    """Parameter name → the checkpoints' values."""
    dictionaries = [tower.state_dict() for tower in towers]
    return {name: [own[name] for own in dictionaries] for name, _ in towers[0].named_parameters()}


PEERS: dict[str, Peer] = {
    "mergekit TIES": mergekit_ties,
    "FusionBench TSV-M": fusion_bench_tsv_m,
    "FusionBench RegMean": fusion_bench_regmean,
    "FusionBench Fisher": fusion_bench_fisher,
}


def held(field: str) -> int:
    """A line of Linux's account of this process, in bytes; 0 elsewhere."""
    if not STATUS.exists():
        return 0
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(field)) * 1024


def measured(work: Callable[[], object]) -> dict[str, float]:
    """Seconds and extra peak bytes of one call, after the high-water mark was reset."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")
    before = held("VmRSS")
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    peak = held("VmHWM")
    del result
    return {"seconds": seconds, "extra_bytes": max(peak - before, 0)}


def main(name: str, folder: Path, count: int, threads: int) -> None:
    """Print the measurement of one peer."""
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(threads)
    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():  # they print progress
        base = _float(load_file(folder / "base.safetensors"))
        models = [_float(load_file(folder / f"checkpoint-{i}.safetensors")) for i in range(count)]
        found = measured(PEERS[name](base, models, folder))
    print(json.dumps(found))


def _float(tensors: Tensors) -> Tensors:
    return {name: value.float() for name, value in tensors.items()}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
