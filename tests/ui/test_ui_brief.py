"""What a figure is sent without: the page must be able to make the figure of it again."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fwviz import registry
from fwviz.charts import _style as style
from fwviz.ui.brief import SIGN, brief
from tests.charts.feeds import CHARTS, FEEDS
from tests.charts.tables_runs import LARGE, PLAIN

NUMBER = re.compile(f"[+{style.MINUS}][0-9.]+(·10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?")
LOWERED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def numbers(array: Any) -> np.ndarray:
    return np.frombuffer(base64.b64decode(array["bdata"]), array["dtype"]).astype(float)


def filled(figure: dict[str, Any]) -> dict[str, Any]:
    """What ``fwviz.filled`` of assets/web/page.js does; tests/browser compares the two."""
    data: list[dict[str, Any]] = []
    for sent in figure["data"]:
        trace = dict(sent)
        data.append(trace)
        meta = trace.get("meta", {})
        for name, (origin, places) in meta.get("picks", {}).items():
            x = numbers(data[origin]["x"])
            trace[name] = [0.0 if i is None else x[i] for i in places]
        for name, (origin, places) in meta.get("words", {}).items():
            trace[name] = [style.number(numbers(data[origin]["x"])[i]) for i in places]
        for name, words in meta.get("signs", {}).items():
            x = numbers(trace["x"])
            trace[name] = [text.replace(SIGN, words[int(v >= 0)]) for text, v in zip(trace[name], x, strict=True)]
        if "ranks" in meta:
            order = np.argsort(numbers(trace["x"]), kind="stable")
            ranks = np.empty(len(order), int)
            ranks[order] = np.arange(1, len(order) + 1)
            trace[meta["ranks"]] = ranks.tolist()
    return {**figure, "data": data}


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
    for before, after in zip(first["data"], second["data"], strict=True):
        changed = {key for key in after if before[key] != after[key]}
        assert changed <= ({"x"} if after["type"] == "bar" else {"textposition", "meta"}), changed
        assert "text" not in after
        assert after["type"] == "bar" or "x" not in after


def test_numbers_that_half_precision_does_not_hold_are_sent_as_they_are() -> None:
    table = FEEDS["lmo_layers"][0](PLAIN)
    types = {}
    for size in (1e-6, 1.0, 1e6):
        figure = plain("lmo_layers", table.assign(score=table["score"] / table["score"].abs().max() * size))
        types[size] = brief(figure)["data"][0]["z"]["dtype"]
        same(filled(brief(figure)), figure)
    assert types == {1e-6: "f4", 1.0: "f2", 1e6: "f4"}
