"""The page as a person meets it, in a real browser."""

from __future__ import annotations

import base64
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fwviz.charts import _style as style
from fwviz.charts.lmo_bars import beside, reach
from fwviz.ui.brief import SIGN, brief
from fwviz.ui.delta import changes
from tests.charts.feeds import FEEDS
from tests.charts.tables_runs import LARGE, PLAIN
from tests.ui.test_ui_brief import plain, same


def chart(page: Any, name: str) -> dict[str, Any]:
    """What a chart knows of itself."""
    found: dict[str, Any] = page.evaluate(
        "name => { const c = window.fwviz.charts[name]; return c && {mount: c.mount, drawn: c.drawn, ready: c.ready, "
        "v: c.payload?.v, figure: Boolean(c.payload?.figure)} }",
        name,
    )
    return found


def run_to_the_end(page: Any) -> None:
    page.click("#fw-runbar [data-act=run]")
    page.wait_for_function("document.querySelector('#fw-runbar .fw-state').dataset.status === 'done'")


def ticks(page: Any) -> int:
    return int(page.get_attribute("#fw-scrubber input[type=range]", "max"))


def test_first_paint_shows_the_recorded_run(opened: Any) -> None:
    page = opened
    assert page.inner_text("h1") == "fwviz"
    page.wait_for_function("window.fwviz.charts.lmo_bars?.drawn > 0")
    assert page.inner_text("#fw-scrubber .fw-badge").lower() == "recording"
    assert "FW-Merging, soft" in page.inner_text("#fw-scrubber .fw-source")
    bars = page.locator("#fw-chart-lmo_bars svg.main-svg").first
    assert bars.get_attribute("role") == "img"
    assert "want" in (bars.get_attribute("aria-label") or "")
    assert page.locator("#fw-chart-lmo_bars .bars path").count() >= 5
    assert ticks(page) > 6
    assert "job=" not in page.url
    assert "view=" not in page.url


def test_run_is_live_and_leaves_a_link_that_reattaches(opened: Any) -> None:
    page = opened
    page.click("#fw-tabs [role=tab]:has-text('Merge')")
    page.wait_for_function("window.fwviz.charts.accuracy_live?.ready")
    mount = chart(page, "accuracy_live")["mount"]
    start = time.monotonic()
    page.click("#fw-runbar [data-act=run]")
    page.wait_for_function(
        "document.querySelector('#fw-scrubber .fw-badge').dataset.kind === 'live' && window.fwviz.firstStep > 0"
    )
    first = page.evaluate("window.fwviz.firstStep")
    before, begun = page.evaluate("window.fwviz.updates"), time.monotonic()
    page.wait_for_function("document.querySelector('#fw-runbar .fw-state').dataset.status === 'done'")
    took = time.monotonic() - begun
    rate = (page.evaluate("window.fwviz.updates") - before) / max(took, 1e-3)
    whole = time.monotonic() - start
    print(f"\nfirst live step {first:.0f} ms after Run, {rate:.1f} updates/s over {took:.1f} s, {whole:.1f} s in all")
    assert first < 15_000
    assert chart(page, "accuracy_live")["mount"] == mount, "the chart was mounted anew"
    page.wait_for_function("/%/.test(document.querySelector('#fw-history tbody tr').textContent)")
    assert "job=" in page.url
    assert "method=fw_soft" in page.url
    frames = ticks(page)
    page.fwviz.reload()
    page.wait_for_function(f"document.querySelector('#fw-scrubber input[type=range]').max === '{frames}'")
    assert page.inner_text("#fw-scrubber .fw-badge").lower() == "run"
    assert page.get_attribute("#fw-tabs [role=tab]:has-text('Merge')", "aria-selected") == "true"


def test_the_run_bar_says_where_and_how_long_before_it_begins(opened: Any) -> None:
    page = opened
    forecast = "document.querySelector('#fw-runbar .fw-forecast')"
    page.wait_for_function(f"!{forecast}.hidden && {forecast}.textContent.startsWith('Runs on cpu')")
    run = "document.querySelector('#fw-runbar [data-act=run]').click()"
    assert page.evaluate(f"() => {{ {run}; return {forecast}.hidden }}"), "what is under way needs no forecast"
    page.wait_for_function("document.querySelector('#fw-runbar .fw-state').dataset.status === 'done'")
    page.wait_for_function(f"!{forecast}.hidden && /^Runs on cpu, about \\d+ s$/.test({forecast}.textContent)")


