"""A visitor without a browser: opens a page at a desk, gives files, and waits for what comes of them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from fwviz.ui.desk import Desk
from fwviz.ui.pictures import Shown
from fwviz.ui.state import Session, parse_opening

FAST = {"max_steps": 2, "inner_updates": 3, "batch_size": 4}


def visitor(desk: Desk, name: str, key: str = "") -> Session:
    session = desk.sessions.get(name)
    desk.open(session, parse_opening(json.dumps({"query": {}, "width": 1440, "runs": [], "own": key})))
    return session


def give(desk: Desk, session: Session, file: Path, kind: str = "task") -> str:
    receiving = desk.shelf.receive(session.own, kind, file.name, file.stat().st_size)
    receiving.write(file.read_bytes())
    return receiving.finish().id


def give_all(desk: Desk, session: Session, folder: Path, kind: str) -> list[str]:
    return [give(desk, session, file, kind) for file in sorted(folder.iterdir())]


def bring(desk: Desk, session: Session, **event: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The last form message and all that was told before."""
    told = [json.loads(messages["form"]) for messages in desk.bring(session, session.id, event)]
    return told[-1], told


def own_base(desk: Desk, session: Session, pool_id: str, base: Path) -> dict[str, Any]:
    made, _ = bring(desk, session, what="base", files=give_all(desk, session, base, "base"), pool=pool_id)
    assert "problem" not in made["own"], made
    return made


def finish(desk: Desk, session: Session) -> None:
    deadline = time.monotonic() + 60
    while (job := desk.looking.job(session)) is not None and not job.ended:
        assert time.monotonic() < deadline
        desk.board.wait(job, job.version, 1.0)


def merge(desk: Desk, session: Session, made: dict[str, Any]) -> Shown:
    """Run the recipe that came with a pool, a short way; what the page then looks at."""
    desk.start(session, session.id, {"recipe": json.dumps(made["recipe"] | {"settings": FAST})}, paused=False)
    finish(desk, session)
    shown = desk.looking.shown(session)
    assert shown is not None
    assert shown.trace.status in ("converged", "max_steps"), shown.trace.note
    return shown


def wait_for(said: str, met: Any) -> None:
    deadline = time.monotonic() + 20
    while not met():
        assert time.monotonic() < deadline, said
        time.sleep(0.02)
