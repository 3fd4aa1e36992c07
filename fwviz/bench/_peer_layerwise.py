"""FusionBench's layer-wise merged model on random ViT-B/32 towers: run by layerwise.py in an environment of its own.

Reads a request on stdin, prints one line of JSON. Nothing of fwviz is imported here.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from fusion_bench.method.adamerging.entropy_loss import entropy_loss
from fusion_bench.models.wrappers.layer_wise_fusion import LayerWiseMergedModel, get_layer_wise_weights
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection


def allocated() -> int:
    """RssAnon in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


class Peak:
    """The largest ``allocated`` while the block runs, sampled 200 times a second."""

    def __enter__(self) -> Peak:
        self.bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.bytes = max(self.bytes, allocated())


def tower(seed: int) -> torch.nn.Module:
    """A ViT-B/32 tower with random weights; those of different seeds differ a little."""
    torch.manual_seed(0)
    model = CLIPVisionModelWithProjection(
        CLIPVisionConfig(patch_size=32, projection_dim=512, attn_implementation="sdpa")
    ).eval()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters() if seed else ():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=1e-3)
    return model


def measure(request: dict[str, Any]) -> dict[str, Any]:
    count = request["checkpoints"]
    start = allocated()
    base = tower(0)
    size = sum(p.numel() for p in base.parameters())
    models = [tower(1 + i) for i in range(count)]
    weights = get_layer_wise_weights(count, len(list(base.parameters())), init_values=0.3)
    # Not strict: the towers of newer transformers have position ids, a buffer that no merge touches.
    module = LayerWiseMergedModel(weights, base, models, strict=False)
    optimiser = torch.optim.Adam([module.merge_weight], lr=1e-3)
    random = torch.Generator().manual_seed(4)
    pixels = torch.randn(count, request["batch"], 3, 224, 224, generator=random)
    head = torch.randn(request["classes"], 512, generator=random)
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # what set-up needed for a moment is not counted
    with Peak() as peak:
        module.merge_weights()
        seconds = []
        for _ in range(request["updates"]):
            begin = time.perf_counter()
            for images in pixels:  # as its AdaMerging does: one backward pass per task through the kept graph
                features = torch.nn.functional.normalize(module(pixel_values=images).image_embeds, dim=-1)
                entropy_loss(features @ head.T).backward(retain_graph=True)
            optimiser.step()
            optimiser.zero_grad()
            module.merge_weights()
            seconds.append(time.perf_counter() - begin)
    return {
        "side": "FusionBench",
        "checkpoints": count,
        "seconds_per_update": statistics.median(seconds),
        "extra_gib": (peak.bytes - start - 4 * size) / 2**30,
    }


if __name__ == "__main__":
    print(json.dumps(measure(json.load(sys.stdin))))
