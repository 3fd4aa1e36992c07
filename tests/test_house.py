"""The house rules that a tool can check: style, types, import layers, one thing per file."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"


def tool(name: str) -> str:
    """The console script beside this interpreter, so that the tests need no activated environment."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found, f"{name} is not installed: run the README's test command."
    return found


def test_ruff_finds_nothing() -> None:
    run(sys.executable, "-m", "ruff", "check", ".")


def test_format_is_ruffs() -> None:
    run(sys.executable, "-m", "ruff", "format", "--check", ".")


def test_types_hold() -> None:
    run(sys.executable, "-m", "mypy")


def test_imports_only_look_down() -> None:
    run(tool("lint-imports"))


@pytest.mark.parametrize(
    "module", ["fwviz.space.vectors", "fwviz.methods", "fwviz.tasks.objectives", "fwviz.runs.runner"]
)
def test_core_imports_without_the_ui_packages(module: str) -> None:
    """A GPU machine may have neither gradio nor plotly, and must still merge."""
    block = "import sys\nfor name in ('gradio', 'plotly', 'datasets', 'open_clip'): sys.modules[name] = None\n"
    run(sys.executable, "-c", f"{block}import {module}\nfrom fwviz import registry\nassert registry.entries('methods')")


@pytest.mark.parametrize("kind", ["methods", "lenses", "charts"])
def test_each_file_registers_one_thing_named_like_it(kind: str) -> None:
    from fwviz import registry

    files = {p.stem for p in (ROOT / "fwviz" / kind).glob("*.py") if not p.stem.startswith("_")}
    assert files == set(registry.entries(kind))
    for name, entry in registry.entries(kind).items():
        assert entry.run.__module__ == f"fwviz.{kind}.{name}"


def test_every_chart_draws_a_lens() -> None:
    from fwviz import registry

    drawn = [chart.facts["lens"] for chart in registry.entries("charts").values()]
    assert set(drawn) <= set(registry.entries("lenses"))
