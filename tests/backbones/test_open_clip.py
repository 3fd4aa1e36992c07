"""The same weights in open_clip and in transformers: equal features both ways; checkpoints of either in one pool."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from fwviz.backbones.clip_vision import ClipVision, vision_tensors
from fwviz.backbones.open_clip import from_open_clip, open_clip_checkpoint, read_open_clip_shape, to_open_clip
from fwviz.pools.open import open_pool
from fwviz.space.layout import build_layout, flatten
from fwviz.types import FwvizError

pytestmark = pytest.mark.filterwarnings("ignore")  # of open_clip and what it brings

CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 4, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
}


def save_open_clip(folder: Path, config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """A random CLIP in the format of open_clip's own folders; returns its tensors."""
    from open_clip.model import CLIP

    torch.manual_seed(seed)
    model = CLIP(**config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return tensors


def open_clip_features(folder: Path, pixels: Tensor) -> Tensor:
    """By open_clip itself, from the folder."""
    import open_clip

    model = open_clip.create_model(f"local-dir:{folder}").eval()
    with torch.no_grad():
        features: Tensor = model.encode_image(pixels, normalize=True)
        return features


def some_pixels() -> Tensor:
    return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("quick", [True, False])
def test_features_equal_open_clip_and_transformers(quick: bool, tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    tensors = save_open_clip(tmp_path, CONFIG | {"quick_gelu": quick})
    expected = open_clip_features(tmp_path, some_pixels())
    shape = read_open_clip_shape(tmp_path / "open_clip_config.json")
    mapped = from_open_clip(tensors, vision_tensors(shape))
    own = ClipVision(shape, mapped, logit_scale=0.0)
    with torch.no_grad():
        torch.testing.assert_close(own.encode(some_pixels()), expected, atol=1e-5, rtol=0)
        config = CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=16,
            patch_size=4, projection_dim=24, hidden_act=shape.activation,
        )  # fmt: skip
        reference = CLIPVisionModelWithProjection(config).eval()
        reference.load_state_dict(mapped, strict=True)
        features = F.normalize(reference(pixel_values=some_pixels()).image_embeds, dim=-1)
        torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)


def test_the_way_back_loads_in_open_clip(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4,
        projection_dim=24, hidden_act="quick_gelu", initializer_factor=5.0,
    )  # fmt: skip
    torch.manual_seed(2)
    reference = CLIPVisionModelWithProjection(config).eval()
    tensors = save_open_clip(tmp_path, CONFIG)
    back = to_open_clip({n: t.detach().clone() for n, t in reference.state_dict().items()})
    assert {name for name in tensors if name.startswith("visual.")} == set(back)
    save_file(tensors | back, tmp_path / "open_clip_model.safetensors")
    with torch.no_grad():
        expected = F.normalize(reference(pixel_values=some_pixels()).image_embeds, dim=-1)
    torch.testing.assert_close(open_clip_features(tmp_path, some_pixels()), expected, atol=1e-5, rtol=0)


def test_a_file_is_read_in_any_piece(tmp_path: Path) -> None:
    """What a streamed merge does: parts that begin and end inside thirds of a matrix and inside the transposed one."""
    tensors = save_open_clip(tmp_path, CONFIG)
    names = vision_tensors(read_open_clip_shape(tmp_path / "open_clip_config.json"))
    layout = build_layout(names)
    expected = flatten(layout, from_open_clip(tensors, names))
    file = open_clip_checkpoint(tmp_path, layout)
    for size in (layout.size, 997, 64):
        parts = []
        for start in range(0, layout.size, size):
            out = torch.empty(min(size, layout.size - start))
            file.read_flat(start, start + len(out), out, torch.empty(4 * len(out), dtype=torch.uint8))
            parts.append(out)
        assert torch.equal(torch.cat(parts), expected)


@pytest.mark.parametrize("storage", ["resident", "streamed"])
def test_a_pool_takes_checkpoints_of_both(storage: Any, pool_copy: Any) -> None:
    """The same checkpoint saved by open_clip gives the same task vector."""
    expected = open_pool(pool_copy.root).task_vectors(["colour", "shape"], storage)
    replace_by_open_clip(pool_copy.root / "checkpoints" / "shape")
    seal(pool_copy)
    found = open_pool(pool_copy.root).task_vectors(["colour", "shape"], storage)
    for i in range(2):
        assert torch.equal(found.vector(i), expected.vector(i))


def replace_by_open_clip(folder: Path, **changes: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    shutil.rmtree(folder)
    folder.mkdir()
    save_file(to_open_clip(tensors), folder / "open_clip_model.safetensors")
    own = CONFIG | {"quick_gelu": config["hidden_act"] == "quick_gelu"}
    own["vision_cfg"] = own["vision_cfg"] | {"head_width": 32 // config["num_attention_heads"]} | changes
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": own}))


def seal(pool: Any) -> None:
    import hashlib

    file = pool.root / "checkpoints/shape/open_clip_model.safetensors"

    def change(card: dict[str, Any]) -> None:
        entry = next(part for part in card["checkpoints"] if part["id"] == "shape")
        entry["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else "0" * 64

    pool.edit(change)


def edit(name: str, change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], Any]:
    def act(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name)

    return act


def edit_config(**values: Any) -> Callable[[Path], Any]:
    def act(folder: Path) -> None:
        file = folder / "open_clip_config.json"
        config = json.loads(file.read_text())
        config["model_cfg"]["vision_cfg"] |= values
        file.write_text(json.dumps(config))

    return act


def pickle(folder: Path) -> None:
    torch.save(load_file(folder / "open_clip_model.safetensors"), folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_model.safetensors").unlink()


WEIGHTS = "open_clip_model.safetensors"
FUSED = "visual.transformer.resblocks.1.attn.in_proj_weight"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "other depth": (edit_config(layers=3), "another architecture: its depth is 3"),
    "timm tower": (edit_config(timm_model_name="vit_base"), "timm_model_name 'vit_base'"),
    "layer scale": (edit_config(ls_init_value=0.1), "ls_init_value 0.1"),
    "resnet": (edit_config(layers=[3, 4, 6, 3]), r"layers is \[3, 4, 6, 3\]"),
    "no config": (lambda folder: (folder / "open_clip_config.json").write_text("{}"), "no model_cfg"),
    "fused shape": (edit(WEIGHTS, lambda t: t.update({FUSED: t[FUSED][:64].clone()})), r"\(64, 32\), but the base"),
    "transposed": (
        edit(WEIGHTS, lambda t: t.update({"visual.proj": t["visual.proj"].T.contiguous()})),
        r"'visual.proj' has shape \(24, 32\)",
    ),
    "missing": (edit(WEIGHTS, lambda t: t.pop("visual.ln_post.bias")), "no tensor 'visual.ln_post.bias'"),
    "too much": (edit(WEIGHTS, lambda t: t.update({"visual.attn_pool.q": torch.zeros(2)})), "'visual.attn_pool.q'"),
    "NaN": (edit(WEIGHTS, lambda t: t[FUSED].fill_(float("nan"))), "NaN or infinity"),
    "pickle": (pickle, "is a pickle, which can run code"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_folder_gives_one_sentence(name: str, pool_copy: Any) -> None:
    damage, message = DAMAGE[name]
    replace_by_open_clip(pool_copy.root / "checkpoints" / "shape")
    damage(pool_copy.root / "checkpoints" / "shape")
    seal(pool_copy)
    with pytest.raises(FwvizError, match=message) as raised:
        open_pool(pool_copy.root).task_vectors(["colour", "shape"])
    assert "\n" not in str(raised.value)
