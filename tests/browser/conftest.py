"""A real server on the tiny pool and a real Chromium in front of it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# The machine of a test may be busy with other tests: times that are asserted are loose, times that are shown are exact.
PATIENCE = float(os.environ.get("FWVIZ_BROWSER_PATIENCE", "60"))


def find_chromium() -> str | None:
    """The system's Chromium, or the one FWVIZ_CHROMIUM names."""
    names = (
        os.environ.get("FWVIZ_CHROMIUM", ""),
        "chromium",
        "chromium-browser",
        "google-chrome",
        "google-chrome-stable",
    )
    return next((path for name in names if name and (path := shutil.which(name))), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium; skips where there is none, unless FWVIZ_REQUIRE_BROWSER=1 forbids that."""
    required = os.environ.get("FWVIZ_REQUIRE_BROWSER") == "1"
    chromium = find_chromium()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if chromium is None or sync_playwright is None:
        missing = "Chromium" if chromium is None else "playwright"
        if required:
            pytest.fail(f"FWVIZ_REQUIRE_BROWSER=1, but there is no {missing}.")
        pytest.skip(f"there is no {missing} on this machine")
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS), timeout=PATIENCE * 1000)
        yield made
        made.close()


@pytest.fixture(scope="session")
def recording(tiny_pool_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one recorded real run on the tiny pool."""
    from fwviz.runs.recipe import Recipe
    from fwviz.runs.runner import execute
    from fwviz.runs.store import RunStore

    root = tmp_path_factory.mktemp("traces")
    store = RunStore(root)
    os.environ["FWVIZ_POOLS"] = str(tiny_pool_path.parent)
    from fwviz.pools.open import open_pool

    card = open_pool(tiny_pool_path.name).card
    recipe = Recipe.from_dict({"pool": tiny_pool_path.name, "method": "fw_soft", "settings": {"max_steps": 6}}, card)
    trace = execute(recipe, writer=store.create(recipe))
    assert trace.finished, trace.note
    assert len(trace.frames) > 6
    return root


@pytest.fixture(scope="session")
def baseless(tiny_text_pool_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool whose base is on the Hub and not on this machine."""
    root = shutil.copytree(tiny_text_pool_path, tmp_path_factory.mktemp("baseless") / "baseless")
    card = yaml.safe_load((root / "pool.yaml").read_text(encoding="utf-8"))
    card["base"]["hub"] = "someone/not-here"
    (root / "pool.yaml").write_text(yaml.safe_dump(card | {"id": "baseless"}, sort_keys=False), encoding="utf-8")
    return Path(root)


@pytest.fixture(scope="session")
def server(
    tiny_pool_path: Path, baseless: Path, recording: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of ``python app.py``, started as a person would start it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    environment = os.environ | {
        "FWVIZ_POOLS": os.pathsep.join([str(tiny_pool_path.parent), str(baseless)]),
        "FWVIZ_TRACES": str(recording),
        "FWVIZ_RUNS": str(folder / "runs"),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    log = folder / "log.txt"
    start = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "app.py")], cwd=folder, env=environment, stdout=out, stderr=out
        )
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                with urllib.request.urlopen(address, timeout=5) as answer:
                    assert answer.status == 200
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() - start < 4 * PATIENCE, "the server did not answer: " + log.read_text()
                time.sleep(0.1)
        print(f"\nfirst answer of the page {time.monotonic() - start:.1f} s after the start")
        yield address
        assert process.poll() is None, "the server died: " + log.read_text()
        assert "Traceback" not in log.read_text(), log.read_text()
    finally:
        process.terminate()
        process.wait(timeout=30)


class Watched:
    """A page with everything that must not happen written down: errors, and requests to other hosts."""

    patience = 1000 * PATIENCE  # ms

    def __init__(self, page: Any, address: str) -> None:
        self.page = page
        self.address = address
        self.errors: list[str] = []
        self.strangers: list[str] = []
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self._request)

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.strangers.append(request.url)

    def open(self, query: str = "") -> Any:
        """The page, once it shows its first chart; a second call leaves the page that was open."""
        before = len(self.errors)
        again = self.page.url.startswith(self.address)
        self.page.goto(f"{self.address}/{query}", wait_until="domcontentloaded")
        self.page.wait_for_selector(".fw-plot .main-svg")
        if again:
            self._forgive(before)
        return self.page

    def reload(self) -> None:
        before = len(self.errors)
        self.page.reload(wait_until="domcontentloaded")
        self.page.wait_for_selector(".fw-plot .main-svg")
        self._forgive(before)

    def _forgive(self, before: int) -> None:
        """gradio's old client complains of the stream that is cut by leaving: that, and only that, is let pass."""
        cut = ("AbortError", "Connection errored out")
        self.errors[before:] = [text for text in self.errors[before:] if not any(word in text for word in cut)]

    def check(self) -> None:
        assert not self.errors, self.errors
        assert not self.strangers, self.strangers


@pytest.fixture
def open_context(browser: Any, server: str) -> Iterator[Any]:
    """Makes a page in a context (a browser of its own) with given options; checks each page at the end."""
    contexts: list[Any] = []
    watched: list[Watched] = []

    def make(**options: Any) -> Watched:
        context = browser.new_context(
            **({"viewport": {"width": 1440, "height": 900}, "reduced_motion": "reduce"} | options)
        )
        context.set_default_timeout(PATIENCE * 1000)
        contexts.append(context)
        watched.append(Watched(context.new_page(), server))
        return watched[-1]

    yield make
    for one in watched:
        one.check()
    for context in contexts:
        context.close()


@pytest.fixture
def opened(open_context: Any) -> Any:
    """A page at 1440 px that shows the recording."""
    watched = open_context()
    watched.open()
    watched.page.fwviz = watched
    return watched.page
