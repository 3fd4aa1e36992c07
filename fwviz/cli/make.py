"""The commands ``train-pool`` and ``bench``: what makes the pools and the figures."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from fwviz.cli.output import parser_of
from fwviz.types import FwvizError

BENCHES = ("device", "kernels", "language", "layerwise", "memory", "methods", "scaling", "speed")


def train_pool(argv: Sequence[str]) -> int:
    """rebuild the embedded pool from packages"""
    parser = parser_of("train-pool", train_pool)
    parser.add_argument("kind", nargs="?", choices=("vision", "text"), default="vision", help="which pool (vision)")
    parser.add_argument("--name", help="id of the pool (its kind)")
    parser.add_argument("--out", type=Path, default=Path("assets/pools"), help="folder of pools (assets/pools)")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/fwviz/train-pool"), help="what is kept on the way")
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    parser.add_argument("--pretrain-seconds", type=float, default=3400, help="clock time for the base (3400)")
    parser.add_argument("--device", default="cpu", help="where to pretrain: cpu or cuda (cpu)")
    parser.add_argument("--threads", type=int, default=2, help="one core each (2)")
    parser.add_argument("--rehearse", action="store_true", help="a thirtieth of the fine-tuning, to see it run")
    parser.add_argument("--bench", type=Path, metavar="FILE", help="what bench language wrote, for the card (text)")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        from fwviz.training.main import train_pool as train_vision_pool
        from fwviz.training.text_main import train_text_pool
    except ModuleNotFoundError as error:
        raise FwvizError(f"training needs {error.name}: install fwviz/training/requirements.txt.") from None
    name = options.name or options.kind
    if options.kind == "text":
        train_text_pool(
            name, options.out, options.cache, options.seed, options.threads, options.bench, options.rehearse
        )
        return 0
    train_vision_pool(
        name,
        options.out,
        options.cache,
        options.seed,
        options.pretrain_seconds,
        options.device,
        options.threads,
        options.rehearse,
    )
    return 0


def bench(argv: Sequence[str]) -> int:
    """measure: device, kernels, language, layerwise, memory, methods, scaling or speed"""
    if not argv or argv[0] not in BENCHES:
        print(f"usage: fwviz bench {{{','.join(BENCHES)}}} …", file=sys.stderr)
        return 2
    module = importlib.import_module(f"fwviz.bench.{argv[0]}")
    code: int = module.main(list(argv[1:]))
    return code
