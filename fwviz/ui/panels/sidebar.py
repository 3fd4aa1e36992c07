"""The sidebar: the form that makes a recipe, and the run bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from fwviz.backbones.families import FAMILIES
from fwviz.backbones.precision import PRECISIONS
from fwviz.cards import PoolCard
from fwviz.registry import Entry, SettingSpec, describe_settings, entries
from fwviz.runs.recipe import DTYPES, STORAGES, Recipe
from fwviz.ui import web, wire
from fwviz.ui.jobs import Job

_ICONS = {
    "run": "M2 1l10 6-10 6z",
    "step": "M1 1l7 6-7 6zM10 1h3v12h-3z",
    "pause": "M2 1h4v12H2zM8 1h4v12H8z",
    "stop": "M1 1h12v12H1z",
}
_HINTS = {
    "run": "Merge with the recipe above",
    "step": "One iteration, then pause",
    "pause": "Hold the run where it is",
    "stop": "End the run; its last step is still scored on the test data",
}


# Headings of the methods, in order.
GROUPS = ("Without data", "With a few labels per task", "With unlabelled inputs", "Experts, masks and routers")


def make_form() -> gr.HTML:
    """Pool, tasks, checkpoints, method and settings, and what a visitor brings.

    Events: ``edit`` {recipe, what}, ``pool`` {pool} and ``own`` (see :mod:`fwviz.ui.bringing`).
    """
    return gr.HTML(
        value="",
        html_template='<div class="fw-form loading" role="form" aria-label="Recipe of the merge"></div>',
        js_on_load="const send = {edit: (d) => trigger('edit', d), pool: (d) => trigger('pool', d), "
        "own: (d) => trigger('own', d)}; "
        "window.fwviz.mountForm(element, props, (name, data) => send[name](data), watch)",
        apply_default_css=False,
        head=web.scripts(),
        elem_id="fw-form",
    )


def make_runbar() -> gr.HTML:
    """Run / Step / Pause / Stop and one line of state. Events: ``run`` and ``step`` {recipe}, ``pause``, ``stop``."""
    buttons = "".join(
        f'<button type="button" data-act="{act}" title="{_HINTS[act]}"><svg viewBox="0 0 14 14" fill="currentColor" '
        f'aria-hidden="true"><path d="{path}"/></svg><span>{act.capitalize()}</span></button>'
        for act, path in _ICONS.items()
    )
    return gr.HTML(
        value=runbar_value(None),
        html_template='<div class="fw-runbar"><div class="fw-line" role="status" aria-live="polite">'
        '<span class="fw-state" data-status="idle">Ready</span><span class="fw-message" hidden></span>'
        '<span class="fw-forecast" title="Judged by earlier runs on this machine" hidden></span></div>'
        f'<div class="fw-buttons" role="group" aria-label="Run the merge">{buttons}</div></div>',
        js_on_load="const send = {run: (d) => trigger('run', d), step: (d) => trigger('step', d), "
        "pause: (d) => trigger('pause', d), stop: (d) => trigger('stop', d)}; "
        "window.fwviz.mountRunbar(element, props, (name, data) => send[name](data), watch)",
        apply_default_css=False,
        head=web.scripts(),
        elem_id="fw-runbar",
    )


def choice_line(recipe: Recipe) -> str:
    """How many checkpoints are merged for how many tasks."""
    counts = ((len(recipe.checkpoints), "checkpoint"), (len(recipe.tasks), "task"))
    return " for ".join(f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts)


def runbar_value(job: Job | None, *, ahead: int = 0, error: str = "", note: str = "") -> str:
    """State of the run bar. ``error`` is shown whatever the state; ``ahead`` jobs come before a queued one."""
    if job is None:
        return wire.message(status="idle", message=wire.placeless(error or note), tone="error" if error else "info")
    said = {
        "queued": f"Waiting for a free place: {ahead} before you."
        if ahead
        else "Waiting for a free place: you are next.",
        "starting": "Opening the pool …",
        "running": choice_line(job.recipe),
        "paused": "Held: press Step for one iteration, or Resume.",
        "stopping": "Stopped. Scoring the last step on the test data …",
        "done": job.note or "Scored on the test data.",
        # The note of its last frame tells of the step that was under way.
        "stopped": "Stopped before its end." if job.frames else job.note,
        "failed": job.note,
    }[job.state]
    tone = "error" if error or job.state == "failed" else "info"
    return wire.message(status=job.state, message=wire.placeless(error or said), tone=tone, job=job.id, remember=True)


def form_value(
    card: PoolCard,
    *,
    pools: Sequence[tuple[str, str]],
    recipe: Recipe,
    relevance: Mapping[str, Sequence[str]],
    forecast: str,
    query: str | None = None,
    own: Mapping[str, Any] | None = None,
) -> str:
    """Everything that can be chosen, and the recipe to show. ``pools`` are (id, title).

    ``forecast`` says where the recipe would run, and how long if that is known.
    """
    tasks = [
        {
            "id": t.id,
            "title": t.title,
            "question": t.question,
            "base": t.accuracy.get("base", {}).get("test", t.chance),
            "individual": t.accuracy.get("individual", {}).get("test", t.chance),
        }
        for t in card.tasks
    ]
    checkpoints = [
        {
            "id": c.id,
            "title": c.title,
            "task": c.task,
            "kind": c.kind,
            "note": wire.placeless(c.note),
            "accuracy": c.accuracy.get("test"),
        }
        for c in card.checkpoints
    ]
    pool = {
        "id": card.id,
        "title": card.title,
        "summary": card.summary,
        "inputs": FAMILIES[card.family].inputs,
        "heads": FAMILIES[card.family].heads,
        "tasks": tasks,
        "checkpoints": checkpoints,
        "default_tasks": list(card.default_tasks),
        "default_checkpoints": list(card.default_checkpoints),
    }
    fields: dict[str, Any] = {} if query is None else {"query": query}
    if own is not None:
        fields["own"] = dict(own)
    return wire.message(
        pool=pool,
        pools=[{"id": name, "title": title} for name, title in pools],
        methods=[_method(item) for item in entries("methods").values()],
        groups=list(GROUPS),
        general=_general(),
        recipe=recipe.to_dict(),
        relevance={task: list(ranking) for task, ranking in relevance.items()},
        forecast=forecast,
        **fields,
    )


def own_value(own: Mapping[str, Any]) -> str:
    """Only what is said of something a visitor brings: how far it is, or what is wrong."""
    return wire.message(own=dict(own))


def recipe_value(recipe: Recipe, query: str, forecast: str) -> str:
    """Another recipe of the pool that is shown."""
    return wire.message(recipe=recipe.to_dict(), query=query, forecast=forecast)


def relevance_value(
    relevance: Mapping[str, Sequence[str]],
    forecast: str,
    query: str | None = None,
    missing: str = "",
    *,
    stuck: bool = False,
) -> str:
    """Only the chips, per task the checkpoints, most wanted first, and what is expected of a run.

    ``missing`` says why some tasks have no ranking, if it is not on its way; ``stuck`` that asking again is no use.
    """
    fields: dict[str, Any] = {} if query is None else {"query": query}
    rankings = {task: list(ranking) for task, ranking in relevance.items()}
    return wire.message(relevance=rankings, missing=wire.placeless(missing), stuck=stuck, forecast=forecast, **fields)


def _method(item: Entry) -> dict[str, Any]:
    summary = item.doc.split("\n\n")[0].replace("\n", " ")
    settings = [] if item.settings is None else [_setting(spec) for spec in describe_settings(item.settings)]
    return {
        "name": item.name,
        "title": item.title,
        "summary": summary,
        "group": _group(item),
        "paper": f"{item.facts['paper']}, {item.facts['reference']}",
        "settings": settings,
        "presets": [[title, dict(changes)] for title, changes in item.facts["presets"].items()],
    }


def _group(item: Entry) -> str:
    """Under which heading the picker lists a method: by what it needs, and by what its result is."""
    if item.facts["extends"]:
        return GROUPS[-1]
    return {"none": GROUPS[0], "labels": GROUPS[1], "inputs": GROUPS[2]}[item.facts["data"]]


def _setting(spec: SettingSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "kind": spec.kind.__name__,
        "default": spec.default,
        "help": spec.help,
        "low": spec.low,
        "high": spec.high,
        "choices": list(spec.choices),
        "applies": {name: list(values) for name, values in spec.applies.items()},
    }


def _general() -> list[dict[str, Any]]:
    """Fields of the recipe beside the method's settings, described like settings."""
    seed = SettingSpec("seed", int, 0, "Fixes every random draw: same seed, same run.", low=0, high=2**31 - 1)
    device = SettingSpec("device", str, "cpu", "Where the merge is computed.", choices=devices())
    storage = SettingSpec(
        "storage", str, "resident", "Hold all task vectors in memory, or stream them from disk.", choices=STORAGES
    )
    dtype = SettingSpec("dtype", str, "float32", "Number format of the task vectors in memory.", choices=DTYPES)
    precision = SettingSpec(
        "precision",
        str,
        "float32",
        "What the model computes in; weights, gradients, losses and final scores are float32 in either case. bfloat16 "
        "is for graphics cards: on most processors it is slower.",
        choices=PRECISIONS,
    )
    return [_setting(spec) for spec in (seed, device, precision, storage, dtype)]


def devices() -> tuple[str, ...]:
    """Devices this machine has."""
    import torch

    found = ["cpu"]
    if torch.cuda.is_available():
        found.append("cuda")
    if torch.backends.mps.is_available():
        found.append("mps")
    return tuple(found)
