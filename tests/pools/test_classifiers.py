"""What the outputs of a checkpoint's classifier are called, and by whom."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fwviz.pools.classifiers import choose_readers, read_reader
from fwviz.types import FwvizError


def folder_with(place: Path, names: tuple[str, ...], classes: int, adapter: bool) -> Path:
    """A RoBERTa's classification head, of a whole checkpoint or beside an adapter."""
    place.mkdir()
    tensors = {
        "classifier.dense.weight": torch.zeros(4, 4), "classifier.dense.bias": torch.zeros(4),
        "classifier.out_proj.weight": torch.zeros(classes, 4), "classifier.out_proj.bias": torch.zeros(classes),
    }  # fmt: skip
    front = "base_model.model." if adapter else ""
    save_file({front + n: t for n, t in tensors.items()}, place / f"{'adapter_' if adapter else ''}model.safetensors")
    if adapter:
        (place / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    if names:
        (place / "config.json").write_text(json.dumps({"id2label": {str(i): name for i, name in enumerate(names)}}))
    return place


def test_an_adapter_calls_its_outputs_as_its_base_does(tmp_path: Path) -> None:
    base = folder_with(tmp_path / "base", ("negative", "neutral", "positive"), 3, adapter=False)
    adapter = read_reader("a", folder_with(tmp_path / "a", (), 3, adapter=True), base)
    assert adapter is not None
    assert adapter.said == "negative, neutral, positive"
    assert adapter.classes(("Positive", "NEUTRAL", "negative")) == ("Positive", "NEUTRAL", "negative")
    assert adapter.classes(("0", "1", "2")) == ("negative", "neutral", "positive")
    assert adapter.classes(("good", "bad", "neutral")) == ()
    # Its own names count more, and a base of another number of classes, or without names of its own, says nothing.
    own = read_reader("b", folder_with(tmp_path / "b", ("x", "y", "z"), 3, adapter=True), base)
    other = read_reader("c", folder_with(tmp_path / "c", (), 2, adapter=True), base)
    plain = folder_with(tmp_path / "plain", ("LABEL_0", "LABEL_1"), 2, adapter=False)
    unnamed = read_reader("d", folder_with(tmp_path / "d", (), 2, adapter=True), plain)
    assert own is not None
    assert own.names == ("x", "y", "z")
    for reader in (other, unnamed):
        assert reader is not None
        assert reader.names == ()
        assert reader.said == "2 classes without names"
        with pytest.raises(FwvizError, match=r"labels bad, good .*2 classes without names.*0, 1, … in its order"):
            choose_readers([reader], ("bad", "good"))
    # A whole checkpoint says what it answers itself, or not at all.
    whole = read_reader("e", folder_with(tmp_path / "e", (), 3, adapter=False), base)
    assert whole is not None
    assert whole.names == ()