def test_stop_acts_and_a_reload_during_a_run_reattaches(opened: Any) -> None:
    page = opened
    set_slow(page)
    page.click("#fw-runbar [data-act=run]")
    page.wait_for_function("document.querySelector('#fw-runbar .fw-state').dataset.status === 'running'")
    job = page.evaluate("new URLSearchParams(location.search).get('job')")
    page.fwviz.reload()
    page.wait_for_function("document.querySelector('#fw-scrubber .fw-badge')?.dataset.kind === 'live'")
    assert page.evaluate("new URLSearchParams(location.search).get('job')") == job
    page.wait_for_function("window.fwviz.updates > 2")
    page.click("#fw-runbar [data-act=pause]")
    page.wait_for_function("document.querySelector('#fw-runbar .fw-state').dataset.status === 'paused'")
    at = page.inner_text("#fw-scrubber .fw-now")
    page.click("#fw-runbar [data-act=step]")
    page.wait_for_function("at => document.querySelector('#fw-scrubber .fw-now').textContent !== at", arg=at)
    start = time.monotonic()
    page.click("#fw-runbar [data-act=stop]")
    page.wait_for_function(
        "['stopping', 'stopped'].includes(document.querySelector('#fw-runbar .fw-state').dataset.status)"
    )
    print(f"\nstop acted after {1000 * (time.monotonic() - start):.0f} ms")
    assert time.monotonic() - start < 20
    page.wait_for_function("document.querySelector('#fw-runbar .fw-state').dataset.status === 'stopped'")


def set_slow(page: Any) -> None:
    """A run that lasts: many inner updates."""
    page.wait_for_selector("#fw-set-max_steps")
    page.locator(".fw-more > summary").click()
    for name, value in (("max_steps", "60"), ("epsilon", "0")):
        page.fill(f"#fw-set-{name}", value)
        page.locator(f"#fw-set-{name}").blur()
    page.fill("#fw-set-inner_updates", "200")
    page.locator("#fw-set-inner_updates").blur()


def test_step_makes_one_iterate_and_holds(opened: Any) -> None:
    page = opened
    page.click("#fw-runbar [data-act=step]")
    page.wait_for_function("document.querySelector('#fw-runbar .fw-state').dataset.status === 'paused'")
    assert page.inner_text("#fw-scrubber .fw-now") == "t = 0"
    page.click("#fw-runbar [data-act=stop]")
    page.wait_for_function("document.querySelector('#fw-runbar .fw-state').dataset.status === 'stopped'")


def test_an_update_stands_between_its_iterate_and_the_one_before(opened: Any) -> None:
    page = opened
    set_slow(page)
    page.click("#fw-runbar [data-act=run]")
    label = "document.querySelector('#fw-scrubber .fw-now')"
    page.wait_for_function(f"{label}.title")
    title, text = page.evaluate(f"[{label}.title, {label}.textContent]")
    page.click("#fw-runbar [data-act=stop]")
    said = re.fullmatch(r"Update (\d+) on the way to t = (\d+)", title)
    assert said
    assert text == f"t = {int(said[2]) - 1} + {said[1]}"
    page.wait_for_function("document.querySelector('#fw-runbar .fw-state').dataset.status === 'stopped'")
    page.evaluate("window.fwviz.goTo(0)")
    page.wait_for_function(f"{label}.textContent.startsWith('t = 0') && !{label}.title")


