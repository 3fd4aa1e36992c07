"""Sequence classifiers: what transformers computes, heads that stay with their task, and ways a head can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fwviz.backbones.family import Classifier
from fwviz.backbones.sequence_classifier import read_class_names, read_head
from fwviz.pools.open import Pool, matching_order, open_pool
from fwviz.runs.assemble import assemble
from fwviz.runs.export import export_weights
from fwviz.runs.merged import load_merged
from fwviz.runs.recipe import Recipe
from fwviz.runs.runner import execute
from fwviz.tasks.data import load_split
from fwviz.types import FwvizError
from tests.tiny_classifier_pool import CLASSES, encode, make_tiny_classifier_pool

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about itself

TASKS = list(CLASSES)


@pytest.fixture(scope="module", params=["roberta", "bert"])
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_classifier_pool(tmp_path_factory.mktemp("classifiers") / request.param, request.param)


@pytest.fixture(scope="module")
def pool(root: Path) -> Pool:
    return open_pool(root)


def original(folder: Path, **values: Any) -> Any:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True, **values).eval()


def samples(pool: Pool, task: str) -> dict[str, Tensor]:
    """The test split as transformers takes it, read anew from the file."""
    import pyarrow.parquet as pq

    table = pq.read_table(pool.card.root / "tasks" / task / "test.parquet").to_pydict()
    pairs = table.get("text_pair", [None] * len(table["text"]))
    return encode(pool.base_dir, list(zip(table["text"], pairs, strict=True)))


@pytest.mark.parametrize("task", TASKS)
def test_a_checkpoint_answers_as_in_transformers(pool: Pool, task: str) -> None:
    """θ₀ + 1·τ under the task's own head is the checkpoint: logits to 1e-5, pairs and numbers included."""
    head = pool.heads([task])[task]
    assert isinstance(head, Classifier)
    backbone = pool.backbone()
    assert backbone.flat is not None
    backbone.flat.load(pool.base + pool.task_vectors([task]).vector(0))
    data = load_split(pool.card, pool.card.task(task), "test")
    with torch.no_grad():
        found = head.logits(backbone.features([data.inputs]))
        expected = original(pool.card.root / "checkpoints" / task)(**samples(pool, task)).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_gradient_is_that_of_transformers(pool: Pool) -> None:
    """∇ of the mean cross-entropy at a merged θ, tensor by tensor."""
    model = original(pool.card.root / "checkpoints" / "pair")
    recipe = Recipe.from_dict({"pool": str(pool.card.root), "method": "weight_average", "tasks": ["pair"]}, pool.card)
    problem = assemble(recipe).problem
    theta = problem.vectors.combine(torch.full((1, 3), 0.4), problem.groups("model"))
    losses, gradient = problem.objective.gradient(theta)
    encoder = model.base_model
    with torch.no_grad():
        for name in pool.layout.names:
            encoder.get_parameter(name).copy_(pool.layout.view(theta, name))
    import pyarrow.parquet as pq

    table = pq.read_table(pool.card.root / "tasks/pair/calibration.parquet").to_pydict()
    inputs = encode(pool.base_dir, list(zip(table["text"], table["text_pair"], strict=True)))
    loss = torch.nn.functional.cross_entropy(model(**inputs).logits, torch.tensor(table["label"]))
    loss.backward()
    assert float(losses[0]) == pytest.approx(float(loss), rel=1e-5)
    for name in pool.layout.names:
        expected = encoder.get_parameter(name).grad
        torch.testing.assert_close(pool.layout.view(gradient, name), expected, atol=2e-6, rtol=1e-3, msg=name)


def test_heads_and_poolers_stay_out_of_the_merge(pool: Pool) -> None:
    assert not any("pooler" in name or "classifier" in name for name in pool.layout.names)
    heads = pool.heads(TASKS)
    for task in TASKS:
        file = load_file(pool.card.root / "checkpoints" / task / "model.safetensors")
        for name, tensor in heads[task].tensors().items():  # type: ignore[union-attr]
            assert torch.equal(tensor, file[name]), name
    assert pool.heads(["mood"])["mood"] is heads["mood"]


@pytest.mark.parametrize("method", ["task_arithmetic", "regmean", "fisher", "fw_hard", "adamerging", "ties"])
def test_methods_run_on_classifiers(root: Path, method: str) -> None:
    """Probes, losses and one-shot merges alike; entropy only where answers are classes."""
    tasks = ["mood", "pair"] if method == "adamerging" else TASKS
    values = {"pool": str(root), "method": method, "tasks": tasks, "checkpoints": TASKS}
    values["settings"] = {"fw_hard": {"max_steps": 2}, "adamerging": {"updates": 2}}.get(method, {})
    trace = execute(Recipe.from_dict(values))
    assert trace.status != "failed", trace.note
    assert {score.count for score in trace.final["test"].values()} == {64}
    assert all(-1 <= score.accuracy <= 1 for score in trace.final["test"].values())


def test_entropy_of_a_number_is_refused(root: Path) -> None:
    values = {"pool": str(root), "method": "adamerging", "tasks": TASKS, "checkpoints": TASKS}
    trace = execute(Recipe.from_dict(values))
    assert (trace.status, trace.note[:23]) == ("failed", "task 'degree' is answer")


