"""Models that read a prompt and write the answer (T5, Flan-T5, T0), merged whole; answers stand in words, so no heads.

The loss of a sample is −ln p of the right answer under teacher forcing, the mean over its tokens. Raffel et al. (2020).
"""

from __future__ import annotations

from functools import partial

from fwviz.backbones._words import open_words_checkpoint, read_words, read_words_facts, read_words_tokenise
from fwviz.backbones.family import Family

FAMILY = Family(
    inputs="texts",
    read=partial(read_words, kind="seq2seq"),
    facts=read_words_facts,
    checkpoint=open_words_checkpoint,
    tokenise=partial(read_words_tokenise, kind="seq2seq"),
    heads="words",
)
