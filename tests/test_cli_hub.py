"""Bases and checkpoints of the Hub on the command line: `own` and `pools open` with a Hub that may say no."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fwviz.pools.open import open_pool
from fwviz.runs.store import RunStore
from tests.command import Run
from tests.hub_server import Hub, serving
from tests.own_corpus import shapes_zip
from tests.own_models import lora_of

pytestmark = pytest.mark.filterwarnings("ignore")  # of the client, about tokens and links


@pytest.fixture
def hub(tiny_pool_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with the tiny base under an id with dots and one without owner, a whole checkpoint, and a LoRA."""
    for name in ("OWN", "RUNS"):
        monkeypatch.setenv(f"FWVIZ_{name}", str(tmp_path / name.lower()))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    base, shape = tiny_pool_path / "base", tiny_pool_path / "checkpoints" / "shape"
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.repositories = {
            "models/org/base-v1.5": base,
            "models/tiny-base": base,
            "models/org/shape-0.2": shape,
            "models/org/lora": lora_of(shape, base, tmp_path / "lora"),
        }
        yield server


def tree(folder: Path) -> set[str]:
    """What is written, but for the Hub's cache."""
    return {str(file) for file in folder.rglob("*") if "cache" not in file.relative_to(folder).parts}


@pytest.mark.parametrize("base", ["org/base-v1.5", "tiny-base"])
def test_own_takes_base_and_checkpoints_of_the_hub(base: str, run: Run, hub: Hub, tmp_path: Path) -> None:
    file = shapes_zip(tmp_path / "a.zip", 6)
    words = ("own", file, "--base", base, "--method", "weight_average", "--bring", "org/shape-0.2", "org/lora")
    code, out, err = run(*words, "--out", tmp_path / "merged")
    assert code == 0, err
    assert "base: a CLIP of 0.0472 million weights" in out
    assert "shape-0.2: fits the base." in out
    assert "lora: fits the base; a LORA adapter that changes 4 tensors" in out
    (run_id,) = RunStore().ids()
    pool = open_pool(RunStore().load(run_id).recipe.pool)
    assert pool.card.base["hub"] == base
    assert pool.checkpoint_ids == ("shape_0_2", "lora")
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    # Without the Hub, from its cache: the same again.
    asked = len(hub.downloads("model.safetensors"))
    hub.status = dict.fromkeys(hub.repositories, 503)
    code, again, err = run(*words)
    assert code == 0, err
    assert re.search(r"^a .*$", again, re.M)[0] == re.search(r"^a .*$", out, re.M)[0]  # type: ignore[index]
    assert len(hub.downloads("model.safetensors")) == asked


def test_pools_open_takes_checkpoints_of_the_hub(run: Run, hub: Hub, tiny_pool_path: Path, tmp_path: Path) -> None:
    hub.cut["model.safetensors"] = 1  # cut off once: it is taken up again
    words = ("pools", "open", "org/shape-0.2", "org/lora", "--pool", tiny_pool_path)
    code, _, err = run(*words, "--out", tmp_path / "new")
    assert code == 0, err
    pool = open_pool(tmp_path / "new")
    assert pool.checkpoint_ids[-2:] == ("shape_0_2", "lora")
    theirs = load_file(tiny_pool_path / "checkpoints" / "shape" / "model.safetensors")
    own = load_file(tmp_path / "new" / "checkpoints" / "shape_0_2" / "model.safetensors")
    assert all(torch.equal(theirs[name], own[name]) for name in theirs)
    assert run("pools", tmp_path / "new", "--verify")[0] == 0
    assert run("merge", "--pool", tmp_path / "new", "--method", "weight_average")[0] == 0


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"unknown": True}, "org/lora cannot be had: it is not on the Hub, or private: correct the id"),
    "401": ({"status": 401}, "org/lora cannot be had: it (is not on the Hub, or private|could not be read)"),
    "403": ({"status": 403}, "org/lora cannot be had: it could not be read: the token may not read it"),
    "404": ({"status": 404}, "org/lora cannot be had: it could not be read: it is not there"),
    "429": ({"status": 429}, "org/lora cannot be had: .* asks for a pause: try again in some minutes"),
    "500": ({"status": 500}, "org/lora cannot be had: .* answered 500; try again later"),
    "gated": ({"gated": True}, "org/lora is gated: agree to its terms"),
    "cut off": ({"cut": 99}, "the download of org/lora was cut off: try again, what is there is kept"),
    "pickles": ({"pickles": True}, "org/lora cannot be had: it has no safetensors file: only pickles, which are never"),
    "nothing": ({"nothing": True}, "org/lora cannot be had: it has no safetensors file"),
    "no network": ({"url": "http://127.0.0.1:9"}, "org/lora cannot be had: .*check the network"),
    "offline": ({"offline": True}, "org/lora cannot be had: .*HF_HUB_OFFLINE is set|org/lora .*check the network"),
}


