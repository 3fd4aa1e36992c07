"""Makes golden/regression.npz: what FusionBench makes of given Fisher information and given input products.

Needs fusion-bench 0.2.33 in an environment of its own (see requirements-peers.txt), and a CPU:

    peers_venv/bin/python tests/methods/make_golden_regression.py

Three checkpoints of a small layout with two linear weights that read different inputs, a bias and a tensor of no
linear layer. The functions run unchanged with their defaults (normalised Fisher information, floor 1e-6) and with the
off-diagonal factors 0.95, 0.6 and 1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from fusion_bench.method.fisher_merging.fisher_merging import merging_with_fisher_weights
from fusion_bench.method.regmean.regmean import merging_with_regmean_weights

HERE = Path(__file__).parent / "golden"
SHAPES = {
    "embeddings.class_embedding": (5,),
    "layers.0.fc1.weight": (6, 4),
    "layers.0.fc1.bias": (6,),
    "layers.0.fc2.weight": (4, 6),
}
MODELS = 3


def main() -> None:
    generator = torch.Generator().manual_seed(11)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    base = {name: draw(*shape) for name, shape in SHAPES.items()}
    models = [{name: base[name] + 0.3 * draw(*shape) for name, shape in SHAPES.items()} for _ in range(MODELS)]
    # Information over many orders of magnitude, as it is measured; one checkpoint far larger than the others.
    fishers = [
        {name: 10.0 ** (size + 1.5 * draw(*shape)) for name, shape in SHAPES.items()} for size in (-5.0, -3.0, -7.0)
    ]
    inputs = [
        {name: draw(20, SHAPES[name][1]) + 1.0 for name in SHAPES if name.endswith("weight")} for _ in range(MODELS)
    ]
    grams = [{name: rows.T @ rows / len(rows) for name, rows in model.items()} for model in inputs]
    columns = {name: [model[name] for model in models] for name in SHAPES}

    def flat(tensors: dict[str, torch.Tensor]) -> np.ndarray:
        return torch.cat([tensors[name].flatten() for name in SHAPES]).numpy()

    out = {
        "base": flat(base),
        "checkpoints": np.stack([flat(model) for model in models]),
        "fishers": np.stack([flat(fisher) for fisher in fishers]),
        "fisher": flat(merging_with_fisher_weights(columns, fishers, torch.ones(MODELS) / MODELS)),
        "fisher_raw": flat(
            merging_with_fisher_weights(columns, fishers, torch.ones(MODELS) / MODELS, normalize_fisher_weight=False)
        ),
    }
    for name in grams[0]:
        out[f"gram {name}"] = np.stack([gram[name].numpy() for gram in grams])
    modules = [{name.removesuffix(".weight"): gram for name, gram in model.items()} for model in grams]
    for factor in (0.95, 0.6, 1.0):
        out[f"regmean {factor:g}"] = flat(merging_with_regmean_weights(columns, modules, factor))
    np.savez_compressed(HERE / "regression.npz", **out)


if __name__ == "__main__":
    main()
