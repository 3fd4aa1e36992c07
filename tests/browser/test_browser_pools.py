"""Another pool chosen in the page: merged where its base is here, refused in one sentence where it is not."""

from __future__ import annotations

from typing import Any

import pytest

from fwviz.pools.open import missing_base, pool_card


def test_a_pool_without_its_base_says_how_to_get_it_and_the_page_lives_on(opened: Any) -> None:
    page = opened
    page.wait_for_selector("#fw-pool")
    assert page.input_value("#fw-pool") == "tiny"
    page.select_option("#fw-pool", "baseless")
    page.wait_for_function("document.querySelector('#fw-runbar .fw-message').dataset.tone === 'error'")
    said = page.inner_text("#fw-runbar .fw-message")
    assert "someone/not-here" in said
    assert "fwviz pools fetch baseless" in said
    assert page.input_value("#fw-pool") == "tiny"
    page.select_option("#fw-method", "weight_average")
    page.click("#fw-runbar [data-act=run]")
    page.wait_for_function("document.querySelector('#fw-runbar .fw-state').dataset.status === 'done'")


def test_the_text_pool_is_chosen_and_merged(opened: Any) -> None:
    if missing_base(pool_card("text")):
        pytest.skip("the base of the text pool is not on this machine")
    page = opened
    page.wait_for_selector("#fw-pool")
    page.select_option("#fw-pool", "text")
    page.wait_for_selector(".fw-tasks input[value=topic]")
    assert page.input_value("#fw-pool") == "text"
    assert page.locator(".fw-tasks input:checked").count() == 4
    # The charts still show a run on the pool before: that is said until there is one on this.
    page.wait_for_function("document.querySelector('#fw-runbar .fw-message').textContent.includes('show another pool')")
    for task in ("film_opinion", "language"):
        page.uncheck(f".fw-tasks input[value={task}]")
    page.select_option("#fw-method", "task_arithmetic")
    page.click("#fw-runbar [data-act=run]")
    page.wait_for_function(
        "['running', 'done'].includes(document.querySelector('#fw-runbar .fw-state').dataset.status)"
    )
    page.wait_for_function(
        "document.querySelector('#fw-runbar .fw-state').dataset.status === 'done'", timeout=3 * page.fwviz.patience
    )
    assert "another pool" not in page.inner_text("#fw-runbar .fw-message")
    assert "pool=text" in page.url
    assert "tasks=topic" in page.url or "tasks=spam" in page.url
    page.click("#fw-tabs [role=tab]:has-text('Merge')")
    page.wait_for_function("/%/.test(document.querySelector('#fw-history tbody tr').textContent)")
    page.wait_for_function("window.fwviz.charts.accuracy_live?.drawn > 0")
