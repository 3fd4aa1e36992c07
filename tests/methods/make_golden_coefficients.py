"""Makes golden/coefficients.npz: coefficients and masks as FusionBench 0.2.33 learns them, on a small network.

Needs fusion-bench 0.2.33 in an environment of its own, a CPU, and golden/official_fw.npz (see make_golden.py), whose
base, first three checkpoints, images and labels are the problem here; task k belongs to checkpoint k:

    python3.11 -m venv peers_venv && peers_venv/bin/pip install fusion-bench==0.2.33
    peers_venv/bin/python tests/methods/make_golden_coefficients.py

The algorithms run unchanged; only what ties them to CLIP, a data loader and a GPU is replaced: every batch is the whole
set of its task. ``split`` are the task vectors AdaMerging++ starts from, by the released TIES code.
"""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fusion_bench.method.adamerging.layer_wise_adamerging import LayerWiseAdaMergingAlgorithm
from fusion_bench.method.adamerging.task_wise_adamerging import TaskWiseAdaMergingAlgorithm
from fusion_bench.method.concrete_subspace.clip_concrete_adamerging import ConcreteLayerWiseAdaMergingForCLIP
from fusion_bench.method.concrete_subspace.clip_concrete_task_arithmetic import ConcreteTaskArithmeticAlgorithmForCLIP
from fusion_bench.method.ties_merging.ties_merging_utils import ties_merging_split
from fusion_bench.models.wrappers.layer_wise_fusion import LayerWiseMergedModel
from omegaconf import OmegaConf
from torch import Tensor, nn

HERE = Path(__file__).parent / "golden"
TASKS, STEPS, SEED = 3, 40, 7


def load(vector: np.ndarray) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    nn.utils.vector_to_parameters(torch.from_numpy(vector.copy()), model.parameters())
    return model


class Pool:
    """The model pool as the released code uses it; models and tasks share their names."""

    def __init__(self, base: np.ndarray, checkpoints: np.ndarray) -> None:
        self.weights = {f"c{i}": vector for i, vector in enumerate(checkpoints)}
        self.model_names = list(self.weights)
        self.weights["_pretrained_"] = base

    def load_model(self, name: str) -> nn.Sequential:
        return load(self.weights[name])


def set_up(module: nn.Module, optimiser: Any) -> tuple[nn.Module, Any]:
    module.device = torch.device("cpu")  # type: ignore[assignment]
    return module, optimiser


class Offline:
    """Replaces fabric, profiler, logger, data loaders and CLIP heads."""

    fabric: Any = SimpleNamespace(
        setup=set_up,
        backward=lambda loss, **options: loss.backward(**options),
        is_global_zero=False,
        log_dict=lambda *args, **kwargs: None,
        to_device=lambda module: module,
    )
    _fabric = fabric
    is_debug_mode = False

    def __init__(self, pool: Pool, images: np.ndarray, **config: Any) -> None:
        self.modelpool, self.images = pool, torch.from_numpy(images)
        self.config = OmegaConf.create(
            {
                "optimizer": "adam",
                "lr": 1e-3,
                "max_steps": STEPS,
                "weights": None,
                "clamp_weights": True,
                "tie_weights": True,
                "strict": False,
                "init_values": 0.3,
                "save_interval": 10**9,
                **config,
            }
        )

    def profile(self, name: str) -> Any:
        return nullcontext()

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def print_profile_summary(self) -> None:
        pass

    def to_device(self, value: Any) -> Any:
        return value

    def compute_logits(self, module: nn.Module, images: Tensor, task: str) -> Tensor:
        return module(images)

    def get_shuffled_test_loader_iter(self, task: str) -> Any:
        while True:
            yield (self.images[int(task[1:])],)


class LayerWise(Offline, LayerWiseAdaMergingAlgorithm):
    pass


class TaskWise(Offline, TaskWiseAdaMergingAlgorithm):
    def compute_logits(self, module: nn.Module, images: Any, task: str) -> Tensor:
        return module(images[0])  # it hands over the whole batch


