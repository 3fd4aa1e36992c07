"""What comes from a browser, parsed once: every handler's input passes here, and every problem is one sentence.

A page is known by the session id gradio gives it. What is kept per page is small: ids and positions, never data.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fwviz.runs.recipe import Recipe
from fwviz.types import FwvizError

TabId = Literal["relevance", "spectrum", "weights", "landscape", "merge", "scaling"]
TABS: tuple[TabId, ...] = ("relevance", "spectrum", "weights", "landscape", "merge", "scaling")
NARROW = 640  # px: below this the charts use their narrow form
MAX_TEXT = 64 * 1024
MAX_RUNS = 100
MAX_COMPARED = 8
MAX_SESSIONS = 500
MAX_EDITS = 200
MAX_CONTROLS = 40
MOST = 10.0  # the largest coefficient by hand

_VIEW = re.compile(r"(run|rec):([A-Za-z0-9][A-Za-z0-9._-]{0,119})")
_CONTROL = re.compile(rf"({'|'.join(TABS)})\.([a-z][a-z_]{{0,29}})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,119}")
_RECIPE_KEYS = re.compile(r"pool|method|tasks|checkpoints|seed|device|dtype|storage|precision|set\..{1,60}")


# A coefficient changed by hand: layer ("" is all of them), checkpoint, value.
Edit = tuple[str, str, float]


@dataclass(frozen=True)
class View:
    """A trace a page looks at: a run of the store ("run") or a recording that ships with fwviz ("rec")."""

    kind: Literal["run", "rec"]
    id: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.id}"


@dataclass
class Session:
    """Where one page stands. ``index`` None follows the last frame; ``stream`` counts the streams of updates begun.

    ``checkpoint`` and ``layer`` are pinned; ``values`` are the controls that a person has moved, by tab and name;
    ``edits`` the coefficients changed by hand. ``own`` is the key of what the visitor brought (see fwviz.ui.shelf).
    ``sent`` holds what each part of the page was sent last while a stream is on, so that only differences follow; None
    while none is.
    """

    id: str = ""
    view: View | None = None
    index: int | None = None
    tab: TabId = TABS[0]
    narrow: bool = False
    runs: tuple[str, ...] = ()
    compare: tuple[View, ...] = ()
    checkpoint: str | None = None
    layer: str | None = None
    values: dict[str, dict[str, str | float | bool]] = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()
    own: str = ""
    stream: int = 0
    sent: dict[str, Any] | None = None


class Sessions:
    """The sessions of the pages seen last; older ones are forgotten and start anew."""

    def __init__(self, limit: int = MAX_SESSIONS) -> None:
        self._limit = limit
        self._known: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, session_id: str | None) -> Session:
        key = session_id or ""
        with self._lock:
            session = self._known.setdefault(key, Session(id=key))
            self._known.move_to_end(key)
            while len(self._known) > self._limit:
                self._known.popitem(last=False)
            return session


@dataclass(frozen=True)
class Opening:
    """What a page asks for when it opens: its address, its width and the runs its browser remembers."""

    recipe_query: Mapping[str, str] = field(default_factory=dict)
    job: View | None = None
    index: int | None = None
    tab: TabId = TABS[0]
    narrow: bool = False
    runs: tuple[str, ...] = ()
    problem: str = ""
    checkpoint: str | None = None
    layer: str | None = None
    compare: tuple[View, ...] = ()
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()
    own: str = ""


def parse_event(event: Any) -> Mapping[str, Any]:
    """The data of an event that one of our components sent."""
    if not isinstance(event, Mapping):
        raise FwvizError("the page sent something that is not an event: reload it.")
    return event


def parse_recipe(value: Any, pools: Sequence[str]) -> Recipe:
    """The recipe of the form: JSON text. Raises FwvizError naming the field.

    Only pools by their id: a browser must not make the server open a folder of its choice.
    """
    if not isinstance(value, str) or value == "null":
        raise FwvizError("the page sent no recipe: reload it.")
    if not value.lstrip().startswith("{"):  # YAML is for files: a deep one takes seconds to be refused
        raise FwvizError("the page sent no recipe: reload it.")
    recipe = Recipe.from_text(value)
    parse_id(recipe.pool, pools, "pool")
    return recipe


def parse_view(value: Any) -> View:
    """``run:<id>`` or ``rec:<id>``."""
    match = _VIEW.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise FwvizError("that is not the name of a run.")
    kind: Literal["run", "rec"] = "run" if match[1] == "run" else "rec"
    return View(kind, match[2])


def parse_index(value: Any, count: int) -> int:
    """A frame number in [0, count), clipped; FwvizError if it is not a whole number."""
    number = _whole(value)
    if number is None:
        raise FwvizError("that is not a step of the run.")
    return min(max(number, 0), max(count - 1, 0))


def parse_flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise FwvizError("the page sent something other than yes or no: reload it.")
    return value


def parse_tab(value: Any) -> TabId:
    for tab in TABS:
        if value == tab:
            return tab
    raise FwvizError("there is no such tab.")


def parse_runs(value: Any) -> tuple[str, ...]:
    """Run ids a browser remembers, strangers dropped: a damaged memory must not keep a page from opening."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return ()
    found = [item for item in value[:MAX_RUNS] if isinstance(item, str) and _VIEW.fullmatch(f"run:{item}")]
    return tuple(dict.fromkeys(found))


