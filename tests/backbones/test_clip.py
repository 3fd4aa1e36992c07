"""The lean towers against the Hugging Face classes they replace, and damaged model folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from fwviz.backbones.clip_config import VisionShape
from fwviz.backbones.clip_text import ClipText
from fwviz.backbones.clip_vision import ClipVision, vision_tensors
from fwviz.space.layout import build_layout, unflatten
from fwviz.types import FwvizError

TEXTS = ["red", "a picture of a very long " + "word " * 30, "Ünïcode 日本 {} {0}", ""]


def save_random_clip(folder: Path, activation: str) -> None:
    """A CLIP with sizes that differ wherever they may, so that no two can be mixed up."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(3)
    config = CLIPConfig(
        vision_config={
            "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 3,
            "image_size": 15, "patch_size": 5, "hidden_act": activation, "initializer_factor": 8.0,
            "layer_norm_eps": 1e-4,
        },
        text_config={
            "hidden_size": 20, "intermediate_size": 28, "num_hidden_layers": 2, "num_attention_heads": 2,
            "vocab_size": 514, "max_position_embeddings": 12, "hidden_act": activation, "initializer_factor": 8.0,
            "bos_token_id": 512, "eos_token_id": 513,
        },
        projection_dim=16,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(folder)


@pytest.fixture(params=["quick_gelu", "gelu", "relu", "gelu_new"])
def clip_folder(request: pytest.FixtureRequest, tiny_pool_path: Path, tmp_path: Path) -> Path:
    save_random_clip(tmp_path / "clip", request.param)
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(tiny_pool_path / "base" / name, tmp_path / "clip")
    return tmp_path / "clip"


def load_reference(folder: Path) -> Any:
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def test_features_equal_clip_model(clip_folder: Path) -> None:
    from transformers import CLIPTokenizer

    reference, own = load_reference(clip_folder), ClipVision.load(clip_folder)
    pixels = torch.randn(5, 3, 15, 15, generator=torch.Generator().manual_seed(0))
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
    tokens = tokenizer(TEXTS, padding=True, truncation=True, max_length=12, return_tensors="pt")
    with torch.no_grad():
        output = reference(pixel_values=pixels, **tokens)
        torch.testing.assert_close(own.encode(pixels), output.image_embeds, atol=1e-5, rtol=0)
        texts = own.text_features(TEXTS)
        torch.testing.assert_close(texts, output.text_embeds, atol=1e-5, rtol=0)
        scale = torch.tensor(own.logit_scale).exp()
        torch.testing.assert_close(scale * own.encode(pixels) @ texts.T, output.logits_per_image, atol=1e-4, rtol=0)


def test_gradients_equal_clip_model(clip_folder: Path) -> None:
    """Backward through the class-token shortcut and the scaled activation gives every tensor's own gradient."""
    reference, own = load_reference(clip_folder), ClipVision.load(clip_folder)
    generator = torch.Generator().manual_seed(1)
    pixels, direction = torch.randn(4, 3, 15, 15, generator=generator), torch.randn(4, 16, generator=generator)
    layout = build_layout(vision_tensors(own.shape))
    flat = own.bind(layout)
    (own.encode(pixels) * direction).sum().backward()
    features = reference.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
    (F.normalize(features, dim=-1) * direction).sum().backward()
    named = dict(reference.named_parameters())
    for name, gradient in unflatten(layout, flat.gradient).items():
        # Softmax cancels the key's bias: its gradient is rounding, to be measured against the key's weight.
        scale = named[name.replace("k_proj.bias", "k_proj.weight")].grad.norm()
        assert scale > 0
        assert (gradient - named[name].grad).norm() < 1e-4 * scale, name


def test_gradient_accumulates_over_passes(tiny_pool: Any) -> None:
    tower = tiny_pool.backbone()
    pixels = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    tower.encode(pixels).square()[:, 0].sum().backward()
    whole = tower.flat.gradient.clone()
    tower.flat.zero_gradient()
    for part in pixels.split(2):
        tower.encode(part).square()[:, 0].sum().backward()
    torch.testing.assert_close(tower.flat.gradient, whole, atol=1e-6, rtol=1e-4)
    assert whole.norm() > 0


def test_towers_of_one_pool_do_not_share_weights(tiny_pool: Any) -> None:
    one, other = tiny_pool.backbone(), tiny_pool.backbone()
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    before = other.encode(pixels).detach()
    one.flat.load(torch.zeros_like(tiny_pool.base))
    assert torch.equal(other.encode(pixels), before)
    assert not torch.equal(one.encode(pixels), before)
    assert torch.equal(other.flat.theta, tiny_pool.base)


def test_pixels_are_those_of_the_image_processor(tiny_pool: Any) -> None:
    from transformers import CLIPImageProcessorPil

    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    folder = tiny_pool.card.root / "base"
    settings = json.loads((folder / "preprocessor_config.json").read_text()) | {"do_resize": False}
    processor = CLIPImageProcessorPil(**settings)
    expected = processor([image.permute(1, 2, 0).numpy() for image in images], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(tiny_pool.backbone().pixels(images), expected, atol=1e-5, rtol=0)


def test_head_is_the_renormalised_mean_of_unit_prompts(tiny_pool: Any) -> None:
    text = ClipText.load(tiny_pool.card.root / "base")
    prompts = ["a picture of {}", "{} beside {} {x}"]
    heads = text.heads(["red", "ring"], prompts)
    one = text.features(["a picture of ring", "ring beside ring {x}"])
    torch.testing.assert_close(heads[1], F.normalize(one.mean(0), dim=0))
    torch.testing.assert_close(heads.norm(dim=1), torch.ones(2))
    with pytest.raises(FwvizError, match=r"no \{\} where"):
        text.heads(["red"], ["a picture"])


def test_wrong_image_size_is_named(tiny_pool: Any) -> None:
    with pytest.raises(FwvizError, match=r"\(3, 8, 8\).*\(3, 16, 16\)"):
        tiny_pool.backbone().encode(torch.zeros(1, 3, 8, 8))


def test_older_configurations_load(tiny_pool_path: Path, tmp_path: Path) -> None:
    """Files of 2021 keep a second copy of the towers' values and say eos_token_id 2 by mistake."""
    folder = Path(shutil.copytree(tiny_pool_path / "base", tmp_path / "base"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2
    config["vision_config_dict"] = dict(config["vision_config"])
    config["vision_config"] = {"hidden_size": 999}
    (folder / "config.json").write_text(json.dumps(config))
    old, new = ClipVision.load(folder), ClipVision.load(tiny_pool_path / "base")
    assert old.shape == new.shape
    assert torch.equal(old.text_features(TEXTS), new.text_features(TEXTS))


def edit_config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return edit


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json cannot be read"),
    "config is no JSON": (write("config.json", b"{"), "no valid JSON"),
    "config is deep": (write("config.json", b"[" * 100_000), "no valid JSON"),
    "config is a list": (write("config.json", b"[]"), "no JSON object"),
    "config is binary": (write("config.json", b"\xff\xfe\x00"), "no valid JSON"),
    "config is huge": (write("config.json", b" " * (5 << 20)), "larger than 4 MiB"),
    "other model type": (edit_config(lambda c: c.update(model_type="bert")), "model_type 'bert'"),
    "remote code": (edit_config(lambda c: c.update(model_type="mine", auto_map={"AutoModel": "m.M"})), "model_type"),
    "heads do not divide": (edit_config(lambda c: c["vision_config"].update(num_attention_heads=5)), "no multiple"),
    "no heads": (edit_config(lambda c: c["vision_config"].update(num_attention_heads=0)), "num_attention_heads is 0"),
    "absurd depth": (edit_config(lambda c: c["vision_config"].update(num_hidden_layers=10**9)), "num_hidden_layers"),
    "other width": (edit_config(lambda c: c["vision_config"].update(hidden_size=64)), "its config.json says"),
    "more blocks": (edit_config(lambda c: c["vision_config"].update(num_hidden_layers=3)), "does not fit its config"),
    "float size": (edit_config(lambda c: c["vision_config"].update(image_size=16.5)), "image_size is 16.5"),
    "ragged patches": (edit_config(lambda c: c["vision_config"].update(patch_size=3)), "no multiple of patch_size"),
    "unknown activation": (edit_config(lambda c: c["vision_config"].update(hidden_act="mish")), "hidden_act is 'mish'"),
    "eps is NaN": (edit_config(lambda c: c["vision_config"].update(layer_norm_eps=float("nan"))), "layer_norm_eps"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors cannot be opened"),
    "weights cut off": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9]),
        "cut off",
    ),
    "a pickle": (write("model.safetensors", b"\x80\x04\x95" + b"." * 200), "damaged or no safetensors file"),
    "tensor missing": (
        edit_tensors(lambda t: t.pop("visual_projection.weight")),
        "no tensor 'visual_projection.weight'",
    ),
    "no scale": (edit_tensors(lambda t: t.pop("logit_scale")), "no tensor 'logit_scale'"),
    "NaN scale": (edit_tensors(lambda t: t.update(logit_scale=torch.tensor(float("nan")))), "logit_scale is nan"),
    "wide scale": (edit_tensors(lambda t: t.update(logit_scale=torch.zeros(2))), "must be one number"),
    "no processor": (lambda folder: (folder / "preprocessor_config.json").unlink(), "preprocessor_config.json"),
    "zero std": (
        write("preprocessor_config.json", b'{"image_mean": [0, 0, 0], "image_std": [1, 0, 1]}'),
        "image_std is",
    ),
    "two means": (
        write("preprocessor_config.json", b'{"image_mean": [0, 0], "image_std": [1, 1, 1]}'),
        "three numbers",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_folder_gives_one_sentence(name: str, tiny_pool_path: Path, tmp_path: Path) -> None:
    damage, message = DAMAGE[name]
    folder = Path(shutil.copytree(tiny_pool_path / "base", tmp_path / "base"))
    damage(folder)
    with pytest.raises(FwvizError, match=message) as raised:
        ClipVision.load(folder)
    assert "\n" not in str(raised.value)
    assert str(raised.value).endswith(".")


TEXT_DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json cannot be read"),
    "tokenizer is no JSON": (write("tokenizer.json", b"{"), "no valid tokenizer"),
    "tokenizer is binary": (write("tokenizer.json", b"\xff\xff"), "no text"),
    "tokenizer of another model": (
        edit_config(lambda c: c["text_config"].update(eos_token_id=3)),
        "does not fit the text tower",
    ),
    "short vocabulary": (edit_config(lambda c: c["text_config"].update(vocab_size=100)), "its config.json says"),
    "only a vision tower": (edit_config(lambda c: c.update(model_type="clip_vision_model")), "needs 'clip'"),
    "text tensor missing": (edit_tensors(lambda t: t.pop("text_projection.weight")), "text_projection.weight"),
}


@pytest.mark.parametrize("name", TEXT_DAMAGE)
def test_damaged_text_side_gives_one_sentence(name: str, tiny_pool_path: Path, tmp_path: Path) -> None:
    damage, message = TEXT_DAMAGE[name]
    folder = Path(shutil.copytree(tiny_pool_path / "base", tmp_path / "base"))
    damage(folder)
    with pytest.raises(FwvizError, match=message):
        ClipText.load(folder).features(["red"])


@pytest.mark.slow
def test_the_lean_tower_is_faster_than_the_one_it_replaces() -> None:
    """In CPU time, side by side, at the size of the embedded pool; other work on the machine slows both."""
    import time

    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        image_size=32, patch_size=8, projection_dim=128, hidden_act="gelu",
    )  # fmt: skip
    reference = CLIPVisionModelWithProjection(config).eval()
    shape = VisionShape(128, 512, 4, 4, "gelu", 1e-5, 128, channels=3, image_size=32, patch_size=8)
    own = ClipVision(shape, reference.state_dict(), logit_scale=1.0)
    own.bind(build_layout(vision_tensors(shape)))
    pixels = torch.randn(64, 3, 32, 32)

    def seconds(forward: Callable[[torch.Tensor], torch.Tensor]) -> float:
        start = time.thread_time()
        forward(pixels)[:, 0].sum().backward()
        return time.thread_time() - start

    pairs = [(seconds(lambda x: reference(pixel_values=x).image_embeds), seconds(own.encode)) for _ in range(9)]
    assert min(theirs for theirs, _ in pairs) > 1.1 * min(ours for _, ours in pairs)
