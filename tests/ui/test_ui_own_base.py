"""A base of a visitor's own and adapters, without a browser: from files to a pool; what is bad is one sentence."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from starlette.applications import Starlette
from starlette.testclient import TestClient

from fwviz.pools.hub import fetch
from fwviz.pools.open import open_pool
from fwviz.types import FwvizError
from fwviz.ui import bringing, uploads
from fwviz.ui import shelf as shelves
from fwviz.ui.desk import Desk
from fwviz.ui.shelf import Shelf
from fwviz.ui.state import Session
from tests.hub_server import Hub, serving
from tests.own_corpus import BAD_ZIPS, shapes_zip, texts_csv
from tests.own_models import (
    ADAPTER,
    BAD_ADAPTERS,
    BAD_BASES,
    BAD_MODEL_ZIPS,
    TOO_MANY_MODELS,
    bad_adapter,
    bad_base,
    ia3_of,
    lora_of,
    zip_of,
)
from tests.own_pages import bring, finish, give, give_all, merge, own_base, visitor, wait_for


def plain(card: Any) -> tuple[str, str, list[str]]:
    return card["title"], card["inputs"], card["checkpoints"]


def folders(desk: Desk, session: Session) -> list[str]:
    """What lies in the visitor's folder beside the files that were sent."""
    folder = desk.shelf.visitor(session.own).folder
    assert folder is not None
    return sorted(path.name.partition("-")[0] for path in folder.iterdir() if path.name != "files")


def test_base_adapters_and_task_become_a_pool_that_merges(
    desk: Desk, pool_id: str, tiny_pool_path: Path, tmp_path: Path
) -> None:
    session = visitor(desk, "page")
    base, trained = tiny_pool_path / "base", tiny_pool_path / "checkpoints"
    made = own_base(desk, session, pool_id, base)
    assert plain(made["own"]["base"]) == ("your base", "images", [])
    assert made["own"]["base"]["about"].startswith("a CLIP of 0.")
    assert made["own"]["said"][0].startswith("your base: a CLIP of 0.")
    assert "pool" not in made, "there is no pool yet"
    # Its adapters, several in a zip and one as two files, and a whole checkpoint.
    loras = {name: lora_of(trained / name, base, tmp_path / name) for name in ("shape", "colour")}
    packed = zip_of(tmp_path / "loras.zip", {f"run/{name}": folder for name, folder in loras.items()})
    pair = give_all(desk, session, ia3_of(base, tmp_path / "ia3"), "checkpoint")
    files = [give(desk, session, packed, "checkpoint"), *pair]
    told, _ = bring(desk, session, what="checkpoints", base=True, files=files, pool=pool_id)
    assert told["own"]["base"]["checkpoints"] == ["adapter", "colour", "shape"]
    assert all(re.search("fits the base; a (LORA|IA3) adapter that changes", text) for text in told["own"]["said"])
    assert [model["name"] for model in told["own"]["report"]] == ["adapter", "colour", "shape"]
    # A reload of the tab brings the base along.
    desk.shelf.leave("page")
    session = visitor(desk, "again", session.own)
    form = json.loads(desk.forms.value(session, desk.forms.fallback(pool_id), None))
    assert form["own"]["base"] == told["own"]["base"]
    file = give(desk, session, shapes_zip(tmp_path / "my shapes.zip", 10, ("cross", "square", "circle")))
    made, steps = bring(desk, session, what="task", base=True, file=file, pool=pool_id)
    assert made["own"]["base"] is None
    assert [step["own"]["total"] for step in steps[1:-1]][-1] == 4, "the base and each adapter alone"
    assert made["pool"]["title"] == "my shapes + your base"
    assert made["recipe"]["checkpoints"] == ["adapter", "colour", "shape"]
    assert made["recipe"]["tasks"] == ["my_shapes"]
    assert folders(desk, session) == ["own", "work"], "the pool, and what other words make it anew from"
    pool = open_pool(made["own"]["pool"])
    assert pool.all_adapters
    whole = load_file(trained / "shape" / "model.safetensors")
    name = "vision_model.encoder.layers.1.self_attn.v_proj.weight"
    start, stop = pool.layout.offsets[pool.layout.names.index(name)], pool.layout.names.index(name) + 1
    change = pool.task_vectors(["shape"]).vector(0)[start : pool.layout.offsets[stop]]
    best = whole[name].float() - load_file(base / "model.safetensors")[name].float()
    assert float((change.view_as(best) - best).norm() / best.norm()) < 1, "the best of rank 4 is nearer than nothing"
    finish(desk, session)
    bars = json.loads(desk.show(session)["lmo_bars"])
    assert "figure" in bars, bars
    merge(desk, session, made)
    # Other words make it anew, from the base, in its place.
    words = {"names": {"circle": "ring"}, "prompts": ["a {}"]}
    again, _ = bring(desk, session, what="task", file=file, pool=made["own"]["pool"], **words)
    assert ["circle", "ring"] in again["own"]["classes"]
    assert [p["id"] for p in again["pools"] if p["id"].startswith("own-")] == [again["own"]["pool"]]
    # Closed, all of it is gone.
    folder = desk.shelf.visitor(session.own).folder
    assert folder is not None
    desk.shelf.leave("again")
    wait_for("the folder is deleted", lambda: not folder.exists())
    assert list((tmp_path / "shelf").iterdir()) == []


