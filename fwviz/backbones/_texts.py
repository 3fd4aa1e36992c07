"""Texts on their way into a model: class names in prompts, and a ``tokenizer.json`` that may be damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from fwviz.types import FwvizError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Text = str | tuple[str, str]  # or a pair of texts

_MAX_TOKENIZER = 64 << 20  # bytes
WHOLE = 1 << 20  # tokens: no cut


def class_texts(classes: Sequence[str], prompts: Sequence[str]) -> list[str]:
    """Every class name in every prompt, class by class; FwvizError if a prompt has no ``{}`` or there is none."""
    for prompt in prompts:
        if "{}" not in prompt:
            raise FwvizError(f"the prompt {prompt!r} has no {{}} where the class name goes: add it.")
    if not classes or not prompts:
        raise FwvizError("a head needs at least one class and one prompt.")
    # Not str.format: a prompt is data and may hold other braces.
    return [prompt.replace("{}", name) for name in classes for prompt in prompts]


def read_tokenizer(path: Path, longest: int, side: Literal["left", "right"] = "right") -> Tokenizer:
    """The tokenizer, without padding, that cuts texts at ``longest`` tokens, from their end or from the ``left``.

    Raises FwvizError if the file is none.
    """
    from tokenizers import Tokenizer

    try:
        if path.stat().st_size > _MAX_TOKENIZER:
            raise FwvizError(f"{path} is larger than {_MAX_TOKENIZER >> 20} MiB: that is no tokenizer.")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise FwvizError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise FwvizError(f"{path} is no text: save the tokenizer again.") from None
    try:
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length=longest, direction=side)
    except Exception:  # the library raises plain Exceptions
        raise FwvizError(f"{path} is no valid tokenizer file: save the tokenizer again.") from None
    return tokenizer


def count_longer(path: Path, texts: Sequence[str], longest: int, *, special: bool = True) -> int:
    """How many texts have more than ``longest`` tokens, with or without those a model expects around a text.

    Raises FwvizError if ``path`` is no tokenizer.
    """
    whole = read_tokenizer(path, WHOLE)
    return sum(len(e.ids) > longest for e in whole.encode_batch(list(texts), add_special_tokens=special))


def encode(tokenizer: Tokenizer, texts: Sequence[Text], vocabulary: int) -> list[list[int]]:
    """Token ids of each text; FwvizError if one is empty or beyond the model's vocabulary."""
    return [ids for ids, _ in encode_typed(tokenizer, texts, vocabulary)]


def encode_typed(
    tokenizer: Tokenizer, texts: Sequence[Text], vocabulary: int, *, special: bool = True
) -> list[tuple[list[int], list[int]]]:
    """Token ids of each text or pair, and for every token which text of the pair it is of.

    ``special`` adds the tokens a model expects around a text. Raises FwvizError if a text has no tokens or one beyond
    the model's vocabulary.
    """
    encoded = [(e.ids, e.type_ids) for e in tokenizer.encode_batch(list(texts), add_special_tokens=special)]
    for text, (ids, _) in zip(texts, encoded, strict=True):
        if not ids or max(ids) >= vocabulary:
            start = (text if isinstance(text, str) else text[0])[:40]
            raise FwvizError(
                f"the tokenizer does not fit the model of {vocabulary} tokens: {start!r} became {ids[:8]}."
            )
    return encoded


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Token ids as one matrix (N, T) int32, −1 behind the end of each row."""
    tokens = torch.full((len(rows), max(map(len, rows), default=0)), -1, dtype=torch.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids, dtype=torch.int32)
    return tokens
