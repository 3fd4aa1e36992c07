"""Makes golden/official_fw.npz and .json: what the released FW-Merging code computes on a small network.

Needs fusion-bench 0.2.24 (later versions broke its FW code) in an environment of its own, and a CPU:

    python3.11 -m venv fusion_venv && fusion_venv/bin/pip install fusion-bench==0.2.24
    fusion_venv/bin/python tests/methods/make_golden.py

The released algorithms run unchanged; only what ties them to CLIP, a data loader and a GPU is replaced: the models
are two-layer perceptrons, every batch is the whole calibration set of its task, and ``.cuda()`` does nothing.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fusion_bench.method.fw_merging.fw_hard import FrankWolfeHardAlgorithm, task_arithmetic_merge, ties_merge
from fusion_bench.method.fw_merging.fw_soft import FrankWolfeSoftAlgorithm
from torch import Tensor, nn

HERE = Path(__file__).parent / "golden"
INPUTS, HIDDEN, CLASSES, SAMPLES, TASKS, MODELS = 6, 5, 3, 12, 3, 5


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES))


def flat(model: nn.Module) -> np.ndarray:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).numpy().astype(np.float32)


def make_inputs() -> dict[str, np.ndarray]:
    """A base, checkpoints trained a little on their own task (the last two on noise), and the tasks' samples."""
    torch.manual_seed(0)
    images = torch.randn(TASKS + 2, SAMPLES, INPUTS)
    labels = torch.randint(CLASSES, (TASKS + 2, SAMPLES))
    base = network()
    checkpoints = []
    for k in range(MODELS):
        model = network()
        model.load_state_dict(base.state_dict())
        optimiser = torch.optim.Adam(model.parameters(), 0.05)
        for _ in range(12):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images[k]), labels[k]).backward()
            optimiser.step()
        checkpoints.append(flat(model))
    return {
        "base": flat(base),
        "checkpoints": np.stack(checkpoints),
        "images": images[:TASKS].numpy(),
        "labels": labels[:TASKS].numpy(),
    }


def load(vector: np.ndarray) -> nn.Sequential:
    model = network()
    nn.utils.vector_to_parameters(torch.from_numpy(vector.copy()), model.parameters())
    return model


class Pool:
    """The model pool as the released code uses it."""

    has_pretrained = True

    def __init__(self, inputs: dict[str, np.ndarray]) -> None:
        self.weights = {f"c{i}": vector for i, vector in enumerate(inputs["checkpoints"])}
        self.model_names = list(self.weights)
        self.weights["_pretrained_"] = inputs["base"]

    def load_model(self, name: str) -> nn.Sequential:
        return load(self.weights[name])


class Offline:
    """Replaces profiler, logger, fabric, data loaders and CLIP heads."""

    fabric = SimpleNamespace(
        setup=lambda module, optimiser: (module, optimiser),
        backward=lambda loss: loss.backward(),
        is_global_zero=True,
        log_dict=lambda *args, **kwargs: None,
    )
    config: Any = None
    is_debug_mode = False

    def profile(self, name: str) -> Any:
        return nullcontext()

    def log_hyperparams(self, config: Any) -> None:
        pass

    def on_frank_wolfe_iteration_start(self) -> None:
        pass

    def compute_logits(self, module: nn.Module, images: Tensor, task: str) -> Tensor:
        return module(images)

    def whole(self, task: str, batch_size: int = 1) -> Any:
        k = int(task[1:])
        while True:
            yield self.images[k], self.labels[k]

    get_shuffled_loader_iter = whole
    get_shuffled_train_loader_iter = whole


class Hard(Offline, FrankWolfeHardAlgorithm):
    def __init__(self, inputs: dict[str, np.ndarray], **facts: Any) -> None:
        self.images, self.labels = torch.from_numpy(inputs["images"]), torch.from_numpy(inputs["labels"])
        self.init_weight, self.max_num_models, self.loss_fn = "", 100, "cross_entropy"
        self.tasks, self.dataset_size = [f"t{k}" for k in range(TASKS)], 1
        self.chosen: list[Any] = []
        for name, value in facts.items():
            setattr(self, name, value)

    def frank_wolfe_selection(self, *args: Any, **kwargs: Any) -> Any:
        found = super().frank_wolfe_selection(*args, **kwargs)
        self.chosen.append(found[1])
        return found


class Soft(Offline, FrankWolfeSoftAlgorithm):
    def __init__(self, inputs: dict[str, np.ndarray], **facts: Any) -> None:
        self.images, self.labels = torch.from_numpy(inputs["images"]), torch.from_numpy(inputs["labels"])
        self.init_weight, self.max_num_models, self.ada_loss = "", 100, "cross_entropy"
        self.tasks, self.dataset_size = [f"t{k}" for k in range(TASKS)], 1
        self.step_size, self.ada_coeff = 0.1, 1e-8
        self.chosen: list[Any] = []
        for name, value in facts.items():
            setattr(self, name, value)

    def frank_wolfe_selection(self, *args: Any, **kwargs: Any) -> Any:
        found = super().frank_wolfe_selection(*args, **kwargs)
        self.chosen.append(found[1])
        return found


def main() -> None:
    nn.Module.cuda = lambda self: self  # type: ignore[method-assign,assignment]
    inputs = make_inputs()
    arrays: dict[str, np.ndarray] = dict(inputs)
    chosen: dict[str, Any] = {}

    def ties(pretrained_model: nn.Module, finetuned_models: list[Any], scaling_factor: float) -> nn.Module:
        return ties_merge(pretrained_model, finetuned_models, scaling_factor, threshold=20)

    for kind in ("task", "layer"):
        for name, merge in (("convex", task_arithmetic_merge), ("ties", ties)):
            # scaling_factor also scales the initial solution that task arithmetic makes: 0.3·Σ τ.
            hard = Hard(inputs, granularity=kind, merge_fn=merge, scaling_factor=0.3, step_size=0.1, max_iters=4)
            hard.init_weight = "base" if name == "ties" else ""
            arrays[f"hard_{kind}_{name}"] = flat(hard.run(Pool(inputs)))
            chosen[f"hard_{kind}_{name}"] = hard.chosen
        soft = Soft(inputs, granularity=kind, merge_fn="task_arithmetic", max_iters=4, ada_iters=0)
        arrays[f"soft_{kind}_none"] = flat(soft.run(Pool(inputs)))
        chosen[f"soft_{kind}_none"] = soft.chosen
        soft = Soft(inputs, granularity=kind, merge_fn="adamerging", max_iters=3, ada_iters=25)
        arrays[f"soft_{kind}_official"] = flat(soft.run(Pool(inputs)))
        chosen[f"soft_{kind}_official"] = soft.chosen
    HERE.mkdir(exist_ok=True)
    np.savez_compressed(HERE / "official_fw.npz", **arrays)
    (HERE / "official_fw.json").write_text(json.dumps(chosen, indent=1) + "\n")


if __name__ == "__main__":
    main()