class ConcreteTaskArithmetic(Offline, ConcreteTaskArithmeticAlgorithmForCLIP):
    pass


class ConcreteLayerWise(Offline, ConcreteLayerWiseAdaMergingForCLIP):
    pass


def first_gradient(pool: Pool, images: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """∂ of the mean cross-entropy with respect to the coefficients (n, G), through the released merged model."""
    models = [pool.load_model(name) for name in pool.model_names]
    module = LayerWiseMergedModel(torch.from_numpy(rows.copy()), pool.load_model("_pretrained_"), models)
    module.merge_weights()
    losses = [
        nn.functional.cross_entropy(module(torch.from_numpy(x)), torch.from_numpy(y))
        for x, y in zip(images, labels, strict=True)
    ]
    torch.stack(losses).mean().backward()
    assert module.merge_weight.grad is not None
    return module.merge_weight.grad.numpy()


def logits(mask_model: nn.Module) -> np.ndarray:
    names = [name for name, _ in mask_model.named_parameters()]
    assert names == ["0.weight", "0.bias", "2.weight", "2.bias"], names
    return torch.cat([p.detach().flatten() for p in mask_model.parameters()]).numpy()


def main() -> None:
    with np.load(HERE / "official_fw.npz") as file:
        base, checkpoints = file["base"], file["checkpoints"][:TASKS]
        images, labels = file["images"], file["labels"]
    pool = Pool(base, checkpoints)
    arrays: dict[str, np.ndarray] = {}

    rows = np.linspace(0.05, 0.9, 12, dtype=np.float32).reshape(TASKS, 4)
    arrays["rows"], arrays["gradient"] = rows, first_gradient(pool, images, labels, rows)

    split = ties_merging_split(torch.from_numpy(checkpoints - base), reset_thresh=20, merge_func="dis-sum")[0].numpy()
    arrays["split"] = split
    for name, source in (("layer", pool), ("plus_plus", Pool(base, base + split))):
        algorithm = LayerWise(source, images)
        module = algorithm.construct_layer_wise_merged_model(source)
        arrays[name] = algorithm.test_time_adaptation(module).merge_weight.detach().numpy()
    algorithm = TaskWise(pool, images)
    arrays["task"] = (
        algorithm.test_time_adaptation(algorithm.construct_task_wise_merged_model(pool)).merge_weight.detach().numpy()
    )

    concrete = {"scaling_factor": 0.3, "initial_logits": 0.0, "temperature": 0.5, "clamp_weights": False}
    algorithm = ConcreteTaskArithmetic(pool, images, **concrete, max_steps=8)
    module, mask_model = algorithm.setup_models()
    torch.manual_seed(SEED)
    algorithm.train_mask(module, mask_model)
    arrays["mask_task_arithmetic"] = logits(mask_model)

    # One step: at later ones the released code takes the inner gradient at the coefficients of the step before.
    algorithm = ConcreteLayerWise(pool, images, **concrete, base_lr=1.0, adamerging_lr=1e-3, max_adamerging_steps=STEPS)
    algorithm.config.max_steps = 1
    module, mask_model = algorithm.setup_models()
    torch.manual_seed(SEED)
    algorithm.train_mask(module, mask_model)
    arrays["mask_adamerging"] = logits(mask_model)
    arrays["inner_adamerging"] = module.merge_weight.detach().numpy().copy()
    with torch.no_grad():
        torch.manual_seed(SEED)
        mask = {name: m / m.mean() for name, m in mask_model.sample_mask("continuous", temperature=0.5).items()}
    arrays["mask"] = torch.cat([m.flatten() for m in mask.values()]).numpy()
    found = algorithm.run_adamerging(module, mask=deepcopy(mask)).merge_weight
    arrays["masked_layer"] = found.detach().numpy()
    np.savez_compressed(HERE / "coefficients.npz", **arrays)


if __name__ == "__main__":
    main()
