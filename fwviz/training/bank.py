"""Render the image bank: glyph and icon masks, emoji, flags and clip-art, each with its name and its role.

Every row belongs to one *role* — ``train``, ``calibration``, ``validation`` or ``test`` — decided once, by font group
or by artist, before anything is trained. Pretraining and fine-tuning read ``train`` rows only, so no font and no
drawing of a calibration, validation or test image was ever seen.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fwviz.training.sources import Fetched, iconify

log = logging.getLogger(__name__)

SIDE = 48
"""Rows and columns of a bank image; training crops and shrinks it to 32."""

ROLES = ("train", "calibration", "validation", "test")

# Fonts drawn from one another count as one group, or a "new" font of the test split would be an old one renamed.
_GROUP_ALIASES = {
    "ipafont-gothic": "ipa", "ipafont-mincho": "ipa", "ipaexfont-gothic": "ipa", "ipaexfont-mincho": "ipa",
    "takao": "ipa", "komatuna": "ipa", "mona": "monapo", "monapo": "monapo",
    "mplus": "mplus", "m-plus-1p": "mplus", "m-plus-rounded-1c": "mplus", "migmix": "mplus", "umeplus": "mplus",
    "vlgothic": "mplus", "ricty-diminished": "mplus", "mmcedar": "motoya", "motoya-l-cedar": "motoya",
    "motoya-l-maruberi": "motoya", "kosugi-maru": "motoya", "morisawa-bizud-gothic": "biz",
    "morisawa-bizud-mincho": "biz", "biz-udgothic": "biz", "crosextra-carlito": "lato", "lmodern": "cmu",
    "noto-mono": "droid", "open-sans": "droid", "noto-core": "droid", "noto-extra": "droid",
    "averia-gwf": "averia", "averia-sans-gwf": "averia", "averia-serif-gwf": "averia",
    "dejavu-core": "dejavu", "dejavu-extra": "dejavu", "hack-ttf": "dejavu", "sil-doulos": "sil-charis",
    "campania": "sil-charis", "sil-gentiumplus": "sil-gentium", "roboto-slab": "roboto",
    "roboto-unhinted": "roboto", "heebo": "roboto", "sil-scheherazade": "scheherazade",
    "scheherazade-new": "scheherazade", "hosny-amiri": "amiri", "gfs-didot-classic": "gfs-didot",
    "yozvox-yozfont": "yozvox", "yozvox-yozfont-cute": "yozvox", "yozvox-yozfont-edu": "yozvox",
    "ubuntu-title": "ubuntu", "kristi": "kristi", "cabinsketch": "cabin", "cabin-sketch": "cabin",
    "comic-relief": "comic-neue", "lobstertwo": "lobster", "sil-galatia": "sil-galatia", "caveat-brush": "caveat",
    "league-mono": "league", "league-spartan": "league", "almarai": "almarai", "pt-serif": "paratype",
    "aref-ruqaa": "aref-ruqaa", "noto-sans-arabic": "noto sans arabic", "noto-sans-hebrew": "noto sans hebrew",
    "noto-kufi-arabic": "noto kufi arabic", "noto-naskh-arabic": "noto naskh arabic",
    "noto-nastaliq-urdu": "noto nastaliq urdu", "kouzan-mouhitsu": "aoyagi", "aoyagi-kouzan-t": "aoyagi",
    "aoyagi-soseki": "aoyagi", "symbola": "douros", "ancient-scripts": "douros", "alegreya-sans": "alegreya",
    "nanum-brush-script": "nanum-pen-script", "source-serif-4": "source-serif",
}  # fmt: skip

# These packages hold many unrelated families: the group is the family's own name.
_MANY_FAMILIES = {"aenigma", "noto-core", "noto-extra", "texgyre", "georgewilliams", "f500", "gfs"}

# A whole artist has one role: emoji artists draw the same thing alike across a set.
EMOJI_ROLES = {
    "noto": "train", "noto-v1": "train", "twemoji": "train", "fluent-emoji-flat": "train",
    "fluent-emoji-high-contrast": "train", "streamline-emojis": "train",
    "fxemoji": "calibration", "emojione": "validation", "emojione-monotone": "validation", "openmoji": "test",
}  # fmt: skip
FLAG_ROLES = {"flag-icons": "train", "cif": "calibration", "flagpack": "test"}
MONOCHROME = {
    "fluent-emoji-high-contrast", "emojione-monotone", "game-icons", "mdi", "tabler", "ph", "healthicons", "maki",
    "lucide", "fa6-solid",
}  # fmt: skip

# Blocks that tasks use are always rendered; of everything else a font may give this many code points.
OTHER_CODE_POINTS_PER_FONT = 120
_COMMON_BLOCKS = (
    (0x21, 0x7E), (0x391, 0x3C9), (0x410, 0x44F), (0x5D0, 0x5EA), (0x621, 0x64A), (0x660, 0x669), (0x6F0, 0x6F9),
    (0x966, 0x96F), (0x9E6, 0x9EF), (0xA66, 0xA6F), (0xAE6, 0xAEF), (0xB66, 0xB6F), (0xBE6, 0xBEF), (0xC66, 0xC6F),
    (0xCE6, 0xCEF), (0xD66, 0xD6F), (0xE50, 0xE59), (0x10D0, 0x10F0), (0x3041, 0x3093), (0x30A1, 0x30F6),
    (0x2190, 0x21FF), (0x2200, 0x22FF), (0x2460, 0x2473), (0x25A0, 0x25FF), (0x2600, 0x266F), (0x531, 0x586),
)  # fmt: skip
_SKIPPED_BLOCKS = (
    (0x1100, 0x11FF), (0x2E80, 0x2FFF), (0x3130, 0x318F), (0x3200, 0x9FFF), (0xA000, 0xA4CF), (0xA500, 0xA63F),
    (0xAC00, 0xD7FF), (0xE000, 0xFB4F), (0xFB50, 0xFDFF), (0xFE70, 0xFFFF), (0x10000, 0x1F2FF), (0x20000, 0x10FFFF),
    (0x1200, 0x139F), (0x1400, 0x167F), (0x2800, 0x28FF), (0x1D400, 0x1D7FF),
)  # fmt: skip


@dataclass(frozen=True)
class Bank:
    """The rendered bank.

    Attributes:
        masks: (N, 48, 48) uint8, ink of glyphs and one-colour icons.
        mask_rows: one dict per mask: kind, source, name, role, code_point (-1 for icons).
        pictures: (M, 48, 48, 4) uint8, RGBA with straight alpha.
        picture_rows: one dict per picture: kind, source, name, role.
    """

    masks: np.ndarray
    mask_rows: pa.Table
    pictures: np.ndarray
    picture_rows: pa.Table


def build_bank(fetched: Iterable[Fetched], folder: Path, seed: int, workers: int = 2) -> Bank:
    """Render everything the packages hold, or load what an earlier call left in ``folder``."""
    if not (folder / "pictures.parquet").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        found = list(fetched)
        warnings.filterwarnings("ignore")
        with ProcessPoolExecutor(workers) as pool:
            masks, mask_rows, pictures, picture_rows = [], [], [], []
            glyph_jobs = _glyph_jobs(found, seed)
            for images, rows in pool.map(_render_font, glyph_jobs, chunksize=8):
                masks.extend(images)
                mask_rows.extend(rows)
            log.info("bank: %d glyphs of %d fonts", len(masks), len(glyph_jobs))
            for image, row in pool.map(_render_svg, list(_svg_jobs(found)), chunksize=64):
                if image is None:
                    continue
                if row["source"] in MONOCHROME:
                    masks.append(image[..., 3])
                    mask_rows.append({**row, "code_point": -1})
                else:
                    pictures.append(image)
                    picture_rows.append(row)
            for image, row in pool.map(_render_png, list(_clipart_jobs(found)), chunksize=32):
                if image is not None:
                    pictures.append(image)
                    picture_rows.append(row)
        np.save(folder / "masks.npy", np.stack(masks))
        np.save(folder / "pictures.npy", np.stack(pictures))
        pq.write_table(pa.Table.from_pylist(mask_rows), folder / "masks.parquet")
        pq.write_table(pa.Table.from_pylist(picture_rows), folder / "pictures.parquet")
    return Bank(
        masks=np.load(folder / "masks.npy", mmap_mode="r"),
        mask_rows=pq.read_table(folder / "masks.parquet"),
        pictures=np.load(folder / "pictures.npy", mmap_mode="r"),
        picture_rows=pq.read_table(folder / "pictures.parquet"),
    )


# --- glyphs ---------------------------------------------------------------------------------------------------------


def _glyph_jobs(found: list[Fetched], seed: int) -> list[tuple[str, str, str, int]]:
    """List (font file, group, role, seed) with at most four files of a family; roles are dealt per script."""
    files: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for package in found:
        if package.package.used_for != "glyphs":
            continue
        for path in sorted(package.folder.rglob("*")):
            if path.suffix.lower() in (".ttf", ".otf", ".ttc", ".woff", ".pfb") and path.is_file():
                short = re.sub(r"^(fonts-|@fontsource/)", "", package.package.name)
                if path.suffix == ".woff" and not re.search(r"-(400|700)-normal\.woff$", path.name):
                    continue
                if "Nerd" in path.name or "UI-" in path.name:
                    continue
                files[short].append((str(path), _family(path)))
    by_group: dict[str, list[str]] = defaultdict(list)
    for short, members in files.items():
        per_family: dict[str, list[str]] = defaultdict(list)
        for file, family in members:
            group = family if short in _MANY_FAMILIES else _GROUP_ALIASES.get(short, short)
            per_family[group].append(file)
        for group, paths in per_family.items():
            limit = 12 if paths[0].endswith(".woff") else 4
            step = max(1, len(paths) // limit)
            by_group[group].extend(paths[::step][:limit])
    strata: dict[str, list[str]] = defaultdict(list)
    for group, paths in sorted(by_group.items()):
        strata[_main_script(paths)].append(group)
    rng = np.random.default_rng(seed)
    dealt = font_roles()
    jobs = []
    for script, groups in sorted(strata.items()):
        # A new group is dealt: of every ten of a script five train, three test, one validates and one calibrates.
        deal = ["train", "test", "train", "validation", "train", "test", "train", "calibration", "train", "test"]
        new = [group for group in groups if group not in dealt]
        for rank, index in enumerate(rng.permutation(len(new))):
            dealt[new[index]] = deal[rank % len(deal)]
        jobs += [(path, group, dealt[group], seed) for group in groups for path in by_group[group]]
        log.info("bank: script %s has %d font groups, %d of them new", script, len(groups), len(new))
    return jobs


def font_roles() -> dict[str, str]:
    """Role of every font group as dealt once; kept in a file so that no font ever wanders into another split."""
    with (Path(__file__).parent / "font_roles.csv").open(encoding="utf-8", newline="") as file:
        return {row["group"]: row["role"] for row in csv.DictReader(file)}


def _family(path: Path) -> str:
    """Family name of a font file with its style words dropped."""
    stem = re.split(r"[-_]", path.stem)[0]
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem)
    words = re.sub(r"(Bold|Italic|Oblique|Regular|Light|Medium|Black|BRK|Outline|Condensed)", "", words)
    return re.sub(r"\s+", " ", words).strip().lower()


def _code_points(path: str) -> list[int]:
    from fontTools.ttLib import TTFont

    try:
        with TTFont(path, lazy=True, fontNumber=0) as font:
            return sorted(font.getBestCmap() or {})
    except Exception:  # a broken or bitmap-only font costs one font, not the bank
        return []


def _main_script(paths: list[str]) -> str:
    points = set().union(*(_code_points(path) for path in paths))
    marks = (("kana", 0x3042), ("arabic", 0x628), ("hebrew", 0x5D0), ("greek", 0x3B2), ("cyrillic", 0x434))
    named = [name for name, mark in marks if mark in points]
    return named[0] if named else ("latin" if 0x61 in points else "other")


def _wanted(code_point: int) -> bool:
    if any(low <= code_point <= high for low, high in _SKIPPED_BLOCKS):
        return False
    character = chr(code_point)
    if unicodedata.category(character)[0] not in "LNSP":
        return False
    name = unicodedata.name(character, "")
    return bool(name) and len(name.split()) <= 9


def in_common_use(code_point: int) -> bool:
    """Whether a code point belongs to a block that is always rendered in full."""
    return any(low <= code_point <= high for low, high in _COMMON_BLOCKS)


def _render_font(job: tuple[str, str, str, int]) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """Render a font's glyphs so that its larger letters span about 34 of 48 pixels."""
    from PIL import ImageFont

    path, group, role, seed = job
    points = [point for point in _code_points(path) if _wanted(point)]
    if re.search(r"Noto(?!Sans-|Serif-|SansMono|SansDisplay|SerifDisplay)", Path(path).name):
        # Noto's script fonts borrow Latin letters and digits from one another: only their own script counts.
        points = [point for point in points if point >= 0x590]
    rng = np.random.default_rng([seed, len(points), sum(map(ord, Path(path).name))])
    inside = [point for point in points if in_common_use(point)]
    outside = [point for point in points if not in_common_use(point)]
    if len(outside) > OTHER_CODE_POINTS_PER_FONT:
        outside = sorted(rng.choice(outside, OTHER_CODE_POINTS_PER_FONT, replace=False).tolist())
    try:
        font = ImageFont.truetype(path, 48)
        spans = [_span(font.getbbox(chr(point))) for point in (inside or outside)[:80]]
    except Exception:
        return [], []
    spans = [span for span in spans if span > 0]
    if not spans:
        return [], []
    size = int(np.clip(48 * 34 / np.percentile(spans, 75), 12, 120))
    font = ImageFont.truetype(path, size)
    images, rows = [], []
    for point in inside + outside:
        try:
            image = _glyph(font, chr(point))
        except Exception:
            continue
        if image is not None:
            images.append(image)
            name = unicodedata.name(chr(point)).lower()
            rows.append({"kind": "glyph", "source": group, "name": name, "role": role, "code_point": point})
    return images, rows


