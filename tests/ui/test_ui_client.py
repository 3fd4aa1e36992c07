"""The app from the outside: gradio's own client, yield by yield, and many pages at once."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from fwviz.pools.open import open_pool
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import execute
from fwviz.runs.store import RunStore
from fwviz.ui.app import build_demo, launch_settings
from fwviz.ui.desk import Desk
from fwviz.ui.jobs import JobBoard
from fwviz.ui.library import Library

SESSIONS = 50
MOST_GROWTH = 64e6  # bytes, for fifty pages


@pytest.fixture(scope="module")
def address(tiny_pool_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FWVIZ_POOLS", str(tiny_pool_path.parent))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        store = RunStore(tmp_path_factory.mktemp("traces"))
        card = open_pool(tiny_pool_path.name).card
        recipe = Recipe.from_dict({"pool": tiny_pool_path.name, "method": "weight_average"}, card)
        execute(recipe, writer=store.create(recipe))
        board = JobBoard(RunStore(tmp_path_factory.mktemp("runs")))
        desk = Desk(board, Library(board, store))
        demo = build_demo(desk)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        settings = launch_settings(desk) | {"server_port": port, "server_name": "127.0.0.1", "quiet": True}
        demo.launch(prevent_thread_lock=True, **settings)
        yield f"http://127.0.0.1:{port}/"
        demo.close()
        board.close()


def open_page(address: str) -> list[Any]:
    """Everything one page is sent until nothing more comes."""
    from gradio_client import Client

    client = Client(address, verbose=False, download_files=False)
    try:
        message = json.dumps({"query": {"tab": "merge"}, "width": 1440, "runs": []})
        job = client.submit(message, api_name="/open")
        job.result(timeout=120)
        return list(job.outputs())
    finally:
        client.close()


def test_a_page_opens_yield_by_yield(address: str) -> None:
    updates = open_page(address)
    assert updates, "nothing was sent"
    said = [text for update in updates for text in update if isinstance(text, str) and text.startswith("{")]
    charts = [json.loads(text) for text in said if '"figure":{' in text]
    whole = [chart for chart in charts if "d" not in chart]  # the others say what has changed since one of these
    assert len(whole) >= 3
    assert all(chart["summary"] for chart in whole)
    assert all(chart["d"].get("summary", True) for chart in charts if "d" in chart), "no difference takes it away"


def test_no_event_has_a_public_name(address: str) -> None:
    from gradio_client import Client

    client = Client(address, verbose=False)
    try:
        assert not client.view_api(return_format="dict")["named_endpoints"]
    finally:
        client.close()


@pytest.fixture(scope="module")
def apart(tiny_pool_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, psutil.Process]]:
    """``python app.py`` with one recording, in a process of its own: what it holds is not its visitors'."""
    folder = tmp_path_factory.mktemp("apart")
    store = RunStore(folder / "traces")
    recipe = Recipe.from_dict({"pool": str(tiny_pool_path), "method": "weight_average"}, open_pool(tiny_pool_path).card)
    execute(recipe, writer=store.create(replace(recipe, pool=tiny_pool_path.name)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = Path(__file__).parents[2]
    environment = os.environ | {
        "FWVIZ_POOLS": str(tiny_pool_path.parent),
        "FWVIZ_TRACES": str(folder / "traces"),
        "FWVIZ_RUNS": str(folder / "runs"),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
    }
    address = f"http://127.0.0.1:{port}/"
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(root / "app.py")], cwd=folder, env=environment, stdout=log, stderr=log
        )
    try:
        start = time.monotonic()
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
                break
            assert process.poll() is None, (folder / "log.txt").read_text()
            assert time.monotonic() - start < 240, "the server did not answer"
            time.sleep(0.1)
        yield address, psutil.Process(process.pid)
        assert "Traceback" not in (folder / "log.txt").read_text()
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.slow
def test_fifty_pages_do_not_swell_the_server(apart: tuple[str, psutil.Process]) -> None:
    address, process = apart
    open_page(address)
    before, start = process.memory_info().rss, time.monotonic()
    visit_together(address, SESSIONS)
    grown = process.memory_info().rss - before
    visit_together(address, SESSIONS)
    more = process.memory_info().rss - before - grown
    took = time.monotonic() - start
    print(f"\n2 × {SESSIONS} pages in {took:.0f} s, memory grew by {grown / 1e6:.0f} MB, then by {more / 1e6:.0f} MB")
    assert more < MOST_GROWTH
    assert grown < MOST_GROWTH


def visit_together(address: str, count: int) -> None:
    """Pages of one server, four at a time."""
    gate = threading.BoundedSemaphore(4)
    problems: list[BaseException] = []

    def visit() -> None:
        with gate:
            try:
                assert open_page(address)
            except BaseException as error:
                problems.append(error)

    pages = [threading.Thread(target=visit) for _ in range(count)]
    for page in pages:
        page.start()
    for page in pages:
        page.join(timeout=600)
    gc.collect()
    assert not problems, problems[0]