def spoil(hub: Hub, what: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "models/org/lora"
    if "unknown" in what:
        hub.repositories.pop(key)
    if "status" in what:
        hub.status[key] = what["status"]
    if "gated" in what:
        hub.gated.add(key)
    if "cut" in what:
        hub.cut["adapter_model.safetensors"] = what["cut"]
    if "pickles" in what or "nothing" in what:
        hub.repositories[key] = Path(shutil.copytree(hub.repositories[key], tmp_path / "cache" / "spoilt"))
        weights = hub.repositories[key] / "adapter_model.safetensors"
        weights.rename(weights.with_suffix(".bin")) if "pickles" in what else weights.unlink()
    if "url" in what:
        monkeypatch.setenv("HF_ENDPOINT", what["url"])
    if "offline" in what:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("name", REFUSED)
def test_a_hub_that_says_no_writes_nothing(
    name: str, run: Run, hub: Hub, tiny_pool_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what, said = REFUSED[name]
    file = shapes_zip(tmp_path / "a.zip", 6)
    spoil(hub, what, tmp_path, monkeypatch)
    before = tree(tmp_path)
    code, out, err = run("own", file, "--pool", tiny_pool_path, "--bring", "org/lora")
    assert (code, out) == (1, "")
    assert re.fullmatch(rf"fwviz: ({said}).*\n", err), err
    if "cut" not in what:  # each attempt waits and tries again
        code, out, err = run("pools", "open", "org/lora", "--pool", tiny_pool_path, "--out", tmp_path / "new")
        assert (code, out) == (1, "")
        assert re.fullmatch(rf"fwviz: ({said}).*\n", err), err
        code, out, err = run("own", file, "--base", "org/lora", "--bring", tiny_pool_path / "checkpoints" / "shape")
        assert (code, out) == (1, "")
        assert re.fullmatch(rf"fwviz: ({said}).*\n", err), err
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a b", "'a b' is not on this machine, and 'a b' is no id of a repository on the Hub: write owner/name."),
        ("a/b/c", "'a/b/c' is not on this machine, and"),
        ("../x", "'../x' is not on this machine, and"),
        ("a--b/c", "'a--b/c' is not on this machine, and"),
        ("x" * 200, "is no id of a repository"),
        ("absent.safetensors", "absent.safetensors cannot be merged: absent.safetensors cannot be opened"),
        ("absent.bin", "absent.bin is a pickle"),
    ],
)
def test_what_is_neither_a_place_nor_an_id_is_never_asked_for(
    text: str, said: str, run: Run, hub: Hub, tiny_pool_path: Path, tmp_path: Path
) -> None:
    file = shapes_zip(tmp_path / "a.zip", 6)
    before = tree(tmp_path)
    code, _, err = run("own", file, "--pool", tiny_pool_path, "--bring", text)
    assert code == 1
    assert said in err
    assert err.count("\n") == 1
    assert hub.asked == []
    after = tree(tmp_path)
    after.discard(str(tmp_path / "own"))
    assert after == before


def test_a_hub_base_that_is_none_says_so(run: Run, hub: Hub, tiny_pool_path: Path, tmp_path: Path) -> None:
    file = shapes_zip(tmp_path / "a.zip", 6)
    code, _, err = run("own", file, "--base", "org/lora", "--bring", tiny_pool_path / "checkpoints" / "shape")
    assert code == 1
    assert re.fullmatch(r"fwviz: lora cannot be a base: .* has no model.safetensors: save the base .*\n", err), err
