"""Captions and the small vocabulary: how a name becomes a sentence, and a BPE tokenizer in CLIP's own format."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

MAX_TOKENS = 24
VOCABULARY = 3000
# CLIP maps unknown signs to the end token, which would cut a typed class name short at its first comma.
START, END, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<|unknown|>"

TEMPLATES = {
    "glyph": ("{}", "the {}", "a picture of the {}", "a glyph of the {}", "the character {}", "a {} on a background"),
    "icon": ("{}", "an icon of {}", "a symbol for {}", "a pictogram of a {}", "a picture of a {}"),
    "emoji": ("{}", "an emoji of {}", "a drawing of a {}", "a picture of a {}", "a small picture of {}"),
    "flag": ("{}", "the {}", "a picture of the {}", "a drawing of the {}"),
    "clipart": ("{}", "a drawing of {}", "clip art of {}", "a picture of {}"),
}


def plain(text: str) -> str:
    """Lower case, no accents, only letters, digits and single spaces: what the tokenizer's vocabulary was made for."""
    stripped = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", " ", stripped).strip()


def caption(name: str, kind: str, rng: np.random.Generator) -> str:
    """Put a name into one of its kind's sentences.

    Official Unicode names say "hiragana letter ka"; people say "the letter ka of hiragana". One time in four the
    second word order is used, so that class names may be typed either way.
    """
    templates = TEMPLATES[kind]
    text = plain(name)
    if kind == "glyph" and rng.random() < 0.25:
        text = re.sub(r"^(\w+(?: (?:small|capital))?) letter (.+)$", _of_script, text)
    return templates[int(rng.integers(len(templates)))].format(text)


def _of_script(found: re.Match[str]) -> str:
    script, _, case = found[1].partition(" ")
    return f"{case + ' ' if case else ''}letter {found[2]} of {script}"


def train_tokenizer(texts: Iterable[str], folder: Path) -> Any:
    """Learn a byte-pair vocabulary on the captions and save it so that ``AutoTokenizer`` loads it offline.

    Returns:
        The loaded ``CLIPTokenizer``.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=UNKNOWN))
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # CLIP's own pre-tokenizer cuts numbers into single digits and maps bytes to letters; on plain() text, which has
    # only a-z, digits and spaces, splitting off each digit makes this learner cut exactly as CLIPTokenizer will.
    split_digits = pre_tokenizers.Digits(individual_digits=True)
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), split_digits])
    alphabet = list("abcdefghijklmnopqrstuvwxyz0123456789")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 3, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
    )
    learner.train_from_iterator((plain(text) for text in texts), trainer)
    state = json.loads(learner.to_str())["model"]
    vocabulary: dict[str, int] = dict(state["vocab"])
    for extra in [letter + "</w>" for letter in alphabet] + [UNKNOWN, START, END]:
        vocabulary.setdefault(extra, len(vocabulary))
    merges = [tuple(pair) if not isinstance(pair, str) else tuple(pair.split(" ")) for pair in state["merges"]]
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, unk_token=UNKNOWN, model_max_length=MAX_TOKENS)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    return tokenizer
