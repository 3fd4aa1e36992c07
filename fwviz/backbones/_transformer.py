"""The pre-norm transformer block both CLIP towers are made of, as a function of its tensors.

A function rather than Hugging Face's modules: the weights are views of one flat vector, nothing of the model's
repository is executed, and the work for outputs nobody reads can be left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from fwviz.backbones.family import Watch


class Block(NamedTuple):
    """The tensors of one block, in the order of :data:`BLOCK_NAMES`."""

    norm1_weight: Tensor
    norm1_bias: Tensor
    q_weight: Tensor
    q_bias: Tensor
    k_weight: Tensor
    k_bias: Tensor
    v_weight: Tensor
    v_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor
    norm2_weight: Tensor
    norm2_bias: Tensor
    fc1_weight: Tensor
    fc1_bias: Tensor
    fc2_weight: Tensor
    fc2_bias: Tensor


BLOCK_NAMES = tuple(
    f"{module}.{kind}"
    for module in (
        "layer_norm1",
        *(f"self_attn.{letter}_proj" for letter in "qkv"),
        "self_attn.out_proj",
        "layer_norm2",
        "mlp.fc1",
        "mlp.fc2",
    )
    for kind in ("weight", "bias")
)


_QKV = tuple(f"self_attn.{letter}_proj.weight" for letter in "qkv")


def block_shapes(width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Name inside the block → shape."""
    square, norm = (width, width), (width,)
    weights = {"layer_norm1": norm, "layer_norm2": norm, "mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    return {
        name: weights.get(name.rpartition(".")[0], square)
        if name.endswith("weight")
        else ((hidden,) if name == "mlp.fc1.bias" else norm)
        for name in BLOCK_NAMES
    }


def block_of(tensors: Mapping[str, Tensor], prefix: str) -> Block:
    """Pick the tensors of one block by their full names."""
    return Block(*(tensors[prefix + name] for name in BLOCK_NAMES))


class Activation(NamedTuple):
    """act(x) = function(gain·x) / gain."""

    function: Callable[[Tensor], Tensor]
    gain: float = 1.0


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS = {
    "gelu": Activation(F.gelu),
    "gelu_pytorch_tanh": Activation(_gelu_tanh),
    "gelu_new": Activation(_gelu_tanh),
    "quick_gelu": Activation(F.silu, 1.702),  # x·σ(1.702x)
    "relu": Activation(F.relu),
}


def apply_block(
    x: Tensor,
    b: Block,
    *,
    heads: int,
    eps: float,
    activation: Activation,
    causal: bool = False,
    first_only: bool = False,
    watch: Watch | None = None,
) -> Tensor:
    """x + attention, then x + MLP: (B, T, W) → (B, T, W), or (B, 1, W) with ``first_only``.

    ``first_only`` computes the first token's output alone (it still attends to all): what the last block of a tower
    read at its class token needs. It saves five sixths of that block. ``watch`` sees the inputs of the linear weights.
    """
    batch, tokens, width = x.shape
    y = F.layer_norm(x, (width,), b.norm1_weight, b.norm1_bias, eps)
    if watch is not None:
        watch(_QKV, y)
    k = F.linear(y, b.k_weight, b.k_bias).view(batch, tokens, heads, -1).transpose(1, 2)
    v = F.linear(y, b.v_weight, b.v_bias).view(batch, tokens, heads, -1).transpose(1, 2)
    if first_only:
        x, y = x[:, :1], y[:, :1]
    q = F.linear(y, b.q_weight, b.q_bias).view(batch, y.shape[1], heads, -1).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).reshape(y.shape)
    if watch is not None:
        watch(["self_attn.out_proj.weight"], mixed)
    x = x + F.linear(mixed, b.out_weight, b.out_bias)
    return x + _mlp(F.layer_norm(x, (width,), b.norm2_weight, b.norm2_bias, eps), b, activation, watch)


def _mlp(x: Tensor, b: Block, activation: Activation, watch: Watch | None) -> Tensor:
    function, gain = activation
    if watch is not None:
        watch(["mlp.fc1.weight"], x)
    # A gain is moved into the weights: one fused kernel then does the activation instead of three over the widest
    # tensor of the network.
    if gain == 1.0:
        hidden = function(F.linear(x, b.fc1_weight, b.fc1_bias))
        weight = b.fc2_weight
    else:
        hidden = function(F.linear(x, b.fc1_weight * gain, b.fc1_bias * gain))
        weight = b.fc2_weight * (1 / gain)
    if watch is not None:
        watch(["mlp.fc2.weight"], hidden / gain)
    return F.linear(hidden, weight, b.fc2_bias)
