"""Every family by upload: base, checkpoints or adapters, a task, the ranking, a merge, and the download that loads."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from starlette.applications import Starlette
from starlette.testclient import TestClient

from fwviz.pools.open import open_pool
from fwviz.runs.merged import load_merged
from fwviz.tasks.data import load_split
from fwviz.types import Score
from fwviz.ui import exports
from fwviz.ui.desk import Desk
from fwviz.ui.state import Session
from tests import tiny_classifier_pool, tiny_words_pool
from tests.own_corpus import moods
from tests.own_models import zip_of
from tests.own_pages import bring, finish, give, merge, own_base, visitor

# Warnings are of the libraries, about each other.
pytestmark = pytest.mark.filterwarnings("ignore")


def make(kind: str, form: str, root: Path) -> Path:
    if kind in ("roberta", "bert"):
        return tiny_classifier_pool.make_tiny_classifier_pool(root, kind, form)
    return tiny_words_pool.make_tiny_words_pool(root, kind, form)


def laid(desk: Desk, session: Session, pool_id: str, root: Path, names: Sequence[str], tmp_path: Path) -> Any:
    """Bring the base of a pool and some of its checkpoints, as one zip of their folders."""
    own_base(desk, session, pool_id, root / "base")
    packed = zip_of(tmp_path / "checkpoints.zip", {name: root / "checkpoints" / name for name in names})
    file = give(desk, session, packed, "checkpoint")
    told, _ = bring(desk, session, what="checkpoints", base=True, files=[file], pool=pool_id)
    assert "problem" not in told["own"], told["own"]
    return told["own"]


def merged(desk: Desk, session: Session, made: Any) -> dict[str, dict[str, Score]]:
    """The ranking at the base, then a short merge: scores before and after on the test, by the record of the run."""
    finish(desk, session)
    bars = json.loads(desk.show(session)["lmo_bars"])
    assert "figure" in bars, bars
    shown = desk.looking.shown(session)
    assert shown is not None
    before = shown.trace.final["test"]
    return {"before": before, "after": merge(desk, session, made).trace.final["test"]}


def downloaded(desk: Desk, session: Session, target: Path) -> Path:
    """The weights as the page's link gives them, unpacked."""
    client = TestClient(Starlette(routes=exports.routes("fwviz", desk.library)))
    shown = desk.looking.shown(session)
    assert shown is not None
    answer = client.get(f"/fwviz/export/{session.view}/weights", params={"index": len(shown.trace.frames) - 1})
    assert answer.status_code == 200, answer.text
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extractall(target)
    (folder,) = target.iterdir()
    return folder


def cases(quick: Sequence[tuple[str, str]], long: Sequence[tuple[str, str]]) -> list[Any]:
    """Kinds and forms; the long ones are run with the slow tests."""
    return [*quick, *(pytest.param(*case, marks=pytest.mark.slow) for case in long)]


CLASSIFIERS = cases([("bert", "lora")], [("roberta", "full"), ("roberta", "lora"), ("bert", "full")])


@pytest.mark.parametrize(("kind", "form"), CLASSIFIERS)
def test_classifiers_by_upload(kind: str, form: str, desk: Desk, pool_id: str, tmp_path: Path) -> None:
    """Own base, checkpoints with classifiers: the labels choose the one that reads the task, which is exported."""
    from transformers import AutoModelForSequenceClassification

    session = visitor(desk, "page")
    root = make(kind, form, tmp_path / "pool")
    own = laid(desk, session, pool_id, root, ("mood", "pair"), tmp_path)
    # Adapters do not say what their outputs are called, so that there the labels are numbers.
    named = form == "full"
    assert own["base"]["answers"] == [
        "mood: bad, good" if named else "mood: 2 classes without names",
        "pair: same, other, mixed" if named else "pair: 3 classes without names",
    ]
    file = give(desk, session, moods(tmp_path / "my moods.csv", kind, ("Bad", "GOOD") if named else ("0", "1")))
    made, _ = bring(desk, session, what="task", base=True, file=file, pool=pool_id)
    assert "problem" not in made["own"], made["own"]
    assert made["own"]["said"][0].endswith("They are read by the classifier of mood.")
    assert (made["own"]["classes"], made["own"]["prompts"]) == ([], [])
    assert made["pool"]["heads"] == "own"
    pool = open_pool(made["own"]["pool"])
    assert pool.card.family == "sequence_classifier"
    assert pool.card.task("my_moods").head == "mood"
    assert pool.card.task("my_moods").accuracy["individual"]["test"] > 0.9, "read with its rows in the right order"
    scores = merged(desk, session, made)
    assert scores["after"]["my_moods"].loss < scores["before"]["my_moods"].loss
    # What is downloaded answers in transformers as it was judged here.
    folder = downloaded(desk, session, tmp_path / "out")
    data = load_split(pool.card, pool.card.task("my_moods"), "test")
    logits = load_merged(folder).logits(data.inputs, "my_moods")
    assert float((logits.argmax(-1) == data.labels).float().mean()) == pytest.approx(
        scores["after"]["my_moods"].accuracy
    )
    theirs = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).eval()
    theirs.load_state_dict(load_file(folder / "heads" / "my_moods.safetensors"), strict=False)
    import pyarrow.parquet as pq

    rows = pq.read_table(pool.card.root / pool.card.task("my_moods").splits["test"].path).to_pydict()
    with torch.no_grad():
        found = theirs(**tiny_classifier_pool.encode(folder, [(text, None) for text in rows["text"]])).logits
    torch.testing.assert_close(found, logits, atol=1e-4, rtol=1e-4)


