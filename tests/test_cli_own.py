"""One line from a person's own files to a merged model, on data no pool has; one sentence for what is wrong."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from fwviz.pools.open import open_pool
from fwviz.runs.merged import load_merged
from fwviz.runs.store import RunStore
from fwviz.tasks.data import load_split
from fwviz.types import SPLITS
from tests import tiny_classifier_pool, tiny_words_pool
from tests.command import Run
from tests.own_corpus import BAD_TABLES, BAD_ZIPS, moods, segments_zip, shapes_zip, texts_csv


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FWVIZ_OWN", str(tmp_path / "own"))
    monkeypatch.setenv("FWVIZ_RUNS", str(tmp_path / "runs"))


def tree(folder: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in sorted(folder.rglob("*"))}


def test_pictures_of_ones_own_are_ranked_merged_judged_and_written(
    run: Run, tiny_pool_path: Path, tmp_path: Path
) -> None:
    file = shapes_zip(tmp_path / "my shapes.zip", 15, ("cross", "square", "circle"))
    code, out, err = run(
        "own", file, "--pool", tiny_pool_path, "--classes", "circle=ring", "--prompts", "a small {} pattern",
        "--max-steps", 3, "--out", tmp_path / "merged",
    )  # fmt: skip
    assert code == 0, err
    assert "45 pictures of 3 classes (circle, cross, square): 18 to learn from, 9 to choose by, 18 to report." in out
    root = Path(re.search(r"^pool: (.*)$", out, re.M)[1])  # type: ignore[index]
    pool = open_pool(root)
    task = pool.card.task("my_shapes")
    assert task.classes == ("ring", "cross", "square")
    assert len(pool.card.tasks) == 5
    # The ranking names every checkpoint once, by falling score, and what it gets right alone.
    ranking = [line.split() for line in out.split("test alone\n")[1].split("\n\n")[0].splitlines()]
    assert {row[1] for row in ranking[:-1]} == set(pool.checkpoint_ids)
    assert [float(row[2]) for row in ranking[:-1]] == sorted(float(row[2]) for row in ranking[:-1])
    # Before and after: the base as recorded in the new card, and the merge as an independent load of the export says.
    before, best, after = map(float, re.search(r"^my_shapes +(\S+) +(\S+) +(\S+)$", out, re.M).groups())  # type: ignore[union-attr]
    assert before == round(100 * task.accuracy["base"]["test"], 1)
    assert best == round(100 * task.accuracy["individual"]["test"], 1)
    data = load_split(pool.card, task, "test")
    answers = load_merged(tmp_path / "merged").logits(data.inputs, "my_shapes").argmax(-1)
    assert after == round(100 * float((answers == data.labels).float().mean()), 1)
    (run_id,) = RunStore().ids()
    assert RunStore().load(run_id).tasks == ("my_shapes",)
    # The printed line repeats the run, for as long as the pool is kept.
    code, again, _ = run(*re.search(r"^fwviz (merge .*)$", out, re.M)[1].split())  # type: ignore[index]
    assert code == 0
    assert re.search(r"^my_shapes .*$", again, re.M)[0] in out  # type: ignore[index]


def test_no_example_stands_in_two_splits(run: Run, tiny_pool_path: Path, tmp_path: Path) -> None:
    file = shapes_zip(tmp_path / "a.zip", 9)
    keep = tmp_path / "kept"
    assert run("own", file, "--pool", tiny_pool_path, "--method", "weight_average", "--keep", keep)[0] == 0
    card = open_pool(keep).card
    splits = [load_split(card, card.task("a"), split) for split in SPLITS]
    rows = [bytes(image.numpy().tobytes()) for data in splits for image in data.inputs]
    assert len(set(rows)) == len(rows) == 45
    assert all(set(data.labels.tolist()) == set(range(5)) for data in splits)


def test_the_same_file_and_seed_make_the_same_pool(run: Run, tiny_pool_path: Path, tmp_path: Path) -> None:
    file = shapes_zip(tmp_path / "a.zip", 6)
    words = ("own", file, "--pool", tiny_pool_path, "--method", "weight_average")
    for seed in (0, 0, 1):
        assert run(*words, "--seed", seed)[0] == 0
    pools = sorted((tmp_path / "own").iterdir())
    assert len(pools) == 2
    assert len({open_pool(p).card.task("a").splits["test"].sha256 for p in pools}) == 2


def test_texts_of_ones_own(run: Run, tiny_text_pool_path: Path, tmp_path: Path) -> None:
    file = texts_csv(tmp_path / "notes.csv")
    code, out, err = run("own", file, "--pool", tiny_text_pool_path, "--max-steps", 2, "--out", tmp_path / "merged")
    assert code == 0, err
    assert "42 texts of 3 classes (fruit, night, sea)" in out
    root = Path(re.search(r"^pool: (.*)$", out, re.M)[1])  # type: ignore[index]
    pool = open_pool(root)
    data = load_split(pool.card, pool.card.task("notes"), "test")
    answers = load_merged(tmp_path / "merged").logits(data.inputs, "notes").argmax(-1)
    after = re.search(r"^notes .* (\S+)$", out, re.M)[1]  # type: ignore[index]
    assert float(after) == round(100 * float((answers == data.labels).float().mean()), 1)


def test_texts_that_are_cut_are_counted(run: Run, tiny_text_pool_path: Path, tmp_path: Path) -> None:
    file = texts_csv(tmp_path / "notes.csv")
    longest = open_pool(tiny_text_pool_path).card.base["tokens"]
    head, *rows = file.read_text().splitlines()
    # With a mark at either end the first fits just so, and the next two do not.
    for j, words in enumerate((longest - 2, longest - 1, longest + 50)):
        label = rows[j].rpartition(",")[2]
        rows[j] = f'"{" ".join(["moon"] * words)}",{label}'
    file.write_text("\n".join([head, *rows]))
    code, out, err = run("own", file, "--pool", tiny_text_pool_path, "--method", "weight_average")
    assert code == 0, err
    assert f" 2 of them are longer than the {longest} tokens that are read of a text: the end is cut off." in out
    assert "cut off" not in run("own", texts_csv(file), "--pool", tiny_text_pool_path, "--method", "weight_average")[1]


def test_tasks_of_the_pool_are_kept_in_mind_when_named(run: Run, tiny_pool_path: Path, tmp_path: Path) -> None:
    file = shapes_zip(tmp_path / "a.zip", 6)
    code, out, _ = run("own", file, "--pool", tiny_pool_path, "--method", "weight_average", "--tasks", "colour",
                       "--checkpoints", "colour", "shape")  # fmt: skip
    assert code == 0
    (run_id,) = RunStore().ids()
    recipe = RunStore().load(run_id).recipe
    assert (recipe.tasks, recipe.checkpoints) == (("a", "colour"), ("colour", "shape"))
    # The best checkpoint alone was the best before the test was looked at.
    card = open_pool(recipe.pool).card
    assert f"individual: {card.training['best_checkpoint']['a']}, the best checkpoint alone" in out


def test_checkpoints_of_ones_own_join_a_pool(run: Run, tiny_pool_path: Path, tmp_path: Path) -> None:
    file = shapes_zip(tmp_path / "a.zip", 6)
    mine = Path(shutil.copytree(tiny_pool_path / "checkpoints" / "shape", tmp_path / "Mine v1"))
    tensors = load_file(mine / "model.safetensors")
    # With a head that the base lacks, and as a file alone.
    save_file({**tensors, "classifier.weight": torch.zeros(3, 24)}, mine / "model.safetensors")
    shutil.copyfile(tiny_pool_path / "checkpoints" / "colour" / "model.safetensors", tmp_path / "two.safetensors")
    before = tree(mine)
    code, out, err = run("own", file, "--pool", tiny_pool_path, "--method", "weight_average",
                         "--bring", mine, tmp_path / "two.safetensors")  # fmt: skip
    assert code == 0, err
    (run_id,) = RunStore().ids()
    trace = RunStore().load(run_id)
    assert trace.checkpoints[-2:] == ("mine_v1", "two")
    pool = open_pool(trace.recipe.pool)
    vectors = pool.task_vectors(["mine_v1", "shape", "two", "colour"])
    assert torch.equal(vectors.vector(0), vectors.vector(1))
    assert torch.equal(vectors.vector(2), vectors.vector(3))
    assert tree(mine) == before
    assert "Mine v1: fits the base; " in out
    assert "it stays out of the merge, as a head does" in out


def test_a_base_of_ones_own(run: Run, tiny_pool_path: Path, tmp_path: Path) -> None:
    file = shapes_zip(tmp_path / "a.zip", 6)
    code, _out, err = run("own", file, "--base", tiny_pool_path / "base", "--method", "weight_average", "--bring",
                         *(tiny_pool_path / "checkpoints" / name for name in ("shape", "colour")),
                         "--out", tmp_path / "merged")  # fmt: skip
    assert code == 0, err
    (run_id,) = RunStore().ids()
    pool = open_pool(RunStore().load(run_id).recipe.pool)
    assert (pool.checkpoint_ids, pool.task_ids) == (("shape", "colour"), ("a",))
    theirs = open_pool(tiny_pool_path).task_vectors(["shape", "colour"])
    assert torch.equal(pool.task_vectors(["shape", "colour"]).vector(0), theirs.vector(0))
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_a_text_base_of_ones_own(run: Run, tiny_text_pool_path: Path, tmp_path: Path) -> None:
    file = texts_csv(tmp_path / "a.csv")
    code, _, err = run("own", file, "--base", tiny_text_pool_path / "base", "--method", "weight_average", "--bring",
                       *(tiny_text_pool_path / "checkpoints" / name for name in ("food", "mood")))  # fmt: skip
    assert code == 0, err


def own_line(root: Path, names: tuple[str, ...], file: Path, out: Path, *more: object) -> tuple[object, ...]:
    """The words of one line from the base and checkpoints of a pool, without the pool, to a folder of weights."""
    brought = [root / "checkpoints" / name for name in names]
    return ("own", file, "--base", root / "base", "--bring", *brought, "--max-steps", 1, "--out", out, *more)


FORMS = [(kind, form) for kind in ("t5", "gpt2", "llama") for form in ("full", "lora", "ia3")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the libraries, about each other
@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_a_base_of_ones_own_that_answers_in_words(kind: str, form: str, run: Run, tmp_path: Path) -> None:
    """Whole checkpoints and adapters: what the line reports is what transformers makes of the folder it wrote."""
    root = tiny_words_pool.make_tiny_words_pool(tmp_path / "pool", kind, form)
    file = moods(tmp_path / "my moods.csv", kind)
    code, out, err = run(*own_line(root, ("mood", "repeat"), file, tmp_path / "merged"))
    assert code == 0, err
    assert "60 texts of 2 classes (bad, good)" in out
    assert "answers in words" in out
    pool = open_pool(Path(re.search(r"^pool: (.*)$", out, re.M)[1]))  # type: ignore[index]
    assert pool.card.family == ("seq2seq" if kind == "t5" else "causal_lm")
    assert pool.all_adapters is (form != "full")
    assert pool.checkpoint_ids == ("mood", "repeat")
    (run_id,) = RunStore().ids()
    trace = RunStore().load(run_id)
    score, task = trace.final["test"]["my_moods"], pool.card.task("my_moods")
    before, _best, after = map(float, re.search(r"^my_moods +(\S+) +(\S+) +(\S+)$", out, re.M).groups())  # type: ignore[union-attr]
    assert before == round(100 * task.accuracy["base"]["test"], 1)
    assert after == round(100 * score.accuracy, 1)
    assert trace.iterates()[-1].loss < trace.iterates()[0].loss  # type: ignore[operator]
    rows = pq.read_table(pool.card.root / task.splits["test"].path).to_pydict()
    words = tiny_words_pool.write_tokenizer(tmp_path)

    def mean_loss(model: Any) -> float:
        with torch.no_grad():
            losses = [
                float(tiny_words_pool.loss_of(model.eval(), kind, words, [text], [task.classes[label]]))
                for text, label in zip(rows["text"], rows["label"], strict=True)
            ]
        return sum(losses) / len(losses)

    whole = tiny_words_pool.auto_class(kind).from_pretrained(tmp_path / "merged")
    assert mean_loss(whole) == pytest.approx(score.loss, abs=1e-4)
    if form == "lora":  # a merge of LoRAs is a LoRA of the same base
        from peft import PeftModel

        more = ("--format", "adapter", "--runs", tmp_path / "again")
        code, _, err = run(*own_line(root, ("mood", "repeat"), file, tmp_path / "adapter", *more))
        assert code == 0, err
        base = tiny_words_pool.auto_class(kind).from_pretrained(root / "base")
        assert mean_loss(PeftModel.from_pretrained(base, tmp_path / "adapter")) == pytest.approx(score.loss, abs=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "form"), [(kind, form) for kind in ("roberta", "bert") for form in ("full", "lora")])
def test_a_base_of_ones_own_with_classifiers(kind: str, form: str, run: Run, tmp_path: Path) -> None:
    root = tiny_classifier_pool.make_tiny_classifier_pool(tmp_path / "pool", kind, form)
    file = moods(tmp_path / "my moods.csv", kind, ("bad", "good") if form == "full" else ("0", "1"))
    code, out, err = run(*own_line(root, ("mood", "pair"), file, tmp_path / "merged"))
    assert code == 0, err
    assert "They are read by the classifier of mood." in out
    pool = open_pool(Path(re.search(r"^pool: (.*)$", out, re.M)[1]))  # type: ignore[index]
    assert pool.card.family == "sequence_classifier"
    data = load_split(pool.card, pool.card.task("my_moods"), "test")
    answers = load_merged(tmp_path / "merged").logits(data.inputs, "my_moods").argmax(-1)
    after = re.search(r"^my_moods .* (\S+)$", out, re.M)[1]  # type: ignore[index]
    assert float(after) == round(100 * float((answers == data.labels).float().mean()), 1)


def test_pools_open_makes_a_pool(run: Run, tiny_pool_path: Path, tmp_path: Path) -> None:
    mine = tiny_pool_path / "checkpoints" / "shape"
    code, _out, err = run("pools", "open", mine, "--pool", tiny_pool_path, "--out", tmp_path / "new")
    assert code == 0, err
    pool = open_pool(tmp_path / "new")
    assert pool.checkpoint_ids[-1] == "shape_2"
    assert pool.card.default_tasks == ("colour", "stripes")
    assert run("pools", tmp_path / "new", "--verify")[0] == 0
    assert run("merge", "--pool", tmp_path / "new", "--method", "weight_average")[0] == 0


def test_a_checkpoint_that_does_not_fit_says_why(run: Run, tiny_pool_path: Path, tmp_path: Path) -> None:
    bad = Path(shutil.copytree(tiny_pool_path / "checkpoints" / "shape", tmp_path / "bad"))
    tensors = load_file(bad / "model.safetensors")
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    save_file(tensors | {name: torch.full_like(tensors[name], torch.nan)}, bad / "model.safetensors")
    before = tree(tmp_path)
    for words in (("pools", "open", bad, "--pool", tiny_pool_path, "--out", tmp_path / "new"),):
        code, _, err = run(*words)
        assert code == 1
        assert re.fullmatch(r"fwviz: bad cannot be merged: .*NaN or infinity.*\n", err)
    assert tree(tmp_path) == before
    shutil.rmtree(bad)
    torch.save(tensors, tmp_path / "pickle.bin")
    code, _, err = run("pools", "open", tmp_path / "pickle.bin", "--pool", tiny_pool_path, "--out", tmp_path / "new")
    assert code == 1
    assert "is a pickle, which can run code" in err
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_display_no_pool_has_is_read_better_after_the_merge(run: Run, tmp_path: Path) -> None:
    """Seven-segment digits and the shipped pool: the merge beats the base and every checkpoint alone."""
    code, out, err = run("own", segments_zip(tmp_path / "segments.zip"), "--pool", "vision")
    assert code == 0, err
    before, best, after = map(float, re.search(r"^segments +(\S+) +(\S+) +(\S+)$", out, re.M).groups())  # type: ignore[union-attr]
    print(f"base {before}, best checkpoint {best}, merged {after}")
    assert after > max(before, best) + 3


@pytest.mark.parametrize("name", BAD_ZIPS)
def test_bad_archives_write_nothing(name: str, run: Run, tiny_pool_path: Path, tmp_path: Path) -> None:
    refused(run, tmp_path, BAD_ZIPS[name], tmp_path / "bad.zip", tiny_pool_path)


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables_write_nothing(name: str, run: Run, tiny_text_pool_path: Path, tmp_path: Path) -> None:
    refused(run, tmp_path, BAD_TABLES[name], tmp_path / "bad.csv", tiny_text_pool_path)


def refused(run: Run, tmp_path: Path, bad: tuple[Callable[[Path], object], str], file: Path, pool: Path) -> None:
    make, said = bad
    make(file)
    before = tree(tmp_path)
    code, out, err = run("own", file, "--pool", pool, "--out", tmp_path / "merged")
    assert code == 1
    assert out == ""
    assert re.fullmatch(rf"fwviz: .*({said}).*\n", err), err
    after = tree(tmp_path)
    after.pop(str(tmp_path / "own"), None)  # the empty folder of kept pools
    assert after == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--method", "nonsense"), "there is no method"),
        (("--max-steps", "-1"), "max_steps"),
        (("--tasks", "absent"), "no task 'absent'"),
        (("--seed", "x"), "'seed'"),
        (("--classes", "circle"), "write --classes folder=name"),
        (("--classes", "x=y"), "no class 'x' to rename"),
        (("--classes", "circle=cross"), "two classes are called"),
        (("--prompts", "no place"), "write a short text with {}"),
        (("--title", "\n"), "cannot be the title"),
        (("--bring", "absent.safetensors"), "absent.safetensors"),
        (("--base", "somewhere"), "--base stands in the place of a --pool"),
    ],
)
def test_wrong_options_write_nothing(
    words: tuple[str, ...], said: str, run: Run, tiny_pool_path: Path, tmp_path: Path
) -> None:
    file = shapes_zip(tmp_path / "a.zip", 6)
    before = tree(tmp_path)
    code, _, err = run("own", file, "--pool", tiny_pool_path, *words)
    assert code == 1
    assert said in err
    assert err.count("\n") == 1, err
    after = tree(tmp_path)
    after.pop(str(tmp_path / "own"), None)
    assert after == before