def parse_compared(value: Any) -> tuple[View, ...]:
    """The runs to compare, each once, at most eight."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise FwvizError("the page sent no list of runs to compare: reload it.")
    if len(value) > MAX_COMPARED:
        raise FwvizError(f"at most {MAX_COMPARED} runs can be compared at a time: untick one first.")
    return tuple(dict.fromkeys(parse_view(item) for item in value))


@dataclass(frozen=True)
class Question:
    """Which table a page asks for: a chart of what it looked at."""

    chart: str
    view: View
    index: int
    checkpoint: str | None
    layer: str | None
    compared: tuple[View, ...]
    values: Mapping[str, str | float | bool]
    edits: tuple[Edit, ...]


def parse_question(value: Any, charts: Sequence[str]) -> Question:
    """JSON text [chart, view, index, checkpoint or null, layer or null, views compared, controls, edits]."""
    try:
        parts = json.loads(value) if isinstance(value, str) and len(value) <= MAX_TEXT else None
    except (ValueError, RecursionError):
        parts = None
    if not isinstance(parts, list) or len(parts) != 8:
        raise FwvizError("the page asked for a table that does not exist: reload it.")
    chart, view, index, checkpoint, layer, compared, values, edits = parts
    return Question(
        parse_id(chart, charts, "chart"),
        parse_view(view),
        parse_index(index, 10**6),
        parse_name(checkpoint, "checkpoint"),
        parse_name(layer, "layer"),
        parse_compared(compared),
        parse_values(values),
        parse_edits(edits),
    )


def parse_name(value: Any, what: str) -> str | None:
    """A pinned id or None; whether there is such a thing is not known here."""
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise FwvizError(f"there is no such {what}.")
    return value


def parse_values(value: Any) -> dict[str, str | float | bool]:
    """Controls by name: short texts, finite numbers, yes or no."""
    if not isinstance(value, Mapping) or len(value) > MAX_CONTROLS:
        raise FwvizError("the page sent no list of controls: reload it.")
    return {parse_control_name(name): parse_scalar(item) for name, item in value.items()}


def parse_control_name(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[a-z][a-z_]{0,29}", value):
        raise FwvizError("there is no such control.")
    return value


def parse_scalar(value: Any) -> str | float | bool:
    """What a control may send; the control itself knows its range."""
    if isinstance(value, bool) or (isinstance(value, str) and len(value) <= 300 and value.isprintable()):
        return value
    if isinstance(value, int | float) and abs(value) < 1e9:  # NaN is not below anything
        return float(value)
    raise FwvizError("that is no value of a control.")


def parse_edits(value: Any) -> tuple[Edit, ...]:
    """Coefficients changed by hand: [[layer or "", checkpoint, value], …]; the last of a cell counts."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) > MAX_EDITS:
        raise FwvizError(f"at most {MAX_EDITS} coefficients can be changed by hand.")
    found: dict[tuple[str, str], float] = {}
    for item in value:
        if isinstance(item, str) or not isinstance(item, Sequence) or len(item) != 3:
            raise FwvizError("the page sent something other than a coefficient: reload it.")
        layer, checkpoint = parse_name(item[0], "layer") or "", parse_name(item[1], "checkpoint")
        number = parse_scalar(item[2])
        if checkpoint is None or isinstance(number, bool | str) or abs(number) > MOST:
            raise FwvizError(f"a coefficient is a number from {-MOST:g} to {MOST:g}.")
        found.pop((layer, checkpoint), None)
        found[layer, checkpoint] = number
    return tuple((layer, checkpoint, number) for (layer, checkpoint), number in found.items())


