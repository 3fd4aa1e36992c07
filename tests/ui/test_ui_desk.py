"""The desk: what a page is shown, from the first paint to a finished run, on the tiny pool and without a browser."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fwviz.charts import _style as style
from fwviz.registry import entry
from fwviz.runs.assemble import assemble
from fwviz.runs.estimate import in_words
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import execute
from fwviz.runs.store import RunStore
from fwviz.types import FwvizError
from fwviz.ui import views
from fwviz.ui.desk import Desk
from fwviz.ui.jobs import JobBoard
from fwviz.ui.library import Library
from fwviz.ui.pictures import Call
from fwviz.ui.state import Opening, Session, TabId, View, parse_opening
from fwviz.ui.tabs import PICTURES, TABS

# One update of one chart stays small enough for a slow line; a whole page of charts is a few of these.
MOST_BYTES = 48 * 1024
# From a tab to the updates of a run on it: bytes of all messages, and of each chart that had a picture before.
Replays = Callable[[TabId], list[tuple[int, dict[str, int]]]]
FAST = {"max_steps": 2, "inner_updates": 3, "batch_size": 4}


@pytest.fixture(scope="module")
def pool_id(tiny_pool_path: Path) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FWVIZ_POOLS", str(tiny_pool_path.parent))
        yield tiny_pool_path.name


@pytest.fixture(scope="module")
def recordings(pool_id: str, tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    store = RunStore(tmp_path_factory.mktemp("traces"))
    recipe = recipe_for(pool_id)
    trace = execute(recipe, writer=store.create(recipe))
    assert trace.finished, trace.note
    return store


@pytest.fixture
def desk(recordings: RunStore, tmp_path: Path) -> Iterator[Desk]:
    board = JobBoard(RunStore(tmp_path))
    yield Desk(board, Library(board, recordings))
    board.close()


def recipe_for(pool_id: str, **changes: Any) -> Recipe:
    fields = {"pool": pool_id, "method": "fw_soft", "settings": FAST, "tasks": ["colour", "stripes"]}
    fields |= {"checkpoints": ["colour", "stripes", "shape"]}
    return Recipe.from_dict(fields | changes)


def said(messages: dict[str, str], name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(messages[name])
    return found


def finish(desk: Desk, session: Session, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while (job := desk.looking.job(session)) is not None and not job.ended:
        assert time.monotonic() < deadline, "the run did not end"
        desk.board.wait(job, job.version, 1.0)


def test_a_new_page_shows_the_recording(desk: Desk, recordings: RunStore) -> None:
    session = Session()
    messages = desk.open(session, parse_opening(json.dumps({"query": {}, "width": 1440, "runs": []})))
    assert session.view == View("rec", recordings.ids()[0])
    scrubber = said(messages, "scrubber")
    assert scrubber["kind"] == "recording"
    assert scrubber["replay"] is True
    assert said(messages, "history")["compare"] == [str(session.view)]
    assert scrubber["link"] == {}
    assert scrubber["ticks"][0][:3] == [0.0, 0, 0]
    assert scrubber["ticks"][-1][5] is not None, "the last tick has no accuracy"
    form = said(messages, "form")
    assert form["recipe"]["checkpoints"] == ["colour", "stripes", "shape"]
    assert {m["name"] for m in form["methods"]} >= {"fw_soft", "fw_hard", "task_arithmetic", "weight_average"}
    assert set(messages) >= {
        "form",
        "runbar",
        "history",
        "scrubber",
        "tiles",
        "export",
        "pins",
        "relevance_controls",
        *views.charts_of("relevance"),
    }
    for name in views.charts_of("relevance"):
        assert len(messages[name]) < MOST_BYTES, (name, len(messages[name]))


def test_every_chart_of_every_tab_draws_and_its_table_can_be_had(desk: Desk, pool_id: str) -> None:
    session = Session()
    desk.open(session, Opening())
    store = desk.board.store
    execute(recipe_for(pool_id, method="weight_average", settings={}), writer=store.create(recipe_for(pool_id)))
    session.compare = (*session.compare, View("run", store.ids()[0]))
    session.values = {
        "landscape": {"relief": True, "resolution": 5},
        "scaling": {"methods": "weight_average,task_arithmetic,ties"},
    }
    for tab in TABS:
        session.tab = tab
        shown = desk.looking.shown(session)
        assert shown is not None
        for picture in TABS[tab].pictures:
            if (picture.action or picture.long) and not picture.unless(shown):
                desk.measure(session, picture.chart)
            while desk.measuring(session) is not None:
                time.sleep(0.02)
        for name, text in desk.sending.charts(session, views.charts_of(tab), shown).items():
            payload = json.loads(text)
            if PICTURES[name].unless(shown):
                assert payload["note"] == PICTURES[name].unless(shown)
                continue
            assert payload["figure"] is not None, (name, payload["note"])
            assert payload["figure"]["data"], name
            assert payload["summary"], name
            assert len(text) < MOST_BYTES, (name, len(text))
            table = json.loads(desk.looking.rows(payload["ask"]))
            assert table["columns"], (name, table)
            assert all(len(row) == len(table["columns"]) for row in table["rows"])
            assert table["cli"].startswith("fwviz lens "), name


def test_scores_shown_at_a_step_are_those_of_the_move_from_it(desk: Desk) -> None:
    session = Session()
    desk.open(session, Opening())
    session.index = 0
    shown = desk.looking.shown(session)
    assert shown is not None
    table = views.table("lmo_bars", shown, desk.measured)
    first = next(frame for frame in shown.trace.iterates() if frame.t == 1)
    for task in shown.trace.tasks:
        rows = table[table["task"] == task].set_index("checkpoint")["score"]
        assert rows["shape"] == pytest.approx(sum(row[2] for row in first.task_scores[task]), rel=1e-6)
    # What the oracle measured on the way equals what is measured afresh at the same weights, up to recorded digits.
    measured = desk.measured.call(Call("lmo", "frame"), shown)
    fresh = measured[measured["task"] == "colour"].set_index("checkpoint")["score"]
    assert table[table["task"] == "colour"].set_index("checkpoint")["score"]["colour"] == pytest.approx(
        fresh["colour"], rel=1e-3
    )


def test_a_run_from_start_to_history(desk: Desk, pool_id: str) -> None:
    session = Session(tab="merge")
    other = Session()
    desk.open(other, Opening())
    before = (other.view, other.index, other.runs)
    messages = desk.start(session, "me", {"recipe": recipe_for(pool_id).to_json()}, paused=False)
    assert said(messages, "runbar")["status"] in {"starting", "running", "queued"}
    assert "method=fw_soft" in said(messages, "form")["query"]
    finish(desk, session)
    session.sent = {}
    full = desk.update(session)
    assert set(views.charts_of("merge")) <= set(full)
    assert not set(desk.update(session)) & set(views.charts_of("merge")), "an unchanged chart is sent again"
    history = said({"history": desk.sending.history(session)}, "history")
    own = [row for row in history["rows"] if row["own"]]
    assert len(own) == 1
    assert own[0]["accuracy"] is not None
    assert said(full, "runbar")["status"] == "done"
    assert said(full, "export")["cli"].startswith("fwviz merge --pool")
    assert (other.view, other.index, other.runs) == before
    assert len(json.loads(desk.sending.history(other))["rows"]) == 1

    assert history["compare"] == [own[0]["id"]], "a new run joins the comparison"
    compared = desk.compare(session, {"ids": [row["id"] for row in history["rows"]]})
    assert len({row[0] for row in json.loads(desk.looking.rows(said(compared, "comparison")["ask"]))["rows"]}) == 2
    with pytest.raises(FwvizError, match="your own"):
        desk.forget(other, {"id": own[0]["id"]})
    desk.forget(session, {"id": own[0]["id"]})
    assert session.view is not None
    assert session.view.kind == "rec"


def test_runs_of_another_pool_are_compared_only_when_they_are_ticked(desk: Desk, pool_id: str) -> None:
    session = Session(tab="merge")
    desk.open(session, Opening(tab="merge"))
    recorded = session.compare
    assert [desk.library.find(view).recipe.pool for view in recorded] == [pool_id]
    elsewhere = desk.board.store.create(recipe_for(pool_id))
    foreign = execute(recipe_for(pool_id), writer=elsewhere)
    moved = desk.board.store.root / foreign.id / "header.json"
    moved.write_text(moved.read_text().replace(f'"pool": "{pool_id}"', '"pool": "another"'))
    view = View("run", foreign.id)
    assert desk._comparable(view, recorded) == (view,)
    desk.open(session, Opening(tab="merge", job=view))
    assert session.compare == (view,), "a link to a run of another pool begins with that run alone"
    desk.open(session, Opening(tab="merge", job=view, compare=(view, *recorded)))
    assert session.compare == (view, *recorded), "what is ticked stays ticked"
    desk.board.store.delete(foreign.id)


def test_stop_and_step_from_the_page(desk: Desk, pool_id: str) -> None:
    session = Session()
    long = recipe_for(pool_id, settings=FAST | {"max_steps": 100, "epsilon": 0.0, "inner_updates": 400})
    desk.start(session, "me", {"recipe": long.to_json()}, paused=True)
    deadline = time.monotonic() + 60
    while (job := desk.looking.job(session)) is not None and job.state != "paused":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert job is not None
    assert [(frame.t, frame.completed) for frame in job.frames] == [(0, False), (0, True)]
    desk.pause(session)
    while len(job.frames) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert said(desk.stop(session), "runbar")["status"] in {"stopping", "stopped"}
    finish(desk, session)
    assert job.state == "stopped"
    # Not "finding coefficients, update 3", which is what its last step said while it was made.
    assert json.loads(desk.sending.runbar(job))["message"] == "Stopped before its end."
    with pytest.raises(FwvizError, match="no run under way"):
        desk.stop(session)


def test_a_click_goes_to_a_step_or_pins_a_checkpoint(desk: Desk) -> None:
    session = Session()
    desk.open(session, Opening())
    messages, measure = desk.pin(session, {"chart": "gap_curve", "t": 1})
    shown = desk.looking.shown(session)
    assert shown is not None
    assert not measure
    assert shown.trace.frames[said(messages, "scrubber")["index"]].t == 1
    layer = shown.trace.groups["layer"][1]
    messages, measure = desk.pin(session, {"pins": {"checkpoint": "shape", "layer": layer}})
    assert measure
    assert (session.checkpoint, session.layer) == ("shape", layer)
    assert said(messages, "pins")["checkpoint"] == "shape"
    drawn = said(desk.measure(session), "promise_reality")
    assert drawn["figure"] is not None
    rows = json.loads(desk.looking.rows(drawn["ask"]))
    assert {row[rows["columns"].index("vertex")] for row in rows["rows"]} == {"shape"}
    assert "--vertex shape" in rows["cli"]
    for bad in ({"checkpoint": "stranger"}, {"layer": "attic"}, {"checkpoint": "../x"}, []):
        with pytest.raises(FwvizError):
            desk.pin(session, {"pins": bad})
    _, measure = desk.pin(session, {"pins": {"checkpoint": None, "layer": None}})
    assert not measure
    assert (session.checkpoint, session.layer) == (None, None)


def test_the_way_to_a_merge_with_parts_ends_at_its_backbone(desk: Desk, pool_id: str) -> None:
    """What no straight way leads to is not claimed: experts and masks are left out, and that is said."""
    for method, name in (("emr", "backbone of the merge, without its parts"), ("weight_average", "merged model")):
        recipe = recipe_for(pool_id, method=method, settings={})
        trace = execute(recipe, writer=desk.board.store.create(recipe))
        session = Session(view=View("run", trace.id), tab="landscape", compare=(View("run", trace.id),))
        shown = desk.looking.shown(session)
        assert shown is not None
        assert trace.has_parts == (method == "emr")
        offered = {control.name: control for control in TABS["landscape"].controls(shown)}["end"].choices[0][1]
        assert offered == ("the backbone of the merge" if trace.has_parts else "the merge shown")
        desk.measure(session, "interpolation_curve")
        while desk.measuring(session) is not None:
            time.sleep(0.02)
        table = views.table("interpolation_curve", shown, desk.measured)
        assert set(table["end_title"]) == {name}


def test_a_control_changes_its_charts_and_no_others(desk: Desk) -> None:
    session = Session()
    desk.open(session, Opening())
    messages = desk.change(session, {"name": "order", "value": "score"})
    assert set(messages) == {"lmo_bars"}
    assert session.values == {"relevance": {"order": "score"}}
    for bad in ({"name": "order", "value": "size"}, {"name": "colour", "value": "red"}, {"name": "__class__"}, []):
        with pytest.raises(FwvizError):
            desk.change(session, bad)


def test_a_link_restores_pins_controls_and_comparison(desk: Desk, recordings: RunStore) -> None:
    view = f"rec:{recordings.ids()[0]}"
    query = {"pin": "shape", "layer": "block.0", "relevance.order": "score", "relevance.scope": "gone", "compare": view}
    session = Session()
    messages = desk.open(session, parse_opening(json.dumps({"query": query})))
    assert (said(messages, "pins")["checkpoint"], said(messages, "pins")["layer"]) == ("shape", "block.0")
    fields = {field["name"]: field["value"] for field in said(messages, "relevance_controls")["fields"]}
    assert fields == {"value": "score", "order": "score", "scope": "joint"}
    assert said(messages, "history")["compare"] == [view]


@pytest.mark.parametrize("tab", ["merge", "relevance"])
def test_an_update_of_a_live_page_is_small(replays: Replays, tab: TabId) -> None:
    """After its first picture a chart is sent what has changed, in about 2 KB at most."""
    later = [size for _, charts in replays(tab) for size in charts.items()]
    assert len(later) > 5
    assert all(size < 2200 for _, size in later), later


@pytest.mark.parametrize("tab", ["merge", "relevance"])
def test_an_update_of_all_charts_of_a_page_is_small(replays: Replays, tab: TabId) -> None:
    """So is the whole page: run bar, scrubber, tiles and all charts together."""
    sizes = [whole for whole, _ in replays(tab)]
    assert sorted(sizes[1:])[len(sizes) // 2] < 2048, sizes


@pytest.fixture(scope="module")
def replays(recordings: RunStore, pool_id: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replays]:
    """The updates of a run, replayed once per tab."""
    board = JobBoard(RunStore(tmp_path_factory.mktemp("replays")))
    yield functools.cache(functools.partial(replayed, Desk(board, Library(board, recordings)), pool_id))
    board.close()


def replayed(desk: Desk, pool_id: str, tab: TabId) -> list[tuple[int, dict[str, int]]]:
    """A run's updates, one frame at a time: bytes of all messages, and of each chart that had a picture before."""
    session = Session()
    desk.open(session, Opening(tab=tab))
    recipe = recipe_for(pool_id, settings=FAST | {"max_steps": 6, "epsilon": 0.0, "inner_updates": 30})
    desk.start(session, "me", {"recipe": recipe.to_json()}, paused=False)
    job = desk.looking.job(session)
    assert job is not None
    finish(desk, session)
    # The frames of the run that has ended arrive once more, one at a time.
    frames, final, job.final, job.ended = list(job.frames), job.final, None, False
    session.sent, updates, drawn = {}, [], set()
    try:
        for count in range(2, len(frames)):
            job.frames = frames[:count]
            messages = desk.update(session)
            again = {
                name: len(text) for name, text in messages.items() if name in views.charts_of(tab) and name in drawn
            }
            updates.append((sum(len(text) for text in messages.values()), again))
            drawn |= {name for name, text in messages.items() if '"data":[{' in text}
    finally:
        job.final, job.ended = final, True
    return updates


