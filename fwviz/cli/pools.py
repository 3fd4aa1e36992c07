"""The command ``pools``: what there is, what the Hub has, whether a checkpoint fits its base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fwviz.cli.output import parser_of, percent, print_table, size
from fwviz.cli.own import open_checkpoints
from fwviz.types import FwvizError


def pools(argv: Sequence[str]) -> int:
    """list the pools, or one; check | fetch CARD ask the Hub, examine | open DIR are for checkpoints of your own"""
    if argv and argv[0] in ("check", "fetch"):
        return _hub(argv[0], argv[1:])
    if argv and argv[0] == "examine":
        return _examine(argv[1:])
    if argv and argv[0] == "open":
        return open_checkpoints(argv[1:])
    parser = parser_of("pools", pools)
    parser.add_argument("pool", nargs="?", help="id or folder of a pool")
    parser.add_argument("--verify", action="store_true", help="check every file against its hash")
    options = parser.parse_args(argv)
    from fwviz.pools.card import verify
    from fwviz.pools.hub import hub_card_ids, load_hub_card
    from fwviz.pools.open import missing_base, pool_card, pool_ids

    if options.pool is None:
        if options.verify:
            raise FwvizError(f"name the pool to --verify: {', '.join(pool_ids())}.")
        cards = [pool_card(name) for name in pool_ids()]
        rows = [
            (c.id, len(c.checkpoints), len(c.tasks), "missing" if missing_base(c) else "here", c.title) for c in cards
        ]
        print_table(("pool", "checkpoints", "tasks", "base", "title"), rows)
        for sentence in filter(None, map(missing_base, cards)):
            print(f"\n{sentence}")
        listed = [load_hub_card(name) for name in hub_card_ids()]
        print("\non the Hub (fwviz pools check CARD)")
        print_table(
            ("card", "checkpoints", "tasks", "title"),
            [(c.id, len(c.checkpoints), len(c.tasks), c.title) for c in listed],
        )
        return 0
    card = pool_card(options.pool)
    if options.verify:
        problems = verify(card)
        for problem in problems:
            print(problem)
        print(f"{len(problems) or 'no'} problems in the files of {card.root}")
        return 1 if problems else 0
    print("\n".join([f"{card.title} ({card.id})", card.summary, *filter(None, [missing_base(card)]), ""]))
    print_table(
        ("checkpoint", "task", "kind", "test", "note"),
        [(c.id, c.task, c.kind, percent(c.accuracy.get("test")), c.note) for c in card.checkpoints],
    )
    print()
    tasks = [
        (
            t.id,
            len(t.classes),
            percent(t.accuracy.get("base", {}).get("test")),
            percent(t.accuracy.get("individual", {}).get("test")),
            t.question,
        )
        for t in card.tasks
    ]
    print_table(("task", "classes", "base", "individual", "question"), tasks)
    return 0


def _hub(command: str, argv: Sequence[str]) -> int:
    """what a card's repositories would take, or the download of them"""
    parser = parser_of(f"pools {command}", _hub)
    parser.add_argument("card", help="id or file of a card, or a pool whose base is on the Hub")
    parser.add_argument("--subset", help="only these tasks of the card, such as 8, 14 or 20")
    parser.add_argument("--no-data", action="store_true", help="leave the data sets out")
    parser.add_argument("--offline", action="store_true", help="look at the Hub's cache only")
    options = parser.parse_args(argv)
    from fwviz.pools.hub import check_card, fetch, hub_view

    card = hub_view(options.card).subset(options.subset)
    reports = check_card(card, data=not options.no_data, offline=options.offline)
    print(f"{card.title} ({card.id})\n{card.summary}\n")
    rows = [(r.hub, r.state, size(r.bytes), size(r.missing_bytes), r.licence, r.note) for r in reports]
    print_table(("repository", "state", "size", "to load", "licence", "note"), rows)
    refused = [r for r in reports if r.state == "refused"]
    total = sum(r.missing_bytes or 0 for r in reports)
    print(f"\n{sum(r.state == 'here' for r in reports)} of {len(reports)} repositories are here; {size(total)} to load")
    if refused:
        raise FwvizError(f"{len(refused)} repositories cannot be had; the first is {refused[0].hub}: {refused[0].note}")
    if command == "check" or options.offline:
        return 0
    for report in reports:
        if report.state == "missing":
            print(f"{report.hub}: {fetch(report.hub, report.kind)}", flush=True)
    return 0


def _examine(argv: Sequence[str]) -> int:
    """hold checkpoints against their base: names, shapes, dtypes, vocabulary, NaN; nothing is written"""
    parser = parser_of("pools examine", _examine)
    parser.add_argument("checkpoint", type=Path, nargs="+", help="folder or safetensors file")
    parser.add_argument("--base", required=True, help="folder of the base, or id of a pool")
    parser.add_argument("--headers-only", action="store_true", help="do not read the weights")
    options = parser.parse_args(argv)
    from fwviz.backbones.folders import base_folder
    from fwviz.pools.check import examine
    from fwviz.pools.open import pool_card, pool_ids

    card = pool_card(options.base) if options.base in pool_ids() else None
    base = base_folder(card) if card else Path(options.base)
    parts = (card.include, card.exclude) if card else (("",), ())
    failed = []
    for checkpoint in options.checkpoint:
        findings = examine(checkpoint, base, *parts, values=not options.headers_only)
        failed += [checkpoint for finding in findings[:1] if finding.severity == "error"]
        print(f"{checkpoint}: {'nothing to object to' if not findings else ''}")
        for finding in findings:
            print(f"  {finding.severity:<8}{finding.kind:<13}{finding.text}")
    if failed:
        raise FwvizError(
            f"{len(failed)} of {len(options.checkpoint)} checkpoints cannot be merged; the first is {failed[0]}."
        )
    return 0
