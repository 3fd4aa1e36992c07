"""The families of models by the name a pool card gives them: one file each."""

from __future__ import annotations

from fwviz.backbones import causal_lm, clip_vision, sentence_encoder, seq2seq, sequence_classifier
from fwviz.backbones.family import Family

FAMILIES: dict[str, Family] = {
    "clip_vision": clip_vision.FAMILY,
    "sentence_encoder": sentence_encoder.FAMILY,
    "sequence_classifier": sequence_classifier.FAMILY,
    "seq2seq": seq2seq.FAMILY,
    "causal_lm": causal_lm.FAMILY,
}
