"""What a pool of one's own was made of, for recipes and model cards that are read where it is not.

Such a pool is known by a name or a folder that nobody else has: what is handed on says the files instead.
"""

from __future__ import annotations

from collections.abc import Iterator

from fwviz.cards import PoolCard
from fwviz.runs.recipe import Recipe

MARK = "# A pool of one's own"


def is_own(card: PoolCard) -> bool:
    """Whether a person brought a task or a checkpoint of the pool."""
    return any("own" in task.tags for task in card.tasks) or any(c.kind == "brought" for c in card.checkpoints)


def origin(recipe: Recipe, card: PoolCard) -> Iterator[str]:
    """The base, checkpoints and tasks of a recipe, by name and SHA-256: a line each."""
    base = card.base
    name = base.get("hub") or (base.get("package") or {}).get("name") or "the base that was brought"
    yield f"base: {name}, {base['parameters']:,} parameters, sha256 {base['sha256']}"
    for checkpoint in map(card.checkpoint, recipe.checkpoints):
        whose = ", brought" if checkpoint.kind == "brought" else ""
        yield f"checkpoint {checkpoint.id}: {checkpoint.title}{whose}, sha256 {checkpoint.sha256}"
    for task in map(card.task, recipe.tasks):
        rows = sum(file.rows for file in task.splits.values())
        yield f"task {task.id}: {task.title}, {rows} examples of {task.source}"


def own_line(recipe: Recipe, card: PoolCard | None) -> str:
    """The command that brings the files again and merges them; words in capitals stand for them."""
    settings = recipe.cli_line().partition(" --checkpoints ")[2].partition(" --")[2]
    settings = f" --{settings}" if settings else ""
    if card is not None and not any("own" in task.tags for task in card.tasks):
        again = f"fwviz merge --pool ./NEW --method {recipe.method} --tasks {' '.join(recipe.tasks)}{settings}"
        return f"fwviz pools open CHECKPOINTS --pool POOL --out NEW && {again}"
    ground = "--base BASE" if card is not None and card.base.get("path") == "base" else "--pool POOL"
    if card is None or any(c.kind == "brought" for c in card.checkpoints):
        ground += " --bring CHECKPOINTS"
    return f"fwviz own EXAMPLES {ground} --method {recipe.method}{settings}"


def recipe_text(recipe: Recipe, card: PoolCard | None) -> str:
    """The recipe as YAML, and above it what a pool of one's own was made of."""
    text = recipe.to_yaml()
    if card is None or not is_own(card):
        return text
    lines = [
        f"{MARK}, which others do not have. It is found again where it is still open;",
        "# elsewhere bring the same files, and name the pool that makes of them:",
        f"#   {own_line(recipe, card)}",
        "# It was made of:",
        *(f"# - {line}" for line in origin(recipe, card)),
    ]
    return "\n".join(lines) + "\n" + text
