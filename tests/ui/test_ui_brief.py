"""What a figure is sent without: the page must be able to make the figure of it again."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fwviz import registry
from fwviz.charts import _style as style
from fwviz.charts.lmo_bars import beside, ends, reach
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import Control
from fwviz.runs.store import RunStore, RunWriter
from fwviz.runs.trace import Frame, Trace
from fwviz.ui.brief import SIGN, brief
from fwviz.ui.desk import Desk
from fwviz.ui.jobs import JobBoard
from fwviz.ui.library import Library
from fwviz.ui.state import Opening, Session, View
from tests.charts.feeds import CHARTS, FEEDS
from tests.charts.tables_runs import LARGE, PLAIN

NUMBER = re.compile(f"[+{style.MINUS}][0-9.]+(·10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?")
LOWERED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def numbers(array: Any) -> np.ndarray:
    return np.frombuffer(base64.b64decode(array["bdata"]), array["dtype"]).astype(float)


def filled(figure: dict[str, Any]) -> dict[str, Any]:
    """What ``fwviz.filled`` of assets/web/page.js does; tests/browser compares the two."""
    data: list[dict[str, Any]] = []
    layout = {**figure["layout"]}
    notes = [*layout.get("annotations", [])]
    halves = np.frombuffer(base64.b64decode(figure.get("halves", "")), "<f2")
    for sent in figure["data"]:
        trace = dict(sent)
        data.append(trace)
        meta = trace.get("meta", {})
        for name in meta.get("halved", ()):
            if "part" in trace.get(name, {}):
                trace[name] = packed(halves[slice(*trace[name]["part"])])
        for name, (origin, places) in meta.get("picks", {}).items():
            trace[name] = numbers(data[origin]["x"])[places].tolist()
        if "like" in meta:
            trace["x"] = data[meta["like"]]["x"]
        if "beside" in meta:
            origin, places = meta["beside"]
            x = numbers(data[origin]["x"])
            trace |= dict(zip(("x", "text", "textposition"), beside(x[places], reach(x)), strict=True))
        if "reach" in meta:
            layout[meta["reach"]] = layout[meta["reach"]] | {"range": ends(*reach(numbers(trace["x"])))}
        if "columns" in meta:
            columns = {k: numbers(trace["x"]).tolist() if v == "x" else v for k, v in meta["columns"].items()}
            trace["meta"] = meta | {"columns": columns}
        if "cells" in meta:
            field = data[meta["cells"]]
            across = [listed(one["x"]) for one in (field, trace)]
            rows, columns = ([field["y"].index(y) for y in trace["y"]], [across[0].index(x) for x in across[1]])
            trace["text"] = numbers(field["z"]).reshape(-1, len(across[0]))[rows, columns].tolist()
            ids = [field["meta"]["rows"]["checkpoint"][row] for row in rows]
            both = [
                [name, field["meta"]["columns"]["layer"][k]]
                for name, k in zip(ids, columns, strict=True)
                if "keys" in meta
            ]
            trace["customdata"] = both or ids
            if "told" in meta:
                trace["hovertext"] = [meta["told"][row] for row in rows]
            note = notes[meta["tally"]]
            counts = [rows.count(row) for row in range(len(field["y"]))]
            notes[meta["tally"] :] = [note | {"y": y, "text": f"{n}×" * bool(n)} for y, n in enumerate(counts)]
        if "last" in meta:
            x, y = (float(numbers(trace[name])[-1]) for name in "xy")
            notes[meta["last"]] = notes[meta["last"]] | {"x": x, "y": y, "text": style.number(y, signed=False)}
        for name, words in meta.get("signs", {}).items():
            x = numbers(trace["x"])
            trace[name] = [text.replace(SIGN, words[int(v >= 0)]) for text, v in zip(trace[name], x, strict=True)]
        if "ranks" in meta:
            order = np.argsort(numbers(trace["x"]), kind="stable")
            ranks = np.empty(len(order), int)
            ranks[order] = np.arange(1, len(order) + 1)
            trace[meta["ranks"]] = ranks.tolist()
    if notes:
        layout["annotations"] = notes
    return {**{key: value for key, value in figure.items() if key != "halves"}, "data": data, "layout": layout}


def packed(values: np.ndarray) -> dict[str, Any]:
    return {"dtype": values.dtype.str[1:], "bdata": base64.b64encode(values.tobytes()).decode()}


def listed(values: Any) -> list[Any]:
    return numbers(values).tolist() if isinstance(values, dict) else list(values)


def value_of(text: str) -> float:
    return float(text.replace("·10", "e").replace(style.MINUS, "-").translate(LOWERED))


def plain(name: str, table: pd.DataFrame) -> dict[str, Any]:
    figure: dict[str, Any] = json.loads(registry.entry("charts", name).run(table).to_json())
    return figure


def same(sent: Any, whole: Any) -> None:
    if isinstance(whole, dict) and "bdata" in whole:
        made, wanted = (numbers(array) if isinstance(array, dict) else np.array(array) for array in (sent, whole))
        top = np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0)
        np.testing.assert_allclose(made, wanted, rtol=2.0**-11, atol=1e-5 * top)
        if isinstance(sent, dict):
            assert sent.get("shape") == whole.get("shape")
    elif isinstance(whole, str) and NUMBER.fullmatch(whole):
        assert value_of(sent) == pytest.approx(value_of(whole), rel=0.011)  # the last of three digits
    elif isinstance(whole, dict):
        assert sent.keys() == whole.keys()
        for key in whole:
            same(sent[key], whole[key])
    elif isinstance(whole, list):
        assert len(sent) == len(whole)
        for a, b in zip(sent, whole, strict=True):
            same(a, b)
    else:
        assert sent == whole


@pytest.mark.parametrize("name", CHARTS)
@pytest.mark.parametrize("names", [PLAIN, LARGE], ids=["plain", "large"])
def test_a_page_can_fill_in_what_it_is_not_sent(name: str, names: Any) -> None:
    figure = plain(name, FEEDS[name][0](names))
    before = json.dumps(figure)
    sent = json.loads(json.dumps(brief(figure)))
    assert json.dumps(figure) == before, "the figure was touched"
    same(filled(sent), figure)
    assert len(json.dumps(sent)) <= len(before)


def test_bars_are_sent_as_their_lengths_alone() -> None:
    """Another step changes the lengths; ranks, numbers beside the bars and diamonds follow from them."""
    rows = [
        {"task": f"t{k}", "checkpoint": f"c{i}", "score": -1.0 if i == k else 0.01 * i - 0.05, "own": i == k}
        for k in range(3)
        for i in range(9)
    ]
    table = pd.DataFrame(rows)
    table["chosen"] = table["own"]
    first, second = (brief(plain("lmo_bars", table.assign(score=table["score"] * by))) for by in (1.0, -0.98))
    assert first["data"] == second["data"]
    assert first["layout"] == second["layout"] | {"meta": first["layout"]["meta"]}, "another scale follows, too"
    assert first["halves"] != second["halves"]
    for trace in first["data"]:
        assert "text" not in trace
        assert trace["type"] == "bar" or not {"x", "textposition"} & {*trace}


def test_numbers_that_half_precision_does_not_hold_are_sent_as_they_are() -> None:
    table = FEEDS["lmo_layers"][0](PLAIN)
    types = {}
    for size in (1e-6, 1.0, 1e6):
        figure = plain("lmo_layers", table.assign(score=table["score"] / table["score"].abs().max() * size))
        types[size] = brief(figure)["data"][0]["z"]["dtype"]
        same(filled(brief(figure)), figure)
    assert types == {1e-6: "f4", 1.0: "f2", 1e6: "f4"}


def test_an_update_of_many_checkpoints_and_tasks_is_small(tmp_path: Path) -> None:
    """22 checkpoints scored for 5 tasks and in 4 layers: 220 numbers, and the whole tab in 2 KB an iterate."""
    random = np.random.default_rng(0)
    names, tasks = [f"checkpoint_{i}" for i in range(22)], [f"task_{i}" for i in range(5)]
    recipe = Recipe.from_dict({"pool": "many", "method": "fw_soft", "tasks": tasks, "checkpoints": names})

    def scores(groups: int, own: int) -> tuple[tuple[float, ...], ...]:
        made = random.normal(0.2, 0.2, (groups, len(names)))
        made[:, own] = -random.uniform(0.5, 2.0, groups)
        return tuple(tuple(row) for row in made.tolist())

    def played(*_: Any, control: Control, writer: RunWriter) -> Generator[Frame, None, Trace]:
        groups = {"model": ("model",), "layer": tuple(f"block.{i}" for i in range(4))}
        sizes = {name: (1,) * len(found) for name, found in groups.items()}
        trace = writer.describe(Trace("", recipe, "Many", "", groups, sizes, {}))
        for t in range(9):
            known: dict[str, Any] = {"loss": 2.0 / (t + 1), "gap": 1.5 / (t + 1), "accuracy": dict.fromkeys(tasks, 0.5)}
            if t:
                known |= {
                    "scores": scores(4, t % 5),
                    "task_scores": {task: scores(1, i) for i, task in enumerate(tasks)},
                }
                known |= {"vertices": (tuple(names[:5]),), "step_size": 0.5 / t}
            yield Frame(index=t, t=t, seconds=float(t), bytes_read=t << 28, **known)
        return replace(trace, status="converged")

    board = JobBoard(RunStore(tmp_path), execute=played)
    desk = Desk(board, Library(board, RunStore(tmp_path / "none")))
    session = Session()
    desk.open(session, Opening(tab="relevance"))
    job = board.submit(recipe, "me")
    while not job.ended:
        board.wait(job, job.version, 1.0)
    desk.look_at(session, View("run", job.id))
    # The frames of the run that has ended arrive once more, one at a time.
    frames, final, job.final, job.ended = list(job.frames), job.final, None, False
    session.index, session.sent, sizes = None, {}, []
    for count in range(2, len(frames) + 1):
        job.frames = frames[:count]
        sizes.append(sum(len(text) for text in desk.update(session).values()))
    job.final, job.ended = final, True
    board.close()
    assert max(sizes[1:]) < 2048, sizes
    assert min(sizes) > 500, "nothing was drawn"
