"""The recipe form: which recipe it opens with, what a page makes of it, and which checkpoints its tasks want."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from fwviz.pools.open import first_pool, missing_base, open_pool, pool_card, pool_ids
from fwviz.registry import entries, entry
from fwviz.runs.assemble import assemble
from fwviz.runs.estimate import expected_seconds, in_words
from fwviz.runs.recipe import Recipe
from fwviz.runs.store import RunSummary
from fwviz.types import FwvizError
from fwviz.ui import state
from fwviz.ui.hardware import at_home
from fwviz.ui.jobs import JobBoard
from fwviz.ui.library import FIRST_METHOD, Library
from fwviz.ui.panels.sidebar import form_value, relevance_value, runbar_value
from fwviz.ui.sending import Messages
from fwviz.ui.shelf import PREFIX, Shelf
from fwviz.ui.state import Opening, Session


class Forms:
    """Recipes of pages, and the rankings of checkpoints by pool and task, which all pages share."""

    def __init__(self, board: JobBoard, library: Library, shelf: Shelf) -> None:
        self.board = board
        self.library = library
        self.shelf = shelf
        self._rankings: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {}
        self._ranking = threading.Lock()
        self._ended: dict[str, RunSummary] = {}

    def first(self, session: Session, opening: Opening) -> Recipe:
        """The recipe of the link, else that of the run shown, else the pool's default."""
        if opening.recipe_query:
            query = {"method": FIRST_METHOD, **opening.recipe_query}
            query.setdefault("pool", first_pool())
            if query["pool"].startswith(PREFIX) and query["pool"] not in self.pools(session):
                raise FwvizError(
                    "The link's pool was somebody's own and lasted as long as their page: bring the examples again."
                )
            state.parse_id(query["pool"], self.pools(session), "pool")
            return Recipe.from_url(query, open_pool(query["pool"]).card)
        if session.view is not None:
            recipe = self.library.find(session.view).recipe
            if recipe.pool in self.pools(session):
                return recipe
        return self.fallback(first_pool())

    def fallback(self, name: str) -> Recipe:
        """What a pool suggests."""
        method = FIRST_METHOD if FIRST_METHOD in entries("methods") else next(iter(entries("methods")))
        return Recipe.from_dict({"pool": name, "method": method}, open_pool(name).card)

    def pools(self, session: Session) -> tuple[str, ...]:
        """What a page may choose: its own pools, then those of this machine."""
        return (*self.shelf.pools(session.own), *pool_ids())

    def choose_pool(self, session: Session, data: Any) -> Messages:
        """Another pool: its tasks and checkpoints, with the pool's default recipe."""
        name = state.parse_id(state.parse_event(data).get("pool"), self.pools(session), "pool")
        recipe = self.fallback(name)
        return {"form": self.value(session, recipe, recipe.to_url()), "runbar": runbar_value(None)}

    def parse(self, session: Session, data: Any) -> Recipe:
        """The recipe of an event, checked against its pool."""
        recipe = state.parse_recipe(state.parse_event(data).get("recipe"), self.pools(session))
        recipe.check(open_pool(recipe.pool).card)
        return recipe

    def rank(self, recipe: Recipe) -> Iterator[Messages]:
        """Measure which checkpoint each chosen task's oracle wants at the base, a task at a time.

        The recipe itself is opened first: what it reads stays cached, so that Run begins at once.
        """
        pool = open_pool(recipe.pool)
        try:
            if any(task not in self._known(recipe) for task in recipe.tasks) and not self.board.busy:
                assemble(at_home(recipe))
            for task in recipe.tasks:
                if task in self._known(recipe):
                    continue
                if self.board.busy:  # the page asks again
                    yield {"form": self.relevance(recipe, missing="measured when no run is under way")}
                    return
                with self._ranking:
                    if task not in self._known(recipe):
                        asked = replace(recipe, tasks=(task,), checkpoints=pool.checkpoint_ids, seed=0, device="cpu")
                        scores = entry("lenses", "lmo").run(assemble(at_home(asked)))
                        self._known(recipe)[task] = tuple(scores.sort_values("rank")["checkpoint"])
                yield {"form": self.relevance(recipe)}
        except FwvizError as error:
            yield {"form": self.relevance(recipe, missing=f"not to be had: {error}", stuck=True)}

    def relevance(self, recipe: Recipe, query: str | None = None, missing: str = "", *, stuck: bool = False) -> str:
        """What is known of the checkpoints' ranks, with the link of a recipe that was edited."""
        return relevance_value(self._known(recipe), self.forecast(recipe), query, missing, stuck=stuck)

    def forecast(self, recipe: Recipe) -> str:
        """Where the recipe would run, and about how long by the runs of this machine's store."""
        known: dict[str, RunSummary] = {}
        for run_id in self.board.store.ids():
            with contextlib.suppress(FwvizError):
                known[run_id] = self._ended.get(run_id) or self.board.store.summary(run_id)
        self._ended = {run_id: run for run_id, run in known.items() if run.status != "running"}
        seconds = expected_seconds(recipe, known.values())
        where = recipe.device if recipe.precision == "float32" else f"{recipe.device} in {recipe.precision}"
        return f"Runs on {where}" if seconds is None else f"Runs on {where}, {in_words(seconds)}"

    def value(self, session: Session, recipe: Recipe, query: str | None, own: Mapping[str, Any] | None = None) -> str:
        """All that the form is sent; ``own`` is what came of something a visitor brought."""
        card = open_pool(recipe.pool).card
        pools = [(name, _title(name)) for name in self.pools(session)]
        return form_value(
            replace(card, id=recipe.pool),
            pools=pools,
            recipe=recipe,
            relevance=self._known(recipe),
            forecast=self.forecast(recipe),
            query=query,
            own={"key": session.own, "base": self.shelf.base(session.own), **(own or {})},
        )

    def _known(self, recipe: Recipe) -> dict[str, tuple[str, ...]]:
        card = open_pool(recipe.pool).card
        return self._rankings.setdefault((recipe.pool, str(card.base.get("sha256"))), {})


def _title(name: str) -> str:
    """What the form calls a pool, and whether it cannot be opened yet."""
    try:
        card = pool_card(name)
    except FwvizError:
        return f"{name} (cannot be read)"
    return f"{card.title} (its base is to be fetched)" if missing_base(card) else card.title


def link_of(recipe: Recipe) -> str:
    """The query of a recipe; coefficients that are too many for a link stay in the page."""
    try:
        return recipe.to_url()
    except FwvizError:
        return ""
