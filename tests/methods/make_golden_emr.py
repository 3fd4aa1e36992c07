"""Makes golden/emr.npz: what fusion-bench's EMR-Merging computes of small task vectors.

Needs fusion-bench 0.2.33 in an environment of its own:

    python3.11 -m venv peers && peers/bin/pip install fusion-bench==0.2.33
    peers/bin/python tests/methods/make_golden_emr.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from fusion_bench.method.emr_merging.utils import emr_merge

SHAPES = {"a.weight": (6, 4), "a.bias": (6,), "b.weight": (3, 5)}
TASKS = 4


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = [
        {name: torch.randn(*shape, generator=generator) * (j + 1) for j, (name, shape) in enumerate(SHAPES.items())}
        for _ in range(TASKS)
    ]
    vectors[0]["a.bias"][0] = 0.0  # an entry that is 0 in every task, and one that cancels out
    for vector in vectors[1:]:
        vector["a.bias"][0] = 0.0
    for k, value in enumerate((1.0, -1.0, 0.5, -0.5)):
        vectors[k]["a.bias"][1] = value
    unified, masks, rescalers = emr_merge(vectors)

    def flat(tensors: dict[str, torch.Tensor]) -> np.ndarray:
        return torch.cat([tensors[name].flatten().float() for name in SHAPES]).numpy()

    np.savez_compressed(
        Path(__file__).parent / "golden" / "emr.npz",
        task_vectors=np.stack([flat(vector) for vector in vectors]),
        unified=flat(unified),
        masks=np.stack([flat({name: masks[name][k] for name in SHAPES}) for k in range(TASKS)]).astype(bool),
        rescalers=rescalers.numpy(),
    )


if __name__ == "__main__":
    main()