def test_before_launch_the_page_says_where_and_how_long(desk: Desk, pool_id: str) -> None:
    """Nothing is guessed: the first run of its kind has no time."""
    recipe = recipe_for(pool_id)
    session = Session()
    edited = {"recipe": json.dumps(recipe.to_dict()), "what": "tasks"}
    assert said(desk.check(session, edited)[1], "form")["forecast"] == "Runs on cpu"
    trace = execute(recipe, writer=desk.board.store.create(recipe))
    assert said(desk.check(session, edited)[1], "form")["forecast"] == f"Runs on cpu, {in_words(trace.cost.seconds)}"
    assert json.loads(desk.forms.value(session, recipe, None))["forecast"].startswith("Runs on cpu, about ")
    desk.board.store.delete(trace.id)
    assert desk.forms.forecast(recipe) == "Runs on cpu", "a run that is gone says nothing"


def test_the_oracle_ranks_each_task_once(desk: Desk, pool_id: str) -> None:
    recipe = recipe_for(pool_id)
    updates = [json.loads(messages["form"])["relevance"] for messages in desk.forms.rank(recipe)]
    assert [len(update) for update in updates] == [1, 2]
    assert set(updates[-1]["colour"]) == {"colour", "stripes", "shape", "corner", "shape_foreign"}
    assert updates[-1]["colour"][0] == "colour"
    assert list(desk.forms.rank(recipe)) == []