def test_own_checkpoints_score_by_the_metric_of_their_task(root: Path, pool: Pool) -> None:
    """A merge of one checkpoint is that checkpoint: its correlation is that of transformers' outputs."""
    scipy = pytest.importorskip("scipy.stats")
    import pyarrow.parquet as pq

    values = {"pool": str(root), "method": "task_arithmetic", "tasks": ["degree"], "checkpoints": ["degree"]}
    score = execute(Recipe.from_dict(values | {"settings": {"scale": 1.0}})).final["test"]["degree"]
    with torch.no_grad():
        found = original(root / "checkpoints/degree")(**samples(pool, "degree")).logits[:, 0]
    wanted = torch.tensor(pq.read_table(root / "tasks/degree/test.parquet").to_pydict()["label"])
    expected = (scipy.pearsonr(found, wanted).statistic + scipy.spearmanr(found, wanted).statistic) / 2
    assert score.accuracy == pytest.approx(expected, abs=1e-4)
    assert score.loss == pytest.approx(float((found - wanted).square().mean()), rel=1e-4)


def test_an_export_is_the_merge_in_transformers_and_here(root: Path, pool: Pool, tmp_path: Path) -> None:
    """Merged encoder and each task's head, loaded by the original library: logits to 1e-5."""
    values = {"pool": str(root), "method": "task_arithmetic", "tasks": TASKS, "checkpoints": TASKS}
    folder = export_weights(Recipe.from_dict(values), -1, tmp_path / "out")
    merged = load_merged(folder)
    for task, classes in CLASSES.items():
        model = original(folder, num_labels=max(len(classes), 1))
        missing = model.load_state_dict(load_file(folder / "heads" / f"{task}.safetensors"), strict=False)
        assert not missing.unexpected_keys
        with torch.no_grad():
            expected = model(**samples(pool, task)).logits
        data = load_split(pool.card, pool.card.task(task), "test")
        torch.testing.assert_close(merged.logits(data.inputs, task), expected, atol=1e-5, rtol=1e-5)
    assert "strict=False" in (folder / "README.md").read_text()


def test_outputs_are_brought_into_the_order_of_the_card() -> None:
    assert matching_order(("NOT_ENTAILMENT", "entailment"), ("entailment", "not entailment")) == [1, 0]
    assert matching_order(("a", "b"), ("a", "b")) is None
    assert matching_order(("yes", "no"), ("a", "b")) is None
    assert matching_order((), ("a", "b")) is None


def test_a_checkpoint_with_other_class_order_answers_the_same(root: Path, tmp_path: Path) -> None:
    """id2label reversed and the rows with it: the head read is unchanged."""
    import shutil

    import yaml

    copy = Path(shutil.copytree(root, tmp_path / "other"))
    folder = copy / "checkpoints/mood"
    config = json.loads((folder / "config.json").read_text())
    assert read_class_names(folder) == ("bad", "good")
    config |= {"id2label": {"0": "GOOD", "1": "BAD"}, "label2id": {"GOOD": 0, "BAD": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    output = "classifier.out_proj" if "classifier.out_proj.weight" in tensors else "classifier"
    for kind in ("weight", "bias"):
        tensors[f"{output}.{kind}"] = tensors[f"{output}.{kind}"].flip(0).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    card = yaml.safe_load((copy / "pool.yaml").read_text())
    import hashlib

    card["checkpoints"][0]["sha256"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (copy / "pool.yaml").write_text(yaml.safe_dump(card))
    mine, theirs = open_pool(copy).heads(["mood"])["mood"], open_pool(root).heads(["mood"])["mood"]
    assert torch.equal(mine.weight, theirs.weight)  # type: ignore[union-attr]
    assert torch.equal(mine.bias, theirs.bias)  # type: ignore[union-attr]


def test_wrong_heads_are_one_sentence(root: Path, tmp_path: Path) -> None:
    with pytest.raises(FwvizError, match="has no classifier of its own"):
        read_head(root / "base")
    head = read_head(root / "checkpoints" / "pair")
    for change, sentence in (
        (lambda t: t[:, :5], "do not fit together"),
        (lambda t: t * float("nan"), "NaN or infinity"),
    ):
        broken = {name: change(t) if t.dim() == 2 else t for name, t in head.tensors().items()}
        save_file({name: t.contiguous() for name, t in broken.items()}, tmp_path / "head.safetensors")
        with pytest.raises(FwvizError, match=sentence):
            read_head(tmp_path / "head.safetensors")


def test_a_card_that_contradicts_its_head_or_data_is_refused(root: Path, tmp_path: Path) -> None:
    import shutil

    import yaml

    def changed(name: str, change: Any) -> Path:
        copy = Path(shutil.copytree(root, tmp_path / name))
        card = yaml.safe_load((copy / "pool.yaml").read_text())
        change(card)
        (copy / "pool.yaml").write_text(yaml.safe_dump(card))
        return copy

    more = changed("more", lambda card: card["tasks"][0].update(classes=["bad", "good", "odd"]))
    with pytest.raises(FwvizError, match="gives 2 outputs"):
        open_pool(more).heads(["mood"])
    metric = changed("metric", lambda card: card["tasks"][0].update(metric="pearson"))
    trace = execute(
        Recipe.from_dict({"pool": str(metric), "method": "weight_average", "tasks": ["mood"]}, open_pool(metric).card)
    )
    assert trace.note == "task 'mood' is answered by classes, which have no pearson: correct its metric in the card."
    number = changed("number", lambda card: card["tasks"][0].pop("classes"))
    with pytest.raises(FwvizError, match="no column 'label' of type double"):
        load_split(open_pool(number).card, open_pool(number).card.task("mood"), "test")
    pooler = changed("pooler", lambda card: card["merge"].update(include=["embeddings.", "encoder.", "pooler."]))
    with pytest.raises(FwvizError, match="not in the encoder"):
        open_pool(pooler)
