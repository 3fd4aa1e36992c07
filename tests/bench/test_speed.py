"""The side-by-side measurement, on a pool small enough for a test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fwviz.bench import _peers, speed
from fwviz.bench.synthetic import vit_layout
from fwviz.types import FwvizError

TINY = vit_layout(width=24, blocks=1)


def test_rows_and_peers_fit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every peer is measured once for all rows that name it; ratios are ours over theirs."""
    asked: list[list[str]] = []

    def measured(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        ours = "--measure" in command
        answer = {"seconds": 1.0 if ours else 8.0, "extra_bytes": 2**20 * (3 if ours else 5)}
        return subprocess.CompletedProcess(command, 0, "noise\n" + json.dumps(answer), "")

    monkeypatch.setattr(subprocess, "run", measured)
    table = speed.run((2, 3), peer_python=Path("peer"), layout=TINY, folder=tmp_path)
    assert len(table) == 2 * len(speed.ROWS)
    assert {row.peer for row in speed.ROWS} == set(_peers.PEERS)
    assert sum(command[0] == "peer" for command in asked) == 2 * len(_peers.PEERS)
    assert (table["ratio"] == 1 / 8).all()
    assert (table["extra_mib"] == 3).all()
    assert (table["peer_extra_mib"] == 5).all()
    assert list(tmp_path.iterdir()) == []
    alone = speed.run((2,), speed.ROWS[:1], layout=TINY, folder=tmp_path)
    assert alone["ratio"].isna().all()


def test_every_row_of_ours_merges_the_pool(tmp_path: Path) -> None:
    speed._write(tmp_path, TINY, 3)
    for row in speed.ROWS:
        theta = row.ours(tmp_path, 3)()
        assert isinstance(theta, torch.Tensor)
        assert theta.shape == (TINY.size,)
        assert theta.isfinite().all()


def test_a_call_is_measured_with_its_peak() -> None:
    held = _peers.measured(lambda: torch.ones(20_000_000).add_(1))
    assert held["seconds"] > 0
    if _peers.STATUS.exists():
        assert 70e6 < held["extra_bytes"] < 200e6


def test_what_goes_wrong_is_said_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FwvizError, match="cannot be started"):
        speed.run((2,), speed.ROWS[:1], peer_python=tmp_path / "none", layout=TINY, folder=tmp_path)
    with pytest.raises(FwvizError, match="there is no row 'TIE'"):
        speed.main(["--rows", "TIE"])


@pytest.mark.slow
def test_a_process_of_ours_measures_itself(tmp_path: Path) -> None:
    table = speed.run((2,), speed.ROWS[:1], layout=TINY, folder=tmp_path)
    assert 0 < table["seconds"].iloc[0] < 20
    with pytest.raises(FwvizError, match="mergekit"):
        speed.run((2,), speed.ROWS[:1], peer_python=Path(sys.executable), layout=TINY, folder=tmp_path)
