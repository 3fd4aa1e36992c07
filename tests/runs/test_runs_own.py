"""What is said of examples that a model does not read whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from fwviz.cards import PoolCard
from fwviz.runs.own import _cut
from tests import tiny_words_pool


@pytest.mark.parametrize(("family", "end"), [("causal_lm", "beginning"), ("seq2seq", "end")])
def test_prompts_and_answers_that_are_cut_are_counted(family: str, end: str, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    tiny_words_pool.write_tokenizer(tmp_path / "base")
    base = {"path": "base", "tokens": 6, "answer_tokens": 3}
    card = PoolCard(tmp_path, "x", "x", "", family, base, (), (), (), (), (), ())
    texts = ["the " * count for count in (5, 6, 7)]
    assert _cut(card, texts[:2], ("bad", "good bad")) == ""
    assert _cut(card, texts, ("bad", "good")) == (
        f" 1 of them is longer than the 6 tokens that are read of a text: the {end} is cut off."
    )
    # Of three tokens of an answer the last is the mark of its end.
    assert _cut(card, texts[:1], ("bad", "good bad good", "bad " * 9)) == (
        " 2 classes have names of more than 2 tokens, of which the first 2 are compared."
    )
    assert _cut(card, [*texts, texts[2]], ("good bad good", "bad")) == (
        f" 2 of them are longer than the 6 tokens that are read of a text: the {end} is cut off. "
        "1 class has a name of more than 2 tokens, of which the first 2 are compared."
    )
