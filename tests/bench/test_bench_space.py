"""The measuring programs themselves, on pools small enough for a test."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from fwviz.bench import kernels, layerwise, memory
from fwviz.bench.synthetic import random_base, random_move, vit_layout, write_pool
from fwviz.space.binding import bind
from fwviz.types import FwvizError

TINY = vit_layout(width=24, blocks=2)


def test_the_synthetic_pool_has_the_shapes_of_vit_b_32() -> None:
    layout = vit_layout()
    assert layout.size == 87_849_216
    assert len(layout.groups("layer")) == 14  # stem, twelve blocks, head


@pytest.mark.slow
def test_the_layout_is_that_of_the_real_tower() -> None:
    real = CLIPVisionModelWithProjection(CLIPVisionConfig(patch_size=32, projection_dim=512))
    assert not TINY.excluded
    assert bind(real, vit_layout()).theta.numel() == sum(p.numel() for p in real.parameters())


def test_kernels_counts_the_bytes_of_each_storage(tmp_path: Path) -> None:
    table = kernels.run(checkpoints=2, repeats=1, threads=(1,), layout=TINY, folder=tmp_path)
    assert len(table) == 4 * 4  # streamed, three resident dtypes; scores twice, cosines, combine
    width = table["dtype"].map({"float32": 4, "float16": 2, "bfloat16": 2})
    assert (table["gigabytes"] * 1e9).round().tolist() == (width * 2 * TINY.size).tolist()
    assert (table["gb_per_s"] * table["seconds"]).tolist() == pytest.approx(table["gigabytes"].tolist())
    assert (table["share"] > 0).all()
    streamed = table["storage"] == "streamed"
    assert (table["ahead_gb_per_s"][streamed] > 0).all()
    assert (table["ahead_share"][streamed] > 0).all()
    assert table["ahead_gb_per_s"][~streamed].isna().all()
    assert list(tmp_path.iterdir()) == []


def test_cold_files_are_forgotten_before_every_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[int] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, start, stop, advice: forgotten.append(advice))
    table = kernels.run(2, 2, (1,), TINY, tmp_path, cold=True, resident=False)
    assert list(table["storage"]) == ["streamed"] * 4
    assert forgotten == [os.POSIX_FADV_DONTNEED] * 4 * 3 * 2 * 2  # kernels, passes in turn, repeats, files
    monkeypatch.delattr(os, "posix_fadvise")
    with pytest.raises(FwvizError, match="without --cold"):
        kernels.run(2, 1, (1,), TINY, tmp_path, cold=True, resident=False)


def test_the_quadratic_is_least_at_its_checkpoints(tmp_path: Path) -> None:
    """Its gradient agrees with finite differences, and checkpoint k solves task k."""
    base, move = random_base(TINY, torch.float32), random_move(TINY)
    objective = memory.QuadraticObjective(base, move, torch.empty_like(base))
    for k, file in enumerate(write_pool(tmp_path, TINY, 2, torch.float32)):
        theta, raw = torch.empty(TINY.size), torch.empty(TINY.size * 4, dtype=torch.uint8)
        file.read_flat(0, TINY.size, theta, raw)
        losses, gradient = objective.gradient(theta, tasks=(memory.TASKS[k],))
        assert losses.item() == pytest.approx(0.0, abs=1e-9)
        assert gradient.abs().max() < 1e-7
    theta, step = base + 0.01, torch.randn(TINY.size, generator=torch.Generator().manual_seed(0))
    slope = torch.dot(objective.gradient(theta)[1], step).item()
    ahead, behind = (objective.losses(theta + sign * 1e-2 * step).mean().item() for sign in (1, -1))
    assert (ahead - behind) / 2e-2 == pytest.approx(slope, rel=1e-2)


@pytest.mark.parametrize(
    ("stderr", "reason"), [("", "it ended with code -9"), ("Traceback\nError: disk full.\n", "disk full")]
)
def test_a_failed_run_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, reason: str) -> None:
    def killed(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, -9, "", stderr)

    monkeypatch.setattr(subprocess, "run", killed)
    with pytest.raises(FwvizError, match=rf"fw_hard on 1 checkpoints failed: .*{reason}\.$"):
        memory.run((1,), ("fw_hard",), layout=TINY, folder=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", list(memory.METHODS))
def test_memory_does_not_grow_with_the_pool(tmp_path: Path, method: str) -> None:
    """42M parameters: sixteen streamed checkpoints take at most 5 % more than four."""
    layout = vit_layout(width=768, blocks=5)
    table = memory.run(checkpoints=(4, 16), methods=(method,), layout=layout, folder=tmp_path)
    assert table["growth"].iloc[1] < 0.05
    assert (table["steps"] > 1).all()
    assert (table["extra_own_mb"] * 1e6 > 4 * layout.size).all()  # a run needs θ at least: the peak is really measured


@pytest.mark.slow
def test_layer_wise_learning_needs_little_memory_at_any_number_of_checkpoints() -> None:
    table = layerwise.run((2, 4), updates=1)
    assert (table["extra_gib"] < 1.6).all()
    assert abs(table["extra_gib"].diff().iloc[1]) < 0.15


@pytest.mark.parametrize(("side", "code"), [("fwviz", -9), ("FusionBench", 1)])
def test_a_failed_side_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str, code: int) -> None:
    def ended(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        if "other-python" in command or side == "fwviz":
            return subprocess.CompletedProcess(
                command, code, "", "" if code < 0 else "Traceback\nImportError: no torch."
            )
        return subprocess.CompletedProcess(command, 0, '{"seconds_per_update": 1.0, "extra_gib": 1.0}', "")

    monkeypatch.setattr(subprocess, "run", ended)
    reason = "it ended with code -9" if code < 0 else "ImportError: no torch"
    with pytest.raises(FwvizError, match=rf"^{side} failed on 1 checkpoints: {reason}\.$"):
        layerwise.layerwise_row(1, 1, "other-python", tmp_path)


def test_ratios_are_ours_over_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        theirs = "other-python" in command
        found = f'{{"seconds_per_update": {4.0 if theirs else 1.0}, "extra_gib": {5.0 if theirs else 1.5}}}'
        return subprocess.CompletedProcess(command, 0, found, "")

    monkeypatch.setattr(subprocess, "run", ended)
    ours, _ = layerwise.layerwise_row(4, 1, "other-python", tmp_path)
    assert ours["time_ratio"] == pytest.approx(0.25)
    assert ours["memory_ratio"] == pytest.approx(0.3)