def test_a_text_base_in_a_zip_and_its_adapters(
    desk: Desk, pool_id: str, tiny_text_pool_path: Path, tmp_path: Path
) -> None:
    session = visitor(desk, "page")
    packed = zip_of(tmp_path / "words.zip", {"": tiny_text_pool_path / "base"})
    made, _ = bring(desk, session, what="base", files=[give(desk, session, packed, "base")], pool=pool_id)
    assert plain(made["own"]["base"]) == ("words", "texts", [])
    names = ("food", "mood", "place", "time")
    packed = zip_of(tmp_path / "four.zip", {name: tiny_text_pool_path / "checkpoints" / name for name in names})
    told, _ = bring(
        desk, session, what="checkpoints", base=True, files=[give(desk, session, packed, "checkpoint")], pool=pool_id
    )
    assert told["own"]["base"]["checkpoints"] == [*names]
    file = give(desk, session, texts_csv(tmp_path / "notes.csv"))
    made, _ = bring(desk, session, what="task", base=True, file=file, pool=pool_id)
    assert made["recipe"]["checkpoints"] == [*names]
    theirs = open_pool(tiny_text_pool_path).task_vectors([*names])
    own = open_pool(made["own"]["pool"]).task_vectors([*names])
    assert torch.equal(own.vector(2), theirs.vector(2))
    # Into a pool of another page they join as they would here.
    told, _ = bring(
        desk, session, what="checkpoints", files=[give(desk, session, packed, "checkpoint")], pool=made["own"]["pool"]
    )
    assert told["recipe"]["checkpoints"][-4:] == [f"{name}_2" for name in names]


def test_adapters_join_a_pool_of_whole_checkpoints(
    desk: Desk, pool_id: str, tiny_pool_path: Path, tmp_path: Path
) -> None:
    session = visitor(desk, "page")
    lora = lora_of(tiny_pool_path / "checkpoints" / "shape", tiny_pool_path / "base", tmp_path / "lora")
    made, _ = bring(desk, session, what="checkpoints", files=give_all(desk, session, lora, "checkpoint"), pool=pool_id)
    assert made["own"]["said"] == ["adapter: fits the base; a LORA adapter that changes 4 tensors of the base."]
    assert made["recipe"]["checkpoints"][-1] == "adapter"
    merge(desk, session, made)


def test_steps_are_taken_in_order(desk: Desk, pool_id: str, tiny_pool_path: Path, tmp_path: Path) -> None:
    session = visitor(desk, "page")
    file = give(desk, session, shapes_zip(tmp_path / "a.zip", 6))
    for what in ({"what": "task", "file": file}, {"what": "checkpoints", "hub": "a/b"}):
        early, _ = bring(desk, session, base=True, pool=pool_id, **what)
        assert early["own"]["problem"] == "Your base is no longer there: bring it again."
    own_base(desk, session, pool_id, tiny_pool_path / "base")
    early, _ = bring(desk, session, what="task", base=True, file=file, pool=pool_id)
    assert early["own"]["problem"] == "There is nothing to merge yet: bring checkpoints of your base first."
    assert folders(desk, session) == ["work"]
    again = own_base(desk, session, pool_id, tiny_pool_path / "base")
    assert again["own"]["base"]["checkpoints"] == []
    assert folders(desk, session) == ["work"], "the base before is gone"
    gone, _ = bring(desk, session, what="base", drop=True, pool=pool_id)
    assert gone["own"] == {"base": None, "said": []}
    assert folders(desk, session) == []


