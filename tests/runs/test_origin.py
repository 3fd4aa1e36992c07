"""What leaves this machine of a merge of one's own pool says what that was, and comes back to it where it is."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from fwviz.cards import PoolCard
from fwviz.pools.open import open_pool, pool_card
from fwviz.runs.export import export_weights
from fwviz.runs.origin import MARK, is_own, own_line, recipe_text
from fwviz.runs.own import Base, own_pool
from fwviz.runs.recipe import Recipe
from tests.command import Run
from tests.own_corpus import shapes_zip


@pytest.fixture
def own(tiny_pool_path: Path, tmp_path: Path) -> PoolCard:
    """A task and a checkpoint of one's own beside a pool."""
    mine = shutil.copytree(tiny_pool_path / "checkpoints" / "shape", tmp_path / "Mine v1")
    file = shapes_zip(tmp_path / "my shapes.zip", 6)
    made = own_pool(str(tiny_pool_path), tmp_path / "own", examples=file, checkpoints=[("Mine v1", mine)])
    return made.card


def average(card: PoolCard, **more: object) -> Recipe:
    facts = {"pool": str(card.root), "method": "weight_average", "checkpoints": ["colour", "mine_v1"]}
    return Recipe.from_dict(facts | {"tasks": ["my_shapes"]} | more, card)


def test_a_recipe_says_what_its_pool_was_made_of_and_is_read_as_before(own: PoolCard, tiny_pool_path: Path) -> None:
    recipe = average(own)
    text = recipe_text(recipe, own)
    assert Recipe.from_text(text) == recipe
    said = text.partition("pool: ")[0]
    assert said.startswith(MARK)
    assert all(line.startswith("#") for line in said.splitlines())
    assert own.base["sha256"] in said
    for name in ("colour", "mine_v1"):
        assert re.search(rf"checkpoint {name}: .*{own.checkpoint(name).sha256}", said)
    assert own.checkpoint("shape").sha256 == own.checkpoint("mine_v1").sha256
    assert "checkpoint shape:" not in said  # it is not merged
    assert "30 examples of my shapes.zip, brought by a person" in said
    assert "fwviz own EXAMPLES --pool POOL --bring CHECKPOINTS --method weight_average" in said
    assert str(own.root.parent) not in said
    # A pool that others have needs no such words.
    known = open_pool(tiny_pool_path).card
    assert is_own(own)
    assert not is_own(known)
    plain = Recipe.from_dict({"pool": "tiny", "method": "weight_average"}, known)
    assert recipe_text(plain, known) == plain.to_yaml()


def test_the_command_asks_for_what_was_brought(own: PoolCard, tiny_pool_path: Path, tmp_path: Path) -> None:
    file = shapes_zip(tmp_path / "my shapes.zip", 6)
    start = "fwviz own EXAMPLES"
    alone = own_pool(str(tiny_pool_path), tmp_path / "alone", examples=file).card
    recipe = average(alone, checkpoints=["colour", "shape"], method="ties", settings={"density": 0.5})
    assert own_line(recipe, alone) == f"{start} --pool POOL --method ties --set density=0.5"
    brought = [(name, tiny_pool_path / "checkpoints" / name) for name in ("colour", "shape")]
    based = own_pool(Base(str(tiny_pool_path / "base")), tmp_path / "based", examples=file, checkpoints=brought).card
    recipe = average(based, checkpoints=["colour", "shape"])
    assert own_line(recipe, based) == f"{start} --base BASE --bring CHECKPOINTS --method weight_average"
    joined = own_pool(str(tiny_pool_path), tmp_path / "joined", checkpoints=brought[1:]).card
    recipe = average(joined, checkpoints=["colour", "shape_2"], tasks=["colour"])
    assert own_line(recipe, joined) == (
        "fwviz pools open CHECKPOINTS --pool POOL --out NEW && "
        "fwviz merge --pool ./NEW --method weight_average --tasks colour"
    )


def test_an_export_says_it_too(own: PoolCard, tmp_path: Path) -> None:
    folder = export_weights(average(own), -1, tmp_path / "out")
    assert Recipe.from_text((folder / "recipe.yaml").read_text()) == average(own)
    readme = (folder / "README.md").read_text()
    for line in recipe_text(average(own), own).splitlines():
        if line.startswith("# - "):
            assert line.removeprefix("# ") in readme.splitlines()
    assert "a pool of one's own, which others do not have" in readme
    assert "fwviz own EXAMPLES" in readme
    assert str(tmp_path) not in readme


def test_a_recipe_comes_back_where_its_pool_is_and_else_says_what_to_do(
    own: PoolCard, run: Run, tmp_path: Path
) -> None:
    file, runs = tmp_path / "mine.yaml", ("--runs", tmp_path / "runs")
    file.write_text(recipe_text(average(own), own))
    code, out, err = run("merge", "--recipe", file, *runs)
    assert code == 0, err
    kept = re.search(r"^my_shapes.*$", out, re.M)
    shutil.move(own.root, tmp_path / "elsewhere")
    code, out, err = run("merge", "--recipe", file, *runs)
    assert (code, out) == (1, "")
    assert err == (
        "fwviz: mine.yaml merges a pool of somebody's own that is not here: bring the files its first lines name, as "
        "they say, and give the pool that makes of them with --pool.\n"
    )
    values = yaml.safe_load(file.read_text()) | {"pool": "own-0123456789abcdef"}  # as a page calls it
    file.write_text(f"{MARK}\n{yaml.safe_dump(values)}")
    assert "bring the files its first lines name" in run("merge", "--recipe", file, *runs)[2]
    code, out, err = run("merge", "--recipe", file, "--pool", tmp_path / "elsewhere", *runs)
    assert code == 0, err
    assert kept is not None
    assert kept[0] in out


def test_a_merge_of_nothing_is_called_the_base(own: PoolCard, tmp_path: Path) -> None:
    def by_hand(*values: float) -> Recipe:
        given = {"granularity": "model", "values": [values]}
        return average(own, method="given_coefficients", coefficients=given)

    assert by_hand(0.0, 0.0).title == "The base"
    assert by_hand(0.0, 0.1).title == "Coefficients by hand"
    assert average(own).title == "Weight averaging"
    readme = (export_weights(by_hand(0.0, 0.0), -1, tmp_path / "out") / "README.md").read_text()
    assert "# The base of 2 checkpoints of" in readme
    assert pool_card(own.root).title in readme
