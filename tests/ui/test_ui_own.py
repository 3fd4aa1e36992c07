"""What visitors bring, without a browser: from files to a pool of their own, to nobody else, and gone with the page."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from starlette.applications import Starlette
from starlette.testclient import TestClient

from fwviz.pools.open import open_pool, pool_ids
from fwviz.pools.places import find_pool
from fwviz.types import FwvizError
from fwviz.ui import shelf as shelves
from fwviz.ui import uploads, wire
from fwviz.ui.desk import Desk
from fwviz.ui.shelf import Shelf
from fwviz.ui.state import TABS, Opening, View, parse_opening
from tests.hub_server import serving
from tests.own_corpus import BAD_TABLES, BAD_ZIPS, shapes_zip, texts_csv
from tests.own_pages import bring, finish, give, merge, visitor, wait_for


def test_from_a_zip_to_a_merged_model(desk: Desk, pool_id: str, tmp_path: Path) -> None:
    session = visitor(desk, "page")
    file = give(desk, session, shapes_zip(tmp_path / "my shapes.zip", 10, ("cross", "square", "circle")))
    made, told = bring(desk, session, what="task", file=file, pool=pool_id)
    # How far it is, then the pool, chosen, with the task ticked.
    assert [(t["own"]["done"], t["own"]["total"]) for t in told[1:-1]][-1][1] == 6
    name = made["own"]["pool"]
    assert made["own"]["said"][0].startswith("my shapes.zip: 30 pictures of 3 classes (circle, cross, square)")
    assert made["pool"]["id"] == made["recipe"]["pool"] == name == made["pools"][0]["id"]
    assert made["recipe"]["tasks"] == ["my_shapes"]
    assert len(made["recipe"]["checkpoints"]) == 5
    assert made["own"]["classes"] == [["circle", "circle"], ["cross", "cross"], ["square", "square"]]
    # What is looked at is the base alone: the ranking stands there before anything is merged.
    finish(desk, session)
    shown = desk.looking.shown(session)
    assert shown is not None
    assert shown.trace.frames[-1].coefficients == ((0.0,) * 5,)
    before = shown.trace.final["test"]["my_shapes"].accuracy
    assert before == shown.trace.reference["base"]["test"]["my_shapes"]
    bars = json.loads(desk.show(session)["lmo_bars"])
    assert "figure" in bars, bars
    # Then a run like any other, exported like any other.
    shown = merge(desk, session, made)
    assert shown.card is not None
    assert list(desk.forms.rank(shown.trace.recipe))


def test_other_words_for_the_classes_make_the_task_anew(desk: Desk, pool_id: str, tmp_path: Path) -> None:
    session = visitor(desk, "page")
    file = give(desk, session, shapes_zip(tmp_path / "a.zip", 6, ("circle", "cross")))
    first, _ = bring(desk, session, what="task", file=file, pool=pool_id)
    words = {"what": "task", "file": file, "names": {"circle": "ring", "cross": "cross"}, "prompts": ["a {}"]}
    again, _ = bring(desk, session, pool=first["own"]["pool"], **words)
    assert again["own"]["classes"] == [["circle", "ring"], ["cross", "cross"]]
    assert [task["id"] for task in again["pool"]["tasks"]][-1] == "a"
    assert len(again["pool"]["tasks"]) == 5, "in its place, not beside it"
    assert first["own"]["pool"] not in [pool["id"] for pool in again["pools"]]
    wrong, _ = bring(desk, session, pool=again["own"]["pool"], **(words | {"prompts": ["no place"]}))
    assert "{}" in wrong["own"]["problem"]


def test_a_table_for_a_pool_of_texts(desk: Desk, tiny_text_pool_path: Path, tmp_path: Path) -> None:
    session = visitor(desk, "page")
    file = give(desk, session, texts_csv(tmp_path / "notes.csv"))
    made, _ = bring(desk, session, what="task", file=file, pool=tiny_text_pool_path.name)
    assert "42 texts of 3 classes" in made["own"]["said"][0]
    assert made["pool"]["inputs"] == "texts"


def test_nobody_else_sees_it(desk: Desk, pool_id: str, tmp_path: Path) -> None:
    mine, other = visitor(desk, "mine"), visitor(desk, "other")
    assert mine.own != other.own
    file = give(desk, mine, shapes_zip(tmp_path / "a.zip", 6))
    made, _ = bring(desk, mine, what="task", file=file, pool=pool_id)
    finish(desk, mine)
    name, run = made["own"]["pool"], desk.shelf.visitor(mine.own).runs[0]
    assert name not in pool_ids()
    for message in (desk.open(other, Opening()), desk.open(visitor(desk, "third"), Opening())):
        assert name not in json.dumps(message)
    for refused in (
        lambda: desk.forms.choose_pool(other, {"pool": name}),
        lambda: desk.forms.parse(other, {"recipe": json.dumps(made["recipe"])}),
        lambda: desk.start(other, "other", {"recipe": json.dumps(made["recipe"])}, paused=False),
        lambda: desk.open_view(other, {"id": f"run:{run}"}),
        lambda: desk.shelf.upload(other.own, file, "task"),
    ):
        with pytest.raises(FwvizError):
            refused()
    problem, _ = bring(desk, other, what="task", file=file, pool=pool_id)
    assert "no longer there" in problem["own"]["problem"]
    # Neither with the link of the page, nor by a browser that remembers the run.
    query = {"query": {"pool": name, "job": run, "method": "fw_soft"}, "width": 1440, "runs": [run], "own": ""}
    messages = desk.open(other, parse_opening(json.dumps(query)))
    assert name not in json.dumps({k: v for k, v in messages.items() if k != "runbar"})
    assert "somebody's own" in json.loads(messages["runbar"])["message"]
    assert run not in messages["history"]
    other.view = View("run", run)
    assert desk.looking.shown(other) is None


def test_a_reload_keeps_it_and_a_closed_page_deletes_it(desk: Desk, pool_id: str, tmp_path: Path) -> None:
    session = visitor(desk, "first")
    file = give(desk, session, shapes_zip(tmp_path / "a.zip", 6))
    made, _ = bring(desk, session, what="task", file=file, pool=pool_id)
    finish(desk, session)
    name, (run,) = made["own"]["pool"], desk.shelf.visitor(session.own).runs
    desk.shelf.leave("first")
    again = visitor(desk, "second", session.own)
    time.sleep(0.5)
    assert again.own == session.own
    assert desk.forms.pools(again)[0] == name
    folder = find_pool(name).parent
    assert folder.is_relative_to(tmp_path / "shelf")
    desk.shelf.leave("second")
    wait_for("the folder is deleted", lambda: not folder.exists())
    wait_for("the record of its run is deleted", lambda: run not in desk.board.store.ids())
    with pytest.raises(FwvizError, match="there is no pool"):
        open_pool(name)
    assert visitor(desk, "third", session.own).own != session.own
    assert list((tmp_path / "shelf").iterdir()) == []


def test_what_a_killed_server_left_is_swept_and_what_another_holds_is_not(tmp_path: Path) -> None:
    killed, other, third = (Shelf(tmp_path / "shelf") for _ in range(3))
    folders = []
    for shelf in (killed, other):
        key = shelf.enter("page")
        receiving = shelf.receive(key, "task", "a.zip", 1, first=True)
        receiving.write(b"x")
        receiving.finish()
        folder = shelf.visitor(key).folder
        assert folder is not None
        os.utime(folder, (0, 0))
        folders.append(folder)
        if shelf is killed:
            shelf.visitor(key).held.close()  # as the kernel does for a killed process
    third.receive(third.enter("page"), "task", "a.zip", 1, first=True).give_up()
    assert [folder.is_dir() for folder in folders] == [False, True]
    for shelf in (other, third):
        shelf.close()
    assert list((tmp_path / "shelf").iterdir()) == []


def test_closing_while_a_run_is_under_way_ends_it_quietly(
    desk: Desk, pool_id: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session = visitor(desk, "page")
    file = give(desk, session, shapes_zip(tmp_path / "a.zip", 6))
    made, _ = bring(desk, session, what="task", file=file, pool=pool_id)
    finish(desk, session)
    long = made["recipe"] | {"settings": {"max_steps": 100, "inner_updates": 100}}
    desk.start(session, "page", {"recipe": json.dumps(long)}, paused=False)
    job = desk.looking.job(session)
    assert job is not None
    wait_for("the run is under way", lambda: job.frames)
    desk.shelf.leave("page")
    wait_for("all is gone", lambda: list((tmp_path / "shelf").iterdir()) == [])
    assert job.ended
    assert job.final is not None
    assert job.final.status == "stopped"
    wait_for("no record is left", lambda: not desk.board.store.ids())
    assert not caplog.records, caplog.text


def test_closing_while_a_task_is_made_ends_it(desk: Desk, pool_id: str, tmp_path: Path) -> None:
    session = visitor(desk, "page")
    file = give(desk, session, shapes_zip(tmp_path / "a.zip", 6))
    steps = desk.bring(session, "page", {"what": "task", "file": file, "pool": pool_id})
    next(steps)
    steps.close()
    assert desk.shelf.pools(session.own) == ()
    folder = desk.shelf.visitor(session.own).folder
    assert folder is not None
    wait_for("what was half made is gone", lambda: [p.name for p in folder.iterdir()] == ["files"])


def test_checkpoints_join_the_pool_after_they_were_compared(
    desk: Desk, pool_id: str, tiny_pool_path: Path, tmp_path: Path
) -> None:
    session = visitor(desk, "page")
    source = tiny_pool_path / "checkpoints" / "shape" / "model.safetensors"
    good = Path(shutil.copyfile(source, tmp_path / "my shape.safetensors"))
    tensors = load_file(good)
    bad = tmp_path / "bad.safetensors"
    save_file({name: tensor[:1] for name, tensor in tensors.items()}, bad)
    files = [give(desk, session, file, "checkpoint") for file in (good, bad)]
    made, _ = bring(desk, session, what="checkpoints", files=files, pool=pool_id)
    assert made["own"]["said"][0] == "my shape: fits the base."
    assert made["own"]["said"][1].startswith("bad cannot be merged: ")
    assert made["recipe"]["checkpoints"][-1] == "my_shape"
    pool = open_pool(made["own"]["pool"])
    vectors = pool.task_vectors(["my_shape", "shape"])
    assert torch.equal(vectors.vector(0), vectors.vector(1))
    # A task after them is judged on them, too.
    file = give(desk, session, shapes_zip(tmp_path / "a.zip", 6))
    both, told = bring(desk, session, what="task", file=file, pool=made["own"]["pool"])
    assert told[-2]["own"]["total"] == 7
    assert both["recipe"]["checkpoints"][-1] == "my_shape"
    only_bad, _ = bring(desk, session, what="checkpoints", files=[give(desk, session, bad, "checkpoint")], pool=pool_id)
    assert only_bad["own"]["problem"].startswith("Bad cannot be merged") or "cannot be merged" in str(only_bad)


@pytest.mark.filterwarnings("ignore")  # of the client
def test_a_checkpoint_of_the_hub_is_fetched_as_anybody_could(
    desk: Desk, pool_id: str, tiny_pool_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = visitor(desk, "page")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.repositories["models/org/shape"] = tiny_pool_path / "checkpoints" / "shape"
        made, _ = bring(desk, session, what="checkpoints", hub=" org/shape ", pool=pool_id)
        assert made["own"]["said"] == ["shape: fits the base."], made["own"]
        assert made["recipe"]["checkpoints"][-1] == "shape_2"
        absent, _ = bring(desk, session, what="checkpoints", hub="org/absent", pool=pool_id)
        assert "org/absent cannot be had" in absent["own"]["problem"].lower()
        assert hub.asked
        assert hub.tokens == []


@pytest.mark.parametrize("name", ["../../etc", "owner", "https://huggingface.co/a/b", "a/b/c", "a/--b", "x" * 2001, 7])
def test_what_is_no_id_of_the_hub_is_never_asked_for(name: Any, desk: Desk, pool_id: str) -> None:
    session = visitor(desk, "page")
    said, _ = bring(desk, session, what="checkpoints", hub=name, pool=pool_id)
    assert re.search("id of a repository|no ids of the Hub", said["own"]["problem"])


def test_every_bad_data_set_is_one_sentence_and_leaves_nothing(
    desk: Desk, pool_id: str, tiny_text_pool_path: Path, tmp_path: Path
) -> None:
    session = visitor(desk, "page")
    corpus = [(make, said, "bad.zip", pool_id) for make, said in BAD_ZIPS.values()]
    corpus += [(make, said, "bad.csv", tiny_text_pool_path.name) for make, said in BAD_TABLES.values()]
    for make, said, file, pool in corpus:
        make(tmp_path / file)
        brought = give(desk, session, tmp_path / file)
        answer, _ = bring(desk, session, what="task", file=brought, pool=pool)
        assert set(answer["own"]) == {"problem"}
        assert re.search(said, answer["own"]["problem"], re.I), answer
        assert "\n" not in answer["own"]["problem"]
        held = desk.shelf.visitor(session.own)
        assert held.folder is not None
        assert [path.name for path in held.folder.iterdir()] == ["files"]
        assert held.uploads == {}, "what is of no use is not kept"
        (tmp_path / file).unlink()
    assert desk.shelf.pools(session.own) == ()


@pytest.mark.parametrize(
    "event",
    [None, [], "x", {}, {"what": "task"}, {"what": "task", "file": ["a"]}, {"what": "task", "file": "../../x"},
     {"what": "checkpoints"}, {"what": "checkpoints", "files": "abc"}, {"what": "checkpoints", "files": [None] * 99},
     {"what": "rm"}, {"what": "checkpoints", "files": [{}]}],
)  # fmt: skip
def test_strange_events_are_answered_with_a_sentence(event: Any, desk: Desk, pool_id: str) -> None:
    session = visitor(desk, "page")
    if isinstance(event, dict):
        event = {**event, "pool": pool_id}
    (answer,) = [json.loads(m["form"]) for m in desk.bring(session, "page", event)]
    assert answer["own"]["problem"].endswith(".")
    assert "unexpected" not in answer["own"]["problem"]


def test_uploads_are_counted_and_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf(tmp_path / "shelf")
    client = TestClient(Starlette(routes=uploads.routes("fwviz", shelf)))
    key = shelf.enter("page")

    def send(content: Any, name: str = "a.zip", kind: str | None = "task", to: str = key) -> tuple[int, str]:
        headers = {"x-fwviz-name": name} | ({"x-fwviz-kind": kind} if kind else {})
        answer = client.post(f"/fwviz/bring/{to}", content=content, headers=headers)
        return answer.status_code, answer.json().get("problem", "")

    assert send(b"x" * 10) == (200, "")
    monkeypatch.setitem(shelves.MAX_BYTES, "task", 100)
    assert send(b"x" * 101)[0] == 422
    assert "too large" in send(iter([b"x" * 60, b"x" * 60]))[1], "also when nobody says how much will come"
    assert "choose a .zip" in send(b"x", "a.exe")[1]
    assert "pickle" in send(b"x", "pytorch_model.bin", "checkpoint")[1]
    assert send(b"x", kind=None)[0] == 400
    assert send(b"x", kind="other")[0] == 400
    assert "reload it" in send(b"x", to="x" * 24)[1]
    for name in ("..%2F..%2Fetc%2Fpasswd.zip", "%00.zip", "a%5C..%5Cb.zip", ".zip", "%E2%80%AE.zip"):
        send(b"x", name)
    assert send(b"x", f"{'%F0%A0%80%80' * 90}.zip") == (200, ""), "a name of more bytes than a file system takes is cut"
    inside = [path.relative_to(tmp_path).parts for path in tmp_path.rglob("*") if path.is_file()]
    assert inside
    assert all(len(parts) == 5 and parts[0] == "shelf" and parts[2] == "files" for parts in inside), inside
    monkeypatch.setattr(shelves, "MAX_FILES", 1)
    assert "all there is room for" in send(b"x")[1]
    monkeypatch.setattr(shelves, "MAX_FILES", 99)
    monkeypatch.setattr(shelves, "MAX_VISITOR", 5)
    assert "no room" in send(b"x" * 50)[1]
    shelf.close()
    assert list((tmp_path / "shelf").iterdir()) == []


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("/srv/pools/tiny/pool.yaml: base is missing.", "pool.yaml: base is missing."),
        ("the base cannot be had: /home/me/.cache/hub/models--a--b/snapshots/1/x.json is none.",
         "the base cannot be had: x.json is none."),
        ("[Errno 2] No such file: '/var/tmp/a b/c.txt'", "[Errno 2] No such file: 'a b/c.txt'"),
        ("('/opt/x/y' and /opt/x/z)", "('y' and z)"),
        (f"{tempfile.gettempdir()}/a folder/x.csv is empty.", "a folder/x.csv is empty."),
        ("write owner/name, as on https://huggingface.co/owner/name", None),
        ("3 and/or 4 of a/b/c, ./x/y, ~/x/y, /etc alone", None),
    ],
)  # fmt: skip
def test_no_place_on_this_machine_is_said(said: str, shown: str | None) -> None:
    assert wire.placeless(said) == (said if shown is None else shown)
    assert wire.sentence(FwvizError(said)).lower() == (said if shown is None else shown).lower()


def test_a_run_that_fails_does_not_say_where_the_pool_lies(
    desk: Desk, pool_id: str, tiny_pool_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(tiny_pool_path, tmp_path / "broken" / pool_id))
    monkeypatch.setenv("FWVIZ_POOLS", str(copy.parent))
    file = copy / "checkpoints" / "shape" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    session = visitor(desk, "page")
    recipe = desk.forms.fallback(pool_id)
    messages = desk.start(session, "page", {"recipe": json.dumps(recipe.to_dict())}, paused=False)
    finish(desk, session)
    messages |= desk.show(session)
    assert json.loads(messages["runbar"])["message"].startswith("model.safetensors is not the file"), messages["runbar"]
    assert str(tmp_path) not in json.dumps(messages)


def test_pages_that_bring_nothing_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelves, "MAX_VISITORS", 3)
    shelf = Shelf()
    first = shelf.enter("0")
    for page in range(1, 6):
        shelf.enter(str(page))
    with pytest.raises(FwvizError, match="reload it"):
        shelf.visitor(first)
    assert len(shelf._visitors) == 3


def test_a_tab_chosen_while_another_is_answered_is_no_error(desk: Desk, pool_id: str, tmp_path: Path) -> None:
    session = visitor(desk, "page")
    file = give(desk, session, shapes_zip(tmp_path / "a.zip", 6))
    bring(desk, session, what="task", file=file, pool=pool_id)
    finish(desk, session)
    shown = desk.looking.shown(session)
    assert shown is not None
    for tab in TABS:
        session.tab = tab  # with the values of the tab before
        strip = json.loads(desk.sending.controls(session, shown)[f"{tab}_controls"])
        assert all("value" in field for field in strip["fields"])
