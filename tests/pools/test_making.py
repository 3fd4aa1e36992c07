"""Folders left by killed processes: swept when their time is over, unless somebody is still at work in them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fwviz.pools.making import SETTLED, hold, making, sweep


def left(folder: Path, age: float = 2 * SETTLED) -> Path:
    """A folder with something in it that was last touched some seconds ago."""
    (folder / "inside").mkdir(parents=True)
    (folder / "inside" / "model.safetensors").write_bytes(b"x" * 100)
    os.utime(folder, (time.time() - age,) * 2)
    return folder


def test_what_a_killed_process_left_is_swept_and_what_a_live_one_makes_is_not(tmp_path: Path) -> None:
    """Two servers make pools in one place; one is killed with the other at work."""
    script = (
        "import sys, time; from pathlib import Path; from fwviz.pools.making import making\n"
        "with making(Path(sys.argv[1])) as folder: print(folder, flush=True); time.sleep(60)"
    )
    servers = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        killed, alive = (Path(server.stdout.readline().strip()) for server in servers)  # type: ignore[union-attr]
        for folder in (killed, alive):
            left(folder)
        with making(tmp_path):
            assert killed.is_dir()  # both live
        servers[0].send_signal(signal.SIGKILL)
        servers[0].wait()
        with making(tmp_path) as folder:
            assert set(tmp_path.iterdir()) == {alive, folder}
            assert (alive / "inside" / "model.safetensors").is_file()
    finally:
        for server in servers:
            server.kill()
            server.wait()
            server.stdout.close()  # type: ignore[union-attr]
    assert list(tmp_path.iterdir()) == [alive]


def test_a_folder_made_a_moment_ago_is_not_swept(tmp_path: Path) -> None:
    """Its process may not hold it yet."""
    young = left(tmp_path / ".making-0123456789ab", SETTLED - 60)
    with making(tmp_path):
        assert young.is_dir()
    os.utime(young, (time.time() - SETTLED - 60,) * 2)
    with making(tmp_path):
        assert not young.exists()


def test_nothing_else_is_swept(tmp_path: Path) -> None:
    """What only looks like one: a person's folders, a file, a link to somewhere."""
    kept = [left(tmp_path / "place" / name) for name in (".making-of", "making-0123456789ab", "pool")]
    target = left(tmp_path / "target")
    link = tmp_path / "place" / ".making-0123456789ab"
    link.symlink_to(target)
    file = tmp_path / "place" / ".making-0123456789ac"
    file.write_text("mine")
    os.utime(file, (0, 0))
    with making(tmp_path / "place"):
        pass
    assert all((folder / "inside" / "model.safetensors").is_file() for folder in (*kept, target))
    assert link.is_symlink()
    assert file.read_text() == "mine"


def test_what_is_held_stays_until_it_is_let_go(tmp_path: Path) -> None:
    folder = left(tmp_path / "folder")
    with hold(folder):
        sweep([folder])
        assert folder.is_dir()
    sweep([folder])
    assert not folder.exists()


def test_a_folder_is_gone_whatever_ends_its_making(tmp_path: Path) -> None:
    def fail() -> None:
        with making(tmp_path / "new" / "place") as folder:
            (folder / "x").mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list((tmp_path / "new" / "place").iterdir()) == []