def test_a_ranking_that_waits_or_fails_says_so(desk: Desk, pool_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is never left with "still measuring": it is told what it waits for, and may ask again."""
    recipe = recipe_for(pool_id)
    steps = desk.forms.rank(recipe)
    assert said(next(steps), "form")["missing"] == ""
    with monkeypatch.context() as patch:
        patch.setattr(JobBoard, "busy", property(lambda board: True))
        waiting = [said(messages, "form") for messages in steps]
    assert [(list(form["relevance"]), form["missing"], form["stuck"]) for form in waiting] == [
        (["colour"], "measured when no run is under way", False)
    ]

    def refuse(*_: Any, **__: Any) -> None:
        raise FwvizError("the base is gone.")

    with monkeypatch.context() as patch:
        patch.setattr("fwviz.ui.forms.assemble", refuse)
        (failed,) = (said(messages, "form") for messages in desk.forms.rank(recipe))
    assert (failed["missing"], failed["stuck"]) == ("not to be had: the base is gone.", True)
    (last,) = (said(messages, "form") for messages in desk.forms.rank(recipe))
    assert (list(last["relevance"]), last["missing"], last["stuck"]) == (["colour", "stripes"], "", False)


def test_letting_go_of_the_cutoff_tests_the_merge_there(desk: Desk) -> None:
    """Beside the slider stands what FR-Merging reaches at that cutoff: measured once, and ended by the next."""
    session = Session(id="page")
    desk.open(session, Opening(tab="spectrum"))

    def beside(messages: dict[str, str]) -> str:
        fields = {field["name"]: field for field in said(messages, "spectrum_controls")["fields"]}
        assert [name for name, field in fields.items() if "said" in field] == ["cutoff"]
        return str(fields["cutoff"]["said"])

    def wait() -> str:
        deadline = time.monotonic() + 120
        while desk.measuring(session) is not None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        shown = desk.looking.shown(session)
        assert shown is not None
        return beside(desk.sending.controls(session, shown))

    sweep = desk.measure(session, "filter_response")
    assert said(sweep, "filter_response")["job"]["state"] in {"waiting", "running"}
    desk.settle(session, {"name": "cutoff", "value": 0.9})
    left = desk.measured.board.of("page beside")
    assert left is not None
    messages = desk.settle(session, {"name": "cutoff", "value": 0.4})
    assert set(messages) >= {"spectrum_profile", "spectrum_controls"}
    assert left.control.stopped or left.state == "done"
    assert desk.measured.board.of("page") is not None, "the sweep was ended by a slider"
    shown = desk.looking.shown(session)
    assert shown is not None
    text = wait()
    table = PICTURES["filter_response"].call(shown)
    expected = entry("lenses", "filter_response").run(
        assembly=assemble(shown.trace.recipe), **dict(table.options) | {"bands": "high", "cutoffs": (0.0, 0.4)}
    )
    joint = expected[expected["task"] == "joint"].set_index("cutoff")["accuracy"]
    assert f"FR merge at 0.4: {style.percent(joint[0.4])} quick accuracy" in text
    assert f"({style.points(joint[0.4] - joint[0.0])} against no filter)" in text
    begun = desk.measured.board._known
    count = len(begun)
    assert beside(desk.settle(session, {"name": "cutoff", "value": 0.4})) == text
    assert len(begun) == count, "what is known is measured again"
    assert beside(desk.settle(session, {"name": "cutoff", "value": 0.5})) != text
    desk.choose_tab(session, {"name": "weights"})
    assert desk.measuring(session) is None


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ({"job": "20260101-000000-000-fw_soft-abcdef"}, "cannot be shown"),
        ({"pool": "nowhere", "method": "fw_soft"}, "no such pool"),
        ({"method": "magic"}, "magic"),
        ({"tasks": "colour,colour"}, "twice"),
        ({"set.max_steps": "nan", "method": "fw_soft"}, "max_steps"),
    ],
)
def test_a_link_that_cannot_be_honoured_opens_with_one_sentence(
    desk: Desk, query: dict[str, str], problem: str
) -> None:
    session = Session()
    messages = desk.open(session, parse_opening(json.dumps({"query": query})))
    assert problem in said(messages, "runbar")["message"]
    assert said(messages, "form")["recipe"]["tasks"]
    assert session.view is not None


def test_a_page_without_any_pool_or_recording_still_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fwviz.pools.open.pool_folders", dict)
    board = JobBoard(RunStore(tmp_path / "runs"))
    messages = Desk(board, Library(board, RunStore(tmp_path / "none"))).open(Session(), Opening())
    assert "no pool" in json.loads(messages["runbar"])["message"]


def test_a_pool_whose_base_is_missing_takes_nothing_else_down(
    desk: Desk, tiny_pool_path: Path, text_pool_copy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is listed and says so, choosing it is one sentence on how to get the base, and the page is as it was."""
    text_pool_copy.edit(lambda card: card["base"].update(hub="someone/not-here"))
    monkeypatch.setenv("FWVIZ_POOLS", os.pathsep.join([str(text_pool_copy.root), str(tiny_pool_path)]))
    form = said(desk.open(Session(), Opening()), "form")
    titles = {pool["id"]: pool["title"] for pool in form["pools"]}
    assert titles["tiny_text"] == "Tiny sentences (its base is to be fetched)"
    assert form["recipe"]["pool"] == form["pool"]["id"] == "tiny"
    with pytest.raises(FwvizError, match="run `fwviz pools fetch tiny_text`"):
        desk.forms.choose_pool(Session(), {"pool": "tiny_text"})
    messages = desk.open(Session(), parse_opening(json.dumps({"query": {"pool": "tiny_text"}})))
    assert "fwviz pools fetch" in said(messages, "runbar")["message"]
    assert said(messages, "form")["recipe"]["pool"] == "tiny"