def test_scrubbing_moves_the_charts_and_the_address(opened: Any) -> None:
    page = opened
    page.wait_for_function("window.fwviz.charts.lmo_bars?.drawn > 0 && window.fwviz.charts.gap_curve?.ready")
    page.evaluate("window.fwviz.goTo(0)")
    page.wait_for_function("new URLSearchParams(location.search).get('t') === '0'")
    page.wait_for_function("document.querySelector('#fw-scrubber .fw-now').textContent === 't = 0'")
    page.wait_for_timeout(500)
    first = chart(page, "lmo_bars")
    line = "document.querySelector('#fw-chart-gap_curve .fw-cursor').style.transform"
    before = page.evaluate(line)
    page.keyboard.press("ArrowRight")
    for _ in range(40):
        page.keyboard.press("ArrowRight")
    assert page.evaluate(line) != before
    page.wait_for_function("v => window.fwviz.charts.lmo_bars.payload.v > v", arg=first["v"])
    assert page.evaluate("Number(new URLSearchParams(location.search).get('t'))") == ticks(page)
    assert chart(page, "lmo_bars")["mount"] == first["mount"]


def test_zoom_survives_fifty_updates_without_a_remount(opened: Any) -> None:
    page = opened
    page.wait_for_function("window.fwviz.charts.gap_curve?.ready")
    plot = "document.querySelector('#fw-chart-gap_curve .fw-plot')"
    page.evaluate(f"Plotly.relayout({plot}, {{'xaxis.range': [1, 3]}})")
    page.evaluate(f"{plot}.dataset.mine = 'same node'")
    drawn = chart(page, "gap_curve")["drawn"]
    page.evaluate(
        """async () => {
          const state = window.fwviz.charts.gap_curve;
          for (let i = 0; i < 50; i++) {
            state.push({...state.payload, v: state.payload.v + 1});
            await new Promise((done) => setTimeout(done, 40));
          }
        }"""
    )
    page.wait_for_function("n => window.fwviz.charts.gap_curve.drawn >= n + 25", arg=drawn)
    assert [round(x, 3) for x in page.evaluate(f"{plot}._fullLayout.xaxis.range")] == [1, 3]
    assert page.evaluate(f"{plot}.dataset.mine") == "same node"


def test_the_page_applies_differences_as_python_does(opened: Any) -> None:
    """Random messages that grow, shrink and change: what fwviz.patched makes is what was meant."""
    random = np.random.default_rng(0)

    def some(depth: int) -> Any:
        kind = random.integers(7 if depth else 4)
        if kind > 4:
            return {key: some(depth - 1) for key in random.permutation(list("xyz+"))[: random.integers(5)]}
        if kind == 4:
            return [some(depth - 1) for _ in range(random.integers(5))]
        words = ["At", "iteration", "−0.5", "+1.25·10⁻³", "é", "<b>c</b>", "", "𝄞"]
        made = [int(random.integers(9)), 0.25, [None, True, False][random.integers(3)]]
        return made[kind] if kind < 3 else " ".join(random.choice(words, random.integers(9)))

    def grid(columns: int) -> dict[str, str]:
        cells = np.arange(22 * 30, dtype="<f4").reshape(22, 30)[:, :columns]
        return {"dtype": "f4", "shape": f"22, {columns}", "bdata": base64.b64encode(cells.tobytes()).decode()}

    pairs = [(some(3), some(3)) for _ in range(400)] + [(grid(7), grid(8)), ({"z": grid(1)}, {"z": grid(30)})]
    sent = [[old, changes(old, new)] for old, new in pairs]
    made = opened.evaluate("pairs => pairs.map(([old, difference]) => window.fwviz.patched(old, difference))", sent)
    for (old, new), found in zip(pairs, made, strict=True):
        assert found == new, (old, changes(old, new))


