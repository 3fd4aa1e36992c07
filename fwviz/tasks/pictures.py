"""Pictures of any size and format a person has, as the pool's model takes them; every byte is distrusted."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fwviz.backbones.clip_config import read_json
from fwviz.types import FwvizError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 24_000_000  # of one picture: what it unpacks to is known from its header


@dataclass(frozen=True)
class Framing:
    """How a picture comes to ``size`` x ``size`` pixels: its middle square (``crop``), or all of it squeezed."""

    size: int
    crop: bool = False


def read_framing(base: Path, size: int) -> Framing:
    """The framing a base's ``preprocessor_config.json`` asks for; its middle square where there is none."""
    file = base / "preprocessor_config.json"
    return Framing(size, bool(read_json(file).get("do_center_crop", True)) if file.is_file() else True)


def to_png(content: bytes, framing: Framing, name: str) -> tuple[bytes, int]:
    """A picture as an RGB PNG of the size asked for, upright, on white, with nothing beside its pixels.

    Returns the PNG and the number of pixels the picture had. The header's size is looked at before anything is
    unpacked. Raises FwvizError that names the file.
    """
    from PIL import Image, ImageOps

    damaged = (OSError, SyntaxError, ValueError, EOFError, OverflowError, MemoryError, TypeError, KeyError, IndexError)
    broken = (*damaged, struct.error, zlib.error)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise _too_large(name, width, height)
            if min(width, height) < 1:
                raise ValueError
            picture.draft("RGB", (2 * framing.size, 2 * framing.size))  # a JPEG unpacks to what is needed only
            upright = ImageOps.exif_transpose(picture)
            square = _frame(_on_white(upright), framing)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise FwvizError(
            f"{name!r} unpacks to far more than {MAX_PIXELS // 10**6} million pixels: make it smaller."
        ) from None
    except Image.UnidentifiedImageError:
        raise FwvizError(
            f"{name!r} is no picture: put only PNG, JPEG, WebP, BMP or GIF files into the folders of classes."
        ) from None
    except broken:
        raise FwvizError(f"{name!r} is a damaged picture: save it again or leave it out.") from None
    buffer = io.BytesIO()
    square.save(buffer, format="PNG")
    return buffer.getvalue(), width * height


def _too_large(name: str, width: int, height: int) -> FwvizError:
    return FwvizError(
        f"{name!r} is a picture of {width} x {height} pixels, more than {MAX_PIXELS // 10**6} million: make it smaller."
    )


def _on_white(picture: Image) -> Image:
    """RGB; where a picture is transparent, white shows through."""
    from PIL import Image

    if picture.mode in ("I;16", "I;16L", "I;16B", "I"):  # PIL would cut 16-bit greys off at 255
        import numpy as np

        return Image.fromarray((np.asarray(picture).clip(0, 65535) >> 8).astype("uint8")).convert("RGB")
    if picture.has_transparency_data:
        whole = picture.convert("RGBA")
        white = Image.new("RGBA", whole.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, whole).convert("RGB")
    return picture.convert("RGB")


def _frame(picture: Image, framing: Framing) -> Image:
    from PIL import Image, ImageOps

    size = (framing.size, framing.size)
    if framing.crop:
        return ImageOps.fit(picture, size, method=Image.Resampling.BICUBIC)
    return picture.resize(size, Image.Resampling.BICUBIC)