def test_every_bad_base_is_one_sentence_and_leaves_nothing(
    desk: Desk, pool_id: str, tiny_pool_path: Path, tmp_path: Path
) -> None:
    session = visitor(desk, "page")
    for i, (name, (_, said)) in enumerate(BAD_BASES.items()):
        if name in ("pickle", "no weights", "shards"):
            continue  # nothing of it can be sent as files
        folder = bad_base(name, tiny_pool_path / "base", tmp_path / str(i))
        files = [give(desk, session, f, "base") for f in sorted(folder.iterdir()) if f.suffix != ".bin"]
        answer, _ = bring(desk, session, what="base", files=files, pool=pool_id)
        refused(desk, session, answer, said)
    for make, said in BAD_MODEL_ZIPS.values():
        make(tmp_path / "bad.zip")
        file = give(desk, session, tmp_path / "bad.zip", "base")
        answer, _ = bring(desk, session, what="base", files=[file], pool=pool_id)
        refused(desk, session, answer, said)
    for made, said in (
        ({"a": tiny_pool_path / "base", "b": tiny_pool_path / "base"}, "holds 2 models: a base is one"),
        ({"a": lora_of(tiny_pool_path / "checkpoints" / "shape", tiny_pool_path / "base", tmp_path / "l")},
         "cannot be a base: .*no model.safetensors"),
        ({"a": tiny_pool_path / "checkpoints" / "shape"}, "of a 'clip_vision_model' model"),
    ):  # fmt: skip
        file = give(desk, session, zip_of(tmp_path / "x.zip", made), "base")
        answer, _ = bring(desk, session, what="base", files=[file], pool=pool_id)
        refused(desk, session, answer, said)
    weights = [give(desk, session, tiny_pool_path / "base" / "model.safetensors", "base") for _ in range(2)]
    answer, _ = bring(desk, session, what="base", files=weights, pool=pool_id)
    refused(desk, session, answer, "one model.safetensors too many")
    (tmp_path / "notes.txt").write_text("x")
    stray = give(desk, session, tmp_path / "notes.txt", "base")
    answer, _ = bring(desk, session, what="base", files=[stray], pool=pool_id)
    refused(desk, session, answer, "notes.txt is no part of a base")
    own_base(desk, session, pool_id, tiny_pool_path / "base")


def refused(desk: Desk, session: Session, answer: dict[str, Any], said: str) -> None:
    """One sentence that gives no place on the server away, and nothing is kept."""
    assert set(answer["own"]) == {"problem"}, answer
    problem = answer["own"]["problem"]
    assert re.search(said, problem, re.I), problem
    assert "\n" not in problem
    folder = desk.shelf.visitor(session.own).folder
    assert folder is not None
    assert str(folder.parent) not in problem
    assert [path.name for path in folder.iterdir()] == ["files"]
    assert desk.shelf.visitor(session.own).uploads == {}


