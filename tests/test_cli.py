"""The command line: every command on the tiny pool, and one sentence for every mistake."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fwviz.cli import COMMANDS, main, recipe_from_arguments
from fwviz.registry import describe_settings, entries
from fwviz.runs.recipe import Recipe
from fwviz.runs.store import RunStore
from tests.command import Run


def test_merge_prints_a_line_per_frame_and_stores_the_run(run: Run, tiny_pool_path: Path, tmp_path: Path) -> None:
    code, out, _ = run(
        "merge", "--pool", tiny_pool_path, "--method", "fw_soft", "--tasks", "colour", "shape",
        "--checkpoints", "all", "--max-steps", 2, "--runs", tmp_path / "runs", "--out", tmp_path / "merged",
    )  # fmt: skip
    assert code == 0
    (run_id,) = RunStore(tmp_path / "runs").ids()
    trace = RunStore(tmp_path / "runs").load(run_id)
    lines = out.splitlines()
    assert lines[0] == trace.recipe.cli_line()
    assert len(trace.checkpoints) == 5
    assert trace.recipe.settings["max_steps"] == 2
    for frame in trace.iterates():
        assert any(line.split()[:1] == [str(frame.t)] for line in lines)
    mean = 100 * sum(score.accuracy for score in trace.final["test"].values()) / 2
    assert any(line.startswith("mean") and line.endswith(f"{mean:.1f}") for line in lines)
    table = trace.results("test")
    share = 100 * (table["merged"] / table["individual"]).mean()
    assert f"normalised: {share:.1f} % of the tasks' own checkpoints in the mean" in lines
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert run_id in out


def test_flags_and_set_and_files_say_the_same(run: Run, tiny_pool_path: Path, tmp_path: Path) -> None:
    head = ["--pool", str(tiny_pool_path), "--method", "task_arithmetic"]
    by_flag = recipe_from_arguments([*head, "--scale", "0.6"])
    assert recipe_from_arguments([*head, "--set", "scale=0.6"]) == by_flag
    assert by_flag.changed_settings() == {"scale": 0.6}
    (tmp_path / "recipe.yaml").write_text(by_flag.to_yaml())
    file = ["--recipe", str(tmp_path / "recipe.yaml")]
    assert recipe_from_arguments(file) == by_flag
    changed = recipe_from_arguments([*file, "--set", "scale=0.7", "--seed", "4"])
    assert (changed.changed_settings(), changed.seed) == ({"scale": 0.7}, 4)
    assert recipe_from_arguments([*file, "--method", "weight_average"]).settings == {}


def test_every_setting_of_every_method_has_a_flag_and_its_help(run: Run) -> None:
    for method in entries("methods").values():
        with pytest.raises(SystemExit) as caught:
            main(["merge", "--method", method.name, "--help"])
        assert caught.value.code == 0
    code, out, _ = run("methods")
    assert code == 0
    for method in entries("methods").values():
        assert method.name in out
        code, text, _ = run("methods", method.name)
        assert method.title in text
        for spec in describe_settings(method.settings) if method.settings else ():
            assert spec.name in text
            assert spec.help in text


def test_pools_lists_and_verifies(run: Run, tiny_pool_path: Path, tmp_path: Path) -> None:
    code, out, _ = run("pools", tiny_pool_path)
    assert code == 0
    for name in ("colour", "shape_foreign", "Which colour does the patch have?"):
        assert name in out
    assert run("pools", tiny_pool_path, "--verify")[0] == 0


def test_pools_says_how_to_get_a_missing_base(
    run: Run, text_pool_copy: Any, tiny_pool_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text_pool_copy.edit(lambda card: card["base"].update(hub="someone/not-here"))
    monkeypatch.setenv("FWVIZ_POOLS", os.pathsep.join([str(text_pool_copy.root), str(tiny_pool_path)]))
    code, out, _ = run("pools")
    rows = {line.split()[0]: line.split()[3] for line in out.splitlines() if line.startswith("tiny")}
    assert code == 0
    assert rows == {"tiny": "here", "tiny_text": "missing"}
    assert "run `fwviz pools fetch tiny_text`" in out
    code, out, _ = run("pools", "tiny_text")
    assert code == 0
    assert "run `fwviz pools fetch tiny_text`" in out
    code, _, err = run("merge", "--pool", "tiny_text", "--method", "weight_average")
    assert code == 1
    assert "run `fwviz pools fetch tiny_text`" in err


def test_score_prints_the_most_negative_with_a_star(run: Run, tiny_pool_path: Path) -> None:
    code, out, _ = run("score", "--pool", tiny_pool_path, "--tasks", "colour", "stripes", "--checkpoints", "all")
    assert code == 0
    rows = [line.split() for line in out.splitlines()[2:]]
    assert len(rows) == 5
    for column in (1, 2):
        values = [float(row[column].lstrip("*")) for row in rows]
        starred = [row[0] for row in rows if row[column].startswith("*")]
        assert starred == [rows[values.index(min(values))][0]]


def test_export_writes_a_recorded_frame(run: Run, tiny_pool_path: Path, tmp_path: Path) -> None:
    run("merge", "--pool", tiny_pool_path, "--method", "weight_average", "--runs", tmp_path / "runs")
    (run_id,) = RunStore(tmp_path / "runs").ids()
    code, _, _ = run("export", run_id, "--frame", 0, "--runs", tmp_path / "runs", "--out", tmp_path / "a")
    assert code == 0
    assert (tmp_path / "a" / "config.json").is_file()
    code, _, err = run("export", run_id, "--runs", tmp_path / "runs", "--out", tmp_path / "a")
    assert code == 1
    assert "not empty" in err


def test_lenses_write_tables_and_pages(run: Run, tiny_pool_path: Path, tmp_path: Path) -> None:
    words = ["--pool", tiny_pool_path, "--tasks", "colour", "shape"]
    code, out, _ = run("lens", "lmo", *words)
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == 10
    assert run("lens", "lmo", *words, "--out", tmp_path / "table.csv")[0] == 0
    assert (tmp_path / "table.csv").read_text() == out
    assert run("lens", "lmo", *words, "--out", tmp_path / "page.html")[0] == 0
    assert "plotly" in (tmp_path / "page.html").read_text().lower()
    assert run("lens", "lmo", *words, "--out", tmp_path / "table.txt")[0] == 1
    # A lens that grows prints its last table.
    options = ["--resolution", 2, "--samples", 4, "--task", "shape", "--models", "base,shape,colour"]
    code, grown, _ = run("lens", "landscape", *words, *options)
    assert code == 0
    assert len(list(csv.DictReader(io.StringIO(grown)))) == 4 + 3

    run("merge", *words, "--method", "task_arithmetic", "--scale", 0.2, "--runs", tmp_path / "runs")
    (run_id,) = RunStore(tmp_path / "runs").ids()
    code, moved, _ = run("lens", "lmo", "--at", run_id, "--runs", tmp_path / "runs")
    assert code == 0
    assert moved != out
    code, table, _ = run("lens", "coefficients", run_id, "--runs", tmp_path / "runs")
    assert code == 0
    assert {float(row["coefficient"]) for row in csv.DictReader(io.StringIO(table))} == {0.2}
    code, _, err = run("lens", "coefficients", run_id, "--runs", tmp_path / "runs", "--index", "x")
    assert code == 1
    assert "--index" in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["merge", "--method", "none"], "there is no method 'none'"),
        (["merge"], "name a --method"),
        (["merge", "--method", "fw_soft", "--set", "epsilon=nan"], "'epsilon' is 'nan'"),
        (["merge", "--method", "fw_soft", "--set", "epsilon"], "has no value"),
        (["merge", "--method", "fw_soft", "--tasks", "nothing"], "no task 'nothing'"),
        (["merge", "--method", "fw_soft", "--checkpoints", "colour", "colour"], "'colour' twice"),
        (["merge", "--method", "fw_soft", "--pool", "/nowhere"], "/nowhere"),
        (["merge", "--method", "fw_soft", "--seed", "x"], "'seed'"),
        (["merge", "--recipe", "/nowhere.yaml"], "cannot be read"),
        (["methods", "none"], "there is no method 'none'"),
        (["lens", "none"], "there is no lens 'none'"),
        (["export", "--out", "x"], "either a recorded run or a --recipe"),
        (["export", "../../etc", "--out", "x"], "not the id of a run"),
        (["merge", "--recipe", "LIST", "--set", "scale=1"], "'settings' is a list"),
        (["merge", "--recipe", "/dev/zero"], "too large for a recipe"),
        (["merge", "--method", "weight_average", "--device", "cuda:77"], "no device 'cuda:77'"),
        (["merge", "--method", "weight_average", "--out", "/dev/null/x"], "/dev/null/x cannot be made"),
        (["merge", "--method", "weight_average", "--out", "/proc/x/y"], "/proc/x/y cannot be made"),
        (["lens", "accuracy", "x", "--out", "/nowhere/x.csv"], "there is no folder /nowhere"),
        (["pools", "--verify"], "name the pool"),
        (["own", "x.csv", "--base", "/", "--bring", "/", "--seed", "abc"], "--seed is 'abc'"),
        (["own", "/dev/zero", "--pool", "TEXTS"], "/dev/zero is no file"),
    ],
)
def test_a_mistake_is_one_sentence_and_no_traceback(
    run: Run,
    tiny_pool_path: Path,
    tiny_text_pool_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    sentence: str,
) -> None:
    monkeypatch.setenv("FWVIZ_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("FWVIZ_OWN", str(tmp_path / "own"))
    (tmp_path / "list.json").write_text('{"method": "task_arithmetic", "settings": [1]}')
    given = {"LIST": tmp_path / "list.json", "TEXTS": tiny_text_pool_path}
    words = [str(given.get(word, word)) for word in words]
    if words[0] == "merge" and "--pool" not in words:
        words = [*words, "--pool", str(tiny_pool_path)]
    code, _, err = run(*words)
    assert code == 1
    assert sentence in err
    assert err.startswith("fwviz: ")
    assert err.count("\n") == 1
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [tmp_path / "list.json"], "nothing is written"


@pytest.mark.parametrize("words", [["merge", "--tasks"], ["merge", "--adapter-rank", "x"], ["score", "--nothing"]])
def test_words_that_are_no_options_are_one_sentence(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("fwviz: ")
    assert err.count("\n") == 1


def test_what_no_command_foresaw_of_the_disk_is_one_sentence(
    run: Run, tiny_pool_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(COMMANDS, "methods", full)
    assert run("methods") == (1, "", "fwviz: a file cannot be read or written: No space left on device.\n")


def test_unknown_commands_and_the_overview(run: Run) -> None:
    code, _, err = run("dance")
    assert code == 2
    assert "no command 'dance'" in err
    code, out, _ = run("--help")
    assert code == 0
    assert all(name in out for name in COMMANDS)
    assert run("bench")[0] == 2


def test_a_run_that_fails_has_an_exit_code(run: Run, tiny_pool_path: Path, tmp_path: Path) -> None:
    code, out, err = run(
        "merge", "--pool", tiny_pool_path, "--method", "weight_average", "--device", "cuda:77", "--runs", tmp_path
    )
    assert code == 1
    assert "cuda:77" in err
    assert "Traceback" not in out + err


def test_the_overview_needs_nothing_heavy() -> None:
    """Neither the models nor the app are imported to print a help text."""
    code = "import sys, fwviz.cli; fwviz.cli.main(['--help']); print([m in sys.modules for m in ('pandas', 'gradio')])"
    source = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": source}
    )
    assert done.stdout.splitlines()[-1] == "[False, False]"


def test_the_recipe_of_a_merge_line_is_the_recipe(tiny_pool_path: Path) -> None:
    card_less = recipe_from_arguments(["--pool", str(tiny_pool_path), "--method", "weight_average"])
    assert card_less == Recipe.from_dict(card_less.to_dict())