def _span(box: tuple[float, float, float, float]) -> float:
    return max(box[2] - box[0], box[3] - box[1])


def _glyph(font: Any, character: str) -> np.ndarray | None:
    from PIL import Image, ImageDraw

    box = font.getbbox(character)
    width, height = int(box[2] - box[0]), int(box[3] - box[1])
    if width < 1 or height < 1 or max(width, height) > 400:
        return None
    image = Image.new("L", (width + 2, height + 2))
    ImageDraw.Draw(image).text((1 - box[0], 1 - box[1]), character, fill=255, font=font)
    if max(image.size) > SIDE - 4:
        scale = (SIDE - 4) / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BILINEAR)
    canvas = Image.new("L", (SIDE, SIDE))
    canvas.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    pixels = np.asarray(canvas)
    return pixels if pixels.max() > 60 else None


# --- drawings -------------------------------------------------------------------------------------------------------


def _svg_jobs(found: list[Fetched]) -> Iterator[tuple[str, dict[str, Any]]]:
    for package in found:
        short = package.package.name.removeprefix("@iconify-json/")
        if short == "flag-icons":
            yield from _flag_icons(package)
        elif package.package.name.startswith("@iconify-json/"):
            kind = {"emoji": "emoji", "flags": "flag", "icons": "icon"}[package.package.used_for]
            roles = {"emoji": EMOJI_ROLES, "flag": FLAG_ROLES, "icon": {}}[kind]
            countries = _countries(found) if kind == "flag" else {}
            for name, document in sorted(iconify(package).items()):
                if "skin-tone" in name or re.search(r"-(thin|light|bold|duotone|16|20|24|medium|dark)$", name):
                    continue
                if kind == "flag":
                    code = name.removesuffix("-4x3").removesuffix("-1x1")
                    if code not in countries:
                        continue
                    words = "flag of " + countries[code]
                else:
                    words = re.sub(r"[-_]+", " ", name).strip().lower()
                yield document, {"kind": kind, "source": short, "name": words, "role": roles.get(short, "train")}


