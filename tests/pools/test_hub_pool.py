"""Cards of the Hub merged end to end: fetched from a local Hub into its cache, prepared, merged, exported."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fwviz.backbones.families import FAMILIES
from fwviz.cli import main
from fwviz.pools.hub import HUB_FAMILIES, hub_card_ids, load_hub_card
from fwviz.pools.open import open_pool
from fwviz.tasks.data import load_split
from fwviz.types import FwvizError
from tests.hub_server import Hub, serving
from tests.tiny_classifier_pool import CLASSES, make_tiny_classifier_pool
from tests.tiny_words_pool import draw, make_tiny_words_pool

pytestmark = pytest.mark.filterwarnings("ignore")  # of the client and of transformers

ROWS = {"calibration": 12, "validation": 8, "test": 16}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub whose cache on this machine is empty."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FWVIZ_PREPARED", str(tmp_path / "prepared"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def write(folder: Path, name: str, columns: dict[str, Any], names: tuple[str, ...] = (), label: str = "label") -> None:
    """A parquet file of a data set, with the Hub's own metadata where its label has names."""
    table = pa.table(columns)
    if names:
        features = {label: {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=20)


def publish(hub: Hub, pool: Path, data: Path, checkpoints: list[str]) -> None:
    """The models of a pool's folder and a data set as repositories of the Hub."""
    hub.repositories["models/org/base"] = pool / "base"
    hub.repositories["datasets/org/data"] = data
    for name in checkpoints:
        hub.repositories[f"models/org/base_{name}"] = pool / "checkpoints" / name


def write_card(path: Path, **values: Any) -> Path:
    card = {
        "id": "tiny-hub",
        "title": "Tiny",
        "summary": "Of the tests.",
        "rows": ROWS,
        "checkpoint_hub": "org/base_{task}",
    }
    path.write_text(json.dumps(card | values))  # which is YAML too
    return path


def end_to_end(card: Path, out: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """Fetch, merge and export by the command line alone."""
    assert main(["pools", "fetch", str(card)]) == 0
    line = ["merge", "--pool", str(card), "--tasks", "all", "--checkpoints", "all", "--runs", str(out) + ".runs"]
    assert main([*line, "--method", "task_arithmetic", "--out", str(out), *options]) == 0
    return capsys.readouterr().out


# --- images -------------------------------------------------------------------------------------


def picture(rng: np.random.Generator, kind: str) -> dict[str, Any]:
    """A picture of its own size in a format a data set may have."""
    width, height = (int(side) for side in rng.integers(16, 40, 2))
    target = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(target, format=kind)
    return {"bytes": target.getvalue(), "path": None}


@pytest.fixture
def clip_card(hub: Hub, tiny_pool_path: Path, tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 30)):
        for part in range(2):
            pictures = [picture(rng, ("PNG", "JPEG")[i % 2]) for i in range(count // 2)]
            columns = {"img": pictures, "label": pa.array([i % 3 for i in range(count // 2)])}
            write(tmp_path / "data", f"data/{split}-0000{part}-of-00002.parquet", columns, ("square", "cross", "ring"))
    publish(hub, tiny_pool_path, tmp_path / "data", ["shape", "stripes"])
    task = {"title": "t", "metric": "accuracy", "prompts": ["a {}"]}
    data = {"hub": "org/data", "inputs": "img", "label": "label", "splits": {"calibration": "train", "test": "test"}}
    return write_card(
        tmp_path / "clip.yaml",
        family="clip_vision",
        base={"hub": "org/base"},
        merge={"include": ["vision_model."], "exclude": []},
        tasks=[
            {"id": "shape", **task, "data": data},
            {"id": "stripes", **task, "classes": ["one", "two", "three"], "data": data},
        ],
    )


def test_clip_from_the_hub_to_a_merge(clip_card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = end_to_end(clip_card, tmp_path / "out", capsys)
    assert "test accuracy" in said
    card = open_pool(clip_card).card
    assert card.task("shape").classes == ("square", "cross", "ring")  # of the data set's own features
    assert card.task("stripes").classes == ("one", "two", "three")  # of the card
    assert {split: file.rows for split, file in card.task("shape").splits.items()} == ROWS
    from transformers import CLIPModel

    assert isinstance(CLIPModel.from_pretrained(tmp_path / "out"), CLIPModel)
    assert open_pool(clip_card) is open_pool(clip_card)


def test_pictures_are_cut_as_by_clips_processor(
    clip_card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pixel for pixel the image processor of transformers, before normalisation."""
    from transformers import CLIPImageProcessor

    assert main(["pools", "fetch", str(clip_card)]) == 0
    card = open_pool(clip_card).card
    found = load_split(card, card.task("shape"), "test")
    tables = [pq.read_table(file).to_pydict()["img"] for file in sorted((tmp_path / "data/data").glob("test*"))]
    pictures = [image for table in tables for image in table]
    processor = CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, do_normalize=False, do_rescale=False
    )
    for row, key in enumerate(found.source_keys):
        image = Image.open(io.BytesIO(pictures[int(key)]["bytes"])).convert("RGB")
        expected = torch.as_tensor(np.asarray(processor(image)["pixel_values"][0])).round().to(torch.int16)
        assert int((found.inputs[row].to(torch.int16) - expected).abs().max()) <= 1


def test_splits_of_one_source_share_no_row(clip_card: Path) -> None:
    assert main(["pools", "fetch", str(clip_card)]) == 0
    card = open_pool(clip_card).card
    keys = {split: load_split(card, card.task("shape"), split).source_keys for split in ROWS}  # type: ignore[arg-type]
    assert not set(keys["calibration"]) & set(keys["validation"])
    assert len(set(keys["calibration"])) == 12


# --- texts --------------------------------------------------------------------------------------


def glue_like(folder: Path) -> None:
    """Configurations as folders, class names in the metadata, numbers, hidden labels."""
    from tests.tiny_classifier_pool import draw as draw_texts

    rng = np.random.default_rng(1)
    for task, classes in CLASSES.items():
        for split, rows in (("train", 60), ("validation", 40)):
            samples, labels = draw_texts(task, rows, rng)
            columns: dict[str, Any] = {"sentence1": [text for text, _ in samples]}
            if task == "pair":
                columns["sentence2"] = [pair for _, pair in samples]
            columns["label"] = labels if not classes else pa.array([int(v) for v in labels])
            if task == "mood":
                columns["label"] = pa.array([-1 if i % 10 == 0 else int(v) for i, v in enumerate(labels)])
            write(folder, f"{task}/{split}-00000-of-00001.parquet", columns, classes)


def test_classifiers_from_the_hub_to_a_merge(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = make_tiny_classifier_pool(tmp_path / "pool", "roberta")
    glue_like(tmp_path / "data")
    publish(hub, pool, tmp_path / "data", list(CLASSES))
    inputs = {"mood": "sentence1", "pair": "sentence1, sentence2", "degree": "sentence1"}
    card = write_card(
        tmp_path / "glue.yaml",
        family="sequence_classifier",
        base={"hub": "org/base", "tokens": 14},
        merge={"include": ["embeddings.", "encoder."], "exclude": []},
        tasks=[
            {
                "id": task,
                "title": task,
                "metric": "accuracy" if CLASSES[task] else "pearson_spearman",
                "data": {
                    "hub": "org/data", "config": task, "inputs": inputs[task], "label": "label",
                    "splits": {"calibration": "train", "test": "validation"},
                },
            }
            for task in CLASSES
        ],
    )  # fmt: skip
    assert "test accuracy in % (degree: pearson_spearman)" in end_to_end(card, tmp_path / "out", capsys)
    opened = open_pool(card)
    assert opened.card.task("pair").classes == CLASSES["pair"]
    assert opened.card.task("degree").classes == ()
    assert load_split(opened.card, opened.card.task("degree"), "test").labels.dtype == torch.float32
    assert opened.card.task("mood").splits["test"].rows < 16, "rows without a label are left out"
    assert sorted(file.stem for file in (tmp_path / "out/heads").iterdir()) == sorted(CLASSES)


@pytest.mark.parametrize(("kind", "form"), [("t5", "full"), ("t5", "lora"), ("llama", "lora")])
def test_words_from_the_hub_to_a_merge(
    kind: str, form: str, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = make_tiny_words_pool(tmp_path / "pool", kind, form, updates=1)
    rng = np.random.default_rng(2)
    for split in ("train", "test"):
        prompts, answers = draw("mood", 40, rng)
        texts = [prompt.removeprefix("mood : ") for prompt in prompts]
        columns = {"pair": [{"a": text, "b": answer} for text, answer in zip(texts, answers, strict=True)]}
        columns["label"] = pa.array([int(answer == "good") for answer in answers])  # type: ignore[assignment]
        columns["grade"] = [float(i % 4) for i in range(40)]  # type: ignore[list-item]
        write(tmp_path / "data", f"default/{split}/0000.parquet", columns, ("no", "yes"))
    publish(hub, pool, tmp_path / "data", ["mood", "repeat", "count"])
    data = {"hub": "org/data", "inputs": "pair.a", "label": "label", "splits": {"calibration": "train", "test": "test"}}
    card = write_card(
        tmp_path / "words.yaml",
        family="seq2seq" if kind == "t5" else "causal_lm",
        base={"hub": "org/base", "tokens": 12, "answer_tokens": 4},
        merge={"include": ["encoder.", "decoder."] if kind == "t5" else ["model."], "exclude": []},
        tasks=[
            {
                "id": "mood",
                "title": "m",
                "metric": "accuracy",
                "classes": ["bad", "good"],
                "prompt": "mood : {pair.a}",
                "data": data,
            },
            {
                "id": "repeat",
                "title": "r",
                "metric": "rouge",
                "prompt": "repeat : {pair.a}",
                "data": data | {"label": "pair.b"},
            },
            {"id": "count", "title": "c", "metric": "spearman", "data": data | {"label": "grade"}},
        ],
    )
    end_to_end(card, tmp_path / "out", capsys, *(["--format", "adapter"] if form == "lora" else []))
    opened = open_pool(card)
    table = pq.read_table(opened.card.task("mood").splits["test"].path).to_pydict()
    assert all(text.startswith("mood : the ") for text in table["text"])
    assert load_split(opened.card, opened.card.task("count"), "test").references[0] in {"0.0", "1.0", "2.0", "3.0"}
    assert set(load_split(opened.card, opened.card.task("repeat"), "test").references) <= {"bad", "good"}
    assert (tmp_path / "out" / ("adapter_model.safetensors" if form == "lora" else "model.safetensors")).is_file()


# --- what is missing, and what is wrong ---------------------------------------------------------


def test_what_is_not_here_is_named_with_its_command(clip_card: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FwvizError, match=r"base org/base of pool 'tiny-hub' is not on this machine: run `fwviz pools fetch"
    ):
        open_pool(clip_card)
    assert main(["pools", "fetch", str(clip_card), "--no-data"]) == 0
    with pytest.raises(FwvizError, match="none of the data sets of card 'tiny-hub' is on this machine"):
        open_pool(clip_card)
    assert main(["pools", "fetch", str(clip_card)]) == 0
    shutil.rmtree(next((tmp_path / "cache").glob("models--org--base_stripes")))
    pool = open_pool(clip_card)
    assert pool.checkpoint_ids == ("shape",)
    assert "Not on this machine: org/base_stripes." in pool.card.summary


def test_cards_of_the_papers_are_opened_by_their_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name in hub_card_ids():
        with pytest.raises(FwvizError, match=f"is not on this machine: run `fwviz pools fetch {name}`"):
            open_pool(name)


def test_cards_of_the_papers_say_what_a_merge_needs() -> None:
    """Every family can be merged; a model that answers in words is asked by a prompt of the columns it reads."""
    assert set(HUB_FAMILIES) <= set(FAMILIES)
    for name in hub_card_ids():
        card = load_hub_card(name)
        for task in card.tasks:
            assert {"inputs", "label"} <= set(task.data)
            if FAMILIES[card.family].heads == "words":
                columns = [column.strip() for column in task.data["inputs"].split(",")]
                assert all(f"{{{column}}}" in task.prompt for column in columns), (name, task.id)
                assert task.classes or task.metric not in ("accuracy", "matthews")


def change_data(name: str, pictures: list[Any], labels: list[int] | None = None, column: str = "img") -> Any:
    """Both parts of a split written anew."""
    columns = {column: pictures, "label": pa.array(labels or [i % 3 for i in range(len(pictures))])}

    def damage(folder: Path) -> None:
        for part in range(2):
            write(folder, f"data/{name}-0000{part}-of-00002.parquet", columns, ("a", "b", "c"))

    return damage


def no_parquet(folder: Path) -> None:
    (folder / "data/test-00000-of-00002.parquet").write_bytes(b"PAR1 nothing")


def no_split(folder: Path) -> None:
    for file in (folder / "data").glob("test*"):
        file.unlink()


FINE = [picture(np.random.default_rng(0), "PNG")]
WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no picture": (change_data("test", [{"bytes": b"GIF89a", "path": ""}] * 20), "cannot be decoded"),
    "another column": (change_data("test", FINE * 20, column="picture"), "has no column 'img'"),
    "text for a picture": (change_data("test", ["x"] * 20), "holds no picture"),
    "a label too large": (change_data("test", FINE * 20, [7] * 20), "the label '7', but task 'shape' has 3 classes"),
    "no labels": (change_data("test", FINE * 20, [-1] * 20), "has no labels in"),
    "no parquet": (no_parquet, "damaged or no parquet"),
    "no split": (no_split, "no parquet file of the split 'test'"),
    "few rows": (change_data("train", FINE), "has only 2 rows for 2 splits"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_damaged_data_set_is_one_sentence_and_leaves_nothing(name: str, clip_card: Path, tmp_path: Path) -> None:
    damage, sentence = WRONG[name]
    damage(tmp_path / "data")
    assert main(["pools", "fetch", str(clip_card)]) == 0
    with pytest.raises(FwvizError, match=sentence):
        open_pool(clip_card)
    kept = [path for path in (tmp_path / "prepared").glob("*") if not (path / "facts.json").is_file()]
    assert kept == []