def test_every_bad_adapter_is_one_sentence_and_leaves_nothing(
    desk: Desk, pool_id: str, tiny_pool_path: Path, tmp_path: Path
) -> None:
    session = visitor(desk, "page")
    base, whole = tiny_pool_path / "base", tiny_pool_path / "checkpoints" / "shape"
    corpus = [(make, said) for make, said in (*BAD_MODEL_ZIPS.values(), TOO_MANY_MODELS)]
    for make, said in corpus:
        make(tmp_path / "bad.zip")
        file = give(desk, session, tmp_path / "bad.zip", "checkpoint")
        answer, _ = bring(desk, session, what="checkpoints", files=[file], pool=pool_id)
        refused(desk, session, answer, said)
    for i, (name, (_, said)) in enumerate(BAD_ADAPTERS.items()):
        folder = bad_adapter(name, whole, base, tmp_path / str(i))
        packed = zip_of(tmp_path / "one.zip", {"mine": folder})
        for pair in (True, False):
            files = (
                give_all(desk, session, folder, "checkpoint") if pair else [give(desk, session, packed, "checkpoint")]
            )
            answer, _ = bring(desk, session, what="checkpoints", files=files, pool=pool_id)
            refused(desk, session, answer, f"(adapter|mine) cannot be merged: .*{said}")
    lora = lora_of(whole, base, tmp_path / "lora")
    alone = give(desk, session, lora / ADAPTER[1], "checkpoint")
    answer, _ = bring(desk, session, what="checkpoints", files=[alone], pool=pool_id)
    refused(desk, session, answer, "adapter_model.safetensors came without adapter_config.json")
    # The same against a base of one's own; then a good one still fits.
    own_base(desk, session, pool_id, base)
    folder = bad_adapter("not finite", whole, base, tmp_path / "nan")
    files = give_all(desk, session, folder, "checkpoint")
    answer, _ = bring(desk, session, what="checkpoints", base=True, files=files, pool=pool_id)
    assert "adapter cannot be merged: " in answer["own"]["problem"].lower()
    assert plain(desk.shelf.base(session.own)) == ("your base", "images", [])
    files = give_all(desk, session, lora, "checkpoint")
    told, _ = bring(desk, session, what="checkpoints", base=True, files=files, pool=pool_id)
    assert told["own"]["base"]["checkpoints"] == ["adapter"]
    # A bad task is refused as for any pool, and the base waits on.
    make, said = BAD_ZIPS["one class"]
    make(tmp_path / "bad.zip")
    file = give(desk, session, tmp_path / "bad.zip")
    answer, _ = bring(desk, session, what="task", base=True, file=file, pool=pool_id)
    assert re.search(said, answer["own"]["problem"])
    assert desk.shelf.base(session.own) == told["own"]["base"]


