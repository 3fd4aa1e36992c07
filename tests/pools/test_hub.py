"""Cards of the Hub: what they say, what `check` finds without loading, what `fetch` loads, and every refusal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from fwviz.cli import main
from fwviz.pools.hub import check_card, fetch, hub_card_ids, hub_view, load_hub_card, repositories
from fwviz.types import FwvizError
from tests.hub_server import Hub, serving

pytestmark = pytest.mark.filterwarnings("ignore")  # of the client, about tokens and links

CARD = {
    "id": "tiny-hub",
    "title": "Tiny",
    "summary": "Two checkpoints.",
    "family": "clip_vision",
    "base": {"hub": "org/base"},
    "merge": {"include": ["vision_model."], "exclude": []},
    "checkpoint_hub": "org/base_{task}",
    "tasks": [
        {
            "id": task,
            "title": task,
            "metric": "accuracy",
            "classes": ["a", "b"],
            "prompts": ["a {}"],
            "data": {"hub": "org/letters", "splits": {"calibration": "train", "test": "test"}},
        }
        for task in ("one", "two")
    ],
    "subsets": {"1": ["one"]},
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with the base, both checkpoints and a data set; nothing of it is on this machine."""
    for name in ("base", "base_one", "base_two"):
        folder = tmp_path / "repositories" / name
        folder.mkdir(parents=True)
        save_file({"x": torch.arange(5000.0)}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": "clip"}))
        torch.save({"x": torch.zeros(9)}, folder / "pytorch_model.bin")
        (folder / "run.py").write_text("raise SystemExit")
    data = tmp_path / "repositories" / "letters"
    data.mkdir()
    (data / "train.parquet").write_bytes(b"PAR1" + b"x" * 100)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        for name in ("base", "base_one", "base_two"):
            server.repositories[f"models/org/{name}"] = tmp_path / "repositories" / name
        server.repositories["datasets/org/letters"] = data
        server.licences["models/org/base"] = "mit"
        yield server


@pytest.fixture
def card(tmp_path: Path) -> Path:
    path = tmp_path / "tiny-hub.yaml"
    path.write_text(yaml.safe_dump(CARD))
    return path


def size(folder: Path, *names: str) -> int:
    return sum((folder / name).stat().st_size for name in names)


@pytest.mark.parametrize("name", hub_card_ids())
def test_the_cards_of_the_papers_are_whole(name: str) -> None:
    card = load_hub_card(name)
    assert card.id == name
    assert {c.task for c in card.checkpoints} == {t.id for t in card.tasks}
    assert len(card.checkpoints) == {"clip_vision": 20, "causal_lm": 16}.get(card.family, 8)
    assert all(task.prompts for task in card.tasks) == (card.family == "clip_vision")
    assert len(repositories(card, data=False)) == len(card.checkpoints) + 1
    if card.family == "clip_vision":
        assert [len(card.subset(count).checkpoints) for count in ("8", "14", "20")] == [8, 14, 20]


def test_check_says_size_and_licence_and_loads_nothing(hub: Hub, card: Path, tmp_path: Path) -> None:
    reports = {report.hub: report for report in check_card(load_hub_card(card))}
    assert list(reports) == ["org/base", "org/base_one", "org/base_two", "org/letters"]
    folder = tmp_path / "repositories" / "base"
    assert reports["org/base"].bytes == size(folder, "model.safetensors", "config.json")
    assert reports["org/base"].missing_bytes == reports["org/base"].bytes
    assert (reports["org/base"].licence, reports["org/base_one"].licence) == ("mit", "not said")
    assert all(report.state == "missing" for report in reports.values())
    assert not any("/resolve/" in path for _, path, _ in hub.asked)
    assert not (tmp_path / "cache").exists()


def test_fetch_takes_weights_and_configuration_only(hub: Hub, card: Path, tmp_path: Path) -> None:
    folder = fetch("org/base")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    first = len(hub.downloads("model.safetensors"))
    assert fetch("org/base") == folder
    assert len(hub.downloads("model.safetensors")) == first, "what is there is not loaded again"
    states = {report.hub: report.state for report in check_card(load_hub_card(card))}
    assert states["org/base"] == "here"
    assert states["org/base_one"] == "missing"
    offline = {report.hub: report.state for report in check_card(load_hub_card(card), offline=True)}
    assert offline["org/base"] == "here"
    assert offline["org/base_two"] == "missing"


def test_an_interrupted_download_is_taken_up_again(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)  # what it writes at once, else 10 MB
    hub.cut["model.safetensors"] = 1
    folder = fetch("org/base")
    assert (folder / "model.safetensors").stat().st_size > 20_000
    ranges = hub.downloads("model.safetensors")
    assert len(ranges) == 2
    assert int(ranges[1].removeprefix("bytes=").partition("-")[0]) > 5000, "the second request asks for the rest"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"unknown": True}, "org/base_two is not on the Hub, or private"),
    "gated": ({"gated": True}, "org/base_two is gated: agree to its terms"),
    "forbidden": ({"status": 403}, "the token may not read it"),
    "too often": ({"status": 429}, "asks for a pause"),
    "broken": ({"status": 500}, "the Hub answered 500"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_one_sentence(name: str, hub: Hub) -> None:
    what, message = REFUSED[name]
    key = "models/org/base_two"
    if what.get("unknown"):
        hub.repositories.pop(key)
    elif what.get("gated"):
        hub.gated.add(key)
    else:
        hub.status[key] = what["status"]
    with pytest.raises(FwvizError, match=message) as raised:
        fetch("org/base_two")
    assert "\n" not in str(raised.value)


def test_one_refusal_does_not_hide_the_others(hub: Hub, card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.status["models/org/base_two"] = 429
    shutil.rmtree(hub.repositories["models/org/base_one"] / "x", ignore_errors=True)
    (hub.repositories["models/org/base_one"] / "model.safetensors").unlink()
    reports = {report.hub: report for report in check_card(load_hub_card(card))}
    assert reports["org/base"].state == "missing"
    assert reports["org/base_one"].note == "has no safetensors file: only pickles, which are never loaded"
    assert "asks for a pause" in reports["org/base_two"].note
    assert main(["pools", "check", str(card)]) == 1
    printed = capsys.readouterr()
    assert "org/base_one" in printed.out
    assert printed.err.count("\n") == 1
    assert "2 repositories cannot be had" in printed.err


def test_a_hub_that_cannot_be_reached(card: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    reports = check_card(load_hub_card(card))
    assert all(report.state == "refused" and "check the network" in report.note for report in reports)
    assert main(["pools", "check", str(card), "--offline"]) == 0


def test_the_command_line_checks_and_fetches(hub: Hub, card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pools", "check", str(card), "--subset", "1"]) == 0
    out = capsys.readouterr().out
    assert "org/base_one" in out
    assert "org/base_two" not in out
    assert "0 of 3 repositories are here; 40.3 kB to load" in out
    assert main(["pools", "fetch", str(card), "--subset", "1"]) == 0
    assert main(["pools", "check", str(card), "--subset", "1"]) == 0
    assert "3 of 3 repositories are here; 0 B to load" in capsys.readouterr().out


def test_a_pool_whose_base_is_on_the_hub(text_pool_copy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FwvizError, match="needs nothing of the Hub"):
        hub_view(str(text_pool_copy.root))
    text_pool_copy.edit(lambda card: (card["base"].pop("path"), card["base"].update(hub="org/base")))
    assert repositories(hub_view(str(text_pool_copy.root))) == [("org/base", "model")]
    with pytest.raises(FwvizError, match="no card or pool 'nothing'"):
        hub_view("nothing")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an address": ({"base": {"hub": "https://evil/x"}}, r"base\.hub"),
    "a path": ({"checkpoint_hub": "../../{task}"}, "checkpoints"),
    "family": ({"family": "gan"}, "family is 'gan'"),
    "catalogue outside": ({"catalogue": "../secret"}, "catalogue"),
    "subset": ({"subsets": {"1": ["three"]}}, "'three'"),
    "metric": ({"tasks": [CARD["tasks"][0] | {"metric": "luck"}]}, "metric is 'luck'"),  # type: ignore[index]
    "twice": ({"tasks": [CARD["tasks"][0]] * 2}, "twice"),  # type: ignore[index]
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_card_names_the_key(name: str, card: Path) -> None:
    change, message = WRONG[name]
    card.write_text(yaml.safe_dump(CARD | change).replace("&id001", "").replace("*id001", "x"))
    if name == "twice":
        card.write_text(json.dumps(CARD | change))
    with pytest.raises(FwvizError, match=message) as raised:
        load_hub_card(card)
    assert "\n" not in str(raised.value)
