"""The one look of all charts: palettes, type, number formats, layout. Charts draw; this says how it looks."""

from __future__ import annotations

import html
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fwviz.types import FwvizError

Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")

# The page's own font first, so that a figure looks the same inside the app and outside.
FONT = "'IBM Plex Sans', ui-sans-serif, system-ui, sans-serif"
MINUS, DOT, ELLIPSIS = "−", "·", "…"
SMALL, TEXT = 11, 12
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Palette:
    """The colours of one theme.

    ``series`` are eight task colours, same hue in both themes, chosen by maximising the smallest distance (OKLab,
    normal vision and simulated protanopia, deuteranopia, tritanopia) with a contrast of at least 3:1; the first four
    are the most distinct. ``wanted`` marks what lowers the loss, ``unwanted`` what raises it: blue and orange, safe for
    all three. ``diverging`` runs from wanted to unwanted at :data:`DIVERGING_STOPS`.
    ``sequential`` runs evenly from the best value to the worst, which fades into the page; its lightness is monotonic.
    """

    ink: str
    muted: str
    quiet: str
    grid: str
    zero: str
    surface: str
    wanted: str
    unwanted: str
    series: tuple[str, ...]
    diverging: tuple[str, ...]
    sequential: tuple[str, ...]


DIVERGING_STOPS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0)

PALETTES: Mapping[str, Palette] = {
    "light": Palette(
        ink="#1e293b",
        muted="#56637a",
        quiet="#b4bfce",
        grid="#e8edf3",
        zero="#94a3b8",
        surface="#ffffff",
        wanted="#2f62c8",
        unwanted="#c2560c",
        series=("#395798", "#a3480a", "#168c6b", "#e161ba", "#a09316", "#7d5ada", "#dc4e69", "#0099b0"),
        diverging=("#173a8a", "#3f72d3", "#b3ccf3", "#f4f6f8", "#f6cfae", "#d9762b", "#8a3a06"),
        sequential=("#0b2a52", "#1d5b8a", "#2f8f9d", "#6fbf9b", "#b9dfa0", "#e9f0bd", "#fbf8e3"),
    ),
    "dark": Palette(
        ink="#e7ecf3",
        muted="#a3b0c2",
        quiet="#56657b",
        grid="#2a3648",
        zero="#64748b",
        surface="#131a2e",
        wanted="#6f9dff",
        unwanted="#f0883e",
        series=("#6293fe", "#e97224", "#5ff0c1", "#c47eab", "#ebda44", "#c3b6ff", "#f08f9a", "#53bbd0"),
        diverging=("#a9c7ff", "#5b8dfb", "#2a4a8c", "#1d2738", "#70421d", "#e0812f", "#ffc38a"),
        sequential=("#f4f9c8", "#c5e59a", "#7ccba2", "#3aa0a8", "#2a6f96", "#23406b", "#1a2340"),
    ),
}

# The reference rows of a pool card, as charts call them.
REFERENCES = {"base": "base", "mtl": "multi-task", "individual": "own checkpoints"}
DASHES = ("solid", "dot", "dash", "dashdot")


@dataclass(frozen=True)
class TaskStyle:
    """How one task is drawn in every chart. ``dash`` tells tasks apart that share a colour."""

    colour: str
    dash: str


def palette(theme: str) -> Palette:
    """The palette of a theme, FwvizError for any other word."""
    if theme not in PALETTES:
        raise FwvizError(f"theme is {theme!r}, but must be light or dark.")
    return PALETTES[theme]