def test_labels_no_classifier_knows_are_refused_with_those_there_are(desk: Desk, pool_id: str, tmp_path: Path) -> None:
    session = visitor(desk, "page")
    root = make("roberta", "full", tmp_path / "pool")
    own = laid(desk, session, pool_id, root, ("mood", "pair", "degree"), tmp_path)
    file = give(desk, session, moods(tmp_path / "a.csv", "roberta", ("sad", "happy")))
    answer, _ = bring(desk, session, what="task", base=True, file=file, pool=pool_id)
    assert answer["own"]["problem"] == (
        "No checkpoint brings a classifier for the labels happy, sad (degree: a number; mood: bad, good; pair: same, "
        "other, mixed): call them as one of these classifiers does, or 0, 1, … in its order."
    )
    assert desk.shelf.base(session.own) == own["base"], "the base waits on"
    # Numbers are the outputs in their order, and shown by their names.
    file = give(desk, session, moods(tmp_path / "a.csv", "roberta", ("0", "1")))
    made, _ = bring(desk, session, what="task", base=True, file=file, pool=pool_id)
    task = open_pool(made["own"]["pool"]).card.task("a")
    assert (task.classes, task.head) == (("bad", "good"), "mood")


FORMS = [(kind, form) for kind in ("t5", "gpt2", "llama") for form in ("full", "lora", "ia3")]
WORDS = cases([("t5", "lora")], [case for case in FORMS if case != ("t5", "lora")])


@pytest.mark.parametrize(("kind", "form"), WORDS)
def test_models_that_answer_in_words_by_upload(kind: str, form: str, desk: Desk, pool_id: str, tmp_path: Path) -> None:
    """Own base, whole checkpoints or adapters, prompts with answers: what is downloaded loads in transformers."""
    session = visitor(desk, "page")
    root = make(kind, form, tmp_path / "pool")
    own = laid(desk, session, pool_id, root, ("mood", "repeat"), tmp_path)
    assert own["base"]["heads"] == "words"
    assert "answers in words" in own["base"]["about"]
    file = give(desk, session, moods(tmp_path / "my moods.csv", kind))
    made, _ = bring(desk, session, what="task", base=True, file=file, pool=pool_id)
    assert "problem" not in made["own"], made["own"]
    assert "2 classes (bad, good)" in made["own"]["said"][0]
    assert made["own"]["classes"] == [["bad", "bad"], ["good", "good"]]
    assert made["own"]["prompts"] == []
    pool = open_pool(made["own"]["pool"])
    assert pool.card.family == ("seq2seq" if kind == "t5" else "causal_lm")
    assert pool.all_adapters is (form != "full")
    scores = merged(desk, session, made)
    assert scores["after"]["my_moods"].loss < scores["before"]["my_moods"].loss
    folder = downloaded(desk, session, tmp_path / "out")
    model = tiny_words_pool.auto_class(kind).from_pretrained(folder).eval()
    words = tiny_words_pool.write_tokenizer(tmp_path)
    import pyarrow.parquet as pq

    task = pool.card.task("my_moods")
    rows = pq.read_table(pool.card.root / task.splits["test"].path).to_pydict()
    with torch.no_grad():
        losses = [
            float(tiny_words_pool.loss_of(model, kind, words, [text], [task.classes[label]]))
            for text, label in zip(rows["text"], rows["label"], strict=True)
        ]
    assert sum(losses) / len(losses) == pytest.approx(scores["after"]["my_moods"].loss, abs=1e-4)
    # Other words for the answers make the task anew.
    again, _ = bring(desk, session, what="task", file=file, names={"bad": "weak"}, prompts=[], pool=made["own"]["pool"])
    assert again["own"]["classes"] == [["bad", "weak"], ["good", "good"]], again["own"]
