"""A pool card from a stranger: whatever is wrong gives one sentence that names the file and the key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fwviz.pools.card import is_id, load_card, verify
from fwviz.types import FwvizError


def test_the_card_says_what_the_file_says(tiny_pool_path: Path) -> None:
    card = load_card(tiny_pool_path)
    assert card.id == "tiny"
    assert [t.id for t in card.tasks] == ["colour", "stripes", "shape", "corner"]
    assert card.include == ("vision_model.", "visual_projection.")
    assert card.checkpoint("shape_foreign").kind == "foreign_base"
    task = card.task("colour")
    assert task.classes == ("red", "green", "blue", "yellow")
    assert task.splits["test"].rows == 96
    assert task.accuracy["individual"] == card.checkpoint("colour").accuracy
    assert verify(card) == []


def test_own_checkpoints_beat_the_base(tiny_pool_path: Path) -> None:
    """The fixture is worth its name only while fine-tuning helped."""
    for task in load_card(tiny_pool_path).tasks:
        assert task.accuracy["individual"]["test"] > task.accuracy["base"]["test"] + 0.1


def put(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(card: dict[str, Any]) -> None:
        node: Any = card
        for step in path[:-1]:
            node = node[step]
        node[path[-1]] = value

    return change


def drop(*path: str | int) -> Callable[[dict[str, Any]], None]:
    def change(card: dict[str, Any]) -> None:
        node: Any = card
        for step in path[:-1]:
            node = node[step]
        del node[path[-1]]

    return change


FIRST: tuple[str | int, ...] = ("tasks", 0)
WRONG: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "future format": (put("format", value=2), "format 2, but this version reads format 1"),
    "format is true": (put("format", value=True), "format is True"),
    "no tasks": (drop("tasks"), "tasks is missing"),
    "empty tasks": (put("tasks", value=[]), "tasks is a list of 0 entries"),
    "tasks is text": (put("tasks", value="colour"), "tasks is 'colour'"),
    "task is text": (put(*FIRST, value="colour"), r"tasks\[0\] is 'colour'"),
    "id is a path": (put(*FIRST, "id", value="../colour"), r"tasks\[0\].id is '../colour'"),
    "id is markup": (put("id", value="<b>x</b>"), "id is '<b>x</b>'"),
    "id twice": (put("tasks", 1, "id", value="colour"), "tasks lists 'colour' twice"),
    "checkpoint id twice": (put("checkpoints", 1, "id", value="colour"), "checkpoints lists 'colour' twice"),
    "class twice": (put(*FIRST, "classes", value=["red", "red"]), "classes lists 'red' twice"),
    "one class": (put(*FIRST, "classes", value=["red"]), "classes is a list of 1 entries"),
    "class is a number": (put(*FIRST, "classes", 1, value=7), r"classes\[1\] is 7, but must be text: put it in quotes"),
    "class is a switch": (put(*FIRST, "classes", 1, value=False), r"classes\[1\] is False"),
    "class is endless": (put(*FIRST, "classes", 1, value="x" * 999), "300 characters"),
    "control characters": (put("title", value="a\x07b"), "free of control characters"),
    "prompt without place": (put(*FIRST, "prompts", value=["a photo"]), r"text with \{\} where the class name goes"),
    "title is blank": (put("title", value="  "), "title is '  '"),
    "unknown family": (put("family", value="pickle"), "family is 'pickle'"),
    "unknown kind": (put("checkpoints", 0, "kind", value="evil"), "kind is 'evil'"),
    "task of nobody": (put("checkpoints", 0, "task", value="other"), "unlisted task 'other'"),
    "default of nobody": (put("default", "checkpoints", value=["other"]), "names 'other'"),
    "short hash": (put("base", "sha256", value="abc"), "base.sha256 is 'abc'"),
    "upper-case hash": (put("base", "sha256", value="A" * 64), "64 lower-case hex digits"),
    "accuracy beyond 1": (put(*FIRST, "accuracy", "base", "test", value=72.5), "accuracy.base.test is 72.5"),
    "accuracy NaN": (put(*FIRST, "accuracy", "base", "test", value=float("nan")), "a number from 0 to 1"),
    "accuracy missing": (drop(*FIRST, "accuracy", "individual"), "accuracy.individual is missing"),
    "no calibration": (drop(*FIRST, "splits", "calibration"), "splits.calibration is missing"),
    "no rows": (put(*FIRST, "splits", "test", "rows", value=0), "splits.test.rows is 0"),
    "endless rows": (put(*FIRST, "splits", "test", "rows", value=10**9), "splits.test.rows is 1000000000"),
    "huge number": (put("base", "image_size", value=10**40), "base.image_size is 1000"),
    "parent path": (put("base", "path", value="../base"), r"base.path is '../base'"),
    "hidden parent": (put(*FIRST, "splits", "test", "path", value="tasks/../../x"), "inside the pool's folder"),
    "absolute path": (put("base", "path", value="/etc"), "base.path is '/etc'"),
    "drive": (put("base", "path", value="C:/pool"), "base.path is 'C:/pool'"),
    "backslash": (put("base", "path", value="..\\base"), "inside the pool's folder"),
    "double slash": (put("base", "path", value="a//b"), "inside the pool's folder"),
    "zero byte": (put("base", "path", value="ba\x00se"), "control characters"),
    "path is a number": (put("base", "path", value=3), "base.path is 3"),
    "training holds NaN": (put("training", "lr", value=float("inf")), "training.lr is inf|lr is inf"),
    "number as key": (put("training", value={1: 2}), "text keys"),
    "include is empty": (put("merge", "include", value=[]), "merge.include"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_value_is_named(name: str, pool_copy: Any) -> None:
    change, message = WRONG[name]
    pool_copy.edit(change)
    with pytest.raises(FwvizError, match=message) as raised:
        load_card(pool_copy.root)
    sentence = str(raised.value)
    assert "pool.yaml" in sentence
    assert "\n" not in sentence
    assert len(sentence) < 400


TEXTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no mapping"),
    "a list": (b"- 1\n", "no mapping"),
    "broken": (b"id: [1, 2\nx: }", "no valid YAML at line 2"),
    "not UTF-8": (b"id: \xff\xfe", "not UTF-8"),
    "tabs and zeros": (b"\x00\x00id: 3", "no valid YAML"),
    "python object": (b"id: !!python/object/apply:os.system [touch owned]", "no valid YAML at line 1"),
    "key twice": (b"id: a\nid: b\n", "no valid YAML at line 2"),
    "billion laughs": (
        b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n",
        "line 2 uses a YAML alias",
    ),
    "merge key": (b"a: &a {x: 1}\nb:\n  <<: *a\n", "line 3 uses a YAML alias"),
    "alias of itself": (b"a: &a [*a]\n", "YAML alias"),
    "deep": (b"a: " + b"[" * 2000 + b"]" * 2000, "nested deeper|no valid YAML"),
    "two documents": (b"a: 1\n---\nb: 2\n", "no valid YAML"),
    "long number": (b"format: " + b"9" * 6000, "no valid YAML|format is"),
    "no boolean": (b"format: !!bool x", "no valid YAML"),
    "no moment": (b"format: !!timestamp x", "no valid YAML"),
    "no number": (b'format: !!int ""', "no valid YAML"),
    "bad date": (b"format: 2026-99-99", "no valid YAML|format is"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_hostile_yaml_gives_one_sentence(name: str, tmp_path: Path) -> None:
    content, message = TEXTS[name]
    (tmp_path / "pool.yaml").write_bytes(content)
    with pytest.raises(FwvizError, match=message):
        load_card(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["pool.yaml"]


def test_a_card_larger_than_any_is_not_parsed(tmp_path: Path) -> None:
    (tmp_path / "pool.yaml").write_bytes(b"#" * (5 << 20))
    with pytest.raises(FwvizError, match="5 MiB"):
        load_card(tmp_path)


def test_no_pool_here(tmp_path: Path) -> None:
    with pytest.raises(FwvizError, match=r"pool\.yaml is missing"):
        load_card(tmp_path)


def test_links_out_of_the_pool_are_refused(pool_copy: Any, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (pool_copy.root / "link").symlink_to(outside)
    pool_copy.edit(put("base", "path", value="link"))
    with pytest.raises(FwvizError, match=r"base\.path leads out of the pool's folder"):
        load_card(pool_copy.root)


def test_free_parts_become_plain_data(pool_copy: Any) -> None:
    import datetime
    import json

    pool_copy.edit(put("training", value={"day": datetime.date(2026, 11, 22), "steps": [1, None, {"lr": 0.1}]}))
    training = load_card(pool_copy.root).training
    assert json.loads(json.dumps(training)) == {"day": "2026-11-22", "steps": [1, None, {"lr": 0.1}]}


def test_verify_finds_each_changed_or_missing_file(pool_copy: Any) -> None:
    (pool_copy.root / "tasks" / "shape" / "test.parquet").unlink()
    weights = pool_copy.root / "checkpoints" / "corner" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    problems = verify(load_card(pool_copy.root))
    assert len(problems) == 2
    assert "corner" in problems[0]
    assert "SHA-256" in problems[0]
    assert "test.parquet cannot be read" in problems[1]


@pytest.mark.parametrize("text", ["vision", "clip-vit_b.32", "A+b", "7"])
def test_ids(text: str) -> None:
    assert is_id(text)


@pytest.mark.parametrize("text", ["", ".", "..", "a..b", "-a", "a/b", "a b", "é", "x" * 65, "a\n"])
def test_no_ids(text: str) -> None:
    assert not is_id(text)