def test_names_and_kinds_are_refused_before_a_byte_is_kept(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf")
    client = TestClient(Starlette(routes=uploads.routes("fwviz", shelf)))
    key = shelf.enter("page")

    def send(name: str, kind: str) -> tuple[int, str]:
        answer = client.post(f"/fwviz/bring/{key}", content=b"x", headers={"x-fwviz-name": name, "x-fwviz-kind": kind})
        return answer.status_code, answer.json().get("problem", "")

    for name in ("..%2F..%2Fmodel.safetensors", "a%5Cb.safetensors", "%00model.safetensors", ".model.safetensors",
                 "%E2%80%AEmodel.safetensors", "a%0Ab.safetensors"):  # fmt: skip
        for kind in ("base", "checkpoint"):
            code, problem = send(name, kind)
            assert (code, "a name that could lead elsewhere" in problem) == (422, True), (name, problem)
    assert "load it with PEFT and save_pretrained it again" in send("adapter_model.bin", "checkpoint")[1]
    assert "is a pickle" in send("pytorch_model.bin", "base")[1]
    assert "no part of a base" in send("run.py", "base")[1]
    assert "adapter_config.json with adapter_model.safetensors" in send("other.json", "checkpoint")[1]
    assert list(tmp_path.rglob("*.*")) == []
    for name, kind in (("adapter_config (1).json", "checkpoint"), ("config(2).json", "base")):
        assert send(name, kind)[0] == 200, "a browser's second download of a file keeps its name here"
    assert sorted(u.name for u in shelf.visitor(key).uploads.values()) == ["adapter_config.json", "config.json"]
    shelf.close()


def test_what_a_visitor_holds_counts_whatever_it_became(
    desk: Desk, pool_id: str, tiny_pool_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = visitor(desk, "page")
    own_base(desk, session, pool_id, tiny_pool_path / "base")
    held = desk.shelf.visitor(session.own).size
    weights = (tiny_pool_path / "base" / "model.safetensors").stat().st_size
    assert weights < held < 3 * weights, "once, whatever links there are to it"
    monkeypatch.setattr(shelves, "MAX_VISITOR", held + 10)
    file = tiny_pool_path / "checkpoints" / "shape" / "model.safetensors"
    with pytest.raises(FwvizError, match=r"no room for model.safetensors"):
        give(desk, session, file, "checkpoint")
    small = zip_of(tmp_path / "a.zip", {"a": tiny_pool_path / "checkpoints" / "shape"})
    monkeypatch.setattr(shelves, "MAX_VISITOR", held + 2 * small.stat().st_size)
    packed = give(desk, session, small, "checkpoint")
    answer, _ = bring(desk, session, what="checkpoints", base=True, files=[packed], pool=pool_id)
    assert "but may unpack to" in answer["own"]["problem"]


def test_files_that_nothing_became_of_make_room_for_the_next(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf")
    client = TestClient(Starlette(routes=uploads.routes("fwviz", shelf)))
    key = shelf.enter("page")

    def send(name: str, kind: str, first: str) -> int:
        headers = {"x-fwviz-name": name, "x-fwviz-kind": kind, "x-fwviz-first": first}
        return client.post(f"/fwviz/bring/{key}", content=b"x", headers=headers).status_code

    task = shelf.receive(key, "task", "a.zip", 1).finish()
    shelf.visitor(key).task = shelves.Made(task.id, "tiny")
    for _ in range(3 * shelves.MAX_FILES):
        assert send("adapter_config.json", "checkpoint", "1") == 200
        assert send("adapter_model.safetensors", "checkpoint", "") == 200
        assert send("b.zip", "task", "1") == 200
        assert send("adapter_model.bin", "checkpoint", "") == 422
    names = sorted(upload.name for upload in shelf.visitor(key).uploads.values())
    assert names == ["a.zip", "adapter_config.json", "adapter_model.safetensors", "b.zip"]
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 4
    shelf.close()


def test_closing_while_a_base_is_laid_ends_it(desk: Desk, pool_id: str, tiny_pool_path: Path) -> None:
    session = visitor(desk, "page")
    files = give_all(desk, session, tiny_pool_path / "base", "base")
    steps = desk.bring(session, "page", {"what": "base", "files": files, "pool": pool_id})
    next(steps)
    steps.close()
    wait_for("nothing is left", lambda: folders(desk, session) == [])
    time.sleep(0.1)
    assert desk.shelf.base(session.own) is None


# --- the Hub ----------------------------------------------------------------------------------------


@pytest.fixture
def hub(tiny_pool_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with the tiny base, and a LoRA of it."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    base = tiny_pool_path / "base"
    lora = lora_of(tiny_pool_path / "checkpoints" / "shape", base, tmp_path / "lora")
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.repositories |= {"models/org/base-v1.5": base, "models/org/lora": lora}
        yield server


@pytest.mark.filterwarnings("ignore")  # of the client
def test_a_base_of_the_hub_is_fetched_for_this_visitor_alone(
    desk: Desk, pool_id: str, hub: Hub, tmp_path: Path
) -> None:
    session = visitor(desk, "page")
    made, _ = bring(desk, session, what="base", hub="org/base-v1.5", pool=pool_id)
    assert made["own"]["base"]["title"] == "org/base-v1.5", made["own"]
    told, _ = bring(desk, session, what="checkpoints", base=True, hub="org/lora", pool=pool_id)
    assert told["own"]["base"]["checkpoints"] == ["lora"]
    file = give(desk, session, shapes_zip(tmp_path / "a.zip", 6))
    made, _ = bring(desk, session, what="task", base=True, file=file, pool=pool_id)
    assert made["pool"]["title"] == "a + org/base-v1.5"
    assert "1 checkpoints of org/base-v1.5" in made["pool"]["summary"]
    assert hub.tokens == [], "as anybody could, whatever token the server has"
    assert not (tmp_path / "cache").exists(), "strangers do not fill the server's own cache"


@pytest.mark.filterwarnings("ignore")  # of the client
def test_what_the_server_has_cached_is_refused_without_its_place(
    desk: Desk, pool_id: str, hub: Hub, tiny_pool_path: Path, tmp_path: Path
) -> None:
    session = visitor(desk, "page")
    cut = Path(shutil.copytree(tiny_pool_path / "checkpoints" / "shape", tmp_path / "cut"))
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-7])
    wide = Path(shutil.copytree(tiny_pool_path / "checkpoints" / "colour", tmp_path / "wide"))
    config = json.loads((wide / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps(config | {"hidden_size": 7}))
    half = bad_base("bad preprocessor", tiny_pool_path / "base", tmp_path / "half")
    hub.repositories |= {"models/org/cut": cut, "models/org/wide": wide, "models/org/half": half}
    for name in ("org/cut", "org/wide", "org/half", "org/lora"):
        assert fetch(name).is_relative_to(tmp_path / "cache"), "by somebody at the server, before"
    wanted = {"org/cut": "cut cannot be merged: model.safetensors ", "org/wide": "wide cannot be merged: config.json "}
    for name, said in wanted.items():
        answer, told = bring(desk, session, what="checkpoints", hub=name, pool=pool_id)
        assert answer["own"]["problem"].lower().startswith(said), answer
        assert str(tmp_path) not in json.dumps(told)
    answer, told = bring(desk, session, what="base", hub="org/half", pool=pool_id)
    assert answer["own"]["problem"].startswith("org/half cannot be a base: preprocessor_config.json"), answer
    # Nor beside what is taken, in sentence, report or note.
    answer, more = bring(desk, session, what="checkpoints", hub="org/wide org/lora", pool=pool_id)
    assert answer["recipe"]["checkpoints"][-1] == "lora"
    assert any(one["kind"] == "architecture" for model in answer["own"]["report"] for one in model["findings"])
    assert str(tmp_path) not in json.dumps([told, more])


@pytest.mark.filterwarnings("ignore")  # of the client
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"status": 401}, r"^org/base-v1.5 cannot be had: it (is not on the Hub, or private|could not be read)"),
        ({"status": 404}, r"^org/base-v1.5 cannot be had: it could not be read: it is not there"),
        ({"status": 429}, "asks for a pause: try again in some minutes"),
        ({"status": 503}, "answered 503; try again later"),
        ({"gated": True}, "org/base-v1.5 is gated: agree to its terms"),
        ({"cut": 99}, "org/base-v1.5 was cut off: try again"),
        ({"large": True}, "but a page may ask for"),
    ],
)
def test_a_hub_that_says_no_is_one_sentence(
    wrong: dict[str, Any], said: str, desk: Desk, pool_id: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = visitor(desk, "page")
    key = "models/org/base-v1.5"
    if "status" in wrong:
        hub.status[key] = wrong["status"]
    elif "gated" in wrong:
        hub.gated.add(key)
    elif "cut" in wrong:
        hub.cut["model.safetensors"] = wrong["cut"]
    else:
        monkeypatch.setattr(bringing, "MAX_HUB_BYTES", 1000)
    answer, _ = bring(desk, session, what="base", hub="org/base-v1.5", pool=pool_id)
    assert set(answer["own"]) == {"problem"}
    assert re.search(said, answer["own"]["problem"]), answer
    assert folders(desk, session) == []
    hub.status.clear(), hub.gated.clear(), hub.cut.clear()
    monkeypatch.setattr(bringing, "MAX_HUB_BYTES", 1 << 30)
    made, _ = bring(desk, session, what="base", hub="org/base-v1.5", pool=pool_id)
    assert "problem" not in made["own"], "the page lives on"


@pytest.mark.parametrize(
    "event",
    [{"what": "base"}, {"what": "base", "files": "abc"}, {"what": "base", "files": [None] * 99},
     {"what": "base", "files": ["../../x"]}, {"what": "base", "files": [{}]}, {"what": "base", "hub": "a/b c/d"},
     {"what": "base", "hub": 7}, {"what": "base", "hub": "../../etc"}, {"what": "base", "hub": "owner"},
     {"what": "base", "drop": "yes"}, {"what": ["base"]}, {"what": "checkpoints", "base": True},
     {"what": "checkpoints", "base": "yes"}, {"what": "task", "base": True, "file": "x"}],
)  # fmt: skip
def test_strange_events_about_bases_are_answered_with_a_sentence(event: Any, desk: Desk, pool_id: str) -> None:
    session = visitor(desk, "page")
    (answer,) = [json.loads(m["form"]) for m in desk.bring(session, "page", {**event, "pool": pool_id})]
    assert answer["own"]["problem"].endswith(".")
    assert "unexpected" not in answer["own"]["problem"]


def test_what_was_brought_for_a_base_is_nobody_elses(desk: Desk, pool_id: str, tiny_pool_path: Path) -> None:
    mine, other = visitor(desk, "mine"), visitor(desk, "other")
    own_base(desk, mine, pool_id, tiny_pool_path / "base")
    form = json.loads(desk.forms.value(other, desk.forms.fallback(pool_id), None))
    assert form["own"]["base"] is None
    file = give(desk, mine, tiny_pool_path / "base" / "config.json", "base")
    answer, _ = bring(desk, other, what="base", files=[file], pool=pool_id)
    assert "no longer there" in answer["own"]["problem"]
    shutil.rmtree(desk.shelf.visitor(mine.own).folder or tiny_pool_path / "absent")
