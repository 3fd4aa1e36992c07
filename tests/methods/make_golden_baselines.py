"""Makes golden/baselines.npz: what other implementations of the data-free baselines compute on small fixed inputs.

Needs the peers in an environment of their own, and the code released with two papers:

    python3.11 -m venv peers_venv && peers_venv/bin/pip install -r requirements-peers.txt
    git clone https://github.com/duguodong7/pcb-merging && git clone https://github.com/rezazzr/breadcrumbs
    peers_venv/bin/python tests/methods/make_golden_baselines.py --pcb pcb-merging --breadcrumbs breadcrumbs

Every function of the peers runs unchanged. What is random in them is recorded as masks, which tell how they drop and
rescale, or as how often each entry is kept.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fusion_bench.method.simple_average import simple_average
from fusion_bench.method.task_arithmetic.task_arithmetic import task_arithmetic_merge
from fusion_bench.method.task_singular_vector.utils.TSVM_utils import compute_and_sum_svd_mem_reduction
from fusion_bench.method.ties_merging.ties_merging_utils import ties_merging
from mergekit.merge_methods.api import merge_tensors
from peft.utils import merge_utils
from torch import Tensor, nn

HERE = Path(__file__).parent / "golden"
MODELS = 4
SHAPES = {"a": (12, 20), "b": (20, 12), "c": (16, 16), "d": (13,), "e": (4, 3, 2, 2)}
KEEPING = 4000


def flat(tensors: dict[str, Tensor]) -> np.ndarray:
    return torch.cat([tensors[name].detach().flatten() for name in SHAPES]).numpy().astype(np.float32)


def module(tensors: dict[str, Tensor]) -> nn.Module:
    model = nn.Module()
    for name, value in tensors.items():
        model.register_buffer(name, value.clone())  # 0.2.33 does not add parameters to tensors
    return model


def released(path: Path, until: str | None = None) -> Any:
    """The functions of one released file; ``until`` cuts off what it would run."""
    source = path.read_text() if until is None else path.read_text().split(until)[0]
    found: dict[str, Any] = {"__name__": path.stem}
    exec(compile(source, str(path), "exec"), found)
    return SimpleNamespace(**found)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pcb", type=Path, required=True)
    parser.add_argument("--breadcrumbs", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    base = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    common = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    moves = [
        {name: 0.1 * (torch.randn(shape) * torch.rand(1) + 0.5 * common[name]) for name, shape in SHAPES.items()}
        for _ in range(MODELS)
    ]
    models = [{name: base[name] + move[name] for name in SHAPES} for move in moves]
    deltas = [{name: model[name] - base[name] for name in SHAPES} for model in models]  # as everybody computes them
    matrix = torch.from_numpy(np.stack([flat(delta) for delta in deltas]))
    out: dict[str, np.ndarray] = {
        "base": flat(base),
        "checkpoints": np.stack([flat(model) for model in models]),
        "names": np.array(list(SHAPES)),
        "shapes": np.array([",".join(map(str, shape)) for shape in SHAPES.values()]),
    }

    # FusionBench
    for percent in (20, 45):
        for how in ("mean", "sum"):
            out[f"fusion_bench/ties_{percent}_{how}"] = ties_merging(matrix.clone(), percent, how).numpy()
    merged = task_arithmetic_merge(module(base), [module(m) for m in models], 0.3, inplace=False)
    out["fusion_bench/task_arithmetic"] = flat(merged.state_dict())
    out["fusion_bench/simple_average"] = flat(simple_average(models))
    out["fusion_bench/tsv_m"] = flat(compute_and_sum_svd_mem_reduction(deltas, accelerator="cpu"))

    # mergekit, tensor by tensor
    def mergekit(method: str, **parameters: Any) -> np.ndarray:
        everything = {
            name: merge_tensors([base[name], *(m[name] for m in models)], method, parameters=parameters, base_index=0)
            for name in SHAPES
        }
        return flat(everything)

    out["mergekit/ties_20"] = mergekit("ties", weight=1.0, density=0.2)
    out["mergekit/ties_50_sum"] = mergekit("ties", weight=1.0, density=0.5, normalize=False)
    out["mergekit/task_arithmetic"] = mergekit("task_arithmetic", weight=0.3)
    out["mergekit/breadcrumbs"] = mergekit("breadcrumbs", weight=1.0, density=0.6, gamma=0.1)
    linear = {name: merge_tensors([m[name] for m in models], "linear", parameters={"weight": 1.0}) for name in SHAPES}
    out["mergekit/linear"] = flat(linear)
    one = torch.linspace(1.0, 2.0, 12)[torch.randperm(12)]  # one row of known ranks
    zero = torch.zeros_like(one)
    for method, extra in (("della_linear", {"epsilon": 0.2}), ("dare_linear", {})):
        parameters = {"weight": 1.0, "density": 0.6, "rescale": False, **extra}
        kept = sum(
            merge_tensors([zero, one], method, parameters=parameters, base_index=0).ne(0) for _ in range(KEEPING)
        )
        out[f"mergekit/{method}_kept"] = kept.numpy()
    out["mergekit/row"] = one.numpy()
    out["mergekit/draws"] = np.array(KEEPING)

    # PEFT, on the flat vectors
    rows, ones = list(matrix), torch.ones(MODELS)
    out["peft/task_arithmetic"] = merge_utils.task_arithmetic(rows, 0.3 * ones).numpy()
    out["peft/ties_20"] = merge_utils.ties(rows, ones, 0.2).numpy()
    out["peft/magnitude_prune"] = sum(merge_utils.prune(row, 0.2, method="magnitude") for row in rows).numpy()
    for method in ("dare_linear", "dare_ties"):
        torch.manual_seed(7)
        out[f"peft/{method}"] = getattr(merge_utils, method)(rows, ones, 0.3).numpy()
        torch.manual_seed(7)
        masks = [merge_utils.prune(row, 0.3, method="random", rescale=True).ne(0) for row in rows]
        out[f"peft/{method}_masks"] = torch.stack(masks).numpy()

    # The code released with the papers
    pcb = released(options.pcb / "pcb-merging.py", "### With Evolutionary")
    for ratio in (0.1, 0.4):
        out[f"released/pcb_{ratio:g}"] = pcb.PCB_merge(matrix.clone(), ratio)[0].numpy()
    sys.path.insert(0, str(options.breadcrumbs))  # its files import each other
    keep = released(options.breadcrumbs / "src" / "task_vectors.py").TaskVectorMiddleKeep
    settings = SimpleNamespace(top_k_keep=0.6, top_k_remove=0.15)
    out["released/breadcrumbs"] = sum(
        flat({k: keep.mask_keep_top(settings, keep.mask_remove_top(settings, v)) for k, v in delta.items()})
        for delta in deltas
    )
    HERE.mkdir(exist_ok=True)
    np.savez_compressed(HERE / "baselines.npz", **out)


if __name__ == "__main__":
    main()