def _countries(found: list[Fetched]) -> dict[str, str]:
    """ISO 3166 code → country, as flag-icons lists them."""
    package = next(item for item in found if item.package.name == "flag-icons")
    listed = json.loads((package.folder / "package" / "country.json").read_text())
    return {entry["code"].lower(): entry["name"].lower() for entry in listed}


def _flag_icons(package: Fetched) -> Iterator[tuple[str, dict[str, Any]]]:
    for code, country in sorted(_countries([package]).items()):
        path = package.folder / "package" / "flags" / "4x3" / f"{code}.svg"
        if path.is_file():
            row = {"kind": "flag", "source": "flag-icons", "name": f"flag of {country}", "role": "train"}
            yield path.read_text(), row


def _render_svg(job: tuple[str, dict[str, Any]]) -> tuple[np.ndarray | None, dict[str, Any]]:
    import cairosvg
    from PIL import Image

    document, row = job
    try:
        png = cairosvg.svg2png(bytestring=document.encode(), output_width=SIDE - 4)
        return _centred(Image.open(io.BytesIO(png)).convert("RGBA")), row
    except Exception:  # a drawing that cairo cannot render is left out
        return None, row


def _clipart_jobs(found: list[Fetched]) -> Iterator[tuple[str, dict[str, Any]]]:
    package = next(item for item in found if item.package.name == "openclipart-png")
    for path in sorted(package.folder.rglob("*.png")):
        title = re.sub(r"[^a-z ]+", " ", path.stem.lower().replace("_", " "))
        words = [word for word in title.split() if len(word) > 2][:6]
        if not words:
            continue
        folder = path.parent.name.replace("_", " ")
        name = " ".join(words) if folder in ("unsorted", "special", "png") else " ".join(words) + ", " + folder
        yield str(path), {"kind": "clipart", "source": "openclipart", "name": name, "role": "train"}


def _render_png(job: tuple[str, dict[str, Any]]) -> tuple[np.ndarray | None, dict[str, Any]]:
    from PIL import Image

    path, row = job
    try:
        with Image.open(path) as image:
            if image.width * image.height > 9_000_000:
                return None, row
            return _centred(image.convert("RGBA")), row
    except Exception:
        return None, row


def _centred(image: Any) -> np.ndarray | None:
    from PIL import Image

    if image.getbbox() is None:
        return None
    image.thumbnail((SIDE - 4, SIDE - 4), Image.Resampling.BILINEAR, reducing_gap=2.0)
    canvas = Image.new("RGBA", (SIDE, SIDE))
    canvas.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    pixels = np.asarray(canvas)
    return pixels if pixels[..., 3].max() > 60 else None
