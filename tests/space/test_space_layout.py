"""Layouts: the order of tensors, what is excluded, and the way to a flat vector and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fwviz.space.layout import WEIGHT_TYPES, build_layout, flatten, layer_of, unflatten, weight_type
from fwviz.types import GRANULARITIES, FwvizError

NAMES = {
    # HF CLIP
    "vision_model.embeddings.patch_embedding.weight": "stem",
    "vision_model.embeddings.class_embedding": "stem",
    "vision_model.pre_layrnorm.weight": "stem",
    "vision_model.encoder.layers.11.self_attn.q_proj.weight": "block.11",
    "vision_model.encoder.layers.2.layer_norm1.bias": "block.2",
    "vision_model.post_layernorm.weight": "head",
    "visual_projection.weight": "head",
    "logit_scale": "head",
    "text_model.embeddings.token_embedding.weight": "text.stem",
    "text_model.encoder.layers.0.mlp.fc1.weight": "text.block.0",
    "text_projection.weight": "text.head",
    # ViT, BERT, RoBERTa
    "vit.encoder.layer.3.attention.attention.key.bias": "block.3",
    "roberta.embeddings.word_embeddings.weight": "stem",
    "roberta.embeddings.LayerNorm.weight": "stem",
    "roberta.encoder.layer.10.output.dense.weight": "block.10",
    "classifier.dense.weight": "head",
    "lm_head.decoder.weight": "head",
    # T5 nests layers in blocks
    "shared.weight": "stem",
    "encoder.block.0.layer.1.DenseReluDense.wi.weight": "block.0",
    "encoder.final_layer_norm.weight": "head",
    "decoder.block.5.layer.2.layer_norm.weight": "decoder.block.5",
    "decoder.final_layer_norm.weight": "decoder.head",
    # LLaMA, GPT-2
    "model.embed_tokens.weight": "stem",
    "model.layers.31.mlp.down_proj.weight": "block.31",
    "model.norm.weight": "head",
    "lm_head.weight": "head",
    "transformer.wte.weight": "stem",
    "transformer.h.7.attn.c_attn.weight": "block.7",
    "transformer.ln_f.bias": "head",
    # open_clip
    "visual.conv1.weight": "stem",
    "visual.class_embedding": "stem",
    "visual.ln_pre.weight": "stem",
    "visual.transformer.resblocks.4.attn.in_proj_weight": "block.4",
    "visual.ln_post.bias": "head",
    "visual.proj": "head",
    "transformer.resblocks.4.mlp.c_fc.weight": "text.block.4",
    "token_embedding.weight": "text.stem",
    "positional_embedding": "text.stem",
    "ln_final.weight": "text.head",
    "text_projection": "text.head",
    # ResNet
    "conv1.weight": "stem",
    "layer3.0.conv1.weight": "block.3",
    "fc.weight": "head",
}


@pytest.mark.parametrize(("name", "layer"), NAMES.items())
def test_layer_of_knows_the_families(name: str, layer: str) -> None:
    assert layer_of(name) == layer


TYPES = {
    "vision_model.embeddings.patch_embedding.weight": "embedding",
    "vision_model.embeddings.class_embedding": "embedding",
    "vision_model.pre_layrnorm.weight": "norm",
    "vision_model.encoder.layers.11.self_attn.q_proj.weight": "query",
    "vision_model.encoder.layers.11.self_attn.k_proj.bias": "key",
    "vision_model.encoder.layers.11.self_attn.v_proj.weight": "value",
    "vision_model.encoder.layers.11.self_attn.out_proj.weight": "output",
    "vision_model.encoder.layers.2.layer_norm1.bias": "norm",
    "vision_model.encoder.layers.2.mlp.fc1.weight": "mlp",
    "visual_projection.weight": "projection",
    "logit_scale": "other",
    "vit.embeddings.cls_token": "embedding",
    "vit.encoder.layer.3.attention.attention.key.bias": "key",
    "vit.encoder.layer.3.attention.output.dense.weight": "output",
    "vit.encoder.layer.3.intermediate.dense.weight": "mlp",
    "vit.encoder.layer.3.output.dense.weight": "mlp",
    "vit.encoder.layer.3.layernorm_before.weight": "norm",
    "roberta.embeddings.word_embeddings.weight": "embedding",
    "roberta.embeddings.LayerNorm.weight": "norm",
    "roberta.encoder.layer.10.attention.self.value.weight": "value",
    "roberta.encoder.layer.10.attention.output.dense.weight": "output",
    "roberta.encoder.layer.10.attention.output.LayerNorm.weight": "norm",
    "classifier.dense.weight": "projection",
    "shared.weight": "embedding",
    "encoder.block.0.layer.0.SelfAttention.q.weight": "query",
    "encoder.block.0.layer.0.SelfAttention.o.weight": "output",
    "decoder.block.0.layer.1.EncDecAttention.v.weight": "value",
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": "embedding",
    "encoder.block.0.layer.1.DenseReluDense.wi.weight": "mlp",
    "encoder.block.0.layer.1.layer_norm.weight": "norm",
    "model.embed_tokens.weight": "embedding",
    "model.layers.31.self_attn.o_proj.weight": "output",
    "model.layers.31.self_attn.q_norm.weight": "norm",
    "model.layers.31.self_attn.q_proj.lora_A.weight": "query",
    "model.layers.31.mlp.gate_proj.weight": "mlp",
    "model.layers.31.input_layernorm.weight": "norm",
    "model.norm.weight": "norm",
    "lm_head.weight": "projection",
    "transformer.wte.weight": "embedding",
    "transformer.h.7.attn.c_attn.weight": "qkv",
    "transformer.h.7.attn.c_proj.weight": "output",
    "transformer.h.7.mlp.c_proj.weight": "mlp",
    "transformer.h.7.ln_1.weight": "norm",
    "visual.conv1.weight": "embedding",
    "visual.transformer.resblocks.4.attn.in_proj_weight": "qkv",
    "visual.transformer.resblocks.4.attn.out_proj.weight": "output",
    "visual.transformer.resblocks.4.mlp.c_fc.weight": "mlp",
    "visual.proj": "projection",
    "positional_embedding": "embedding",
    "ln_final.weight": "norm",
    "blocks.3.attn.qkv.weight": "qkv",
    "blocks.3.attn.proj.weight": "output",
    "layer3.0.bn1.weight": "norm",
    "layer3.0.conv1.weight": "other",
    "fc.weight": "projection",
}


@pytest.mark.parametrize(("name", "kind"), TYPES.items())
def test_weight_type_knows_the_families(name: str, kind: str) -> None:
    assert kind in WEIGHT_TYPES
    assert weight_type(name) == kind


def test_tensors_are_ordered_by_layer_then_naturally() -> None:
    blocks = [f"vision_model.encoder.layers.{i}.mlp.fc1.weight" for i in (10, 2, 0, 1)]
    names = ["visual_projection.weight", *blocks, "vision_model.embeddings.class_embedding"]
    layout = build_layout(dict.fromkeys(names, (2,)))
    assert layout.layers == ("stem", "block.0", "block.1", "block.2", "block.10", "head")
    assert layout.groups("layer").names == layout.layers
    assert layout.offsets == (0, 2, 4, 6, 8, 10, 12)


def test_towers_follow_one_another_and_the_common_head_is_last() -> None:
    decoder = ("decoder.block.0.w", "decoder.final_layer_norm.w")
    names = ("lm_head.weight", *decoder, "shared.weight", "encoder.block.1.w")
    layers = ("stem", "block.1", "decoder.block.0", "decoder.head", "head")
    assert build_layout(dict.fromkeys(names, (1,))).layers == layers


def test_everything_left_out_has_a_reason() -> None:
    shapes = {
        "vision_model.encoder.layers.0.w": (3, 2),
        "vision_model.embeddings.position_ids": (1, 5),
        "vision_model.head.weight": (2,),
        "vision_model.empty": (0, 4),
        "text_model.w": (2,),
    }
    layout = build_layout(shapes, include=("vision_model.",), exclude=("vision_model.head",))
    assert layout.names == ("vision_model.encoder.layers.0.w",)
    assert layout.size == 6
    assert layout.excluded == {
        "vision_model.embeddings.position_ids": "an index buffer, not a weight",
        "vision_model.head.weight": "excluded by 'vision_model.head'",
        "vision_model.empty": "empty",
        "text_model.w": "outside the merged part (vision_model.)",
    }


def test_a_prefix_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(FwvizError, match=r"'visionmodel\.'.*first tensor is 'vision_model\.w'"):
        build_layout({"vision_model.w": (1,)}, include=("visionmodel.",))
    with pytest.raises(FwvizError, match="no tensor of the model is left"):
        build_layout({"vision_model.w": (1,)}, exclude=("vision_model",))


@given(
    st.dictionaries(
        st.sampled_from(sorted(NAMES)), st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=12
    )
)
def test_groups_partition_the_vector_and_flatten_inverts_unflatten(shapes: dict[str, tuple[int, ...]]) -> None:
    layout = build_layout(shapes)
    for granularity in GRANULARITIES:
        groups = layout.groups(granularity)
        covered = [j for start, stop in groups.ranges() for j in range(start, stop)]
        assert covered == list(range(layout.size))
        assert len(set(groups.names)) == len(groups)  # tensors of one layer lie together
        assert set(groups.bounds) <= set(layout.offsets)
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    flat = flatten(layout, tensors)
    views = unflatten(layout, flat)
    assert all(torch.equal(views[name], tensors[name]) for name in shapes)
    assert all(torch.equal(layout.view(flat, name), tensors[name]) for name in shapes)
    flat.zero_()
    assert not any(view.any() for view in views.values())  # views, not copies


def test_flatten_writes_into_out_and_refuses_other_shapes() -> None:
    layout = build_layout({"a.weight": (2, 2), "b.weight": (1,)})
    tensors = {"a.weight": torch.arange(4.0).view(2, 2), "b.weight": torch.tensor([9.0])}
    out = torch.zeros(5, dtype=torch.float16)
    assert flatten(layout, tensors, out=out) is out
    assert out.tolist() == [0, 1, 2, 3, 9]
    with pytest.raises(FwvizError, match=r"'b\.weight' is missing"):
        flatten(layout, {"a.weight": tensors["a.weight"]})
    with pytest.raises(FwvizError, match=r"'a\.weight' has shape \(4, 1\), but must have \(2, 2\)"):
        flatten(layout, {**tensors, "a.weight": torch.zeros(4, 1)})