def test_the_page_fills_in_what_a_figure_is_sent_without(opened: Any) -> None:
    """Ranks with ties, signs, picked entries, cells of a map, and every number that half precision knows."""
    halves = np.arange(1 << 16, dtype="<u2").view("<f2")
    x = np.array([0.5, -0.0, -2.0, 0.5, 1e-3, -2.0], "<f4")
    packed = [{"dtype": a.dtype.str[1:], "bdata": base64.b64encode(a.tobytes()).decode()} for a in (x, halves)]
    words = [f"{SIGN} loss"] * len(x)
    meta = {"ranks": "text", "signs": {"hovertext": ["lower", "higher"]}, "halved": ["z", "x"]}
    marks, places = {"meta": {"picks": {"x": [0, [2, 4]]}}}, [2, 0, 4, 1]
    told = {"meta": {"beside": [0, places]}}
    sent = {"data": [{"x": packed[0], "z": packed[1], "hovertext": words, "meta": meta}, marks, told], "layout": {}}
    bars, picked, numbers = opened.evaluate("figure => window.fwviz.filled(figure)", sent)["data"]
    assert bars["text"] == [5, 3, 1, 6, 4, 2]
    assert bars["hovertext"] == [f"{'lower' if v < 0 else 'higher'} loss" for v in x]
    assert bars["x"] == packed[0]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(bars["z"]["bdata"]), "<f4"), halves.astype("<f4"))
    assert picked["x"] == pytest.approx([-2.0, 1e-3])
    assert [numbers[key] for key in ("x", "text", "textposition")] == [*beside(x[places], reach(x))]
    values = [0.0, *(sign * 1.23456 * 10.0**power for power in range(-9, 9) for sign in (1, -1)), 999.6, 0.0999999]
    assert opened.evaluate("values => values.map(window.fwviz.number)", values) == [style.number(v) for v in values]


@pytest.mark.parametrize("name", ["lmo_bars", "lmo_history", "lmo_layers", "gap_curve"])
def test_the_page_draws_the_figure_that_the_chart_made(opened: Any, name: str) -> None:
    for names in (PLAIN, LARGE):
        figure = plain(name, FEEDS[name][0](names))
        sent = brief(figure)
        made = opened.evaluate("figure => window.fwviz.filled(figure)", sent)
        assert made.pop("halves", None) == sent.get("halves")
        same(made, figure)


def test_plotlys_buttons_stand_below_the_plot(opened: Any) -> None:
    """Above it they would cover the colour key and the headings of columns."""
    opened.wait_for_selector("#fw-chart-lmo_history .modebar", state="attached")
    bar, end = opened.evaluate(
        """() => {
          const plot = document.querySelector('#fw-chart-lmo_history .fw-plot'), {t, h} = plot._fullLayout._size;
          return [plot.querySelector('.modebar').getBoundingClientRect().top, plot.getBoundingClientRect().top + t + h];
        }"""
    )
    assert bar > end


def test_a_click_reaches_python(opened: Any) -> None:
    page = opened
    page.wait_for_function("window.fwviz.charts.gap_curve?.ready")
    page.evaluate("window.fwviz.goTo(0)")
    page.wait_for_timeout(600)
    page.locator("#fw-chart-gap_curve").scroll_into_view_if_needed()
    x, y = page.evaluate(
        """() => {
          const plot = document.querySelector('#fw-chart-gap_curve .fw-plot');
          const box = plot.getBoundingClientRect();
          const {xaxis, yaxis} = plot._fullLayout;
          const trace = plot._fullData.find((t) => t.yaxis === 'y');
          return [box.x + xaxis._offset + xaxis.d2p(trace.x[2]), box.y + yaxis._offset + yaxis.d2p(trace.y[2])];
        }"""
    )
    page.mouse.move(x, y)
    page.wait_for_timeout(200)
    page.mouse.click(x, y)
    page.wait_for_function("document.querySelector('#fw-scrubber .fw-now').textContent === 't = 2'")


def test_measure_draws_promise_and_reality(opened: Any) -> None:
    page = opened
    card = page.locator("#fw-chart-promise_reality")
    card.scroll_into_view_if_needed()
    assert chart(page, "promise_reality")["figure"] is False
    card.locator("[data-act=measure]").click()
    page.wait_for_function("Boolean(window.fwviz.charts.promise_reality.payload.figure)")
    page.wait_for_function("window.fwviz.charts.promise_reality.ready")


def test_data_table_shows_the_numbers(opened: Any) -> None:
    page = opened
    page.wait_for_function("window.fwviz.charts.lmo_bars?.ready")
    page.click("#fw-chart-lmo_bars [data-act=table]")
    page.wait_for_selector("#fw-chart-lmo_bars .fw-table td")
    head = page.locator("#fw-chart-lmo_bars .fw-table th").all_inner_texts()
    assert "checkpoint" in head
    assert "score" in head
    assert page.locator("#fw-chart-lmo_bars .fw-table tbody tr").count() == 10
    with page.expect_download() as download:
        page.locator("#fw-chart-lmo_bars .fw-menu summary").click()
        page.click("#fw-chart-lmo_bars [data-act=csv]")
    lines = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
    assert len(lines) == 11
    assert "score" in lines[0]