def parse_id(value: Any, known: Sequence[str], what: str) -> str:
    """One of the known ids."""
    if not isinstance(value, str) or value not in known:
        raise FwvizError(f"there is no such {what}.")
    return value


def parse_opening(value: Any) -> Opening:
    """The opening message: JSON text {query, width, runs}. Never fails: what cannot be read becomes ``problem``."""
    problem = ""
    try:
        message = json.loads(value) if isinstance(value, str) and len(value) <= MAX_TEXT else {}
    except (ValueError, RecursionError):
        message = {}
    if not isinstance(message, Mapping):
        message = {}
    query = message.get("query")
    pairs = (
        {k: v for k, v in query.items() if isinstance(k, str) and isinstance(v, str)}
        if isinstance(query, Mapping)
        else {}
    )
    job: View | None = None
    try:
        if "job" in pairs:
            job = parse_view(f"run:{pairs['job']}")
        elif "view" in pairs:
            job = parse_view(pairs["view"])
    except FwvizError:
        problem = "The link names a run that cannot exist, so the recording is shown."
    index = _whole(pairs.get("t"))
    tab = next((t for t in TABS if pairs.get("tab") == t), TABS[0])
    width, own = message.get("width"), message.get("own")
    narrow = isinstance(width, int | float) and not isinstance(width, bool) and 0 < width < NARROW
    values: dict[str, dict[str, str]] = {}
    for name, text in pairs.items():
        match = _CONTROL.fullmatch(name)
        if match is not None and len(text) <= 300 and text.isprintable():
            values.setdefault(match[1], {})[match[2]] = text
    return Opening(
        recipe_query={name: text for name, text in pairs.items() if _RECIPE_KEYS.fullmatch(name)},
        job=job,
        index=max(index, 0) if index is not None else None,
        tab=tab,
        narrow=narrow,
        runs=parse_runs(message.get("runs")),
        problem=problem,
        checkpoint=_or_none(parse_name, pairs.get("pin"), "checkpoint"),
        layer=_or_none(parse_name, pairs.get("layer"), "layer"),
        compare=_or_none(lambda text: parse_compared(text.split(",")), pairs.get("compare")) or (),
        values=values,
        edits=_or_none(_edits_of_link, pairs.get("edits")) or (),
        own=own if isinstance(own, str) and len(own) <= 64 else "",
    )


def edits_link(edits: Sequence[Edit]) -> str:
    """Edits as they stand in a link: layer:checkpoint:value, separated by commas."""
    return ",".join(f"{layer}:{checkpoint}:{value:g}" for layer, checkpoint, value in edits)


def _edits_of_link(text: str) -> tuple[Edit, ...]:
    parts = [item.split(":") for item in text.split(",")]
    return parse_edits([[layer, checkpoint, float(value)] for layer, checkpoint, value in parts])


def _or_none(parse: Any, value: Any, *more: Any) -> Any:
    """A damaged part of a link is left out: the page opens all the same."""
    try:
        return parse(value, *more) if value else None
    except (FwvizError, ValueError):
        return None


def _whole(value: Any) -> int | None:
    """A whole number of ordinary size from a number or a short text, else None."""
    if isinstance(value, str) and len(value) <= 9 and re.fullmatch(r"-?[0-9]+", value):
        value = int(value)
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > 10**9:
        return None
    return value
