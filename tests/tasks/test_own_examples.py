"""Examples a person brings: what is kept of them, how they are split, and that nothing bad gets through."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fwviz.tasks import archive
from fwviz.tasks.own import Examples, check_prompts, class_names, read_examples, split_examples
from fwviz.tasks.pictures import Framing, to_png
from fwviz.types import FwvizError
from tests.own_corpus import BAD_TABLES, BAD_ZIPS, SHAPES, encode, shapes_zip, texts_csv, write_zip
from tests.refusals import refused_in_little_memory

FRAMING = Framing(16)


def examples_of(counts: tuple[int, ...]) -> Examples:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    order = np.random.default_rng(0).permutation(len(labels))
    names = tuple(str(i) for i in range(len(labels)))
    classes = tuple(f"c{i}" for i in range(len(counts)))
    return Examples("x.csv", classes, names, tuple(labels[i] for i in order), names)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_class_folders_are_classes(tmp_path: Path) -> None:
    found = read_examples(shapes_zip(tmp_path / "a.zip", 7), FRAMING)
    assert found.classes == SHAPES
    assert [found.labels.count(label) for label in range(5)] == [7] * 5
    for name, label in zip(found.names, found.labels, strict=True):
        assert name.split("/")[1] == SHAPES[label]
    assert {pixels(png).shape for png in found.inputs} == {(16, 16, 3)}  # type: ignore[arg-type]


@pytest.mark.parametrize("folder", ["", "one/two/", "train/", "test/"])
def test_folders_around_the_classes_do_not_matter(folder: str, tmp_path: Path) -> None:
    plain = read_examples(shapes_zip(tmp_path / "a.zip", 6), FRAMING)
    found = read_examples(shapes_zip(tmp_path / "b.zip", 6, folder=folder), FRAMING)
    assert (found.classes, found.inputs) == (plain.classes, plain.inputs)


def test_train_and_test_folders_are_joined_and_files_of_systems_left_aside(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def png() -> bytes:
        return encode(Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)))

    files = {f"set/{part}/{kind}/{i}.png": png() for part in ("train", "test") for kind in "ab" for i in range(4)}
    junk = {"__MACOSX/set/._x.png": b"x", "set/train/a/.DS_Store": b"x", "set/train/a/Thumbs.db": b"x"}
    found = read_examples(write_zip(tmp_path / "a.zip", files | junk | {"set/readme.md": b"hello"}), FRAMING)
    assert found.classes == ("a", "b")
    assert len(found.inputs) == 16
    assert found.aside == ("set/readme.md",)


def test_numbers_are_classes_in_their_own_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = {
        f"{kind}/{i}.png": encode(Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)))
        for kind in ("10", "9", "x", "1")
        for i in range(5)
    }
    assert read_examples(write_zip(tmp_path / "a.zip", files), FRAMING).classes == ("1", "9", "10", "x")


def test_equal_examples_count_once(tmp_path: Path) -> None:
    """The same picture in another format or size is the same input when the model sees the same pixels."""
    rng = np.random.default_rng(0)
    drawn = [Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)) for _ in range(10)]
    files = {f"{'ab'[i % 2]}/{i}.png": encode(picture) for i, picture in enumerate(drawn)}
    again = {f"{'ab'[i % 2]}/again{i}.bmp": encode(picture, "BMP") for i, picture in enumerate(drawn[:4])}
    found = read_examples(write_zip(tmp_path / "a.zip", files | again), FRAMING)
    assert (len(found.inputs), found.repeated) == (10, 4)
    assert len(set(found.inputs)) == 10


def test_texts_are_equal_whatever_their_case_and_spaces(tmp_path: Path) -> None:
    file = texts_csv(tmp_path / "a.csv", 8)
    rows = file.read_text().splitlines()
    file.write_text("\n".join([*rows, rows[1].upper().replace(" ", "  ").replace("FRUIT", "fruit")]))
    found = read_examples(file, None)
    assert (len(found.inputs), found.repeated, found.classes) == (24, 1, ("fruit", "night", "sea"))


@pytest.mark.parametrize("mark", [";", "\t"])
def test_other_tables(mark: str, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    rows = [f"n{mark}Category{mark}Sentence", *(f'{i}{mark}{"uv"[i % 2]}{mark}"a, {i}; b"' for i in range(12)), ""]
    file.write_text("\ufeff" + "\r\n".join(rows), encoding="utf-8")
    found = read_examples(file, None)
    assert found.classes == ("u", "v")
    assert found.inputs[3] == "a, 3; b"


def test_a_split_is_stratified_complete_and_fixed_by_its_seed() -> None:
    examples = examples_of((5, 17, 60))
    splits = split_examples(examples, 3)
    rows = [row for found in splits.values() for row in found]
    assert sorted(rows) == list(range(82)), "every example in one split"
    for label, wanted in enumerate([(2, 1, 2), (7, 3, 7), (24, 12, 24)]):
        counts = [
            sum(examples.labels[row] == label for row in splits[s]) for s in ("calibration", "validation", "test")
        ]
        assert tuple(counts) == wanted
    assert split_examples(examples, 3) == splits
    assert split_examples(examples, 4) != splits


def test_much_is_given_to_the_test() -> None:
    splits = split_examples(examples_of((1500, 1500)), 0)
    assert {split: len(rows) for split, rows in splits.items()} == {"calibration": 400, "validation": 400, "test": 2200}


def test_a_picture_is_upright_on_white_and_whole() -> None:
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    png, count = to_png(encode(clear), FRAMING, "x")
    assert count == 400
    assert (pixels(png) == 255).all(), "transparent is white"
    turned = Image.new("RGB", (20, 10), "black")
    turned.paste("white", (0, 0, 10, 10))  # the left half; turned by 90 degrees clockwise it is the upper half
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    turned.save(buffer, format="PNG", exif=exif)
    upright = pixels(to_png(buffer.getvalue(), FRAMING, "x")[0])
    assert upright[2].mean() > 250 > 5 > upright[13].mean()
    deep = Image.fromarray(np.full((8, 8), 200 << 8, dtype=np.uint16))
    assert (pixels(to_png(encode(deep), FRAMING, "x")[0]) == 200).all(), "16 bits are not cut off"


def test_framing_takes_the_middle_or_all() -> None:
    wide = Image.new("RGB", (48, 16), "black")
    wide.paste("white", (16, 0, 32, 16))
    assert pixels(to_png(encode(wide), Framing(16, crop=True), "x")[0]).mean() > 250
    assert 60 < pixels(to_png(encode(wide), Framing(16), "x")[0]).mean() < 110


def test_classes_have_names_for_prompts() -> None:
    examples = Examples("x.zip", ("red_car", "b-c", "0"), (b"",), (0,), ("",))
    assert class_names(examples, {}) == ("red car", "b c", "0")
    assert class_names(examples, {"0": "zero"}) == ("red car", "b c", "zero")
    digits = Examples("x.zip", ("1", "4"), (b"",), (0,), ("",))
    assert class_names(digits, {"4": "4"}) == ("digit one", "4")
    assert class_names(examples, {"b-c": "d"}, plain=True) == ("red_car", "d", "0"), "as they stand, where no prompt is"
    assert class_names(digits, {}, plain=True) == ("1", "4")
    for given, said in [({"x": "y"}, "no class 'x'"), ({"0": " "}, "no name"), ({"0": "b c"}, "two classes"),
                        ({"0": "n" * 101}, "no name"), ({"0": "a\x07"}, "no name")]:  # fmt: skip
        with pytest.raises(FwvizError, match=said):
            class_names(examples, given)
    for prompts in ((), ("no place",), ("{}",) * 17, ("{}" + "x" * 99,), ("{}\n",)):
        with pytest.raises(FwvizError, match="prompt"):
            check_prompts(prompts)


@pytest.mark.parametrize("name", BAD_ZIPS)
def test_bad_archives_are_refused_in_one_sentence_and_little_memory(name: str, tmp_path: Path) -> None:
    make, said = BAD_ZIPS[name]
    make(tmp_path / "bad.zip")
    before = sorted(tmp_path.iterdir())
    refused_in_little_memory(lambda: read_examples(tmp_path / "bad.zip", FRAMING), said)
    assert sorted(tmp_path.iterdir()) == before


def test_all_files_together_are_bounded_by_their_headers_and_while_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = shapes_zip(tmp_path / "a.zip", 6)
    monkeypatch.setattr(archive, "MAX_TOTAL", 1000)
    with pytest.raises(FwvizError, match="unpacks to 0 MiB, but may unpack to"):
        read_examples(file, FRAMING)
    monkeypatch.setattr(archive, "_look", unchecked(archive._look))
    with pytest.raises(FwvizError, match="unpacks to more than its header says"):
        read_examples(file, FRAMING)


def unchecked(look: Any) -> Any:
    """As if the headers had lied well enough to pass."""

    def passed(file: Any, title: str, bounds: archive.Bounds) -> Any:
        return look(file, title, replace(bounds, total=1 << 40))

    return passed


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables_are_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    make, said = BAD_TABLES[name]
    make(tmp_path / "bad.csv")
    with pytest.raises(FwvizError, match=said) as caught:
        read_examples(tmp_path / "bad.csv", None)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_no_file_and_no_pictures_for_a_pool_of_texts(tmp_path: Path) -> None:
    for framing in (FRAMING, None):
        with pytest.raises(FwvizError, match="cannot be read"):
            read_examples(tmp_path / "absent.zip", framing)