def test_two_browsers_are_independent(open_context: Any) -> None:
    one, two = open_context(), open_context()
    first, second = one.open(), two.open()
    second.wait_for_function("window.fwviz.charts.lmo_bars?.drawn > 0")
    before = second.url, second.inner_text("#fw-scrubber .fw-source")
    run_to_the_end(first)
    assert (second.url, second.inner_text("#fw-scrubber .fw-source")) == before
    assert second.inner_text("#fw-scrubber .fw-badge").lower() == "recording"
    assert first.locator("#fw-history tbody tr").count() >= 0
    second.click("#fw-tabs [role=tab]:has-text('Merge')")
    second.wait_for_selector("#fw-history tbody tr")
    assert second.locator("#fw-history tbody tr").count() == 1, "a run of another browser shows up"


def test_a_wrong_setting_is_said_and_nothing_is_lost(opened: Any) -> None:
    page = opened
    page.wait_for_selector("#fw-set-max_steps")
    page.fill("#fw-set-max_steps", "100000")
    page.locator("#fw-set-max_steps").blur()
    page.click("#fw-runbar [data-act=run]")
    page.wait_for_function("document.querySelector('#fw-runbar .fw-message').dataset.tone === 'error'")
    assert "max_steps" in page.inner_text("#fw-runbar .fw-message")
    assert page.input_value("#fw-set-max_steps") == "100000"
    assert page.locator("#fw-chart-lmo_bars .main-svg").count() > 0


def test_a_link_restores_recipe_step_and_tab(open_context: Any) -> None:
    watched = open_context()
    page = watched.open(
        "?pool=tiny&method=task_arithmetic&tasks=colour,shape&checkpoints=colour,stripes&set.scale=0.7&tab=merge&t=3"
    )
    page.wait_for_function("document.querySelector('#fw-method')?.value === 'task_arithmetic'")
    assert json.loads(page.evaluate("window.fwviz.recipe()"))["tasks"] == ["colour", "shape"]
    assert page.input_value("#fw-set-scale") == "0.7"
    assert page.get_attribute("#fw-tabs [role=tab]:has-text('Merge')", "aria-selected") == "true"
    assert page.input_value("#fw-scrubber input[type=range]") == "3"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_phone_width_needs_no_sideways_scroll(open_context: Any, theme: str) -> None:
    watched = open_context(viewport={"width": 390, "height": 844}, color_scheme=theme, has_touch=True)
    page = watched.open()
    page.wait_for_function("window.fwviz.charts.lmo_bars?.drawn > 0")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not page.locator("#fw-form").is_visible()
    assert page.locator("#fw-runbar [data-act=run]").is_visible()
    page.click("[data-fw-drawer]")
    page.wait_for_selector("#fw-method")
    assert page.locator("#fw-method").is_visible()
    page.keyboard.press("Escape")
    page.wait_for_function("getComputedStyle(document.querySelector('#fw-form')).visibility === 'hidden'")
    for tab, name in (("merge", "accuracy_live"), ("weights", "weights_map"), ("spectrum", "spectrum_profile")):
        page = watched.open(f"?tab={tab}")  # the tab of a link opens though it has no room in the bar
        page.wait_for_function("name => window.fwviz.charts[name]?.drawn > 0", arg=name)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab


def test_dark_and_light_without_the_server(opened: Any) -> None:
    page = opened
    page.wait_for_function("window.fwviz.charts.gap_curve?.ready")
    colour = "getComputedStyle(document.querySelector('#fw-chart-gap_curve .xtick text')).fill"
    version = chart(page, "gap_curve")["v"]
    light = page.evaluate(colour)
    page.click("#fw-header [data-act=theme]")
    page.wait_for_function(f"{colour} !== '{light}'")
    assert page.evaluate("document.body.classList.contains('dark')")
    assert chart(page, "gap_curve")["v"] == version, "the server was asked for a new figure"
    page.fwviz.reload()
    assert page.evaluate("document.body.classList.contains('dark')")
