"""The linked views in a real browser: marks, scrubbing, controls, sharing, long measurements, merges by hand."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest


def tab(page: Any, name: str) -> None:
    page.click(f"#fw-tabs [role=tab]:has-text('{name}')")


def drawn(page: Any, name: str) -> None:
    page.wait_for_function("name => window.fwviz.charts[name]?.drawn > 0", arg=name)


def query(page: Any, name: str) -> str | None:
    found: str | None = page.evaluate("name => new URLSearchParams(location.search).get(name)", name)
    return found


def test_a_click_marks_a_checkpoint_everywhere_and_hovering_previews_it(opened: Any) -> None:
    page = opened
    drawn(page, "lmo_bars")
    drawn(page, "lmo_layers")
    point = """name => {
      const plot = document.querySelector(`#fw-chart-${name} .fw-plot`);
      plot.scrollIntoView({block: 'center'});
      const box = plot.getBoundingClientRect();
      const {xaxis, yaxis} = plot._fullLayout;
      return [box.x + xaxis._offset + 12, box.y + yaxis._offset + yaxis._length / plot._fullData[0].y.length / 2];
    }"""

    def previewed() -> bool:
        # Charts that are drawn meanwhile change the height of the page: aim anew until the point is met.
        x, y = page.evaluate(point, "lmo_layers")
        page.mouse.move(x, y)
        page.mouse.move(x + 1, y + 1)
        page.wait_for_timeout(300)
        return bool(page.locator("#fw-chart-lmo_bars .fw-marks i.preview").count())

    assert any(previewed() for _ in range(40))
    took = page.evaluate("Math.max(...Object.values(window.fwviz.charts).map((c) => c.marking || 0))")
    print(f"\nmarking took {took:.1f} ms in the slowest chart")
    page.mouse.click(*page.evaluate(point, "lmo_layers"))
    page.wait_for_selector("#fw-chart-lmo_bars .fw-marks i.pinned", state="attached")
    pinned = page.evaluate("window.fwviz.pins")
    assert pinned["checkpoint"]
    assert pinned["layer"]
    assert query(page, "pin") == pinned["checkpoint"]
    assert query(page, "layer") == pinned["layer"]
    assert page.input_value("#fw-pins [data-pin=checkpoint]") == pinned["checkpoint"]
    tab(page, "Weights")
    drawn(page, "similarity")
    assert page.locator("#fw-chart-similarity .fw-marks i.pinned").count() >= 1
    page.select_option("#fw-pins [data-pin=layer]", "")
    page.click("#fw-pins [data-act=unpin]")
    page.wait_for_function("!document.querySelector('.fw-marks i.pinned')")
    assert query(page, "pin") is None


def test_what_is_chosen_while_an_answer_is_under_way_counts(opened: Any) -> None:
    """Three choices of a kind, the later ones while the first is being answered: the page shows the last of each."""
    page = opened
    drawn(page, "lmo_bars")
    page.wait_for_timeout(500)
    first, second, third = page.evaluate(
        "[...document.querySelectorAll('#fw-pins [data-pin=checkpoint] option')].slice(1, 4).map((o) => o.value)"
    )
    asked: list[dict[str, Any]] = []

    def slowly(route: Any) -> None:
        asked.append(json.loads(route.request.post_data)["event_data"])
        time.sleep(1.0)
        route.continue_()

    page.route("**/queue/join*", slowly)
    radio = "#fw-controls-relevance input[name=fw-c-relevance-{}]"
    scope = page.eval_on_selector_all(radio.format("scope"), "all => all.map((input) => input.value)")[1]
    for checkpoint, order, seen in ((first, "score", scope), (second, "pool", "joint"), (third, "score", scope)):
        page.select_option("#fw-pins [data-pin=checkpoint]", checkpoint)
        page.check(f"{radio.format('order')}[value={order}]", force=True)
        page.check(f"{radio.format('scope')}[value={seen}]", force=True)
        page.evaluate("i => window.fwviz.goTo(i)", len(asked))
    page.evaluate("window.fwviz.goTo(1)")
    page.wait_for_function(
        """([checkpoint, scope]) => {
          const ask = (name) => JSON.parse(window.fwviz.charts[name].payload.ask);
          const [bars, history] = [ask("lmo_bars"), ask("lmo_history")];
          return bars[2] === 1 && bars[3] === checkpoint && bars[6].order === "score" && history[6].scope === scope;
        }""",
        arg=[third, scope],
    )
    page.unroute("**/queue/join*")
    assert [event["pins"]["checkpoint"] for event in asked if "pins" in event][-1] == third
    assert [event["index"] for event in asked if "index" in event][-1] == 1
    page.click("#fw-pins [data-act=unpin]")


def test_scrubbing_moves_the_weights(opened: Any) -> None:
    page = opened
    tab(page, "Weights")
    drawn(page, "weights_map")
    values = "JSON.stringify([...document.querySelectorAll('.fw-edit td')].map((cell) => cell.textContent))"
    last = page.evaluate(values)
    version = page.evaluate("window.fwviz.charts.weights_map.payload.v")
    page.evaluate("window.fwviz.goTo(0)")
    page.wait_for_function("v => window.fwviz.charts.weights_map.payload.v > v", arg=version)
    page.wait_for_function(f"last => {values} !== last", arg=last)


def test_a_slider_moves_its_charts_and_the_link_brings_everything_back(opened: Any, open_context: Any) -> None:
    page = opened
    tab(page, "Spectrum")
    drawn(page, "spectrum_variance")
    version = page.evaluate("window.fwviz.charts.spectrum_variance.payload.v")
    slider = page.locator("#fw-c-spectrum-cutoff")
    slider.focus()
    start = time.monotonic()
    for _ in range(5):
        slider.press("ArrowRight")
    page.wait_for_function("v => window.fwviz.charts.spectrum_variance.payload.v > v", arg=version)
    print(f"\nspectra redrawn {1000 * (time.monotonic() - start):.0f} ms after the first of five steps")
    assert query(page, "spectrum.cutoff") == "0.35"
    page.select_option("#fw-pins [data-pin=checkpoint]", index=2)
    page.evaluate("window.fwviz.goTo(2)")
    page.wait_for_function("new URLSearchParams(location.search).get('t') === '2'")
    assert page.get_attribute("[data-act=link]", "aria-label")
    address = page.url.split("/", 3)[3]
    watched = open_context()
    other = watched.open(address)
    drawn(other, "spectrum_variance")
    assert other.input_value("#fw-c-spectrum-cutoff") == "0.35"
    assert other.input_value("#fw-scrubber input[type=range]") == "2"
    assert other.evaluate("window.fwviz.pins") == page.evaluate("window.fwviz.pins")
    asked = json.loads(other.evaluate("window.fwviz.charts.spectrum_variance.payload.ask"))
    assert asked[6]["cutoff"] == 0.35


def test_embedding_shows_the_charts_alone(open_context: Any) -> None:
    page = open_context().open("?embed=1&tab=merge&hide=readings")
    drawn(page, "accuracy_live")
    for part in ("#fw-header", "#fw-form", "#fw-runbar", "#fw-scrubber", "#fw-tabs [role=tab]", "#fw-history"):
        assert not page.locator(part).first.is_visible(), part
    assert not page.locator("#fw-chart-accuracy_live .fw-reading").is_visible()
    assert page.locator("#fw-chart-accuracy_live .main-svg").first.is_visible()


def test_a_landscape_grows_stops_and_goes_on(open_context: Any) -> None:
    page = open_context().open("?tab=landscape&landscape.resolution=41")
    page.wait_for_function("window.fwviz.charts.landscape_contour?.payload?.figure")
    button = page.locator("#fw-chart-landscape_contour .fw-act")
    assert button.get_attribute("data-act") == "stop"
    count = "JSON.stringify(window.fwviz.charts.landscape_contour.payload.job)"
    before = page.evaluate(count)
    page.wait_for_function(f"before => {count} !== before", arg=before)
    start = time.monotonic()
    button.click()
    page.wait_for_function("window.fwviz.charts.landscape_contour.payload.job.state === 'stopped'")
    print(f"\nthe measurement stopped {1000 * (time.monotonic() - start):.0f} ms after the click")
    assert page.evaluate("Boolean(window.fwviz.charts.landscape_contour.payload.figure)"), "what was measured is gone"
    assert button.get_attribute("data-act") == "measure"
    whole = page.evaluate(
        "[window.fwviz.charts.landscape_contour.patched || 0, window.fwviz.charts.landscape_contour.received]"
    )
    print(f"{whole[0]} of {whole[1]} pictures came as a difference")


def test_a_merge_by_hand_answers_with_accuracy(opened: Any) -> None:
    page = opened
    tab(page, "Weights")
    page.wait_for_selector(".fw-edit td button")
    page.locator(".fw-edit tbody tr").nth(1).locator("th button").click()
    slider = page.locator(".fw-edit input[type=range]")
    slider.focus()
    slider.press("ArrowRight")
    page.wait_for_function("window.fwviz.editSeconds > 0")
    print(f"\na change by hand was judged after {page.evaluate('window.fwviz.editSeconds'):.2f} s")
    assert query(page, "edits")
    assert page.locator(".fw-edit td.changed").count() >= 1
    page.click("#fw-editor [data-act=take]")
    page.wait_for_function("document.querySelector('#fw-method').value === 'given_coefficients'")
    assert json.loads(page.evaluate("window.fwviz.recipe()"))["coefficients"]["values"]
    page.click("#fw-editor [data-act=reset]")
    page.wait_for_function("!new URLSearchParams(location.search).get('edits')")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_tab_breaks_a_rule_of_accessibility(open_context: Any, theme: str) -> None:
    """WCAG 2.2 A and AA by axe-core, in every tab."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = open_context(color_scheme=theme).open(f"?__theme={theme}")
    drawn(page, "lmo_bars")
    rules = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}}
    broken = []
    for name in ("Relevance", "Spectrum", "Weights", "Landscape", "Merge", "Scaling"):
        tab(page, name)
        page.wait_for_function("[...document.querySelectorAll('.fw-card.loading')].every((c) => !c.offsetParent)")
        found = axe.Axe().run(page, options=rules).response["violations"]
        broken += [(name, v["id"], v["nodes"][0]["html"][:160], v["nodes"][0]["failureSummary"][:200]) for v in found]
    assert not broken, "\n".join(map(str, broken))
