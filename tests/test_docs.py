"""Documents that fail when something is undocumented or says what is not so."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from fwviz import registry

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", README, flags=re.M | re.S)
    assert found, f"README has no section {title!r}"
    return found[1]


def test_the_tree_has_one_line_for_each_file() -> None:
    listed: dict[str, str] = {}
    folders: list[str] = []
    for line in section("The tree").splitlines():
        entry = re.match(r"^((?:  )*)([\w./-]+/?)\s{2,}(\S.*)$", line)
        if entry:
            depth = len(entry[1]) // 2
            folders = folders[:depth]
            if entry[2].endswith("/"):
                folders.append(entry[2])
            else:
                listed["".join(folders) + entry[2]] = entry[3]
    shown = [*ROOT.glob("fwviz/**/*.py"), *ROOT.glob("assets/web/*"), ROOT / "app.py"]
    real = {str(f.relative_to(ROOT)) for f in shown if f.name != "__init__.py" and f.is_file()}
    assert set(listed) == real


@pytest.mark.parametrize("kind", ["methods", "lenses", "charts"])
def test_everything_registered_is_documented(kind: str) -> None:
    for name, entry in registry.entries(kind).items():
        assert len(entry.doc) > 80, f"{kind}/{name} has no docstring"
    if kind == "methods":
        for name in registry.entries(kind):
            assert f"`{name}`" in README, f"README does not name the method {name}"


def test_space_front_matter() -> None:
    front = yaml.safe_load(README.split("---")[1])
    assert front["sdk"] == "gradio"
    assert front["app_file"] == "app.py"
    assert (ROOT / front["app_file"]).exists()
    assert len(front["short_description"]) <= 60
    wanted = re.search(r"^gradio>=([\d.]+)", (ROOT / "requirements.txt").read_text(), flags=re.M)
    assert wanted
    assert tuple(map(int, front["sdk_version"].split("."))) >= tuple(map(int, wanted[1].split(".")))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_links_to_files_are_not_broken(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (document.parent / target).exists(), f"{document.name} links to {target}, which is not there"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_cli_lines_in_documents_are_accepted(document: Path) -> None:
    """Every ``fwviz …`` line of a code block names a command there is, and a merge is one the CLI can read."""
    from fwviz.cli import BENCHES, COMMANDS, recipe_from_arguments

    for block in re.findall(r"^```(?:sh|bash)?\n(.*?)^```", document.read_text(encoding="utf-8"), flags=re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if line.startswith("fwviz ") else []
            if words:
                assert words[1] in COMMANDS, line
            if words[1:2] == ["merge"]:
                recipe_from_arguments(words[2:])
            if words[1:2] == ["bench"]:
                assert words[2] in BENCHES, line
