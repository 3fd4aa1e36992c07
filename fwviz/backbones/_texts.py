"""Texts on their way into a model: class names in prompts, and a ``tokenizer.json`` that may be damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fwviz.types import FwvizError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MAX_TOKENIZER = 64 << 20  # bytes


def class_texts(classes: Sequence[str], prompts: Sequence[str]) -> list[str]:
    """Every class name in every prompt, class by class; FwvizError if a prompt has no ``{}`` or there is none."""
    for prompt in prompts:
        if "{}" not in prompt:
            raise FwvizError(f"the prompt {prompt!r} has no {{}} where the class name goes: add it.")
    if not classes or not prompts:
        raise FwvizError("a head needs at least one class and one prompt.")
    # Not str.format: a prompt is data and may hold other braces.
    return [prompt.replace("{}", name) for name in classes for prompt in prompts]


def read_tokenizer(path: Path, longest: int) -> Tokenizer:
    """The tokenizer, without padding, that cuts texts at ``longest`` tokens; FwvizError if the file is none."""
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
        tokenizer.enable_truncation(max_length=longest)
    except Exception:  # the library raises plain Exceptions
        raise FwvizError(f"{path} is no valid tokenizer file: save the tokenizer again.") from None
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str], vocabulary: int) -> list[list[int]]:
    """Token ids of each text; FwvizError if one is empty or beyond the model's vocabulary."""
    encoded: list[list[int]] = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    for text, ids in zip(texts, encoded, strict=True):
        if not ids or max(ids) >= vocabulary:
            raise FwvizError(
                f"the tokenizer does not fit the model of {vocabulary} tokens: {text[:40]!r} became {ids[:8]}."
            )
    return encoded
