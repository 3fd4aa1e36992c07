"""Models that continue a text (GPT-2, LLaMA), merged whole or by adapters; the answer is what follows the prompt.

The loss of a sample is −ln p of the right continuation, the mean over its tokens; the prompt's own are not counted.
"""

from __future__ import annotations

from functools import partial

from fwviz.backbones._words import PREFIXES, open_words_checkpoint, read_words, read_words_facts, read_words_tokenise
from fwviz.backbones.family import Family

FAMILY = Family(
    inputs="texts",
    read=partial(read_words, kind="causal"),
    facts=read_words_facts,
    checkpoint=open_words_checkpoint,
    tokenise=partial(read_words_tokenise, kind="causal"),
    heads="words",
    prefixes=PREFIXES,
)
