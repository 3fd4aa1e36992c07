"""Turn bank masks and drawings into 32×32 training pictures: random shape, colour, texture and noise, in batches.

Every function takes a ``torch.Generator``; the same generator state gives the same pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

OUT = 32


@dataclass(frozen=True)
class Look:
    """How strongly pictures are changed; probabilities are shares of the batch.

    Attributes:
        rotation: largest turn, in degrees; ``turn`` adds a fixed one.
        zoom: smallest and largest size relative to the bank image.
        shear, shift: largest shear, and shift as a share of half the picture.
        wobble: largest smooth displacement, as a share of half the picture (0: none).
        outline, thicken, thin: probability of drawing the outline only, of thicker and of thinner strokes.
        plain: probability of light on black or dark on white instead of random colours.
        contrast: smallest difference of brightness between ink and ground.
        texture: probability of a blotchy background, with ``texture_strength``.
        noise: largest standard deviation of pixel noise; blur: probability of a 3×3 mean.
        silhouette, grey, invert: probabilities for drawings.
        turn: degrees added to every rotation.
    """

    rotation: float = 12.0
    zoom: tuple[float, float] = (0.75, 1.25)
    shear: float = 0.15
    shift: float = 0.12
    wobble: float = 0.06
    outline: float = 0.1
    thicken: float = 0.12
    thin: float = 0.08
    plain: float = 0.4
    contrast: float = 0.3
    texture: float = 0.25
    texture_strength: float = 0.25
    noise: float = 0.1
    blur: float = 0.12
    silhouette: float = 0.15
    grey: float = 0.1
    invert: float = 0.1
    turn: float = 0.0


PRETRAINING = Look()


def _uniform(shape: tuple[int, ...], low: float, high: float, rng: Generator) -> Tensor:
    return torch.rand(shape, generator=rng) * (high - low) + low


def _chosen(count: int, probability: float, rng: Generator) -> Tensor:
    return torch.rand(count, generator=rng) < probability


def warp(images: Tensor, look: Look, rng: Generator) -> Tensor:
    """Random affine map plus a smooth wobble: (n, c, 48, 48) → (n, c, 32, 32)."""
    n = len(images)
    angle = torch.deg2rad(_uniform((n,), -look.rotation, look.rotation, rng) + look.turn)
    size = 1 / _uniform((n,), *look.zoom, rng)
    aspect = torch.exp(_uniform((n,), -0.12, 0.12, rng))
    shear = _uniform((n,), -look.shear, look.shear, rng)
    cos, sin = angle.cos() * size, angle.sin() * size
    theta = torch.stack(
        [
            torch.stack([cos * aspect, -sin + shear * cos], 1),
            torch.stack([sin * aspect, cos + shear * sin], 1),
        ],
        1,
    )
    shift = _uniform((n, 2, 1), -look.shift, look.shift, rng)
    grid = F.affine_grid(torch.cat([theta, shift], 2), [n, 1, OUT, OUT], align_corners=False)
    if look.wobble > 0:
        bumps = torch.randn(n, 2, 4, 4, generator=rng) * _uniform((n, 1, 1, 1), 0, look.wobble, rng)
        grid = grid + F.interpolate(bumps, size=OUT, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, mode="bilinear", align_corners=False)


def restroke(masks: Tensor, look: Look, rng: Generator) -> Tensor:
    """Outline, thicken or thin some of the (n, 1, 48, 48) masks."""
    n = len(masks)
    draw = torch.rand(n, generator=rng)
    outline = draw < look.outline
    thicken = (draw >= look.outline) & (draw < look.outline + look.thicken)
    thin = (draw >= 1 - look.thin) & ~outline & ~thicken
    masks = masks.clone()
    if outline.any():
        part = masks[outline]
        masks[outline] = (F.max_pool2d(part, 5, 1, 2) - part).clamp(0, 1)
    if thicken.any():
        masks[thicken] = F.max_pool2d(masks[thicken], 3, 1, 1)
    if thin.any():
        thinner = -F.max_pool2d(-masks[thin], 3, 1, 1)
        # Thin strokes would vanish: keep what is left of the ink elsewhere at half strength.
        masks[thin] = torch.maximum(thinner, 0.5 * masks[thin])
    return masks


def _colours(n: int, look: Look, rng: Generator) -> tuple[Tensor, Tensor]:
    """Ink and ground colours, (n, 3, 1, 1) each, at least ``contrast`` apart in brightness."""
    ink, ground = torch.rand(n, 3, generator=rng), torch.rand(n, 3, generator=rng)
    weights = torch.tensor([0.3, 0.59, 0.11])
    for _ in range(6):
        close = ((ink - ground) @ weights).abs() < look.contrast
        if not close.any():
            break
        count = int(close.sum())
        ink[close], ground[close] = torch.rand(count, 3, generator=rng), torch.rand(count, 3, generator=rng)
    plain = _chosen(n, look.plain, rng)
    light = _chosen(n, 0.6, rng)
    ink[plain & light], ground[plain & light] = 1.0, 0.0
    ink[plain & ~light], ground[plain & ~light] = 0.0, 1.0
    return ink[:, :, None, None], ground[:, :, None, None]


def _ground(ground: Tensor, look: Look, rng: Generator) -> Tensor:
    n = len(ground)
    textured = _chosen(n, look.texture, rng)[:, None, None, None]
    blotches = F.interpolate(torch.randn(n, 3, 6, 6, generator=rng), size=OUT, mode="bilinear", align_corners=True)
    strength = _uniform((n, 1, 1, 1), 0.2, 1.0, rng) * look.texture_strength
    return (ground + torch.where(textured, blotches * strength, torch.zeros(()))).clamp(0, 1)


def _finish(pixels: Tensor, look: Look, rng: Generator) -> Tensor:
    n = len(pixels)
    blurred = _chosen(n, look.blur, rng)
    if blurred.any():
        pixels[blurred] = F.avg_pool2d(F.pad(pixels[blurred], (1, 1, 1, 1), mode="replicate"), 3, 1)
    noise = torch.randn(pixels.shape, generator=rng) * _uniform((n, 1, 1, 1), 0, 1, rng).square() * look.noise
    return (pixels + noise).clamp(0, 1)


def draw_masks(masks: Tensor, look: Look, rng: Generator) -> Tensor:
    """(n, 48, 48) uint8 masks → (n, 3, 32, 32) pictures in [0, 1]: ink of one colour on a ground of another."""
    ink_shape = warp(restroke(masks[:, None].float() / 255, look, rng), look, rng).clamp(0, 1)
    ink, ground = _colours(len(masks), look, rng)
    behind = _ground(ground, look, rng)
    return _finish(ink_shape * ink + (1 - ink_shape) * behind, look, rng)


def draw_pictures(pictures: Tensor, look: Look, rng: Generator) -> Tensor:
    """(n, 48, 48, 4) uint8 drawings → (n, 3, 32, 32) pictures in [0, 1] on a random ground."""
    n = len(pictures)
    straight = pictures.permute(0, 3, 1, 2).float() / 255
    # Premultiplied colours, or the hidden colour of clear pixels would bleed into the edges.
    layers = warp(torch.cat([straight[:, :3] * straight[:, 3:], straight[:, 3:]], 1), look, rng).clamp(0, 1)
    colour, alpha = layers[:, :3], layers[:, 3:]
    ink, ground = _colours(n, look, rng)
    behind = _ground(ground, look, rng)
    shape_only = _chosen(n, look.silhouette, rng)[:, None, None, None]
    colour = torch.where(shape_only, alpha * ink, colour)
    pixels = colour + (1 - alpha) * behind
    grey = _chosen(n, look.grey, rng)
    if grey.any():
        weights = torch.tensor([0.3, 0.59, 0.11])[None, :, None, None]
        pixels[grey] = (pixels[grey] * weights).sum(1, keepdim=True).expand(-1, 3, -1, -1)
    inverted = _chosen(n, look.invert, rng)
    pixels[inverted] = 1 - pixels[inverted]
    return _finish(pixels, look, rng)


def normalise(pixels: Tensor) -> Tensor:
    """[0, 1] → [-1, 1], as the saved image processor does (mean 0.5, standard deviation 0.5)."""
    return (pixels - 0.5) / 0.5
