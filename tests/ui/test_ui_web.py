"""What the page loads and what can be downloaded: our own files and runs, nothing else of this machine."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from starlette.applications import Starlette
from starlette.testclient import TestClient

from fwviz import registry
from fwviz.pools.open import open_pool
from fwviz.runs.merged import load_merged
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import execute
from fwviz.runs.store import RunStore
from fwviz.tasks.data import load_split
from fwviz.ui import exports, web
from fwviz.ui.chart import make_chart, payload
from fwviz.ui.jobs import JobBoard
from fwviz.ui.library import Library
from fwviz.ui.state import View


@pytest.fixture(scope="module")
def recorded(tiny_pool_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, View]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FWVIZ_POOLS", str(tiny_pool_path.parent))
        store = RunStore(tmp_path_factory.mktemp("traces"))
        settings = {"max_steps": 1, "inner_updates": 2, "batch_size": 4}
        fields = {"pool": tiny_pool_path.name, "method": "fw_soft", "settings": settings}
        recipe = Recipe.from_dict(fields | {"tasks": ["colour"], "checkpoints": ["colour", "shape"]})
        trace = execute(recipe, writer=store.create(recipe))
        assert trace.finished, trace.note
        library = Library(JobBoard(RunStore(tmp_path_factory.mktemp("runs"))), store)
        routes = [*exports.routes(web.PREFIX, library), *web.routes()]
        yield TestClient(Starlette(routes=routes)), View("rec", trace.id)


def test_scripts_and_plotly_are_served_packed_and_kept(recorded: tuple[TestClient, View]) -> None:
    client, _ = recorded
    for name in (*web.SCRIPTS, "style.css", "plotly.min.js"):
        answer = client.get("/" + web.address(name))
        assert answer.status_code == 200, name
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["content-encoding"] == "gzip"
    plain = client.get("/fwviz/style.css", headers={"accept-encoding": "identity"})
    assert plain.content == (web.ASSETS / "style.css").read_bytes()
    assert len(gzip.compress(plain.content)) < 16_000
    assert "content-encoding" not in plain.headers


@pytest.mark.parametrize(
    "path", ["pool.yaml", "../../app.py", "..%2f..%2fapp.py", "%2e%2e/web.py", "card.html", "style.css%00", "web.py"]
)
def test_no_other_file_is_served(recorded: tuple[TestClient, View], path: str) -> None:
    client, _ = recorded
    assert client.get(f"/fwviz/{path}").status_code in (400, 404)


def test_head_and_scripts_name_no_other_host() -> None:
    text = web.head() + web.scripts()
    for name in (*web.SCRIPTS, "style.css", "header.html", "card.html"):
        text += (web.ASSETS / name).read_text(encoding="utf-8")
    hosts = set(re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", text))
    assert hosts <= {"http://www.w3.org"}, hosts


def test_every_light_colour_has_one_dark_counterpart() -> None:
    pairs = web._dark_of_light()
    assert pairs["#ffffff"] != "#ffffff"
    assert {key.startswith("#") for key in pairs} == {True, False}
    light = [colour for colour in pairs if colour.startswith("#")]
    assert len(set(light)) == len(light)
    assert not set(light) & {pairs[colour] for colour in light if pairs[colour] in light and pairs[colour] != colour}


def test_downloads_of_a_run(recorded: tuple[TestClient, View]) -> None:
    client, view = recorded
    recipe = client.get(f"/fwviz/export/{view}/recipe")
    assert yaml.safe_load(recipe.text)["tasks"] == ["colour"]
    assert "attachment" in recipe.headers["content-disposition"]
    table = client.get(f"/fwviz/export/{view}/table").text.splitlines()
    assert table[0].startswith("index,t,inner")
    record = zipfile.ZipFile(io.BytesIO(client.get(f"/fwviz/export/{view}/trace").content))
    assert {Path(name).name for name in record.namelist()} >= {"header.json", "frames.jsonl", "result.json"}


def test_the_record_of_a_failed_run_says_no_place_of_the_server(tmp_path: Path) -> None:
    gone = tmp_path / "place" / "pools" / "gone"
    store = RunStore(tmp_path / "runs")
    recipe = Recipe.from_dict({"pool": str(gone), "method": "weight_average", "tasks": ["x"], "checkpoints": ["a"]})
    writer = store.create(recipe)
    trace = execute(recipe, writer=writer)
    assert (trace.status, str(gone) in trace.note) == ("failed", True)
    # As one that is cut off in the middle of a line has it, too.
    with (writer.folder / "frames.jsonl").open("a") as frames:
        frames.write('{"index": 1, "note": "/srv/secret/file')
    library = Library(JobBoard(store), RunStore(tmp_path / "none"))
    client = TestClient(Starlette(routes=exports.routes(web.PREFIX, library)))
    answer = client.get(f"/fwviz/export/run:{writer.id}/trace")
    assert answer.status_code == 200, answer.text
    record = zipfile.ZipFile(io.BytesIO(answer.content))
    for name in record.namelist():
        content = record.read(name)
        assert str(tmp_path).encode() not in content, name
        assert b"/srv/" not in content, name
    # What is left is still a record, and says what was wrong.
    record.extractall(tmp_path / "home")
    again = RunStore(tmp_path / "home").load(writer.id)
    assert again.status == "failed"
    assert again.note == trace.note.replace(f"{gone.parent}/", "")
    assert again.frames[0].note == again.note


def test_downloaded_weights_load(recorded: tuple[TestClient, View], tmp_path: Path) -> None:
    from transformers import CLIPModel

    client, view = recorded
    answer = client.get(f"/fwviz/export/{view}/weights?index=2")
    assert answer.status_code == 200, answer.text
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    archive.extractall(tmp_path)
    (folder,) = tmp_path.iterdir()
    assert CLIPModel.from_pretrained(folder).config.vision_config.image_size == 16
    assert (folder / "recipe.yaml").is_file()


@pytest.mark.parametrize(
    ("method", "settings"), [("emr", {}), ("free_merging", {}), ("twin", {}), ("surgery", {"updates": 10})]
)
def test_downloaded_parts_come_from_the_record(
    recorded: tuple[TestClient, View],
    tiny_pool_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    settings: dict[str, int],
) -> None:
    """A merge with experts or maps that has ended is not run again to be taken home."""
    store = RunStore(tmp_path / "runs")
    fields = {"pool": tiny_pool_path.name, "method": method, "settings": settings}
    recipe = Recipe.from_dict(fields | {"tasks": ["colour", "shape"], "checkpoints": ["colour", "shape"]})
    trace = execute(recipe, writer=store.create(recipe))
    assert trace.status != "failed", trace.note
    library = Library(JobBoard(store), RunStore(tmp_path / "none"))
    client = TestClient(Starlette(routes=exports.routes(web.PREFIX, library)))

    def refuse(*arguments: object) -> None:
        raise AssertionError("the method ran again")

    known = registry.entry("methods", method)
    monkeypatch.setitem(registry._REGISTRIES["methods"], method, dataclasses.replace(known, run=refuse))
    answer = client.get(f"/fwviz/export/run:{trace.id}/weights?index={len(trace.frames) - 1}")
    assert answer.status_code == 200, answer.text
    zipfile.ZipFile(io.BytesIO(answer.content)).extractall(tmp_path / "out")
    (folder,) = (tmp_path / "out").iterdir()
    model = load_merged(folder)
    card = open_pool(tiny_pool_path.name).card
    for task in recipe.tasks:
        data = load_split(card, card.task(task), "test")
        right = (model.logits(data.inputs, task).argmax(-1) == data.labels).float().mean().item()
        assert right == pytest.approx(trace.final["test"][task].accuracy, abs=1e-7)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("rec:nothing-here/recipe", 404),
        ("rec:..%2f..%2fetc/trace", 404),
        ("nonsense/recipe", 404),
        ("{view}/passwords", 404),
        ("{view}/weights?index=nan", 404),
    ],
)
def test_what_is_not_there_is_said(recorded: tuple[TestClient, View], path: str, status: int) -> None:
    client, view = recorded
    answer = client.get("/fwviz/export/" + path.format(view=view))
    assert answer.status_code == status
    assert "Traceback" not in answer.text


def test_a_card_carries_no_template_of_its_own() -> None:
    made = make_chart("odd", title="What is `x` in ${y} and {{z}}?", reading="<b>\\n</b>", rows=lambda asked: asked)
    assert "`" not in made.html_template
    assert "${" not in made.html_template
    assert "{{" not in made.html_template
    assert "<b>" not in made.html_template


def test_payloads_are_versioned_json() -> None:
    first, second = (json.loads(payload(None, key="rec:a", note="nothing")) for _ in range(2))
    assert second["v"] > first["v"]
    assert first["figure"] is None
    assert first["v"] < 2**53, "JavaScript could not hold the version"