def task_styles(tasks: Iterable[str], theme: str) -> dict[str, TaskStyle]:
    """One style per task by its place in the order: the same tasks in the same order look the same everywhere."""
    colours = palette(theme).series
    return {
        task: TaskStyle(colours[i % len(colours)], DASHES[i // len(colours) % len(DASHES)])
        for i, task in enumerate(dict.fromkeys(tasks))
    }


def alpha(colour: str, opacity: float) -> str:
    """#rrggbb with an opacity in [0, 1]."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


# --- data in --------------------------------------------------------------------------------------


def take(data: pd.DataFrame, required: Sequence[str], numbers: Sequence[str]) -> pd.DataFrame:
    """The rows a chart can draw: a copy, numbered anew, without rows whose ``numbers`` are not finite.

    FwvizError names a missing column. A frame with no rows at all may lack them: it means that there is nothing yet.
    """
    if not len(data):
        return pd.DataFrame({name: [] for name in {*data.columns, *required}})
    missing = [name for name in required if name not in data.columns]
    if missing:
        raise FwvizError(
            f"this chart needs the column {missing[0]!r}: the table has {', '.join(map(str, data.columns))}."
        )
    numeric = data.assign(**{name: pd.to_numeric(data[name], errors="coerce") for name in numbers})
    finite = np.isfinite(numeric[list(numbers)].to_numpy(dtype=float)).all(axis=1) if numbers else slice(None)
    return numeric[finite].reset_index(drop=True)


def flag(data: pd.DataFrame, name: str) -> pd.Series:
    """A boolean column, False where it is absent."""
    return data[name].fillna(False).astype(bool) if name in data else pd.Series(False, index=data.index)


def titles(data: pd.DataFrame, name: str) -> dict[str, str]:
    """Id → title of ``task`` or ``checkpoint``, in order of appearance; the id itself where no title is given."""
    ids = data[name].astype(str)
    shown = data[f"{name}_title"].astype(str) if f"{name}_title" in data else ids
    found: dict[str, str] = {}
    for key, title in zip(ids, shown, strict=True):
        found.setdefault(key, title if title and title != "nan" else key)
    return found


# --- text -----------------------------------------------------------------------------------------


def safe(text: object) -> str:
    """Text that plotly will not read as markup or as a template."""
    return html.escape(str(text), quote=False).replace("%{", "%&#123;").replace("\n", " ")


def short(text: object, length: int) -> str:
    """At most ``length`` characters, long ones cut in the middle so that both ends tell names apart; markup-safe."""
    plain = " ".join(str(text).split())
    if len(plain) > length:
        tail = (length - 1) // 3 if length >= 13 else 0
        plain = plain[: length - 1 - tail].rstrip() + ELLIPSIS + plain[len(plain) - tail :].lstrip()
    return safe(plain)


def number(value: float, signed: bool = True) -> str:
    """Three significant digits with a true minus sign, such as +0.0123, −1.5, 0."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    text = f"{abs(value):.3g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{mantissa}·10{str(int(exponent)).translate(_RAISED)}"
    return (MINUS if value < 0 else "+" if signed else "") + text


def percent(value: float, digits: int = 1) -> str:
    """A share in [0, 1] as a percentage."""
    return f"{100 * value:.{digits}f} %" if math.isfinite(value) else "–"


def points(value: float) -> str:
    """A difference of shares in percentage points."""
    return f"{MINUS if value < 0 else '+'}{abs(100 * value):.1f} points" if math.isfinite(value) else "–"


def duration(seconds: float) -> str:
    """Seconds as 0.8 s, 42 s, 3.5 min."""
    if not math.isfinite(seconds):
        return "–"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def size(count: float) -> str:
    """Bytes as 812 B, 34 kB, 4.1 MB, 1.2 GB."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= one:
            return f"{count / one:.1f} {unit}" if count < 10 * one else f"{count / one:.0f} {unit}"
    return f"{count:.0f} B"


def listed(words: Sequence[str], most: int = 3) -> str:
    """a, b and c; the rest only counted."""
    if len(words) > most:
        return f"{', '.join(words[:most])} and {len(words) - most} more"
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else "none"


# --- numbers out ----------------------------------------------------------------------------------


def f4(values: Any) -> np.ndarray:
    """A float32 array, which plotly sends as base64 rather than as text."""
    return np.asarray(values, dtype=np.float32)


def limit(values: Any, share: float = 1.0) -> float:
    """The ``share`` quantile of |values|, a positive number even for no values or only zeros."""
    size = np.abs(np.asarray(values, dtype=float))
    size = size[np.isfinite(size)]
    top = float(np.quantile(size, share)) if size.size else 0.0
    return top or (float(size.max()) if size.size else 0.0) or 1.0


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions moved as little as needed so that neighbours are ``gap`` apart, in their order, inside [low, high].

    Where the room is too small the gap shrinks evenly.
    """
    count = len(positions)
    if not count:
        return []
    gap = min(gap, (high - low) / max(count - 1, 1))
    order = np.argsort(np.asarray(positions), kind="stable")
    placed = np.clip(np.asarray(positions, dtype=float)[order], low, high)
    # Blocks of touching labels settle at the mean of what they want (pool adjacent violators).
    wanted = placed - gap * np.arange(count)
    blocks: list[list[float]] = []
    for value in wanted:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, size = blocks.pop()
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + mean * size) / (blocks[-1][1] + size), blocks[-1][1] + size]
    flat = np.concatenate([np.full(int(size), mean) for mean, size in blocks])
    settled = np.clip(flat, low, high - gap * (count - 1)) + gap * np.arange(count)
    result = np.empty(count)
    result[order] = settled
    return [float(v) for v in result]


def whole_step(reach: float, most: int) -> int:
    """A distance of ticks in whole iterations, 1, 2, 5, 10, 20, …, so that at most ``most`` fit into ``reach``."""
    scale = 1
    while True:
        for step in (scale, 2 * scale, 5 * scale):
            if reach / step <= most:
                return step
        scale *= 10


# --- what a trace stands for -----------------------------------------------------------------------


def names(
    select: str | None = None,
    *,
    keys: Sequence[str] = (),
    of: Mapping[str, str] | None = None,
    rows: Mapping[str, Sequence[str]] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """``meta`` of a trace: which checkpoint, layer, t, task or run its parts stand for, so that charts can be linked.

    Args:
        select: what a click pins: "checkpoint", "layer", "t", "cell" (checkpoint and layer), "task" or "run".
        keys: what the first columns of ``customdata`` are; ``[select]`` if it is left out.
        of: what the whole trace stands for, such as {"checkpoint": "mnist"}.
        rows, columns: of a heat-map, the ids along y and x, such as {"layer": ["stem", "block.0"]}.
        more: anything else a chart wants to keep with its trace.
    """
    said: dict[str, Any] = {"select": select, "keys": list(keys), "of": of and dict(of)}
    said |= {
        end: ids and {key: list(v) for key, v in ids.items()} for end, ids in (("rows", rows), ("columns", columns))
    }
    return {key: value for key, value in (said | more).items() if value not in (None, "", [], {})}


# --- layout ---------------------------------------------------------------------------------------


def layout(
    theme: str,
    height: int,
    *,
    summary: str,
    reading: str,
    revision: str,
    margin: tuple[int, int, int, int],
    cursor: str | None = None,
    narrow: bool = False,
) -> dict[str, Any]:
    """The layout shared by all charts. ``margin`` is (left, right, top, bottom) in px."""
    colours = palette(theme)
    left, right, top, bottom = margin
    return {
        "height": height,
        "autosize": True,
        "margin": {"l": left, "r": right, "t": top, "b": bottom, "pad": 0},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": TEXT, "color": colours.ink},
        "hoverlabel": {
            "bgcolor": colours.surface,
            "bordercolor": colours.quiet,
            "font": {"family": FONT, "size": TEXT, "color": colours.ink},
            "align": "left",
            "namelength": -1,
        },
        "hovermode": "closest",
        "showlegend": False,
        # A finger that scrolls the page must not draw a zoom box.
        "dragmode": False if narrow else "zoom",
        "uirevision": revision,
        "meta": {"summary": summary, "reading": reading, "cursor": cursor},
    }


def axis(theme: str, **changes: Any) -> dict[str, Any]:
    """A quiet axis: faint grid, no frame, muted ticks."""
    colours = palette(theme)
    return {
        "gridcolor": colours.grid,
        "zeroline": False,
        "ticks": "",
        "tickfont": {"size": SMALL, "color": colours.muted},
        **changes,
    }


def note(text: str, theme: str, **changes: Any) -> dict[str, Any]:
    """A text on the figure, by default above the plot at its left edge: where an axis says what it shows."""
    return {
        "text": text,
        "showarrow": False,
        "xref": "paper",
        "yref": "paper",
        "x": 0,
        "y": 1,
        "xanchor": "left",
        "yanchor": "bottom",
        "yshift": 8,
        "font": {"size": SMALL, "color": palette(theme).muted},
        **changes,
    }


def coloured(text: str, colour: str, bold: bool = False) -> str:
    """Markup of a text in a colour, for tick labels and notes."""
    inner = f"<b>{text}</b>" if bold else text
    return f'<span style="color:{colour}">{inner}</span>'


def text_width(texts: Iterable[str], size: float = SMALL) -> int:
    """A generous estimate in px of the widest text, markup not counted."""
    plain = (html.unescape(re.sub(r"<[^>]*>", "", t)) for t in texts)
    return int(max((len(t) for t in plain), default=0) * size * 0.58) + 2


def figure(traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any]) -> go.Figure:
    """A figure without plotly's default template, which would add 7 KB to every message.

    Plotly's check of every property takes a third of the time a chart takes, many times a second while a run is live.
    The tests of the charts make it for all figures instead.
    """
    return go.Figure({"data": list(traces), "layout": {**layout, "template": {}}}, _validate=False)


def empty(message: str, theme: str, *, reading: str, revision: str, height: int = 200) -> go.Figure:
    """A calm figure that says why there is nothing to see and what to do."""
    # A revision and ranges of its own: what plotly makes of axes without, the first figure with data would inherit.
    nothing = f"{revision}, nothing yet"
    base = layout(theme, height, summary=message, reading=reading, revision=nothing, margin=(16, 16, 16, 16))
    hidden = {"visible": False, "fixedrange": True, "range": [0, 1]}
    lines = "<br>".join(safe(line) for line in textwrap.wrap(message, 44))
    words = note(lines, theme, x=0.5, y=0.5, xanchor="center", yanchor="middle", yshift=0, align="center")
    words["font"] = {"size": 13, "color": palette(theme).muted}
    return figure([], base | {"xaxis": hidden, "yaxis": hidden, "annotations": [words]})
